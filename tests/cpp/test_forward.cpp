// The forward pass as hooks, failures and other sequences see it: which points fire with which shapes, that looking
// leaves the bits alone and editing does not, and that a call which fails leaves its sessions as they were.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "core/check.h"
#include "tiny_model.h"

using llama2cpp::Config;
using llama2cpp::Hooks;
using llama2cpp::HookSpan;
using llama2cpp::Model;
using llama2cpp::ModelOptions;
using llama2cpp::Point;
using llama2cpp::RopeStyle;
using llama2cpp::Session;
using llama2cpp::Tensor;
using llama2cpp::Work;

namespace {

using Tokens = std::vector<std::int32_t>;
using Shape = std::vector<std::int64_t>;
using tiny::Bits;

Point point_at(int index) { return static_cast<Point>(index); }

bool only_first_layer(Point p) { return p == Point::embed; }
bool only_last_layer(Point p) { return p == Point::ln_final_scale || p == Point::ln_final_normalized; }

// All places where a hook may look, in the order of the forward.
std::vector<std::pair<Point, std::int64_t>> every_place(const Config& c) {
  std::vector<std::pair<Point, std::int64_t>> places = {{Point::embed, 0}};
  for (std::int64_t layer = 0; layer < c.n_layers; ++layer) {
    for (int p = 0; p < llama2cpp::kPoints; ++p) {
      const bool in_a_layer = !only_first_layer(point_at(p)) && !only_last_layer(point_at(p));
      if (in_a_layer && llama2cpp::has_point(point_at(p), c)) places.emplace_back(point_at(p), layer);
    }
  }
  places.emplace_back(Point::ln_final_scale, c.n_layers - 1);
  places.emplace_back(Point::ln_final_normalized, c.n_layers - 1);
  return places;
}

// The shape that hooks.h states for `count` tokens from `position` on, `logits` of which have logits.
Shape stated_shape(Point point, const Config& c, std::int64_t count, std::int64_t position, std::int64_t logits) {
  switch (point) {
    case Point::embed:
    case Point::resid_pre:
    case Point::ln1_normalized:
    case Point::ln1_post_normalized:
    case Point::ln2_post_normalized:
    case Point::attn_out:
    case Point::resid_mid:
    case Point::ln2_normalized:
    case Point::mlp_out:
    case Point::resid_post:
      return {count, c.dim};
    case Point::ln1_scale:
    case Point::ln2_scale:
    case Point::ln1_post_scale:
    case Point::ln2_post_scale:
      return {count, 1};
    case Point::q:
    case Point::q_normed:
    case Point::rot_q:
    case Point::z:
      return {count, c.n_heads, c.head_dim};
    case Point::k:
    case Point::v:
    case Point::k_normed:
    case Point::rot_k:
      return {count, c.n_kv_heads, c.head_dim};
    case Point::attn_scores:
    case Point::pattern:
      return {c.n_heads, count, position + count};
    case Point::result:
      return {count, c.n_heads, c.dim};
    case Point::mlp_pre:
    case Point::mlp_pre_linear:
    case Point::mlp_post:
      return {count, c.hidden_dim};
    case Point::router_scores:
    case Point::expert_weights:
      return {count, c.n_experts};
    case Point::expert_indices:
      return {count, c.n_experts_used};
    case Point::expert_out:
      return {count, c.n_experts_used, c.dim};
    case Point::ln_final_scale:
      return {logits, 1};
    case Point::ln_final_normalized:
      return {logits, c.dim};
  }
  return {};
}

Shape shape_of(const Tensor& t) { return {t.shape.begin(), t.shape.begin() + t.rank}; }

std::span<float> values_of(const Tensor& t) {
  REQUIRE(t.row_stride == t.columns());
  return {t.row(0), static_cast<std::size_t>(t.rows() * t.columns())};
}

// Changes every value, neighbours by different amounts. A masked score stays -inf.
void shift(const Tensor& t) {
  const auto values = values_of(t);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] += 0.25F * static_cast<float>(i % 3 + 1);
}

Hooks hooks_at(const Model& model, const std::vector<std::pair<Point, std::int64_t>>& places,
               Hooks::Callback callback) {
  Hooks hooks(model.config(), model.backend(), std::move(callback));
  for (const auto& [point, layer] : places) hooks.watch(point, layer);
  return hooks;
}

void feed(Session& session, const Tokens& tokens, const Hooks& hooks) {
  const Work work{&session, tokens, nullptr};
  llama2cpp::run({&work, 1}, hooks, tiny::no_poll);
}

