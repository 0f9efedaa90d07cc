// A call that keeps activations: against the same call without, what it refuses, and what it says that it takes.
#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/check.h"
#include "model/run_with_cache.h"
#include "tiny_model.h"

namespace {

using namespace llama2cpp;
using Tokens = std::vector<std::int32_t>;
using Prompts = std::vector<Tokens>;

const std::vector<Place> kPlaces = {{Point::resid_post, 1}, {Point::pattern, 2}, {Point::embed, 0}};

struct Call {
  explicit Call(Prompts given) : model(tiny::model()), prompts(std::move(given)) {
    for (std::size_t i = 0; i < prompts.size(); ++i) owned.push_back(std::make_unique<Session>(model, 0));
    for (const auto& session : owned) sessions.push_back(session.get());
  }

  CachedRun run(const std::vector<Place>& places, std::vector<std::int64_t> positions = {},
                std::optional<std::int64_t> stop = {}) {
    CachedRunOptions options{.stop_at_layer = stop};
    if (!positions.empty()) options.positions.push_back(std::move(positions));
    return run_with_cache(*model, sessions, prompts, places, options, Hooks(model->config(), model->backend()), [] {})
        .at(0);
  }

  std::string error(const std::vector<Place>& places = kPlaces, std::vector<std::int64_t> positions = {},
                    std::optional<std::int64_t> stop = {}) {
    try {
      run(places, std::move(positions), stop);
      return "";
    } catch (const std::invalid_argument& problem) {
      for (const Session* session : sessions) CHECK(session->position() == 0);
      return problem.what();
    }
  }

  std::shared_ptr<const Model> model;
  Prompts prompts;
  std::vector<std::unique_ptr<Session>> owned;
  std::vector<Session*> sessions;
};

std::span<const float> floats(const Buffer& memory, std::int64_t begin, std::int64_t count) {
  return {reinterpret_cast<const float*>(memory.data()) + begin, static_cast<std::size_t>(count)};
}

std::int64_t size_of(const Capture::Slot& slot) {
  return std::accumulate(slot.shape.begin(), slot.shape.end(), std::int64_t{1}, std::multiplies<>());
}

}  // namespace

TEST_CASE("logits are those of a prefill, and the sessions have moved on") {
  Call call(Prompts{tiny::tokens(9, 1), tiny::tokens(9, 2)});
  const CachedRun done = call.run(kPlaces);
  CHECK(done.width == call.model->config().vocab_size);
  REQUIRE(done.slots.size() == 3);
  CHECK(done.slots[0].shape == std::vector<std::int64_t>{2, 9, 36});
  CHECK(done.slots[1].shape == std::vector<std::int64_t>{2, 6, 9, 9});
  for (std::size_t i = 0; i < 2; ++i) {
    Session alone(call.model, 0);
    std::vector<float> logits(9 * 53);
    const Work work[] = {
        {.session = &alone, .tokens = call.prompts[i], .all_logits = logits.data(), .last_logits = nullptr}};
    run(work, {}, [] {});
    CHECK(tiny::bits_of(floats(done.out, static_cast<std::int64_t>(i) * 9 * 53, 9 * 53)) == tiny::bits_of(logits));
    CHECK(call.sessions[i]->position() == 9);
  }
}

TEST_CASE("only the tokens that are asked for are kept, in the order asked for") {
  Call whole(Prompts{tiny::tokens(7, 3)});
  Call some(Prompts{tiny::tokens(7, 3)});
  const CachedRun all = whole.run({{Point::resid_post, 2}});
  const CachedRun few = some.run({{Point::resid_post, 2}}, {5, 0});
  CHECK(few.slots[0].shape == std::vector<std::int64_t>{1, 2, 36});
  CHECK(tiny::bits_of(floats(few.activations, few.slots[0].begin, 36)) ==
        tiny::bits_of(floats(all.activations, all.slots[0].begin + 5 * 36, 36)));
  CHECK(tiny::bits_of(floats(few.activations, few.slots[0].begin + 36, 36)) ==
        tiny::bits_of(floats(all.activations, all.slots[0].begin, 36)));
}

TEST_CASE("a call that stops gives the residual stream, and no session moves on") {
  for (const std::int64_t stop : {0, 1, 3}) {
    Call whole(Prompts{tiny::tokens(5, 4)});
    const Place last = stop == 0 ? Place{Point::embed, 0} : Place{Point::resid_post, stop - 1};
    const CachedRun all = whole.run({last});
    Call stopped(Prompts{tiny::tokens(5, 4)});
    const CachedRun done = stopped.run({}, {}, stop);
    CHECK(done.width == 36);
    CHECK(done.slots.empty());
    CHECK(stopped.sessions[0]->position() == 0);
    CHECK(tiny::bits_of(floats(done.out, 0, 5 * 36)) ==
          tiny::bits_of(floats(all.activations, all.slots[0].begin, size_of(all.slots[0]))));
  }
}

