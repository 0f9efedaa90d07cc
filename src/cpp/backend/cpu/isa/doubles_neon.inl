// What Arithmetic::llama2c needs besides f32x16's operations: doubles, and keys turned into columns.

using f64 = float64x2_t;

inline f64 all_f64(double x) { return vdupq_n_f64(x); }
inline f64 fma(f64 a, f64 b, f64 c) { return vfmaq_f64(c, a, b); }
inline f64 mul(f64 a, f64 b) { return vmulq_f64(a, b); }
inline f64 sub(f64 a, f64 b) { return vsubq_f64(a, b); }
// 2^(k / 32), where shifted = k + kExpRound
inline f64 power_of_32nds(f64 shifted) {
  const uint64x2_t k = vreinterpretq_u64_f64(shifted);
  const uint64x2_t entry =
      vcombine_u64(vld1_u64(kExpTable + vgetq_lane_u64(k, 0) % 32), vld1_u64(kExpTable + vgetq_lane_u64(k, 1) % 32));
  return vreinterpretq_f64_u64(vaddq_u64(entry, vshlq_n_u64(k, 47)));
}
// f on every lane, widened to double; its results rounded.
template <class F>
inline f32x16 in_doubles(const f32x16& x, F f) {
  return map([&](int i) {
    const float32x2_t lo = vcvt_f32_f64(f(vcvt_f64_f32(vget_low_f32(x.q[i]))));
    return vcvt_high_f32_f64(lo, f(vcvt_high_f64_f32(x.q[i])));
  });
}

// Four neighbours of each of 16 rows: lane j of column c is rows[j * stride + c].
inline void load_columns(const float* rows, std::int64_t stride, f32x16* columns) {
  for (int i = 0; i < 4; ++i) {
    const float* row = rows + 4 * i * stride;
    const float32x4_t r0 = vld1q_f32(row);
    const float32x4_t r1 = vld1q_f32(row + stride);
    const float32x4_t r2 = vld1q_f32(row + 2 * stride);
    const float32x4_t r3 = vld1q_f32(row + 3 * stride);
    const float64x2_t a = vreinterpretq_f64_f32(vzip1q_f32(r0, r1));
    const float64x2_t b = vreinterpretq_f64_f32(vzip1q_f32(r2, r3));
    const float64x2_t c = vreinterpretq_f64_f32(vzip2q_f32(r0, r1));
    const float64x2_t d = vreinterpretq_f64_f32(vzip2q_f32(r2, r3));
    columns[0].q[i] = vreinterpretq_f32_f64(vzip1q_f64(a, b));
    columns[1].q[i] = vreinterpretq_f32_f64(vzip2q_f64(a, b));
    columns[2].q[i] = vreinterpretq_f32_f64(vzip1q_f64(c, d));
    columns[3].q[i] = vreinterpretq_f32_f64(vzip2q_f64(c, d));
  }
}
