#include "format/weight_rows.h"

#include <algorithm>

namespace llama2cpp {
namespace {

// Each plane begins in a cache line of its own.
std::size_t to_line(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

std::size_t bytes_of_rows(const Plane& plane, std::int64_t rows) {
  return static_cast<std::size_t>(rows * plane.row_bytes);
}

}  // namespace

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
