// What happens where a hook looks: the activation is cut into sequences and heads, shown, and put back.
#include "observe/hooks.h"

#include <algorithm>
#include <string_view>

#include "core/check.h"

namespace llama2cpp {
namespace {

struct PointFacts {
  std::string_view name;  // after "blocks.{layer}."
  enum class Shape : std::uint8_t {
    row,
    scale,
    hidden,
    experts,
    chosen,
    expert_rows,
    query_heads,
    kv_heads,
    results,
    pattern
  } shape;
  bool rotary;      // in rotary order: shown as half_split
  bool in_a_block;  // has a layer in its name
};

using Shape = PointFacts::Shape;

constexpr PointFacts kFacts[kPoints] = {
    {"hook_embed", Shape::row, false, false},
    {"hook_resid_pre", Shape::row, false, true},
    {"ln1.hook_scale", Shape::scale, false, true},
    {"ln1.hook_normalized", Shape::row, false, true},
    {"attn.hook_q", Shape::query_heads, true, true},
    {"attn.hook_k", Shape::kv_heads, true, true},
    {"attn.hook_v", Shape::kv_heads, false, true},
    {"attn.hook_q_normed", Shape::query_heads, true, true},
    {"attn.hook_k_normed", Shape::kv_heads, true, true},
    {"attn.hook_rot_q", Shape::query_heads, true, true},
    {"attn.hook_rot_k", Shape::kv_heads, true, true},
    {"attn.hook_attn_scores", Shape::pattern, false, true},
    {"attn.hook_pattern", Shape::pattern, false, true},
    {"attn.hook_z", Shape::query_heads, false, true},
    {"attn.hook_result", Shape::results, false, true},
    {"ln1_post.hook_scale", Shape::scale, false, true},
    {"ln1_post.hook_normalized", Shape::row, false, true},
    {"hook_attn_out", Shape::row, false, true},
    {"hook_resid_mid", Shape::row, false, true},
    {"ln2.hook_scale", Shape::scale, false, true},
    {"ln2.hook_normalized", Shape::row, false, true},
    {"mlp.hook_router_scores", Shape::experts, false, true},
    {"mlp.hook_expert_weights", Shape::experts, false, true},
    {"mlp.hook_expert_indices", Shape::chosen, false, true},
    {"mlp.hook_pre", Shape::hidden, false, true},
    {"mlp.hook_pre_linear", Shape::hidden, false, true},
    {"mlp.hook_post", Shape::hidden, false, true},
    {"mlp.hook_expert_out", Shape::expert_rows, false, true},
    {"ln2_post.hook_scale", Shape::scale, false, true},
    {"ln2_post.hook_normalized", Shape::row, false, true},
    {"hook_mlp_out", Shape::row, false, true},
    {"hook_resid_post", Shape::row, false, true},
    {"ln_final.hook_scale", Shape::scale, false, false},
    {"ln_final.hook_normalized", Shape::row, false, false},
};

const PointFacts& facts(Point point) { return kFacts[static_cast<std::size_t>(point)]; }

// heads [n][head_dim], of which the first `rotary` numbers are turned: from pairs (2j, 2j + 1) to pairs (j, j + rotary / 2).
void to_half_split(const float* from, float* to, std::int64_t n, std::int64_t head_dim, std::int64_t rotary) {
  const std::int64_t pairs = rotary / 2;
  for (std::int64_t head = 0; head < n; ++head, from += head_dim, to += head_dim) {
    for (std::int64_t j = 0; j < pairs; ++j) {
      to[j] = from[2 * j];
      to[pairs + j] = from[2 * j + 1];
    }
    std::copy(from + rotary, from + head_dim, to + rotary);
  }
}

class CallbackHook final : public Hook {
 public:
  explicit CallbackHook(Hooks::Callback callback) : Hook(Kind::callback), callback_(std::move(callback)) {}
  void at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) override {
    callback_(point, layer, activation, span);
  }

 private:
  Hooks::Callback callback_;
};

}  // namespace

Place checked_place(std::int64_t point, std::int64_t layer, const Config& config) {
  const bool known = point >= 0 && point < kPoints && layer >= 0 && layer < config.n_layers;
  LLAMA2CPP_CHECK(known && has_point(static_cast<Point>(point), config), "there is no point ", point, " in layer ",
                  layer);
  return {static_cast<Point>(point), layer};
}

