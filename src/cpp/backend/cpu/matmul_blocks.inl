// Matmul of block formats (see block_panels.h) with few tokens. The arithmetic is specified in reference_blocks.cpp.

constexpr std::int64_t kZeroEntry = 48;  // bytes of a scale and a zero point of 16 rows

constexpr std::int64_t header_of(BlockLayout layout, std::int64_t blocks) {
  if (layout.zeros) return ((((blocks - 1) >> layout.share) + 1) * kZeroEntry + 63) / 64 * 64;
  const std::int64_t fields = layout.minimum ? 2 : 1;
  const std::int64_t bytes =
      layout.sub_scales ? fields * 32 + blocks * fields * layout.halves * 16 : blocks * fields * 32;
  return (bytes + 63) / 64 * 64;
}

// Bytes of a whole unit; at most, where blocks share.
constexpr std::int64_t unit_of(BlockLayout layout) { return header_of(layout, kUnitBlocks) + layout.bits * 512; }

// Quad J of one block's planes: q + offset for 16 rows of 4 columns.
template <int kBits, int J>
inline bytes64 unpack(const std::uint8_t* planes) {
  static_assert(kBits < 8);
  constexpr int kOnes = 0x01010101;
  bytes64 w;
  if constexpr ((kBits & 4) != 0) {
    w = keep(shift<J % 2 * 4>(load_bytes64(planes + J / 2 * 64)), 15 * kOnes);
    planes += 4 * 64;
  }
  if constexpr ((kBits & 2) != 0) {
    constexpr int to = kBits & 4;
    const bytes64 two = keep(shift<J % 4 * 2 - to>(load_bytes64(planes + J / 4 * 64)), (3 << to) * kOnes);
    if constexpr (to > 0) w = either(w, two);
    if constexpr (to == 0) w = two;
    planes += 2 * 64;
  }
  if constexpr ((kBits & 1) != 0) {
    constexpr int to = kBits & 6;
    w = either(w, keep(shift<J - to>(load_bytes64(planes)), (1 << to) * kOnes));
  }
  return w;
}

// D (field 0) or M (field 1) of 16 rows. With zero points, `share` is the layout's, which L does not say.
template <BlockLayout L>
inline f32x16 block_scale(const std::uint8_t* header, int share, std::int64_t block, int half, int field) {
  constexpr int kFields = L.minimum ? 2 : 1;
  if constexpr (L.zeros) {
    return load(reinterpret_cast<const std::uint16_t*>(header + (block >> share) * kZeroEntry));
  } else if constexpr (!L.sub_scales) {
    return load(reinterpret_cast<const std::uint16_t*>(header + (block * kFields + field) * 32));
  } else {
    const std::uint8_t* sub = header + kFields * 32 + ((block * kFields + field) * L.halves + half) * 16;
    return mul(load(reinterpret_cast<const std::uint16_t*>(header + field * 32)),
               load_int8(reinterpret_cast<const std::int8_t*>(sub)));
  }
}

inline f32x16 block_zeros(const std::uint8_t* header, int share, std::int64_t block) {
  return load_int8(reinterpret_cast<const std::int8_t*>(header + (block >> share) * kZeroEntry + 32));
}

template <int P, int N>
inline void load_sums(const BlockCall& b, std::int64_t panel, std::int64_t token, f32x16 (&sum)[P][N]) {
  for (int p = 0; p < P; ++p) {
    const bool part = panel + p + 1 == b.n_panels && b.last_rows < 16;
    for (int n = 0; n < N; ++n) {
      const float* out = b.out + (token + n) * b.out_stride + (panel + p) * 16;
      sum[p][n] = b.first ? set1(0.0F) : part ? load_part(out, b.last_rows) : load(out);
    }
  }
}

template <int P, int N>
inline void store_sums(const BlockCall& b, std::int64_t panel, std::int64_t token, const f32x16 (&sum)[P][N]) {
  for (int p = 0; p < P; ++p) {
    const bool part = panel + p + 1 == b.n_panels && b.last_rows < 16;
    for (int n = 0; n < N; ++n) {
      float* out = b.out + (token + n) * b.out_stride + (panel + p) * 16;
      if (part) {
        store_part(out, sum[p][n], b.last_rows);
      } else {
        store(out, sum[p][n]);
      }
    }
  }
}

