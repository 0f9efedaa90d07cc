// Attention of one query head over its sequence's keys, for the ISA file that includes this (after elementwise.inl's
// operations are declared). T is how the cache holds keys and values: float or f16 (std::uint16_t).

template <class T>
inline float dot(const float* q, const T* key, std::int64_t n) {
  f32x16 lanes = set1(0.0F);
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) lanes = fma(load(q + i), load(key + i), lanes);
  if (i < n) lanes = fma(load_part(q + i, n - i), load_part(key + i, n - i), lanes);
  return sum_lanes(lanes);
}

template <class T>
inline void scores(const float* q, const T* keys, std::int64_t n, std::int64_t head_dim, float root, float* out) {
  const float factor = 1.0F / root;
  for (std::int64_t p = 0; p < n; ++p) out[p] = dot(q, keys + p * head_dim, head_dim) * factor;
}

inline void softmax(const float* scores, float* out, std::int64_t n) {
  const std::int64_t whole = n / 16 * 16;
  f32x16 largest = set1(scores[0]);
  for (std::int64_t p = 0; p < whole; p += 16) largest = larger(load(scores + p), largest);
  float most = max_lane(largest);
  for (std::int64_t p = whole; p < n; ++p) most = scores[p] > most ? scores[p] : most;

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
  const f32x16 sum = set1(sum_lanes(lanes));
  for (std::int64_t p = 0; p < whole; p += 16) store(out + p, div(load(out + p), sum));
  if (whole < n) store_part(out + whole, div(load_part(out + whole, n - whole), sum), n - whole);
}

// z[0, width) for V whole registers (or one part) of a head: the pattern is read once for all of them.
template <int V, class T>
inline void mix_columns(const float* pattern, const T* values, std::int64_t n, std::int64_t head_dim, float* z) {
  f32x16 sum[V];
  for (int v = 0; v < V; ++v) sum[v] = set1(0.0F);
  for (std::int64_t tile = 0; tile < n; tile += kKeyTile) {
    const std::int64_t end = tile + kKeyTile < n ? tile + kKeyTile : n;
    f32x16 part[V];
    for (int v = 0; v < V; ++v) part[v] = set1(0.0F);
    for (std::int64_t p = tile; p < end; ++p) {
      const f32x16 w = set1(pattern[p]);
      for (int v = 0; v < V; ++v) part[v] = fma(w, load(values + p * head_dim + v * 16), part[v]);
    }
    for (int v = 0; v < V; ++v) sum[v] = add(sum[v], part[v]);
  }
  for (int v = 0; v < V; ++v) store(z + v * 16, sum[v]);
}

template <class T>
inline void mix(const float* pattern, const T* values, std::int64_t n, std::int64_t head_dim, float* z) {
  std::int64_t d = 0;
  for (; d + 64 <= head_dim; d += 64) mix_columns<4>(pattern, values + d, n, head_dim, z + d);
  for (; d + 16 <= head_dim; d += 16) mix_columns<1>(pattern, values + d, n, head_dim, z + d);
  if (d == head_dim) return;
  const std::int64_t rest = head_dim - d;
  f32x16 sum = set1(0.0F);
  for (std::int64_t tile = 0; tile < n; tile += kKeyTile) {
    const std::int64_t end = tile + kKeyTile < n ? tile + kKeyTile : n;
    f32x16 part = set1(0.0F);
    for (std::int64_t p = tile; p < end; ++p) {
      part = fma(set1(pattern[p]), load_part(values + p * head_dim + d, rest), part);
    }
    sum = add(sum, part);
  }
  store_part(z + d, sum, rest);
}
