// The sizes and constants that make one Llama differ from another. Plain data: every room may know it.
//
// Adding a field: the field, and its line in fields(). What validates a config, hashes it, shows it to Python and takes it
// from there, and what reads it from files of panels goes through fields().
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/activation.h"
#include "core/fields.h"
#include "core/router_order.h"

namespace llama2cpp {

struct Config;

// What holds for a field of Config or RopeScaling, whoever reads, writes, checks or shows it.
struct Field {
  static constexpr std::int64_t kMost = std::int64_t{1}
                                        << 30;  // far above any real model, and products do not overflow

  std::string_view name;
  std::string_view doc;  // for people

  // Integers are from `least` to `most`; where least is 0, that is none: None in Python, null in JSON.
  std::int64_t least = 1;
  std::int64_t most = kMost;
  bool may_be_zero = false;  // floats are finite and above 0, or 0 too

  std::int64_t (*derived)(const Config&) = nullptr;  // what an integer is where Python does not give it; null: needed
  bool original = true;                              // in every fingerprint; else only where it is set
  std::uint32_t kinds = ~std::uint32_t{0};           // RopeScaling: a bit for each kind that has it
};

// In which order the rows of wq and wk hold the pairs that rotary embedding turns:
// interleaved (2j, 2j + 1) in llama2.c and GGUF files, half_split (j, j + head_dim / 2) in Hugging Face's.
enum class RopeStyle : std::uint8_t { interleaved, half_split };

inline std::string_view to_string(RopeStyle style) {
  return style == RopeStyle::interleaved ? "interleaved" : "half_split";
}

// Whether queries and keys are RMS-normalised before rotary embedding: each head by itself, or all heads of a token as one;
// or each head after it.
enum class QkNorm : std::uint8_t { none, head, full, head_after_rope };

inline std::string_view to_string(QkNorm norm) {
  constexpr std::string_view kNames[] = {"none", "head", "full", "head_after_rope"};
  return kNames[static_cast<std::size_t>(norm)];
}

// Which norms each half of a layer has: of what it reads, of what it adds to the residual stream, or of both.
enum class NormPlaces : std::uint8_t { before, after, both };

inline std::string_view to_string(NormPlaces places) {
  constexpr std::string_view kNames[] = {"before", "after", "both"};
  return kNames[static_cast<std::size_t>(places)];
}

// rms: RMSNorm. layer: LayerNorm, with biases or without. layer_plain: LayerNorm without gains.
enum class NormKind : std::uint8_t { rms, layer, layer_plain };

inline std::string_view to_string(NormKind kind) {
  constexpr std::string_view kNames[] = {"rms", "layer", "layer_plain"};
  return kNames[static_cast<std::size_t>(kind)];
}

inline std::string_view to_string(Activation activation) {
  constexpr std::string_view kNames[] = {"silu", "gelu_tanh", "relu_squared", "clamped_swiglu"};
  return kNames[static_cast<std::size_t>(activation)];
}

// Whether it is of two products, and of one alone says nothing.
inline bool needs_gate(Activation activation) { return activation == Activation::clamped_swiglu; }

// Layers of a model by their numbers, ascending.
using Layers = std::vector<std::int64_t>;

// How rotary frequencies are changed for contexts longer than the first training's.
struct RopeScaling {
  // linear: all are divided by the factor. llama3: those whose wave is longer than original_context / low_freq_factor
  // are, those below original_context / high_freq_factor are not, and between the two it changes smoothly.
  // yarn: those that turn less than beta_slow times in original_context are, those above beta_fast are not, and between the
  // two it changes evenly from one frequency to the next; and cos and sin are multiplied by attention_factor.
  // dynamic: none are up to original_context, and every position beyond it would change all of them: it is computed up to
  // there only. longrope: rope_factors are those of contexts up to original_context, rope_long_factors those of longer
  // ones, where they are known; and cos and sin are multiplied by attention_factor.
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

  static constexpr std::uint32_t bit(Kind kind) { return std::uint32_t{1} << static_cast<unsigned>(kind); }
  bool has(const Field& field) const { return (field.kinds & bit(kind)) != 0; }

