// LLM.int8() as the backend multiplies it, held to sums that are worked out here from the weight's own bytes: outliers
// decided for each row of x or fixed, on every instruction set, packed and not, whatever else is in the call.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "format/llm_int8.h"
#include "kernel_inputs.h"
#include "transposed.h"

using kernel_outputs::Bits;
using kernel_outputs::Kind;
using kernel_outputs::Random;
using llama2cpp::Weight;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <class T>
llama2cpp::Plane plane_of(const std::vector<T>& values, std::int64_t row_bytes) {
  const std::size_t bytes = values.size() * sizeof(T);
  const llama2cpp::Buffer owner = llama2cpp::Buffer::heap(bytes);
  std::memcpy(owner.data(), values.data(), bytes);
  return {owner.data(), bytes, row_bytes, owner};
}

struct Subject {
  std::int64_t rows = 40;
  std::int64_t cols = 300;
  std::vector<std::int32_t> fixed{};
  float threshold = 0.0F;
};

Weight weight_of(const Subject& s, std::uint64_t seed, Kind kind = Kind::ordinary) {
  Random random(seed);
  Weight w;
  w.format = &llama2cpp::find_format("llm_int8");
  w.rows = s.rows;
  w.cols = s.cols;
  w.group = s.cols;
  w.int8_input = true;
  w.outlier_threshold = s.threshold;
  std::vector<std::int8_t> q;
  for (std::int64_t i = 0; i < s.rows * s.cols; ++i) {
    const std::uint32_t draw = random.next();
    q.push_back(static_cast<std::int8_t>(draw % 9 == 0 ? -128 : static_cast<int>(draw % 256) - 128));
  }
  w.planes[0] = plane_of(q, s.cols);
  w.planes[1] = plane_of(kernel_outputs::make(static_cast<std::size_t>(s.rows), kind, seed + 1), 4);
  if (!s.fixed.empty()) {
    std::vector<std::uint16_t> halves;
    for (const float x : kernel_outputs::make(static_cast<std::size_t>(s.rows) * s.fixed.size(), kind, seed + 2)) {
      halves.push_back(llama2cpp::float_to_half(x));
    }
    w.planes[2] = plane_of(s.fixed, 0);
    w.planes[3] = plane_of(halves, static_cast<std::int64_t>(s.fixed.size()) * 2);
  }
  return w;
}

bool is_fixed(const Weight& w, std::int64_t k) {
  const auto columns = llama2cpp::fixed_outliers(w);
  return std::find(columns.begin(), columns.end(), k) != columns.end();
}

float expected(const Weight& w, std::int64_t row, const float* x) {
  std::vector<float> decoded(static_cast<std::size_t>(w.cols));
  w.decode_row(row, decoded.data());
  const auto is_outlier = [&](std::int64_t k) {
    return is_fixed(w, k) || (w.outlier_threshold > 0.0F && std::fabs(x[k]) >= w.outlier_threshold);
  };
  float most = 0.0F;
  bool finite = true;
  for (std::int64_t k = 0; k < w.cols; ++k) {
    if (is_outlier(k)) continue;
    finite = finite && std::isfinite(x[k]);
    most = std::max(most, std::fabs(x[k]));
  }
  const float scale = finite ? most / 127.0F : kNan;
  long sum = 0;
  for (std::int64_t k = 0; k < w.cols; ++k) {
    if (is_outlier(k) || !finite || scale == 0.0F) continue;
    const auto q = static_cast<std::int8_t>(w.planes[0].data[row * w.cols + k]);
    sum += q * std::lrint(std::max(-127.0F, std::min(127.0F, x[k] / scale)));
  }
  float largest = 0.0F;
  std::memcpy(&largest, w.planes[1].data + row * 4, 4);
  float p = std::fma(largest / 127.0F * scale, static_cast<float>(sum), 0.0F);
  for (std::int64_t k = 0; k < w.cols; ++k) {
    if (is_outlier(k)) p = std::fma(decoded[static_cast<std::size_t>(k)], x[k], p);
  }
  return p;
}

Bits expected(const Weight& w, const std::vector<float>& x) {
  Bits bits;
  for (const float* from = x.data(); from != x.data() + x.size(); from += w.cols) {
    for (std::int64_t row = 0; row < w.rows; ++row) bits.add(expected(w, row, from));
  }
  return bits;
}

std::vector<std::unique_ptr<llama2cpp::CpuBackend>> backends() {
  std::vector<std::unique_ptr<llama2cpp::CpuBackend>> all;
  for (const char* isa :
       {"reference", "scalar", "neon-base", "neon-dotprod", "neon-i8mm", "avx2", "avx512-base", "avx512-vnni"}) {
    for (const int threads : {1, 3}) {
      try {
        all.push_back(std::make_unique<llama2cpp::CpuBackend>(threads, llama2cpp::select_kernels(isa)));
      } catch (const std::invalid_argument&) {
        continue;  // not on this machine
      }
    }
  }
  return all;
}

