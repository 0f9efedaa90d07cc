// Matmul on the CPU: packing weights into panels, laying the input out in tiles of tokens, and sharing panels out.
//
//   weights [rows, cols] -> panels [rows / 16][cols][16]     once, on first use
//   x [T, cols]          -> tiles  [T / tile][cols][tile]    each call, normalised on the way, rounded for int8
//   out [T, rows]        = for each group of panels, for each block of k: every tile
//
// A block of a few panels stays in the first-level cache while the tiles pass by.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/panels.h"
#include "core/check.h"

namespace llama2cpp {
namespace {

// How T tokens are cut into tiles of at most `most`: as evenly as can be.
struct Tiles {
  std::int64_t tokens;
  std::int64_t count;
  Tiles(std::int64_t total, std::int64_t most) : tokens(total), count((total + most - 1) / most) {}
  Range of(std::int64_t tile) const { return {tokens * tile / count, tokens * (tile + 1) / count}; }
};

// The input of a matmul as the kernels read it. A tile of n tokens begins at its first token's share of each array.
struct Input {
  float* f32 = nullptr;             // [cols][n]
  std::int8_t* int8 = nullptr;      // [groups][quads][n][4]
  float* scales = nullptr;          // [groups][n]
  std::int32_t* offsets = nullptr;  // [groups][n]
};

// Memory for an Input of some tokens, cut from one piece.
struct InputMemory {
  std::int64_t cols, group, groups, quads;
  bool int8;

  explicit InputMemory(const Weight& w)
      : cols(w.cols),
        group(w.group),
        groups(w.int8_input ? w.cols / w.group : 0),
        quads(quads_of(w.group)),
        int8(w.int8_input) {}

  std::int64_t bytes(std::int64_t tokens) const {
    return tokens * (int8 ? groups * (quads * 4 + 8) : cols * std::int64_t{sizeof(float)});
  }
  Input at(std::byte* memory, std::int64_t tokens) const {
    if (!int8) return {.f32 = reinterpret_cast<float*>(memory)};
    auto* scales = reinterpret_cast<float*>(memory);
    auto* offsets = reinterpret_cast<std::int32_t*>(scales + groups * tokens);
    return {.int8 = reinterpret_cast<std::int8_t*>(offsets + groups * tokens), .scales = scales, .offsets = offsets};
  }

  // Takes one token, normalised, to its place in a tile of `n` that begins at token `first`. `q` [cols] is scratch.
  void put(const KernelTable& kernels, const float* row, const Input& to, std::int64_t first, std::int64_t n,
           std::int64_t t, std::int8_t* q, float* q_scales) const {
    if (!int8) {
      float* out = to.f32 + first * cols + t;
      for (std::int64_t k = 0; k < cols; ++k) out[k * n] = row[k];
      return;
    }
    kernels.quantize(row, groups, group, q, q_scales);
    auto* values = to.int8 + first * groups * quads * 4 + t * 4;
    auto* scales = to.scales + first * groups + t;
    auto* offsets = to.offsets + first * groups + t;
    for (std::int64_t g = 0; g < groups; ++g, q += group) {
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < group; ++k) sum += q[k];
      scales[g * n] = q_scales[g];
      offsets[g * n] = -128 * sum;
      for (std::int64_t quad = 0; quad < quads; ++quad, values += 4 * n) {
        const std::int64_t k = quad * 4;
        std::memset(values, 0, 4);
        std::memcpy(values, q + k, static_cast<std::size_t>(std::min(std::int64_t{4}, group - k)));
      }
    }
  }
};

// Columns of a block: what the kernels sum before they look at memory again, in whole groups for int8.
std::int64_t block_cols(const Weight& w) {
  return w.int8_input ? std::max(std::int64_t{1}, 4 * kBlock / w.group) * w.group : kBlock;
}

}  // namespace

