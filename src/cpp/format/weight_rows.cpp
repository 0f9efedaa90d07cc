#include "format/weight_rows.h"

#include <algorithm>

#include "core/check.h"
#include "format/f32.h"

namespace llama2cpp {
namespace {

// Each plane begins in a cache line of its own.
std::size_t to_line(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

std::size_t bytes_of_rows(const Plane& plane, std::int64_t rows) {
  return static_cast<std::size_t>(rows * plane.row_bytes);
}

std::vector<Buffer> files_of(const Weight& weight) {
  std::vector<Buffer> files;
  add_files(weight, files);
  return files;
}

}  // namespace

void decode(const Weight& weight, float* out) {
  const std::vector<Buffer> files = files_of(weight);
  const FileReads reads(files);
  for (std::int64_t row = 0; row < weight.rows; ++row) weight.decode_row(row, out + row * weight.cols);
  reads.check();
}

void decode_rows(const Weight& weight, std::span<const std::int64_t> rows, float* out) {
  for (const std::int64_t row : rows) {
    LLAMA2CPP_CHECK(row >= 0 && row < weight.rows, "row is ", row, ", but '", weight.name, "' has ", weight.rows,
                    " rows");
  }
  const std::vector<Buffer> files = files_of(weight);
  const FileReads reads(files);
  for (const std::int64_t row : rows) {
    weight.decode_row(row, out);
    out += weight.cols;
  }
  reads.check();
}

void check_columns(const Weight& weight, std::int64_t begin, std::int64_t count) {
  LLAMA2CPP_CHECK(begin >= 0 && count >= 0 && count <= weight.cols && begin <= weight.cols - count, "columns are ",
                  begin, " to ", begin, " + ", count, ", but '", weight.name, "' has ", weight.cols);
}

void decode_columns(const Weight& weight, std::int64_t begin, std::int64_t count, float* out) {
  check_columns(weight, begin, count);
  const Format& format = *weight.format;
  const std::int64_t unit = format.integers != nullptr ? 32 : std::max<std::int64_t>(format.group, 1);
  const std::int64_t first = begin / unit * unit;
  const std::int64_t last = std::min(weight.cols, (begin + count + unit - 1) / unit * unit);
  const std::vector<Buffer> files = files_of(weight);
  const FileReads reads(files);
  std::vector<float> decoded(static_cast<std::size_t>(last - first));
  for (std::int64_t row = 0; row < weight.rows && count > 0; ++row) {
    format.decode(weight, row, first, last - first, decoded.data());
    out = std::copy_n(decoded.data() + (begin - first), count, out);
  }
  reads.check();
}

void check_files(const Weight& weight) { FileReads(files_of(weight)).check(); }

const float* find_floats(const Weight& weight) {
  const std::byte* const data = weight.planes[0].data;
  const bool aligned = reinterpret_cast<std::uintptr_t>(data) % alignof(float) == 0;
  return weight.format == &kF32 && aligned ? reinterpret_cast<const float*>(data) : nullptr;
}

Weight with_added(const Weight& vector, float number) {
  Weight sum = vector;
  sum.format = &kF32;
  sum.group = kF32.group;
  Plane& plane = sum.planes[0];
  plane.row_bytes = row_bytes(kF32, vector.cols);
  plane.bytes = static_cast<std::size_t>(plane.row_bytes);
  plane.owner = Buffer::heap(plane.bytes);
  plane.data = plane.owner.data();
  auto* const numbers = reinterpret_cast<float*>(plane.owner.data());
  decode(vector, numbers);
  for (std::int64_t i = 0; i < vector.cols; ++i) numbers[i] += number;
  return sum;
}

bool is_mapped(const Weight& weight) {
  return std::ranges::any_of(weight.planes, [](const Plane& plane) { return plane.owner.mapped(); });
}

void add_files(const Weight& weight, std::vector<Buffer>& files) {
  for (const Plane& plane : weight.planes) plane.owner.add_to(files);
}

bool has_file_rows(const Weight& weight) {
  return is_mapped(weight) && std::ranges::all_of(weight.planes, [](const Plane& plane) {
           return plane.owner.mapped() == (plane.row_bytes > 0);
         });
}

std::size_t rows_memory(const Weight& weight, std::int64_t rows) {
  std::size_t bytes = 0;
  for (const Plane& plane : weight.planes) bytes += to_line(bytes_of_rows(plane, rows));
  return bytes;
}

Weight read_rows(const Weight& weight, std::int64_t first, std::int64_t rows, std::byte* memory) {
  Weight part;
  part.format = weight.format;
  part.rows = rows;
  part.cols = weight.cols;
  part.group = weight.group;
  part.int8_input = weight.int8_input;
  part.bf16_input = weight.bf16_input;
  part.outlier_threshold = weight.outlier_threshold;
  part.order = weight.order;
  for (std::size_t i = 0; i < weight.planes.size(); ++i) {
    const Plane& from = weight.planes[i];
    if (!from.owner.mapped()) {
      part.planes[i] = from;
      continue;
    }
    const std::size_t bytes = bytes_of_rows(from, rows);
    from.owner.read(from.data + first * from.row_bytes, {memory, bytes});
    part.planes[i] = {memory, bytes, from.row_bytes, {}};
    memory += to_line(bytes);
  }
  return part;
}

}  // namespace llama2cpp