std::vector<Bits> multiply(llama2cpp::Backend& backend, const std::vector<Weight>& weights, std::vector<float>& x) {
  const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / weights[0].cols;
  std::vector<std::vector<float>> memory;
  std::vector<const Weight*> pointers;
  for (const Weight& w : weights) {
    pointers.push_back(&w);
    memory.emplace_back(static_cast<std::size_t>(tokens * w.rows + 1), kernel_outputs::kGuard);
  }
  std::vector<llama2cpp::Tensor> outs;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    outs.emplace_back(memory[i].data(), std::initializer_list<std::int64_t>{tokens, weights[i].rows});
  }
  const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
  backend.matmul(pointers, llama2cpp::Tensor(x.data(), {tokens, weights[0].cols}), outs, {});
  std::vector<Bits> results(weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    CHECK(memory[i].back() == kernel_outputs::kGuard);
    memory[i].pop_back();
    results[i].add(memory[i]);
  }
  return results;
}

void check(const std::vector<std::unique_ptr<llama2cpp::CpuBackend>>& all, std::vector<Weight> weights,
           std::vector<float> x) {
  std::vector<Bits> wanted;
  for (const Weight& w : weights) wanted.push_back(expected(w, x));
  for (const auto& backend : all) {
    CAPTURE(backend->isa());
    CAPTURE(weights[0].cols);
    for (Weight& w : weights) w.panels = {};
    CHECK((multiply(*backend, weights, x) == wanted));
    for (Weight& w : weights) {
      backend->pack(w);
      CHECK(w.panels.size() == backend->packed_bytes(w));
    }
    CHECK((multiply(*backend, weights, x) == wanted));
  }
}

std::vector<float> ordinary(std::int64_t tokens, std::int64_t cols, std::uint64_t seed) {
  return kernel_outputs::make(static_cast<std::size_t>(tokens * cols), Kind::ordinary, seed);
}

}  // namespace

TEST_CASE("LLM.int8(): outliers of each row, and fixed ones, are what the formula says") {
  const auto all = backends();
  CHECK(all.size() >= 4);
  std::uint64_t seed = 1;
  for (const std::int64_t cols : {1, 6, 64, 300, 1030}) {
    std::vector<std::int32_t> some;
    for (std::int32_t k = 0; k < cols; k += 1 + k % 37) some.push_back(k);
    std::vector<std::int32_t> every;
    for (std::int32_t k = 0; k < cols; ++k) every.push_back(k);
    for (const std::int64_t tokens : {1, 2, 3, 14}) {
      for (const Subject& s : {Subject{.cols = cols}, Subject{.cols = cols, .threshold = 0.98F},
                               Subject{.cols = cols, .threshold = 0.25F}, Subject{.cols = cols, .threshold = 1e-30F},
                               Subject{.cols = cols, .fixed = some}, Subject{.cols = cols, .fixed = every}}) {
        const Weight w = weight_of(s, ++seed);
        check(all, {w}, ordinary(tokens, cols, ++seed));
      }
    }
  }
}

TEST_CASE("LLM.int8(): the transposed product, fixed columns included") {
  const auto all = backends();
  std::uint64_t seed = 700;
  for (const Subject& s : {Subject{}, Subject{.rows = 17, .cols = 67, .threshold = 6.0F}, Subject{.fixed = {3, 50}}}) {
    for (const bool rounded : {false, true}) {
      Weight w = weight_of(s, ++seed);
      w.int8_input = rounded;
      transposed::check(all, w, 5, ++seed);
    }
  }
}

TEST_CASE("LLM.int8(): extreme inputs") {
  const auto all = backends();
  std::uint64_t seed = 100;
  for (const Kind kind : kernel_outputs::kKinds) {
    for (const float threshold : {0.0F, 6.0F}) {
      const Subject own{.threshold = threshold};
      const Subject fixed{.fixed = {0, 3, 4, 299}};
      const auto x = kernel_outputs::make(static_cast<std::size_t>(5 * own.cols), kind, ++seed);
      check(all, {weight_of(own, ++seed, kind)}, x);
      check(all, {weight_of(fixed, ++seed, kind)}, x);
    }
  }
}

TEST_CASE("LLM.int8(): what is not finite stays in its own row") {
  const auto all = backends();
  for (const float odd : {kNan, kInfinity, -kInfinity}) {
    for (const Subject& s : {Subject{.threshold = 6.0F}, Subject{}, Subject{.fixed = {7}}}) {
      auto x = ordinary(4, s.cols, 5);
      x[static_cast<std::size_t>(s.cols + 7)] = odd;
      x[static_cast<std::size_t>(3 * s.cols + 8)] = odd;
      const Weight w = weight_of(s, 6);
      // With a threshold an infinity is an outlier, and what a zero times it gives is a NaN of one output.
      const bool all_nan = std::isnan(odd) || s.threshold == 0.0F;
      CHECK(std::isnan(expected(w, 0, x.data() + 3 * s.cols)) == all_nan);
      CHECK(std::isfinite(expected(w, 0, x.data())));
      check(all, {w}, x);
    }
  }
}

