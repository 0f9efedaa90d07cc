// Matmul of whole weights in every format, packed and not, against plain loops over the format's own numbers: kernels,
// packing, input layout and sharing out at once. Equal bits, no tolerance.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "core/half.h"
#include "format/format.h"
#include "kernel_outputs.h"
#include "transposed.h"

namespace {

using kernel_outputs::Bits;
using kernel_outputs::Kind;
using kernel_outputs::Random;
using llama2cpp::Format;
using llama2cpp::IntegerBlock;
using llama2cpp::Tensor;
using llama2cpp::Weight;

// A format and where its blocks have their f16 fields.
struct Subject {
  const char* format;
  std::vector<std::size_t> halves;
};

const std::vector<Subject>& subjects() {
  static const std::vector<Subject> all = {
      {"f32", {}},     {"f16", {}},      {"bf16", {}},       {"q8_0", {0}},   {"q4_0", {0}},    {"q4_1", {0, 2}},
      {"q5_0", {0}},   {"q5_1", {0, 2}}, {"q2_k", {80, 82}}, {"q3_k", {108}}, {"q4_k", {0, 2}}, {"q5_k", {0, 2}},
      {"q6_k", {208}}, {"iq4_nl", {0}},  {"iq4_xs", {0}},    {"mxfp4", {}},
  };
  return all;
}

enum class Scales { ordinary, extreme, special };

std::uint16_t scale_of(Random& random, Scales scales) {
  const float ordinary = random.uniform() * 0.05F;
  if (scales == Scales::extreme) {
    const std::uint16_t values[] = {0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x0000, 0x8000};
    return values[random.next() % 8];
  }
  if (scales == Scales::special && random.next() % 16 == 0) return random.next() % 2 == 0 ? 0x7C00 : 0x7E00;
  return llama2cpp::float_to_half(ordinary);
}

// Every bit pattern in the integers, at times all equal: the largest and the least sums.
Weight make_weight(const Subject& subject, std::int64_t rows, std::int64_t cols, Scales scales, std::uint64_t seed) {
  const Format& format = llama2cpp::find_format(subject.format);
  Weight w;
  w.format = &format;
  w.rows = rows;
  w.cols = cols;
  w.group = format.group;
  const std::int64_t row_bytes = cols / format.group * format.group_bytes;
  w.planes[0].owner = llama2cpp::Buffer::heap(static_cast<std::size_t>(rows * row_bytes));
  w.planes[0].data = w.planes[0].owner.data();
  w.planes[0].bytes = static_cast<std::size_t>(rows * row_bytes);
  w.planes[0].row_bytes = row_bytes;
  auto* bytes = reinterpret_cast<std::uint8_t*>(w.planes[0].owner.data());
  Random random(seed);
  const bool powers = format.name == "mxfp4";  // its scales are bytes: powers of two
  if (subject.halves.empty() && !powers) {
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const float value = scales == Scales::extreme
                              ? std::ldexp(random.uniform(), static_cast<int>(random.next() % 40) - 25)
                              : random.uniform();
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
      const std::uint16_t half =
          format.name == "f16" ? llama2cpp::float_to_half(value) : static_cast<std::uint16_t>(bits >> 16);
      if (format.group_bytes == 4) std::memcpy(bytes + i * 4, &bits, 4);
      if (format.group_bytes == 2) std::memcpy(bytes + i * 2, &half, 2);
    }
    return w;
  }
  for (std::int64_t block = 0; block < rows * row_bytes / format.group_bytes; ++block) {
    std::uint8_t* p = bytes + block * format.group_bytes;
    const std::uint32_t same = random.next();
    for (std::int64_t i = 0; i < format.group_bytes; ++i) {
      p[i] = same % 5 == 0   ? 0xFF
             : same % 5 == 1 ? 0x00
             : same % 5 == 2 ? 0x80
                             : static_cast<std::uint8_t>(random.next());
    }
    if (powers) p[0] = static_cast<std::uint8_t>(104 + random.next() % 40);  // what panels hold
    for (const std::size_t at : subject.halves) {
      const std::uint16_t half = scale_of(random, scales);
      std::memcpy(p + at, &half, 2);
    }
  }
  return w;
}

