// Choosing and calling the kernels of a matmul: which one, for which panels, columns and tiles.
#include "backend/cpu/matmul_job.h"

#include <algorithm>

namespace llama2cpp {

MatmulScratch::Sizes::Sizes(std::span<const Weight* const> weights, std::int64_t group, std::int64_t tokens) {
  for (const Weight* w : weights) {
    if (!w->panels) packed = std::max(packed, group * panel_bytes(*w, step_cols(input_form(*w))));
    if (panel_form(*w) != PanelForm::blocks) continue;
    open = std::max(open, group * unpack_units(*w) * kUnpackedBytes);
    if (!w->int8_input) wide = group * kBlock * kPanelRows;
    sums = tokens * group * kPanelRows;
  }
}

// Panels [begin, begin + n) from column k on, packed; `count` columns of them if they must be packed here and now.
MatmulJob::Panels MatmulJob::packed(std::int64_t begin, std::int64_t n, std::int64_t k, std::int64_t count) const {
  if (w.panels) {
    const std::int64_t stride = panel_bytes(w, w.cols);
    return {w.panels.data() + begin * stride + panel_bytes(w, k), stride};
  }
  const std::int64_t stride = panel_bytes(w, step_cols(input_form(w)));
  for (std::int64_t p = 0; p < n; ++p) pack_panel(w, begin + p, k, count, scratch.packed + p * stride);
  return {scratch.packed, stride};
}

std::int64_t MatmulJob::last_rows(std::int64_t begin, std::int64_t n) const {
  return std::min(kPanelRows, w.rows - (begin + n - 1) * kPanelRows);
}

// `x` is the part of the input that the kernel takes, and `count` what it counts: columns, or pairs of them.
template <class T, class X>
void MatmulJob::multiply_floats(void (*kernel)(const PanelBlockOf<T, X>&), const T* panels, X* InputParts::*x,
                                std::int64_t stride, std::int64_t begin, std::int64_t n, std::int64_t k,
                                std::int64_t count) const {
  for (std::int64_t i = 0; i < tiles.count; ++i) {
    const Range part = tiles.of(i);
    kernel({.panels = panels,
            .panel_stride = stride,
            .n_panels = n,
            .n_k = count,
            .x = input.tile(part, k).*x,
            .n_tokens = part.end - part.begin,
            .out = out.row(part.begin) + begin * kPanelRows,
            .out_stride = out.row_stride,
            .last_rows = last_rows(begin, n),
            .first = k == 0});
  }
}

void MatmulJob::multiply_groups(const Panels& panels, std::int64_t begin, std::int64_t n, std::int64_t k,
                                std::int64_t count) const {
  for (std::int64_t i = 0; i < tiles.count; ++i) {
    const Range part = tiles.of(i);
    const InputParts tile = input.tile(part, k);
    kernels.matmul_int8({.panels = reinterpret_cast<const std::uint8_t*>(panels.data),
                         .panel_stride = panels.stride,
                         .n_panels = n,
                         .groups = count / w.group,
                         .quads = input.quads(),
                         .x = tile.int8,
                         .x_scales = tile.scales,
                         .x_starts = tile.starts,
                         .n_tokens = part.end - part.begin,
                         .out = out.row(part.begin) + begin * kPanelRows,
                         .out_stride = out.row_stride,
                         .last_rows = last_rows(begin, n),
                         .first = k == 0});
  }
}

// Whole rows of int8 with their outliers.
void MatmulJob::multiply_rows(const Panels& panels, std::int64_t begin, std::int64_t n) const {
  for (std::int64_t i = 0; i < tiles.count; ++i) {
    const Range part = tiles.of(i);
    const InputParts tile = input.tile(part, 0);
    kernels.matmul_llm_int8({.panels = reinterpret_cast<const std::uint8_t*>(panels.data),
                             .panel_stride = panels.stride,
                             .n_panels = n,
                             .quads = input.quads(),
                             .x = tile.int8,
                             .x_scales = tile.scales,
                             .x_starts = tile.starts,
                             .n_tokens = part.end - part.begin,
                             .fixed = static_cast<std::int64_t>(input.form().fixed.size()),
                             .x_fixed = tile.outliers,
                             .counts = tile.counts,
                             .columns = tile.columns,
                             .x_outliers = tile.outliers,
                             .outlier_stride = w.cols,
                             .out = out.row(part.begin) + begin * kPanelRows,
                             .out_stride = out.row_stride,
                             .last_rows = last_rows(begin, n)});
  }
}

// `to` begins at the first panel's place in out's first row.
void MatmulJob::multiply_blocks(void (*kernel)(const BlockCall&), const std::uint8_t* panels, std::int64_t stride,
                                float* to, std::int64_t to_stride, std::int64_t rows_of_last, std::int64_t n,
                                std::int64_t k, std::int64_t count) const {
  for (std::int64_t i = 0; i < tiles.count; ++i) {
    const Range part = tiles.of(i);
    const InputParts tile = input.tile(part, k);
    kernel({.layout = layout_of(w),
            .panels = panels,
            .panel_stride = stride,
            .n_panels = n,
            .blocks = count / kBlockCols,
            .input = {tile.int8, tile.scales, tile.starts, tile.sums, tile.f32},
            .n_tokens = part.end - part.begin,
            .out = to + part.begin * to_stride,
            .out_stride = to_stride,
            .last_rows = rows_of_last,
            .turn = i,
            .turns = tiles.count,
            .first = k == 0});
  }
}

// Blocks for several tiles: each unit is opened once.
void MatmulJob::open_and_multiply(std::int64_t begin, std::int64_t n, std::int64_t k, std::int64_t count) const {
  const BlockLayout blocks = layout_of(w);
  const std::int64_t stride = MatmulScratch::unpack_units(w) * kUnpackedBytes;
  for (std::int64_t p = 0; p < n; ++p) {
    std::uint8_t* open = scratch.open + p * stride;
    for (std::int64_t from = k; from < k + count; from += kBlock, open += kUnpackedBytes) {
      const std::int64_t columns = std::min(kBlock, k + count - from);
      const auto* unit = reinterpret_cast<const std::uint8_t*>(packed(begin + p, 1, from, columns).data);
      kernels.unpack_blocks(blocks, unit, columns / kBlockCols, open);
    }
  }
  if (w.int8_input) {
    if (count == w.cols) {
      return multiply_blocks(kernels.matmul_open, scratch.open, stride, out.row(0) + begin * kPanelRows, out.row_stride,
                             last_rows(begin, n), n, k, count);
    }
    // Sums go on from one step to the next in compact rows: those of out may be a power of two apart.
    const std::int64_t width = n * kPanelRows;
    multiply_blocks(kernels.matmul_open, scratch.open, stride, scratch.sums, width, kPanelRows, n, k, count);
    if (k + count < w.cols) return;
    for (std::int64_t t = 0; t < tiles.tokens; ++t) {
      std::copy_n(scratch.sums + t * width, width - kPanelRows + last_rows(begin, n), out.row(t) + begin * kPanelRows);
    }
    return;
  }
  constexpr std::int64_t kStride = kBlock * kPanelRows;
  for (std::int64_t p = 0; p < n; ++p) {
    kernels.widen_blocks(blocks, scratch.open + p * kUnpackedBytes, count / kBlockCols, scratch.wide + p * kStride);
  }
  multiply_floats(kernels.matmul_f32, scratch.wide, &InputParts::f32, kStride, begin, n, k, count);
}

// Panels [begin, begin + n), columns [k, k + count), all tiles.
void MatmulJob::multiply(std::int64_t begin, std::int64_t n, std::int64_t k, std::int64_t count) const {
  if (panel_form(w) == PanelForm::blocks && !as_packed()) return open_and_multiply(begin, n, k, count);
  const Panels panels = packed(begin, n, k, count);
  const auto* halves = reinterpret_cast<const std::uint16_t*>(panels.data);
  switch (panel_form(w)) {
    case PanelForm::f32:
      return multiply_floats(kernels.matmul_f32, reinterpret_cast<const float*>(panels.data), &InputParts::f32,
                             panels.stride / 4, begin, n, k, count);
    case PanelForm::f16:
      return multiply_floats(kernels.matmul_f16, halves, &InputParts::f32, panels.stride / 2, begin, n, k, count);
    case PanelForm::bf16:
      return multiply_floats(kernels.matmul_bf16, halves, &InputParts::f32, panels.stride / 2, begin, n, k, count);
    case PanelForm::bf16_pairs:
      return multiply_floats(kernels.matmul_pairs, reinterpret_cast<const std::uint32_t*>(panels.data),
                             &InputParts::pairs, panels.stride / 4, begin, n, k, (count + 1) / 2);
    case PanelForm::int8_group:
      return multiply_groups(panels, begin, n, k, count);
    case PanelForm::llm_int8:
      return multiply_rows(panels, begin, n);
    case PanelForm::blocks:
      return multiply_blocks(w.int8_input ? kernels.matmul_blocks : kernels.matmul_wide,
                             reinterpret_cast<const std::uint8_t*>(panels.data), panels.stride,
                             out.row(0) + begin * kPanelRows, out.row_stride, last_rows(begin, n), n, k, count);
  }
}

// All of a worker's panels, `group` at a time.
void MatmulJob::run(Range panels, std::int64_t group) const {
  // With few tokens the kernels go through packed panels from end to end.
  const bool whole = w.panels && (tiles.tokens <= kFewTokens || as_packed());
  if (whole && tiles.count == 1) return multiply(panels.begin, panels.end - panels.begin, 0, w.cols);
  std::int64_t step = whole ? w.cols : step_cols(input_form(w));
  if (panel_form(w) == PanelForm::blocks && !as_packed()) step = MatmulScratch::unpack_units(w) * kBlock;
  // Weights that become floats here are eight times as large: two panels of them stay in the first-level cache.
  if (panel_form(w) == PanelForm::blocks && !w.int8_input) group = 2;
  for (std::int64_t begin = panels.begin; begin < panels.end; begin += group) {
    for (std::int64_t k = 0; k < w.cols; k += step) {
      multiply(begin, std::min(group, panels.end - begin), k, std::min(step, w.cols - k));
    }
  }
}

}  // namespace llama2cpp
