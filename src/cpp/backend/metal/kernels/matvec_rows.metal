// matvec.metal for formats whose neighbours in memory are rows: there a simdgroup's lanes are rows.

// out[t][row] = sum of w[row][k] * x[t][k] over k.
//
// Lane l has row 32 * group.x + l and kTokens tokens; simdgroup s decodes pieces s, s + 8, s + 16, ... of it. Neighbouring
// lanes read neighbouring words, and all lanes the same inputs. The simdgroups' sums meet in
//   shared [kRowSimdgroups][kTokens][32 rows]
// where simdgroup t adds up those of token t.
// Threadgroups [rows / 32, tokens / kTokens] of kRowSimdgroups simdgroups.
template <uint kTokens>
void matvec(thread const Format& weights, device const float* x, device float* out, constant ProductArgs& args,
            threadgroup float* shared, uint3 group, uint simdgroup, uint lane) {
  const uint row = group.x * kSimdgroup + lane;
  const uint first_token = group.y * kTokens;
  const uint columns = args.weight.columns;

  float sums[kTokens];
  for (uint t = 0; t < kTokens; ++t) sums[t] = 0.0f;

  for (uint piece = simdgroup; piece < pieces_of<Format>(columns); piece += kRowSimdgroups) {
    float w[Format::kSize];
    weights.load(min(row, args.weight.rows - 1), piece, w);
    for (uint t = 0; t < kTokens; ++t) {
      const uint token = min(first_token + t, args.tokens - 1);  // one that is not there repeats the last, unused
      float inputs[Format::kSize];
      load_inputs<Format>(x + ulong(token) * args.x_stride, columns, piece, inputs);
      sums[t] += dot_of<Format>(w, inputs);
    }
  }

  for (uint t = 0; t < kTokens; ++t) shared[(simdgroup * kTokens + t) * kSimdgroup + lane] = sums[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint token = first_token + simdgroup;
  if (simdgroup < kTokens && token < args.tokens && row < args.weight.rows) {
    float parts[kRowSimdgroups];
    for (uint s = 0; s < kRowSimdgroups; ++s) parts[s] = shared[(s * kTokens + simdgroup) * kSimdgroup + lane];
    for (uint width = kRowSimdgroups / 2; width > 0; width /= 2) {
      for (uint s = 0; s < width; ++s) parts[s] += parts[s + width];
    }
    out[ulong(token) * args.out_stride + row] = parts[0];
  }
}

kernel void matvec_1(device const uchar* codes [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                     device const uchar* zeros [[buffer(2)]], device const uchar* groups [[buffer(3)]],
                     device const float* x [[buffer(4)]], device float* out [[buffer(5)]],
                     constant ProductArgs& args [[buffer(6)]], threadgroup float* shared [[threadgroup(0)]],
                     uint3 group [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]]) {
  const Format weights{{codes, scales, zeros, groups}, &args.weight};
  matvec<1>(weights, x, out, args, shared, group, simdgroup, lane);
}

kernel void matvec_2(device const uchar* codes [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                     device const uchar* zeros [[buffer(2)]], device const uchar* groups [[buffer(3)]],
                     device const float* x [[buffer(4)]], device float* out [[buffer(5)]],
                     constant ProductArgs& args [[buffer(6)]], threadgroup float* shared [[threadgroup(0)]],
                     uint3 group [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]]) {
  const Format weights{{codes, scales, zeros, groups}, &args.weight};
  matvec<2>(weights, x, out, args, shared, group, simdgroup, lane);
}

kernel void matvec_4(device const uchar* codes [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                     device const uchar* zeros [[buffer(2)]], device const uchar* groups [[buffer(3)]],
                     device const float* x [[buffer(4)]], device float* out [[buffer(5)]],
                     constant ProductArgs& args [[buffer(6)]], threadgroup float* shared [[threadgroup(0)]],
                     uint3 group [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]]) {
  const Format weights{{codes, scales, zeros, groups}, &args.weight};
  matvec<4>(weights, x, out, args, shared, group, simdgroup, lane);
}
