// A weight's panels as floats, in whatever form they are: the numbers that its matmul multiplies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/arena.h"
#include "backend/cpu/kernel_table.h"
#include "format/format.h"

namespace llama2cpp {

// Columns that are read at once: whole units, or whole groups.
std::int64_t panel_step(const Weight& weight);

// A worker's memory for it.
struct PanelScratch {
  std::byte* packed;   // one step of a panel, where the weight is not packed
  std::uint8_t* open;  // kUnpackedBytes
  float* floats;       // [panel_step][16]

  struct Sizes {
    std::int64_t packed = 0;
    std::int64_t floats = 0;
    void add(const Weight& weight);  // the most of all that were added
  };
  PanelScratch(Arena& arena, const Sizes& sizes);
};

// Columns [k, k + count) of one panel, k a multiple of the step and count the step or all the rest: scratch.floats
// [count][16], in the order of the panel. Rows past the weight's end are zeros.
void read_panel(const KernelTable& kernels, const Weight& weight, std::int64_t panel, std::int64_t k,
                std::int64_t count, const PanelScratch& scratch);

}  // namespace llama2cpp