// One quad of each panel times one of each token; `w` points at the block's planes, x at the first token's part of it.
template <BlockLayout L, int J, int P, int N>
inline void dot_quad(const BlockCall& b, const std::uint8_t* w, const std::int8_t* x, i32x16 (&dots)[P][N]) {
  if constexpr (L.bits == 8) {
    quads16 quads[P];
    for (int p = 0; p < P; ++p) quads[p] = load_quads(w + p * b.panel_stride + J * 64);
    for (int n = 0; n < N; ++n) {
      for (int p = 0; p < P; ++p) dots[p][n] = dot_quads(dots[p][n], quads[p], x + n * kBlockCols + J * 4);
    }
  } else {
    bytes64 quads[P];
    for (int p = 0; p < P; ++p) quads[p] = unpack<L.bits, J>(w + p * b.panel_stride);
    for (int n = 0; n < N; ++n) {
      for (int p = 0; p < P; ++p) dots[p][n] = dot_small(dots[p][n], quads[p], x + n * kBlockCols + J * 4);
    }
  }
}

// -offset * the sum of x
template <int kOffset>
inline i32x16 start_of(const std::int32_t* start) {
  if constexpr (kOffset == 0) return dot_zero();
  if constexpr (kOffset == 128) return dot_start_128(start);
  constexpr int kShift = kOffset == 4 ? 2 : kOffset == 8 ? 3 : kOffset == 16 ? 4 : 5;
  return dot_start(start, kShift);
}

// One half of a block (or the whole, where the halves are one), from quad kBegin on.
template <BlockLayout L, int kHalf, int P, int N>
inline void block_half(const BlockCall& b, const std::uint8_t* header, std::int64_t block, const std::uint8_t* w,
                       const BlockInput& input, std::int64_t width, f32x16 (&sum)[P][N]) {
  constexpr int kBegin = kHalf * 4;
  const int share = b.layout.share;
  i32x16 dots[P][N];
  for (int n = 0; n < N; ++n) {
    const i32x16 start = start_of<L.offset>(input.starts + kHalf * width + n);
    for (int p = 0; p < P; ++p) dots[p][n] = start;
  }
  if constexpr (L.zeros) {
    for (int p = 0; p < P; ++p) {
      const i32x16 zeros = to_int(block_zeros(header + p * b.panel_stride, share, block));
      for (int n = 0; n < N; ++n) dots[p][n] = add_product(dots[p][n], zeros, input.starts + n);
    }
  }
  dot_quad<L, kBegin>(b, w, input.x, dots);
  dot_quad<L, kBegin + 1>(b, w, input.x, dots);
  dot_quad<L, kBegin + 2>(b, w, input.x, dots);
  dot_quad<L, kBegin + 3>(b, w, input.x, dots);
  if constexpr (L.halves == 1) {
    dot_quad<L, 4>(b, w, input.x, dots);
    dot_quad<L, 5>(b, w, input.x, dots);
    dot_quad<L, 6>(b, w, input.x, dots);
    dot_quad<L, 7>(b, w, input.x, dots);
  }
  for (int p = 0; p < P; ++p) {
    const f32x16 scale = block_scale<L>(header + p * b.panel_stride, share, block, kHalf, 0);
    for (int n = 0; n < N; ++n) sum[p][n] = fma(mul(scale, set1(input.scales[n])), to_float(dots[p][n]), sum[p][n]);
    if constexpr (L.minimum) {
      const f32x16 minimum = block_scale<L>(header + p * b.panel_stride, share, block, kHalf, 1);
      for (int n = 0; n < N; ++n) sum[p][n] = fma(minimum, set1(input.sums[kHalf * width + n]), sum[p][n]);
    }
  }
}

