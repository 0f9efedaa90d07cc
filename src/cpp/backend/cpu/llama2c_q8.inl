// Attention over keys and values in q8_0, in llama2.c's order: that of floats, with float(q) * scale for each number.
namespace llama2c_order {

// Up to 16 keys, by way of floats in a buffer, 16 dimensions at a time.
inline void score_keys_q8(const float* q, const Q8Block* keys, std::int64_t n, std::int64_t head_dim, f32x16 root,
                          float* out) {
  alignas(64) float wide[16 * 16] = {};
  f32x16 sum = set1(0.0F);
  for (std::int64_t i = 0; i < head_dim; i += 16) {
    for (std::int64_t j = 0; j < n; ++j) {
      const Q8Block& block = keys[(j * head_dim + i) / 32];
      store(wide + j * 16, mul(load_int8(block.q + i % 32), set1_half(&block.scale)));
    }
    for (std::int64_t c = 0; c < 16; c += 4) {
      f32x16 columns[4];
      load_columns(wide + c, 16, columns);
      for (std::int64_t k = 0; k < 4; ++k) sum = add(sum, mul(set1(q[i + c + k]), columns[k]));
    }
  }
  store_part(out, div(sum, root), n);
}

inline void scores_q8(const ScoresOf<Q8Block>& call) {
  const f32x16 root = set1(call.root);
  for (std::int64_t i = 0; i < call.queries; ++i) {
    for (std::int64_t p = 0; p < call.n; p += 16) {
      score_keys_q8(call.q[i], call.keys + p * call.head_dim / 32, call.n - p < 16 ? call.n - p : 16, call.head_dim,
                    root, call.out[i] + p);
    }
  }
}

// z[0, 32 B) of a head.
template <int B>
inline void mix_blocks_q8(const float* pattern, const Q8Block* values, std::int64_t n, std::int64_t blocks, float* z) {
  f32x16 sum[B][2];
  for (int b = 0; b < B; ++b) sum[b][0] = sum[b][1] = set1(0.0F);
  for (std::int64_t p = 0; p < n; ++p) {
    const f32x16 w = set1(pattern[p]);
    for (int b = 0; b < B; ++b) {
      f32x16 value[2];
      load_block(values[p * blocks + b], value);
      for (int half = 0; half < 2; ++half) sum[b][half] = add(sum[b][half], mul(w, value[half]));
    }
  }
  for (int b = 0; b < B; ++b) {
    store(z + b * 32, sum[b][0]);
    store(z + b * 32 + 16, sum[b][1]);
  }
}

inline void mix_q8(const MixOf<Q8Block>& call) {
  const std::int64_t blocks = call.head_dim / 32;
  for (std::int64_t i = 0; i < call.queries; ++i) {
    std::int64_t b = 0;
    for (; b + 2 <= blocks; b += 2) {
      mix_blocks_q8<2>(call.pattern[i], call.values + b, call.n[i], blocks, call.z[i] + b * 32);
    }
    if (b < blocks) mix_blocks_q8<1>(call.pattern[i], call.values + b, call.n[i], blocks, call.z[i] + b * 32);
  }
}

}  // namespace llama2c_order