  // visit(field, member) for each field, in the order in which Python shows them.
  template <class Visit>
  static constexpr void fields(Visit visit) {
    constexpr std::uint32_t kLlama3 = bit(Kind::llama3), kYarn = bit(Kind::yarn), kLongrope = bit(Kind::longrope);
    constexpr std::uint32_t kWithContext = kLlama3 | kYarn | kLongrope | bit(Kind::dynamic);
    visit(Field{.name = "type", .doc = "the kind"}, &RopeScaling::kind);
    visit(Field{.name = "factor", .doc = "by what frequencies are divided", .kinds = kWithContext | bit(Kind::linear)},
          &RopeScaling::factor);
    visit(Field{.name = "low_freq_factor", .doc = "where the longest waves begin", .kinds = kLlama3},
          &RopeScaling::low_freq_factor);
    visit(Field{.name = "high_freq_factor", .doc = "where the shortest waves end", .kinds = kLlama3},
          &RopeScaling::high_freq_factor);
    visit(Field{.name = "original_context", .doc = "the context of the first training", .kinds = kWithContext},
          &RopeScaling::original_context);
    visit(Field{.name = "attention_factor",
                .doc = "by what cos and sin are multiplied",
                .original = false,
                .kinds = kYarn | kLongrope},
          &RopeScaling::attention_factor);
    visit(Field{.name = "beta_fast", .doc = "turns above which nothing changes", .original = false, .kinds = kYarn},
          &RopeScaling::beta_fast);
    visit(Field{.name = "beta_slow", .doc = "turns below which all changes", .original = false, .kinds = kYarn},
          &RopeScaling::beta_slow);
    visit(Field{.name = "truncate", .doc = "whether the change has whole ends", .original = false, .kinds = kYarn},
          &RopeScaling::truncate);
  }
};

// The values that a field of each kind may have, by the names that to_string gives them.
template <class Value>
inline constexpr std::array<Value, 0> kValues = {};
template <>
inline constexpr auto kValues<RopeStyle> = std::array{RopeStyle::interleaved, RopeStyle::half_split};
template <>
inline constexpr auto kValues<QkNorm> = std::array{QkNorm::none, QkNorm::head, QkNorm::full, QkNorm::head_after_rope};
template <>
inline constexpr auto kValues<NormPlaces> = std::array{NormPlaces::before, NormPlaces::after, NormPlaces::both};
template <>
inline constexpr auto kValues<RouterOrder> = std::array{RouterOrder::softmax_topk, RouterOrder::topk_softmax};
template <>
inline constexpr auto kValues<NormKind> = std::array{NormKind::rms, NormKind::layer, NormKind::layer_plain};
template <>
inline constexpr auto kValues<Activation> =
    std::array{Activation::silu, Activation::gelu_tanh, Activation::relu_squared, Activation::clamped_swiglu};
// Those that change something.
template <>
inline constexpr auto kValues<RopeScaling::Kind> =
    std::array{RopeScaling::Kind::linear, RopeScaling::Kind::llama3, RopeScaling::Kind::yarn,
               RopeScaling::Kind::dynamic, RopeScaling::Kind::longrope};

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
  std::int64_t hidden_dim = 0;  // width of the gated MLP, or of each expert
  std::int64_t n_layers = 0;
  std::int64_t n_heads = 0;     // query heads
  std::int64_t n_kv_heads = 0;  // key and value heads; divides n_heads
  std::int64_t head_dim = 0;    // width of one head, even
  std::int64_t vocab_size = 0;
  std::int64_t seq_len = 0;  // the context that the model was trained for
  float norm_eps = 1e-5F;
  float rope_theta = 10000.0F;
  RopeScaling rope_scaling;
  std::vector<float> rope_factors;  // [rotary / 2] each frequency is divided by its own; empty: by none
  std::int64_t sliding_window = 0;  // a position sees itself and the window - 1 before it; 0: all before it
  RopeStyle rope_style = RopeStyle::interleaved;
  bool tied = false;                     // the output matrix is the embedding table
  std::int64_t rotary_dim = 0;           // how many numbers of a head are turned, its first; 0: all
  std::vector<float> rope_long_factors;  // [rotary / 2] in place of rope_factors where a context is beyond the original
  QkNorm qk_norm = QkNorm::none;
  Layers full_layers;                 // those that see all before them although there is a window
  Layers no_rope_layers;              // those whose queries and keys are not turned
  float embedding_multiplier = 1.0F;  // embeddings are multiplied by it
  float residual_multiplier = 1.0F;   // what the two halves of a layer add to the residual stream is
  float attention_multiplier = 0.0F;  // q . k is; 0: 1 / sqrt(head_dim)
  float logits_scaling = 1.0F;        // logits are divided by it
  std::int64_t n_experts = 0;         // MLPs of each layer, of which a token goes to some; 0: one, without a router
  std::int64_t n_experts_used = 0;    // to how many
  RouterOrder router_order = RouterOrder::softmax_topk;
  bool router_renormalise = false;  // softmax_topk: a token's weights are divided by their sum
  NormKind norm = NormKind::rms;
  NormPlaces norm_places = NormPlaces::before;
  bool parallel = false;  // the MLP reads what attention reads
  Activation activation = Activation::silu;
  bool gated = true;              // the MLP multiplies what it activates with another product
  float local_rope_theta = 0.0F;  // rope_theta of layers with a window, without scaling; 0: theirs are as all others
  float score_cap = 0.0F;         // scores become cap * tanh(score / cap); 0: they do not
  float logits_cap = 0.0F;        // and logits

