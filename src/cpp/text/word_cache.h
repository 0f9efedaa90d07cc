// WordCache: where the words of one text were met before, so that the ids of a word that comes again are copied. It keeps
// places in the text and in the ids, and no words.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace llama2cpp {

class WordCache {
 public:
  WordCache(std::string_view text, std::size_t ids_begin) : text_(text), ids_begin_(ids_begin) {
    const std::size_t words = text.size() / 4;  // roughly
    if (words >= kFewestWords) entries_.resize(std::min(std::bit_ceil(words), kMostEntries));
  }

  // Appends the ids of an equal word, if one is known.
  bool copy(std::string_view word, std::uint64_t hash, std::vector<std::int32_t>& ids) const {
    if (!takes(word)) return false;
    const Entry& entry = entries_[hash & (entries_.size() - 1)];
    if (entry.length != word.size() || std::memcmp(text_.data() + entry.begin, word.data(), word.size()) != 0) {
      return false;
    }
    const std::size_t from = ids_begin_ + entry.ids_begin;
    for (std::size_t i = 0; i < entry.ids; ++i) ids.push_back(ids[from + i]);
    return true;
  }

  // `ids_end`: the word's ids are the last of so many.
  void note(std::string_view word, std::uint64_t hash, std::size_t ids, std::size_t ids_end) {
    if (!takes(word)) return;
    entries_[hash & (entries_.size() - 1)] = {static_cast<std::uint32_t>(word.data() - text_.data()),
                                              static_cast<std::uint32_t>(ids_end - ids - ids_begin_),
                                              static_cast<std::uint16_t>(word.size()), static_cast<std::uint16_t>(ids)};
  }

 private:
  static constexpr std::size_t kLongestWord = 64;   // bytes
  static constexpr std::size_t kFewestWords = 256;  // for fewer it would not pay
  static constexpr std::size_t kMostEntries = 16384;

  struct Entry {
    std::uint32_t begin = 0;      // in the text
    std::uint32_t ids_begin = 0;  // counted from the text's first id
    std::uint16_t length = 0;     // 0: empty
    std::uint16_t ids = 0;
  };

  bool takes(std::string_view word) const { return !entries_.empty() && word.size() <= kLongestWord; }

  std::string_view text_;
  std::size_t ids_begin_;
  std::vector<Entry> entries_;  // [a power of two, or none]
};

}  // namespace llama2cpp