// The input rounded in blocks of 32, as reference_blocks.cpp says; written again, apart from it.
void round_block(const float* x, int* q, float& scale) {
  float most = 0.0F;
  bool finite = true;
  for (int i = 0; i < 32; ++i) {
    finite = finite && std::isfinite(x[i]);
    most = std::max(most, std::fabs(x[i]));
  }
  scale = finite ? most / 127.0F : std::numeric_limits<float>::quiet_NaN();
  for (int i = 0; i < 32; ++i) {
    q[i] = finite && scale > 0.0F ? static_cast<int>(std::lrint(std::max(-127.0F, std::min(127.0F, x[i] / scale)))) : 0;
  }
}

float expected_integers(const Weight& w, std::int64_t row, const float* x) {
  const int halves = w.format->blocks.halves;
  float p = 0.0F;
  for (std::int64_t block = 0; block < w.cols / 32; ++block) {
    IntegerBlock b;
    w.format->integers(w, row, block, b);
    int q[32];
    float scale = 0.0F;
    round_block(x + block * 32, q, scale);
    for (int half = 0; half < halves; ++half) {
      int dot = 0;
      int sum = 0;
      for (int k = half * 16; k < (halves == 2 ? half * 16 + 16 : 32); ++k) {
        dot += b.q[static_cast<std::size_t>(k)] * q[k];
        sum += q[k];
      }
      const auto h = static_cast<std::size_t>(half);
      const float d = b.d * static_cast<float>(b.sub[h]);
      const float m = b.dm * static_cast<float>(b.m[h]);
      p = std::fma(d * scale, static_cast<float>(dot), p);
      if (w.format->blocks.minimum) p = std::fma(m, scale * static_cast<float>(sum), p);
    }
  }
  return p;
}

float expected_floats(const Weight& w, std::int64_t row, const float* x) {
  std::vector<float> values(static_cast<std::size_t>(w.cols));
  w.decode_row(row, values.data());
  float sum = 0.0F;
  for (std::int64_t k = 0; k < w.cols; k += 256) {
    float p = 0.0F;
    for (std::int64_t i = k; i < std::min(w.cols, k + 256); ++i)
      p = std::fma(values[static_cast<std::size_t>(i)], x[i], p);
    sum = sum + p;
  }
  return sum;
}

// Both rounded to bf16; for each pair the odd column, then the even one.
float expected_bf16(const Weight& w, std::int64_t row, const float* x) {
  const auto rounded = [](float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (std::isnan(value)) return value;
    const float down = std::bit_cast<float>(bits & 0xFFFF0000U);
    const float up = std::bit_cast<float>((bits & 0xFFFF0000U) + 0x10000U);
    const double middle = std::isinf(up) ? 0x1.FFp127 : (static_cast<double>(down) + static_cast<double>(up)) / 2.0;
    const double size = std::fabs(static_cast<double>(value));
    if (size == std::fabs(middle)) return (bits >> 16) % 2 == 0 ? down : up;
    return size < std::fabs(middle) ? down : up;
  };
  std::vector<float> values(static_cast<std::size_t>(w.cols + 1));
  w.decode_row(row, values.data());
  float p = 0.0F;
  for (std::int64_t k = 0; k < w.cols; k += 2) {
    for (const std::int64_t i : {k + 1, k}) {
      const float other = i < w.cols ? rounded(x[i]) : 0.0F;
      p = std::fma(rounded(values[static_cast<std::size_t>(i)]), other, p);  // no denormals among these
    }
  }
  return p;
}

Bits expected(const Weight& w, const std::vector<float>& x, std::int64_t tokens) {
  Bits bits;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t row = 0; row < w.rows; ++row) {
      const float* from = x.data() + t * w.cols;
      if (w.bf16_input) {
        bits.add(expected_bf16(w, row, from));
        continue;
      }
      bits.add(w.int8_input ? expected_integers(w, row, from) : expected_floats(w, row, from));
    }
  }
  return bits;
}

