#include "text/code_points.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "core/check.h"

namespace llama2cpp {
namespace {

#include "text/categories.inc"

}  // namespace

CodeSet::CodeSet(std::vector<Run> runs) {
  std::sort(runs.begin(), runs.end());
  for (const Run& run : runs) {
    if (run.first >= run.second) continue;
    if (!runs_.empty() && run.first <= runs_.back().second) {
      runs_.back().second = std::max(runs_.back().second, run.second);
    } else {
      runs_.push_back(run);
    }
  }
}

bool is_white_space(std::uint32_t code) {
  return std::any_of(std::begin(kSpaceRuns), std::end(kSpaceRuns),
                     [&](const auto& run) { return code >= run[0] && code < run[1]; });
}

CodeSet CodeSet::white_space() {
  std::vector<Run> runs;
  for (const auto& [first, end] : kSpaceRuns) runs.emplace_back(first, end);
  return CodeSet(std::move(runs));
}

std::optional<CodeSet> CodeSet::category(std::string_view name) {
  std::uint32_t wanted = 0;  // a bit for each category
  for (std::size_t i = 0; i < std::size(kCategoryNames); ++i) {
    if (name == kCategoryNames[i] || name == kCategoryNames[i].substr(0, 1)) wanted |= 1U << i;
  }
  if (wanted == 0) return {};
  std::vector<Run> runs;
  for (std::size_t i = 0; i < std::size(kCategoryRuns); ++i) {
    if ((wanted >> (kCategoryRuns[i] & 31) & 1) == 0) continue;
    const std::uint32_t end = i + 1 < std::size(kCategoryRuns) ? kCategoryRuns[i + 1] >> 5 : kNoCode;
    runs.emplace_back(kCategoryRuns[i] >> 5, end);
  }
  return CodeSet(std::move(runs));
}

bool CodeSet::contains(std::uint32_t code) const {
  const auto after = std::upper_bound(runs_.begin(), runs_.end(), code,
                                      [](std::uint32_t value, const Run& run) { return value < run.first; });
  return after != runs_.begin() && code < std::prev(after)->second;
}

CodeSet CodeSet::inverted() const {
  CodeSet others;
  std::uint32_t begin = 0;
  for (const Run& run : runs_) {
    if (begin < run.first) others.runs_.emplace_back(begin, run.first);
    begin = run.second;
  }
  if (begin < kEndOfCodes) others.runs_.emplace_back(begin, kEndOfCodes);
  return others;
}

CodeSet CodeSet::united(const CodeSet& other) const {
  std::vector<Run> runs = runs_;
  runs.insert(runs.end(), other.runs_.begin(), other.runs_.end());
  return CodeSet(std::move(runs));
}

CodeSet CodeSet::intersected(const CodeSet& other) const { return inverted().united(other.inverted()).inverted(); }

CodeClasses::CodeClasses(std::span<const CodeSet> sets) {
  struct Border {
    std::uint32_t code;
    std::uint32_t set;  // which begins or ends there
  };
  std::vector<Border> borders;
  for (std::size_t i = 0; i < sets.size(); ++i) {
    for (const auto& [first, end] : sets[i].runs()) {
      borders.push_back({first, static_cast<std::uint32_t>(i)});
      borders.push_back({end, static_cast<std::uint32_t>(i)});
    }
  }
  std::sort(borders.begin(), borders.end(), [](const Border& a, const Border& b) { return a.code < b.code; });

  of_block_.resize(kEndOfCodes / kBlock + 1);
  std::map<Members, std::uint8_t> known;
  std::map<std::uint8_t, std::uint16_t> uniform;  // the block of a class alone
  Members members{};
  std::size_t next = 0;  // border
  std::uint32_t begin = 0;
  while (begin < kEndOfCodes) {
    for (; next < borders.size() && borders[next].code == begin; ++next) {
      members[borders[next].set / 64] ^= std::uint64_t{1} << (borders[next].set % 64);
    }
    const std::uint32_t end = next < borders.size() ? borders[next].code : kEndOfCodes;
    auto found = known.find(members);
    if (found == known.end()) {
      if (members_.size() >= kMost) throw FormatError("a pattern with more classes of characters than are implemented");
      found = known.emplace(members, static_cast<std::uint8_t>(members_.size())).first;
      members_.push_back(members);
    }
    const std::uint8_t cls = found->second;
    while (begin < end) {
      const std::uint32_t at = begin % kBlock;
      const auto count = static_cast<std::uint32_t>(std::min<std::size_t>(kBlock - at, end - begin));
      const bool whole = at == 0 && count == kBlock;
      const auto same = whole ? uniform.find(cls) : uniform.end();
      if (same != uniform.end()) {
        of_block_[begin / kBlock] = same->second;
      } else {
        if (at == 0) {
          const auto number = static_cast<std::uint16_t>(blocks_.size() / kBlock);
          of_block_[begin / kBlock] = number;
          if (whole) uniform.emplace(cls, number);
          blocks_.resize(blocks_.size() + kBlock);
        }
        std::fill_n(blocks_.end() - static_cast<std::ptrdiff_t>(kBlock - at), count, cls);
      }
      begin += count;
    }
  }
  for (std::uint32_t code = 0; code < 128; ++code) ascii_[code] = of(code);
}

}  // namespace llama2cpp
