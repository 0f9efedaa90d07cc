// Products of bytes for NEON with FEAT_I8MM, for two tokens and more: usmmla multiplies 8 columns of two rows with those of
// two tokens, and adds to four sums. Sums of integers are exact in any order; floats come in the contract's order.

// 8 columns of four rows: of rows 0 and 1, of rows 2 and 3.
struct RowPairs {
  uint8x16_t two[2];
};
// From registers of 4 rows x 4 columns.
inline RowPairs pair_rows(uint8x16_t a, uint8x16_t b) {
  const uint32x4_t first = vreinterpretq_u32_u8(a);
  const uint32x4_t second = vreinterpretq_u32_u8(b);
  return {{vreinterpretq_u8_u32(vzip1q_u32(first, second)), vreinterpretq_u8_u32(vzip2q_u32(first, second))}};
}

constexpr int pairs_of(int tokens) { return (tokens + 1) / 2; }

// A token without a neighbour is multiplied twice.
template <int N>
constexpr bool has_second(int pair) {
  return pair * 2 + 1 < N;
}

// 8 columns of each two of N tokens: a quad of all of them is at `a`, one at `b`.
template <int N>
inline void pair_tokens(const std::int8_t* a, const std::int8_t* b, int8x16_t (&out)[pairs_of(N)]) {
  int pair = 0;
  if constexpr (N >= 4) {  // four at once
    const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(a));
    const int32x4_t second = vreinterpretq_s32_s8(vld1q_s8(b));
    out[0] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
    out[1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
    pair = 2;
  }
  for (; pair < pairs_of(N); ++pair) {
    const auto quads_at = [&](const std::int8_t* p) {
      const int8x8_t two =
          has_second<N>(pair) ? vld1_s8(p + pair * 8) : vreinterpret_s8_s32(vdup_n_s32(quad_of(p + pair * 8)));
      return vreinterpretq_s32_s8(vcombine_s8(two, vdup_n_s8(0)));
    };
    out[pair] = vreinterpretq_s8_s32(vzip1q_s32(quads_at(a), quads_at(b)));
  }
}

// What the sums of four rows and each two tokens start from: offset * starts[n].
template <int N>
inline void pair_starts(const std::int32_t* starts, std::int32_t offset, int32x4_t (&out)[pairs_of(N)]) {
  for (int pair = 0; pair < pairs_of(N); ++pair) {
    const int32x2_t two = has_second<N>(pair) ? vld1_s32(starts + pair * 2) : vdup_n_s32(starts[pair * 2]);
    out[pair] = vmulq_n_s32(vcombine_s32(two, two), offset);
  }
}

// Sums of four rows with N tokens: [pair of tokens][pair of rows].
template <int N>
using PairSums = int32x4_t[pairs_of(N)][2];

template <int N>
inline void dot_pairs(PairSums<N>& sums, const RowPairs& w, const int8x16_t (&x)[pairs_of(N)]) {
  for (int pair = 0; pair < pairs_of(N); ++pair) {
    sums[pair][0] = vusmmlaq_s32(sums[pair][0], w.two[0], x[pair]);
    sums[pair][1] = vusmmlaq_s32(sums[pair][1], w.two[1], x[pair]);
  }
}

// Token n's, of the four rows.
template <int N>
inline int32x4_t sums_of(const PairSums<N>& sums, int n) {
  const int32x4_t(&two)[2] = sums[n / 2];
  return n % 2 == 0 ? vuzp1q_s32(two[0], two[1]) : vuzp2q_s32(two[0], two[1]);
}

// Block formats. Which quads make up 8 columns: of 4 bits such as are in the same half of their bytes.
template <BlockLayout L>
struct PackedUnit {
  static constexpr int kHalves = L.halves;
  static constexpr bool kMinimum = L.minimum;
  static constexpr bool kZeros = L.zeros;
  static constexpr bool kNibbles = L.bits == 4;

  const std::uint8_t* header;
  const std::uint8_t* planes;
  std::int64_t block;
  int share;

