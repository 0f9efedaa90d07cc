// Scores of few queries over 16 keys at a time, for ISA files with registers enough, of heads of the usual sizes: compilers
// know all addresses, and half as many shuffles add up lanes as with four keys.

// Of four keys' lanes what is left to add after lanes j + 8 and j + 4: four lanes of keys 0, 2, 1 and 3.
inline f32x16 add_to_quarters(const f32x16 (&a)[4]) {
  const auto halves = [](f32x16 x, f32x16 y) {  // fours of lanes: x0 + x2, x1 + x3, y2 + y0, y3 + y1
    return add(low_and_high(x, y), high_and_low(x, y));
  };
  const f32x16 x = halves(a[0], a[1]);
  const f32x16 y = halves(a[2], a[3]);
  return add(even_and_odd_fours(x, y), swap_fours(even_and_odd_fours(y, x)));
}

// The sums of 16 keys, four of which are in each register, in their order.
inline f32x16 add_quarters(const f32x16 (&a)[4]) {
  const auto twos = [](f32x16 x, f32x16 y) {  // pairs of lanes: x0 + x1, y1 + y0
    return add(even_and_odd_pairs(x, y), odd_and_even_pairs(x, y));
  };
  const f32x16 x = twos(a[0], a[1]);
  const f32x16 y = twos(a[2], a[3]);
  return in_order_of_keys(add(even_and_odd(x, y), swap_pairs(even_and_odd(y, x))));
}

// N queries and whole 16 of all keys from `key` on; before(from, count) comes before that many numbers are read. Returns
// where it ends.
template <int N, int kHeadDim, class T, class F>
inline std::int64_t score_sixteens(const ScoresOf<T>& call, std::int64_t query, std::int64_t key, F before) {
  const f32x16 factor = set1(1.0F / call.root);
  const float* q[N];
  for (int n = 0; n < N; ++n) q[n] = call.q[query + n];
  for (; key + 16 <= call.n; key += 16) {
    f32x16 quarters[N][4];
    for (int four = 0; four < 4; ++four) {
      const std::int64_t begin = (key + 4 * four) * kHeadDim;
      before(begin, 4 * kHeadDim);
      const T* const keys = call.keys + begin;
      f32x16 lanes[N][4];
      for (int n = 0; n < N; ++n) {
        for (int p = 0; p < 4; ++p) lanes[n][p] = set1(0.0F);
      }
      for (int i = 0; i < kHeadDim; i += 16) {
        f32x16 k[4];
        for (int p = 0; p < 4; ++p) k[p] = load(keys + p * kHeadDim + i);
        for (int n = 0; n < N; ++n) {
          const f32x16 x = load(q[n] + i);
          for (int p = 0; p < 4; ++p) lanes[n][p] = fma(x, k[p], lanes[n][p]);
        }
      }
      for (int n = 0; n < N; ++n) quarters[n][four] = add_to_quarters(lanes[n]);
    }
    for (int n = 0; n < N; ++n) store(call.out[query + n] + key, mul(add_quarters(quarters[n]), factor));
  }
  return key;
}

template <int N, class T, class F>
inline std::int64_t score_few(const ScoresOf<T>& call, std::int64_t query, std::int64_t key, F before) {
  if (call.head_dim == 64) return score_sixteens<N, 64>(call, query, key, before);
  if (call.head_dim == 128) return score_sixteens<N, 128>(call, query, key, before);
  return key;
}
