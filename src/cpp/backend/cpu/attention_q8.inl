// Attention over keys and values in q8_0. A number of the cache is float(q) * scale, which is exact, so that the arithmetic
// and its bits are those of a cache of such floats. A few queries read the blocks themselves; for many, what they share is
// widened once, and the kernels of floats take it. head_dim is a multiple of 32.

// Both halves of a block.
inline void load_block(const Q8Block& block, f32x16 (&numbers)[2]) {
  const f32x16 scale = set1_half(&block.scale);
  numbers[0] = mul(load_int8(block.q), scale);
  numbers[1] = mul(load_int8(block.q + 16), scale);
}

// blocks [count] -> out [32 * count]
inline void widen_blocks_q8(const Q8Block* blocks, std::int64_t count, float* out) {
  for (std::int64_t b = 0; b < count; ++b) {
    f32x16 numbers[2];
    load_block(blocks[b], numbers);
    store(out + b * 32, numbers[0]);
    store(out + b * 32 + 16, numbers[1]);
  }
}

// dot_lanes, of blocks.
template <int N, int P>
inline void dot_lanes_q8(const ScoresOf<Q8Block>& call, std::int64_t query, std::int64_t key, f32x16 (&lanes)[N][P]) {
  const std::int64_t blocks = call.head_dim / 32;
  const Q8Block* keys = call.keys + key * blocks;
  for (int n = 0; n < N; ++n) {
    for (int p = 0; p < P; ++p) lanes[n][p] = set1(0.0F);
  }
  for (std::int64_t b = 0; b < blocks; ++b) {
    f32x16 scale[P];
    for (int p = 0; p < P; ++p) scale[p] = set1_half(&keys[p * blocks + b].scale);
    for (int half = 0; half < 32; half += 16) {
      f32x16 k[P];
      for (int p = 0; p < P; ++p) k[p] = mul(load_int8(keys[p * blocks + b].q + half), scale[p]);
      for (int n = 0; n < N; ++n) {
        const f32x16 q = load(call.q[query + n] + b * 32 + half);
        for (int p = 0; p < P; ++p) lanes[n][p] = fma(q, k[p], lanes[n][p]);
      }
    }
  }
}

// N queries, all keys.
template <int N>
inline void score_queries_q8(const ScoresOf<Q8Block>& call, std::int64_t query) {
  const float factor = 1.0F / call.root;
  const std::int64_t blocks = call.head_dim / 32;
  const Q8Block* const ahead = query == 0 ? call.ahead : nullptr;
  std::int64_t key = 0;
  for (; key + 4 <= call.n; key += 4) {
    if (ahead != nullptr) ask(ahead + key * blocks, 4 * blocks);
    f32x16 lanes[N][4];
    dot_lanes_q8(call, query, key, lanes);
    for (int n = 0; n < N; ++n) sum_lanes_of_4(lanes[n], factor, call.out[query + n] + key);
  }
  for (; key < call.n; ++key) {
    f32x16 lanes[N][1];
    dot_lanes_q8(call, query, key, lanes);
    for (int n = 0; n < N; ++n) call.out[query + n][key] = sum_lanes(lanes[n][0]) * factor;
  }
}

constexpr std::int64_t kWidenedKeys = 32;       // at once
constexpr std::int64_t kMostWidenedDims = 256;  // of a head: 32 kB

inline void scores_q8(const ScoresOf<Q8Block>& call) {
  if (call.queries <= kQueries || call.head_dim > kMostWidenedDims) {
    return each_queries(0, call.queries, [&]<int N>(std::int64_t query) { score_queries_q8<N>(call, query); });
  }
  alignas(64) float wide[kWidenedKeys * kMostWidenedDims];
  const std::int64_t blocks = call.head_dim / 32;
  ScoresOf<float> part{
      .queries = call.queries, .q = {}, .keys = wide, .n = 0, .head_dim = call.head_dim, .root = call.root, .out = {}};
  for (std::int64_t i = 0; i < call.queries; ++i) part.q[i] = call.q[i];
  for (std::int64_t key = 0; key < call.n; key += kWidenedKeys) {
    part.n = call.n - key < kWidenedKeys ? call.n - key : kWidenedKeys;
    if (call.ahead != nullptr) ask(call.ahead + key * blocks, part.n * blocks);
    widen_blocks_q8(call.keys + key * blocks, part.n * blocks, wide);
    for (std::int64_t i = 0; i < call.queries; ++i) part.out[i] = call.out[i] + key;
    scores(part);
  }
}

