// Block formats and many tokens: a unit is unpacked into bytes and float scales, which several tiles are multiplied with.
// And their input's rounding. The arithmetic is specified in reference_blocks.cpp.

// Two panels in flight, where there are registers for it; one dot and one sum for each panel and token.
constexpr int kUnpackedTokens = kTileTokens / 2;
constexpr int kUnpackedPanels = kTilePanels;

// An unpacked unit: its weights as bytes, its scales as floats.
template <BlockLayout L, int J>
inline void unpack_quad(const std::uint8_t* planes, std::uint8_t* out) {
  if constexpr (L.bits == 8) {
    store_bytes64(out + J * 64, load_bytes64(planes + J * 64));
  } else {
    store_bytes64(out + J * 64, unpack<L.bits, J>(planes));
  }
}

template <BlockLayout L>
inline void unpack_of(const BlockLayout& layout, const std::uint8_t* unit, std::int64_t blocks, std::uint8_t* open) {
  // The panel's next unit is unpacked when all tiles have gone past this one: time enough for it to come from memory.
  const std::uint8_t* next = unit + unit_of(layout);
  for (std::int64_t line = 0; line < unit_of(L); line += 64) prefetch(next + line);
  const std::uint8_t* planes = unit + header_of(layout, blocks);
  for (std::int64_t i = 0; i < blocks; ++i, planes += L.bits * 64) {
    std::uint8_t* out = open + i * 512;
    unpack_quad<L, 0>(planes, out);
    unpack_quad<L, 1>(planes, out);
    unpack_quad<L, 2>(planes, out);
    unpack_quad<L, 3>(planes, out);
    unpack_quad<L, 4>(planes, out);
    unpack_quad<L, 5>(planes, out);
    unpack_quad<L, 6>(planes, out);
    unpack_quad<L, 7>(planes, out);
    for (int half = 0; half < L.halves; ++half) {
      const std::int64_t at = (i * L.halves + half) * 64;
      store(reinterpret_cast<float*>(open + kUnpackedScales + at), block_scale<L>(unit, layout.share, i, half, 0));
      if constexpr (L.minimum) {
        store(reinterpret_cast<float*>(open + kUnpackedMinimums + at), block_scale<L>(unit, layout.share, i, half, 1));
      }
      if constexpr (L.zeros) {
        store(reinterpret_cast<float*>(open + kUnpackedMinimums + at), block_zeros(unit, layout.share, i));
      }
    }
  }
}

inline void unpack_blocks(const BlockLayout& layout, const std::uint8_t* unit, std::int64_t blocks,
                          std::uint8_t* open) {
  with_layout(layout, [&]<BlockLayout L>() { unpack_of<L>(layout, unit, blocks, open); });
}

// What a format has beside scales.
enum class Second { none, minimum, zeros };

// Opened units, P panels x N of the tile's tokens. kWide: bytes up to 255 with offset 128; else they are below 64.
template <int kHalves, Second kSecond, bool kWide, int P, int N>
inline void open_tile(const BlockCall& b, std::int64_t panel, std::int64_t token, int shift_of_offset) {
  f32x16 sum[P][N];
  load_sums(b, panel, token, sum);
  const std::int64_t n_tokens = b.n_tokens;
  const std::uint8_t* open = b.panels + panel * b.panel_stride;
  const std::int8_t* x = b.input.x + token * kBlockCols;
  const float* scales = b.input.scales + token;
  const std::int32_t* starts = b.input.starts + token;
  const float* sums = b.input.sums + token;
  for (std::int64_t block = 0; block < b.blocks; block += kUnitBlocks, open += kUnpackedBytes) {
    const std::int64_t blocks = b.blocks - block < kUnitBlocks ? b.blocks - block : kUnitBlocks;
    const std::uint8_t* w = open;
    for (std::int64_t part = 0; part < blocks * kHalves; ++part) {
      i32x16 dots[P][N];
      for (int n = 0; n < N; ++n) {
        const i32x16 start = kWide                     ? dot_start_128(starts + n)
                             : kSecond == Second::none ? dot_start(starts + n, shift_of_offset)
                                                       : dot_zero();
        for (int p = 0; p < P; ++p) dots[p][n] = start;
      }
      if constexpr (kSecond == Second::zeros) {
        for (int p = 0; p < P; ++p) {
          const std::uint8_t* at = open + p * b.panel_stride + part * 64;
          const i32x16 zeros = to_int(load(reinterpret_cast<const float*>(at + kUnpackedMinimums)));
          for (int n = 0; n < N; ++n) dots[p][n] = add_product(dots[p][n], zeros, starts + n);
        }
      }
      for (int quad = 0; quad < 8 / kHalves; ++quad, w += 64, x += 4) {
        if constexpr (kWide) {
          quads16 row[P];
          for (int p = 0; p < P; ++p) row[p] = load_quads(w + p * b.panel_stride);
          for (int n = 0; n < N; ++n) {
            for (int p = 0; p < P; ++p) dots[p][n] = dot_quads(dots[p][n], row[p], x + n * kBlockCols);
          }
        } else {
          bytes64 row[P];
          for (int p = 0; p < P; ++p) row[p] = load_bytes64(w + p * b.panel_stride);
          for (int n = 0; n < N; ++n) {
            for (int p = 0; p < P; ++p) dots[p][n] = dot_small(dots[p][n], row[p], x + n * kBlockCols);
          }
        }
      }
      for (int p = 0; p < P; ++p) {
        const std::uint8_t* at = open + p * b.panel_stride + part * 64;
        const f32x16 scale = load(reinterpret_cast<const float*>(at + kUnpackedScales));
        for (int n = 0; n < N; ++n) sum[p][n] = fma(mul(scale, set1(scales[n])), to_float(dots[p][n]), sum[p][n]);
        if constexpr (kSecond == Second::minimum) {
          const f32x16 minimum = load(reinterpret_cast<const float*>(at + kUnpackedMinimums));
          for (int n = 0; n < N; ++n) sum[p][n] = fma(minimum, set1(sums[n]), sum[p][n]);
        }
      }
      if (kHalves == 1 || part % 2 == 1) {
        x += (n_tokens - 1) * kBlockCols;
        scales += n_tokens;
      }
      starts += n_tokens;
      sums += n_tokens;
    }
  }
  store_sums(b, panel, token, sum);
}

