// Matmul of packed panels of floats (f32, f16, bf16), and of int8 weights with a scale for each group.

// How a panel's weights become floats.
struct FromF32 {
  using Stored = float;
  static f32x16 widen(const float* p) { return load(p); }
};
struct FromF16 {
  using Stored = std::uint16_t;
  static f32x16 widen(const std::uint16_t* p) { return load(p); }
};
struct FromBf16 {
  using Stored = std::uint16_t;
  static f32x16 widen(const std::uint16_t* p) { return load_bf16(p); }
};

// P panels x N tokens, all sums in registers; from each of the panels it is `gap` to the next.
template <class From, int P, int N>
inline void matmul_tile(const PanelBlockOf<typename From::Stored>& b, std::int64_t panel, std::int64_t gap = 1) {
  constexpr std::int64_t kLineRows = 4 / sizeof(typename From::Stored);
  const std::int64_t stride = gap * b.panel_stride;
  const auto* const panels = b.panels + panel * b.panel_stride;  // [k][16], the next panel `stride` further on
  const float* x = b.x;                                          // [k][N]
  for (std::int64_t begin = 0; begin < b.n_k; begin += kBlock) {
    const std::int64_t end = begin + kBlock < b.n_k ? begin + kBlock : b.n_k;
    f32x16 sum[P][N];
    for (int p = 0; p < P; ++p) {
      for (int n = 0; n < N; ++n) sum[p][n] = set1(0.0F);
    }
    for (std::int64_t k = begin; k < end; ++k, x += N) {
      if constexpr (N <= kFewTokens) {  // what limits few tokens is memory
        if (k % kLineRows == 0) {
          for (int p = 0; p < P; ++p) ask_on(panels + p * stride + k * 16);
        }
      }
      f32x16 row[P];
      for (int p = 0; p < P; ++p) row[p] = From::widen(panels + p * stride + k * 16);
      for (int n = 0; n < N; ++n) {
        const f32x16 token = set1(x[n]);
        for (int p = 0; p < P; ++p) sum[p][n] = fma(row[p], token, sum[p][n]);
      }
    }
    const bool first = b.first && begin == 0;
    for (int n = 0; n < N; ++n) {
      for (int p = 0; p < P; ++p) {
        float* out = b.out + n * b.out_stride + (panel + p * gap) * 16;
        const bool last = panel + p * gap + 1 == b.n_panels;
        if (last && b.last_rows < 16) {
          const f32x16 before = first ? set1(0.0F) : load_part(out, b.last_rows);
          store_part(out, add(before, sum[p][n]), b.last_rows);
        } else {
          store(out, add(first ? set1(0.0F) : load(out), sum[p][n]));
        }
      }
    }
  }
}

// What comes from memory comes as two streams, each from one end of its half to the other: starting a stream anew for each
// few panels costs up to a third, and so do more streams.
template <class From, int N>
inline void matmul_streams(const PanelBlockOf<typename From::Stored>& b) {
  constexpr int kStreams = panels_for(N) < 2 ? 1 : 2;
  const std::int64_t part = b.n_panels / kStreams;
  for (std::int64_t panel = 0; panel < part; ++panel) matmul_tile<From, kStreams, N>(b, panel, part);
  for (std::int64_t panel = part * kStreams; panel < b.n_panels; ++panel) matmul_tile<From, 1, N>(b, panel);
}

template <class From, int N>
inline void matmul_tokens(const PanelBlockOf<typename From::Stored>& b) {
  constexpr int P = panels_for(N);
  std::int64_t panel = 0;
  for (; panel + P <= b.n_panels; panel += P) matmul_tile<From, P, N>(b, panel);
  if constexpr (P > 2) {
    for (; panel + 2 <= b.n_panels; panel += 2) matmul_tile<From, 2, N>(b, panel);
  }
  for (; panel < b.n_panels; ++panel) matmul_tile<From, 1, N>(b, panel);
}