// Dimensions d to d + 32 B of N queries' sums, as mix_columns has them.
template <int N, int B>
inline void mix_blocks_q8(const MixOf<Q8Block>& call, std::int64_t query, std::int64_t d) {
  const std::int64_t blocks = call.head_dim / 32;
  const Q8Block* const values = call.values + d / 32;
  const Q8Block* const ahead = query == 0 && call.ahead != nullptr ? call.ahead + d / 32 : nullptr;
  std::int64_t common = call.n[query];
  std::int64_t most = common;
  for (int n = 1; n < N; ++n) {
    const std::int64_t keys = call.n[query + n];
    common = keys < common ? keys : common;
    most = keys > most ? keys : most;
  }
  f32x16 sum[N][B][2];
  f32x16 part[N][B][2];
  const auto clear = [](f32x16(&all)[N][B][2]) {
    for (int n = 0; n < N; ++n) {
      for (int b = 0; b < B; ++b) all[n][b][0] = all[n][b][1] = set1(0.0F);
    }
  };
  clear(sum);
  for (std::int64_t tile = 0; tile < most; tile += kKeyTile) {
    clear(part);
    const std::int64_t end = tile + kKeyTile;
    std::int64_t p = tile;
    for (; p < end && p < common; ++p) {
      if (ahead != nullptr) ask(ahead + p * blocks, B);
      for (int b = 0; b < B; ++b) {
        f32x16 value[2];
        load_block(values[p * blocks + b], value);
        for (int n = 0; n < N; ++n) {
          const f32x16 w = set1(call.pattern[query + n][p]);
          part[n][b][0] = fma(w, value[0], part[n][b][0]);
          part[n][b][1] = fma(w, value[1], part[n][b][1]);
        }
      }
    }
    for (int n = 0; n < N; ++n) {
      const std::int64_t keys = call.n[query + n];
      for (std::int64_t own = p; own < end && own < keys; ++own) {
        const f32x16 w = set1(call.pattern[query + n][own]);
        for (int b = 0; b < B; ++b) {
          f32x16 value[2];
          load_block(values[own * blocks + b], value);
          part[n][b][0] = fma(w, value[0], part[n][b][0]);
          part[n][b][1] = fma(w, value[1], part[n][b][1]);
        }
      }
      if (tile >= keys) continue;
      for (int b = 0; b < B; ++b) {
        for (int half = 0; half < 2; ++half) sum[n][b][half] = add(sum[n][b][half], part[n][b][half]);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int b = 0; b < B; ++b) {
      store(call.z[query + n] + d + b * 32, sum[n][b][0]);
      store(call.z[query + n] + d + b * 32 + 16, sum[n][b][1]);
    }
  }
}

// Dimensions d to d + width, 64 or 32, of all queries: a tile of values is widened at a time.
inline void mix_widened_q8(const MixOf<Q8Block>& call, std::int64_t d, std::int64_t width) {
  alignas(64) float wide[kKeyTile * 64];
  alignas(64) float sums[kMostQueries * 64];
  const std::int64_t blocks = call.head_dim / 32;
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < call.queries; ++i) most = call.n[i] > most ? call.n[i] : most;
  for (std::int64_t tile = 0; tile < most; tile += kKeyTile) {
    const std::int64_t count = most - tile < kKeyTile ? most - tile : kKeyTile;
    for (std::int64_t p = 0; p < count; ++p) {
      const std::int64_t first = (tile + p) * blocks + d / 32;
      if (call.ahead != nullptr) ask(call.ahead + first, width / 32);
      widen_blocks_q8(call.values + first, width / 32, wide + p * width);
    }
    MixOf<float> part{.queries = 0, .pattern = {}, .values = wide, .n = {}, .head_dim = width, .z = {}};
    std::int64_t of[kMostQueries];
    for (std::int64_t i = 0; i < call.queries; ++i) {
      if (call.n[i] <= tile) continue;
      const std::int64_t own = part.queries++;
      of[own] = i;
      part.pattern[own] = call.pattern[i] + tile;
      part.n[own] = call.n[i] - tile < count ? call.n[i] - tile : count;
      part.z[own] = tile == 0 ? call.z[i] + d : sums + own * width;
    }
    mix(part);
    for (std::int64_t own = 0; own < part.queries && tile > 0; ++own) {
      float* const z = call.z[of[own]] + d;
      for (std::int64_t i = 0; i < width; i += 16) store(z + i, add(load(z + i), load(part.z[own] + i)));
    }
  }
}

inline void mix_q8(const MixOf<Q8Block>& call) {
  if (call.queries > kQueries) {
    std::int64_t d = 0;
    for (; d + 64 <= call.head_dim; d += 64) mix_widened_q8(call, d, 64);
    if (d < call.head_dim) mix_widened_q8(call, d, 32);
    return;
  }
  each_queries(0, call.queries, [&]<int N>(std::int64_t query) {
    std::int64_t d = 0;
    for (; d + 64 <= call.head_dim; d += 64) mix_blocks_q8<N, 2>(call, query, d);
    if (d < call.head_dim) mix_blocks_q8<N, 1>(call, query, d);
  });
}
