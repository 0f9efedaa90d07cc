// Blocks are opened and widened by the kernels that matmul has for them; the other forms are plain loops.
#include "backend/cpu/panel_floats.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/matmul_input.h"
#include "backend/cpu/panels.h"
#include "core/half.h"
#include "format/bf16.h"
#include "format/llm_int8.h"

namespace llama2cpp {
namespace {

template <float (*kWiden)(std::uint16_t)>
void widen(const std::byte* panel, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, panel + i * 2, sizeof(half));
    out[i] = kWiden(half);
  }
}

// Pairs of columns: [pair][16 rows][2].
void widen_pairs(const std::byte* panel, std::int64_t count, float* out) {
  for (std::int64_t k = 0; k < count; ++k) {
    for (std::int64_t r = 0; r < kPanelRows; ++r) {
      widen<bf16_to_float>(panel + ((k / 2 * kPanelRows + r) * 2 + k % 2) * 2, 1, out + k * kPanelRows + r);
    }
  }
}

// Whole groups of int8 with their scales.
void read_groups(const std::byte* panel, std::int64_t group, std::int64_t count, float* out) {
  for (std::int64_t begin = 0; begin < count; begin += group, panel += group_bytes(group)) {
    float scales[kPanelRows];
    std::memcpy(scales, panel + quads_of(group) * 4 * kPanelRows, sizeof(scales));
    for (std::int64_t k = 0; k < group; ++k) {
      for (std::int64_t r = 0; r < kPanelRows; ++r) {
        const int value = static_cast<int>(panel[(k / 4 * kPanelRows + r) * 4 + k % 4]) - 128;
        out[(begin + k) * kPanelRows + r] = static_cast<float>(value) * scales[r];
      }
    }
  }
}

// Whole rows of int8: the weights of fixed columns lie behind them as halves.
void read_rows_of_int8(const std::byte* panel, const Weight& weight, float* out) {
  read_groups(panel, weight.cols, weight.cols, out);
  const std::byte* halves = panel + group_bytes(weight.cols);
  for (const std::int32_t column : fixed_outliers(weight)) {
    widen<half_to_float>(halves, kPanelRows, out + column * kPanelRows);
    halves += kPanelRows * 2;
  }
}

}  // namespace

std::int64_t panel_step(const Weight& weight) { return std::min(step_cols(input_form(weight)), weight.cols); }

void PanelScratch::Sizes::add(const Weight& weight) {
  const std::int64_t step = panel_step(weight);
  if (!weight.panels) packed = std::max(packed, panel_bytes(weight, step));
  floats = std::max(floats, step * kPanelRows);
}

PanelScratch::PanelScratch(Arena& arena, const Sizes& sizes)
    : packed(arena.take<std::byte>(sizes.packed)),
      open(arena.take<std::uint8_t>(kUnpackedBytes)),
      floats(arena.take<float>(std::max(sizes.floats, kBlock * kPanelRows))) {}

void read_panel(const KernelTable& kernels, const Weight& w, std::int64_t panel, std::int64_t k, std::int64_t count,
                const PanelScratch& scratch) {
  const std::byte* from = scratch.packed;
  if (w.panels) {
    from = w.panels.data() + panel * panel_bytes(w, w.cols) + panel_bytes(w, k);
  } else {
    pack_panel(w, panel, k, count, scratch.packed);
  }
  switch (panel_form(w)) {
    case PanelForm::f32:
      std::memcpy(scratch.floats, from, static_cast<std::size_t>(count * kPanelRows) * sizeof(float));
      return;
    case PanelForm::f16:
      return widen<half_to_float>(from, count * kPanelRows, scratch.floats);
    case PanelForm::bf16:
      return widen<bf16_to_float>(from, count * kPanelRows, scratch.floats);
    case PanelForm::bf16_pairs:
      return widen_pairs(from, count, scratch.floats);
    case PanelForm::int8_group:
      return read_groups(from, w.group, count, scratch.floats);
    case PanelForm::llm_int8:
      return read_rows_of_int8(from, w, scratch.floats);
    case PanelForm::blocks: {
      const BlockLayout layout = layout_of(w);
      kernels.unpack_blocks(layout, reinterpret_cast<const std::uint8_t*>(from), count / kBlockCols, scratch.open);
      return kernels.widen_blocks(layout, scratch.open, count / kBlockCols, scratch.floats);
    }
  }
}

}  // namespace llama2cpp
