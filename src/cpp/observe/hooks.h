// Hooks: what looks at a forward, and what changes it. forward.cpp calls at(point, layer, tensor) after each op; with
// nothing to look at that is one test of a bit.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/config.h"
#include "core/tensor.h"

namespace llama2cpp {

// Places where a hook may look, in the order of the forward. T tokens, dim d, H query heads, K kv heads.
enum class Point : std::uint8_t {
  embed,           // [T, d]         layer 0 only
  resid_pre,       // [T, d]
  ln1_scale,       // [T, 1]
  ln1_normalized,  // [T, d]         before the gain
  q,               // [T, H, head_dim]  before rotary; q, k, rot_q, rot_k are always shown in half-split order
  k,               // [T, K, head_dim]
  v,               // [T, K, head_dim]
  q_normed,        // [T, H, head_dim]  where the model normalises queries and keys
  k_normed,        // [T, K, head_dim]
  rot_q,           // [T, H, head_dim]  after rotary
  rot_k,           // [T, K, head_dim]
  attn_scores,     // [H, T, position + T]  masked ones are -inf
  pattern,         // [H, T, position + T]
  z,               // [T, H, head_dim]
  result,          // [T, H, d]      what each head adds to attn_out; computed only where someone looks
  ln1_post_scale,  // [T, 1]         where norms are after attention and MLP; and so on
  ln1_post_normalized,
  attn_out,        // [T, d]         what attention adds to the residual stream
  resid_mid,       // [T, d]
  ln2_scale,       // [T, 1]
  ln2_normalized,  // [T, d]
  router_scores,   // [T, E]         of E experts, before softmax; these and expert_out where the model has experts
  expert_weights,  // [T, E]         0 for those that a token does not go to
  expert_indices,  // [T, k]         the k experts that it goes to, ascending
  mlp_pre,  // [T, hidden]    the gate, w1 x, or w3 x where there is none; with experts [T, k, hidden], likewise the next two
  mlp_pre_linear,  // [T, hidden]    w3 x
  mlp_post,        // [T, hidden]    silu(gate) * up
  expert_out,      // [T, k, d]      what each expert gives, before its weight
  ln2_post_scale,  // [T, 1]
  ln2_post_normalized,
  mlp_out,         // [T, d]
  resid_post,      // [T, d]
  ln_final_scale,  // [rows with logits, 1]   layer n_layers - 1 only
  ln_final_normalized,
};
inline constexpr int kPoints = static_cast<int>(Point::ln_final_normalized) + 1;
static_assert(kPoints <= 64, "a PlaceSet has 64 bits for a layer");

struct Place {
  Point point = Point::embed;
  std::int64_t layer = 0;
};

// The place of those numbers. Throws std::invalid_argument where a model of that config has none.
Place checked_place(std::int64_t point, std::int64_t layer, const Config& config);

// Whether a model of that config has the point.
bool has_point(Point point, const Config& config);

// Every place of a model, in the order of the forward.
std::vector<Place> all_places(const Config& config);
// Of one that is a Llama.
std::vector<Place> all_places(std::int64_t n_layers);

// TransformerLens's name: "blocks.3.attn.hook_pattern", "hook_embed", "ln_final.hook_scale".
std::string point_name(Point point, std::int64_t layer);

// Whether the name has a layer in it.
bool in_a_block(Point point);

// What a hook is shown for one token: [heads, width], or [width] where heads is 0. Experts that it goes to are like heads.
// Patterns have a row for each head and
// token, as wide as there are keys: width 0.
struct PointShape {
  std::int64_t heads = 0;
  std::int64_t width = 0;
};
PointShape point_shape(Point point, const Config& config);
inline bool is_pattern(Point point) { return point == Point::attn_scores || point == Point::pattern; }

// Whether its heads are shown in half-split order in a model that has them as pairs.
bool is_rotary(Point point);
// heads [n][head_dim] in half-split order, of which the first `rotary` numbers are turned: to pairs (2j, 2j + 1).
void to_interleaved(const float* from, float* to, std::int64_t n, std::int64_t head_dim, std::int64_t rotary);

// Some of a model's places: a bit for each point and layer.
class PlaceSet {
 public:
  PlaceSet() = default;
  explicit PlaceSet(std::int64_t n_layers) : layers_(static_cast<std::size_t>(n_layers), 0) {}

  std::int64_t n_layers() const { return static_cast<std::int64_t>(layers_.size()); }

  void add(Place place) { layers_[static_cast<std::size_t>(place.layer)] |= bit(place.point); }
  void add(const PlaceSet& others);
  bool has(Point point, std::int64_t layer) const {
    return (layers_[static_cast<std::size_t>(layer)] & bit(point)) != 0;
  }

 private:
  static std::uint64_t bit(Point point) { return std::uint64_t{1} << static_cast<int>(point); }