bool has_point(Point point, const Config& config) {
  const Shape shape = facts(point).shape;
  const bool of_experts = shape == Shape::experts || shape == Shape::chosen || shape == Shape::expert_rows;
  if (of_experts) return config.n_experts > 0;
  switch (point) {
    case Point::q_normed:
    case Point::k_normed:
      return config.qk_norm != QkNorm::none;
    case Point::ln1_scale:
    case Point::ln1_normalized:
      return config.norms_before();
    case Point::ln2_scale:
    case Point::ln2_normalized:
      return config.norms_mlp();
    case Point::resid_mid:
      return !config.parallel;
    case Point::ln1_post_scale:
    case Point::ln1_post_normalized:
    case Point::ln2_post_scale:
    case Point::ln2_post_normalized:
      return config.norms_after();
    case Point::mlp_pre_linear:
      return config.gated;
    default:
      return true;
  }
}

std::vector<Place> all_places(const Config& config) {
  std::vector<Place> places = {{Point::embed, 0}};
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    for (int p = 0; p < kPoints; ++p) {
      const auto point = static_cast<Point>(p);
      if (in_a_block(point) && has_point(point, config)) places.push_back({point, layer});
    }
  }
  places.push_back({Point::ln_final_scale, config.n_layers - 1});
  places.push_back({Point::ln_final_normalized, config.n_layers - 1});
  return places;
}

std::vector<Place> all_places(std::int64_t n_layers) {
  Config config;
  config.n_layers = n_layers;
  return all_places(config);
}

std::string point_name(Point point, std::int64_t layer) {
  const std::string name(facts(point).name);
  return in_a_block(point) ? "blocks." + std::to_string(layer) + "." + name : name;
}

bool in_a_block(Point point) { return facts(point).in_a_block; }

bool is_rotary(Point point) { return facts(point).rotary; }

void to_interleaved(const float* from, float* to, std::int64_t n, std::int64_t head_dim, std::int64_t rotary) {
  const std::int64_t pairs = rotary / 2;
  for (std::int64_t head = 0; head < n; ++head, from += head_dim, to += head_dim) {
    for (std::int64_t j = 0; j < pairs; ++j) {
      to[2 * j] = from[j];
      to[2 * j + 1] = from[pairs + j];
    }
    std::copy(from + rotary, from + head_dim, to + rotary);
  }
}

PointShape point_shape(Point point, const Config& c) {
  switch (facts(point).shape) {
    case Shape::row:
      return {0, c.dim};
    case Shape::scale:
      return {0, 1};
    case Shape::hidden:
      return {c.n_experts_used, c.hidden_dim};
    case Shape::experts:
      return {0, c.n_experts};
    case Shape::chosen:
      return {0, c.n_experts_used};
    case Shape::expert_rows:
      return {c.n_experts_used, c.dim};
    case Shape::query_heads:
      return {c.n_heads, c.head_dim};
    case Shape::kv_heads:
      return {c.n_kv_heads, c.head_dim};
    case Shape::results:
      return {c.n_heads, c.dim};
    default:
      return {c.n_heads, 0};
  }
}

void PlaceSet::add(const PlaceSet& others) {
  for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i] |= others.layers_[i];
}

Hooks::Hooks(const Config& config, Backend& backend, Callback callback) : Hooks(config, backend) {
  add(std::make_shared<CallbackHook>(std::move(callback)), PlaceSet(config.n_layers));
}

void Hooks::add(std::shared_ptr<Hook> hook, PlaceSet places, std::optional<std::size_t> sequence) {
  watched_.add(places);
  entries_.push_back({std::move(hook), std::move(places), sequence});
}

void Hooks::watch(Point point, std::int64_t layer) {
  entries_.back().places.add({point, layer});
  watched_.add({point, layer});
}

bool Hooks::need_one_pass() const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [](const Entry& e) { return e.hook->kind() != Hook::Kind::look; });
}

bool Hooks::edits(Point point, std::int64_t layer) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const Entry& e) { return e.hook->kind() != Hook::Kind::look && e.places.has(point, layer); });
}

