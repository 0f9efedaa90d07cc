// Kernels of Arithmetic::llama2c. The arithmetic is specified in llama2c_reference.cpp: one rounding for each operation, and
// sums one term after another. So lanes are outputs here too, never parts of a sum: keys for scores, dimensions for
// mixing.
namespace llama2c_order {

// e^x as the GNU C library's expf has it.
inline f32x16 exponential(f32x16 x) {
  const f32x16 y = in_doubles(x, [](f64 v) {
    const f64 round = all_f64(kExpRound);
    const f64 shifted = fma(all_f64(kExpScale), v, round);
    const f64 r = fma(all_f64(kExpScale), v, sub(round, shifted));  // round - shifted = -k, exactly
    const f64 high = fma(all_f64(kExpCubic), r, all_f64(kExpSquare));
    const f64 low = fma(all_f64(kExpLinear), r, all_f64(1.0));
    return mul(fma(high, mul(r, r), low), power_of_32nds(shifted));
  });
  const f32x16 not_zero = if_less(x, set1(kExpLowest), set1(0.0F), y);
  return if_less(set1(kExpHighest), x, set1(kInfinity), not_zero);
}

inline float sum_squares(const float* x, std::int64_t n) {
  float sum = 0.0F;
  for (std::int64_t i = 0; i < n; ++i) sum = sum + x[i] * x[i];
  return sum;
}

inline f32x16 silu_of_runq(f32x16 x) {
  const f32x16 one = set1(1.0F);
  const f32x16 e = exponential(sub(set1(0.0F), x));
  return mul(x, div(one, add(one, e)));
}

inline void gated(Activation activation, const float* gate, const float* up, float* out, std::int64_t n) {
  if (activation != Activation::silu) return llama2cpp::gated(activation, gate, up, out, n);
  const auto f = [](f32x16 x) { return silu_of_runq(x); };
  return up == nullptr ? each(f, gate, out, n) : gate_by(f, gate, up, out, n);
}

inline f32x16 turn(f32x16 x, f32x16 partner, f32x16 cos, f32x16 signed_sin) {
  return add(mul(x, cos), mul(partner, signed_sin));
}

inline void rope_interleaved(float* x, const float* cos, const float* sin, std::int64_t n) {
  turn_interleaved(turn, x, cos, sin, n);
}

inline void rope_half_split(float* x, const float* cos, const float* sin, std::int64_t n) {
  turn_half_split(turn, x, cos, sin, n);
}

// Adds C dimensions, whose keys are columns of 16, to each lane's sum.
template <int C>
inline f32x16 add_columns(f32x16 sum, const float* q, const f32x16* columns) {
  for (int c = 0; c < C; ++c) sum = add(sum, mul(set1(q[c]), columns[c]));
  return sum;
}

// q . key for G times 16 keys: several sums at once hide how long each takes to grow.
template <int G>
inline void score_groups(const float* q, const float* keys, std::int64_t head_dim, f32x16 root, float* out) {
  f32x16 sum[G];
  for (int g = 0; g < G; ++g) sum[g] = set1(0.0F);
  std::int64_t i = 0;
  for (; i + 4 <= head_dim; i += 4) {
    for (int g = 0; g < G; ++g) {
      f32x16 columns[4];
      load_columns(keys + g * 16 * head_dim + i, head_dim, columns);
      sum[g] = add_columns<4>(sum[g], q + i, columns);
    }
  }
  for (; i < head_dim; ++i) {
    for (int g = 0; g < G; ++g) {
      float column[16];
      for (int j = 0; j < 16; ++j) column[j] = keys[(g * 16 + j) * head_dim + i];
      const f32x16 keys_of_lanes = load(column);
      sum[g] = add_columns<1>(sum[g], q + i, &keys_of_lanes);
    }
  }
  for (int g = 0; g < G; ++g) store(out + g * 16, div(sum[g], root));
}

// The same for up to 16 keys of any type, by way of floats in a buffer, 16 dimensions at a time.
template <class T>
inline void score_part(const float* q, const T* keys, std::int64_t n, std::int64_t head_dim, f32x16 root, float* out) {
  alignas(64) float wide[16 * 16] = {};
  f32x16 sum = set1(0.0F);
  for (std::int64_t i = 0; i < head_dim; i += 16) {
    const std::int64_t dims = head_dim - i < 16 ? head_dim - i : 16;
    for (std::int64_t j = 0; j < n; ++j) {
      const T* key = keys + j * head_dim + i;
      store(wide + j * 16, dims == 16 ? load(key) : load_part(key, dims));
    }
    for (std::int64_t c = 0; c < dims; c += 4) {
      f32x16 columns[4];
      load_columns(wide + c, 16, columns);
      if (c + 4 <= dims) {
        sum = add_columns<4>(sum, q + i + c, columns);
      } else {
        for (std::int64_t k = 0; c + k < dims; ++k) sum = add_columns<1>(sum, q + i + c + k, columns + k);
      }
    }
  }
  store_part(out, div(sum, root), n);
}

inline void scores_of(const float* q, const float* keys, std::int64_t n, std::int64_t head_dim, float root,
                      float* out) {
  const f32x16 r = set1(root);
  std::int64_t p = 0;
  for (; p + 32 <= n; p += 32) score_groups<2>(q, keys + p * head_dim, head_dim, r, out + p);
  for (; p + 16 <= n; p += 16) score_groups<1>(q, keys + p * head_dim, head_dim, r, out + p);
  if (p < n) score_part(q, keys + p * head_dim, n - p, head_dim, r, out + p);
}

inline void scores_of(const float* q, const std::uint16_t* keys, std::int64_t n, std::int64_t head_dim, float root,
                      float* out) {
  for (std::int64_t p = 0; p < n; p += 16) {
    score_part(q, keys + p * head_dim, n - p < 16 ? n - p : 16, head_dim, set1(root), out + p);
  }
}

template <class T>
inline void scores(const ScoresOf<T>& call) {
  for (std::int64_t i = 0; i < call.queries; ++i) {
    scores_of(call.q[i], call.keys, call.n, call.head_dim, call.root, call.out[i]);
  }
}

inline void softmax(const float* scores, const float* sink, float* out, std::int64_t n) {
  const std::int64_t whole = n / 16 * 16;
  f32x16 largest = set1(scores[0]);
  for (std::int64_t p = 0; p < whole; p += 16) largest = larger(load(scores + p), largest);
  float most = max_lane(largest);
  for (std::int64_t p = whole; p < n; ++p) most = scores[p] > most ? scores[p] : most;
  if (sink != nullptr) most = *sink > most ? *sink : most;

  const f32x16 m = set1(most);
  float sum = 0.0F;
  for (std::int64_t p = 0; p < whole; p += 16) {
    store(out + p, exponential(sub(load(scores + p), m)));
    for (int j = 0; j < 16; ++j) sum = sum + out[p + j];
  }
  if (whole < n) {
    store_part(out + whole, exponential(sub(load_part(scores + whole, n - whole), m)), n - whole);
    for (std::int64_t p = whole; p < n; ++p) sum = sum + out[p];
  }
  if (sink != nullptr) {
    float e;
    store_part(&e, exponential(set1(*sink - most)), 1);
    sum = sum + e;
  }
  const f32x16 all = set1(sum);
  for (std::int64_t p = 0; p < whole; p += 16) store(out + p, div(load(out + p), all));
  if (whole < n) store_part(out + whole, div(load_part(out + whole, n - whole), all), n - whole);
}

// z[0, 16 V) of a head; the pattern is read once for all of it.
template <int V, class T>
inline void mix_columns(const float* pattern, const T* values, std::int64_t n, std::int64_t head_dim, float* z) {
  f32x16 sum[V];
  for (int v = 0; v < V; ++v) sum[v] = set1(0.0F);
  for (std::int64_t p = 0; p < n; ++p) {
    const f32x16 w = set1(pattern[p]);
    for (int v = 0; v < V; ++v) sum[v] = add(sum[v], mul(w, load(values + p * head_dim + v * 16)));
  }
  for (int v = 0; v < V; ++v) store(z + v * 16, sum[v]);
}

template <class T>
inline void mix_of(const float* pattern, const T* values, std::int64_t n, std::int64_t head_dim, float* z) {
  std::int64_t d = 0;
  for (; d + 64 <= head_dim; d += 64) mix_columns<4>(pattern, values + d, n, head_dim, z + d);
  if (d + 48 <= head_dim) {
    mix_columns<3>(pattern, values + d, n, head_dim, z + d);
    d += 48;
  } else if (d + 32 <= head_dim) {
    mix_columns<2>(pattern, values + d, n, head_dim, z + d);
    d += 32;
  } else if (d + 16 <= head_dim) {
    mix_columns<1>(pattern, values + d, n, head_dim, z + d);
    d += 16;
  }
  if (d == head_dim) return;
  const std::int64_t rest = head_dim - d;
  f32x16 sum = set1(0.0F);
  for (std::int64_t p = 0; p < n; ++p) {
    sum = add(sum, mul(set1(pattern[p]), load_part(values + p * head_dim + d, rest)));
  }
  store_part(z + d, sum, rest);
}

template <class T>
inline void mix(const MixOf<T>& call) {
  for (std::int64_t i = 0; i < call.queries; ++i) {
    mix_of(call.pattern[i], call.values, call.n[i], call.head_dim, call.z[i]);
  }
}

constexpr KernelTable in_order(KernelTable table) {
  table.sum_squares = sum_squares;
  table.gated = gated;
  table.rope_interleaved = rope_interleaved;
  table.rope_half_split = rope_half_split;
  table.scores_f32 = scores<float>;
  table.scores_f16 = scores<std::uint16_t>;
  table.scores_q8 = scores_q8;
  table.softmax = softmax;
  table.mix_f32 = mix<float>;
  table.mix_f16 = mix<std::uint16_t>;
  table.mix_q8 = mix_q8;
  return table;
}

}  // namespace llama2c_order
