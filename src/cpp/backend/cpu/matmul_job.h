// One weight times a matmul's input, for one worker: which kernel, over which panels and columns.
#pragma once

#include <algorithm>
#include <span>

#include "backend/cpu/arena.h"
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/matmul_input.h"
#include "backend/cpu/panels.h"
#include "core/tensor.h"
#include "format/format.h"

namespace llama2cpp {

// Units of a panel that are open at a time, at most: 2048 columns. What is open is read again for each tile of tokens, so
// it has to stay in the second-level cache; the sums of a tile stay in registers all that long.
inline constexpr std::int64_t kMostOpenUnits = 8;

// Block formats whose panels are there are multiplied as they are by up to so many tokens: unpacking them first costs more.
inline bool multiplied_as_packed(const KernelTable& kernels, const Weight& w, std::int64_t tokens) {
  if (panel_form(w) != PanelForm::blocks) return false;
  return tokens <= (w.int8_input && w.panels ? kernels.packed_tokens : kFewTokens);
}

// A worker's memory for weights: a group of panels, one step of k.
struct MatmulScratch {
  std::byte* packed;   // [group] of panel_bytes: where the weight is not packed
  std::uint8_t* open;  // [group][unpack_units] of kUnpackedBytes: units of block formats, unpacked for many tokens
  float* wide;         // [group][kBlock][16]: unpacked units as floats, where the input stays floats
  float* sums;         // [tokens][16 * group]: the outputs while steps follow each other

  // How much of each any of the weights needs for `group` panels.
  struct Sizes {
    std::int64_t packed = 0;
    std::int64_t open = 0;
    std::int64_t wide = 0;
    std::int64_t sums = 0;
    Sizes(std::span<const Weight* const> weights, std::int64_t group, std::int64_t tokens);
  };

  MatmulScratch(Arena& arena, const Sizes& sizes)
      : packed(arena.take<std::byte>(sizes.packed)),
        open(arena.take<std::uint8_t>(sizes.open)),
        wide(arena.take<float>(sizes.wide)),
        sums(arena.take<float>(sizes.sums)) {}

  static std::int64_t unpack_units(const Weight& w) {
    return w.int8_input ? std::min(kMostOpenUnits, (w.cols + kBlock - 1) / kBlock) : 1;
  }
};

// One weight times the input, for one worker.
struct MatmulJob {
  const KernelTable& kernels;
  const Weight& w;
  const Tensor& out;
  const MatmulInput& input;
  const Tiles& tiles;
  const MatmulScratch& scratch;

  struct Panels {
    const std::byte* data;
    std::int64_t stride;
  };

  // All of a worker's panels, `group` at a time.
  void run(Range panels, std::int64_t group) const;

 private:
  Panels packed(std::int64_t begin, std::int64_t n, std::int64_t k, std::int64_t count) const;
  std::int64_t last_rows(std::int64_t begin, std::int64_t n) const;
  bool as_packed() const { return multiplied_as_packed(kernels, w, tiles.tokens); }
  void multiply(std::int64_t begin, std::int64_t n, std::int64_t k, std::int64_t count) const;
  template <class T, class X>
  void multiply_floats(void (*kernel)(const PanelBlockOf<T, X>&), const T* panels, X* InputParts::*x,
                       std::int64_t stride, std::int64_t begin, std::int64_t n, std::int64_t k,
                       std::int64_t count) const;
  void multiply_groups(const Panels& panels, std::int64_t begin, std::int64_t n, std::int64_t k,
                       std::int64_t count) const;
  void multiply_rows(const Panels& panels, std::int64_t begin, std::int64_t n) const;
  void multiply_blocks(void (*kernel)(const BlockCall&), const std::uint8_t* panels, std::int64_t stride, float* to,
                       std::int64_t to_stride, std::int64_t rows_of_last, std::int64_t n, std::int64_t k,
                       std::int64_t count) const;
  void open_and_multiply(std::int64_t begin, std::int64_t n, std::int64_t k, std::int64_t count) const;
};

}  // namespace llama2cpp
