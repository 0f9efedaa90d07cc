// Runs each kernel of a table on fixed inputs, ordinary and extreme, and gives the bits that come out. Two tables that
// follow the contract give equal bits; on two machines, equal hashes.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "backend/cpu/kernel_table.h"
#include "block_outputs.h"
#include "core/config.h"
#include "core/half.h"
#include "kernel_inputs.h"
#include "llm_int8_outputs.h"

namespace kernel_outputs {

using llama2cpp::Activation;
using llama2cpp::KernelTable;

constexpr Activation kActivations[] = {Activation::silu, Activation::gelu_tanh, Activation::relu_squared,
                                       Activation::clamped_swiglu};
inline std::string name_of(Activation activation) { return std::string(llama2cpp::to_string(activation)); }

// W is how panels hold a weight; `stored` makes one of a float.
template <class W, class Stored>
Bits matmul(const KernelTable& table, void (*kernel)(const llama2cpp::PanelBlockOf<W>&), Stored stored) {
  Bits bits;
  std::uint64_t seed = 1;
  for (const Kind kind : kKinds) {
    for (const std::int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24}) {
      for (const std::int64_t rows : {1, 15, 16, 40, 48, 150, 160}) {
        for (const std::int64_t cols : {1, 7, 256, 300, 513}) {
          if (tokens > 4 && (cols == 1 || rows == 160)) continue;
          const std::int64_t panels = (rows + 15) / 16;
          std::vector<W> w;
          for (const float value : make(static_cast<std::size_t>(panels * cols * 16), kind, ++seed)) {
            w.push_back(stored(value));
          }
          const auto x = make(static_cast<std::size_t>(tokens * cols), kind, ++seed);
          std::vector<float> out(static_cast<std::size_t>(tokens * rows + 1), kGuard);
          for (std::int64_t t = 0; t < tokens; t += table.tile) {
            const std::int64_t width = std::min(table.tile, tokens - t);
            // A few tokens' panels are taken whole at times; the bits do not tell.
            const std::int64_t step = width <= llama2cpp::kFewTokens && rows != 48 ? cols : llama2cpp::kBlock;
            for (std::int64_t k = 0; k < cols; k += step) {
              const std::int64_t n_k = std::min(step, cols - k);
              std::vector<float> tile;
              for (std::int64_t i = 0; i < n_k; ++i) {
                for (std::int64_t j = 0; j < width; ++j)
                  tile.push_back(x[static_cast<std::size_t>((t + j) * cols + k + i)]);
              }
              const llama2cpp::PanelBlockOf<W> block{.panels = w.data() + k * 16,
                                                     .panel_stride = cols * 16,
                                                     .n_panels = panels,
                                                     .n_k = n_k,
                                                     .x = tile.data(),
                                                     .n_tokens = width,
                                                     .out = out.data() + t * rows,
                                                     .out_stride = rows,
                                                     .last_rows = rows - (panels - 1) * 16,
                                                     .first = k == 0};
              kernel(block);
            }
          }
          bits.add(out);
        }
      }
    }
  }
  return bits;
}