bool Hooks::replaces_mlp(std::int64_t layer, std::size_t sequence) const {
  if (!active(Point::mlp_out, layer)) return false;
  const auto acts_at = [&](const Entry& entry, Point point) {
    const bool all = entry.hook->scope() == Hook::Scope::call;
    return (all || entry.sequence.value_or(sequence) == sequence) && entry.places.has(point, layer);
  };
  for (int p = static_cast<int>(Point::router_scores); p < static_cast<int>(Point::mlp_out); ++p) {
    const auto inside = static_cast<Point>(p);
    if (active(inside, layer) &&
        std::any_of(entries_.begin(), entries_.end(), [&](const Entry& entry) { return acts_at(entry, inside); })) {
      return false;
    }
  }
  // Those that take an activation as it lies come first.
  for (const bool as_it_lies : {true, false}) {
    for (const Entry& entry : entries_) {
      if (entry.hook->as_it_lies() == as_it_lies && acts_at(entry, Point::mlp_out)) return entry.hook->replaces();
    }
  }
  return false;
}

bool Hooks::show_together(Point point, std::int64_t layer) const {
  return std::any_of(entries_.begin(), entries_.end(), [&](const Entry& e) {
    return e.hook->scope() == Hook::Scope::call && e.places.has(point, layer);
  });
}

// activation: the part of `spans`, of which several have as much each.
void Hooks::show(Point point, std::int64_t layer, const Tensor& activation, std::span<const HookSpan> spans,
                 bool as_it_lies) const {
  const auto count = static_cast<std::int64_t>(spans.size());
  const std::int64_t of_span = activation.dim(0) / count;
  for (const Entry& entry : entries_) {
    if (entry.hook->as_it_lies() != as_it_lies || !entry.places.has(point, layer)) continue;
    if (entry.hook->scope() == Hook::Scope::call) {
      show_to(entry, point, layer, activation, spans[0]);
      continue;
    }
    for (std::int64_t s = 0; s < count; ++s) {
      const HookSpan& span = spans[static_cast<std::size_t>(s)];
      if (entry.sequence.value_or(span.sequence) != span.sequence) continue;
      Tensor part = activation;
      part.data = activation.row(s * (activation.rows() / count));
      part.shape[0] = of_span;
      show_to(entry, point, layer, part, span);
    }
  }
}

void Hooks::show_to(const Entry& entry, Point point, std::int64_t layer, const Tensor& activation,
                    const HookSpan& span) const {
  if (entry.hook->kind() == Hook::Kind::callback) {
    const Backend::Pause others_may_run(*backend_);
    entry.hook->at(point, layer, activation, span);
  } else {
    entry.hook->at(point, layer, activation, span);
  }
}

void Hooks::call(Point point, std::int64_t layer, const Tensor& activation, std::span<const HookSpan> spans) const {
  const PointFacts& fact = facts(point);
  const PointShape shape = point_shape(point, *config_);
  backend_->sync();
  if (is_pattern(point)) return show(point, layer, activation, spans);  // watched_attention.cpp has cut it
  const std::size_t at_once = show_together(point, layer) ? spans.size() : 1;
  for (std::size_t first = 0; first < spans.size(); first += at_once) {
    const std::span<const HookSpan> shown_spans = spans.subspan(first, at_once);
    const HookSpan& last = shown_spans.back();
    const std::int64_t rows = last.row + last.count - shown_spans[0].row;
    const Tensor part = activation.slice(shown_spans[0].row, rows);
    show(point, layer, part, shown_spans, true);
    if (shape.heads == 0) {
      show(point, layer, part, shown_spans);
      continue;
    }
    const Tensor by_head(part.row(0), {rows, shape.heads, shape.width});
    if (!fact.rotary || config_->rope_style == RopeStyle::half_split) {
      show(point, layer, by_head, shown_spans);
      continue;
    }
    const std::int64_t heads = rows * shape.heads;
    const std::unique_ptr<float[]> shown(new float[static_cast<std::size_t>(heads * shape.width)]);  // not zeroed
    backend_->parallel_for(heads, heads * shape.width * static_cast<std::int64_t>(sizeof(float)),
                           [&](std::int64_t begin, std::int64_t end) {
                             const std::int64_t offset = begin * shape.width;
                             to_half_split(part.row(0) + offset, shown.get() + offset, end - begin, shape.width,
                                           config_->rotary());
                           });
    show(point, layer, Tensor(shown.get(), {rows, shape.heads, shape.width}), shown_spans);
    if (edits(point, layer)) to_interleaved(shown.get(), part.row(0), heads, shape.width, config_->rotary());
  }
}

}  // namespace llama2cpp
