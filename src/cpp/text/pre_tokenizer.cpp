#include "text/pre_tokenizer.h"

#include <algorithm>
#include <optional>

#include "text/code_points.h"

namespace llama2cpp {
namespace {

constexpr std::uint64_t kStepsPerByte = 64;
constexpr std::uint64_t kFreeSteps = 1 << 20;

// Puts together matches and what lies between them.
class Joiner {
 public:
  Joiner(SplitBehavior behavior, bool invert, std::string_view text, FunctionRef<void(std::string_view)> each)
      : behavior_(behavior), invert_(invert), text_(text), each_(each) {}

  void add(std::size_t begin, std::size_t end, bool match) {
    match = match != invert_;
    using enum SplitBehavior;
    if (behavior_ == isolated) return give(begin, end);
    if (behavior_ == removed) {
      if (!match) give(begin, end);
      return;
    }
    const bool joins = (behavior_ == contiguous && match == match_before_) ||
                       (behavior_ == merged_with_previous && match && !match_before_) ||
                       (behavior_ == merged_with_next && !match && match_before_);
    if (!joins || !held_) {
      finish();
      begin_ = begin;
    }
    held_ = true;
    end_ = end;
    match_before_ = match;
  }

  void finish() {
    if (held_) give(begin_, end_);
    held_ = false;
  }

 private:
  void give(std::size_t begin, std::size_t end) {
    if (begin < end) each_(text_.substr(begin, end - begin));
  }

  SplitBehavior behavior_;
  bool invert_;
  std::string_view text_;
  FunctionRef<void(std::string_view)> each_;
  bool held_ = false;  // from begin_ to end_, which more may join
  std::size_t begin_ = 0, end_ = 0;
  bool match_before_ = false;
};

}  // namespace

WordCutter::WordCutter(const ByteBpeRules& rules) {
  const auto patterns = patterns_of(rules.pre_tokenizer);
  steps_.reserve(patterns.size() + rules.splits.size());
  for (const std::string_view pattern : patterns) {
    steps_.push_back({Pattern(pattern), SplitBehavior::isolated, false, {}});
  }
  for (const Split& split : rules.splits) steps_.push_back({Pattern(split.pattern), split.behavior, split.invert, {}});
  keeps_all_ = std::none_of(steps_.begin(), steps_.end(),
                            [](const Step& step) { return step.behavior == SplitBehavior::removed; });
  std::array<bool, 256> matters{};
  for (std::size_t step = steps_.size(); step-- > 0;) {
    auto& [pattern, behavior, invert, later] = steps_[step];
    later = matters;
    for (std::size_t byte = 0; byte < matters.size(); ++byte) {
      matters[byte] = matters[byte] || (invert && behavior == SplitBehavior::removed) ||
                      pattern.may_begin_with(static_cast<std::uint8_t>(byte));
    }
  }
}

void WordCutter::cut(std::string_view text, FunctionRef<void(std::string_view)> each) const {
  if (text.empty()) return;
  Pattern::Budget budget{steps_.size() * (kStepsPerByte * text.size() + kFreeSteps)};
  cut_from(0, text, each, budget);
}

void WordCutter::cut_from(std::size_t step, std::string_view text, FunctionRef<void(std::string_view)> each,
                          Pattern::Budget& budget) const {
  // What a step finds nothing in is left whole, unless what is found nowhere is to be removed.
  const auto leaves_whole = [&](const Step& one) {
    return !(one.invert && one.behavior == SplitBehavior::removed) && !one.pattern.may_match(text);
  };
  while (step < steps_.size() && leaves_whole(steps_[step])) ++step;
  if (step == steps_.size()) return each(text);
  const auto& [pattern, behavior, invert, later] = steps_[step];
  const bool last = step + 1 == steps_.size();
  std::size_t matters = 0;  // the next byte that may matter to a later step; parts come in their order
  const auto give = [&](std::string_view part) {
    if (part.size() == 1 && keeps_all_) return each(part);  // it cannot be cut
    const auto begin = static_cast<std::size_t>(part.data() - text.data());
    if (matters < begin) matters = begin;
    while (matters < begin + part.size() && !later[static_cast<std::uint8_t>(text[matters])]) ++matters;
    if (matters >= begin + part.size()) return each(part);
    cut_from(step + 1, part, each, budget);
  };
  std::size_t done = 0;
  std::size_t from = 0;
  std::optional<std::size_t> end_before;
  const auto all = [&](auto add) {
    while (const auto match = pattern.find(text, from, budget)) {
      if (match->begin == match->end && end_before == match->end) {  // an empty match right behind another is none
        if (from == text.size()) break;
        from += decode(text.substr(from)).length;
        continue;
      }
      if (done < match->begin) add(done, match->begin, false);
      add(match->begin, match->end, true);
      from = done = match->end;
      end_before = done;
    }
    if (done < text.size()) add(done, text.size(), false);
  };
  if (behavior == SplitBehavior::isolated) {  // whatever is found, and whatever lies between
    if (last) {
      all([&](std::size_t begin, std::size_t end, bool) {
        if (begin < end) each(text.substr(begin, end - begin));
      });
    } else {
      all([&](std::size_t begin, std::size_t end, bool) {
        if (begin < end) give(text.substr(begin, end - begin));
      });
    }
    return;
  }
  Joiner joiner(behavior, invert, text, last ? each : FunctionRef<void(std::string_view)>(give));
  all([&](std::size_t begin, std::size_t end, bool match) { joiner.add(begin, end, match); });
  joiner.finish();
}

std::size_t spaces_at_start(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const CodePoint next = decode(text.substr(at));
    if (!is_white_space(next.code)) break;
    at += next.length;
  }
  return at;
}

std::size_t spaces_at_end(std::string_view text) {
  std::size_t begin = text.size();
  while (begin > 0) {
    std::size_t at = begin - 1;  // of the last character
    while (at > 0 && begin - at < 4 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    const CodePoint last = decode(text.substr(at, begin - at));
    if (!is_white_space(last.code) || last.length != begin - at) break;
    begin = at;
  }
  return text.size() - begin;
}

}  // namespace llama2cpp