TEST_CASE("LLM.int8(): a row's bits do not depend on the other rows") {
  for (const auto& backend : backends()) {
    const Weight w = weight_of({.threshold = 0.9F}, 8);
    auto x = ordinary(13, w.cols, 9);
    for (std::int64_t k = 0; k < w.cols; ++k) x[static_cast<std::size_t>(5 * w.cols + k)] *= 100.0F;
    const Bits together = multiply(*backend, {w}, x)[0];
    Bits apart;
    for (std::int64_t t = 0; t < 13; ++t) {
      std::vector<float> one(x.begin() + t * w.cols, x.begin() + (t + 1) * w.cols);
      std::vector<float> memory(static_cast<std::size_t>(w.rows));
      const llama2cpp::Tensor out(memory.data(), {1, w.rows});
      const Weight* const pointer = &w;
      const llama2cpp::Backend::Lease lease(*backend, llama2cpp::kNoPoll);
      backend->matmul({&pointer, 1}, llama2cpp::Tensor(one.data(), {1, w.cols}), {&out, 1}, {});
      apart.add(memory);
    }
    CHECK((together == apart));
  }
}

TEST_CASE("LLM.int8(): one matmul takes weights with outliers of their own, and others") {
  const auto all = backends();
  for (const std::int64_t tokens : {1, 2, 14}) {
    check(all, {weight_of({.threshold = 0.9F}, 1), weight_of({.fixed = {2, 5}}, 2), weight_of({.fixed = {2, 6}}, 3)},
          ordinary(tokens, 300, 4));
  }
}

TEST_CASE("LLM.int8(): floats times the same weights, fixed columns included") {
  Weight w = weight_of({.cols = 600, .fixed = {0, 255, 256, 599}}, 12);
  w.int8_input = false;
  auto x = ordinary(3, w.cols, 13);
  Bits wanted;
  std::vector<float> decoded(600);
  for (std::int64_t t = 0; t < 3; ++t) {
    for (std::int64_t row = 0; row < w.rows; ++row) {
      w.decode_row(row, decoded.data());
      float largest = 0.0F;
      std::memcpy(&largest, w.planes[1].data + row * 4, 4);
      const auto q = static_cast<std::int8_t>(w.planes[0].data[row * 600 + 1]);
      CHECK(decoded[1] == static_cast<float>(q) * (largest / 127.0F));
      CHECK(decoded[256] == llama2cpp::half_at(w.planes[3].data + row * 8 + 4));
      float sum = 0.0F;
      for (std::size_t begin = 0; begin < 600; begin += 256) {
        float p = 0.0F;
        for (std::size_t k = begin; k < std::min<std::size_t>(600, begin + 256); ++k) {
          p = std::fma(decoded[k], x[static_cast<std::size_t>(t) * 600 + k], p);
        }
        sum = sum + p;
      }
      wanted.add(sum);
    }
  }
  for (const auto& backend : backends()) CHECK((multiply(*backend, {w}, x)[0] == wanted));
}

TEST_CASE("LLM.int8(): sums at the limit of 32 bits, and a row that is too long") {
  Weight w = weight_of({.rows = 1, .cols = llama2cpp::kMostLlmInt8Columns}, 14);
  std::vector<std::int8_t> least(static_cast<std::size_t>(w.cols), -128);
  w.planes[0] = plane_of(least, w.cols);
  std::vector<float> x(static_cast<std::size_t>(w.cols), -1.0F);
  check(backends(), {w}, x);

  w.cols += 1;
  x.push_back(1.0F);
  std::vector<float> out(1);
  const llama2cpp::Tensor to(out.data(), {1, 1});
  const Weight* const pointer = &w;
  llama2cpp::CpuBackend backend(1, *llama2cpp::reference_kernels());
  const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
  CHECK_THROWS_WITH_AS(backend.matmul({&pointer, 1}, llama2cpp::Tensor(x.data(), {1, w.cols}), {&to, 1}, {}),
                       doctest::Contains("at most 132104 columns"), std::invalid_argument);
}

TEST_CASE("LLM.int8(): panels are about as large as the file") {
  llama2cpp::CpuBackend backend(1, *llama2cpp::reference_kernels());
  const Weight w = weight_of({.rows = 64, .cols = 1024, .fixed = {1, 2, 3}}, 15);
  const auto file = w.planes[0].bytes + w.planes[1].bytes + w.planes[3].bytes;
  CHECK(backend.packed_bytes(w) <= file + 4 * 64);
}

TEST_CASE("LLM.int8(): rows are rounded as bitsandbytes rounds them") {
  const float row[] = {2.0F, -1.0F, 0.25F, 0.0F, -0.0078740157F, 1e-9F};
  std::int8_t q[6];
  CHECK(llama2cpp::encode_llm_int8(row, 6, q) == 2.0F);
  CHECK(std::vector<int>(q, q + 6) == std::vector<int>{127, -64, 16, 0, 0, 0});  // -63.5 and -0.5 go to even
  const float zeros[] = {0.0F, -0.0F, 1e-9F};                                    // the last is none in f16
  CHECK(llama2cpp::encode_llm_int8(zeros, 3, q) == 0.0F);
  CHECK(std::vector<int>(q, q + 3) == std::vector<int>{0, 0, 0});
}