// A session after `tokens`.
struct Fed : Session {
  Fed(const std::shared_ptr<const Model>& model, const Tokens& tokens) : Session(model, 0) {
    tiny::feed(*this, tokens);
  }
};

// Logits of every token, and the keys and values that it left.
struct Trace {
  Bits logits;
  Bits kv;
  bool operator==(const Trace&) const = default;
};

Bits kv_of(const Session& session) {
  Bits bits;
  for (std::int64_t layer = 0; layer < session.model().config().n_layers; ++layer) {
    for (const Tensor& t : {session.kv().keys(layer), session.kv().values(layer)}) {
      for (std::int64_t head = 0; head < t.dim(0); ++head) {
        const auto* first = static_cast<const std::byte*>(t.data) + head * t.dim(1) * t.columns() * size_of(t.dtype);
        const auto bytes = static_cast<std::size_t>(session.position() * t.columns() * size_of(t.dtype));
        const std::size_t words = bits.size();
        bits.resize(words + bytes / sizeof(std::uint32_t));
        std::memcpy(bits.data() + words, first, bytes);
      }
    }
  }
  return bits;
}

Trace trace(const std::shared_ptr<const Model>& model, const Tokens& tokens, std::int64_t chunk, const Hooks& hooks) {
  Session session(model, 0);
  std::vector<float> logits(tokens.size() * static_cast<std::size_t>(model->config().vocab_size));
  const Work work{&session, tokens, logits.data()};
  llama2cpp::run({&work, 1}, hooks, tiny::no_poll, chunk);
  return {tiny::bits_of(logits), kv_of(session)};
}

// State that a failed call must leave alone, and what comes after it.
struct State {
  std::int64_t position;
  Tokens tokens;
  Bits logits;
  Bits kv;
  bool operator==(const State&) const = default;
};

State state_of(const Session& session) {
  return {session.position(), session.tokens(), tiny::logits_of(session), kv_of(session)};
}

const RopeStyle kStyles[] = {RopeStyle::interleaved, RopeStyle::half_split};

}  // namespace

TEST_CASE("one sequence: every point fires once, in order, with the stated shape") {
  for (const RopeStyle style : kStyles) {
    const auto model = tiny::model(tiny::config(style), {.threads = 2});
    const Config& c = model->config();
    Session session(model, 0);
    for (const std::int64_t count : {5, 1, 3}) {
      const std::int64_t position = session.position();
      std::vector<std::pair<Point, std::int64_t>> fired;
      const Hooks hooks =
          hooks_at(*model, every_place(c), [&](Point point, std::int64_t layer, const Tensor& t, const HookSpan& span) {
            fired.emplace_back(point, layer);
            CAPTURE(llama2cpp::point_name(point, layer));
            CHECK(shape_of(t) == stated_shape(point, c, count, position, 1));
            CHECK(span.sequence == 0);
            CHECK(span.count == (only_last_layer(point) ? 1 : count));
            CHECK(span.position == (only_last_layer(point) ? position + count - 1 : position));
          });
      feed(session, tiny::tokens(count, 1), hooks);
      CHECK(fired == every_place(c));
      CHECK(session.position() == position + count);
    }
  }
}

TEST_CASE("several sequences in a pass: every point fires once for each of them") {
  const auto model = tiny::model(2);
  const Config& c = model->config();
  Fed first(model, tiny::tokens(4, 1));
  Session second(model, 0);
  Fed third(model, tiny::tokens(7, 2));
  const std::vector<Tokens> tokens = {tiny::tokens(3, 3), tiny::tokens(6, 4), tiny::tokens(1, 5)};
  const std::vector<std::int64_t> positions = {4, 0, 7};
  std::vector<float> all_logits(6 * static_cast<std::size_t>(c.vocab_size));
  const std::vector<Work> work = {
      {&first, tokens[0], nullptr}, {&second, tokens[1], all_logits.data()}, {&third, tokens[2], nullptr}};

  std::vector<std::tuple<Point, std::int64_t, std::size_t>> fired;
  const Hooks hooks =
      hooks_at(*model, every_place(c), [&](Point point, std::int64_t layer, const Tensor& t, const HookSpan& span) {
        fired.emplace_back(point, layer, span.sequence);
        CAPTURE(llama2cpp::point_name(point, layer));
        const std::size_t s = span.sequence;
        REQUIRE(s < 3);
        const auto count = static_cast<std::int64_t>(tokens[s].size());
        const std::int64_t logits = s == 1 ? count : 1;
        CHECK(shape_of(t) == stated_shape(point, c, count, positions[s], logits));
        CHECK(span.count == (only_last_layer(point) ? logits : count));
        CHECK(span.position == positions[s] + (only_last_layer(point) ? count - logits : 0));
      });
  llama2cpp::run(work, hooks, tiny::no_poll);

  std::vector<std::tuple<Point, std::int64_t, std::size_t>> expected;
  for (const auto& [point, layer] : every_place(c)) {
    for (std::size_t s = 0; s < 3; ++s) expected.emplace_back(point, layer, s);
  }
  CHECK(fired == expected);
}

