#include "backend/metal/tools.h"

#include <algorithm>
#include <limits>

#include "backend/metal/kernels/args.h"
#include "core/check.h"

namespace llama2cpp::metal {

std::uint32_t size32(std::int64_t size, const char* op) {
  LLAMA2CPP_CHECK(size >= 0 && size <= std::numeric_limits<std::uint32_t>::max(), "[", op, "] a size is ", size,
                  ", more than kernels count");
  return static_cast<std::uint32_t>(size);
}

Operand Tools::operand(const Tensor& tensor, Access access, const char* op, const char* name) const {
  const std::int64_t rows = tensor.rows();
  const std::int64_t elements = rows == 0 ? 0 : (rows - 1) * tensor.row_stride + tensor.columns();
  const auto bytes = static_cast<std::size_t>(elements * size_of(tensor.dtype));
  return {memory.resolve(tensor.data, bytes, op, name), bytes, access, nullptr};
}

Tensor Tools::scratch(Scratch kind, std::int64_t rows, std::int64_t columns) {
  Buffer& piece = scratch_[static_cast<std::size_t>(kind)];
  const auto bytes = static_cast<std::size_t>(rows * columns) * sizeof(float);
  // What is let go of here stays until the pass that uses it is done: the pass holds on to it.
  if (piece.size() < bytes) piece = memory.alloc(bytes + bytes / 2);
  return {reinterpret_cast<float*>(piece.data()), {rows, columns}};
}

Grid by_pieces(std::int64_t rows, std::int64_t columns, std::int64_t piece, const char* op) {
  const std::int64_t threads = std::min<std::int64_t>({256, piece, (columns + 31) / 32 * 32});
  return {.groups = {size32((columns + piece - 1) / piece, op), size32(rows, op), 1},
          .threads = {static_cast<std::uint32_t>(threads), 1, 1}};
}

void encode_normalize(Tools& tools, const Tensor& x, const Norm& norm, const Tensor& out, const char* op) {
  const bool in_place = same(out, x);
  const Tensor& scale = norm.scale ? norm.scale : norm.gain;
  const Tensor& gain = norm.gain ? norm.gain : norm.scale;
  const Kernel& kernel = tools.device.kernel("norm", in_place ? "rms_normalize_in_place" : "rms_normalize",
                                             {{0, norm.scale ? 1U : 0U}, {1, norm.gain ? 1U : 0U}});
  const NormArgs args{.columns = size32(x.columns(), op),
                      .x_stride = size32(x.row_stride, op),
                      .scale_stride = size32(norm.scale ? norm.scale.row_stride : 0, op),
                      .out_stride = size32(out.row_stride, op),
                      .eps = 0.0F};
  const Grid grid = by_pieces(x.rows(), x.columns(), kColumnPiece, op);
  const Cost cost{.bytes = 8.0 * static_cast<double>(x.rows() * x.columns())};
  const Operand divisor = tools.reads(scale, op, "norm.scale");
  const Operand factor = tools.reads(gain, op, "norm.gain");
  if (in_place) {
    tools.pass.dispatch(kernel, {tools.operand(x, Access::read_write, op, "x"), divisor, factor}, args, grid, cost);
  } else {
    tools.pass.dispatch(kernel, {tools.reads(x, op, "x"), divisor, factor, tools.writes(out, op, "out")}, args, grid,
                        cost);
  }
}

}  // namespace llama2cpp::metal
