// The transposed product: the rows of a weight, a chunk of them at a time, become panels of its transpose, which matmul's
// kernel of floats multiplies. So its sums are those of a matmul of floats with the transposed weight.
//
//   weight panels [rows / 16][cols][16] -> transposed [cols / 16][chunk][16]      on all threads
//   dy [T, rows]                        -> tiles      [T / tile][chunk][tile]     on all threads
//   out [T, cols]                       += for each panel of the transpose, for each block of rows: every tile
//
// It works for some rows at a time: as floats, the output matrix of a small model is larger than the model.
#include <algorithm>

#include "backend/cpu/arena.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/matmul_call.h"
#include "backend/cpu/panel_floats.h"
#include "backend/gradient_checks.h"

namespace llama2cpp {
namespace {

constexpr std::int64_t kMostFloats = std::int64_t{1} << 20;  // of a chunk: 4 MB

// Rows of a chunk, a multiple of kBlock: where the sums of blocks begin does not depend on it.
std::int64_t chunk_rows(const Weight& w) {
  const std::int64_t padded = (w.cols + kPanelRows - 1) / kPanelRows * kPanelRows;
  const std::int64_t most = std::max(kBlock, kMostFloats / padded / kBlock * kBlock);
  return std::min(most, (w.rows + kBlock - 1) / kBlock * kBlock);
}

struct TransposedCall {
  const KernelTable& kernels;
  const Tensor& out;
  Tiles tiles;
  PanelScratch::Sizes scratch;
  std::int64_t weight_floats = 0;  // of the largest chunk
  std::int64_t input_floats = 0;

  TransposedCall(const KernelTable& table, std::span<const Weight* const> weights, const Tensor& output)
      : kernels(table), out(output), tiles(output.rows(), table.tile) {
    for (const Weight* w : weights) {
      scratch.add(*w);
      weight_floats = std::max(weight_floats, panels_of(*w) * kPanelRows * chunk_rows(*w));
      input_floats = std::max(input_floats, chunk_rows(*w) * tiles.tokens);
    }
  }

  // Panels of the transpose.
  static std::int64_t panels_of(const Weight& w) { return (w.cols + kPanelRows - 1) / kPanelRows; }

  // Rows [begin, begin + count) of a weight, for one worker: some of their panels.
  void transpose(const Weight& w, Range rows, Range panels, float* to, const PanelScratch& memory) const {
    const std::int64_t step = panel_step(w);
    const std::int64_t stride = (rows.end - rows.begin) * kPanelRows;
    const std::span<const std::int32_t> order = input_form(w).order;
    for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const std::int64_t first = panel * kPanelRows - rows.begin;
      const std::int64_t lanes = std::min(kPanelRows, rows.end - panel * kPanelRows);
      for (std::int64_t k = 0; k < w.cols; k += step) {
        const std::int64_t count = std::min(step, w.cols - k);
        read_panel(kernels, w, panel, k, count, memory);
        std::int64_t i = 0;
        if (order.empty() && lanes == kPanelRows && k % kPanelRows == 0) {
          for (; i + kPanelRows <= count; i += kPanelRows) {
            kernels.turn_rows(memory.floats + i * kPanelRows, kPanelRows, kPanelRows,
                              to + (k + i) / kPanelRows * stride + first * kPanelRows, kPanelRows);
          }
        }
        for (; i < count; ++i) {
          const std::int64_t column = order.empty() ? k + i : order[static_cast<std::size_t>(k + i)];
          float* const place = to + column / kPanelRows * stride + first * kPanelRows + column % kPanelRows;
          const float* const from = memory.floats + i * kPanelRows;
          for (std::int64_t r = 0; r < lanes; ++r) place[r * kPanelRows] = from[r];
        }
      }
    }
  }