// Pairs of bf16 of every kind, and sums that go on over several calls. Then sums just below the least normal number, which
// are it or zero: that depends on how they are rounded before they are called denormal.
inline Bits matmul_pairs(const KernelTable& table) {
  Bits bits;
  std::uint64_t seed = 700;
  const auto upper = [](float x) { return std::bit_cast<std::uint32_t>(x) >> 16; };
  const auto pairs_of = [&](std::int64_t n, Kind kind) {
    std::vector<std::uint32_t> pairs;
    const auto values = make(static_cast<std::size_t>(2 * n), kind, ++seed);
    for (std::size_t i = 0; i < values.size(); i += 2) pairs.push_back(upper(values[i + 1]) << 16 | upper(values[i]));
    return pairs;
  };
  for (const int border : {0, 1}) {
    for (const Kind kind : kKinds) {
      if (border == 1 && kind != Kind::ordinary) continue;
      for (const std::int64_t tokens : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24}) {
        for (const std::int64_t rows : {1, 15, 16, 40, 150}) {
          for (const std::int64_t n : {1, 7, 128, 150}) {
            if (tokens > 4 && (n == 1 || rows == 40)) continue;
            const std::int64_t panels = (rows + 15) / 16;
            auto w = pairs_of(panels * n * 16, kind);
            auto x = pairs_of(tokens * n, kind);  // [tokens][n]
            if (border == 1) {
              // 2^-126 from the first odd k, and from it the even ones take up to 1.6 times 2^-151, again and again.
              Random random(++seed);
              for (std::size_t i = 0; i < w.size(); ++i) {
                const bool is_first = static_cast<std::int64_t>(i / 16) % n == 0;
                const float sign = i % 3 == 0 ? -1.0F : 1.0F;
                const float even = 0x1p-126F * (1.0F + static_cast<float>(random.next() % 3) / 128.0F);
                w[i] = upper(is_first ? sign * 0x1p-126F : 0.0F) << 16 | upper(sign * even);
              }
              for (std::uint32_t& pair : x) {
                pair = upper(1.0F) << 16 | upper(-0x1p-28F * static_cast<float>(random.next() % 14));
              }
            }
            std::vector<float> out(static_cast<std::size_t>(tokens * rows + 1), kGuard);
            for (std::int64_t t = 0; t < tokens; t += table.tile) {
              const std::int64_t width = std::min(table.tile, tokens - t);
              const std::int64_t step = width <= llama2cpp::kFewTokens && rows != 40 ? n : llama2cpp::kBlock / 2;
              for (std::int64_t k = 0; k < n; k += step) {
                const std::int64_t n_k = std::min(step, n - k);
                std::vector<std::uint32_t> tile;
                for (std::int64_t i = 0; i < n_k; ++i) {
                  for (std::int64_t j = 0; j < width; ++j) {
                    tile.push_back(x[static_cast<std::size_t>((t + j) * n + k + i)]);
                  }
                }
                table.matmul_pairs({.panels = w.data() + k * 16,
                                    .panel_stride = n * 16,
                                    .n_panels = panels,
                                    .n_k = n_k,
                                    .x = tile.data(),
                                    .n_tokens = width,
                                    .out = out.data() + t * rows,
                                    .out_stride = rows,
                                    .last_rows = rows - (panels - 1) * 16,
                                    .first = k == 0});
              }
            }
            bits.add(out);
          }
        }
      }
    }
  }
  return bits;
}

// int8 weights of every byte value, groups that four does not divide, and sums that go on over several calls.
inline Bits matmul_int8(const KernelTable& table) {
  Bits bits;
  std::uint64_t seed = 900;
  for (const Kind kind : {Kind::ordinary, Kind::tiny, Kind::huge, Kind::special}) {
    for (const std::int64_t tokens : {1, 2, 3, 5, 6, 7, 12, 13}) {
      for (const std::int64_t rows : {1, 16, 40, 150}) {
        for (const std::int64_t group : {1, 3, 4, 32, 43, 64}) {
          const std::int64_t groups = 5;
          const std::int64_t quads = (group + 3) / 4;
          const std::int64_t panels = (rows + 15) / 16;
          const std::int64_t group_bytes = quads * 64 + 64;
          Random random(++seed);
          std::vector<std::uint8_t> w(static_cast<std::size_t>(panels * groups * group_bytes));
          for (std::uint8_t& byte : w) byte = static_cast<std::uint8_t>(random.next() % 8 == 0 ? 0 : random.next());
          for (std::int64_t i = 0; i < panels * groups; ++i) {
            const auto scales = make(16, kind, ++seed);
            std::copy_n(reinterpret_cast<const std::uint8_t*>(scales.data()), 64,
                        w.data() + i * group_bytes + quads * 64);
          }
          std::vector<float> out(static_cast<std::size_t>(tokens * rows + 1), kGuard);
          for (std::int64_t t = 0; t < tokens; t += table.tile) {
            const std::int64_t width = std::min(table.tile, tokens - t);
            for (const auto& [first, count] : {std::pair<std::int64_t, std::int64_t>{0, 3}, {3, 2}}) {
              std::vector<std::int8_t> x;
              std::vector<float> scales;
              std::vector<std::int32_t> starts(static_cast<std::size_t>(count * width), 0);
              for (std::int64_t g = 0; g < count; ++g) {
                for (std::int64_t quad = 0; quad < quads; ++quad) {
                  for (std::int64_t n = 0; n < width; ++n) {
                    Random values(static_cast<std::uint64_t>((((first + g) * 97 + quad) * 89 + t + n) * 7 + group));
                    for (std::int64_t k = 0; k < 4; ++k) {
                      const std::uint32_t draw = values.next();
                      const int value =
                          draw % 5 == 0 ? (draw % 2 == 0 ? 127 : -127) : static_cast<int>(draw % 255) - 127;
                      x.push_back(static_cast<std::int8_t>(quad * 4 + k < group ? value : 0));
                      starts[static_cast<std::size_t>(g * width + n)] -= x.back();
                    }
                  }
                }
                for (std::int64_t n = 0; n < width; ++n) {
                  scales.push_back(make(1, kind, static_cast<std::uint64_t>((first + g) * 31 + t + n))[0]);
                }
              }
              table.matmul_int8({.panels = w.data() + first * group_bytes,
                                 .panel_stride = groups * group_bytes,
                                 .n_panels = panels,
                                 .groups = count,
                                 .quads = quads,
                                 .x = x.data(),
                                 .x_scales = scales.data(),
                                 .x_starts = starts.data(),
                                 .n_tokens = width,
                                 .out = out.data() + t * rows,
                                 .out_stride = rows,
                                 .last_rows = rows - (panels - 1) * 16,
                                 .first = first == 0});
            }
          }
          bits.add(out);
        }
      }
    }
  }
  return bits;
}