  std::int64_t q_dim() const { return n_heads * head_dim; }
  std::int64_t kv_dim() const { return n_kv_heads * head_dim; }
  std::int64_t rotary() const { return rotary_dim == 0 ? head_dim : rotary_dim; }
  // Of a layer, those that a token goes through.
  std::int64_t mlps() const { return n_experts == 0 ? 1 : n_experts_used; }
  bool norms_before() const { return norm_places != NormPlaces::after; }
  bool norms_after() const { return norm_places != NormPlaces::before; }
  bool norms_mlp() const { return norms_before() && !parallel; }
  std::int64_t heads_per_kv() const { return n_heads / n_kv_heads; }
  // How many queries of a token, and how many keys, are normalised together.
  std::int64_t q_norm_dim() const { return qk_norm == QkNorm::full ? q_dim() : head_dim; }
  std::int64_t k_norm_dim() const { return qk_norm == QkNorm::full ? kv_dim() : head_dim; }

  // Whether a session of that context turns by rope_long_factors: from its first token on, so that nothing in its cache has
  // to be turned again.
  bool is_long(std::int64_t context) const {
    return !rope_long_factors.empty() && context > rope_scaling.original_context;
  }

  // The context that a session has where none is asked for.
  std::int64_t default_context() const;

  // Throws std::invalid_argument for a context of no position, and for one beyond what the rotary scaling is computed for.
  void check_context(std::int64_t context) const;

  // Throws FormatError, with the field's name and value, unless the sizes can be those of a Llama.
  void validate() const;

