// Attention of a few queries over the keys that they share. T is how the cache holds keys and values: float or f16
// (std::uint16_t). The arithmetic is specified in reference.cpp.

// Lanes of N queries times P keys, before they are added up: lane j has the products of elements j, j + 16, ...
template <int N, int P, class T>
inline void dot_lanes(const ScoresOf<T>& call, std::int64_t query, std::int64_t key, f32x16 (&lanes)[N][P]) {
  const T* keys = call.keys + key * call.head_dim;
  for (int n = 0; n < N; ++n) {
    for (int p = 0; p < P; ++p) lanes[n][p] = set1(0.0F);
  }
  std::int64_t i = 0;
  for (; i + 16 <= call.head_dim; i += 16) {
    f32x16 k[P];
    for (int p = 0; p < P; ++p) k[p] = load(keys + p * call.head_dim + i);
    for (int n = 0; n < N; ++n) {
      const f32x16 q = load(call.q[query + n] + i);
      for (int p = 0; p < P; ++p) lanes[n][p] = fma(q, k[p], lanes[n][p]);
    }
  }
  const std::int64_t rest = call.head_dim - i;
  if (rest == 0) return;
  for (int n = 0; n < N; ++n) {
    const f32x16 q = load_part(call.q[query + n] + i, rest);
    for (int p = 0; p < P; ++p) {
      lanes[n][p] = fma(q, load_part(keys + p * call.head_dim + i, rest), lanes[n][p]);
    }
  }
}

// Asks memory for `count` numbers: what is read next arrives while this is computed.
template <class T>
inline void ask(const T* ahead, std::int64_t count) {
  const auto* line = reinterpret_cast<const std::uint8_t*>(ahead);
  for (const auto* end = line + count * static_cast<std::int64_t>(sizeof(T)); line < end; line += 64) prefetch(line);
}

// How many bytes before they are read keys are asked for: processors follow by themselves up to the end of a page only, and
// look up the next page's address when somebody asks for it.
constexpr std::int64_t kAskedAhead = 8192;

// Asks for as much as [from, from + count) of the keys are, further on; where keys end, for what is read after them.
template <class T>
inline void ask_ahead(const ScoresOf<T>& call, std::int64_t from, std::int64_t count) {
  const std::int64_t all = call.n * call.head_dim;
  from += kAskedAhead / static_cast<std::int64_t>(sizeof(T));
  if (from >= all) return ask(call.ahead + (from - all), count);
  ask(call.keys + from, count < all - from ? count : all - from);
}

// N queries, all keys from `key` on.
template <int N, class T>
inline void score_queries(const ScoresOf<T>& call, std::int64_t query, std::int64_t key) {
  const float factor = 1.0F / call.root;
  const bool asks = query == 0 && call.ahead != nullptr;
  if (asks && key == 0) {
    const std::int64_t first = kAskedAhead / static_cast<std::int64_t>(sizeof(T));
    const std::int64_t all = call.n * call.head_dim;
    ask(call.keys, first < all ? first : all);
  }
  const auto before = [&](std::int64_t from, std::int64_t count) {
    if (asks) ask_ahead(call, from, count);
  };
  key = score_few<N>(call, query, key, before);
  for (; key + 4 <= call.n; key += 4) {
    before(key * call.head_dim, 4 * call.head_dim);
    f32x16 lanes[N][4];
    dot_lanes(call, query, key, lanes);
    for (int n = 0; n < N; ++n) sum_lanes_of_4(lanes[n], factor, call.out[query + n] + key);
  }
  before(key * call.head_dim, (call.n - key) * call.head_dim);
  for (; key < call.n; ++key) {
    f32x16 lanes[N][1];
    dot_lanes(call, query, key, lanes);
    for (int n = 0; n < N; ++n) call.out[query + n][key] = sum_lanes(lanes[n][0]) * factor;
  }
}

// f(query, count) for all queries, with a count that the compiler knows: kQueries, and fewer at the end.
template <int N = kQueries, class F>
inline void each_queries(std::int64_t query, std::int64_t queries, F f) {
  for (; query + N <= queries; query += N) f.template operator()<N>(query);
  if constexpr (N > 1) each_queries<N - 1>(query, queries, f);
}

template <class T>
inline void scores(const ScoresOf<T>& call) {
  const std::int64_t done = score_many(call);
  each_queries(0, call.queries, [&]<int N>(std::int64_t query) { score_queries<N>(call, query, done); });
}