TEST_CASE("only the watched places fire") {
  const auto model = tiny::model();
  for (const auto& place : every_place(model->config())) {
    std::vector<std::pair<Point, std::int64_t>> fired;
    const Hooks hooks = hooks_at(*model, {place}, [&](Point point, std::int64_t layer, const Tensor&, const HookSpan&) {
      fired.emplace_back(point, layer);
    });
    Session session(model, 0);
    feed(session, {1, 2}, hooks);
    CHECK(fired == std::vector{place});
  }
}

TEST_CASE("points have TransformerLens's names") {
  CHECK(llama2cpp::point_name(Point::embed, 0) == "hook_embed");
  CHECK(llama2cpp::point_name(Point::resid_pre, 2) == "blocks.2.hook_resid_pre");
  CHECK(llama2cpp::point_name(Point::ln1_scale, 0) == "blocks.0.ln1.hook_scale");
  CHECK(llama2cpp::point_name(Point::rot_k, 11) == "blocks.11.attn.hook_rot_k");
  CHECK(llama2cpp::point_name(Point::pattern, 1) == "blocks.1.attn.hook_pattern");
  CHECK(llama2cpp::point_name(Point::mlp_pre_linear, 0) == "blocks.0.mlp.hook_pre_linear");
  CHECK(llama2cpp::point_name(Point::ln_final_normalized, 2) == "ln_final.hook_normalized");
}

TEST_CASE("what hooks see adds up") {
  // Each activation from the ones before it, in double: that the right tensor is shown at the right point.
  const auto model = tiny::model();
  const Config& c = model->config();
  std::map<std::pair<Point, std::int64_t>, std::vector<float>> seen;
  const Hooks hooks =
      hooks_at(*model, every_place(c), [&](Point point, std::int64_t layer, const Tensor& t, const HookSpan&) {
        const auto values = values_of(t);
        seen[{point, layer}] = {values.begin(), values.end()};
      });
  Session session(model, 0);
  const Tokens tokens = tiny::tokens(6, 1);
  feed(session, tokens, hooks);

  const auto at = [&](Point point, std::int64_t layer) -> const std::vector<float>& { return seen.at({point, layer}); };
  const auto close = [](double a, double b) { return std::abs(a - b) <= 1e-4 * (1.0 + std::abs(b)); };
  for (std::int64_t layer = 0; layer < c.n_layers; ++layer) {
    CAPTURE(layer);
    CHECK(at(Point::resid_pre, layer) == (layer == 0 ? at(Point::embed, 0) : at(Point::resid_post, layer - 1)));
    bool sums = true;
    for (std::size_t i = 0; i < at(Point::resid_pre, layer).size(); ++i) {
      sums = sums && at(Point::resid_mid, layer)[i] == at(Point::resid_pre, layer)[i] + at(Point::attn_out, layer)[i];
      sums = sums && at(Point::resid_post, layer)[i] == at(Point::resid_mid, layer)[i] + at(Point::mlp_out, layer)[i];
    }
    CHECK(sums);

    bool norms = true;
    const auto dim = static_cast<std::size_t>(c.dim);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      double squares = 0.0;
      for (std::size_t i = 0; i < dim; ++i) squares += std::pow(at(Point::resid_mid, layer)[t * dim + i], 2.0);
      const double scale = std::sqrt(squares / static_cast<double>(dim) + static_cast<double>(c.norm_eps));
      norms = norms && close(at(Point::ln2_scale, layer)[t], scale);
      for (std::size_t i = 0; i < dim; ++i) {
        norms = norms &&
                close(at(Point::ln2_normalized, layer)[t * dim + i], at(Point::resid_mid, layer)[t * dim + i] / scale);
      }
    }
    CHECK(norms);

    bool gated = true;
    for (std::size_t i = 0; i < at(Point::mlp_pre, layer).size(); ++i) {
      const double gate = at(Point::mlp_pre, layer)[i];
      gated = gated && close(at(Point::mlp_post, layer)[i],
                             gate / (1.0 + std::exp(-gate)) * at(Point::mlp_pre_linear, layer)[i]);
    }
    CHECK(gated);

    // Attention: scores are rot_q . rot_k / sqrt(head_dim), pattern their softmax, z the pattern's mix of v.
    bool attends = true;
    const auto count = tokens.size();
    const auto heads = static_cast<std::size_t>(c.n_heads);
    const auto kv_heads = static_cast<std::size_t>(c.n_kv_heads);
    const auto head_dim = static_cast<std::size_t>(c.head_dim);
    for (std::size_t head = 0; head < heads; ++head) {
      const std::size_t kv_head = head / (heads / kv_heads);
      for (std::size_t t = 0; t < count; ++t) {
        const std::size_t row = (head * count + t) * count;
        double sum = 0.0;
        for (std::size_t key = 0; key < count; ++key) {
          const float score = at(Point::attn_scores, layer)[row + key];
          if (key > t) {
            attends = attends && score == -std::numeric_limits<float>::infinity();
            attends = attends && at(Point::pattern, layer)[row + key] == 0.0F;
            continue;
          }
          double dot = 0.0;
          for (std::size_t i = 0; i < head_dim; ++i) {
            dot += static_cast<double>(at(Point::rot_q, layer)[(t * heads + head) * head_dim + i]) *
                   at(Point::rot_k, layer)[(key * kv_heads + kv_head) * head_dim + i];
          }
          attends = attends && close(score, dot / std::sqrt(static_cast<double>(head_dim)));
          sum += std::exp(static_cast<double>(score));
        }
        for (std::size_t key = 0; key <= t; ++key) {
          attends = attends && close(at(Point::pattern, layer)[row + key],
                                     std::exp(static_cast<double>(at(Point::attn_scores, layer)[row + key])) / sum);
        }
        for (std::size_t i = 0; i < head_dim; ++i) {
          double mix = 0.0;
          for (std::size_t key = 0; key <= t; ++key) {
            mix += static_cast<double>(at(Point::pattern, layer)[row + key]) *
                   at(Point::v, layer)[(key * kv_heads + kv_head) * head_dim + i];
          }
          attends = attends && close(at(Point::z, layer)[(t * heads + head) * head_dim + i], mix);
        }
      }
    }
    CHECK(attends);
  }
}

