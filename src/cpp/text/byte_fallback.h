// ByteFallback: what becomes of text that no piece spells, in vocabularies whose pieces are characters.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/vocabulary.h"

namespace llama2cpp {

class ByteFallback {
 public:
  // The first of two pieces for one byte counts.
  explicit ByteFallback(const Vocabulary& vocabulary) : unk_id_(vocabulary.unk_id) {
    ids_.fill(-1);
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      if (vocabulary.types[i] != PieceType::byte) continue;
      std::int32_t& id = ids_[static_cast<std::size_t>(byte_of_piece(vocabulary.pieces[i]))];
      if (id < 0) id = static_cast<std::int32_t>(i);
    }
  }

  // Its bytes where the vocabulary has them all, else the unknown piece, once for a whole run: `after_unknown` says
  // whether the id before was one of these.
  void append(std::string_view part, bool& after_unknown, std::vector<std::int32_t>& ids) const {
    const auto id_of = [&](char c) { return ids_[static_cast<std::uint8_t>(c)]; };
    if (std::all_of(part.begin(), part.end(), [&](char c) { return id_of(c) >= 0; })) {
      for (const char c : part) ids.push_back(id_of(c));
      after_unknown = false;
      return;
    }
    LLAMA2CPP_CHECK(
        unk_id_ >= 0,
        "a character of the text is not in the vocabulary, nor are its bytes, nor is there an unknown piece");
    if (!after_unknown) ids.push_back(unk_id_);
    after_unknown = true;
  }

 private:
  std::array<std::int32_t, 256> ids_;  // -1: none
  std::int32_t unk_id_;                // -1: none
};

}  // namespace llama2cpp
