// Unigram models as tokenizer.json files hold them (T5, XLM-RoBERTa): the text is normalised in steps, cut into words, and
// each word becomes the pieces whose scores have the largest sum. The ids are those of `tokenizers`, but that a control
// piece is never made from plain text, as in all other kinds.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"
#include "text/bpe_merge.h"
#include "text/byte_fallback.h"
#include "text/charsmap.h"
#include "text/code_points.h"
#include "text/encoder.h"
#include "text/nfc.h"
#include "text/pattern.h"
#include "text/pre_tokenizer.h"
#include "text/viterbi.h"

namespace llama2cpp {
namespace {

Viterbi viterbi_of(const Vocabulary& vocabulary, const UnigramRules& rules) {
  constexpr double kPenalty = 10;  // of a character that is no piece, below the lowest score
  std::vector<Viterbi::Piece> pieces;
  double lowest = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    const double score = rules.log_probs[i];
    if (std::isinf(score)) continue;
    lowest = std::min(lowest, score);
    const std::string& piece = vocabulary.pieces[i];
    if (piece.empty() || (vocabulary.types[i] == PieceType::control && piece != kEscapedSpace)) continue;
    pieces.push_back({piece, static_cast<std::int32_t>(i), score});
  }
  Viterbi::Settings settings;
  settings.unknown_score = lowest - kPenalty;
  return {std::move(pieces), settings};
}

std::string valid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t valid = utf8_valid_bytes(text);
    out.append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) break;
    out.append(kReplacementCharacter);
    text.remove_prefix(1);
  }
  return out;
}

class UnigramEncoder final : public Encoder {
 public:
  UnigramEncoder(const Vocabulary& vocabulary, const UnigramRules& rules)
      : unk_id_(vocabulary.unk_id),
        rules_(rules),
        viterbi_(viterbi_of(vocabulary, rules)),
        fallback_(vocabulary),
        charsmap_(rules.charsmap) {
    for (const TextStep& step : rules.steps) {
      if (step.kind == TextStepKind::replace) patterns_.emplace_back(step.pattern);
    }
  }

  void encode(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    if (bos_id >= 0) ids.push_back(bos_id);
    encode_normalized(normalized(text), true, ids);
  }

  void encode_later(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    if (bos_id >= 0) ids.push_back(bos_id);
    encode_normalized(normalized(text), false, ids);
  }

  std::string normalized(std::string_view text) const override {
    std::string out = valid_utf8(text);
    auto pattern = patterns_.begin();
    for (const TextStep& step : rules_.steps) {
      switch (step.kind) {
        case TextStepKind::charsmap:
          out = charsmap_.by_clusters(out);
          break;
        case TextStepKind::nfc:
          out = nfc(out);
          break;
        case TextStepKind::replace:
          out = replaced(*pattern++, step.content, out);
          break;
        case TextStepKind::prepend:
          if (!out.empty()) out.insert(0, step.content);
          break;
        case TextStepKind::strip_left:
          out.erase(0, spaces_at_start(out));
          break;
        case TextStepKind::strip_right:
          out.resize(out.size() - spaces_at_end(out));
          break;
      }
      LLAMA2CPP_CHECK(out.size() <= kLongestText / kEscapedSpace.size() - 1,
                      "the text is too long to encode at once: ", out.size(), " bytes when normalised");
    }
    return out;
  }

  void encode_normalized(std::string_view text, bool first, std::vector<std::int32_t>& ids) const override {
    if (!rules_.cuts_white_space) return encode_part(text, first, ids);
    for (std::size_t at = 0; at < text.size();) {
      at += spaces_at_start(text.substr(at));
      std::size_t end = at;
      while (end < text.size()) {
        const CodePoint next = decode(text.substr(end));
        if (is_white_space(next.code)) break;
        end += next.length;
      }
      if (end > at) encode_part(text.substr(at, end - at), at == 0 && first, ids);
      at = end;
    }
  }

 private:
  static std::string replaced(const Pattern& pattern, std::string_view content, std::string_view text) {
    constexpr std::uint64_t kLooks = 64;  // at each byte, on average
    Pattern::Budget budget{kLooks * (text.size() + 1024)};
    std::string out;
    std::size_t done = 0;
    while (const auto match = pattern.find(text, done, budget)) {
      if (match->end == match->begin) break;  // refused where it is read
      out.append(text.substr(done, match->begin - done)).append(content);
      done = match->end;
    }
    return out.append(text.substr(done));
  }

  // Spaces become U+2581, one is put before the text, and words begin at each.
  void encode_part(std::string_view text, bool first, std::vector<std::int32_t>& ids) const {
    if (text.empty()) return;
    std::string spelled;
    spelled.reserve(text.size() + text.size() / 2);
    const bool has_one = text.starts_with(' ') || text.starts_with(kEscapedSpace);
    const bool wants_one =
        rules_.prefix == SpacePrefix::where_none || (rules_.prefix == SpacePrefix::first_where_none && first);
    if (wants_one && !has_one) spelled.append(kEscapedSpace);
    for (const char c : text) {
      if (c == ' ') {
        spelled.append(kEscapedSpace);
      } else {
        spelled.push_back(c);
      }
    }
    if (!rules_.cuts_spaces) return encode_word(spelled, ids);
    for (std::size_t at = 0; at < spelled.size();) {
      const std::size_t end = std::min(spelled.find(kEscapedSpace, at + 1), spelled.size());
      encode_word(std::string_view(spelled).substr(at, end - at), ids);
      at = end;
    }
  }

  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
    std::size_t begin = 0;  // of the run of unknown characters that ends at `end`
    std::size_t end = 0;
    const auto end_run = [&] {
      if (begin == end) return;
      const std::string_view run = word.substr(begin, end - begin);
      bool after_unknown = false;
      if (const std::int32_t id = viterbi_.find(run); id >= 0) {
        ids.push_back(id);
      } else {
        fallback_.append(run, after_unknown, ids);
      }
    };
    viterbi_.cut(word, [&](std::string_view part, std::int32_t id) {
      const std::size_t at = end;
      if (id < 0 || id == unk_id_) {
        end += part.size();
        return;
      }
      end_run();
      ids.push_back(id);
      begin = end = at + part.size();
    });
    end_run();
  }

  std::int32_t unk_id_;
  const UnigramRules& rules_;
  Viterbi viterbi_;
  ByteFallback fallback_;
  Charsmap charsmap_;
  std::vector<Pattern> patterns_;  // of the steps that replace, in their order
};

}  // namespace

std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const UnigramRules& rules) {
  return std::make_unique<UnigramEncoder>(vocabulary, rules);
}

}  // namespace llama2cpp
