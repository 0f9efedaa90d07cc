// x . w^T for few tokens: each weight is decoded once and multiplied by up to four tokens' inputs. All is bound by how fast
// the weights come.

// out[t][row] = sum of w[row][k] * x[t][k] over k.
//
// A simdgroup has kRows rows and kTokens tokens. Its lane l decodes pieces l, l + 32, l + 64, ... of each row, so that
// neighbouring lanes read neighbouring bytes, and sums up what is its own; then the lanes' sums are added up.
// Threadgroups [rows / (2 kRows), tokens / kTokens] of two simdgroups.
template <uint kTokens>
void matvec(thread const Format& weights, device const float* x, device float* out, constant ProductArgs& args,
            uint3 group, uint simdgroup, uint lane) {
  const uint first_row = (group.x * 2 + simdgroup) * Format::kRows;
  const uint first_token = group.y * kTokens;
  const uint columns = args.weight.columns;

  float sums[Format::kRows][kTokens];
  for (uint r = 0; r < Format::kRows; ++r) {
    for (uint t = 0; t < kTokens; ++t) sums[r][t] = 0.0f;
  }

  for (uint piece = lane; piece < pieces_of<Format>(columns); piece += kSimdgroup) {
    float inputs[kTokens][Format::kSize];
    for (uint t = 0; t < kTokens; ++t) {
      const uint token = min(first_token + t, args.tokens - 1);  // one that is not there repeats the last, unused
      load_inputs<Format>(x + ulong(token) * args.x_stride, columns, piece, inputs[t]);
    }
    for (uint r = 0; r < Format::kRows; ++r) {
      float w[Format::kSize];
      weights.load(min(first_row + r, args.weight.rows - 1), piece, w);
      for (uint t = 0; t < kTokens; ++t) sums[r][t] += dot_of<Format>(w, inputs[t]);
    }
  }

  for (uint t = 0; t < kTokens; ++t) {
    for (uint r = 0; r < Format::kRows; ++r) {
      const float sum = simd_sum(sums[r][t]);
      const bool exists = first_row + r < args.weight.rows && first_token + t < args.tokens;
      if (lane == 0 && exists) out[ulong(first_token + t) * args.out_stride + first_row + r] = sum;
    }
  }
}

kernel void matvec_1(device const uchar* codes [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                     device const uchar* zeros [[buffer(2)]], device const uchar* groups [[buffer(3)]],
                     device const float* x [[buffer(4)]], device float* out [[buffer(5)]],
                     constant ProductArgs& args [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const Format weights{{codes, scales, zeros, groups}, &args.weight};
  matvec<1>(weights, x, out, args, group, simdgroup, lane);
}

kernel void matvec_2(device const uchar* codes [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                     device const uchar* zeros [[buffer(2)]], device const uchar* groups [[buffer(3)]],
                     device const float* x [[buffer(4)]], device float* out [[buffer(5)]],
                     constant ProductArgs& args [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const Format weights{{codes, scales, zeros, groups}, &args.weight};
  matvec<2>(weights, x, out, args, group, simdgroup, lane);
}

kernel void matvec_4(device const uchar* codes [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                     device const uchar* zeros [[buffer(2)]], device const uchar* groups [[buffer(3)]],
                     device const float* x [[buffer(4)]], device float* out [[buffer(5)]],
                     constant ProductArgs& args [[buffer(6)]], uint3 group [[threadgroup_position_in_grid]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const Format weights{{codes, scales, zeros, groups}, &args.weight};
  matvec<4>(weights, x, out, args, group, simdgroup, lane);
}
