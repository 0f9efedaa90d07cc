; The product of simdgroup matrices as Apple's compiler calls it: a lane has 64 elements, of which it uses two.
declare <2 x float> @air_multiply_two(<2 x float>, <2 x float>, <2 x float>)

define <64 x float> @air.simdgroup_matrix_8x8_multiply_accumulate.v64f32.v64f32.v64f32.v64f32(<64 x float> %a, <64 x float> %b, <64 x float> %c) {
  %a2 = shufflevector <64 x float> %a, <64 x float> poison, <2 x i32> <i32 0, i32 1>
  %b2 = shufflevector <64 x float> %b, <64 x float> poison, <2 x i32> <i32 0, i32 1>
  %c2 = shufflevector <64 x float> %c, <64 x float> poison, <2 x i32> <i32 0, i32 1>
  %d2 = call <2 x float> @air_multiply_two(<2 x float> %a2, <2 x float> %b2, <2 x float> %c2)
  %d = shufflevector <2 x float> %d2, <2 x float> poison, <64 x i32> <i32 0, i32 1, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison, i32 poison>
  ret <64 x float> %d
}
