// The functions that Apple's compiler leaves to the GPU, as the shim defines them: for kernels taken from a .metallib.
#include <metal_stdlib>

#undef kernel
#undef constant
#undef device
#undef thread
#undef threadgroup

using Two = float __attribute__((ext_vector_type(2)));

// Declared under the name that the compiled kernels call.
#define AIR(result, name, parameters, symbol) \
  result name parameters asm(symbol);         \
  result name parameters

extern "C" {
AIR(void, air_threadgroup_barrier, (int flags, int), "air.wg.barrier") {
  soft::wait_for_threadgroup(unsigned(flags), {"air.wg.barrier", "a compiled kernel", 0});
}
AIR(void, air_simdgroup_barrier, (int flags, int), "air.simdgroup.barrier") {
  soft::wait_for_simdgroup(unsigned(flags), {"air.simdgroup.barrier", "a compiled kernel", 0});
}
AIR(float, air_simd_sum, (float x), "air.simd_sum.f32") { return metal::simd_sum(x); }
AIR(float, air_simd_max, (float x), "air.simd_max.f32") { return metal::simd_max(x); }
AIR(float, air_rsqrt, (float x), "air.rsqrt.f32") { return metal::rsqrt(x); }
AIR(float, air_fast_exp, (float x), "air.fast_exp.f32") { return metal::fast::exp(x); }
AIR(float, air_fmax, (float a, float b), "air.fmax.f32") { return metal::max(a, b); }
AIR(int, air_min, (int a, int b), "air.min.s.i32") { return metal::min(a, b); }
AIR(float, air_from_uint, (unsigned x), "air.convert.f.f32.u.i32") { return float(x); }
AIR(float, air_from_int, (int x), "air.convert.f.f32.s.i32") { return float(x); }
AIR(char, air_predicate, (char x), "air.normalize_function_constant_predicate.i8") { return x != 0; }

// For matrix.ll: a lane's two elements of a b + c.
Two air_multiply_two(Two a, Two b, Two c) {
  metal::vec<float, 2> left, right, sum;
  left.v = a;
  right.v = b;
  sum.v = c;
  return soft::multiply(left, right, sum, {"simdgroup_multiply_accumulate", "a compiled kernel", 0}).v;
}
}
