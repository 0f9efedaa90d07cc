// Matmul on the CPU: packing weights into panels, laying the input out in tiles of tokens, and sharing panels out.
//
//   weights [rows, cols] -> panels [rows / 16][cols][16]     once, on first use
//   x [T, cols]          -> tiles  [T / tile][cols][tile]    each call, normalised on the way
//   out [T, rows]        = for each group of panels, for each block of 256 k: every tile
//
// A group's block of weights stays in the first-level cache while the tiles pass by.
#include <algorithm>

#include "backend/cpu/cpu_backend.h"
#include "core/check.h"

namespace llama2cpp {
namespace {

std::int64_t panels_of(const Weight& weight) { return (weight.rows + kPanelRows - 1) / kPanelRows; }

// Decodes columns [begin, begin + count) of one panel's rows into out [count][16]; rows past the end are zeros.
void decode_panel(const Weight& weight, std::int64_t panel, std::int64_t begin, std::int64_t count, float* out) {
  float row[kBlock];
  for (std::int64_t r = 0; r < kPanelRows; ++r) {
    const std::int64_t index = panel * kPanelRows + r;
    if (index < weight.rows) {
      weight.format->decode(weight, index, begin, count, row);
    } else {
      std::fill_n(row, count, 0.0F);
    }
    for (std::int64_t k = 0; k < count; ++k) out[k * kPanelRows + r] = row[k];
  }
}

// How T tokens are cut into tiles of at most `most`: as evenly as can be.
struct Tiles {
  std::int64_t tokens;
  std::int64_t count;
  Tiles(std::int64_t total, std::int64_t most) : tokens(total), count((total + most - 1) / most) {}
  Range of(std::int64_t tile) const { return {tokens * tile / count, tokens * (tile + 1) / count}; }
};

}  // namespace

void CpuBackend::pack(Weight& weight) {
  if (weight.panels) return;
  const std::int64_t panels = panels_of(weight);
  const std::int64_t panel_size = weight.cols * kPanelRows;
  Buffer packed = Buffer::heap(static_cast<std::size_t>(panels * panel_size) * sizeof(float));
  auto* out = reinterpret_cast<float*>(packed.data());
  region(panels * panel_size, [&](int w, int workers) {
    const Range mine = share(panels, w, workers);
    for (std::int64_t panel = mine.begin; panel < mine.end; ++panel) {
      for (std::int64_t k = 0; k < weight.cols; k += kBlock) {
        decode_panel(weight, panel, k, std::min(kBlock, weight.cols - k), out + panel * panel_size + k * kPanelRows);
      }
    }
  });
  weight.panels = packed;
  for (const Plane& plane : weight.planes) plane.owner.drop_pages(plane.data, plane.bytes);
}

void CpuBackend::matmul(std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs,
                        const Norm& norm) {
  LLAMA2CPP_CHECK(weights.size() == outs.size() && !weights.empty(), "[matmul] ", weights.size(), " weights but ",
                  outs.size(), " outs");
  const std::int64_t tokens = x.rows();
  const std::int64_t cols = x.columns();
  std::int64_t all_panels = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Weight& w = *weights[i];
    LLAMA2CPP_CHECK(w.cols == cols, "[matmul] w is ", shape_text(w), " but x is ", shape_text(x));
    LLAMA2CPP_CHECK(outs[i].rows() == tokens && outs[i].columns() == w.rows, "[matmul] w is ", shape_text(w),
                    " and x is ", shape_text(x), " but out is ", shape_text(outs[i]));
    all_panels += panels_of(w);
  }
  LLAMA2CPP_CHECK(!norm.scale || (norm.scale.rows() == tokens && norm.scale.columns() == 1), "[matmul] x is ",
                  shape_text(x), " but norm.scale is ", shape_text(norm.scale));
  if (tokens == 0) return;

