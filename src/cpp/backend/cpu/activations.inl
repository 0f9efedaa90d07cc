// Exponentials, and what an MLP makes of them. The arithmetic is specified in reference.cpp.

// e^x for x <= 0 is (1 + q r) * power, as in reference.cpp.
struct Exponential {
  f32x16 r, q, power;
};
inline Exponential exponential_of(f32x16 x) {
  const f32x16 round = set1(12582912.0F);
  const f32x16 t = fma(x, set1(1.44269504F), round);
  const f32x16 n = sub(t, round);
  f32x16 r = fma(n, set1(-0.693145752F), x);
  r = fma(n, set1(-1.42860677e-6F), r);
  f32x16 p = set1(1.0F / 5040.0F);
  p = fma(p, r, set1(1.0F / 720.0F));
  p = fma(p, r, set1(1.0F / 120.0F));
  p = fma(p, r, set1(1.0F / 24.0F));
  p = fma(p, r, set1(1.0F / 6.0F));
  p = fma(p, r, set1(0.5F));
  p = fma(p, r, set1(1.0F));
  return {r, p, power_of_two(t)};
}

// e^x, and e^x - 1, for x <= 0
inline f32x16 exp_nonpositive(f32x16 x) {
  const Exponential e = exponential_of(x);
  return if_less(x, set1(-87.0F), set1(0.0F), mul(fma(e.q, e.r, set1(1.0F)), e.power));
}
inline f32x16 exp_nonpositive_less_1(f32x16 x) {
  const Exponential e = exponential_of(x);
  const f32x16 value = fma(mul(e.q, e.power), e.r, sub(e.power, set1(1.0F)));
  return if_less(x, set1(-87.0F), set1(-1.0F), value);
}

inline f32x16 sigmoid(f32x16 x) {
  const f32x16 e = exp_nonpositive(negative_abs(x));
  const f32x16 one = set1(1.0F);
  // x >= 0 ? 1 : e. A NaN in x is in e too, so either choice gives NaN.
  return div(if_less(x, set1(0.0F), e, one), add(one, e));
}

inline f32x16 silu(f32x16 x) { return mul(x, sigmoid(x)); }

inline f32x16 gelu_tanh(f32x16 x) {
  const f32x16 slope = fma(mul(x, x), set1(0.0713548163F), set1(1.59576912F));
  return mul(x, sigmoid(mul(x, slope)));
}

inline f32x16 relu_squared(f32x16 x) {
  const f32x16 positive = if_less(x, set1(0.0F), set1(0.0F), x);
  return mul(positive, positive);
}

inline f32x16 clamped_swiglu(f32x16 gate, f32x16 up) {
  const f32x16 most = set1(7.0F);
  const f32x16 least = set1(-7.0F);
  const f32x16 g = if_less(most, gate, most, gate);
  const f32x16 u = if_less(most, up, most, if_less(up, least, least, up));
  return mul(add(u, set1(1.0F)), mul(g, sigmoid(mul(set1(1.702F), g))));
}

// out = f(gate, up)
template <class F>
inline void each_pair(F f, const float* gate, const float* up, float* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, f(load(gate + i), load(up + i)));
  if (i < n) store_part(out + i, f(load_part(gate + i, n - i), load_part(up + i, n - i)), n - i);
}

template <class F>
inline void gate_by(F f, const float* gate, const float* up, float* out, std::int64_t n) {
  each_pair([&](f32x16 g, f32x16 u) { return mul(f(g), u); }, gate, up, out, n);
}

template <class F>
inline void each(F f, const float* x, float* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, f(load(x + i)));
  if (i < n) store_part(out + i, f(load_part(x + i, n - i)), n - i);
}

inline f32x16 tanh_of(f32x16 x) {
  const f32x16 m = exp_nonpositive_less_1(negative_abs(add(x, x)));
  const f32x16 minus = div(m, add(m, set1(2.0F)));  // -tanh(|x|)
  const f32x16 zero = set1(0.0F);
  return if_less(x, zero, minus, if_less(zero, x, sub(zero, minus), x));  // zeros keep their sign, NaN is NaN
}

inline void soft_cap(const float* x, float cap, float* out, std::int64_t n) {
  const f32x16 c = set1(cap);
  each([&](f32x16 v) { return mul(c, tanh_of(div(v, c))); }, x, out, n);
}

inline void gated(Activation activation, const float* gate, const float* up, float* out, std::int64_t n) {
  const auto by = [&](auto f) { return up == nullptr ? each(f, gate, out, n) : gate_by(f, gate, up, out, n); };
  switch (activation) {
    case Activation::silu:
      return by([](f32x16 x) { return silu(x); });
    case Activation::gelu_tanh:
      return by([](f32x16 x) { return gelu_tanh(x); });
    case Activation::relu_squared:
      return by([](f32x16 x) { return relu_squared(x); });
    case Activation::clamped_swiglu:
      return each_pair([](f32x16 g, f32x16 u) { return clamped_swiglu(g, u); }, gate, up, out, n);
  }
}