  std::vector<std::uint64_t> layers_;
};

// Rows of a pass that are one sequence's, for a hook's eyes: hooks fire once for each.
struct HookSpan {
  std::int64_t row = 0;
  std::int64_t count = 0;
  std::int64_t position = 0;  // of the first row
  std::size_t sequence = 0;   // its index in the call
};

// What a call feeds to one of its sequences.
struct Feed {
  std::span<const std::int32_t> before;  // what the sequence holds already
  std::span<const std::int32_t> tokens;
};

// Something that happens at places: it sees one sequence's part of an activation, dense, in half-split order (unless it
// says otherwise).
class Hook {
 public:
  enum class Kind : std::uint8_t {
    look,      // changes nothing, calls nothing
    edit,      // may write to the activation, calls nothing
    callback,  // may write, and runs code that may use the backend: it runs without the lease
  };

  // What it is shown at a time: a sequence's part of an activation, or that of all sequences of the call, which have
  // equally many tokens then and come in one pass.
  enum class Scope : std::uint8_t { sequence, call };

  explicit Hook(Kind kind, Scope scope = Scope::sequence) : kind_(kind), scope_(scope) {}
  virtual ~Hook() = default;
  Hook(const Hook&) = delete;
  Hook& operator=(const Hook&) = delete;

  Kind kind() const { return kind_; }
  Scope scope() const { return scope_; }

  // Must not keep the tensor's pointer. May throw to end the call. Of a call's sequences one after the other: [T, ...]
  // is then [sequences * T, ...], and [heads, T, keys] is [sequences * heads, T, keys].
  virtual void at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) = 0;

  // Whether it takes an activation as the ops have it: [T, heads * width], in rotary order where that is the model's.
  virtual bool as_it_lies() const { return false; }

  // Whether nothing of what it is shown is left, and it does not read it: that need not have been computed then.
  virtual bool replaces() const { return false; }

  // Before a call computes anything, with what it feeds to each of its sequences. May throw to end the call.
  virtual void begin(std::span<const Feed> /*feeds*/) {}
  // After a call of which everything has succeeded: its sequences move on.
  virtual void succeeded() noexcept {}

 private:
  Kind kind_;
  Scope scope_;
};

class Hooks {
 public:
  using Callback = std::function<void(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span)>;

  Hooks() = default;  // looks at nothing
  Hooks(const Config& config, Backend& backend)
      : watched_(config.n_layers), config_(&config), backend_(&backend), any_(true) {}
  // One callback, whose places are what watch() names.
  Hooks(const Config& config, Backend& backend, Callback callback);

  // Hooks act in the order in which they were added; with a sequence, on that one only.
  void add(std::shared_ptr<Hook> hook, PlaceSet places, std::optional<std::size_t> sequence = {});
  void watch(Point point, std::int64_t layer);  // of the hook added last

  // The forward begins with this layer, from residual streams that are given. None: with tokens.
  std::optional<std::int64_t> start_at_layer;
  // The forward ends before this layer, without logits. None: at the end.
  std::optional<std::int64_t> stop_at_layer;
  // The forward ends with the last norm.
  bool no_logits = false;

  bool any() const { return any_; }
  // Whether the tokens of a call have to come in one pass. What only looks can be shown them piece by piece.
  bool need_one_pass() const;

  bool active([[maybe_unused]] Point point, [[maybe_unused]] std::int64_t layer) const {
#ifdef LLAMA2CPP_NO_HOOKS
    return false;
#else
    return any_ && watched_.has(point, layer);
#endif
  }
  // Whether something at the place may write.
  bool edits(Point point, std::int64_t layer) const;
  // Whether nobody needs what a layer's MLP gives a sequence of the call: the first hook that acts on its mlp_out replaces
  // that, and none is shown anything inside.
  bool replaces_mlp(std::int64_t layer, std::size_t sequence) const;
  // Whether something at the place is shown all sequences at once.
  bool show_together(Point point, std::int64_t layer) const;

  void begin(std::span<const Feed> feeds) const {
    for (const Entry& entry : entries_) entry.hook->begin(feeds);
  }
  void succeeded() const noexcept {
    for (const Entry& entry : entries_) entry.hook->succeeded();
  }

  // activation [T, ...]: rows are tokens. Shows each span's part to the hooks of the place. A pattern is that of the one
  // span, or with show_together [spans * heads, T, keys].
  void at(Point point, std::int64_t layer, const Tensor& activation, std::span<const HookSpan> spans) const {
    if (active(point, layer)) [[unlikely]]
      call(point, layer, activation, spans);
  }

 private:
  struct Entry {
    std::shared_ptr<Hook> hook;
    PlaceSet places;
    std::optional<std::size_t> sequence;
  };

  void call(Point point, std::int64_t layer, const Tensor& activation, std::span<const HookSpan> spans) const;
  void show(Point point, std::int64_t layer, const Tensor& activation, std::span<const HookSpan> spans,
            bool as_it_lies = false) const;
  void show_to(const Entry& entry, Point point, std::int64_t layer, const Tensor& activation,
               const HookSpan& span) const;

  std::vector<Entry> entries_;
  PlaceSet watched_;  // of all entries
  const Config* config_ = nullptr;
  Backend* backend_ = nullptr;
  bool any_ = false;
};

}  // namespace llama2cpp