// From so many tokens on, two panels at once are quicker than one after the other.
constexpr int kFewestForPairs = 5;

// Up to so many tokens packed units are multiplied as they are, of those whose panels are there.
constexpr int kPackedTokens = kPairTokens > 0 ? 96 : 32;

// Asks for one block of each of some panels; `header` points at the first's unit.
template <BlockLayout L>
inline void ask(const std::uint8_t* header, std::int64_t stride, std::int64_t block, int panels) {
  constexpr std::int64_t kLines = (header_of(L, kUnitBlocks) / kUnitBlocks + L.bits * 64 + 63) / 64;  // of a block
  for (int p = 0; p < panels; ++p) {
    const std::uint8_t* next = header + p * stride + block * unit_of(L) / kUnitBlocks;
    for (std::int64_t line = 0; line < kLines; ++line) prefetch(next + line * 64);
  }
}

// Some panels are gone past `of` times, each time with other tokens. Memory delivers all that time if each of them asks for
// its share of the panels that come next.
struct Turn {
  std::int64_t is;
  std::int64_t of;
};

// Packed units, P panels x N tokens from `token` on. kAll: those are all that the tile has.
template <BlockLayout L, int P, int N, bool kAll>
inline void blocks_tile(const BlockCall& b, std::int64_t panel, std::int64_t token, Turn turn) {
  const std::int64_t width = kAll ? N : b.n_tokens;
  BlockLayout layout = L;
  layout.share = b.layout.share;
  f32x16 sum[P][N];
  load_sums(b, panel, token, sum);
  const std::uint8_t* header = b.panels + panel * b.panel_stride;
  const std::int64_t panels = b.turns > 1 ? b.n_panels : P;  // that are gone past before the next come
  const std::int64_t ahead = P == 1 && turn.of == 1 ? kAhead : panels * b.panel_stride;
  std::int64_t blocks_to_turn = turn.is;
  BlockInput input = b.input;
  input.x += token * kBlockCols;
  input.scales += token;
  input.starts += token;
  input.sums += token;
  for (std::int64_t left = b.blocks; left > 0; left -= kUnitBlocks) {
    const std::int64_t count = left < kUnitBlocks ? left : kUnitBlocks;
    const std::uint8_t* w = header + header_of(layout, count);
    for (std::int64_t block = 0; block < count; ++block) {
      if (kAll || blocks_to_turn-- == 0) {
        ask<L>(header + ahead, b.panel_stride, block, P);
        blocks_to_turn = turn.of - 1;
      }
      block_half<L, 0>(b, header, block, w, input, width, sum);
      if constexpr (L.halves == 2) block_half<L, 1>(b, header, block, w, input, width, sum);
      w += L.bits * 64;
      input.x += kBlockCols * width;
      input.scales += width;
      input.starts += L.halves * width;
      input.sums += L.halves * width;
    }
    header = w;
  }
  store_sums(b, panel, token, sum);
}

// P panels, `count` tokens from `token` on: kFewest to N.
template <BlockLayout L, int P, int kFewest, int N>
inline void blocks_tokens(const BlockCall& b, std::int64_t panel, std::int64_t token, std::int64_t count, Turn turn) {
  if constexpr (N > kFewest) {
    if (count < N) return blocks_tokens<L, P, kFewest, N - 1>(b, panel, token, count, turn);
  }
  blocks_tile<L, P, N, false>(b, panel, token, turn);
}

// P panels, all tokens, in parts as even as can be, of kFewest to kMost.
template <BlockLayout L, int P, int kFewest, int kMost>
inline void blocks_in_parts(const BlockCall& b, std::int64_t panel) {
  const std::int64_t parts = (b.n_tokens + kMost - 1) / kMost;
  for (std::int64_t i = 0; i < parts; ++i) {
    const std::int64_t token = b.n_tokens * i / parts;
    blocks_tokens<L, P, kFewest, kMost>(b, panel, token, b.n_tokens * (i + 1) / parts - token,
                                        {b.turn + i * b.turns, parts * b.turns});
  }
}