inline Bits quantize(const KernelTable& table) {
  Bits bits;
  std::uint64_t seed = 3000;
  for (const Kind kind : kKinds) {
    for (const std::int64_t group : {1, 2, 4, 16, 32, 43, 64, 100}) {
      auto x = make(static_cast<std::size_t>(9 * group), kind, ++seed);
      for (std::int64_t i = 0; i < group; ++i) {  // halves, whole numbers, nothing at all, denormals
        x[static_cast<std::size_t>(i)] = i == 0 ? 127.0F : static_cast<float>(i) - 20.5F;
        x[static_cast<std::size_t>(group + i)] = i == 0 ? -63.5F : static_cast<float>(i % 9) * 0.25F;
        x[static_cast<std::size_t>(2 * group + i)] = i % 2 == 0 ? 0.0F : -0.0F;
        x[static_cast<std::size_t>(3 * group + i)] = static_cast<float>(i - 7) * 1e-43F;
      }
      std::vector<std::int8_t> q(x.size() + 1, 99);
      std::vector<float> scales(10, kGuard);
      table.quantize(x.data(), 9, group, q.data(), scales.data());
      bits.add(scales);
      for (const std::int8_t value : q) bits.add(static_cast<float>(value));
    }
  }
  return bits;
}

// Calls f(n, seed, kind) for every length and kind of input.
template <class F>
void each_length(F f) {
  std::uint64_t seed = 1000;
  for (const Kind kind : kKinds) {
    for (const std::int64_t n : lengths()) f(n, seed += 10, kind);
  }
}

inline std::vector<float> output(std::int64_t n) { return std::vector<float>(static_cast<std::size_t>(n + 1), kGuard); }
inline std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

struct AttentionSizes {
  std::vector<std::int64_t> head_dims = {2, 8, 16, 22, 24, 31, 48, 63, 64, 100, 128, 272};
  std::vector<std::int64_t> keys = {1, 2, 3, 15, 16, 17, 255, 256, 257, 520};
  std::int64_t most = llama2cpp::kMostQueries;  // queries, in about half of the calls
};

// Attention's kernels with every number of queries; T is how the cache holds numbers, and `stored` makes all of a cache of
// floats. In mixing, queries look at different numbers of positions, in any order, with a tile's border between some of them.
template <class T, class Stored>
void attention(void (*scores)(const llama2cpp::ScoresOf<T>&), void (*mix)(const llama2cpp::MixOf<T>&), Stored stored,
               Bits& score_bits, Bits& mix_bits, const AttentionSizes& sizes = {}) {
  std::uint64_t seed = 5000;
  for (const Kind kind : kKinds) {
    for (const std::int64_t head_dim : sizes.head_dims) {
      for (const std::int64_t keys : sizes.keys) {
        const std::uint32_t draw = Random(++seed).next();
        const std::int64_t queries = 1 + draw % (seed % 2 == 0 ? sizes.most : llama2cpp::kMostQueries);
        const std::vector<T> cache = stored(make(size(keys * head_dim), kind, ++seed));
        const auto q = make(size(queries * head_dim), kind, ++seed);
        const auto pattern = make(size(queries * keys), kind, ++seed);
        auto scored = output(queries * keys);
        auto mixed = output(queries * head_dim);
        llama2cpp::ScoresOf<T> score{.queries = queries,
                                     .q = {},
                                     .keys = cache.data(),
                                     .n = keys,
                                     .head_dim = head_dim,
                                     .root = std::sqrt(static_cast<float>(head_dim)),
                                     .out = {}};
        llama2cpp::MixOf<T> call{
            .queries = queries, .pattern = {}, .values = cache.data(), .n = {}, .head_dim = head_dim, .z = {}};
        for (std::int64_t i = 0; i < queries; ++i) {
          score.q[i] = q.data() + i * head_dim;
          score.out[i] = scored.data() + i * keys;
          call.pattern[i] = pattern.data() + i * keys;
          const auto missing = static_cast<std::int64_t>(Random(++seed).next() % 4);
          call.n[i] = std::max(std::int64_t{1}, keys - missing);
          call.z[i] = mixed.data() + i * head_dim;
        }
        scores(score);
        mix(call);
        score_bits.add(scored);
        mix_bits.add(mixed);
      }
    }
  }
}

