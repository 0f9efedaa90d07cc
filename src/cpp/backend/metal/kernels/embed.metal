// out[t] = row tokens[t] of the weight. A thread for each piece of each token.
kernel void embed(device const uchar* codes [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                  device const uchar* zeros [[buffer(2)]], device const uchar* groups [[buffer(3)]],
                  constant uint* tokens [[buffer(4)]], device float* out [[buffer(5)]],
                  constant EmbedArgs& args [[buffer(6)]], uint3 position [[thread_position_in_grid]]) {
  const Format weights{{codes, scales, zeros, groups}, &args.weight};
  const uint columns = args.weight.columns;
  const uint piece = position.x;
  const uint token = position.y;
  if (piece >= pieces_of<Format>(columns) || token >= args.tokens) return;

  float w[Format::kSize];
  weights.load(tokens[token], piece, w);
  device float* const row = out + ulong(token) * args.out_stride;
  for (uint k = 0; k < Format::kSize; ++k) {
    const uint column = column_of<Format>(piece, k / Format::kRun) + k % Format::kRun;
    if (column < columns) row[column] = w[k];
  }
}
