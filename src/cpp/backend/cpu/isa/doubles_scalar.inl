// What Arithmetic::llama2c needs besides f32x16's operations: doubles, and keys turned into columns.

using f64 = double;

inline f64 all_f64(double x) { return x; }
inline f64 fma(f64 a, f64 b, f64 c) { return std::fma(a, b, c); }
inline f64 mul(f64 a, f64 b) { return a * b; }
inline f64 sub(f64 a, f64 b) { return a - b; }
// 2^(k / 32), where shifted = k + kExpRound
inline f64 power_of_32nds(f64 shifted) {
  std::uint64_t k;
  std::memcpy(&k, &shifted, 8);
  k = kExpTable[k % 32] + (k << 47);
  f64 power;
  std::memcpy(&power, &k, 8);
  return power;
}
// f on every lane, widened to double; its results rounded.
template <class F>
inline f32x16 in_doubles(f32x16 x, F f) {
  return map([&](int j) { return static_cast<float>(f(static_cast<f64>(x.lane[j]))); });
}

// Four neighbours of each of 16 rows: lane j of column c is rows[j * stride + c].
inline void load_columns(const float* rows, std::int64_t stride, f32x16* columns) {
  for (int c = 0; c < 4; ++c) columns[c] = map([&](int j) { return rows[j * stride + c]; });
}