TEST_CASE("an edit that changes nothing leaves the bits alone, at every point") {
  for (const RopeStyle style : kStyles) {
    for (const std::int64_t group : {0, 2}) {
      const auto model =
          tiny::model(tiny::config(style), {.threads = 2, .kv_dtype = group == 0 ? "f32" : "f16"}, 1, group);
      const Tokens tokens = tiny::tokens(11, 1);
      const Trace expected = trace(model, tokens, 128, {});
      const Hooks::Callback identity = [](Point, std::int64_t, const Tensor& t, const HookSpan&) {
        const auto values = values_of(t);
        const std::vector<float> copy(values.begin(), values.end());
        std::copy(copy.begin(), copy.end(), values.begin());
      };
      const auto places = every_place(model->config());
      CHECK(trace(model, tokens, 128, hooks_at(*model, places, identity)) == expected);
      for (const auto& place : places) {
        CAPTURE(llama2cpp::point_name(place.first, place.second));
        CHECK(trace(model, tokens, 128, hooks_at(*model, {place}, identity)) == expected);
      }
    }
  }
}

TEST_CASE("an edit changes the logits, at every point") {
  const Hooks::Callback edit = [](Point, std::int64_t, const Tensor& t, const HookSpan&) { shift(t); };
  for (const RopeStyle style : kStyles) {
    const auto model = tiny::model(tiny::config(style), {.threads = 1});
    Fed start(model, tiny::tokens(5, 1));
    for (const Tokens& tokens : {tiny::tokens(4, 2), tiny::tokens(1, 3)}) {
      const auto logits_with = [&](const Hooks& hooks) {
        const auto session = start.fork(tiny::no_poll);
        feed(*session, tokens, hooks);
        return tiny::logits_of(*session);
      };
      const Bits expected = logits_with({});
      for (const auto& place : every_place(model->config())) {
        CAPTURE(llama2cpp::point_name(place.first, place.second));
        CHECK(logits_with(hooks_at(*model, {place}, edit)) != expected);
      }
    }
  }
}

