// Scores of many queries over the same keys, for ISA files with registers enough: keys are turned around, 32 at a time, so
// that lanes are keys and the tree that adds up a product's 16 virtual lanes needs no shuffles.

constexpr std::int64_t kManyQueries = 8;   // from here on turning keys around is worth it
constexpr std::int64_t kManyKeys = 32;     // at once: two registers
constexpr std::int64_t kMostTurned = 256;  // dimensions of a head, at most: 32 kB of turned keys

// 2 MB, 48 queries of 10,000 keys: that all of them share turned keys is worth more than that their scores stay in the
// second-level cache.
constexpr std::int64_t kMostScores = 512 * 1024;

// Rows become columns: [rows][16] -> [16][rows].
inline void turn_rows(const float* x, std::int64_t stride, std::int64_t rows, float* out, std::int64_t out_stride) {
  f32x16 square[16];
  for (std::int64_t r = 0; r < 16; ++r) square[r] = r < rows ? load(x + r * stride) : set1(0.0F);
  transpose(square);
  for (std::int64_t i = 0; i < 16; ++i) store_part(out + i * out_stride, square[i], rows);
}

// 32 keys [32][head_dim] -> turned [head_dim][32]
template <class T>
inline void turn_keys(const T* keys, std::int64_t head_dim, float* turned) {
  for (std::int64_t i = 0; i < head_dim; i += 16) {
    for (std::int64_t half = 0; half < kManyKeys; half += 16) {
      f32x16 rows[16];
      for (std::int64_t p = 0; p < 16; ++p) rows[p] = load(keys + (half + p) * head_dim + i);
      transpose(rows);
      for (std::int64_t p = 0; p < 16; ++p) store(turned + (i + p) * kManyKeys + half, rows[p]);
    }
  }
}

// N queries, of which each has its virtual lane J for 32 keys in two registers.
template <int N>
struct LanesOfMany {
  f32x16 of[N][2];
};

// Lane J where 16 are left to add, else the sum of lanes J, J + kLeft, J + 2 kLeft ... in sum_lanes's order.
template <int N, int J, int kLeft>
inline LanesOfMany<N> sum_of_many(const float* const* q, std::int64_t head_dim, const float* turned) {
  LanesOfMany<N> sum;
  if constexpr (kLeft == 16) {
    for (int n = 0; n < N; ++n) sum.of[n][0] = sum.of[n][1] = set1(0.0F);
    for (std::int64_t i = J; i < head_dim; i += 16) {
      const f32x16 first = in_register(load(turned + i * kManyKeys));
      const f32x16 second = in_register(load(turned + i * kManyKeys + 16));
      for (int n = 0; n < N; ++n) {
        const f32x16 x = set1(q[n][i]);
        sum.of[n][0] = fma(x, first, sum.of[n][0]);
        sum.of[n][1] = fma(x, second, sum.of[n][1]);
      }
    }
  } else {
    sum = sum_of_many<N, J, 2 * kLeft>(q, head_dim, turned);
    const LanesOfMany<N> other = sum_of_many<N, J + kLeft, 2 * kLeft>(q, head_dim, turned);
    for (int n = 0; n < N; ++n) {
      for (int half = 0; half < 2; ++half) sum.of[n][half] = add(sum.of[n][half], other.of[n][half]);
    }
  }
  return sum;
}

template <int N, class T>
inline void score_turned(const ScoresOf<T>& call, std::int64_t query, std::int64_t key, const float* turned) {
  const LanesOfMany<N> sum = sum_of_many<N, 0, 1>(call.q + query, call.head_dim, turned);
  const f32x16 factor = set1(1.0F / call.root);
  for (int n = 0; n < N; ++n) {
    for (int half = 0; half < 2; ++half) store(call.out[query + n] + key + half * 16, mul(sum.of[n][half], factor));
  }
}

// Asks for the whole 32 keys from `key` on, where there are so many: turning goes through memory in lines of a key each, and
// would wait for what the first-level cache does not hold.
template <class T>
inline void ask_turned(const ScoresOf<T>& call, std::int64_t key) {
  if (key + kManyKeys > call.n) return;
  const auto* line = reinterpret_cast<const std::uint8_t*>(call.keys + key * call.head_dim);
  const auto* const end = line + kManyKeys * call.head_dim * static_cast<std::int64_t>(sizeof(T));
  for (; line < end; line += 64) prefetch(line);
}

// Returns how many of the keys are done: all whole 32 of them, where it is worth it.
template <class T>
inline std::int64_t score_many(const ScoresOf<T>& call) {
  if (call.queries < kManyQueries || call.head_dim % 16 != 0 || call.head_dim > kMostTurned) return 0;
  alignas(64) float turned[kMostTurned * kManyKeys];
  const std::int64_t whole = call.n / kManyKeys * kManyKeys;
  for (std::int64_t key = 0; key < whole; key += kManyKeys) {
    ask_turned(call, key + kManyKeys);
    turn_keys(call.keys + key * call.head_dim, call.head_dim, turned);
    std::int64_t query = 0;
    for (; query + 2 <= call.queries; query += 2) score_turned<2>(call, query, key, turned);
    if (query < call.queries) score_turned<1>(call, query, key, turned);
  }
  return whole;
}
