#include "text/piece_table.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace llama2cpp {
namespace {

std::uint64_t mix(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
  return hash ^ (hash >> 32);
}

}  // namespace

std::uint64_t PieceTable::hash_of(std::string_view piece) {
  std::uint64_t hash = piece.size();
  while (piece.size() >= 8) {
    std::uint64_t word;
    std::memcpy(&word, piece.data(), 8);
    hash = mix(hash, word);
    piece.remove_prefix(8);
  }
  std::uint64_t word = 0;
  for (const char c : piece) word = word << 8 | static_cast<std::uint8_t>(c);
  return mix(hash, word);
}

PieceTable::PieceTable(std::size_t capacity) : slots_(std::bit_ceil(2 * capacity + 1)) {}

void PieceTable::insert(std::string_view piece, std::int32_t id) {
  if (find(piece) >= 0) return;  // a file of equal pieces would make one long run of slots
  const std::uint64_t hash = hash_of(piece);
  std::size_t at = hash & (slots_.size() - 1);
  while (slots_[at].id >= 0) at = (at + 1) & (slots_.size() - 1);
  slots_[at] = {hash, piece, id};
  for (std::size_t i = 1; i < piece.size(); ++i) pairs_[pair_index(piece[i - 1], piece[i])] = true;
  longest_ = std::max(longest_, piece.size());
}

std::int32_t PieceTable::find(std::string_view piece, std::uint64_t hash) const {
  for (std::size_t at = hash & (slots_.size() - 1); slots_[at].id >= 0; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].hash == hash && slots_[at].piece == piece) return slots_[at].id;
  }
  return -1;
}

}  // namespace llama2cpp
