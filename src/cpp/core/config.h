// The sizes and constants that make one Llama differ from another. Plain data: every room may know it.
#pragma once

#include <cstdint>
#include <string_view>

namespace llama2cpp {

// In which order the rows of wq and wk hold the pairs that rotary embedding turns:
// interleaved (2j, 2j + 1) in llama2.c and GGUF files, half_split (j, j + head_dim / 2) in Hugging Face's.
enum class RopeStyle : std::uint8_t { interleaved, half_split };

inline std::string_view to_string(RopeStyle style) {
  return style == RopeStyle::interleaved ? "interleaved" : "half_split";
}

struct Config {
  std::int64_t dim = 0;         // width of the residual stream
  std::int64_t hidden_dim = 0;  // width of the gated MLP
  std::int64_t n_layers = 0;
  std::int64_t n_heads = 0;     // query heads
  std::int64_t n_kv_heads = 0;  // key and value heads; divides n_heads
  std::int64_t head_dim = 0;    // width of one head, even
  std::int64_t vocab_size = 0;
  std::int64_t seq_len = 0;  // the context that the model was trained for
  float norm_eps = 1e-5F;
  float rope_theta = 10000.0F;
  RopeStyle rope_style = RopeStyle::interleaved;
  bool tied = false;  // the output matrix is the embedding table

  std::int64_t q_dim() const { return n_heads * head_dim; }
  std::int64_t kv_dim() const { return n_kv_heads * head_dim; }
  std::int64_t heads_per_kv() const { return n_heads / n_kv_heads; }

  // Throws FormatError, with the field's name and value, unless the sizes can be those of a Llama.
  void validate() const;
};

}  // namespace llama2cpp