TEST_CASE("where nothing reads what was edited, the bits stay") {
  const auto model = tiny::model();
  const std::int64_t last = model->config().n_layers - 1;
  const Hooks::Callback edit = [](Point, std::int64_t, const Tensor& t, const HookSpan&) {
    for (float& x : values_of(t)) x = x * 1.5F + 0.25F;
  };
  SUBCASE("a first token attends to itself whatever its score") {
    const Bits expected = tiny::logits_of(Fed(model, {7}));
    for (const Point point : {Point::q, Point::k, Point::rot_q, Point::rot_k, Point::attn_scores}) {
      Session session(model, 0);
      feed(session, {7}, hooks_at(*model, {{point, last}}, edit));
      CHECK(tiny::logits_of(session) == expected);
    }
  }
  SUBCASE("in the last layer, tokens whose logits nobody wants") {
    const Tokens tokens = tiny::tokens(5, 1);
    const Bits expected = tiny::logits_of(Fed(model, tokens));
    const Hooks::Callback edit_but_last = [](Point, std::int64_t, const Tensor& t, const HookSpan&) {
      const auto values = values_of(t);
      std::fill(values.begin(), values.end() - t.rows() / 5 * t.columns(), 3.0F);
    };
    for (const Point point : {Point::q, Point::z, Point::attn_out, Point::mlp_post, Point::resid_post}) {
      Session session(model, 0);
      feed(session, tokens, hooks_at(*model, {{point, last}}, edit_but_last));
      CHECK(tiny::logits_of(session) == expected);
    }
  }
}

TEST_CASE("an edit of one sequence leaves the others of the pass alone") {
  const auto model = tiny::model(2);
  const std::vector<Tokens> tokens = {tiny::tokens(3, 1), tiny::tokens(5, 2), tiny::tokens(1, 3)};
  for (const auto& place : every_place(model->config())) {
    CAPTURE(llama2cpp::point_name(place.first, place.second));
    Session sessions[] = {Session(model, 0), Session(model, 0), Session(model, 0)};
    std::vector<Work> work;
    for (std::size_t s = 0; s < 3; ++s) work.push_back({&sessions[s], tokens[s], nullptr});
    llama2cpp::run(work,
                   hooks_at(*model, {place},
                            [](Point, std::int64_t, const Tensor& t, const HookSpan& span) {
                              if (span.sequence == 1) shift(t);
                            }),
                   tiny::no_poll);
    for (const std::size_t s : {0U, 2U}) CHECK(state_of(sessions[s]) == state_of(Fed(model, tokens[s])));
    CHECK(tiny::logits_of(sessions[1]) != tiny::logits_of(Fed(model, tokens[1])));
  }
}

TEST_CASE("hooks show q and k in half-split order, in both rotary styles") {
  // The same function, its rows in the order of either style. In layer 0 q and k are equal to the bit; from then on the
  // two add up scores in different orders.
  const auto shown = [](RopeStyle style, const Hooks::Callback& more) {
    const auto model = tiny::model(tiny::config(style), {.threads = 1});
    std::map<std::pair<Point, std::int64_t>, std::vector<float>> seen;
    const auto keep = [&](Point point, std::int64_t layer, const Tensor& t, const HookSpan& span) {
      more(point, layer, t, span);
      const auto values = values_of(t);
      seen[{point, layer}] = {values.begin(), values.end()};
    };
    Session session(model, 0);
    feed(session, tiny::tokens(9, 1), hooks_at(*model, every_place(model->config()), keep));
    return seen;
  };
  const auto furthest = [](const std::vector<float>& a, const std::vector<float>& b) {
    REQUIRE(a.size() == b.size());
    float most = 0.0F;
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (a[i] != b[i]) most = std::max(most, std::abs(a[i] - b[i]));  // not for -inf and -inf
    }
    return most;
  };

  const Hooks::Callback look = [](Point, std::int64_t, const Tensor&, const HookSpan&) {};
  const auto interleaved = shown(RopeStyle::interleaved, look);
  const auto half_split = shown(RopeStyle::half_split, look);
  for (const Point point : {Point::q, Point::k, Point::rot_q, Point::rot_k}) {
    CHECK(interleaved.at({point, 0}) == half_split.at({point, 0}));
  }
  for (const auto& [place, values] : half_split) {
    CAPTURE(llama2cpp::point_name(place.first, place.second));
    CHECK(furthest(values, interleaved.at(place)) < 1e-4F);
  }

  // An edit is put back where it came from: the two models still agree after it.
  for (const Point edited : {Point::q, Point::k, Point::rot_q, Point::rot_k}) {
    CAPTURE(llama2cpp::point_name(edited, 1));
    const Hooks::Callback edit = [edited](Point point, std::int64_t layer, const Tensor& t, const HookSpan&) {
      if (point != edited || layer != 1) return;
      const auto values = values_of(t);
      for (std::size_t i = 0; i < values.size(); i += 5) values[i] += static_cast<float>(i % 7);
    };
    const auto a = shown(RopeStyle::interleaved, edit);
    const auto b = shown(RopeStyle::half_split, edit);
    for (const auto& [place, values] : b) CHECK(furthest(values, a.at(place)) < 1e-4F);
    CHECK(furthest(a.at({Point::z, 1}), interleaved.at({Point::z, 1})) > 1e-3F);
  }
}