void CpuBackend::pack(Weight& weight) {
  if (weight.panels) return;
  const std::int64_t panels = panel_count(weight);
  const std::int64_t bytes = panel_bytes(weight, weight.cols);
  Buffer packed = Buffer::heap(static_cast<std::size_t>(panels * bytes));
  const std::int64_t step = block_cols(weight);
  region(panels * bytes / 4, [&](int w, int workers) {
    const Range mine = share(panels, w, workers);
    for (std::int64_t panel = mine.begin; panel < mine.end; ++panel) {
      for (std::int64_t k = 0; k < weight.cols; k += step) {
        pack_panel(weight, panel, k, std::min(step, weight.cols - k),
                   packed.data() + panel * bytes + panel_bytes(weight, k));
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
    LLAMA2CPP_CHECK(w.int8_input == weights[0]->int8_input && w.group == weights[0]->group,
                    "[matmul] the weights do not take their input in the same form");
    all_panels += panel_count(w);
  }
  LLAMA2CPP_CHECK(!norm.scale || (norm.scale.rows() == tokens && norm.scale.columns() == 1), "[matmul] x is ",
                  shape_text(x), " but norm.scale is ", shape_text(norm.scale));
  if (tokens == 0) return;

  const Tiles tiles(tokens, kernels_.tile);
  const InputMemory layout(*weights[0]);
  const std::int64_t block = block_cols(*weights[0]);
  // Panels that go through a block together: a wide group where there are few tokens to do with each weight.
  const std::int64_t group = tokens <= 2 ? 8 : tokens <= 4 ? 4 : 2;
  const std::int64_t block_bytes = panel_bytes(*weights[0], block);

  // Each worker's memory: one normalised token, the same rounded, a lone token's input, and a block of panels where
  // weights are not packed.
  const std::int64_t q_floats = layout.int8 ? cols / 4 + 1 + layout.groups : 0;
  const std::int64_t input_floats = tokens == 1 ? (layout.bytes(1) + 3) / 4 : 0;
  reserve_scratch(cols + q_floats + input_floats + group * block_bytes / 4);
  const auto tile_bytes = static_cast<std::size_t>(layout.bytes(tokens));
  if (tokens > 1 && tiles_.size() < tile_bytes) tiles_ = Buffer::heap(tile_bytes);

  region(tokens * cols * all_panels / (layout.int8 ? 4 : 1), [&](int worker, int workers) {
    float* const row = scratch(worker);                                        // [cols]
    float* const q_scales = row + cols;                                        // [groups]
    auto* const q = reinterpret_cast<std::int8_t*>(q_scales + layout.groups);  // [cols]
    auto* const lone = reinterpret_cast<std::byte*>(row + cols + q_floats);
    std::byte* const unpacked = lone + input_floats * 4;

    const auto normalised = [&](std::int64_t t) -> float* {
      if (!norm.scale && norm.gain == nullptr) return x.row(t);
      // Without a scale the product with 1 leaves the bits alone.
      kernels_.scale(x.row(t), norm.scale ? 1.0F / *norm.scale.row(t) : 1.0F, norm.gain, row, cols);
      return row;
    };

    Input input;
    if (tokens == 1) {  // each worker makes its own: cheaper than waiting for another
      if (layout.int8) {
        input = layout.at(lone, 1);
        layout.put(kernels_, normalised(0), input, 0, 1, 0, q, q_scales);
      } else {
        input.f32 = normalised(0);  // a row is a tile already
      }
    } else {
      input = layout.at(tiles_.data(), tokens);
      const Range mine = share(tiles.count, worker, workers);
      for (std::int64_t tile = mine.begin; tile < mine.end; ++tile) {
        const Range part = tiles.of(tile);
        for (std::int64_t t = part.begin; t < part.end; ++t) {
          layout.put(kernels_, normalised(t), input, part.begin, part.end - part.begin, t - part.begin, q, q_scales);
        }
      }
      if (workers > 1) pool_.barrier();
    }

    // Panels [begin, begin + n) of w, columns [k, k + count), all tiles.
    const auto multiply_block = [&](const Weight& w, const Tensor& out, std::int64_t begin, std::int64_t n,
                                    std::int64_t k, std::int64_t count) {
      const std::byte* panels = w.panels.data();
      std::int64_t stride = panel_bytes(w, cols);
      if (panels != nullptr) {
        panels += begin * stride + panel_bytes(w, k);
      } else {
        stride = block_bytes;
        for (std::int64_t p = 0; p < n; ++p) pack_panel(w, begin + p, k, count, unpacked + p * stride);
        panels = unpacked;
      }
      const std::int64_t last_rows = std::min(kPanelRows, w.rows - (begin + n - 1) * kPanelRows);
      for (std::int64_t tile = 0; tile < tiles.count; ++tile) {
        const Range part = tiles.of(tile);
        const std::int64_t width = part.end - part.begin;
        float* to = out.row(part.begin) + begin * kPanelRows;
        if (layout.int8) {
          const std::int64_t g = k / layout.group;
          const std::int64_t before = part.begin * layout.groups + g * width;
          kernels_.matmul_int8({.panels = reinterpret_cast<const std::uint8_t*>(panels),
                                .panel_stride = stride,
                                .n_panels = n,
                                .groups = count / layout.group,
                                .quads = layout.quads,
                                .x = input.int8 + before * layout.quads * 4,
                                .x_scales = input.scales + before,
                                .x_offsets = input.offsets + before,
                                .n_tokens = width,
                                .out = to,
                                .out_stride = out.row_stride,
                                .last_rows = last_rows,
                                .first = k == 0});
        } else {
          kernels_.matmul_f32({.panels = reinterpret_cast<const float*>(panels),
                               .panel_stride = stride / 4,
                               .n_panels = n,
                               .n_k = count,
                               .x = input.f32 + part.begin * cols + k * width,
                               .n_tokens = width,
                               .out = to,
                               .out_stride = out.row_stride,
                               .last_rows = last_rows,
                               .first = k == 0});
        }
      }
    };

    // The weights' panels count as one row of panels, of which each worker takes a contiguous share.
    const Range mine = share(all_panels, worker, workers);
    std::int64_t before = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const Weight& w = *weights[i];
      const std::int64_t panels = panel_count(w);
      const std::int64_t end = std::min(mine.end - before, panels);
      for (std::int64_t begin = std::max(mine.begin - before, std::int64_t{0}); begin < end; begin += group) {
        for (std::int64_t k = 0; k < cols; k += block) {
          multiply_block(w, outs[i], begin, std::min(group, end - begin), k, std::min(block, cols - k));
        }
      }
      before += panels;
    }
  });
}

}  // namespace llama2cpp