  std::int32_t offset() const { return L.offset; }
  template <int G, int I>
  RowPairs rows() const {
    if constexpr (kNibbles) {
      const std::uint8_t* p = planes + G / 2 * 128 + I * 16;
      const RowPairs both = pair_rows(vld1q_u8(p), vld1q_u8(p + 64));
      if constexpr (G % 2 == 0) {
        const uint8x16_t low = vdupq_n_u8(15);
        return {{vandq_u8(both.two[0], low), vandq_u8(both.two[1], low)}};
      } else {
        return {{vshrq_n_u8(both.two[0], 4), vshrq_n_u8(both.two[1], 4)}};
      }
    } else if constexpr (L.bits == 8) {
      const std::uint8_t* p = planes + G * 128 + I * 16;
      return pair_rows(vld1q_u8(p), vld1q_u8(p + 64));
    } else {
      return pair_rows(unpack<L.bits, 2 * G>(planes).q[I], unpack<L.bits, 2 * G + 1>(planes).q[I]);
    }
  }
  template <int kHalf, int I>
  float32x4_t scale() const {
    return block_scale<L>(header, share, block, kHalf, 0).q[I];
  }
  template <int kHalf, int I>
  float32x4_t minimum() const {
    return block_scale<L>(header, share, block, kHalf, 1).q[I];
  }
  template <int I>
  int32x4_t zeros() const {
    return to_int(block_zeros(header, share, block)).q[I];
  }
};

template <int kHalvesOf, Second kSecond>
struct OpenUnit {
  static constexpr int kHalves = kHalvesOf;
  static constexpr bool kMinimum = kSecond == Second::minimum;
  static constexpr bool kZeros = kSecond == Second::zeros;
  static constexpr bool kNibbles = false;

  const std::uint8_t* bytes;
  const std::uint8_t* scales;  // in the unit; minimums or zeros follow further on
  std::int32_t kOffset;

  std::int32_t offset() const { return kOffset; }
  template <int G, int I>
  RowPairs rows() const {
    const std::uint8_t* p = bytes + G * 128 + I * 16;
    return pair_rows(vld1q_u8(p), vld1q_u8(p + 64));
  }
  float32x4_t floats(std::int64_t at) const { return vreinterpretq_f32_u8(vld1q_u8(scales + at)); }
  template <int kHalf, int I>
  float32x4_t scale() const {
    return floats(kHalf * 64 + I * 16);
  }
  template <int kHalf, int I>
  float32x4_t minimum() const {
    return floats(kUnpackedMinimums - kUnpackedScales + kHalf * 64 + I * 16);
  }
  template <int I>
  int32x4_t zeros() const {
    return vcvtq_s32_f32(floats(kUnpackedMinimums - kUnpackedScales + I * 16));
  }
};

// Rows 4 I to 4 I + 3 of a block or a half of one.
template <int kHalf, int I, int N, class Unit, int kGroups>
inline void quarter_of(const Unit& unit, const BlockInput& input, std::int64_t width,
                       const int32x4_t (&start)[pairs_of(N)], const int8x16_t (&x)[kGroups][pairs_of(N)],
                       f32x16 (&sum)[N]) {
  PairSums<N> dots;
  for (int pair = 0; pair < pairs_of(N); ++pair) dots[pair][0] = dots[pair][1] = start[pair];
  constexpr int kFirst = kHalf * kGroups;
  dot_pairs<N>(dots, unit.template rows<kFirst, I>(), x[0]);
  dot_pairs<N>(dots, unit.template rows<kFirst + 1, I>(), x[1]);
  if constexpr (kGroups == 4) {
    dot_pairs<N>(dots, unit.template rows<kFirst + 2, I>(), x[2]);
    dot_pairs<N>(dots, unit.template rows<kFirst + 3, I>(), x[3]);
  }
  const float32x4_t scale = unit.template scale<kHalf, I>();
  for (int n = 0; n < N; ++n) {
    int32x4_t all = sums_of<N>(dots, n);
    if constexpr (Unit::kZeros) all = vmlaq_n_s32(all, unit.template zeros<I>(), input.starts[n]);
    sum[n].q[I] = vfmaq_f32(sum[n].q[I], vmulq_n_f32(scale, input.scales[n]), vcvtq_f32_s32(all));
    if constexpr (Unit::kMinimum) {
      sum[n].q[I] = vfmaq_n_f32(sum[n].q[I], unit.template minimum<kHalf, I>(), input.sums[kHalf * width + n]);
    }
  }
}

