// What ISA files share that have too few registers to do it as AVX-512's do.

constexpr std::int64_t kMostScores = 160 * 1024;  // most of a second-level cache

// How many keys are done for all queries together (see scores_of_many.inl): none.
template <class T>
std::int64_t score_many(const ScoresOf<T>&) {
  return 0;
}

// Rows become columns: [rows][16] -> [16][rows], without a square of registers.
inline void turn_rows(const float* x, std::int64_t stride, std::int64_t rows, float* out, std::int64_t out_stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < 16; ++i) out[i * out_stride + r] = x[r * stride + i];
  }
}

// And how many for few queries (see scores_of_few.inl): those before `key`.
template <int N, class T, class F>
std::int64_t score_few(const ScoresOf<T>&, std::int64_t, std::int64_t key, F) {
  return key;
}