  const Tiles tiles(tokens, kernels_.tile);
  const std::size_t tile_bytes = static_cast<std::size_t>(tokens * cols) * sizeof(float);
  const bool as_it_is = tokens == 1 && !norm.scale && norm.gain == nullptr;  // one row is a tile already
  if (tokens > 1 && tiles_.size() < tile_bytes) tiles_ = Buffer::heap(tile_bytes);

  // Panels that go through a block together: a wide group where there are few tokens to do with each weight.
  const std::int64_t group = tokens <= 2 ? 8 : tokens <= 4 ? 4 : 2;

  reserve_scratch(cols + group * kBlock * kPanelRows);
  region(tokens * cols * all_panels, [&](int worker, int workers) {
    float* const row = scratch(worker);  // [cols] one normalised token
    float* const block = row + cols;     // [group][kBlock][16], used where weights are not packed

    const auto normalised = [&](std::int64_t t) -> const float* {
      if (!norm.scale && norm.gain == nullptr) return x.row(t);
      // Without a scale the product with 1 leaves the bits alone.
      kernels_.scale(x.row(t), norm.scale ? 1.0F / *norm.scale.row(t) : 1.0F, norm.gain, row, cols);
      return row;
    };

    const float* input;
    if (tokens == 1) {
      input = as_it_is ? x.row(0) : normalised(0);  // each worker makes its own: cheaper than waiting for another
    } else {
      auto* laid_out = reinterpret_cast<float*>(tiles_.data());
      const Range mine = share(tiles.count, worker, workers);
      for (std::int64_t tile = mine.begin; tile < mine.end; ++tile) {
        const Range part = tiles.of(tile);
        const std::int64_t width = part.end - part.begin;
        for (std::int64_t t = part.begin; t < part.end; ++t) {
          const float* from = normalised(t);
          float* to = laid_out + part.begin * cols + (t - part.begin);
          for (std::int64_t k = 0; k < cols; ++k) to[k * width] = from[k];
        }
      }
      if (workers > 1) pool_.barrier();
      input = laid_out;
    }

    const auto multiply = [&](const Weight& w, const Tensor& out, std::int64_t begin, std::int64_t end) {
      const std::int64_t panel_size = cols * kPanelRows;
      const auto* packed = reinterpret_cast<const float*>(w.panels.data());
      for (std::int64_t panel = begin; panel < end; panel += group) {
        const std::int64_t n_panels = std::min(group, end - panel);
        for (std::int64_t k = 0; k < cols; k += kBlock) {
          PanelBlock b{};
          b.n_panels = n_panels;
          b.n_k = std::min(kBlock, cols - k);
          if (packed != nullptr) {
            b.panels = packed + panel * panel_size + k * kPanelRows;
            b.panel_stride = panel_size;
          } else {
            for (std::int64_t p = 0; p < n_panels; ++p) {
              decode_panel(w, panel + p, k, b.n_k, block + p * kBlock * kPanelRows);
            }
            b.panels = block;
            b.panel_stride = kBlock * kPanelRows;
          }
          b.out_stride = out.row_stride;
          b.last_rows = std::min(kPanelRows, w.rows - (panel + n_panels - 1) * kPanelRows);
          b.first = k == 0;
          for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
            const Range part = tiles.of(tile);
            b.n_tokens = part.end - part.begin;
            b.x = input + part.begin * cols + k * b.n_tokens;
            b.out = out.row(part.begin) + panel * kPanelRows;
            kernels_.matmul_f32(b);
          }
        }
      }
    };

    // The weights' panels count as one row of panels, of which each worker takes a contiguous share.
    const Range mine = share(all_panels, worker, workers);
    std::int64_t before = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const std::int64_t panels = panels_of(*weights[i]);
      const std::int64_t begin = std::max(mine.begin - before, std::int64_t{0});
      const std::int64_t end = std::min(mine.end - before, panels);
      if (begin < end) multiply(*weights[i], outs[i], begin, end);
      before += panels;
    }
  });
}

}  // namespace llama2cpp