// N tokens from `token` on, all panels.
template <int kHalves, Second kSecond, bool kWide, int N>
inline void open_tokens(const BlockCall& b, std::int64_t token, std::int64_t count, int shift_of_offset) {
  if constexpr (N > 1) {
    if (count < N) return open_tokens<kHalves, kSecond, kWide, N - 1>(b, token, count, shift_of_offset);
  }
  std::int64_t panel = 0;
  for (; panel + kUnpackedPanels <= b.n_panels; panel += kUnpackedPanels) {
    open_tile<kHalves, kSecond, kWide, kUnpackedPanels, N>(b, panel, token, shift_of_offset);
  }
  if constexpr (kUnpackedPanels > 1) {
    for (; panel < b.n_panels; ++panel) open_tile<kHalves, kSecond, kWide, 1, N>(b, panel, token, shift_of_offset);
  }
}

template <int kHalves, Second kSecond, bool kWide>
inline void open_all(const BlockCall& b) {
  int shift_of_offset = 0;
  while ((2 << shift_of_offset) <= b.layout.offset) ++shift_of_offset;
  const std::int64_t parts = (b.n_tokens + kUnpackedTokens - 1) / kUnpackedTokens;  // of a tile, as even as can be
  for (std::int64_t i = 0; i < parts; ++i) {
    const std::int64_t token = b.n_tokens * i / parts;
    open_tokens<kHalves, kSecond, kWide, kUnpackedTokens>(b, token, b.n_tokens * (i + 1) / parts - token,
                                                          shift_of_offset);
  }
}

inline void matmul_open(const BlockCall& b) {
  constexpr auto none = Second::none;
  constexpr auto minimum = Second::minimum;
  constexpr auto zeros = Second::zeros;
  const BlockLayout& l = b.layout;
  if (l.zeros) return l.bits == 8 ? open_all<1, zeros, true>(b) : open_all<1, zeros, false>(b);
  if (l.bits == 8) return open_all<1, none, true>(b);
  if (l.halves == 1) return l.minimum ? open_all<1, minimum, false>(b) : open_all<1, none, false>(b);
  return l.minimum ? open_all<2, minimum, false>(b) : open_all<2, none, false>(b);
}

template <int I>
inline void widen_column(bytes64 w, f32x16 zero, f32x16 scale, const float* minimum, float* out) {
  const f32x16 value = mul(scale, sub(byte_of<I>(w), zero));
  store(out + I * 16, minimum == nullptr ? value : add(value, load(minimum)));
}

inline void widen_blocks(const BlockLayout& layout, const std::uint8_t* open, std::int64_t blocks, float* out) {
  const f32x16 offset = set1(static_cast<float>(layout.offset));
  for (std::int64_t quad = 0; quad < blocks * 8; ++quad, out += 64) {
    const std::int64_t at = quad * layout.halves / 8 * 64;
    const bytes64 w = load_bytes64(open + quad * 64);
    const f32x16 scale = load(reinterpret_cast<const float*>(open + kUnpackedScales + at));
    const auto* const second = reinterpret_cast<const float*>(open + kUnpackedMinimums + at);
    const float* minimum = layout.minimum ? second : nullptr;
    const f32x16 zero = layout.zeros ? add(offset, load(second)) : offset;
    widen_column<0>(w, zero, scale, minimum, out);
    widen_column<1>(w, zero, scale, minimum, out);
    widen_column<2>(w, zero, scale, minimum, out);
    widen_column<3>(w, zero, scale, minimum, out);
  }
}

