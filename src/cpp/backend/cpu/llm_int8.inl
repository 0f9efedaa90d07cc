// Kernels of LLM.int8() (see llm_int8.h). The arithmetic is specified in reference_llm_int8.cpp.

inline void store_lanes(float* out, f32x16 a, std::int64_t rows) {
  if (rows < 16) {
    store_part(out, a, rows);
  } else {
    store(out, a);
  }
}

inline std::int64_t rows_of(const LlmInt8Call& c, std::int64_t panel) {
  return panel + 1 == c.n_panels ? c.last_rows : 16;
}

// P panels x N tokens from `token` on, whose integers are there: their scales, and the fixed columns.
template <int P, int N>
inline void finish_llm_int8(const LlmInt8Call& c, std::int64_t panel, std::int64_t token, const i32x16 (&dots)[P][N]) {
  const std::uint8_t* w = c.panels + panel * c.panel_stride + c.quads * 64;
  f32x16 sum[P][N];
  for (int p = 0; p < P; ++p) {
    const f32x16 scale = load_bytes(w + p * c.panel_stride);
    for (int n = 0; n < N; ++n) {
      sum[p][n] = fma(mul(scale, set1(c.x_scales[token + n])), to_float(dots[p][n]), set1(0.0F));
    }
  }
  const float* x_fixed = c.fixed > 0 ? c.x_fixed + token : nullptr;
  w += 64;
  for (std::int64_t i = 0; i < c.fixed; ++i, w += 32, x_fixed += c.n_tokens) {
    for (int p = 0; p < P; ++p) {
      const f32x16 weights = load(reinterpret_cast<const std::uint16_t*>(w + p * c.panel_stride));
      for (int n = 0; n < N; ++n) sum[p][n] = fma(weights, set1(x_fixed[n]), sum[p][n]);
    }
  }
  for (int p = 0; p < P; ++p) {
    for (int n = 0; n < N; ++n) {
      store_lanes(c.out + (token + n) * c.out_stride + (panel + p) * 16, sum[p][n], rows_of(c, panel + p));
    }
  }
}

// The integers of P panels x N tokens from `token` on, and the rest.
template <int P, int N>
inline void llm_int8_tile(const LlmInt8Call& c, std::int64_t panel, std::int64_t token) {
  const std::uint8_t* w = c.panels + panel * c.panel_stride;
  const std::int8_t* x = c.x + 4 * token;
  i32x16 dots[P][N];
  for (int n = 0; n < N; ++n) {
    for (int p = 0; p < P; ++p) dots[p][n] = dot_start_128(c.x_starts + token + n);
  }
  for (std::int64_t quad = 0; quad < c.quads; ++quad, w += 64, x += 4 * c.n_tokens) {
    quads16 rows[P];
    for (int p = 0; p < P; ++p) {
      if constexpr (N <= 2) prefetch(w + p * c.panel_stride + kAhead);  // what limits few tokens is memory
      rows[p] = load_quads(w + p * c.panel_stride);
    }
    for (int n = 0; n < N; ++n) {
      for (int p = 0; p < P; ++p) dots[p][n] = dot_quads(dots[p][n], rows[p], x + 4 * n);
    }
  }
  finish_llm_int8(c, panel, token, dots);
}

// The weights of one column, as floats.
inline f32x16 column_of(const std::uint8_t* panel, std::int64_t column, f32x16 scale) {
  const bytes64 quad = load_bytes64(panel + column / 4 * 64);
  const f32x16 offset = set1(128.0F);
  switch (column % 4) {
    case 0:
      return mul(sub(byte_of<0>(quad), offset), scale);
    case 1:
      return mul(sub(byte_of<1>(quad), offset), scale);
    case 2:
      return mul(sub(byte_of<2>(quad), offset), scale);
    default:
      return mul(sub(byte_of<3>(quad), offset), scale);
  }
}

// One token's own outliers are added to P panels' sums.
template <int P>
inline void add_outliers(const LlmInt8Call& c, std::int64_t panel, std::int64_t token) {
  const std::uint8_t* const w = c.panels + panel * c.panel_stride;
  float* const out = c.out + token * c.out_stride + panel * 16;
  const std::int32_t* const columns = c.columns + token * c.outlier_stride;
  const float* const x = c.x_outliers + token * c.outlier_stride;
  f32x16 scale[P];
  f32x16 sum[P];
  for (int p = 0; p < P; ++p) {
    scale[p] = load_bytes(w + p * c.panel_stride + c.quads * 64);
    const std::int64_t rows = rows_of(c, panel + p);
    sum[p] = rows < 16 ? load_part(out + p * 16, rows) : load(out + p * 16);
  }
  for (std::int64_t i = 0; i < c.counts[token]; ++i) {
    const f32x16 factor = set1(x[i]);
    for (int p = 0; p < P; ++p) {
      sum[p] = fma(column_of(w + p * c.panel_stride, columns[i], scale[p]), factor, sum[p]);
    }
  }
  for (int p = 0; p < P; ++p) store_lanes(out + p * 16, sum[p], rows_of(c, panel + p));
}

