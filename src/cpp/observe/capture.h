// Capture: copies activations of a call into one piece of memory that was made for them before it.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "observe/hooks.h"

namespace llama2cpp {

class Capture final : public Hook {
 public:
  // Where one place's activation goes: [sequences, rows, ...], or [sequences, heads, rows, tokens] for patterns, in
  // floats from the beginning of the memory.
  struct Slot {
    Place place;
    std::vector<std::int64_t> shape;
    std::int64_t begin = 0;
  };

  // For `sequences` of `tokens` each that begin at position 0. rows: the positions to keep, in this order, each from 0 to
  // tokens - 1; kept [tokens] all of them if it is empty. Throws std::invalid_argument, and std::length_error for more
  // floats than a pointer can address.
  Capture(const Config& config, std::vector<Place> places, std::int64_t sequences, std::int64_t tokens,
          std::vector<std::int64_t> rows);

  // Keeps float16, to nearest even, and no patterns. The memory is then of 2 bytes a float.
  void keep_halves();
  // Whether a number was too large for that; it has become infinite.
  bool overflowed() const { return overflowed_; }
  std::size_t bytes() const { return static_cast<std::size_t>(floats_) * (halves_ ? 2 : sizeof(float)); }

  // Shows itself the sequences of a call from this one on.
  void begin_at(std::size_t sequence) { first_ = static_cast<std::int64_t>(sequence); }

  const std::vector<Slot>& slots() const { return slots_; }
  std::int64_t floats() const { return floats_; }
  PlaceSet places() const;

  // memory [bytes()], which must live as long as calls use this. The backend's threads share the copying.
  void write_to(void* memory, Backend& backend) {
    memory_ = memory;
    backend_ = &backend;
  }

  void at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) override;

 private:
  const Slot& slot(Point point, std::int64_t layer) const;
  // Keeps floats from an index of the memory on.
  void keep(const float* from, std::int64_t to, std::int64_t count);

  std::int64_t n_layers_;
  std::int64_t first_ = 0;
  std::int64_t tokens_;
  std::vector<std::int64_t> rows_;
  bool all_rows_;
  std::vector<Slot> slots_;
  std::vector<std::int32_t> index_;  // [n_layers, kPoints] into slots_, -1: none
  std::int64_t floats_ = 0;
  void* memory_ = nullptr;  // of floats, or of halves
  bool halves_ = false;
  std::atomic<bool> overflowed_ = false;
  Backend* backend_ = nullptr;
};

}  // namespace llama2cpp