inline void softmax(const float* scores, const float* sink, float* out, std::int64_t n) {
  const std::int64_t whole = n / 16 * 16;
  f32x16 largest = set1(scores[0]);
  for (std::int64_t p = 0; p < whole; p += 16) largest = larger(load(scores + p), largest);
  float most = max_lane(largest);
  for (std::int64_t p = whole; p < n; ++p) most = scores[p] > most ? scores[p] : most;
  if (sink != nullptr) most = *sink > most ? *sink : most;

  const f32x16 m = set1(most);
  f32x16 lanes = set1(0.0F);
  for (std::int64_t p = 0; p < whole; p += 16) {
    const f32x16 e = exp_nonpositive(sub(load(scores + p), m));
    store(out + p, e);
    lanes = add(lanes, e);
  }
  if (whole < n) {
    store_part(out + whole, exp_nonpositive(sub(load_part(scores + whole, n - whole), m)), n - whole);
    lanes = add(lanes, load_part(out + whole, n - whole));
  }
  float all = sum_lanes(lanes);
  if (sink != nullptr) {
    float e;
    store_part(&e, exp_nonpositive(set1(*sink - most)), 1);
    all = all + e;
  }
  const f32x16 sum = set1(all);
  for (std::int64_t p = 0; p < whole; p += 16) store(out + p, div(load(out + p), sum));
  if (whole < n) store_part(out + whole, div(load_part(out + whole, n - whole), sum), n - whole);
}

// Dimensions d to d + 16 V of N queries' sums; of the last `width` dimensions where V is 0. What one query alone looks
// at comes after what all look at.
template <int N, int V, class T>
inline void mix_columns(const MixOf<T>& call, std::int64_t query, std::int64_t d, std::int64_t width) {
  constexpr int kRegisters = V == 0 ? 1 : V;
  const auto row = [&](std::int64_t p, f32x16(&value)[kRegisters]) {
    const T* from = call.values + p * call.head_dim + d;
    if constexpr (V == 0) {
      value[0] = load_part(from, width);
    } else {
      for (int v = 0; v < V; ++v) value[v] = load(from + v * 16);
    }
  };
  std::int64_t common = call.n[query];
  std::int64_t most = common;
  for (int n = 1; n < N; ++n) {
    const std::int64_t keys = call.n[query + n];
    common = keys < common ? keys : common;
    most = keys > most ? keys : most;
  }
  const bool asks = query == 0 && call.ahead != nullptr;
  const std::int64_t rows_ahead = kAskedAhead / static_cast<std::int64_t>(sizeof(T)) / call.head_dim + 1;
  f32x16 sum[N][kRegisters];
  for (int n = 0; n < N; ++n) {
    for (int v = 0; v < kRegisters; ++v) sum[n][v] = set1(0.0F);
  }
  for (std::int64_t tile = 0; tile < most; tile += kKeyTile) {
    f32x16 part[N][kRegisters];
    for (int n = 0; n < N; ++n) {
      for (int v = 0; v < kRegisters; ++v) part[n][v] = set1(0.0F);
    }
    const std::int64_t end = tile + kKeyTile;
    std::int64_t p = tile;
    for (; p < end && p < common; ++p) {
      if (asks) {
        const std::int64_t next = p + rows_ahead;
        ask((next < most ? call.values + next * call.head_dim : call.ahead + (next - most) * call.head_dim) + d,
            kRegisters * 16);
      }
      f32x16 value[kRegisters];
      row(p, value);
      for (int n = 0; n < N; ++n) {
        const f32x16 w = set1(call.pattern[query + n][p]);
        for (int v = 0; v < kRegisters; ++v) part[n][v] = fma(w, value[v], part[n][v]);
      }
    }
    for (int n = 0; n < N; ++n) {
      const std::int64_t keys = call.n[query + n];
      for (std::int64_t own = p; own < end && own < keys; ++own) {
        f32x16 value[kRegisters];
        row(own, value);
        const f32x16 w = set1(call.pattern[query + n][own]);
        for (int v = 0; v < kRegisters; ++v) part[n][v] = fma(w, value[v], part[n][v]);
      }
      if (tile >= keys) continue;
      for (int v = 0; v < kRegisters; ++v) sum[n][v] = add(sum[n][v], part[n][v]);
    }
  }
  for (int n = 0; n < N; ++n) {
    float* z = call.z[query + n] + d;
    if constexpr (V == 0) {
      store_part(z, sum[n][0], width);
    } else {
      for (int v = 0; v < V; ++v) store(z + v * 16, sum[n][v]);
    }
  }
}

template <class T>
inline void mix(const MixOf<T>& call) {
  each_queries(0, call.queries, [&]<int N>(std::int64_t query) {
    std::int64_t d = 0;
    for (; d + 64 <= call.head_dim; d += 64) mix_columns<N, 4>(call, query, d, 64);
    for (; d + 16 <= call.head_dim; d += 16) mix_columns<N, 1>(call, query, d, 16);
    if (d < call.head_dim) mix_columns<N, 0>(call, query, d, call.head_dim - d);
  });
}