// x / scale to the nearest integer, halves to even, within [-127, 127].
inline f32x16 round_even(f32x16 quotient) {
  const f32x16 most = set1(127.0F);
  f32x16 v = if_less(most, quotient, most, quotient);
  v = if_less(v, set1(-127.0F), set1(-127.0F), v);
  const f32x16 magic = set1(12582912.0F);  // 1.5 * 2^23: the sum has no bits below 1
  return sub(add(v, magic), magic);
}

// One block, any x. Returns its scale.
inline float quantize_block(const float* x, std::int8_t* q) {
  const f32x16 zero = set1(0.0F);
  const f32x16 a = load(x);
  const f32x16 b = load(x + 16);
  const f32x16 minus_a = negative_abs(a);
  const f32x16 minus_b = negative_abs(b);
  const float largest = 0.0F - min_lane(if_less(minus_a, minus_b, minus_a, minus_b));
  const float poisoned = sum_lanes(fma(b, zero, mul(a, zero)));  // NaN where x is not finite
  const float scale = largest / 127.0F;
  const bool finite = poisoned == poisoned;
  if (!finite || scale == 0.0F) {
    for (int i = 0; i < 32; ++i) q[i] = 0;
    return finite ? scale : poisoned;
  }
  store_int8(q, round_even(div(a, set1(scale))));
  store_int8(q + 16, round_even(div(b, set1(scale))));
  return scale;
}

// x * inverse to the nearest integer; far too much where that may not be what x / scale rounds to: near the middle of two.
inline f32x16 round_product(f32x16 x, f32x16 inverse) {
  const f32x16 magic = set1(12582912.0F);  // as above; |x * inverse| is at most a little more than 127
  const f32x16 product = mul(x, inverse);
  const f32x16 nearest = sub(add(product, magic), magic);
  // The product is less than 127 * 2^-21 = 6e-5 from the quotient, also where the scale is the smallest denormal number
  // whose inverse is finite.
  const f32x16 minus_distance = negative_abs(sub(product, nearest));
  return if_less(minus_distance, set1(-0.4999F), set1(1e6F), nearest);
}

// N blocks side by side, 4 or 1, from `block` on. A division takes as long as ten products: almost all blocks do with
// those for their scales.
template <int N>
inline void quantize_some(const BlockRounding& r, std::int64_t block) {
  const std::int64_t n = r.n_tokens;
  const float* const x = r.x + block * 32;
  float scale[N];
  float inverse[N];
  for (int i = 0; i < N; ++i) {
    const f32x16 minus_a = negative_abs(load(x + i * 32));
    const f32x16 minus_b = negative_abs(load(x + i * 32 + 16));
    const float largest = 0.0F - min_lane(if_less(minus_a, minus_b, minus_a, minus_b));
    scale[i] = largest / 127.0F;
    inverse[i] = 127.0F / largest;
  }
  f32x16 first[N];
  f32x16 second[N];
  for (int i = 0; i < N; ++i) {
    first[i] = round_product(load(x + i * 32), set1(inverse[i]));
    second[i] = round_product(load(x + i * 32 + 16), set1(inverse[i]));
  }
  // Sums of such integers are exact in any order.
  float sum[2][N];
  const auto sum_up = [](const f32x16(&lanes)[N], float* sums) {
    if constexpr (N == 4) sum_lanes_of_4(lanes, 1.0F, sums);
    if constexpr (N == 1) *sums = sum_lanes(lanes[0]);
  };
  if (r.halves == 1) {
    f32x16 both[N];
    for (int i = 0; i < N; ++i) both[i] = add(first[i], second[i]);
    sum_up(both, sum[0]);
    for (int i = 0; i < N; ++i) sum[1][i] = 0.0F;
  } else {
    sum_up(first, sum[0]);
    sum_up(second, sum[1]);
  }
  for (int i = 0; i < N; ++i) {
    std::int8_t* const q = r.q + (block + i) * 32 * n;
    // At most 32 * 127. Far more where a product was near the middle; NaN where x is not finite or 127 / largest is not.
    const float all = sum[0][i] + sum[1][i];
    if (all > -5000.0F && all < 5000.0F) {
      store_int8(q, first[i]);
      store_int8(q + 16, second[i]);
    } else {
      scale[i] = quantize_block(x + i * 32, q);
      const float half = sum_lanes(load_int8(q + 16));
      sum[0][i] = sum_lanes(load_int8(q)) + (r.halves == 1 ? half : 0.0F);
      sum[1][i] = half;
    }
    r.scales[(block + i) * n] = scale[i];
    for (std::int64_t half = 0; half < r.halves; ++half) {
      const std::int64_t at = ((block + i) * r.halves + half) * n;
      r.starts[at] = -static_cast<std::int32_t>(sum[half][i]);
      r.sums[at] = scale[i] * sum[half][i];
    }
  }
}

inline void quantize_blocks(const BlockRounding& r) {
  std::int64_t block = 0;
  for (; block + 4 <= r.blocks; block += 4) quantize_some<4>(r, block);
  for (; block < r.blocks; ++block) quantize_some<1>(r, block);
}
