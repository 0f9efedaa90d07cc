// The sizes and constants that make one Llama differ from another. Plain data: every room may know it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace llama2cpp {

// In which order the rows of wq and wk hold the pairs that rotary embedding turns:
// interleaved (2j, 2j + 1) in llama2.c and GGUF files, half_split (j, j + head_dim / 2) in Hugging Face's.
enum class RopeStyle : std::uint8_t { interleaved, half_split };

inline std::string_view to_string(RopeStyle style) {
  return style == RopeStyle::interleaved ? "interleaved" : "half_split";
}

// How rotary frequencies are changed for contexts longer than the first training's.
struct RopeScaling {
  // linear: all are divided by the factor. llama3: those whose wave is longer than original_context / low_freq_factor
  // are, those below original_context / high_freq_factor are not, and between the two it changes smoothly.
  // yarn: those that turn less than beta_slow times in original_context are, those above beta_fast are not, and between the
  // two it changes evenly from one frequency to the next; and cos and sin are multiplied by attention_factor.
  // dynamic: none are up to original_context, and every position beyond it would change all of them. longrope: rope_factors
  // are those up to original_context, others would be beyond it; and cos and sin are multiplied by attention_factor. Both
  // are computed up to original_context only: what is in the cache would have to be turned again.
  enum class Kind : std::uint8_t { none, linear, llama3, yarn, dynamic, longrope };

  Kind kind = Kind::none;
  float factor = 1.0F;
  float low_freq_factor = 1.0F;
  float high_freq_factor = 4.0F;
  std::int64_t original_context = 8192;
  float attention_factor = 1.0F;
  float beta_fast = 32.0F;
  float beta_slow = 1.0F;
  bool truncate = true;  // where the change begins and ends are whole numbers of frequencies

  bool operator==(const RopeScaling&) const = default;
};

inline std::string_view to_string(RopeScaling::Kind kind) {
  switch (kind) {
    case RopeScaling::Kind::linear:
      return "linear";
    case RopeScaling::Kind::llama3:
      return "llama3";
    case RopeScaling::Kind::yarn:
      return "yarn";
    case RopeScaling::Kind::dynamic:
      return "dynamic";
    case RopeScaling::Kind::longrope:
      return "longrope";
    default:
      return "none";
  }
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
  RopeScaling rope_scaling;
  std::vector<float> rope_factors;  // [head_dim / 2] each frequency is divided by its own; empty: by none
  std::int64_t sliding_window = 0;  // a position sees itself and the window - 1 before it; 0: all before it
  RopeStyle rope_style = RopeStyle::interleaved;
  bool tied = false;  // the output matrix is the embedding table

  std::int64_t q_dim() const { return n_heads * head_dim; }
  std::int64_t kv_dim() const { return n_kv_heads * head_dim; }
  std::int64_t heads_per_kv() const { return n_heads / n_kv_heads; }

  // The context that a session has where none is asked for.
  std::int64_t default_context() const;

  // Throws std::invalid_argument for a context of no position, and for one beyond what the rotary scaling is computed for.
  void check_context(std::int64_t context) const;

  // Throws FormatError, with the field's name and value, unless the sizes can be those of a Llama.
  void validate() const;
};

}  // namespace llama2cpp
