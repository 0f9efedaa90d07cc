// MLX's matrix product with simdgroup matrices, as published, through the shim's header.
#include "mlx_utils.h"

#include "mlx/backend/metal/kernels/steel/gemm/gemm.h"
#include "mlx/backend/metal/kernels/steel/gemm/kernels/steel_gemm_fused.h"

bool align_K = false;
bool align_M = false;
bool align_N = false;
bool do_axpby = false;
bool has_batch = false;
bool use_out_source = false;

#undef kernel
#undef constant
#undef device
#undef thread
#undef threadgroup
#include "runs.h"

void gemm_source(const Gemm& of, const soft::ThreadIds& ids) {
  static_assert(sizeof(GEMMParams) == sizeof(of.parameters));
  const GEMMAddMMParams unused{0, 0, 0, 0.0f, 0.0f};  // of a sum with another matrix; it is referred to
  align_K = align_M = align_N = of.aligned;
  gemm<float, 64, 64, 16, 2, 2, false, true, float>(
      of.a, of.b, nullptr, of.out, reinterpret_cast<const GEMMParams*>(&of.parameters), &unused, nullptr, nullptr,
      ids.lane, ids.simdgroup, metal::uint3(ids.group.x, ids.group.y, ids.group.z),
      metal::uint3(ids.thread.x, ids.thread.y, ids.thread.z));
}