TEST_CASE("an exception in a hook leaves the sessions as they were, at every point") {
  const auto model = tiny::model(2);
  Fed first(model, tiny::tokens(5, 1));
  Fed second(model, tiny::tokens(3, 2));
  const Tokens more = tiny::tokens(4, 3);
  const std::vector<Work> work = {{&first, more, nullptr}, {&second, more, nullptr}};
  const State first_before = state_of(first);
  const State second_before = state_of(second);
  for (const auto& place : every_place(model->config())) {
    CAPTURE(llama2cpp::point_name(place.first, place.second));
    const Hooks hooks = hooks_at(*model, {place}, [](Point, std::int64_t, const Tensor& t, const HookSpan& span) {
      for (float& x : values_of(t)) x = std::numeric_limits<float>::quiet_NaN();
      if (span.sequence == 1) throw std::runtime_error("from the hook");
    });
    CHECK_THROWS_WITH_AS(llama2cpp::run(work, hooks, tiny::no_poll), "from the hook", std::runtime_error);
    CHECK(state_of(first) == first_before);
    CHECK(state_of(second) == second_before);
  }
  // What the failed calls left behind their position is never read: not one NaN comes through.
  llama2cpp::run(work, {}, tiny::no_poll);
  Tokens all = tiny::tokens(5, 1);
  all.insert(all.end(), more.begin(), more.end());
  CHECK(state_of(first) == state_of(Fed(model, all)));
}

TEST_CASE("a hook may run another session of the model, and not its own") {
  const auto model = tiny::model(2);
  const Tokens prompt = tiny::tokens(4, 1);
  const Tokens other_prompt = tiny::tokens(6, 2);
  const State expected = state_of(Fed(model, prompt));
  const State other_expected = state_of(Fed(model, other_prompt));
  for (const auto& place : every_place(model->config())) {
    CAPTURE(llama2cpp::point_name(place.first, place.second));
    Session session(model, 0);
    Session other(model, 0);
    int calls = 0;
    feed(session, prompt, hooks_at(*model, {place}, [&](Point, std::int64_t, const Tensor&, const HookSpan&) {
           ++calls;
           tiny::feed(other, other_prompt);
           CHECK_THROWS_AS(tiny::feed(session, {1}), std::runtime_error);
           CHECK_THROWS_AS(session.rewind(0, tiny::no_poll), std::runtime_error);
           CHECK_THROWS_AS(session.fork(tiny::no_poll), std::runtime_error);
           CHECK(session.position() == 0);  // asking is allowed
         }));
    CHECK(calls == 1);
    CHECK(state_of(session) == expected);
    CHECK(state_of(other) == other_expected);
  }
}

TEST_CASE("a hook of another session's hook may run a third") {
  const auto model = tiny::model(2);
  const std::vector<Tokens> prompts = {tiny::tokens(4, 1), tiny::tokens(6, 2), tiny::tokens(2, 3)};
  Session sessions[] = {Session(model, 0), Session(model, 0), Session(model, 0)};
  const std::function<void(std::size_t)> run_from = [&](std::size_t depth) {
    if (depth == 3) return;
    feed(sessions[depth], prompts[depth],
         hooks_at(*model, {{Point::mlp_post, 1}},
                  [&, depth](Point, std::int64_t, const Tensor&, const HookSpan&) { run_from(depth + 1); }));
  };
  run_from(0);
  for (std::size_t s = 0; s < 3; ++s) CHECK(state_of(sessions[s]) == state_of(Fed(model, prompts[s])));
}

