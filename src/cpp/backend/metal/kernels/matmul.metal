// x . w^T for many tokens, in tiles: each weight that is decoded serves 32 tokens, each input 64 rows.

// Tiles are made of blocks of 8 x 8 that lie one after another: this is where [a][column] is, in a tile of 32 columns.
inline uint place_of(uint a, uint column) {
  return (a / 8 * (kTileColumns / 8) + column / 8) * 64 + a % 8 * 8 + column % 8;
}

// out[t][row] = sum of w[row][k] * x[t][k] over k.
//
// A threadgroup has 64 rows and 32 tokens, a simdgroup of it 32 rows and 16 tokens: 4 x 2 blocks of 8 x 8 sums in registers.
// Each step is for 32 columns, whole pieces, in the order in which pieces have them: that is any order, the same for
// weights and inputs. Both are float32, so that no operand is rounded. A step sums up what is its own, which is then added
// to the total: one chain of additions through all columns would lose several times as much to rounding.
//   shared [64 rows][32 columns] weights, then [32 tokens][32 columns] inputs; at the end [32 tokens][64 rows] sums
// Threadgroups [tokens / 32, rows / 64]: neighbours read the same weights.
kernel void matmul(device const uchar* codes [[buffer(0)]], device const uchar* scales [[buffer(1)]],
                   device const uchar* zeros [[buffer(2)]], device const uchar* groups [[buffer(3)]],
                   device const float* x [[buffer(4)]], device float* out [[buffer(5)]],
                   constant ProductArgs& args [[buffer(6)]], threadgroup float* shared [[threadgroup(0)]],
                   uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint kPieces = kTileColumns / Format::kSize;  // of a row in a step
  const Format weights{{codes, scales, zeros, groups}, &args.weight};
  const uint columns = args.weight.columns;
  const uint pieces = pieces_of<Format>(columns);
  const uint first_token = group.x * kTileTokens;
  const uint first_row = group.y * kTileRows;
  threadgroup float* const tile_weights = shared;
  threadgroup float* const tile_inputs = shared + kTileRows * kTileColumns;

  const uint rows_of_ours = simdgroup % 2 * 32;  // within the tile
  const uint tokens_of_ours = simdgroup / 2 * 16;
  // Where all of ours are beyond the end, there is nothing to multiply.
  const bool busy = first_row + rows_of_ours < args.weight.rows && first_token + tokens_of_ours < args.tokens;
  simdgroup_float8x8 totals[2][4];  // [token][row]
  for (uint t = 0; t < 2; ++t) {
    for (uint r = 0; r < 4; ++r) totals[t][r] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }

  for (uint first_piece = 0; first_piece < pieces; first_piece += kPieces) {
    // Rows and tokens that are not there repeat the last ones, unused. Columns that are not there are 0.
    for (uint i = thread_index; i < kTileRows * kPieces; i += kTileThreads) {
      const uint row = Format::kRowsTogether ? i % kTileRows : i / kPieces;
      const uint piece = Format::kRowsTogether ? i / kTileRows : i % kPieces;
      float w[Format::kSize];
      if (first_piece + piece < pieces) {
        weights.load(min(first_row + row, args.weight.rows - 1), first_piece + piece, w);
      } else {
        for (uint k = 0; k < Format::kSize; ++k) w[k] = 0.0f;
      }
      for (uint k = 0; k < Format::kSize; ++k) tile_weights[place_of(row, piece * Format::kSize + k)] = w[k];
    }
    for (uint i = thread_index; i < kTileTokens * kTileColumns / 4; i += kTileThreads) {
      const uint token = i / (kTileColumns / 4);
      const uint k = i % (kTileColumns / 4) * 4;
      const uint piece = first_piece + k / Format::kSize;
      const uint column = column_of<Format>(piece, k % Format::kSize / Format::kRun) + k % Format::kRun;
      device const float* const row = x + ulong(min(first_token + token, args.tokens - 1)) * args.x_stride;
      const float4 four = piece < pieces ? load4(row, column, columns) : float4(0.0f);
      *(threadgroup float4*)(tile_inputs + place_of(token, k)) = four;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    if (busy) {
      simdgroup_float8x8 sums[2][4];
      for (uint t = 0; t < 2; ++t) {
        for (uint r = 0; r < 4; ++r) sums[t][r] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      }
      for (uint k = 0; k < kTileColumns; k += 8) {
        simdgroup_float8x8 inputs[2];  // [token][column]
        simdgroup_float8x8 turned[4];  // [column][row]
        for (uint t = 0; t < 2; ++t) simdgroup_load(inputs[t], tile_inputs + place_of(tokens_of_ours + 8 * t, k), 8);
        for (uint r = 0; r < 4; ++r) {
          simdgroup_load(turned[r], tile_weights + place_of(rows_of_ours + 8 * r, k), 8, ulong2(0, 0), true);
        }
        for (uint t = 0; t < 2; ++t) {
          for (uint r = 0; r < 4; ++r) simdgroup_multiply_accumulate(sums[t][r], inputs[t], turned[r], sums[t][r]);
        }
      }
      for (uint t = 0; t < 2; ++t) {
        for (uint r = 0; r < 4; ++r) {
          for (uint i = 0; i < 2; ++i) totals[t][r].thread_elements()[i] += sums[t][r].thread_elements()[i];
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the next step overwrites the tiles
  }

  for (uint t = 0; t < 2; ++t) {
    for (uint r = 0; r < 4; ++r) {
      simdgroup_store(totals[t][r], shared + (tokens_of_ours + 8 * t) * kTileRows + rows_of_ours + 8 * r, kTileRows);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < kTileTokens * kTileRows; i += kTileThreads) {
    const uint token = first_token + i / kTileRows;
    const uint row = first_row + i % kTileRows;
    if (token < args.tokens && row < args.weight.rows) out[ulong(token) * args.out_stride + row] = shared[i];
  }
}