// Both outputs, of gates from small to where the sigmoid saturates.
inline void gradients(const KernelTable& table, const std::vector<float>& gate, const std::vector<float>& up,
                      const std::vector<float>& d, std::int64_t n, std::map<std::string, Bits>& bits) {
  const auto with_guard = [](std::vector<float> x) {
    x.push_back(kGuard);
    return x;
  };
  for (const float factor : {1.0F, 100.0F}) {
    auto x = gate;
    for (float& value : x) value *= factor;
    for (const Activation activation : kActivations) {
      for (const bool turned : {false, true}) {  // beyond both clamps
        auto of_gate = with_guard(d);
        auto of_up = output(n);
        table.gated_gradient(activation, (turned ? up : x).data(), (turned ? x : up).data(), of_gate.data(),
                             of_up.data(), n);
        bits["gated_gradient_" + name_of(activation)].add(of_gate);
        bits["gated_gradient_" + name_of(activation)].add(of_up);
      }
      if (needs_gate(activation)) continue;
      auto of_x = with_guard(d);
      table.gated_gradient(activation, x.data(), nullptr, of_x.data(), nullptr, n);
      bits["activate_gradient_" + name_of(activation)].add(of_x);
    }
  }
}

inline std::map<std::string, Bits> elementwise(const KernelTable& table) {
  std::map<std::string, Bits> bits;
  each_length([&](std::int64_t n, std::uint64_t seed, Kind kind) {
    const auto a = make(size(n), kind, seed);
    const auto b = make(size(n), kind, seed + 1);
    for (std::int64_t i = 0; i < 40; ++i) {
      bits["sum_squares"].add(table.sum_squares(make(size(n), kind, seed + static_cast<std::uint64_t>(i)).data(), n));
    }
    auto out = output(n);
    table.scale(a.data(), 0.37F, b.data(), out.data(), n);
    bits["scale"].add(out);
    out = output(n);
    table.scale(a.data(), 1.7e-3F, nullptr, out.data(), n);
    bits["scale"].add(out);
    out = output(n);
    table.center(a.data(), out.data(), n);
    bits["center"].add(out);
    out = output(n);
    table.add(a.data(), b.data(), out.data(), n);
    bits["add"].add(out);
    auto wide = a;
    for (float& x : wide) x *= 100.0F;  // where the sigmoid saturates
    for (const Activation activation : kActivations) {
      for (const bool far : {false, true}) {
        const auto& gate = far ? wide : a;
        out = output(n);
        table.gated(activation, gate.data(), b.data(), out.data(), n);
        bits["gated_" + name_of(activation)].add(out);
        if (needs_gate(activation)) {  // beyond both its clamps
          out = output(n);
          table.gated(activation, b.data(), gate.data(), out.data(), n);
          bits["gated_" + name_of(activation)].add(out);
          continue;
        }
        out = output(n);
        table.gated(activation, gate.data(), nullptr, out.data(), n);
        bits["activate_" + name_of(activation)].add(out);
      }
    }
    gradients(table, a, b, make(size(n), kind, seed + 4), n, bits);
    for (const float cap : {0.7F, 30.0F}) {
      for (const bool far : {false, true}) {
        const auto& x = far ? wide : a;
        out = output(n);
        table.soft_cap(x.data(), cap, out.data(), n);
        bits["soft_cap"].add(out);
      }
      auto capped = wide;
      table.soft_cap(capped.data(), cap, capped.data(), n);
      bits["soft_cap"].add(capped);
    }
    std::vector<std::uint16_t> halves(size(n + 1), 0x1234);
    table.narrow(a.data(), halves.data(), n);
    bits["narrow"].add(halves);
    for (const auto& x : {a, b}) {
      std::vector<std::uint16_t> short_ones(size(n + 1), 0x1234);
      table.narrow_bf16(x.data(), short_ones.data(), n);
      for (const std::uint16_t word : short_ones) {
        bits["narrow_bf16"].add(std::uint32_t{(word & 0x7FFFU) > 0x7F80U ? 0x7FC0U : word});
      }
    }
    for (std::int64_t rows = 1; rows <= 16 && n >= 16; ++rows) {  // of 16 columns, the next row one number on
      const std::int64_t stride = (n - 16) / rows;
      out = output(16 * (rows + 1));  // what is between the rows stays as it is
      table.turn_rows(a.data(), stride, rows, out.data(), rows + 1);
      bits["turn_rows"].add(out);
    }
    for (float& x : wide) x *= 1000.0F;  // about the largest half
    table.narrow(wide.data(), halves.data(), n);
    bits["narrow"].add(halves);
    for (const float factor : {1.0F, 30.0F}) {
      auto scores = a;
      for (float& x : scores) x *= factor;
      out = output(n);
      table.softmax(scores.data(), nullptr, out.data(), n);
      bits["softmax"].add(out);
      for (const float sink : {b[0] * factor, -1e30F, 1e30F}) {
        table.softmax(scores.data(), &sink, out.data(), n);
        bits["softmax_with_sink"].add(out);
      }
      table.softmax(scores.data(), nullptr, scores.data(), n);
      bits["softmax"].add(scores);
    }
    if (n % 2 == 0) {
      const auto angles = make(size(n / 2), Kind::ordinary, seed + 2);
      const auto sines = make(size(n / 2), Kind::ordinary, seed + 3);
      auto turned = a;
      turned.push_back(kGuard);
      table.rope_interleaved(turned.data(), angles.data(), sines.data(), n);
      bits["rope_interleaved"].add(turned);
      turned = a;
      turned.push_back(kGuard);
      table.rope_half_split(turned.data(), angles.data(), sines.data(), n);
      bits["rope_half_split"].add(turned);
    }
  });
  return bits;
}