template <int P, int N>
inline void add_own_outliers(const LlmInt8Call& c, std::int64_t panel, std::int64_t token) {
  for (std::int64_t n = token; c.counts != nullptr && n < token + N; ++n) {
    if (c.counts[n] > 0) add_outliers<P>(c, panel, n);
  }
}

template <int P, int N>
inline void llm_int8_panels(const LlmInt8Call& c, std::int64_t panel, std::int64_t token) {
  llm_int8_tile<P, N>(c, panel, token);
  add_own_outliers<P, N>(c, panel, token);
}

// `n` tokens, at most N, all panels.
template <int N>
inline void llm_int8_tokens(const LlmInt8Call& c, std::int64_t token, std::int64_t n) {
  if (n == N) {
    constexpr int P = N > 1 && kTilePanels > 1 ? 2 : 1;
    std::int64_t panel = 0;
    for (; panel + P <= c.n_panels; panel += P) llm_int8_panels<P, N>(c, panel, token);
    for (; panel < c.n_panels; ++panel) llm_int8_panels<1, N>(c, panel, token);
  } else if constexpr (N > 1) {
    llm_int8_tokens<N - 1>(c, token, n);
  }
}

// In parts of a tile, whose sums stay in registers beside the weights.
inline void matmul_llm_int8(const LlmInt8Call& c) {
  constexpr int kPart = kTileTokens > 6 ? 6 : kTileTokens;
  for (std::int64_t token = 0; token < c.n_tokens; token += kPart) {
    llm_int8_tokens<kPart>(c, token, c.n_tokens - token < kPart ? c.n_tokens - token : kPart);
  }
}

// x where it takes part in the integers, else 0.
inline f32x16 without_outliers(f32x16 x, f32x16 minus_limit) {
  return if_less(negative_abs(x), minus_limit, set1(0.0F), x);
}

inline std::int64_t quantize_row(const LlmInt8Row& r) {
  const f32x16 minus_limit = set1(-r.limit);
  const f32x16 zero = set1(0.0F);
  const std::int64_t whole = r.n / 16 * 16;
  const std::int64_t rest = r.n - whole;
  f32x16 lowest = zero;  // -|x| of what is rounded
  f32x16 poison = zero;  // NaN where that is not finite
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < r.n; i += 16) {
    const f32x16 all = i < whole ? load(r.x + i) : load_part(r.x + i, rest);
    const f32x16 v = without_outliers(all, minus_limit);
    const f32x16 minus = negative_abs(v);
    lowest = if_less(minus, lowest, minus, lowest);
    poison = fma(v, zero, poison);
    if (min_lane(if_less(negative_abs(all), minus_limit, set1(-1.0F), zero)) < 0.0F) {
      for (std::int64_t k = i; k < (i < whole ? i + 16 : r.n); ++k) {
        if (!(r.x[k] > r.limit || r.x[k] < -r.limit)) continue;
        r.columns[count] = static_cast<std::int32_t>(k);
        r.outliers[count++] = r.x[k];
      }
    }
  }
  const float poisoned = sum_lanes(poison);
  const float scale = (0.0F - min_lane(lowest)) / 127.0F;
  const bool finite = poisoned == poisoned;
  *r.scale = finite ? scale : poisoned;
  if (!finite || scale == 0.0F) {
    for (std::int64_t i = 0; i < r.n; ++i) r.q[i] = 0;
    return count;
  }
  const f32x16 divisor = set1(scale);
  for (std::int64_t i = 0; i < whole; i += 16) {
    store_int8(r.q + i, round_even(div(without_outliers(load(r.x + i), minus_limit), divisor)));
  }
  if (rest > 0) {
    std::int8_t last[16];
    store_int8(last, round_even(div(without_outliers(load_part(r.x + whole, rest), minus_limit), divisor)));
    for (std::int64_t i = 0; i < rest; ++i) r.q[whole + i] = last[i];
  }
  return count;
}
