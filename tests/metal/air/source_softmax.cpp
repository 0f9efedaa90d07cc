// MLX's softmax of a row, as published, through the shim's header.
#include "mlx_utils.h"

#define SOFTMAX_N_READS 4

#include "mlx/backend/metal/kernels/softmax.h"

#undef kernel
#undef constant
#undef device
#undef thread
#undef threadgroup
#include "runs.h"

void softmax_source(const Softmax& of, const soft::ThreadIds& ids) {
  softmax_single_row<float>(of.x, of.out, of.columns, ids.group.x, ids.thread.x, ids.lane, ids.simdgroup);
}