TEST_CASE("prompts of different lengths are runs of their own, with the bits that each has alone") {
  Call call(Prompts{tiny::tokens(9, 1), tiny::tokens(4, 2), tiny::tokens(7, 3)});
  const std::vector<CachedRun> runs =
      run_with_cache(*call.model, call.sessions, call.prompts, kPlaces, {.positions = {{8}, {0, 3}, {1}}},
                     Hooks(call.model->config(), call.model->backend()), [] {});
  REQUIRE(runs.size() == 3);
  const std::vector<std::vector<std::int64_t>> positions = {{8}, {0, 3}, {1}};
  for (std::size_t i = 0; i < runs.size(); ++i) {
    Call alone(Prompts{call.prompts[i]});
    const CachedRun expected = alone.run(kPlaces, positions[i]);
    const auto logits = static_cast<std::int64_t>(call.prompts[i].size()) * 53;
    CHECK(tiny::bits_of(floats(runs[i].out, 0, logits)) == tiny::bits_of(floats(expected.out, 0, logits)));
    REQUIRE(runs[i].slots.size() == expected.slots.size());
    for (std::size_t s = 0; s < expected.slots.size(); ++s) {
      const Capture::Slot& slot = expected.slots[s];
      CHECK(runs[i].slots[s].shape == slot.shape);
      CHECK(tiny::bits_of(floats(runs[i].activations, runs[i].slots[s].begin, size_of(slot))) ==
            tiny::bits_of(floats(expected.activations, slot.begin, size_of(slot))));
    }
  }
}

TEST_CASE("a call that starts at a layer gives the logits of the whole one, and one without logits none") {
  for (std::int64_t start = 0; start <= 3; ++start) {
    Call whole(Prompts{tiny::tokens(5, 4), tiny::tokens(5, 5)});
    const Place into = start == 3 ? Place{Point::resid_post, 2} : Place{Point::resid_pre, start};
    const CachedRun all = whole.run({into});
    Call begun(Prompts{Tokens(5), Tokens(5)});
    CachedRunOptions options{.start_at_layer = start};
    options.residual = floats(all.activations, all.slots[0].begin, size_of(all.slots[0]));
    const Hooks hooks(begun.model->config(), begun.model->backend());
    const auto run = [&] {
      return run_with_cache(*begun.model, begun.sessions, begun.prompts, {}, options, hooks, [] {}).at(0);
    };
    const CachedRun done = run();
    CHECK(tiny::bits_of(floats(done.out, 0, 10 * 53)) == tiny::bits_of(floats(all.out, 0, 10 * 53)));
    for (Session* session : begun.sessions) session->rewind(0, [] {});
    options.logits = false;
    CHECK(run().width == 0);
    for (Session* session : begun.sessions) {
      CHECK(session->position() == 5);
      session->with_logits([](std::span<const float> logits) { CHECK(logits.empty()); });
    }
    options.residual = options.residual.subspan(1);
    CHECK_THROWS_AS(run(), std::invalid_argument);
  }
}

TEST_CASE("what cannot be is refused, and no session has moved") {
  CHECK(Call(Prompts{Tokens()}).error() == "there are no tokens, expected at least one");
  CHECK(Call(Prompts()).error() == "there are no tokens, expected at least one");
  CHECK(Call(Prompts{{1}}).error(kPlaces, {}, 4) == "stop_at_layer is 4, expected 0 to 3");
  CHECK(Call(Prompts{{1}}).error(kPlaces, {}, -1) == "stop_at_layer is -1, expected 0 to 3");
  CHECK(!Call(Prompts{{1}}).error(kPlaces, {1}).empty());
  CHECK(!Call(Prompts{{53}}).error().empty());
  Call other(Prompts{{1}});
  Session stranger(tiny::model(), 0);
  other.sessions[0] = &stranger;
  CHECK(other.error() == "a session belongs to another model or has begun");
  Call begun(Prompts{{1}});
  tiny::feed(*begun.sessions[0], {1});
  CHECK_THROWS_AS(begun.run(kPlaces), std::invalid_argument);
  CHECK(checked_place(0, 2, tiny::config()).layer == 2);
  CHECK_THROWS_AS(checked_place(-1, 0, tiny::config()), std::invalid_argument);
  CHECK_THROWS_AS(checked_place(kPoints, 0, tiny::config()), std::invalid_argument);
  CHECK_THROWS_AS(checked_place(0, 3, tiny::config()), std::invalid_argument);
}

TEST_CASE("more memory than there is is said before any is taken") {
  const Config c = tiny::config();
  const auto bytes = [&](const std::vector<Capture::Slot>& slots, double kept, double out, std::int64_t tokens,
                         bool one_pass) { return cached_run_bytes(c, slots, kept, out, 2, tokens, one_pass); };
  CHECK(bytes({}, 1000.0, 500.0, 4, true) - bytes({}, 0.0, 500.0, 4, true) == 1000.0);
  CHECK(bytes({}, 0.0, 500.0, 4, true) > bytes({}, 0.0, 0.0, 4, true) + 500.0);  // and a row of logits in the pass
  CHECK(bytes({}, 0.0, 0.0, 1000, true) > bytes({}, 0.0, 0.0, 1000, false));     // 2000 rows at once
  CHECK(bytes({}, 0.0, 0.0, 4, true) == bytes({}, 0.0, 0.0, 4, false));
  CHECK(bytes({{{Point::pattern, 0}, {}, 0}}, 0.0, 0.0, 4, true) > bytes({}, 0.0, 0.0, 4, true));
  CHECK(bytes({{{Point::result, 0}, {}, 0}}, 0.0, 0.0, 4, true) > bytes({}, 0.0, 0.0, 4, true));
}
