// pack_for_file: what a file of panels holds of a weight, whatever the model that it comes from wants of its input.
#include "model/pack_weight.h"

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/kernel_table.h"
#include "format/int8_group.h"
#include "format/panel_formats.h"
#include "tiny_model.h"

namespace {

llama2cpp::Weight weight() {
  std::vector<float> values;
  tiny::Random random(5);
  for (int i = 0; i < 24 * 40; ++i) values.push_back(random.uniform());
  return tiny::weight("w", 24, 40, values);
}

std::vector<std::byte> bytes_of(const llama2cpp::Buffer& panels) {
  return {panels.data(), panels.data() + panels.size()};
}

}  // namespace

TEST_CASE("pack_for_file makes the panels that matmul reads, and clears what the model wanted of the input") {
  llama2cpp::CpuBackend backend(2, *llama2cpp::scalar_kernels());
  llama2cpp::Weight plain = weight();
  llama2cpp::Weight other = plain;
  other.int8_input = true;  // of a model with int8 activations
  llama2cpp::pack_for_file(plain, backend, llama2cpp::kNoPoll);
  llama2cpp::pack_for_file(other, backend, llama2cpp::kNoPoll);
  CHECK_FALSE(other.int8_input);
  REQUIRE(plain.panels.size() > 0);
  CHECK(plain.panels.size() >= backend.packed_bytes(plain));
  CHECK(bytes_of(plain.panels) == bytes_of(other.panels));
}

TEST_CASE("pack_for_file refuses what no file of panels holds") {
  llama2cpp::CpuBackend backend(1, *llama2cpp::scalar_kernels());
  llama2cpp::Weight wide = weight();
  wide.format = &llama2cpp::kInt8Group;
  wide.group = wide.cols = llama2cpp::kMostInt8Group + 1;
  CHECK_THROWS_AS(llama2cpp::pack_for_file(wide, backend, llama2cpp::kNoPoll), std::invalid_argument);
  CHECK(wide.panels.size() == 0);
}
