// Matmul of block formats with few tokens whose input stays floats. A weight becomes the float that widen_blocks makes of
// it, in registers. The arithmetic is specified in reference_blocks.cpp.

// The weights of one column, as floats.
template <BlockLayout L>
inline f32x16 wide_column(f32x16 number, f32x16 zero, f32x16 scale, f32x16 minimum) {
  if constexpr (L.zeros) number = sub(number, zero);
  // Where there is a minimum, numbers have at most 5 bits and scales 19: their product is exact, and fma rounds as a sum.
  if constexpr (L.minimum) return fma(scale, number, minimum);
  return mul(scale, number);
}

// What the columns of a block, or of a half of it, have in common. Numbers come as multiples of kNumberUnit, a power of
// two: scale * number is rounded as it would be without.
template <int P>
struct WideScales {
  f32x16 zero[P], scale[P], minimum[P];
};

// Column I of a quad, P panels x N tokens.
template <BlockLayout L, int I, int P, int N>
inline void wide_products(const bytes64 (&quad)[P], const WideScales<P>& s, const float* x, f32x16 (&part)[P][N]) {
  for (int p = 0; p < P; ++p) {
    const f32x16 value = wide_column<L>(number_of<L.bits, L.offset, I>(quad[p]), s.zero[p], s.scale[p], s.minimum[p]);
    for (int n = 0; n < N; ++n) part[p][n] = fma(value, set1(x[I * N + n]), part[p][n]);
  }
}

// Quad J of a block; `w` points at the block's planes, x at its input.
template <BlockLayout L, int J, int P, int N>
inline void wide_quad(const BlockCall& b, const std::uint8_t* w, const WideScales<P>& s, const float* x,
                      f32x16 (&part)[P][N]) {
  bytes64 quad[P];
  for (int p = 0; p < P; ++p) {
    if constexpr (L.bits == 8) {
      quad[p] = load_bytes64(w + p * b.panel_stride + J * 64);
    } else if constexpr (L.bits == 4 && kLooksUp) {
      quad[p] = shift<J * 4 % 8>(load_bytes64(w + p * b.panel_stride + J / 2 * 64));
    } else {
      quad[p] = unpack<L.bits, J>(w + p * b.panel_stride);
    }
  }
  x += J * 4 * N;
  wide_products<L, 0>(quad, s, x, part);
  wide_products<L, 1>(quad, s, x, part);
  wide_products<L, 2>(quad, s, x, part);
  wide_products<L, 3>(quad, s, x, part);
}

// One half of a block (or the whole, where the halves are one).
template <BlockLayout L, int kHalf, int P, int N>
inline void wide_half(const BlockCall& b, const std::uint8_t* header, std::int64_t block, const std::uint8_t* w,
                      const float* x, f32x16 (&part)[P][N]) {
  constexpr int kBegin = kHalf * 4;
  const int share = b.layout.share;
  WideScales<P> s;
  for (int p = 0; p < P; ++p) {
    const std::uint8_t* const of_panel = header + p * b.panel_stride;
    s.scale[p] = block_scale<L>(of_panel, share, block, kHalf, 0);
    s.minimum[p] = set1(0.0F);
    s.zero[p] = set1(0.0F);
    if constexpr (L.minimum) s.minimum[p] = block_scale<L>(of_panel, share, block, kHalf, 1);
    if constexpr (L.zeros) s.zero[p] = block_zeros(of_panel, share, block);
    if constexpr (kNumberUnit<L.bits> != 1.0F) {
      s.scale[p] = mul(s.scale[p], set1(1.0F / kNumberUnit<L.bits>));
      s.zero[p] = mul(s.zero[p], set1(kNumberUnit<L.bits>));
    }
  }
  wide_quad<L, kBegin>(b, w, s, x, part);
  wide_quad<L, kBegin + 1>(b, w, s, x, part);
  wide_quad<L, kBegin + 2>(b, w, s, x, part);
  wide_quad<L, kBegin + 3>(b, w, s, x, part);
  if constexpr (L.halves == 1) {
    wide_quad<L, 4>(b, w, s, x, part);
    wide_quad<L, 5>(b, w, s, x, part);
    wide_quad<L, 6>(b, w, s, x, part);
    wide_quad<L, 7>(b, w, s, x, part);
  }
}

// Packed units, P panels x N tokens. A unit is a block of 256 k, summed by itself.
template <BlockLayout L, int P, int N>
inline void wide_tile(const BlockCall& b, std::int64_t panel) {
  BlockLayout layout = L;
  layout.share = b.layout.share;
  f32x16 sum[P][N];
  load_sums(b, panel, 0, sum);
  const std::uint8_t* header = b.panels + panel * b.panel_stride;
  const float* x = b.input.f32;
  for (std::int64_t left = b.blocks; left > 0; left -= kUnitBlocks) {
    const std::int64_t count = left < kUnitBlocks ? left : kUnitBlocks;
    const std::uint8_t* w = header + header_of(layout, count);
    f32x16 part[P][N];
    for (int p = 0; p < P; ++p) {
      for (int n = 0; n < N; ++n) part[p][n] = set1(0.0F);
    }
    for (std::int64_t block = 0; block < count; ++block) {
      ask<L>(header + kAhead, b.panel_stride, block, P);
      wide_half<L, 0>(b, header, block, w, x, part);
      if constexpr (L.halves == 2) wide_half<L, 1>(b, header, block, w, x, part);
      w += L.bits * 64;
      x += kBlockCols * N;
    }
    for (int p = 0; p < P; ++p) {
      for (int n = 0; n < N; ++n) sum[p][n] = add(sum[p][n], part[p][n]);
    }
    header = w;
  }
  store_sums(b, panel, 0, sum);
}

template <BlockLayout L, int N>
inline void wide_tokens(const BlockCall& b) {
  constexpr int P = wide_panels(L) / N > 0 ? wide_panels(L) / N : 1;
  std::int64_t panel = 0;
  for (; panel + P <= b.n_panels; panel += P) wide_tile<L, P, N>(b, panel);
  if constexpr (P > 1) {
    for (; panel < b.n_panels; ++panel) wide_tile<L, 1, N>(b, panel);
  }
}

inline void matmul_wide(const BlockCall& b) {
  with_layout(b.layout, [&]<BlockLayout L>() {
    if (b.n_tokens == 1) return wide_tokens<L, 1>(b);
    wide_tokens<L, 2>(b);
  });
}