std::vector<Bits> multiply(llama2cpp::Backend& backend, std::vector<Weight>& weights, std::vector<float>& x,
                           std::int64_t tokens) {
  std::vector<std::vector<float>> memory;
  std::vector<Tensor> outs;
  std::vector<const Weight*> pointers;
  for (const Weight& w : weights) {
    memory.emplace_back(static_cast<std::size_t>(tokens * w.rows + 1), kernel_outputs::kGuard);
    outs.emplace_back(memory.back().data(), std::initializer_list<std::int64_t>{tokens, w.rows});
    pointers.push_back(&w);
  }
  const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
  backend.matmul(pointers, Tensor(x.data(), {tokens, weights[0].cols}), outs);
  std::vector<Bits> bits;
  for (std::vector<float>& out : memory) {
    CHECK(out.back() == kernel_outputs::kGuard);
    out.pop_back();
    bits.emplace_back();
    bits.back().add(out);
  }
  return bits;
}

std::vector<std::unique_ptr<llama2cpp::CpuBackend>> backends() {
  std::vector<std::unique_ptr<llama2cpp::CpuBackend>> all;
  for (const char* isa : {"reference", "scalar", "neon-base", "neon-dotprod", "neon-i8mm", "avx2-base", "avx2-vnni",
                          "avx512-base", "avx512-vnni", "avx512-bf16"}) {
    const llama2cpp::KernelTable* table = nullptr;
    try {
      table = &llama2cpp::select_kernels(isa);
    } catch (const std::invalid_argument&) {
      continue;  // not on this machine
    }
    all.push_back(std::make_unique<llama2cpp::CpuBackend>(3, *table));
  }
  return all;
}

}  // namespace

TEST_CASE("matmul of every format is the format's own numbers, packed or not") {
  const auto all = backends();
  CHECK(all.size() >= 2);
  std::uint64_t seed = 1;
  for (const Subject& subject : subjects()) {
    for (const Scales scales : {Scales::ordinary, Scales::extreme, Scales::special}) {
      for (const std::int64_t tokens : {1, 2, 3, 7, 12, 13, 29}) {
        const std::int64_t blocks = llama2cpp::find_format(subject.format).group == 256 ? 512 : 352;
        std::vector<Weight> weights{make_weight(subject, tokens == 7 ? 16 : 150, blocks, scales, ++seed)};
        const Kind kind = tokens == 3 ? Kind::wide : tokens == 2 ? Kind::special : Kind::ordinary;
        auto x = kernel_outputs::make(static_cast<std::size_t>(tokens * blocks), kind, ++seed);
        for (const bool rounded : {false, true}) {
          if (rounded && !weights[0].format->quantized) continue;
          weights[0].int8_input = rounded;
          weights[0].panels = {};
          const Bits wanted = expected(weights[0], x, tokens);
          for (const auto& backend : all) {
            CAPTURE(subject.format);
            CAPTURE(backend->isa());
            CAPTURE(tokens);
            CAPTURE(rounded);
            weights[0].panels = {};
            CHECK((multiply(*backend, weights, x, tokens)[0] == wanted));
            backend->pack(weights[0]);
            CHECK(weights[0].panels.size() == backend->packed_bytes(weights[0]));
            CHECK((multiply(*backend, weights, x, tokens)[0] == wanted));
          }
        }
      }
    }
  }
}

TEST_CASE("weights of 16 bits with an input rounded to bf16, packed or not, in any number of columns and tokens") {
  const auto all = backends();
  std::uint64_t seed = 4000;
  for (const char* format : {"bf16", "f16"}) {
    for (const std::int64_t tokens : {1, 2, 3, 12, 29}) {
      for (const std::int64_t cols : {1, 2, 255, 256, 257, 513}) {
        std::vector<Weight> weights{make_weight({format, {}}, 37, cols, Scales::ordinary, ++seed),
                                    make_weight({"f32", {}}, 20, cols, Scales::ordinary, ++seed)};
        weights[0].bf16_input = true;
        const Kind kind = tokens == 3 ? Kind::wide : tokens == 2 ? Kind::special : Kind::ordinary;
        auto x = kernel_outputs::make(static_cast<std::size_t>(tokens * cols), kind, ++seed);
        const Bits wanted[] = {expected(weights[0], x, tokens), expected(weights[1], x, tokens)};
        for (const auto& backend : all) {
          CAPTURE(format);
          CAPTURE(backend->isa());
          CAPTURE(tokens);
          CAPTURE(cols);
          for (const bool packed : {false, true}) {
            for (Weight& w : weights) {
              w.panels = {};
              if (packed) backend->pack(w);
            }
            const std::vector<Bits> bits = multiply(*backend, weights, x, tokens);
            CHECK((bits[0] == wanted[0]));
            CHECK((bits[1] == wanted[1]));
          }
          CHECK(weights[0].panels.size() == backend->packed_bytes(weights[0]));
        }
      }
    }
  }
}