template <int kHalf, int N, class Unit>
inline void half_of(const Unit& unit, const BlockInput& input, std::int64_t width, f32x16 (&sum)[N]) {
  constexpr int kGroups = 4 / Unit::kHalves;
  int8x16_t x[kGroups][pairs_of(N)];
  for (int i = 0; i < kGroups; i += 2) {
    for (int pair = 0; pair < pairs_of(N); ++pair) {
      const std::int8_t* const at = input.x + pair * 2 * kBlockCols + (kHalf * kGroups + i) * 8;
      const int8x16_t first = vld1q_s8(at);
      const int8x16_t second = has_second<N>(pair) ? vld1q_s8(at + kBlockCols) : first;
      if constexpr (Unit::kNibbles) {
        const int32x4_t a = vreinterpretq_s32_s8(first);
        const int32x4_t b = vreinterpretq_s32_s8(second);
        x[i][pair] = vreinterpretq_s8_s32(vuzp1q_s32(a, b));
        x[i + 1][pair] = vreinterpretq_s8_s32(vuzp2q_s32(a, b));
      } else {
        const int64x2_t a = vreinterpretq_s64_s8(first);
        const int64x2_t b = vreinterpretq_s64_s8(second);
        x[i][pair] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
        x[i + 1][pair] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
      }
    }
  }
  int32x4_t start[pairs_of(N)];
  pair_starts<N>(input.starts + kHalf * width, unit.offset(), start);
  quarter_of<kHalf, 0, N>(unit, input, width, start, x, sum);
  quarter_of<kHalf, 1, N>(unit, input, width, start, x, sum);
  quarter_of<kHalf, 2, N>(unit, input, width, start, x, sum);
  quarter_of<kHalf, 3, N>(unit, input, width, start, x, sum);
}

template <int N, class Unit>
inline void multiply_block(const Unit& unit, BlockInput& input, std::int64_t width, f32x16 (&sum)[N]) {
  half_of<0, N>(unit, input, width, sum);
  if constexpr (Unit::kHalves == 2) half_of<1, N>(unit, input, width, sum);
  input.x += kBlockCols * width;
  input.scales += width;
  input.starts += Unit::kHalves * width;
  input.sums += Unit::kHalves * width;
}

inline BlockInput input_from(BlockInput input, std::int64_t token) {
  input.x += token * kBlockCols;
  input.scales += token;
  input.starts += token;
  input.sums += token;
  return input;
}

template <BlockLayout L>
struct PackedTile {
  template <int N>
  static void run(const BlockCall& b, std::int64_t panel, std::int64_t token) {
    BlockLayout layout = L;
    layout.share = b.layout.share;
    f32x16 sum[1][N];
    load_sums(b, panel, token, sum);
    const std::uint8_t* header = b.panels + panel * b.panel_stride;
    BlockInput input = input_from(b.input, token);
    for (std::int64_t left = b.blocks; left > 0; left -= kUnitBlocks) {
      const std::int64_t count = left < kUnitBlocks ? left : kUnitBlocks;
      const std::uint8_t* w = header + header_of(layout, count);
      for (std::int64_t block = 0; block < count; ++block, w += L.bits * 64) {
        multiply_block<N>(PackedUnit<L>{header, w, block, layout.share}, input, b.n_tokens, sum[0]);
      }
      header = w;
    }
    store_sums(b, panel, token, sum);
  }
};

template <int kHalves, Second kSecond>
struct OpenTile {
  template <int N>
  static void run(const BlockCall& b, std::int64_t panel, std::int64_t token) {
    f32x16 sum[1][N];
    load_sums(b, panel, token, sum);
    const std::uint8_t* open = b.panels + panel * b.panel_stride;
    BlockInput input = input_from(b.input, token);
    for (std::int64_t left = b.blocks; left > 0; left -= kUnitBlocks, open += kUnpackedBytes) {
      const std::int64_t count = left < kUnitBlocks ? left : kUnitBlocks;
      for (std::int64_t block = 0; block < count; ++block) {
        const std::uint8_t* const scales = open + kUnpackedScales + block * kHalves * 64;
        multiply_block<N>(OpenUnit<kHalves, kSecond>{open + block * 512, scales, b.layout.offset}, input, b.n_tokens,
                          sum[0]);
      }
    }
    store_sums(b, panel, token, sum);
  }
};

// Four tokens' sums stay in registers beside what is multiplied.
constexpr int kPartTokens = 4;

template <class Tile, class Call>
inline void run_tokens(const Call& b, std::int64_t panel, std::int64_t token, std::int64_t count) {
  if (count == 4) return Tile::template run<4>(b, panel, token);
  if (count == 3) return Tile::template run<3>(b, panel, token);
  if (count == 2) return Tile::template run<2>(b, panel, token);
  Tile::template run<1>(b, panel, token);
}