TEST_CASE("poll may end a call, which leaves the sessions as they were") {
  const auto model = tiny::model(2);
  Fed first(model, tiny::tokens(5, 1));
  Fed second(model, tiny::tokens(3, 2));
  const State first_before = state_of(first);
  const State second_before = state_of(second);
  const auto interrupt = [] { throw std::runtime_error("interrupted"); };

  SUBCASE("between layers") {
    const Tokens more = tiny::tokens(4, 3);
    const std::vector<Work> work = {{&first, more, nullptr}, {&second, more, nullptr}};
    const Hooks slow =
        hooks_at(*model, {{Point::resid_post, 0}}, [](Point, std::int64_t, const Tensor&, const HookSpan&) {
          std::this_thread::sleep_for(std::chrono::milliseconds(60));  // longer than a poll waits for its turn
        });
    CHECK_THROWS_WITH_AS(llama2cpp::run(work, slow, interrupt), "interrupted", std::runtime_error);
    CHECK(state_of(first) == first_before);
    CHECK(state_of(second) == second_before);
    llama2cpp::run(work, {}, tiny::no_poll);
    Tokens all = tiny::tokens(3, 2);
    all.insert(all.end(), more.begin(), more.end());
    CHECK(state_of(second) == state_of(Fed(model, all)));
  }
  SUBCASE("after passes that were finished") {
    constexpr std::int64_t kLong = 200'000;  // minutes, if poll were not asked
    Session session(model, kLong);
    tiny::feed(session, tiny::tokens(5, 1));
    const Tokens more = tiny::tokens(kLong - 5, 4);
    const Work work{&session, more, nullptr};
    CHECK_THROWS_WITH_AS(llama2cpp::run({&work, 1}, {}, interrupt, 2), "interrupted", std::runtime_error);
    CHECK(state_of(session) == first_before);
    tiny::feed(session, {9});
    Tokens all = tiny::tokens(5, 1);
    all.push_back(9);
    CHECK(state_of(session) == state_of(Fed(model, all)));
  }
  SUBCASE("poll may use other sessions") {
    const Tokens more = tiny::tokens(4, 3);
    const Hooks slow =
        hooks_at(*model, {{Point::resid_post, 0}}, [](Point, std::int64_t, const Tensor&, const HookSpan&) {
          std::this_thread::sleep_for(std::chrono::milliseconds(60));
        });
    int polls = 0;
    const Work work{&first, more, nullptr};
    llama2cpp::run({&work, 1}, slow, [&] {
      ++polls;
      tiny::feed(second, {11});
    });
    CHECK(polls == 1);
    CHECK(second.position() == 4);
    Tokens all = tiny::tokens(5, 1);
    all.insert(all.end(), more.begin(), more.end());
    CHECK(state_of(first) == state_of(Fed(model, all)));
  }
}

TEST_CASE("the bits are the same with any chunked prefill, on any number of threads, packed or not") {
  const Tokens tokens = tiny::tokens(60, 1);
  struct Kind {
    const char* name;
    std::int64_t group;  // of int8 weights
    RopeStyle style;
    const char* kv;
    const char* activations;
  };
  for (const Kind& kind : {Kind{"f32", 0, RopeStyle::interleaved, "f32", "auto"},
                           Kind{"f32-half-split", 0, RopeStyle::half_split, "f16", "auto"},
                           Kind{"int8-group-2", 2, RopeStyle::half_split, "f16", "auto"},
                           Kind{"int8-llama2.c", 2, RopeStyle::interleaved, "f32", "auto"},
                           Kind{"int8-llama2.c-f16", 2, RopeStyle::interleaved, "f16", "auto"},
                           Kind{"int8-f32", 2, RopeStyle::interleaved, "f32", "f32"}}) {
    CAPTURE(kind.name);
    const auto model = [&](int threads, const char* pack) {
      return tiny::model(tiny::config(kind.style),
                         {.threads = threads, .kv_dtype = kind.kv, .activation_dtype = kind.activations, .pack = pack},
                         1, kind.group);
    };
    const Trace expected = trace(model(1, "auto"), tokens, 1, {});
    for (const int threads : {1, 2, 3, 5}) {
      for (const char* pack : {"always", "never"}) {
        for (const std::int64_t chunk : {1, 3, 128}) {
          CAPTURE(threads);
          CAPTURE(pack);
          CAPTURE(chunk);
          CHECK(trace(model(threads, pack), tokens, chunk, {}) == expected);
        }
      }
    }
    // Equal on every machine with the same C library: tests/slow.sh compares these lines of x86 and aarch64.
    std::uint64_t hash = 14695981039346656037ULL;
    for (const std::uint32_t word : expected.logits) hash = (hash ^ word) * 1099511628211ULL;
    for (const std::uint32_t word : expected.kv) hash = (hash ^ word) * 1099511628211ULL;
    std::printf("forward %-17s %8zu words  %016llx\n", kind.name, expected.logits.size() + expected.kv.size(),
                static_cast<unsigned long long>(hash));
  }
}

