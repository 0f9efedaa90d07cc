// What Arithmetic::llama2c needs besides f32x16's operations: doubles, and keys turned into columns.

using f64 = __m512d;

inline f64 all_f64(double x) { return _mm512_set1_pd(x); }
inline f64 fma(f64 a, f64 b, f64 c) { return _mm512_fmadd_pd(a, b, c); }
inline f64 mul(f64 a, f64 b) { return _mm512_mul_pd(a, b); }
inline f64 sub(f64 a, f64 b) { return _mm512_sub_pd(a, b); }
// 2^(k / 32), where shifted = k + kExpRound. The table stays in four registers.
inline f64 power_of_32nds(f64 shifted) {
  const __m512i k = _mm512_castpd_si512(shifted);
  const __m512i low = _mm512_permutex2var_epi64(_mm512_loadu_si512(kExpTable), k, _mm512_loadu_si512(kExpTable + 8));
  const __m512i high =
      _mm512_permutex2var_epi64(_mm512_loadu_si512(kExpTable + 16), k, _mm512_loadu_si512(kExpTable + 24));
  const __mmask8 upper = _mm512_test_epi64_mask(k, _mm512_set1_epi64(16));
  const __m512i entry = _mm512_mask_blend_epi64(upper, low, high);
  return _mm512_castsi512_pd(_mm512_add_epi64(entry, _mm512_slli_epi64(k, 47)));
}
// f on every lane, widened to double; its results rounded.
template <class F>
inline f32x16 in_doubles(f32x16 x, F f) {
  const __m256 lo = _mm512_cvtpd_ps(f(_mm512_cvtps_pd(_mm512_castps512_ps256(x))));
  const __m256 hi = _mm512_cvtpd_ps(f(_mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))));
  return _mm512_insertf32x8(_mm512_castps256_ps512(lo), hi, 1);
}

// Four neighbours of each of 16 rows: lane j of column c is rows[j * stride + c].
inline void load_columns(const float* rows, std::int64_t stride, f32x16* columns) {
  __m512 four[4];  // rows j, j + 4, j + 8 and j + 12, each in a quarter of its own
  for (int j = 0; j < 4; ++j) {
    const float* row = rows + j * stride;
    four[j] = _mm512_castps128_ps512(_mm_loadu_ps(row));
    four[j] = _mm512_mask_broadcast_f32x4(four[j], 0x00F0, _mm_loadu_ps(row + 4 * stride));
    four[j] = _mm512_mask_broadcast_f32x4(four[j], 0x0F00, _mm_loadu_ps(row + 8 * stride));
    four[j] = _mm512_mask_broadcast_f32x4(four[j], 0xF000, _mm_loadu_ps(row + 12 * stride));
  }
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(four[0], four[1]));
  const __m512d b = _mm512_castps_pd(_mm512_unpacklo_ps(four[2], four[3]));
  const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(four[0], four[1]));
  const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(four[2], four[3]));
  columns[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
  columns[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  columns[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
  columns[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
}
