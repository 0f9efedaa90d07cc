// config.json of models that compute as Llama does. transformers passes over what its Llama does not know, and so do we;
// but what it knows, and what other programs are known to compute from, is computed or refused by its name.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/families.h"
#include "io/field_names.h"
#include "io/hf.h"

namespace llama2cpp {
namespace {

// What transformers computes rotary frequencies from. Each type passes over what the others use.
constexpr std::string_view kRotaryKeys[] = {
    "type",
    "rope_type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "beta_fast",
    "beta_slow",
    "truncate",
    "finetuned",  // says how a model was trained; nobody computes from it
};
constexpr std::string_view kLongropeKeys[] = {"short_factor", "long_factor"};

constexpr std::string_view kFullAttention = "full_attention";
constexpr std::string_view kSlidingAttention = "sliding_attention";

template <class List>
bool is_in(const List& list, std::string_view name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

// Whether an object has the member, be it null.
bool states(const Json& object, std::string_view name) {
  for (const Json member : object.members()) {
    if (member.name() == name) return true;
  }
  return false;
}

std::string listed(const Json& names) {
  std::string text;
  for (const Json name : names.elements()) text += cat(text.empty() ? "" : ", ", excerpt(name.string()));
  return text;
}

double any_number(const Json& value) {
  if (value.type() == Json::Type::boolean) return value.boolean() ? 1 : 0;
  return value.number();
}

void refuse_unless_neutral(const Json& value, double neutral) {
  if (value.is_null()) return;
  if (value.type() == Json::Type::array) {  // one for each layer
    for (const Json element : value.elements()) refuse_unless_neutral(element, neutral);
  } else if (any_number(value) != neutral) {
    value.fail(cat(any_number(value), ", and only ", neutral,
                   " is implemented: the model computes something that this version does not"));
  }
}

void refuse_unless_neutral(const Json& object, std::string_view name, double neutral) {
  if (const std::optional<Json> found = object.find(name)) refuse_unless_neutral(*found, neutral);
}

// What scores are multiplied by: attention_multiplier in Granite, 1 / sqrt(query_pre_attn_scalar) in Gemma.
void refuse_other_scale(const Json& config, const Family& family, std::int64_t head_dim) {
  const auto dim = static_cast<double>(head_dim);
  const auto refuse = [&](std::string_view name, double implemented) {
    const std::optional<Json> found = config.find(name);
    if (!found || std::abs(found->number() - implemented) < 1e-6 * implemented) return;
    found->fail(cat(found->number(), ", and only ", implemented, " is implemented for heads of ", head_dim,
                    ": the model computes something that this version does not"));
  };
  if (!family.computes_switch("multipliers")) refuse("attention_multiplier", 1 / std::sqrt(dim));
  if (family.query_scalar == 0) refuse("query_pre_attn_scalar", dim);
}

// Code that comes with a model may compute anything.
void refuse_own_code(const Json& config) {
  const std::optional<Json> map = config.find("auto_map");
  const std::optional<Json> code = map ? map->find("AutoModelForCausalLM") : std::nullopt;
  if (!code) return;
  code->fail(
      "the model brings Python code of its own, which this version does not run. Where that computes what "
      "transformers' Llama does, remove auto_map from config.json");
}

// What changes logits whatever it says, unless it says nothing.
constexpr std::string_view kNeverComputed[] = {
    "per_layer_config",  // settings that transformers has for single layers, of any model
    "layer_rope_theta",
    "scale_depth",
    "dim_model_base",
};

void refuse_settings(const Json& config, const Family& family) {
  refuse_own_code(config);
  for (const std::string_view name : kNeverComputed) {
    const std::optional<Json> found = config.find(name);
    const bool list = found && (found->type() == Json::Type::array || found->type() == Json::Type::object);
    if (found && !(list && found->size() == 0)) found->fail("the model computes something that this version does not");
  }
  if (const auto scores = config.find("scoring_func"); scores && scores->string() != "softmax") {
    scores->fail(cat(excerpt(scores->string()), ", expected \"softmax\": this version computes no other"));
  }
  for (const Switch& setting : switches()) {
    if (setting.hugging_face.empty() || family.computes_switch(setting)) continue;
    refuse_unless_neutral(config, setting.hugging_face, setting.neutral);
  }
  // Says which layers have no rotary embedding where no_rope_layers does not.
  if (!config.find("no_rope_layers") && family.no_rope_every == 0) {
    refuse_unless_neutral(config, "no_rope_layer_interval", 0);
  }
  for (const std::string_view name : {"hidden_act", "hidden_activation"}) {
    const auto act = config.find(name);
    if (!act || (!act->string().empty() && is_in(family.acts, act->string()))) continue;
    act->fail(cat(excerpt(act->string()), ", expected ", excerpt(family.acts[0]), ": this version computes no other"));
  }
  if (const auto pruned = config.find("pruned_heads"); pruned && pruned->size() > 0) {
    pruned->fail("heads are left out, which is not implemented");
  }
}

std::int64_t integer_or(const Json& object, std::string_view name, std::int64_t otherwise) {
  const std::optional<Json> found = object.find(name);
  return found ? found->int64() : otherwise;
}

// One that a float does not tell from 0 would be taken for a setting that is not there.
std::optional<double> find_number(const Json& object, std::string_view name) {
  const std::optional<Json> found = object.find(name);
  if (!found) return {};
  const double value = found->number();
  if (value != 0 && static_cast<float>(value) == 0.0F) found->fail(cat(value, ", which is too small for a float"));
  return value;
}

// The settings may state it, or config.json itself. Only where neither does it is transformers' default.
float read_theta(const Json& config, const std::optional<Json>& rotary, const Family& family) {
  const std::optional<double> outside = find_number(config, "rope_theta");
  const std::optional<double> inside = rotary ? find_number(*rotary, "rope_theta") : std::nullopt;
  if (outside && inside && *outside != *inside) {
    rotary->get("rope_theta").fail(cat(*inside, ", but rope_theta of ", config.path(), " is ", *outside));
  }
  return static_cast<float>(inside ? *inside : outside.value_or(family.rope_theta));
}

std::string_view rotary_type(const Json& rotary) {
  const std::optional<Json> now = rotary.find("rope_type");
  const std::optional<Json> before = rotary.find("type");
  if (now && before && now->string() != before->string()) {
    now->fail(cat(excerpt(now->string()), ", but type is ", excerpt(before->string())));
  }
  if (now) return now->string();
  return before ? before->string() : "default";
}

float need_float(const Json& object, std::string_view name) { return static_cast<float>(object.get(name).number()); }

// transformers: what config.json says comes before what the settings say, and the context is for want of both.
std::int64_t original_context(const Json& config, const Json& rotary, std::int64_t seq_len) {
  constexpr std::string_view kName = "original_max_position_embeddings";
  const std::optional<Json> outside = config.find(kName);
  const std::optional<Json> inside = rotary.find(kName);
  if (outside && inside && outside->int64() != inside->int64()) {
    inside->fail(cat(inside->int64(), ", but that of ", config.path(), " is ", outside->int64()));
  }
  if (inside) return inside->int64();
  return outside ? outside->int64() : seq_len;
}

// As transformers fills in what is missing; 0 is missing for all but the factors.
RopeScaling read_yarn(const Json& config, const Json& rotary, std::int64_t seq_len) {
  const auto number = [&](std::string_view name) { return find_number(rotary, name).value_or(0.0); };
  RopeScaling scaling;
  scaling.kind = RopeScaling::Kind::yarn;
  scaling.original_context = original_context(config, rotary, seq_len);
  const double factor = find_number(rotary, "factor")
                            .value_or(static_cast<double>(seq_len) / static_cast<double>(scaling.original_context));
  scaling.factor = static_cast<float>(factor);
  const auto from_factor = [&](double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1; };
  const bool both = number("mscale") != 0 && number("mscale_all_dim") != 0;
  const double inferred = both ? from_factor(number("mscale")) / from_factor(number("mscale_all_dim")) : from_factor(1);
  scaling.attention_factor = static_cast<float>(find_number(rotary, "attention_factor").value_or(inferred));
  if (number("beta_fast") != 0) scaling.beta_fast = static_cast<float>(number("beta_fast"));
  if (number("beta_slow") != 0) scaling.beta_slow = static_cast<float>(number("beta_slow"));
  const std::optional<Json> truncate = rotary.find("truncate");
  scaling.truncate = !truncate || truncate->boolean();
  return scaling;
}

// The first numbers of each head that are turned; 0 for all.
std::int64_t read_rotary_dim(const Json& config, const Config& sizes, const Family& family) {
  if (!family.computes_switch("partial_rotary_factor")) return 0;
  std::optional<double> part = find_number(config, "partial_rotary_factor");
  for (const std::string_view name : {"rope_scaling", "rope_parameters"}) {  // the later is the one that counts
    const std::optional<Json> settings = config.find(name);
    const std::optional<double> inside = settings ? find_number(*settings, "partial_rotary_factor") : std::nullopt;
    if (inside) part = inside;
  }
  if (!part) part = family.partial_rotary;
  const double turned = std::floor(static_cast<double>(sizes.head_dim) * *part);
  if (!(turned >= 2 && turned <= static_cast<double>(sizes.head_dim))) {
    throw FormatError(cat("config.json: partial_rotary_factor is ", *part, ", which turns ", turned, " of the ",
                          sizes.head_dim, " numbers of a head, expected 2 or more of them"));
  }
  const auto count = static_cast<std::int64_t>(turned);
  return count == sizes.head_dim ? 0 : count;
}

// What the settings make of a head's frequencies.
struct Rotary {
  float theta = 10000.0F;
  RopeScaling scaling;
  std::vector<float> factors, long_factors;
  float local_theta = 0.0F;  // of layers with a window, where it is another

  bool operator==(const Rotary&) const = default;
};

void refuse_unknown_keys(const Json& rotary, std::string_view type, const Family& family) {
  for (const Json member : rotary.members()) {
    if (member.is_null() || is_in(kRotaryKeys, member.name())) continue;
    if (type == "longrope" && is_in(kLongropeKeys, member.name())) continue;
    if (family.ntk_alpha && member.name() == "alpha") continue;
    member.fail("not known, and may stand for something that this version does not compute");
  }
}

std::vector<float> read_factors(const Json& list, const Config& sizes) {
  const std::int64_t pairs = sizes.rotary() / 2;
  const std::string_view what = sizes.rotary_dim == 0 ? "head_dim" : "what is turned of a head";
  if (static_cast<std::int64_t>(list.size()) != pairs) {
    list.fail(cat("expected ", pairs, " factors, half of ", what, ", found ", list.size()));
  }
  std::vector<float> factors;
  for (const Json factor : list.elements()) factors.push_back(static_cast<float>(factor.number()));
  return factors;
}

// Two lists of divisors: the short one up to the original context, the long one beyond it.
void read_longrope(const Json& config, const Json& settings, const Config& sizes, Rotary& rotary) {
  RopeScaling& scaling = rotary.scaling;
  scaling.kind = RopeScaling::Kind::longrope;
  scaling.original_context = original_context(config, settings, sizes.seq_len);
  const auto original = static_cast<double>(scaling.original_context);
  const double factor = find_number(settings, "factor").value_or(static_cast<double>(sizes.seq_len) / original);
  const double inferred = factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(original));
  scaling.factor = static_cast<float>(factor);
  scaling.attention_factor = static_cast<float>(find_number(settings, "attention_factor").value_or(inferred));
  rotary.factors = read_factors(settings.get("short_factor"), sizes);
  rotary.long_factors = read_factors(settings.get("long_factor"), sizes);
}

// The first part of the pairs is turned, as if all were; a pair that is divided by the largest float stays where it is.
std::vector<float> proportional_factors(const Json& settings, double part, const Config& sizes) {
  if (!(part >= 0 && part <= 1)) settings.fail(cat("partial_rotary_factor is ", part, ", expected 0 to 1"));
  std::vector<float> factors;
  if (part == 1) return factors;
  const auto turned = static_cast<std::size_t>(std::floor(part * static_cast<double>(sizes.head_dim) / 2));
  factors.assign(static_cast<std::size_t>(sizes.head_dim / 2), std::numeric_limits<float>::max());
  std::fill_n(factors.begin(), turned, 1.0F);
  return factors;
}

Rotary read_rotary(const Json& config, const std::optional<Json>& settings, const Config& sizes, const Family& family) {
  Rotary rotary;
  rotary.theta = read_theta(config, settings, family);
  const std::string_view type = settings ? rotary_type(*settings) : "default";
  constexpr std::string_view kTypes[] = {"default", "linear", "llama3", "yarn", "dynamic", "longrope", "proportional"};
  if (!is_in(kTypes, type)) {
    settings->fail(cat("rope_type is ", excerpt(type),
                       R"(, expected "default", "linear", "llama3", "yarn", "dynamic", "longrope" or "proportional")",
                       ": others are not implemented"));
  }
  if (type != "proportional" && !family.computes_switch("partial_rotary_factor")) {
    refuse_unless_neutral(config, "partial_rotary_factor", 1);
    if (settings) refuse_unless_neutral(*settings, "partial_rotary_factor", 1);
  }
  if (!settings) return rotary;
  refuse_unknown_keys(*settings, type, family);
  RopeScaling& scaling = rotary.scaling;
  if (type == "yarn") {
    scaling = read_yarn(config, *settings, sizes.seq_len);
  } else if (type == "longrope") {
    read_longrope(config, *settings, sizes, rotary);
  } else if (type == "proportional") {
    const double outside = find_number(config, "partial_rotary_factor").value_or(1.0);
    const double part = find_number(*settings, "partial_rotary_factor").value_or(outside);
    rotary.factors = proportional_factors(*settings, part, sizes);
    scaling.factor = static_cast<float>(find_number(*settings, "factor").value_or(1.0));
    if (scaling.factor != 1.0F) scaling.kind = RopeScaling::Kind::linear;
  } else if (type != "default") {
    scaling.factor = need_float(*settings, "factor");
    scaling.kind = RopeScaling::Kind::linear;
  }
  const double alpha = family.ntk_alpha && type == "dynamic" ? find_number(*settings, "alpha").value_or(0.0) : 0.0;
  if (alpha != 0.0) {
    if (!(alpha > 0)) settings->get("alpha").fail(cat(alpha, ", expected 0 or more"));
    const auto dim = static_cast<double>(sizes.head_dim);
    const auto larger = static_cast<float>(double{rotary.theta} * std::pow(alpha, dim / (dim - 2)));
    if (std::isfinite(rotary.theta) && !std::isfinite(larger)) {
      settings->get("alpha").fail(cat(alpha, ", which is too large"));
    }
    rotary.theta = larger;
    scaling = {};
  } else if (type == "dynamic") {
    // transformers' original context of this type is the model's, whatever else the settings say.
    scaling.kind = RopeScaling::Kind::dynamic;
    scaling.original_context = sizes.seq_len;
  } else if (type == "llama3") {
    scaling.kind = RopeScaling::Kind::llama3;
    scaling.low_freq_factor = need_float(*settings, "low_freq_factor");
    scaling.high_freq_factor = need_float(*settings, "high_freq_factor");
    scaling.original_context = original_context(config, *settings, sizes.seq_len);
  }
  return rotary;
}

// That of layers with a window: another theta, and no scaling.
void read_local_rotary(const Json& config, const std::optional<Json>& settings, const Family& family, Rotary& rotary) {
  if (family.local_rope_theta == 0 && !settings) {
    // transformers 4 turns all layers by it, transformers 5 those without a window only.
    const std::optional<Json> theta = config.find("rope_theta");
    if (theta && theta->number() != family.rope_theta) {
      theta->fail(cat(theta->number(),
                      ", and whether layers with a window have it too, programs do not agree on: expected ",
                      "rope_parameters with settings of ", kFullAttention, " and of ", kSlidingAttention));
    }
  }
  const double usual = family.local_rope_theta > 0 ? family.local_rope_theta : double{rotary.theta};
  const double outside = find_number(config, "rope_local_base_freq").value_or(usual);
  double theta = outside;
  if (settings) {
    refuse_unknown_keys(*settings, "default", family);
    if (rotary_type(*settings) != "default")
      settings->fail("expected rope_type \"default\": others are not implemented");
    theta = find_number(*settings, "rope_theta").value_or(outside);
  }
  if (!(theta > 0)) {
    throw FormatError(cat("config.json: rope_theta of layers with a window (rope_local_base_freq) is ", theta,
                          ", expected a number above 0"));
  }
  const bool other = static_cast<float>(theta) != rotary.theta || rotary.scaling.kind != RopeScaling::Kind::none;
  if (other || !rotary.factors.empty()) rotary.local_theta = static_cast<float>(theta);
}

// The settings are rope_parameters since transformers 5, rope_scaling before; an empty one says nothing. Some files have
// both, for old and new programs: then they must say the same.
Rotary read_rotary(const Json& config, const Config& sizes, const Family& family) {
  const auto find = [&](std::string_view name) {
    std::optional<Json> found = config.find(name);
    if (found && found->size() == 0) found.reset();
    return found;
  };
  std::optional<Json> now = find("rope_parameters");
  const std::optional<Json> before = find("rope_scaling");
  // null and {} too: transformers then has defaults of its own.
  if (family.needs_rope_parameters && !now && !before) {
    config.get("rope_parameters").fail("empty, which is not implemented for this family");
  }
  std::optional<Json> local;
  if (family.local_rope && now) {
    // transformers passes over settings that are not of one kind of layers.
    if (!now->find(kFullAttention) && !now->find(kSlidingAttention)) {
      now->fail(cat("expected settings of ", kFullAttention, " and of ", kSlidingAttention));
    }
    for (const Json member : now->members()) {
      if (member.name() != kFullAttention && member.name() != kSlidingAttention) member.fail("not known");
    }
    local = now->find(kSlidingAttention);
    now = now->find(kFullAttention);
  }
  const std::optional<Json>& settings = now ? now : before;
  if (const auto truncate = family.local_rope && settings ? settings->find("truncate") : std::nullopt) {
    // transformers looks for it where no layers' settings are.
    if (!truncate->boolean()) truncate->fail("false, and whether that counts here, programs do not agree on");
  }
  Rotary rotary = read_rotary(config, settings, sizes, family);
  if (family.local_rope && sizes.sliding_window > 0) read_local_rotary(config, local, family, rotary);
  if (now && before && !family.local_rope && read_rotary(config, before, sizes, family) != rotary) {
    before->fail("there are rope_parameters too, which say otherwise: expected one of the two, or the same in both");
  }
  return rotary;
}

// A number for each layer, which is 0 where it has no rotary embedding; or which layers have none: every so many.
Layers read_no_rope_layers(const Json& config, const Family& family, std::int64_t n_layers) {
  if (!family.computes_switch("no_rope_layers")) return {};
  Layers layers;
  if (const std::optional<Json> list = config.find("no_rope_layers")) {
    if (static_cast<std::int64_t>(list->size()) != n_layers) {
      list->fail(cat("expected a number for each of ", n_layers, " layers, found ", list->size()));
    }
    std::int64_t layer = 0;
    for (const Json turned : list->elements()) {
      if (any_number(turned) == 0) layers.push_back(layer);
      ++layer;
    }
    return layers;
  }
  const std::int64_t every = integer_or(config, "no_rope_layer_interval", family.no_rope_every);
  if (every < 1) config.get("no_rope_layer_interval").fail(cat(every, ", expected 1 or more"));
  return family.usual_no_rope_layers(n_layers, every);
}

void read_multipliers(const Json& config, const Family& family, Config& read) {
  if (!family.computes_switch("multipliers")) return;
  const auto multiplier = [&](std::string_view name, float otherwise) {
    const std::optional<double> found = find_number(config, name);
    return found ? static_cast<float>(*found) : otherwise;
  };
  read.embedding_multiplier = multiplier("embedding_multiplier", 1.0F);
  read.residual_multiplier = multiplier("residual_multiplier", 1.0F);
  read.attention_multiplier = multiplier("attention_multiplier", family.attention_multiplier);
  read.logits_scaling = multiplier("logits_scaling", 1.0F);
  if (read.attention_multiplier == 0.0F) config.get("attention_multiplier").fail("0, expected a number above 0");
}

// transformers has two names for how many there are.
void read_experts(const Json& config, const ExpertFacts& facts, Config& read) {
  const std::optional<Json> now = config.find("num_local_experts");
  const std::optional<Json> before = config.find("num_experts");
  if (now && before && now->int64() != before->int64()) {
    now->fail(cat(now->int64(), ", but num_experts is ", before->int64()));
  }
  const Json count = now ? *now : before ? *before : config.get(facts.count);
  read.n_experts = count.int64();
  if (read.n_experts < 1) count.fail(cat(read.n_experts, ", expected 1 or more"));
  read.n_experts_used = config.get("num_experts_per_tok").int64();
  if (!facts.hidden_size.empty()) read.hidden_dim = config.get(facts.hidden_size).int64();
  read.router_order = facts.order;
  read.router_renormalise = facts.renormalise;
  if (!facts.says_whether) return;
  const std::optional<Json> said = config.find("norm_topk_prob");
  read.router_renormalise = said && said->boolean();
}

// What config.json calls the fields of a Config.
std::vector<FieldName> field_names(const Json& config, const Family& family) {
  const auto either = [&](std::string_view one, std::string_view other) {
    return std::string(config.find(one) ? one : other);
  };
  const std::string_view width = family.experts ? family.experts->hidden_size : std::string_view();
  return {
      {"dim", "hidden_size"},
      {"hidden_dim", std::string(width.empty() ? "intermediate_size" : width)},
      {"n_layers", "num_hidden_layers"},
      {"n_heads", "num_attention_heads"},
      {"n_kv_heads", "num_key_value_heads"},
      {"seq_len", "max_position_embeddings"},
      {"norm_eps", std::string(family.eps_name)},
      {"n_experts", family.experts && !config.find("num_local_experts") && !config.find("num_experts")
                        ? std::string(family.experts->count)
                        : either("num_local_experts", "num_experts")},
      {"n_experts_used", "num_experts_per_tok"},
      {"attention_multiplier", family.query_scalar > 0 ? "query_pre_attn_scalar" : "attention_multiplier"},
      {"logits_scaling", family.logit_scale > 0 ? "logit_scale" : "logits_scaling"},
      {"score_cap", std::string(kScoreCap)},
      {"logits_cap", std::string(kLogitsCap)},
      {"local_rope_theta", either("rope_local_base_freq", "rope_parameters.sliding_attention.rope_theta")},
      {"original_context", "original_max_position_embeddings"},
      {"rotary_dim", "partial_rotary_factor"},
      {"rope_factors", "short_factor"},
      {"rope_long_factors", "long_factor"},
  };
}

// What Gemma and Cohere multiply with, and what their scores and logits are kept within. A cap of null is none.
void read_caps(const Json& config, const Family& family, Config& read) {
  const auto positive = [&](std::string_view name, double otherwise) {
    const double value = find_number(config, name).value_or(otherwise);
    if (!(value > 0)) config.get(name).fail(cat(value, ", expected a number above 0"));
    return value;
  };
  const auto cap = [&](std::string_view name, double otherwise) {
    return static_cast<float>(states(config, name) ? find_number(config, name).value_or(0.0) : otherwise);
  };
  if (family.computes_switch(kScoreCap)) read.score_cap = cap(kScoreCap, family.score_cap);
  if (family.computes_switch(kLogitsCap)) read.logits_cap = cap(kLogitsCap, family.logits_cap);
  if (family.query_scalar > 0) {
    const double scalar = positive("query_pre_attn_scalar", family.query_scalar);
    if (scalar != static_cast<double>(read.head_dim)) {
      read.attention_multiplier = static_cast<float>(1 / std::sqrt(scalar));
      if (read.attention_multiplier == 0.0F)
        config.get("query_pre_attn_scalar").fail(cat(scalar, ", which is too large"));
    }
  }
  // Whatever type the table is stored in: transformers rounds the root to the type that it computes in, and in float32, as
  // llama.cpp and we compute, it is not rounded.
  if (family.scaled_embedding) read.embedding_multiplier = static_cast<float>(std::sqrt(static_cast<double>(read.dim)));
  if (family.logit_scale > 0) {
    read.logits_scaling = static_cast<float>(1 / positive("logit_scale", family.logit_scale));
  }
}

// Missing is not null: Mistral's window is 4096 where config.json does not speak of it, and none where it says null.
std::int64_t read_window(const Json& config, const Family& family, std::int64_t seq_len) {
  if (family.asks_for_window) {
    const std::optional<Json> asked = config.find("use_sliding_window");
    if (!asked || !asked->boolean()) return 0;
  }
  if (!states(config, "sliding_window")) return family.sliding_window;
  const std::optional<Json> found = config.find("sliding_window");
  if (!found && family.needs_window) config.get("sliding_window").fail("null, which is not implemented");
  if (!found) return 0;
  if (found->int64() < 1) found->fail(cat(found->int64(), ", expected 1 or more, or null"));
  if (family.windows != Windows::none) return found->int64();
  // transformers' Llama has no window, and others that read such files have.
  if (found->int64() < seq_len)
    found->fail(cat(found->int64(), ", and a model of type ", excerpt(family.model_type), " has no window"));
  return 0;
}

// Which layers have no window although there is one.
Layers read_full_layers(const Json& config, const Family& family, const Config& read) {
  const std::optional<Json> types = config.find("layer_types");
  Layers layers;
  if (!types && family.full_every > 0) {
    if (read.sliding_window == 0) return layers;
    const std::int64_t every = integer_or(config, "sliding_window_pattern", family.full_every);
    if (every < 1) config.get("sliding_window_pattern").fail(cat(every, ", expected 1 or more"));
    return family.usual_full_layers(read.n_layers, every);
  }
  if (!types) {
    if (read.sliding_window == 0 || !family.asks_for_window) return layers;
    const std::int64_t first = std::clamp(integer_or(config, "max_window_layers", 28), std::int64_t{0}, read.n_layers);
    for (std::int64_t i = 0; i < first; ++i) layers.push_back(i);
    return layers;
  }
  if (family.windows == Windows::some && read.sliding_window > 0) {
    if (static_cast<std::int64_t>(types->size()) != read.n_layers) {
      types->fail(cat("expected a type for each of ", read.n_layers, " layers, found ", types->size()));
    }
    std::int64_t layer = 0;
    for (const Json type : types->elements()) {
      if (type.string() == kFullAttention) {
        layers.push_back(layer);
      } else if (type.string() != kSlidingAttention) {
        type.fail(cat(excerpt(type.string()), ", expected \"", kFullAttention, "\" or \"", kSlidingAttention, '"'));
      }
      ++layer;
    }
    return layers;
  }
  const std::string_view expected = read.sliding_window > 0 ? "sliding_attention" : "full_attention";
  for (const Json type : types->elements()) {
    if (type.string() != expected) {
      type.fail(cat(excerpt(type.string()), ", expected ", excerpt(expected), " for every layer of this model"));
    }
  }
  return layers;
}

}  // namespace

const Family& find_family(const Json& config) {
  const Json type = config.get("model_type");
  const Family* const found = find_hugging_face_family(type.string());
  if (found == nullptr) {
    type.fail(cat(excerpt(type.string()), ", expected ", hugging_face_families(), ": this version computes no other"));
  }
  const std::optional<Json> names = config.find("architectures");
  const auto known = [&](std::string_view name) { return !name.empty() && is_in(found->architectures, name); };
  if (names && names->size() > 0 && (names->size() != 1 || !known(names->at(0).string()))) {
    names->fail(
        cat(listed(*names), ", expected ", excerpt(found->architectures[0]), ": this version computes no other"));
  }
  return *found;
}

Config read_hf_config(const Json& config) {
  const Family& family = find_family(config);
  refuse_settings(config, family);
  Config read;
  read.dim = config.get("hidden_size").int64();
  read.hidden_dim = config.get("intermediate_size").int64();
  if (family.experts) read_experts(config, *family.experts, read);
  read.n_layers = config.get("num_hidden_layers").int64();
  read.n_heads = config.get("num_attention_heads").int64();
  const bool states_kv_heads = states(config, "num_key_value_heads");
  read.n_kv_heads = integer_or(config, "num_key_value_heads",
                               states_kv_heads ? read.n_heads : family.n_kv_heads.value_or(read.n_heads));
  const std::optional<Json> head_dim = config.find("head_dim");
  const bool usual_head_dim = !states(config, "head_dim") && family.head_dim > 0;
  if (!head_dim && !usual_head_dim && (read.n_heads < 1 || read.dim % read.n_heads != 0)) {
    throw FormatError(cat("config.json: hidden_size is ", read.dim, ", which num_attention_heads ", read.n_heads,
                          " does not divide, and there is no head_dim"));
  }
  read.head_dim = head_dim ? head_dim->int64() : usual_head_dim ? family.head_dim : read.dim / read.n_heads;
  read.vocab_size = config.get("vocab_size").int64();
  read.seq_len = integer_or(config, "max_position_embeddings", family.seq_len);
  read.norm_eps = static_cast<float>(find_number(config, family.eps_name).value_or(family.norm_eps));
  read.sliding_window = read_window(config, family, read.seq_len);
  read.rope_style = family.hugging_face_rope_style;
  const std::optional<Json> tied = config.find("tie_word_embeddings");
  read.tied = tied ? tied->boolean() : family.tied;
  family.apply_to(read);
  const std::optional<Json> parallel = config.find("use_parallel_residual");
  if (parallel && family.computes_switch("use_parallel_residual")) read.parallel = parallel->boolean();
  read_multipliers(config, family, read);
  read_caps(config, family, read);
  const std::vector<FieldName> names = field_names(config, family);
  validate(read, names);  // before what depends on the number of layers, head_dim and the context
  read.full_layers = read_full_layers(config, family, read);
  read.no_rope_layers = read_no_rope_layers(config, family, read.n_layers);
  if (family.rope_in_windows && read.sliding_window > 0) read.no_rope_layers = read.full_layers;
  refuse_other_scale(config, family, read.head_dim);
  read.rotary_dim = read_rotary_dim(config, read, family);
  Rotary rotary = read_rotary(config, read, family);
  read.rope_theta = rotary.theta;
  read.rope_scaling = rotary.scaling;
  read.rope_factors = std::move(rotary.factors);
  read.rope_long_factors = std::move(rotary.long_factors);
  read.local_rope_theta = rotary.local_theta;
  validate(read, names);
  return read;
}

std::vector<Part> read_hf_parts(const Json& config) {
  const Family& family = find_family(config);
  std::vector<Part> parts(family.parts.begin(), family.parts.end());
  for (const PartFacts& row : kParts) {
    if (row.kind != PartKind::bias) continue;
    const std::string_view name = family.bias_switch(row.part);
    if (name.empty()) {
      if (family.norm_biases && is_norm_bias(row.part)) parts.push_back(row.part);
      continue;
    }
    // transformers' attention_bias is another name of InternLM3's.
    std::optional<Json> said = config.find(name);
    if (!said) said = config.find(llama2cpp::bias_switch(row.scope));
    const bool usual = family.biased && name == family.bias_switches[0];
    if (said ? said->boolean() : usual) parts.push_back(row.part);
  }
  return parts;
}

std::vector<std::int64_t> read_eos_ids(const Json& config) {
  std::vector<std::int64_t> ids;
  const std::optional<Json> found = config.find("eos_token_id");
  if (!found) return ids;
  if (found->type() == Json::Type::array) {
    for (const Json id : found->elements()) ids.push_back(id.int64());
  } else {
    ids.push_back(found->int64());
  }
  return ids;
}

}  // namespace llama2cpp
