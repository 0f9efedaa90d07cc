// LLM.int8()'s kernels for kernel_outputs.h: random panels, and inputs with no, some, or nothing but outliers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/cpu/kernel_table.h"
#include "core/half.h"
#include "kernel_inputs.h"

namespace kernel_outputs {

struct LlmInt8Shape {
  std::int64_t rows, cols;
  std::int64_t fixed;  // -1: outliers are each token's own

  std::int64_t fixed_columns() const { return std::max(fixed, std::int64_t{0}); }
  std::int64_t quads() const { return (cols + 3) / 4; }
  std::int64_t panels() const { return (rows + 15) / 16; }
  std::int64_t stride() const { return (quads() * 64 + 64 + fixed_columns() * 32 + 63) / 64 * 64; }
};

inline std::vector<std::uint8_t> llm_int8_panels(const LlmInt8Shape& s, Kind kind, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint8_t> w(static_cast<std::size_t>(s.panels() * s.stride()));
  for (std::uint8_t& byte : w) byte = static_cast<std::uint8_t>(random.next() % 8 == 0 ? 0 : random.next());
  for (std::int64_t p = 0; p < s.panels(); ++p) {
    std::uint8_t* const scales = w.data() + p * s.stride() + s.quads() * 64;
    std::memcpy(scales, make(16, kind, ++seed).data(), 64);
    for (std::int64_t i = 0; i < s.fixed_columns() * 16; ++i) {
      const std::uint16_t half = llama2cpp::float_to_half(make(1, kind, ++seed)[0]);
      std::memcpy(scales + 64 + i * 2, &half, 2);
    }
  }
  return w;
}

// Tokens [begin, begin + n) as the kernels read them. What a token holds depends on nothing but its number and the seed.
struct LlmInt8Tile {
  std::vector<std::int8_t> x;
  std::vector<float> scales, x_fixed, outliers;
  std::vector<std::int32_t> starts, counts, columns;

