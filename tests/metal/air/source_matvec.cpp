// MLX's product of a 4-bit matrix and a vector, as published, through the shim's header.
#include "mlx_utils.h"

// In the order in which they need each other.
#include "mlx/backend/metal/kernels/steel/gemm/gemm.h"

#include "mlx/backend/metal/kernels/quantized_utils.h"

#include "mlx/backend/metal/kernels/quantized.h"

#undef kernel
#undef constant
#undef device
#undef thread
#undef threadgroup
#include "runs.h"

void matvec_source(const Matvec& of, const soft::ThreadIds& ids) {
  const int zero = 0;
  const long strides = 0;
  affine_qmv_fast<float, 64, 4, false, false, false, 4>(
      of.codes, of.scales, of.biases, of.x, of.out, of.columns, of.rows, zero, &zero, &strides, zero, &zero, &strides,
      &strides, &strides, metal::uint3(ids.group.x, ids.group.y, ids.group.z), ids.simdgroup, ids.lane);
}
