// PieceTable: the id of a piece by its bytes. Encoding asks it several times per character, so it is an open-addressing
// table that compares bytes only where the whole hash agrees.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace llama2cpp {

class PieceTable {
 public:
  PieceTable() : PieceTable(0) {}
  explicit PieceTable(std::size_t capacity);  // room for that many pieces, no more

  // The bytes must outlive the table. Of two equal pieces the first stays.
  void insert(std::string_view piece, std::int32_t id);

  // The id, or -1.
  std::int32_t find(std::string_view piece) const { return piece.size() > longest_ ? -1 : find(piece, hash_of(piece)); }
  std::int32_t find(std::string_view piece, std::uint64_t hash) const;

  static std::uint64_t hash_of(std::string_view piece);

  // Whether any piece has these two bytes in a row. Where none has, no piece reaches across.
  bool has_pair(char first, char second) const { return pairs_[pair_index(first, second)]; }

 private:
  struct Slot {
    std::uint64_t hash = 0;
    std::string_view piece;
    std::int32_t id = -1;  // -1: empty
  };

  static std::size_t pair_index(char first, char second) {
    return std::size_t{256} * static_cast<std::uint8_t>(first) + static_cast<std::uint8_t>(second);
  }

  std::vector<Slot> slots_;  // [a power of two, at least twice the capacity]
  std::bitset<65536> pairs_;
  std::size_t longest_ = 0;  // no longer piece is in the table
};

}  // namespace llama2cpp
