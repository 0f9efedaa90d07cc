// The families of models that this version computes, a row for each: what their files call themselves, what they leave out,
// which settings may change what a layer computes, and which weights they have beyond a Llama's. The readers of config.json
// and of GGUF's metadata, and their writers, know families from here only. What a row makes of a Config is then data for the
// forward (model/layer_plan.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/config.h"
#include "core/parts.h"

namespace llama2cpp {

// A setting that makes a model compute something else, unless it is missing, null, or `neutral`.
struct Switch {
  std::string_view hugging_face;  // in config.json; empty: it has none
  std::string_view gguf;          // in the metadata, behind the architecture's prefix; empty: it has none
  double neutral;
  std::string_view group = {};  // what a family calls all of them that it computes; empty: by its name in config.json
};

std::span<const Switch> switches();

// What keeps scores, and logits, within a cap: in config.json and in GGUF.
inline constexpr std::string_view kScoreCap = "attn_logit_softcapping";
inline constexpr std::string_view kLogitsCap = "final_logit_softcapping";

// Weights of a layer that files hold as one, the rows of each behind those of the one before.
struct Fused {
  std::string_view hugging_face;  // without a layer's prefix and ".weight"
  std::string_view gguf;
  std::span<const Part> parts;
};

// What a family's files call a weight of a layer that others call as core/parts.inc says: both without prefix and ".weight".
struct Rename {
  std::string_view theirs, ours;
};

// Whether models see all positions or a window of them.
enum class Windows : std::uint8_t {
  none,
  always,  // every layer has one, unless it is null
  some,    // those layers that layer_types says
};

// How a family's files speak of experts.
struct ExpertFacts {
  std::string_view count = "num_experts";  // what config.json calls how many there are; transformers takes either name
  RouterOrder order;
  bool renormalise;              // where config.json has no norm_topk_prob, and in GGUF files
  bool says_whether = false;     // whether config.json has it
  std::string_view hidden_size;  // config.json's width of an expert; empty: intermediate_size
  // What tensors are called that the table of parts calls otherwise: in place of "mlp.gate", and what is before an expert's
  // number; then its three matrices, or those of all experts in two tensors, gate and up in one.
  std::string_view router = {}, prefix = {};
  std::string_view gate = {}, up = {}, down = {};
  std::string_view stacked_inputs = {}, stacked_output = {};
  // Or those of all experts in two tensors, each expert's columns first, and a row of gate and one of up in turn; beside them
  // biases ("_bias"), and in place of them blocks of MXFP4 with their scales ("_blocks", "_scales"). Without ".weight".
  std::string_view turned_inputs = {}, turned_output = {};
};

// Behind the stem of GGUF's tensors that hold a matrix of all experts.
inline constexpr std::string_view kAllExperts = "_exps";

// A tensor that holds matrices or biases of all experts: the parts of the first one, then those of the second ...
struct Stacked {
  std::string name;  // without a layer's prefix
  std::vector<Part> parts;
  bool turned = false;  // an expert's columns first, and a row of each part in turn
};

struct Family {
  std::string_view model_type;        // of config.json
  std::string_view architectures[3];  // what config.json may say; the last is the model without its output matrix
  std::string_view gguf = {};         // general.architecture, which begins other keys; empty: its files name another
  RopeStyle hugging_face_rope_style = RopeStyle::half_split;
  RopeStyle gguf_rope_style;
  std::string_view computes[6] = {};  // switches of config.json that need not be neutral

  // transformers' defaults, for what config.json leaves out.
  std::int64_t seq_len;
  std::optional<std::int64_t> n_kv_heads = {};  // nothing: as many as query heads
  double norm_eps;
  double rope_theta;
  Windows windows = Windows::none;
  std::int64_t sliding_window = 0;  // where it has one; 0: none
  std::int64_t head_dim = 0;        // 0: dim / n_heads
  bool tied = false;
  float attention_multiplier = 0.0F;

  // The setting of config.json that says whether a part's biases are there; empty: none does.
  std::string_view bias_switch(Part part) const;

  // What its layers compute, whatever a file says.
  void apply_to(Config& config) const;

  // Which of so many layers have no window where a file does not say.
  Layers usual_full_layers(std::int64_t n_layers, std::int64_t every) const;

  // Which of so many layers have no rotary embedding, 1, 2 ... n - 1 having it: 0: all have. GGUF files do not say.
  std::int64_t no_rope_every = 0;
  // Windows are only there where use_sliding_window says so, from the layer max_window_layers on.
  bool asks_for_window = false;

  // What its models have, and those of other families have not: norms of queries and keys, and optional parts.
  QkNorm qk_norm = QkNorm::none;
  std::span<const Part> parts = {};
  std::span<const Fused> fused = {};
  std::optional<ExpertFacts> experts = {};  // nothing: its models have none
  // Whether llama.cpp opens GGUF files of it with the biases that its computes says.
  bool gguf_biases = true;