// As many blocks of q8_0 as hold x, with any bytes, but for scales: most are ordinary, some any half at all.
inline std::vector<llama2cpp::Q8Block> any_blocks(const std::vector<float>& x) {
  std::vector<llama2cpp::Q8Block> blocks(x.size() / size(llama2cpp::kQ8Numbers));
  Random random(std::bit_cast<std::uint32_t>(x[0]));
  for (llama2cpp::Q8Block& block : blocks) {
    for (std::int8_t& q : block.q) q = static_cast<std::int8_t>(random.next() >> 13);
    const std::uint32_t draw = random.next();
    block.scale = static_cast<std::uint16_t>(draw % 50 == 0 ? draw >> 16 : 0x2000U + (draw >> 16) % 0x1000U);
  }
  return blocks;
}

inline std::map<std::string, Bits> attention(const KernelTable& table) {
  std::map<std::string, Bits> bits;
  attention(
      table.scores_f32, table.mix_f32, [](std::vector<float> x) { return x; }, bits["scores_f32"], bits["mix_f32"]);
  std::uint32_t draw = 0;  // any half at all
  const auto any_halves = [&](const std::vector<float>& x) {
    std::vector<std::uint16_t> halves(x.size());
    for (std::uint16_t& half : halves) half = static_cast<std::uint16_t>(Random(++draw).next());
    return halves;
  };
  attention(table.scores_f16, table.mix_f16, any_halves, bits["scores_f16"], bits["mix_f16"]);
  attention(table.scores_q8, table.mix_q8, any_blocks, bits["scores_q8"], bits["mix_q8"],
            {.head_dims = {32, 64, 96, 288}, .keys = {1, 3, 17, 257, 520}, .most = 4});
  return bits;
}

// All but matmul's kernels, which are the same in each order of arithmetic.
inline std::map<std::string, Bits> along_vectors(const KernelTable& table) {
  std::map<std::string, Bits> bits = elementwise(table);
  bits.merge(attention(table));
  return bits;
}

inline std::map<std::string, Bits> all(const KernelTable& table) {
  std::map<std::string, Bits> bits = along_vectors(table);
  bits["matmul_f32"] = matmul(table, table.matmul_f32, [](float x) { return x; });
  bits["matmul_f16"] = matmul(table, table.matmul_f16, [](float x) { return llama2cpp::float_to_half(x); });
  bits["matmul_bf16"] = matmul(table, table.matmul_bf16, [](float x) {
    return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16);
  });
  bits["matmul_pairs"] = matmul_pairs(table);
  block_kernels(table, bits);
  bits["matmul_int8"] = matmul_int8(table);
  bits["quantize"] = quantize(table);
  bits["quantize_blocks"] = quantize_blocks(table);
  bits["matmul_llm_int8"] = matmul_llm_int8(table);
  bits["quantize_row"] = quantize_row(table);
  return bits;
}

}  // namespace kernel_outputs