TEST_CASE("the transposed product of every format is the format's own numbers, packed or not") {
  const auto all = backends();
  std::uint64_t seed = 300;
  for (const Subject& subject : subjects()) {
    const std::int64_t cols = llama2cpp::find_format(subject.format).group == 256 ? 512 : 352;
    for (const bool rounded : {false, true}) {
      for (const std::int64_t tokens : {1, 2, 14}) {
        Weight w = make_weight(subject, tokens == 2 ? 530 : 150, cols, Scales::ordinary, ++seed);
        w.bf16_input = rounded && w.format->name == "bf16";
        w.int8_input = rounded && w.format->quantized;
        transposed::check(all, w, tokens, ++seed);
      }
    }
  }
}

TEST_CASE("the transposed products of several weights are one sum, in chunks of rows too") {
  const auto all = backends();
  const std::vector<Weight> weights = {make_weight(subjects()[10], 40, 512, Scales::ordinary, 1),
                                       make_weight(subjects()[0], 4100, 512, Scales::ordinary, 2),
                                       make_weight(subjects()[4], 257, 512, Scales::ordinary, 3)};
  std::vector<std::vector<float>> dys;
  for (const Weight& w : weights) {
    dys.push_back(kernel_outputs::make(static_cast<std::size_t>(7 * w.rows), Kind::ordinary, dys.size()));
  }
  const Bits wanted = transposed::by_loops(weights, dys, 7);
  for (const auto& backend : all) {
    CAPTURE(backend->isa());
    CHECK((transposed::by_op(*backend, weights, dys, 7) == wanted));
  }
}

TEST_CASE("packed weights give the same on both sides of where units are unpacked first") {
  const auto all = backends();
  std::uint64_t seed = 600;
  for (const Subject& subject : subjects()) {
    const std::int64_t cols = llama2cpp::find_format(subject.format).group == 256 ? 512 : 352;
    std::vector<Weight> weights{make_weight(subject, 90, cols, Scales::ordinary, ++seed)};
    if (!weights[0].format->quantized) continue;
    weights[0].int8_input = true;
    for (const std::int64_t tokens : {33, 96, 97}) {
      auto x = kernel_outputs::make(static_cast<std::size_t>(tokens * cols), Kind::ordinary, ++seed);
      weights[0].panels = {};
      const Bits wanted = expected(weights[0], x, tokens);
      for (const auto& backend : all) {
        CAPTURE(subject.format);
        CAPTURE(backend->isa());
        CAPTURE(tokens);
        weights[0].panels = {};
        backend->pack(weights[0]);
        CHECK((multiply(*backend, weights, x, tokens)[0] == wanted));
      }
    }
  }
}

TEST_CASE("one matmul takes weights of different formats together") {
  const auto all = backends();
  for (const std::int64_t tokens : {1, 2, 14}) {
    std::vector<Weight> weights;
    std::uint64_t seed = 77;
    for (const std::size_t i : {10U, 12U, 1U, 4U, 3U}) {
      weights.push_back(make_weight(subjects()[i], 40, 512, Scales::ordinary, ++seed));
      weights.back().int8_input = weights.back().format->quantized;
    }
    auto x = kernel_outputs::make(static_cast<std::size_t>(tokens * 512), Kind::ordinary, ++seed);
    for (const auto& backend : all) {
      CAPTURE(backend->isa());
      const std::vector<Bits> together = multiply(*backend, weights, x, tokens);
      for (std::size_t i = 0; i < weights.size(); ++i) CHECK((together[i] == expected(weights[i], x, tokens)));
    }
  }
}

TEST_CASE("matmul refuses rows that groups do not fill") {
  Weight w = make_weight(subjects()[4], 4, 64, Scales::ordinary, 1);
  w.cols = 48;
  std::vector<float> x(48);
  std::vector<Weight> weights{w};
  llama2cpp::CpuBackend backend(1, *llama2cpp::reference_kernels());
  CHECK_THROWS_WITH_AS(multiply(backend, weights, x, 1),
                       "[matmul] w is [4, 48], and groups of 32 (q4_0) do not fill its rows", std::invalid_argument);
}
