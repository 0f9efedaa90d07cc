// libFuzzer: no bytes may crash the checkpoint readers, and every byte of every weight of a file that opens must lie
// inside the file. Start it with a few small files as corpus; tests/checkpoints.py writes them when run as a program.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "core/check.h"
#include "io/checkpoint.h"

namespace {

void check(bool condition) {
  if (!condition) std::abort();  // libFuzzer's way to report
}

void check_weight(const llama2cpp::Weight& weight, const llama2cpp::Buffer& file) {
  check(weight.rows > 0 && weight.cols > 0);
  for (const llama2cpp::Plane& plane : weight.planes) {
    if (plane.data == nullptr) continue;
    check(plane.data >= file.data() && plane.bytes <= file.size());
    check(static_cast<std::size_t>(plane.data - file.data()) <= file.size() - plane.bytes);
    check(static_cast<std::size_t>(plane.row_bytes * weight.rows) == plane.bytes);
  }
  std::vector<float> row(static_cast<std::size_t>(weight.cols));
  for (std::int64_t r = 0; r < weight.rows; ++r) weight.decode_row(r, row.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const llama2cpp::Buffer file = llama2cpp::Buffer::wrap(data, size, nullptr);
  try {
    const llama2cpp::Checkpoint checkpoint = llama2cpp::open_checkpoint(file, "fuzz");
    for (const auto& [name, weight] : checkpoint.weights) check_weight(weight, file);
  } catch (const llama2cpp::FormatError&) {  // the only exception that a file may cause
  }
  return 0;
}
