// Kernels along one vector. kernels.inl includes this and the other .inl files beside it, once for each ISA, after f32x16
// and its operations. The arithmetic is specified in reference.cpp.

inline float sum_squares(const float* x, std::int64_t n) {
  f32x16 lanes = set1(0.0F);
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const f32x16 v = load(x + i);
    lanes = fma(v, v, lanes);
  }
  if (i < n) {
    const f32x16 v = load_part(x + i, n - i);
    lanes = fma(v, v, lanes);
  }
  return sum_lanes(lanes);
}

inline void scale(const float* x, float factor, const float* gain, float* out, std::int64_t n) {
  const f32x16 f = set1(factor);
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const f32x16 v = mul(load(x + i), f);
    store(out + i, gain == nullptr ? v : mul(v, load(gain + i)));
  }
  if (i < n) {
    const f32x16 v = mul(load_part(x + i, n - i), f);
    store_part(out + i, gain == nullptr ? v : mul(v, load_part(gain + i, n - i)), n - i);
  }
}

inline void center(const float* x, float* out, std::int64_t n) {
  f32x16 lanes = set1(0.0F);
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) lanes = add(lanes, load(x + i));
  if (i < n) lanes = add(lanes, load_part(x + i, n - i));
  const f32x16 mean = set1(sum_lanes(lanes) / static_cast<float>(n));
  for (i = 0; i + 16 <= n; i += 16) store(out + i, sub(load(x + i), mean));
  if (i < n) store_part(out + i, sub(load_part(x + i, n - i), mean), n - i);
}

inline void add_vectors(const float* a, const float* b, float* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, add(load(a + i), load(b + i)));
  if (i < n) store_part(out + i, add(load_part(a + i, n - i), load_part(b + i, n - i)), n - i);
}

// One element's turn: (a cos - b sin) or, with sin's sign changed, (b cos + a sin); `partner` is the other of the pair.
inline f32x16 turn(f32x16 x, f32x16 partner, f32x16 cos, f32x16 signed_sin) {
  return fma(x, cos, mul(partner, signed_sin));
}

template <class Turn>
inline void turn_interleaved(Turn turn, float* x, const float* cos, const float* sin, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const f32x16 v = load(x + i);
    store(x + i, turn(v, swap_pairs(v), repeat_pairs(cos + i / 2), negate_even(repeat_pairs(sin + i / 2))));
  }
  if (i < n) {
    float c[8] = {};
    float s[8] = {};
    for (std::int64_t j = 0; j < (n - i) / 2; ++j) {
      c[j] = cos[i / 2 + j];
      s[j] = sin[i / 2 + j];
    }
    const f32x16 v = load_part(x + i, n - i);
    store_part(x + i, turn(v, swap_pairs(v), repeat_pairs(c), negate_even(repeat_pairs(s))), n - i);
  }
}

template <class Turn>
inline void turn_half_split(Turn turn, float* x, const float* cos, const float* sin, std::int64_t n) {
  const std::int64_t half = n / 2;
  const f32x16 minus = set1(-1.0F);
  std::int64_t j = 0;
  for (; j + 16 <= half; j += 16) {
    const f32x16 a = load(x + j);
    const f32x16 b = load(x + half + j);
    const f32x16 c = load(cos + j);
    const f32x16 s = load(sin + j);
    store(x + j, turn(a, b, c, mul(s, minus)));
    store(x + half + j, turn(b, a, c, s));
  }
  if (j < half) {
    const std::int64_t rest = half - j;
    const f32x16 a = load_part(x + j, rest);
    const f32x16 b = load_part(x + half + j, rest);
    const f32x16 c = load_part(cos + j, rest);
    const f32x16 s = load_part(sin + j, rest);
    store_part(x + j, turn(a, b, c, mul(s, minus)), rest);
    store_part(x + half + j, turn(b, a, c, s), rest);
  }
}

inline void rope_interleaved(float* x, const float* cos, const float* sin, std::int64_t n) {
  turn_interleaved(turn, x, cos, sin, n);
}

inline void rope_half_split(float* x, const float* cos, const float* sin, std::int64_t n) {
  turn_half_split(turn, x, cos, sin, n);
}

template <class Store>
inline void narrow_by(Store store, const float* x, std::uint16_t* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, load(x + i));
  if (i < n) {
    std::uint16_t rest[16];
    store(rest, load_part(x + i, n - i));
    for (std::int64_t j = 0; j < n - i; ++j) out[i + j] = rest[j];
  }
}
inline void narrow(const float* x, std::uint16_t* out, std::int64_t n) {
  narrow_by([](std::uint16_t* to, f32x16 a) { store_half(to, a); }, x, out, n);
}
inline void narrow_bf16(const float* x, std::uint16_t* out, std::int64_t n) {
  narrow_by([](std::uint16_t* to, f32x16 a) { store_bf16(to, a); }, x, out, n);
}

// x / scale to the nearest integer, halves away from zero, within [-127, 127].
inline f32x16 round_away(f32x16 quotient) {
  const f32x16 most = set1(127.0F);
  f32x16 v = if_less(most, quotient, most, quotient);
  v = if_less(v, set1(-127.0F), set1(-127.0F), v);
  const f32x16 whole = truncate(v);
  const f32x16 rest = sub(v, whole);  // exact
  const f32x16 half = set1(0.5F);
  const f32x16 up = if_less(rest, half, whole, add(whole, set1(1.0F)));
  return if_less(set1(-0.5F), rest, up, sub(whole, set1(1.0F)));
}

inline void quantize(const float* x, std::int64_t groups, std::int64_t group, std::int8_t* q, float* scales) {
  const std::int64_t whole = group / 16 * 16;
  const std::int64_t rest = group - whole;
  for (std::int64_t g = 0; g < groups; ++g, x += group, q += group) {
    f32x16 lowest = set1(0.0F);  // -|x|
    f32x16 poison = set1(0.0F);  // x * 0: NaN where x is not finite
    const f32x16 zero = set1(0.0F);
    for (std::int64_t i = 0; i <= whole; i += 16) {
      if (i == whole && rest == 0) break;
      const f32x16 v = i < whole ? load(x + i) : load_part(x + i, rest);
      const f32x16 minus = negative_abs(v);
      lowest = if_less(minus, lowest, minus, lowest);
      poison = fma(v, zero, poison);
    }
    const float largest = 0.0F - min_lane(lowest);  // never -0
    const float poisoned = sum_lanes(poison);
    const float scale = largest / 127.0F;
    const bool finite = poisoned == poisoned;
    scales[g] = finite ? scale : poisoned;
    if (!finite || scale == 0.0F) {
      for (std::int64_t i = 0; i < group; ++i) q[i] = 0;
      continue;
    }
    const f32x16 divisor = set1(scale);
    for (std::int64_t i = 0; i < whole; i += 16) store_int8(q + i, round_away(div(load(x + i), divisor)));
    if (rest > 0) {
      std::int8_t last[16];
      store_int8(last, round_away(div(load_part(x + whole, rest), divisor)));
      for (std::int64_t i = 0; i < rest; ++i) q[whole + i] = last[i];
    }
  }
}
