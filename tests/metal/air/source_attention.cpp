// MLX's attention for one query, as published, through the shim's header.
#include "mlx_utils.h"

#include "mlx/backend/metal/kernels/sdpa_vector.h"

bool bool_mask = false;
bool do_causal = false;
bool float_mask = false;
bool has_mask = false;
bool has_sinks = false;
bool query_transposed = false;
int blocks = 1;

#undef kernel
#undef constant
#undef device
#undef thread
#undef threadgroup
#include "runs.h"

void attention_source(const Attention& of, const soft::ThreadIds& ids) {
  do_causal = of.causal;
  const unsigned long head = of.keys * 64ul, row = 64;
  sdpa_vector<half, 64, 64>(static_cast<const half*>(of.q), static_cast<const half*>(of.k),
                            static_cast<const half*>(of.v), static_cast<half*>(of.out), of.group, of.keys, head, row,
                            head, row, of.scale, nullptr, nullptr, 0, 0, 0, nullptr, 0,
                            metal::uint3(ids.group.x, ids.group.y, ids.group.z),
                            metal::uint3(ids.groups.x, ids.groups.y, ids.groups.z), ids.simdgroup, ids.lane);
}