  // Tokens of some tiles: [rows][tokens].
  void lay_out(const Tensor& dy, Range rows, Range mine, float* to) const {
    const std::int64_t count = rows.end - rows.begin;
    for (std::int64_t i = mine.begin; i < mine.end; ++i) {
      const Range part = tiles.of(i);
      const std::int64_t n = part.end - part.begin;
      float* const tile = to + part.begin * count;
      const float* const from = dy.row(part.begin) + rows.begin;
      std::int64_t r = 0;
      for (; r + kPanelRows <= count; r += kPanelRows) {
        kernels.turn_rows(from + r, dy.row_stride, n, tile + r * n, n);
      }
      for (; r < count; ++r) {
        for (std::int64_t t = 0; t < n; ++t) tile[r * n + t] = from[t * dy.row_stride + r];
      }
    }
  }

  // Some panels of the transpose, two at a time: they stay in the first-level cache.
  void multiply(const Weight& w, Range rows, Range panels, const float* transposed, const float* input,
                bool first) const {
    constexpr std::int64_t kGroup = 2;
    const std::int64_t count = rows.end - rows.begin;
    for (std::int64_t panel = panels.begin; panel < panels.end; panel += kGroup) {
      const std::int64_t group = std::min(kGroup, panels.end - panel);
      for (std::int64_t row = 0; row < count; row += kBlock) {
        const std::int64_t n_k = std::min(kBlock, count - row);
        for (std::int64_t i = 0; i < tiles.count; ++i) {
          const Range part = tiles.of(i);
          const std::int64_t n = part.end - part.begin;
          kernels.matmul_f32({.panels = transposed + panel * count * kPanelRows + row * kPanelRows,
                              .panel_stride = count * kPanelRows,
                              .n_panels = group,
                              .n_k = n_k,
                              .x = input + part.begin * count + row * n,
                              .n_tokens = n,
                              .out = out.row(part.begin) + panel * kPanelRows,
                              .out_stride = out.row_stride,
                              .last_rows = std::min(kPanelRows, w.cols - (panel + group - 1) * kPanelRows),
                              .first = first && row == 0});
        }
      }
    }
  }
};

}  // namespace

void CpuBackend::matmul_transposed(std::span<const Weight* const> weights, std::span<const Tensor> dys,
                                   const Tensor& out) {
  op_checks::matmul_transposed(weights, dys, out);
  check_columns(weights);
  if (out.rows() == 0) return;
  const TransposedCall call(kernels_, weights, out);
  Arena scratch_size;
  const PanelScratch counted(scratch_size, call.scratch);
  reserve_scratch(scratch_size.used());
  const auto bytes = static_cast<std::size_t>(call.weight_floats + call.input_floats) * sizeof(float);
  if (tiles_.size() < bytes) tiles_ = Buffer::heap(bytes);
  auto* const transposed = reinterpret_cast<float*>(tiles_.data());
  float* const input = transposed + call.weight_floats;

  bool first = true;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Weight& w = *weights[i];
    const std::int64_t step = chunk_rows(w);
    for (std::int64_t begin = 0; begin < w.rows; begin += step) {
      const Range rows{begin, std::min(begin + step, w.rows)};
      const std::int64_t count = rows.end - rows.begin;
      region(count * (w.cols + call.tiles.tokens), [&](int worker, int workers) {
        Arena arena(scratch(worker));
        const std::int64_t first_panel = rows.begin / kPanelRows;
        const Range mine = share((count + kPanelRows - 1) / kPanelRows, worker, workers);
        call.transpose(w, rows, {first_panel + mine.begin, first_panel + mine.end}, transposed,
                       PanelScratch(arena, call.scratch));
        call.lay_out(dys[i], rows, share(call.tiles.count, worker, workers), input);
      });
      region(count * w.cols * call.tiles.tokens / 16, [&](int worker, int workers) {
        call.multiply(w, rows, share(TransposedCall::panels_of(w), worker, workers), transposed, input, first);
      });
      first = false;
    }
  }
}

}  // namespace llama2cpp