  LlmInt8Tile(const LlmInt8Shape& s, std::int64_t begin, std::int64_t n, Kind kind, std::uint64_t seed)
      : x(static_cast<std::size_t>(s.quads() * n * 4)),
        x_fixed(static_cast<std::size_t>(s.fixed_columns() * n)),
        outliers(static_cast<std::size_t>(s.cols * n)),
        starts(static_cast<std::size_t>(n)),
        counts(static_cast<std::size_t>(n)),
        columns(static_cast<std::size_t>(s.cols * n), -1) {
    for (std::int64_t t = 0; t < n; ++t) {
      const std::uint64_t own = seed * 1000 + static_cast<std::uint64_t>(begin + t) * 10;
      scales.push_back(make(1, kind, own)[0]);
      const auto fixed = make(static_cast<std::size_t>(s.fixed_columns()), kind, own + 1);
      for (std::size_t i = 0; i < fixed.size(); ++i) x_fixed[i * at(n) + at(t)] = fixed[i];
      const auto large = make(static_cast<std::size_t>(s.cols), kind, own + 2);
      Random random(own + 3);
      // In turn: no outliers, one in eight, nothing else.
      const std::uint32_t among = s.fixed >= 0 ? 0 : (begin + t) % 3 == 0 ? 0 : (begin + t) % 3 == 1 ? 1 : 8;
      for (std::int64_t k = 0; k < s.cols; ++k) {
        if (random.next() % 8 < among) {
          const std::int64_t place = t * s.cols + counts[at(t)]++;
          columns[at(place)] = static_cast<std::int32_t>(k);
          outliers[at(place)] = large[at(k)];
          continue;
        }
        const std::uint32_t draw = random.next();
        const int value = draw % 5 == 0 ? (draw % 2 == 0 ? 127 : -127) : static_cast<int>(draw % 255) - 127;
        x[at((k / 4 * n + t) * 4 + k % 4)] = static_cast<std::int8_t>(value);
        starts[at(t)] -= value;
      }
    }
  }

  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
};

inline std::vector<float> llm_int8_output(const llama2cpp::KernelTable& table, const LlmInt8Shape& s,
                                          std::int64_t tokens, Kind kind, std::uint64_t seed) {
  const auto w = llm_int8_panels(s, kind, seed);
  std::vector<float> out(static_cast<std::size_t>(tokens * s.rows + 1), kGuard);
  for (std::int64_t t = 0; t < tokens; t += table.tile) {
    const std::int64_t width = std::min(table.tile, tokens - t);
    const LlmInt8Tile tile(s, t, width, kind, seed);
    table.matmul_llm_int8({.panels = w.data(),
                           .panel_stride = s.stride(),
                           .n_panels = s.panels(),
                           .quads = s.quads(),
                           .x = tile.x.data(),
                           .x_scales = tile.scales.data(),
                           .x_starts = tile.starts.data(),
                           .n_tokens = width,
                           .fixed = s.fixed_columns(),
                           .x_fixed = tile.x_fixed.data(),
                           .counts = s.fixed < 0 ? tile.counts.data() : nullptr,
                           .columns = tile.columns.data(),
                           .x_outliers = tile.outliers.data(),
                           .outlier_stride = s.cols,
                           .out = out.data() + t * s.rows,
                           .out_stride = s.rows,
                           .last_rows = s.rows - (s.panels() - 1) * 16});
  }
  return out;
}

inline Bits matmul_llm_int8(const llama2cpp::KernelTable& table) {
  Bits bits;
  std::uint64_t seed = 7000;
  for (const Kind kind : {Kind::ordinary, Kind::tiny, Kind::huge, Kind::special}) {
    for (const std::int64_t tokens : {1, 2, 3, 7, 12, 13}) {
      for (const std::int64_t rows : {1, 24, 40, 96}) {
        for (const std::int64_t cols : {1, 2, 7, 64, 130}) {
          for (const std::int64_t fixed : {-1, 0, 5}) {
            bits.add(llm_int8_output(table, {.rows = rows, .cols = cols, .fixed = fixed}, tokens, kind, ++seed));
          }
        }
      }
    }
  }
  return bits;
}

inline Bits quantize_row(const llama2cpp::KernelTable& table) {
  Bits bits;
  std::uint64_t seed = 8000;
  constexpr float kNone = std::numeric_limits<float>::infinity();
  for (const Kind kind : kKinds) {
    for (const std::int64_t n : lengths()) {
      for (const float limit : {kNone, 0.75F, 0.0F, 1e-40F, 1e29F, 126.5F}) {
        for (int round = 0; round < 3; ++round) {
          auto x = make(static_cast<std::size_t>(n), kind, ++seed);
          // What divides evenly, so that halves show which way they go; and zeros.
          for (std::size_t i = 0; round == 1 && i < x.size(); ++i)
            x[i] = i == 0 ? 127.0F : static_cast<float>(i) - 20.5F;
          for (std::size_t i = 0; round == 2 && i < x.size(); ++i) x[i] *= i % 7 == 0 ? 1.0F : 0.0F;
          std::vector<std::int8_t> q(x.size() + 1, 99);
          std::vector<std::int32_t> columns(x.size() + 1, -7);
          std::vector<float> outliers(x.size() + 1, kGuard);
          float scale = kGuard;
          const bool own = limit < kNone;
          const std::int64_t count = table.quantize_row({.x = x.data(),
                                                         .n = n,
                                                         .limit = limit,
                                                         .q = q.data(),
                                                         .scale = &scale,
                                                         .columns = own ? columns.data() : nullptr,
                                                         .outliers = own ? outliers.data() : nullptr});
          bits.add(scale);
          bits.add(static_cast<std::uint32_t>(count));
          for (const std::int8_t value : q) bits.add(static_cast<float>(value));
          for (const std::int32_t column : columns) bits.add(static_cast<std::uint32_t>(column));
          bits.add(outliers);
        }
      }
    }
  }
  return bits;
}

}  // namespace kernel_outputs