template <BlockLayout L>
inline void blocks_of(const BlockCall& b) {
  std::int64_t panel = 0;
  if (b.n_tokens == 1) {
    for (; panel + kFewPanels <= b.n_panels; panel += kFewPanels) {
      blocks_tile<L, kFewPanels, 1, true>(b, panel, 0, {0, 1});
    }
    for (; panel < b.n_panels; ++panel) blocks_tile<L, 1, 1, true>(b, panel, 0, {0, 1});
    return;
  }
  if constexpr (kPairTokens > 0) {  // a token's bytes are loaded once for both
    if (b.n_tokens >= kFewestForPairs) {
      for (; panel + 2 <= b.n_panels; panel += 2) blocks_in_parts<L, 2, 3, kPairTokens>(b, panel);
    }
  }
  for (; panel < b.n_panels; ++panel) blocks_in_parts<L, 1, 2, kBlockTokens>(b, panel);
}

// THE list of layouts: one for each format. What blocks share is no difference.
inline constexpr BlockLayout kQ8_0{8, 128, 1, false, false};
inline constexpr BlockLayout kQ4_0{4, 8, 1, false, false};
inline constexpr BlockLayout kQ4_1{4, 0, 1, false, true};
inline constexpr BlockLayout kQ5_0{5, 16, 1, false, false};
inline constexpr BlockLayout kQ5_1{5, 0, 1, false, true};
inline constexpr BlockLayout kQ2_K{2, 0, 2, true, true};
inline constexpr BlockLayout kQ3_K{3, 4, 2, true, false};
inline constexpr BlockLayout kQ4_K{4, 0, 1, true, true};
inline constexpr BlockLayout kQ5_K{5, 0, 1, true, true};
inline constexpr BlockLayout kQ6_K{6, 32, 2, true, false};
inline constexpr BlockLayout kIQ4_XS{8, 128, 1, true, false};  // iq4_nl is as q8_0, and mxfp4 as q5_0
inline constexpr BlockLayout kGptq2{2, 0, 1, false, false, true};
inline constexpr BlockLayout kGptq3{3, 0, 1, false, false, true};
inline constexpr BlockLayout kGptq4{4, 0, 1, false, false, true};
inline constexpr BlockLayout kGptq8{8, 128, 1, false, false, true};

// Not BlockLayout's own: the linker could take this ISA's copy of that for the whole program.
inline bool operator==(const BlockLayout& a, const BlockLayout& b) {
  return a.bits == b.bits && a.offset == b.offset && a.halves == b.halves && a.sub_scales == b.sub_scales &&
         a.minimum == b.minimum && a.zeros == b.zeros && a.share == b.share;
}

// Calls f with a layout that the compiler knows.
template <class F>
inline void with_layout(BlockLayout layout, F f) {
  layout.share = 0;
  if (layout == kQ4_0) return f.template operator()<kQ4_0>();
  if (layout == kQ8_0) return f.template operator()<kQ8_0>();
  if (layout == kQ4_K) return f.template operator()<kQ4_K>();
  if (layout == kQ6_K) return f.template operator()<kQ6_K>();
  if (layout == kQ4_1) return f.template operator()<kQ4_1>();
  if (layout == kQ5_0) return f.template operator()<kQ5_0>();
  if (layout == kQ5_1) return f.template operator()<kQ5_1>();
  if (layout == kQ5_K) return f.template operator()<kQ5_K>();
  if (layout == kQ3_K) return f.template operator()<kQ3_K>();
  if (layout == kQ2_K) return f.template operator()<kQ2_K>();
  if (layout == kGptq4) return f.template operator()<kGptq4>();
  if (layout == kGptq8) return f.template operator()<kGptq8>();
  if (layout == kIQ4_XS) return f.template operator()<kIQ4_XS>();
  if (layout == kGptq3) return f.template operator()<kGptq3>();
  return f.template operator()<kGptq2>();
}

inline void matmul_blocks(const BlockCall& b) {
  with_layout(b.layout, [&]<BlockLayout L>() { blocks_of<L>(b); });
}