template <class From, int N>
inline void matmul_at_most(const PanelBlockOf<typename From::Stored>& b) {
  if (b.n_tokens < N) {
    if constexpr (N > 1) matmul_at_most<From, N - 1>(b);
  } else if constexpr (N <= kFewTokens) {
    matmul_streams<From, N>(b);
  } else {
    matmul_tokens<From, N>(b);
  }
}

template <class From>
inline void matmul_float(const PanelBlockOf<typename From::Stored>& b) {
  matmul_at_most<From, kTileTokens>(b);
}

// One group of P panels x N tokens at a time: an exact integer sum, then two products and a sum in float.
template <int P, int N>
inline void int8_tile(const Int8Block& b, std::int64_t panel) {
  f32x16 sum[P][N];
  for (int p = 0; p < P; ++p) {
    const bool part = panel + p + 1 == b.n_panels && b.last_rows < 16;
    for (int n = 0; n < N; ++n) {
      const float* out = b.out + n * b.out_stride + (panel + p) * 16;
      sum[p][n] = b.first ? set1(0.0F) : part ? load_part(out, b.last_rows) : load(out);
    }
  }
  const std::uint8_t* w = b.panels + panel * b.panel_stride;
  const std::int8_t* x = b.x;
  for (std::int64_t group = 0; group < b.groups; ++group) {
    i32x16 dots[P][N];
    for (int n = 0; n < N; ++n) {
      for (int p = 0; p < P; ++p) dots[p][n] = dot_start_128(b.x_starts + group * N + n);
    }
    if constexpr (N <= 2) {  // what limits few tokens is memory
      for (int p = 0; p < P; ++p) {
        for (std::int64_t line = 0; line <= b.quads; ++line) prefetch(w + p * b.panel_stride + kAhead + line * 64);
      }
    }
    for (std::int64_t quad = 0; quad < b.quads; ++quad, w += 64, x += 4 * N) {
      quads16 rows[P];
      for (int p = 0; p < P; ++p) rows[p] = load_quads(w + p * b.panel_stride);
      for (int n = 0; n < N; ++n) {
        for (int p = 0; p < P; ++p) dots[p][n] = dot_quads(dots[p][n], rows[p], x + 4 * n);
      }
    }
    for (int p = 0; p < P; ++p) {
      const f32x16 w_scale = load_bytes(w + p * b.panel_stride);
      for (int n = 0; n < N; ++n) {
        const f32x16 x_scale = set1(b.x_scales[group * N + n]);
        sum[p][n] = add(sum[p][n], mul(mul(to_float(dots[p][n]), w_scale), x_scale));
      }
    }
    w += 64;
  }
  for (int p = 0; p < P; ++p) {
    const bool part = panel + p + 1 == b.n_panels && b.last_rows < 16;
    for (int n = 0; n < N; ++n) {
      float* out = b.out + n * b.out_stride + (panel + p) * 16;
      if (part) {
        store_part(out, sum[p][n], b.last_rows);
      } else {
        store(out, sum[p][n]);
      }
    }
  }
}

template <int N>
inline void int8_tokens(const Int8Block& b) {
  // Two registers for each sum, so half as many panels as float's; one token reads one stream, group after group.
  constexpr int P = N == 1 ? kFewPanels : panels_for(N) > 1 ? panels_for(N) / 2 : 1;
  std::int64_t panel = 0;
  for (; panel + P <= b.n_panels; panel += P) int8_tile<P, N>(b, panel);
  for (; panel < b.n_panels; ++panel) int8_tile<1, N>(b, panel);
}

template <int N>
inline void int8_at_most(const Int8Block& b) {
  if (b.n_tokens == N) return int8_tokens<N>(b);
  if constexpr (N > 1) int8_at_most<N - 1>(b);
}

inline void matmul_int8(const Int8Block& b) { int8_at_most<kTileTokens>(b); }