  // visit(field, member) for each field, in the order in which Python shows them.
  template <class Visit>
  static constexpr void fields(Visit visit) {
    visit(Field{.name = "dim", .doc = "Width of the residual stream."}, &Config::dim);
    visit(Field{.name = "hidden_dim", .doc = "Width of the gated MLP."}, &Config::hidden_dim);
    visit(Field{.name = "n_layers", .doc = "Number of layers.", .most = 100'000}, &Config::n_layers);
    visit(Field{.name = "n_heads", .doc = "Number of query heads.", .most = 1 << 20}, &Config::n_heads);
    visit(Field{.name = "n_kv_heads",
                .doc = "Number of key and value heads; divides n_heads.",
                .most = 1 << 20,
                .derived = [](const Config& c) { return c.n_heads; }},
          &Config::n_kv_heads);
    visit(Field{.name = "head_dim", .doc = "Width of one head.", .most = 1 << 20, .derived = &Config::usual_head_dim},
          &Config::head_dim);
    visit(Field{.name = "vocab_size", .doc = "Number of token ids."}, &Config::vocab_size);
    visit(Field{.name = "seq_len", .doc = "The context that the model was trained for, in tokens."}, &Config::seq_len);
    visit(Field{.name = "norm_eps", .doc = "Added to the mean square in RMSNorm.", .may_be_zero = true},
          &Config::norm_eps);
    visit(Field{.name = "rope_theta", .doc = "Base of the rotary frequencies."}, &Config::rope_theta);
    visit(Field{.name = "rope_scaling",
                .doc = "How the rotary frequencies are changed for long contexts, as Config takes it; None: they are "
                       "not."},
          &Config::rope_scaling);
    visit(Field{.name = "rope_factors", .doc = "[head_dim / 2] divisors of the rotary frequencies; empty: none."},
          &Config::rope_factors);
    visit(Field{.name = "sliding_window",
                .doc = "How many positions one attends to, itself included; None: all up to itself.",
                .least = 0},
          &Config::sliding_window);
    visit(Field{.name = "rope_style",
                .doc = "Order of the rows of wq and wk: interleaved (llama2.c, GGUF) or half_split (Hugging Face)."},
          &Config::rope_style);
    visit(Field{.name = "tied", .doc = "Whether the output matrix is the embedding table."}, &Config::tied);
    visit(Field{.name = "rotary_dim",
                .doc = "How many numbers of each head rotary embedding turns, the first; None: all.",
                .least = 0,
                .original = false},
          &Config::rotary_dim);
    visit(Field{.name = "rope_long_factors",
                .doc = "What rope_factors are in sessions whose context is beyond rope_scaling's original; empty: the "
                       "same.",
                .original = false},
          &Config::rope_long_factors);
    visit(Field{.name = "qk_norm",
                .doc = "Whether queries and keys are RMS-normalized: none, head (each by itself), full (all of a "
                       "token together), or head_after_rope, after rotary embedding.",
                .original = false},
          &Config::qk_norm);
    visit(Field{.name = "full_layers",
                .doc = "Layers that see all positions although there is a sliding window.",
                .original = false},
          &Config::full_layers);
    visit(Field{.name = "no_rope_layers", .doc = "Layers without rotary embedding.", .original = false},
          &Config::no_rope_layers);
    visit(Field{.name = "embedding_multiplier", .doc = "What embeddings are multiplied by.", .original = false},
          &Config::embedding_multiplier);
    visit(Field{.name = "residual_multiplier",
                .doc = "What is multiplied with what attention and MLP add to the residual stream.",
                .original = false},
          &Config::residual_multiplier);
    visit(Field{.name = "attention_multiplier",
                .doc = "What attention scores are multiplied by; 0: 1 / sqrt(head_dim).",
                .may_be_zero = true,
                .original = false},
          &Config::attention_multiplier);
    visit(Field{.name = "logits_scaling", .doc = "What logits are divided by.", .original = false},
          &Config::logits_scaling);
    visit(
        Field{.name = "n_experts",
              .doc = "How many MLPs each layer has, of which a router chooses some for each token; None: one, without "
                     "a router.",
              .least = 0,
              .most = 1 << 16,
              .original = false},
        &Config::n_experts);
    visit(Field{.name = "n_experts_used",
                .doc = "How many experts each token goes to; None without experts.",
                .least = 0,
                .most = 1 << 16,
                .original = false},
          &Config::n_experts_used);
    visit(Field{.name = "router_order",
                .doc = "How a router's scores become weights: softmax_topk or topk_softmax.",
                .original = false},
          &Config::router_order);
    visit(Field{.name = "router_renormalise",
                .doc = "Whether the weights of a token's experts are divided by their sum, after softmax_topk.",
                .original = false},
          &Config::router_renormalise);
    visit(Field{.name = "norm",
                .doc = "What norms compute: rms (RMSNorm), layer (LayerNorm) or layer_plain (LayerNorm without gains).",
                .original = false},
          &Config::norm);
    visit(Field{.name = "parallel", .doc = "Whether the MLP reads what attention reads.", .original = false},
          &Config::parallel);
    visit(
        Field{.name = "norm_places",
              .doc = "Whether attention and MLP have norms before (of what they read), after (of what they add to the "
                     "residual stream) or both.",
              .original = false},
        &Config::norm_places);
    visit(Field{.name = "activation",
                .doc = "Of the MLP: silu, gelu_tanh (GELU as tanh approximates it), relu_squared or clamped_swiglu (of "
                       "both products, as in gpt-oss).",
                .original = false},
          &Config::activation);
    visit(Field{.name = "gated", .doc = "Whether the MLP has a gate.", .original = false}, &Config::gated);
    visit(Field{.name = "local_rope_theta",
                .doc = "rope_theta of layers with a sliding window, which then have no scaling; 0: as all others.",
                .may_be_zero = true,
                .original = false},
          &Config::local_rope_theta);
    visit(Field{.name = "score_cap",
                .doc = "Attention scores become cap * tanh(score / cap); 0: they do not.",
                .may_be_zero = true,
                .original = false},
          &Config::score_cap);
    visit(Field{.name = "logits_cap",
                .doc = "Logits become cap * tanh(logit / cap); 0: they do not.",
                .may_be_zero = true,
                .original = false},
          &Config::logits_cap);
  }

 private:
  // dim / n_heads. Throws std::invalid_argument where that is no whole number.
  static std::int64_t usual_head_dim(const Config& config);
};

static_assert(all_listed<RopeScaling>() && all_listed<Config>());

}  // namespace llama2cpp