template <class Tile, class Call>
inline void run_tile(const Call& b) {
  for (std::int64_t panel = 0; panel < b.n_panels; ++panel) {
    for (std::int64_t token = 0; token < b.n_tokens;) {
      const std::int64_t left = b.n_tokens - token;
      const std::int64_t count = left == kPartTokens + 1 ? 3 : left < kPartTokens ? left : kPartTokens;  // none alone
      run_tokens<Tile>(b, panel, token, count);
      token += count;
    }
  }
}

inline void packed_in_pairs(const BlockCall& b) {
  with_layout(b.layout, [&]<BlockLayout L>() { run_tile<PackedTile<L>>(b); });
}

inline void open_in_pairs(const BlockCall& b) {
  const BlockLayout& l = b.layout;
  if (l.zeros) return run_tile<OpenTile<1, Second::zeros>>(b);
  if (l.halves == 1)
    return l.minimum ? run_tile<OpenTile<1, Second::minimum>>(b) : run_tile<OpenTile<1, Second::none>>(b);
  return l.minimum ? run_tile<OpenTile<2, Second::minimum>>(b) : run_tile<OpenTile<2, Second::none>>(b);
}

// The integers of a panel's rows, of bytes + 128, with N tokens of `width`.
template <int N>
inline void dot_bytes(const std::uint8_t* w, std::int64_t quads, const std::int8_t* x, const std::int32_t* starts,
                      std::int64_t width, i32x16 (&out)[N]) {
  int32x4_t start[pairs_of(N)];
  pair_starts<N>(starts, 128, start);
  PairSums<N> dots[4];
  for (int i = 0; i < 4; ++i) {
    for (int pair = 0; pair < pairs_of(N); ++pair) dots[i][pair][0] = dots[i][pair][1] = start[pair];
  }
  for (; quads >= 2; quads -= 2, w += 128, x += 8 * width) {
    int8x16_t two[pairs_of(N)];
    pair_tokens<N>(x, x + 4 * width, two);
    for (int i = 0; i < 4; ++i) dot_pairs<N>(dots[i], pair_rows(vld1q_u8(w + 16 * i), vld1q_u8(w + 64 + 16 * i)), two);
  }
  if (quads > 0) {  // one is left: zeros are its neighbour
    int8x16_t two[pairs_of(N)];
    pair_tokens<N>(x, x, two);
    for (int i = 0; i < 4; ++i) dot_pairs<N>(dots[i], pair_rows(vld1q_u8(w + 16 * i), vdupq_n_u8(0)), two);
  }
  for (int n = 0; n < N; ++n) {
    for (int i = 0; i < 4; ++i) out[n].q[i] = sums_of<N>(dots[i], n);
  }
}

// llama2.c's int8.
struct Int8Pairs {
  template <int N>
  static void run(const Int8Block& b, std::int64_t panel, std::int64_t token) {
    const bool part = panel + 1 == b.n_panels && b.last_rows < 16;
    f32x16 sum[N];
    float* const out = b.out + token * b.out_stride + panel * 16;
    for (int n = 0; n < N; ++n) {
      const float* from = out + n * b.out_stride;
      sum[n] = b.first ? set1(0.0F) : part ? load_part(from, b.last_rows) : load(from);
    }
    const std::uint8_t* w = b.panels + panel * b.panel_stride;
    const std::int8_t* x = b.x + token * 4;
    std::int64_t at = token;
    for (std::int64_t group = 0; group < b.groups; ++group, at += b.n_tokens, x += 4 * b.quads * b.n_tokens) {
      i32x16 dots[N];
      dot_bytes<N>(w, b.quads, x, b.x_starts + at, b.n_tokens, dots);
      w += 64 * b.quads;
      const f32x16 w_scale = load_bytes(w);
      w += 64;
      for (int n = 0; n < N; ++n) sum[n] = add(sum[n], mul(mul(to_float(dots[n]), w_scale), set1(b.x_scales[at + n])));
    }
    for (int n = 0; n < N; ++n) store_lanes(out + n * b.out_stride, sum[n], part ? b.last_rows : 16);
  }
};

struct LlmInt8Pairs {
  template <int N>
  static void run(const LlmInt8Call& c, std::int64_t panel, std::int64_t token) {
    i32x16 dots[1][N];
    const std::uint8_t* const w = c.panels + panel * c.panel_stride;
    dot_bytes<N>(w, c.quads, c.x + 4 * token, c.x_starts + token, c.n_tokens, dots[0]);
    finish_llm_int8<1, N>(c, panel, token, dots);
    add_own_outliers<1, N>(c, panel, token);
  }
};
