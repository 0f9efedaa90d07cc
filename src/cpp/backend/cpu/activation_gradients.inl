// Gradients of what an MLP does between its matrices. The arithmetic is specified in reference.cpp.

// What an activation gives, and by how much it grows with what it is given.
struct Slope {
  f32x16 value, slope;
};

inline Slope silu_slope(f32x16 x) {
  const f32x16 s = sigmoid(x);
  const f32x16 value = mul(x, s);
  return {value, fma(value, sub(set1(1.0F), s), s)};
}

inline Slope gelu_tanh_slope(f32x16 x) {
  const f32x16 square = mul(x, x);
  const f32x16 s = sigmoid(mul(x, fma(square, set1(0.0713548163F), set1(1.59576912F))));
  const f32x16 value = mul(x, s);
  const f32x16 inner = fma(square, set1(0.214064449F), set1(1.59576912F));
  return {value, fma(mul(value, sub(set1(1.0F), s)), inner, s)};
}

inline Slope relu_squared_slope(f32x16 x) {
  const f32x16 positive = if_less(x, set1(0.0F), set1(0.0F), x);
  return {mul(positive, positive), add(positive, positive)};
}

// What the gate and what is multiplied with it get of the output's d.
struct TwoGradients {
  f32x16 gate, up;
};

inline TwoGradients clamped_swiglu_gradient(f32x16 gate, f32x16 up, f32x16 d) {
  const f32x16 most = set1(7.0F);
  const f32x16 least = set1(-7.0F);
  const f32x16 zero = set1(0.0F);
  const f32x16 one = set1(1.0F);
  const f32x16 g = if_less(most, gate, most, gate);
  const f32x16 u = if_less(most, up, most, if_less(up, least, least, up));
  const f32x16 s = sigmoid(mul(set1(1.702F), g));
  const f32x16 value = mul(g, s);
  const f32x16 slope = fma(mul(set1(1.702F), value), sub(one, s), s);
  return {if_less(most, gate, zero, mul(mul(d, add(u, one)), slope)),
          if_less(most, up, zero, if_less(up, least, zero, mul(d, value)))};
}

// f(gate, up, d) of 16 at a time.
template <class F>
inline void each_two(F f, const float* gate, const float* up, float* d, float* dup, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const TwoGradients both = f(load(gate + i), load(up + i), load(d + i));
    store(d + i, both.gate);
    store(dup + i, both.up);
  }
  if (i == n) return;
  const TwoGradients both = f(load_part(gate + i, n - i), load_part(up + i, n - i), load_part(d + i, n - i));
  store_part(d + i, both.gate, n - i);
  store_part(dup + i, both.up, n - i);
}

template <class F>
inline void gradient_by(F f, const float* gate, const float* up, float* d, float* dup, std::int64_t n) {
  if (up == nullptr) return each_pair([&](f32x16 x, f32x16 y) { return mul(y, f(x).slope); }, gate, d, d, n);
  each_two(
      [&](f32x16 x, f32x16 u, f32x16 y) {
        const Slope a = f(x);
        return TwoGradients{mul(mul(y, u), a.slope), mul(y, a.value)};
      },
      gate, up, d, dup, n);
}

inline void gated_gradient(Activation activation, const float* gate, const float* up, float* d, float* dup,
                           std::int64_t n) {
  switch (activation) {
    case Activation::silu:
      return gradient_by([](f32x16 x) { return silu_slope(x); }, gate, up, d, dup, n);
    case Activation::gelu_tanh:
      return gradient_by([](f32x16 x) { return gelu_tanh_slope(x); }, gate, up, d, dup, n);
    case Activation::relu_squared:
      return gradient_by([](f32x16 x) { return relu_squared_slope(x); }, gate, up, d, dup, n);
    case Activation::clamped_swiglu:
      return each_two([](f32x16 g, f32x16 u, f32x16 y) { return clamped_swiglu_gradient(g, u, y); }, gate, up, d, dup,
                      n);
  }
}
