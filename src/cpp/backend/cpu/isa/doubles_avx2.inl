// What Arithmetic::llama2c needs besides f32x16's operations: doubles, and keys turned into columns.

using f64 = __m256d;

inline f64 all_f64(double x) { return _mm256_set1_pd(x); }
inline f64 fma(f64 a, f64 b, f64 c) { return _mm256_fmadd_pd(a, b, c); }
inline f64 mul(f64 a, f64 b) { return _mm256_mul_pd(a, b); }
inline f64 sub(f64 a, f64 b) { return _mm256_sub_pd(a, b); }
// 2^(k / 32), where shifted = k + kExpRound
inline f64 power_of_32nds(f64 shifted) {
  const __m256i k = _mm256_castpd_si256(shifted);
  const __m256i index = _mm256_and_si256(k, _mm256_set1_epi64x(31));
  const __m256i entry = _mm256_i64gather_epi64(reinterpret_cast<const long long*>(kExpTable), index, 8);
  return _mm256_castsi256_pd(_mm256_add_epi64(entry, _mm256_slli_epi64(k, 47)));
}
// f on every lane, widened to double; its results rounded.
template <class F>
inline __m256 in_doubles(__m256 x, F f) {
  const __m128 lo = _mm256_cvtpd_ps(f(_mm256_cvtps_pd(_mm256_castps256_ps128(x))));
  const __m128 hi = _mm256_cvtpd_ps(f(_mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))));
  return _mm256_insertf128_ps(_mm256_castps128_ps256(lo), hi, 1);
}
template <class F>
inline f32x16 in_doubles(f32x16 x, F f) {
  return {in_doubles(x.lo, f), in_doubles(x.hi, f)};
}

// Four neighbours of each of 8 rows: lane j of column c is rows[j * stride + c].
inline void load_eight(const float* rows, std::int64_t stride, __m256* columns) {
  __m256 two[4];  // rows j and j + 4, each in a half of its own
  for (int j = 0; j < 4; ++j) {
    const float* row = rows + j * stride;
    two[j] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(row + 4 * stride), 1);
  }
  const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(two[0], two[1]));
  const __m256d b = _mm256_castps_pd(_mm256_unpacklo_ps(two[2], two[3]));
  const __m256d c = _mm256_castps_pd(_mm256_unpackhi_ps(two[0], two[1]));
  const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(two[2], two[3]));
  columns[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
  columns[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
  columns[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(c, d));
  columns[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(c, d));
}
// The same of 16 rows.
inline void load_columns(const float* rows, std::int64_t stride, f32x16* columns) {
  __m256 lo[4];
  __m256 hi[4];
  load_eight(rows, stride, lo);
  load_eight(rows + 8 * stride, stride, hi);
  for (int c = 0; c < 4; ++c) columns[c] = {lo[c], hi[c]};
}
