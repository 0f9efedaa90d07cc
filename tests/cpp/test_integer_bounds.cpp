// How many products matmul adds up in 32 bits, in every format that it multiplies as integers: the largest sums that the
// limits let through are right on every instruction set, and what lies above them is refused by matmul itself.
//
//   int8_group        a group, up to kMostInt8Group columns
//   llm_int8          a row, up to kMostLlmInt8Columns columns
//   blocks of 32      a block, or with scales of scales 256 columns: groups and rows of any length
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "format/int8_group.h"
#include "format/llm_int8.h"

using llama2cpp::Tensor;
using llama2cpp::Weight;

namespace {

llama2cpp::Plane plane_of(std::size_t bytes, int value, std::int64_t row_bytes) {
  const llama2cpp::Buffer owner = llama2cpp::Buffer::heap(bytes);
  std::memset(owner.data(), value, bytes);
  return {owner.data(), bytes, row_bytes, owner};
}

llama2cpp::Plane floats_of(std::int64_t count, float value, std::int64_t row_bytes) {
  const auto bytes = static_cast<std::size_t>(count) * sizeof(float);
  const llama2cpp::Buffer owner = llama2cpp::Buffer::heap(bytes);
  for (std::int64_t i = 0; i < count; ++i) std::memcpy(owner.data() + i * 4, &value, sizeof(value));
  return {owner.data(), bytes, row_bytes, owner};
}

Weight int8_weight(const std::string& format, std::int64_t rows, std::int64_t cols, std::int64_t group, int value) {
  Weight w;
  w.format = &llama2cpp::find_format(format);
  w.rows = rows;
  w.cols = cols;
  w.group = group;
  w.int8_input = true;
  w.planes[0] = plane_of(static_cast<std::size_t>(rows * cols), value, cols);
  const std::int64_t scales = cols / group;
  w.planes[1] = floats_of(rows * scales, format == "llm_int8" ? 127.0F : 1.0F, scales * 4);
  return w;
}

// Every q is 255, every zero 0, every scale 1.
Weight gptq8_weight(std::int64_t rows, std::int64_t cols) {
  Weight w;
  w.format = &llama2cpp::find_format("gptq8_v2");
  w.rows = rows;
  w.cols = cols;
  w.group = cols;
  w.int8_input = true;
  w.planes[0] = plane_of(static_cast<std::size_t>(rows * cols), 0xFF, 0);
  w.planes[1] = plane_of(static_cast<std::size_t>(rows) * 2, 0, 0);
  for (std::int64_t row = 0; row < rows; ++row) w.planes[1].owner.data()[row * 2 + 1] = std::byte{0x3C};
  w.planes[2] = plane_of(static_cast<std::size_t>(rows), 0, 0);
  return w;
}

std::vector<std::unique_ptr<llama2cpp::CpuBackend>> backends() {
  std::vector<std::unique_ptr<llama2cpp::CpuBackend>> all;
  for (const char* isa :
       {"reference", "scalar", "neon-base", "neon-dotprod", "neon-i8mm", "avx2", "avx512-base", "avx512-vnni"}) {
    try {
      all.push_back(std::make_unique<llama2cpp::CpuBackend>(1, llama2cpp::select_kernels(isa)));
    } catch (const std::invalid_argument&) {
      continue;  // not on this machine
    }
  }
  return all;
}

// The first output for a row of x that is `value` everywhere.
float product(llama2cpp::CpuBackend& backend, const Weight& w, float value) {
  std::vector<float> x(static_cast<std::size_t>(w.cols), value);
  std::vector<float> out(static_cast<std::size_t>(w.rows));
  const Weight* const weights[] = {&w};
  const Tensor outs[] = {Tensor(out.data(), {1, w.rows})};
  const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
  backend.matmul(weights, Tensor(x.data(), {1, w.cols}), outs, {});
  return out[0];
}

}  // namespace

TEST_CASE("the largest integer sums of every format fit") {
  const std::int64_t most = llama2cpp::kMostInt8Group;
  const std::int64_t row = llama2cpp::kMostLlmInt8Columns;
  for (const auto& backend : backends()) {
    CAPTURE(backend->isa());
    for (const float sign : {1.0F, -1.0F}) {
      for (const int value : {-128, 127}) {
        CAPTURE(value);
        const double group_sum = static_cast<double>(most) * value * double{sign};
        CHECK(product(*backend, int8_weight("int8_group", 3, most, most, value), sign) ==
              doctest::Approx(group_sum).epsilon(1e-6));
        const double row_sum = static_cast<double>(row) * value * double{sign};
        CHECK(product(*backend, int8_weight("llm_int8", 1, row, row, value), sign) ==
              doctest::Approx(row_sum).epsilon(1e-6));
      }
      const std::int64_t cols = 1 << 18;  // 255 * 127 of them are far above 32 bits
      CHECK(product(*backend, gptq8_weight(16, cols), sign) ==
            doctest::Approx(static_cast<double>(cols) * 255 * double{sign}).epsilon(1e-5));
    }
  }
}

TEST_CASE("matmul refuses groups and rows whose sums may not fit") {
  const std::int64_t group = llama2cpp::kMostInt8Group * 2;
  const std::int64_t row = llama2cpp::kMostLlmInt8Columns + 1;
  for (const auto& backend : backends()) {
    CHECK_THROWS_WITH_AS(product(*backend, int8_weight("int8_group", 1, group, group, 1), 1.0F),
                         doctest::Contains("in groups of 131072, expected at most 65536"), std::invalid_argument);
    CHECK_THROWS_WITH_AS(product(*backend, int8_weight("llm_int8", 1, row, row, 1), 1.0F),
                         doctest::Contains("expected at most 132104 columns"), std::invalid_argument);
  }
}