TEST_CASE("a session's bits do not depend on the others of its pass") {
  for (const std::int64_t group : {0, 2}) {
    const auto model = tiny::model(tiny::config(), {.threads = 2}, 1, group);
    const std::vector<Tokens> tokens = {tiny::tokens(20, 1), tiny::tokens(1, 2), tiny::tokens(13, 3),
                                        tiny::tokens(5, 4)};
    for (const std::int64_t chunk : {1, 3, 16, 128}) {
      CAPTURE(chunk);
      std::vector<std::unique_ptr<Session>> sessions;
      std::vector<std::vector<float>> logits;
      for (const Tokens& ids : tokens) {
        sessions.push_back(std::make_unique<Session>(model, 0));
        logits.emplace_back(ids.size() * static_cast<std::size_t>(model->config().vocab_size));
      }
      std::vector<Work> work;
      for (std::size_t s = 0; s < tokens.size(); ++s) {
        work.push_back({sessions[s].get(), tokens[s], s % 2 == 0 ? logits[s].data() : nullptr});
      }
      llama2cpp::run(work, {}, tiny::no_poll, chunk);
      for (std::size_t s = 0; s < tokens.size(); ++s) {
        CHECK(state_of(*sessions[s]) == state_of(Fed(model, tokens[s])));
        if (s % 2 == 0) CHECK(tiny::bits_of(logits[s]) == trace(model, tokens[s], 128, {}).logits);
      }
    }
  }
}

TEST_CASE("a fork goes on as the session that it was made from, and apart from it") {
  const auto model = tiny::model();
  Fed session(model, tiny::tokens(5, 1));
  const auto fork = session.fork(tiny::no_poll);
  CHECK(state_of(*fork) == state_of(session));
  tiny::feed(*fork, {3, 4});
  tiny::feed(session, {5});
  Tokens forked = tiny::tokens(5, 1);
  Tokens original = forked;
  forked.insert(forked.end(), {3, 4});
  original.push_back(5);
  CHECK(state_of(*fork) == state_of(Fed(model, forked)));
  CHECK(state_of(session) == state_of(Fed(model, original)));
}

TEST_CASE("a rewound session is the session that it was") {
  const auto model = tiny::model();
  const Tokens tokens = tiny::tokens(9, 1);
  Fed session(model, tokens);
  session.rewind(4, tiny::no_poll);
  CHECK(session.position() == 4);
  CHECK(tiny::logits_of(session).empty());
  CHECK_THROWS_AS(session.rewind(5, tiny::no_poll), std::invalid_argument);
  CHECK_THROWS_AS(session.rewind(-1, tiny::no_poll), std::invalid_argument);
  tiny::feed(session, {tokens.begin() + 4, tokens.end()});
  CHECK(state_of(session) == state_of(Fed(model, tokens)));
}

TEST_CASE("calls that cannot work are refused, and change nothing") {
  const auto model = tiny::model();
  const auto other_model = tiny::model();
  Session session(model, 10);
  Session another(model, 10);
  Session foreign(other_model, 10);
  tiny::feed(session, tiny::tokens(7, 1));
  const State before = state_of(session);
  const Tokens good = {1};
  const auto run = [](std::vector<Work> work) { llama2cpp::run(work, {}, tiny::no_poll); };
  CHECK_THROWS_WITH_AS(tiny::feed(session, {1, 53}), "token is 53, expected 0 to 52", std::invalid_argument);
  CHECK_THROWS_WITH_AS(tiny::feed(session, {-1}), "token is -1, expected 0 to 52", std::invalid_argument);
  CHECK_THROWS_AS(tiny::feed(session, {}), std::invalid_argument);
  CHECK_THROWS_AS(tiny::feed(session, {1}, 0), std::invalid_argument);
  CHECK_THROWS_AS(tiny::feed(session, {1, 2, 3, 4}), llama2cpp::ContextFullError);
  CHECK_THROWS_AS(run({{&session, good, nullptr}, {&session, good, nullptr}}), std::invalid_argument);
  CHECK_THROWS_AS(run({{&session, good, nullptr}, {&foreign, good, nullptr}}), std::invalid_argument);
  CHECK_THROWS_AS(run({{&another, good, nullptr}, {&session, tiny::tokens(4, 2), nullptr}}),
                  llama2cpp::ContextFullError);
  CHECK(another.position() == 0);
  CHECK(state_of(session) == before);
  tiny::feed(session, {1, 2, 3});  // exactly full
  CHECK(session.position() == 10);
  CHECK_NOTHROW(run({}));
}