  // What a layer computes, beyond a Llama.
  NormKind norm = NormKind::rms;
  bool norm_biases = false;    // which LayerNorm has in config.json's models
  bool gain_plus_one = false;  // a folder's gains are without the 1 that they are added to
  NormPlaces norm_places = NormPlaces::before;
  bool parallel = false;
  Activation activation = Activation::silu;
  std::string_view acts[2] = {"silu", "swish"};  // what config.json may call it
  bool gated = true;
  bool scaled_embedding = false;  // by the square root of dim
  double query_scalar = 0;        // query_pre_attn_scalar where it is missing; 0: the family has none
  double score_cap = 0, logits_cap = 0;
  double logit_scale = 0;            // what logits are multiplied by, where it is missing; 0: the family has none
  std::int64_t gguf_wide_scale = 0;  // models of so many layers divide scores by sqrt(dim / n_heads)
  // What llama.cpp's models of it all have: no output matrix of their own, or one (nothing: either); queries as wide as the
  // residual stream; as many heads of keys as of queries.
  std::optional<bool> gguf_tied = {};
  bool gguf_square = false;
  bool gguf_all_keys = false;
  bool gguf_biased = false;  // llama.cpp's models of it have all biases that a model may have
  std::string_view eps_name = "rms_norm_eps";
  double partial_rotary = 1;           // partial_rotary_factor where it is missing
  bool ntk_alpha = false;              // scaling of type dynamic with an alpha is a larger rope_theta
  bool gguf_yarn_truncates = true;     // GGUF files do not say
  bool needs_rope_parameters = false;  // what is otherwise assumed is not
  bool longrope_alone = false;         // transformers refuses scaling of another type
  bool local_rope = false;             // layers with a window have a rotary embedding of their own, without scaling
  double local_rope_theta = 0;         // its theta where it is missing; 0: that of the others
  std::int64_t full_every = 0;         // of so many layers one has no window: 0: layer_types says
  bool full_first = false;             // the first of them, not the last
  bool rope_in_windows = false;        // where there are windows, only layers with one are turned
  bool needs_window = false;           // null is not read
  std::string_view bias_switches[3] = {"attention_bias", "attention_bias", "mlp_bias"};  // of q, k, v; of o; of the MLP
  bool biased = false;  // where the first of them is missing, it is true
  std::span<const Rename> hugging_face_renames = {};
  std::span<const Rename> gguf_renames = {};
  bool written = true;  // false: another family's files hold its models, and only folders of itself become one again

  bool computes_switch(std::string_view hugging_face) const;
  bool computes_switch(const Switch& setting) const {
    return computes_switch(setting.group.empty() ? setting.hugging_face : setting.group);
  }

  // Whether its models may have an optional part.
  bool may_have(Part part) const;

  // What its files call a part, without a layer's prefix and ".weight" or ".bias"; {} is an expert's number.
  std::string stem(Naming naming, Part part) const;

  // Its files' tensors of all experts.
  std::vector<Stacked> stacked(Naming naming) const;

  // Which layers have no rotary embedding where a file does not say.
  Layers usual_no_rope_layers(std::int64_t n_layers, std::int64_t every) const;
};

// Biases of LayerNorms, which belong to no matrix.
constexpr bool is_norm_bias(Part part) {
  const Need need = facts(part).need;
  return need == Need::norm_bias || need == Need::norm_mlp_bias || need == Need::norm_last_bias;
}

// The setting of config.json that says whether a half of a layer has biases, in most families.
constexpr std::string_view bias_switch(Scope half) { return half == Scope::mlp ? "mlp_bias" : "attention_bias"; }

// All rows, in the order in which writers look for one.
std::span<const Family> families();

// Whether a list of parts has this one.
inline bool contains(std::span<const Part> parts, Part part) {
  return std::find(parts.begin(), parts.end(), part) != parts.end();
}

// Null where no family has the name.
const Family* find_hugging_face_family(std::string_view model_type);
// Some architectures are a family with experts where a file has some, and another without.
const Family* find_gguf_family(std::string_view architecture, bool experts = false);

// The first family whose files can hold a model with these optional parts, or `own`, the model_type of the folder that the
// model is from, where that is such that others do not become it. Throws std::invalid_argument, with what the model has, where
// there is none.
const Family& hugging_face_family_of(const Config& config, std::span<const Part> parts, std::string_view own = {});
const Family& gguf_family_of(const Config& config, std::span<const Part> parts);

// A part's rows in a tensor of the family's files that holds several.
struct FusedRows {
  std::string name;  // the part's own
  std::int64_t first, count;
};
// Nothing for a tensor that is none. Throws FormatError for one that has other than the parts' rows, where they are given.
std::vector<FusedRows> fused_rows(const Family& family, Naming naming, std::string_view name, const Config& config,
                                  std::optional<std::int64_t> rows);

// A tensor's name as core/parts.inc has it.
std::string renamed(std::span<const Rename> renames, std::string_view name);

// The names of all, for messages: "\"llama\" or \"mistral\"".
std::string hugging_face_families();
std::string gguf_families();

}  // namespace llama2cpp
