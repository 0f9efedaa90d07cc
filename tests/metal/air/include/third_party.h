// What MLX's kernels need of Metal beyond what ours may use (metal_stdlib), to be compiled unchanged but for shared arrays
// that kernels declare: third_party.py makes those static, one threadgroup runs at a time.
#pragma once

#include <metal_stdlib>

#define METAL_FUNC inline __attribute__((always_inline))

using bfloat = __bf16;

namespace metal {

using std::bool_constant;
using std::conditional;
using std::is_integral;
using std::remove_cv_t;
template <class T>
using remove_addrspace_t = std::remove_const_t<T>;  // a constexpr variable is in constant memory
using ulong3 = vec<ulong, 3>;

}  // namespace metal
