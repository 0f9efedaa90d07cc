#include "text/nfc.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "text/code_points.h"

namespace llama2cpp {
namespace {

#include "text/composition.inc"

// Hangul syllables are made of two or three parts by a rule.
constexpr std::uint32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr std::uint32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;
constexpr std::uint32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

std::uint32_t combining_class(std::uint32_t code) {
  if (code >= kNoCode) return 0;
  const auto* const after = std::upper_bound(std::begin(kCombiningRuns), std::end(kCombiningRuns), code,
                                             [](std::uint32_t value, std::uint32_t run) { return value < run >> 8; });
  return *std::prev(after) & 0xFF;
}

struct Part {
  std::uint32_t code;
  std::uint32_t combining;
};

class Composer {
 public:
  Composer() : plain_(std::vector<CodeSet>{others()}) {
    for (const Decomposition& one : kDecompositions) {
      if (one.composes) composed_.emplace(std::pair(one.first, one.second), one.code);
    }
  }

  // Neither changed nor moved, and nothing before it joins it.
  bool is_plain(std::uint32_t code) const { return code < 0x300 || !plain_.in_set(plain_.of(code), 0); }

  void decompose(std::uint32_t code, std::vector<Part>& parts) const {
    if (code >= kSyllables && code < kSyllables + kSyllableCount) {
      const std::uint32_t index = code - kSyllables;
      parts.push_back({kLeads + index / (kVowelCount * kTailCount), 0});
      parts.push_back({kVowels + index / kTailCount % kVowelCount, 0});
      if (index % kTailCount != 0) parts.push_back({kTails + index % kTailCount, 0});
      return;
    }
    const auto* const found = std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code,
                                               [](const Decomposition& one, std::uint32_t c) { return one.code < c; });
    if (found == std::end(kDecompositions) || found->code != code) {
      return parts.push_back({code, combining_class(code)});
    }
    decompose(found->first, parts);  // a few levels deep
    if (found->second != 0) decompose(found->second, parts);
  }

  // The code point that two are, or 0.
  std::uint32_t compose(std::uint32_t first, std::uint32_t second) const {
    if (first >= kLeads && first < kLeads + kLeadCount && second >= kVowels && second < kVowels + kVowelCount) {
      return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTailCount;
    }
    if (first >= kSyllables && first < kSyllables + kSyllableCount && (first - kSyllables) % kTailCount == 0 &&
        second > kTails && second < kTails + kTailCount) {
      return first + (second - kTails);
    }
    const auto found = composed_.find({first, second});
    return found == composed_.end() ? 0 : found->second;
  }

 private:
  static CodeSet others() {
    std::vector<CodeSet::Run> runs;
    const auto add = [&](std::uint32_t code) { runs.emplace_back(code, code + 1); };
    for (std::size_t i = 0; i + 1 < std::size(kCombiningRuns); ++i) {
      if ((kCombiningRuns[i] & 0xFF) != 0) runs.emplace_back(kCombiningRuns[i] >> 8, kCombiningRuns[i + 1] >> 8);
    }
    for (const Decomposition& one : kDecompositions) {
      if (one.composes) {
        add(one.second);
      } else {
        add(one.code);
      }
    }
    runs.emplace_back(kVowels, kVowels + kVowelCount);
    runs.emplace_back(kTails + 1, kTails + kTailCount);
    return CodeSet(std::move(runs));
  }

  CodeClasses plain_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint32_t> composed_;
};

void append_utf8(std::uint32_t code, std::string& out) {
  const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xE0 | code >> 12);
    } else {
      put(0xF0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3F));
    }
    put(0x80 | (code >> 6 & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

// Marks in the order of their classes, then joined to the character that they follow.
void append_composed(const Composer& composer, std::vector<Part>& parts, std::string& out) {
  for (auto begin = parts.begin(); begin != parts.end();) {
    const auto is_mark = [](const Part& part) { return part.combining != 0; };
    begin = std::find_if(begin, parts.end(), is_mark);
    const auto end = std::find_if_not(begin, parts.end(), is_mark);
    std::stable_sort(begin, end, [](const Part& a, const Part& b) { return a.combining < b.combining; });
    begin = end;
  }
  std::size_t size = 0;                                // of what is kept
  std::size_t starter = static_cast<std::size_t>(-1);  // the last character that is no mark
  for (const Part part : parts) {
    if (starter < size) {
      const bool blocked =
          size - 1 > starter && (parts[size - 1].combining == 0 || parts[size - 1].combining >= part.combining);
      const std::uint32_t both = blocked ? 0 : composer.compose(parts[starter].code, part.code);
      if (both != 0) {
        parts[starter].code = both;
        continue;
      }
    }
    if (part.combining == 0) starter = size;
    parts[size++] = part;
  }
  for (std::size_t i = 0; i < size; ++i) append_utf8(parts[i].code, out);
}

}  // namespace

std::string nfc(std::string_view text) {
  static const Composer composer;
  std::string out;
  out.reserve(text.size());
  std::vector<Part> parts;
  std::size_t last = 0;  // where the last character begins, which is plain
  for (std::size_t at = 0; at < text.size();) {
    CodePoint next = decode(text.substr(at));
    if (composer.is_plain(next.code)) {
      out.append(text, at, next.length);
      last = at;
      at += next.length;
      continue;
    }
    // From the plain character before it up to the next.
    parts.clear();
    if (at > 0) {
      const CodePoint before = decode(text.substr(last));
      if (before.code != kNoCode) {
        out.erase(out.size() - before.length);
        composer.decompose(before.code, parts);
      }
    }
    while (at < text.size()) {
      next = decode(text.substr(at));
      if (composer.is_plain(next.code)) break;
      composer.decompose(next.code, parts);
      at += next.length;
    }
    append_composed(composer, parts, out);
  }
  return out;
}

}  // namespace llama2cpp
