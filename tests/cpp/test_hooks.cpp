// Captures, interventions and head results, below Python: several sequences, passes of any size, head sizes that a
// format's groups divide and others, and every kind of hook in order.
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/half.h"
#include "observe/capture.h"
#include "observe/interventions.h"
#include "tiny_model.h"

using llama2cpp::Capture;
using llama2cpp::Config;
using llama2cpp::Hooks;
using llama2cpp::HookSpan;
using llama2cpp::Intervention;
using llama2cpp::Model;
using llama2cpp::Place;
using llama2cpp::Point;
using llama2cpp::Session;
using llama2cpp::Tensor;
using llama2cpp::Work;
using Tokens = std::vector<std::int32_t>;

namespace {

using Change = Intervention::Change;

// Everything that a capture of some prompts holds, the prompts fed together in passes of at most `chunk` rows.
std::vector<float> captured(const std::shared_ptr<const Model>& model, const std::vector<Tokens>& prompts,
                            const std::vector<std::int64_t>& rows, std::int64_t chunk) {
  const auto places = llama2cpp::all_places(model->config().n_layers);
  const auto sequences = static_cast<std::int64_t>(prompts.size());
  const auto tokens = static_cast<std::int64_t>(prompts[0].size());
  const auto capture = std::make_shared<Capture>(model->config(), places, sequences, tokens, rows);
  std::vector<float> memory(static_cast<std::size_t>(capture->floats()), 7.0F);
  capture->write_to(memory.data(), model->backend());
  Hooks hooks(model->config(), model->backend());
  hooks.add(capture, capture->places());
  std::vector<std::unique_ptr<Session>> sessions;
  std::vector<Work> work;
  std::vector<float> logits(prompts.size() * prompts[0].size() * static_cast<std::size_t>(model->config().vocab_size));
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    sessions.push_back(std::make_unique<Session>(model, 0));
    work.push_back({sessions.back().get(), prompts[i], logits.data() + i * (logits.size() / prompts.size())});
  }
  llama2cpp::run(work, hooks, tiny::no_poll, chunk);
  return memory;
}

}  // namespace

TEST_CASE("a capture does not depend on how the tokens come") {
  for (const auto style : {llama2cpp::RopeStyle::interleaved, llama2cpp::RopeStyle::half_split}) {
    const auto model = tiny::model(tiny::config(style), {.threads = 2});
    const std::vector<Tokens> prompts = {tiny::tokens(9, 1), tiny::tokens(9, 2)};
    for (const std::vector<std::int64_t>& rows : {std::vector<std::int64_t>(), {8, 0, 3}}) {
      const auto expected = tiny::bits_of(captured(model, prompts, rows, 128));
      for (const std::int64_t chunk : {1, 2, 5, 9, 17}) {
        CAPTURE(chunk);
        CHECK(tiny::bits_of(captured(model, prompts, rows, chunk)) == expected);
      }
    }
  }
}

TEST_CASE("a capture of halves rounds what the other keeps, and says what was too large") {
  const auto model = tiny::model(tiny::config(), {.threads = 2});
  const Tokens tokens = tiny::tokens(7, 3);
  const std::vector<Place> places = {{Point::embed, 0}, {Point::z, 1}, {Point::mlp_post, 1}};
  for (const std::vector<std::int64_t>& rows : {std::vector<std::int64_t>{}, std::vector<std::int64_t>{5, 2}}) {
    const auto whole = std::make_shared<Capture>(model->config(), places, 1, 7, rows);
    const auto halves = std::make_shared<Capture>(model->config(), places, 1, 7, rows);
    halves->keep_halves();
    CHECK(halves->bytes() * 2 == whole->bytes());
    std::vector<float> floats(static_cast<std::size_t>(whole->floats()));
    std::vector<std::uint16_t> kept(floats.size());
    whole->write_to(floats.data(), model->backend());
    halves->write_to(kept.data(), model->backend());
    Hooks hooks(model->config(), model->backend());
    hooks.add(whole, whole->places());
    hooks.add(halves, halves->places());
    Session session(model, 0);
    std::vector<Work> work = {{&session, tokens}};
    llama2cpp::run(work, hooks, tiny::no_poll, 3);
    for (std::size_t i = 0; i < floats.size(); ++i) CHECK(kept[i] == llama2cpp::float_to_half(floats[i]));
    CHECK(!halves->overflowed());

    for (const float value :
         {65519.0F, -65520.0F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> row(static_cast<std::size_t>(model->config().dim), value);
      const auto one = std::make_shared<Capture>(model->config(), std::vector<Place>{{Point::embed, 0}}, 1, 1,
                                                 std::vector<std::int64_t>());
      one->keep_halves();
      one->write_to(kept.data(), model->backend());
      const llama2cpp::Backend::Lease lease(model->backend(), llama2cpp::kNoPoll);
      one->at(Point::embed, 0, Tensor(row.data(), {1, model->config().dim}), {0, 1, 0, 0});
      CHECK(kept[3] == llama2cpp::float_to_half(value));
      CHECK(one->overflowed() == (value == -65520.0F));
    }
  }
  Capture patterns(model->config(), {{Point::pattern, 0}}, 1, 7, {});
  CHECK_THROWS_AS(patterns.keep_halves(), std::invalid_argument);
}

TEST_CASE("a capture's slots lie apart, and its sizes are checked") {
  const Config c = tiny::config();
  const Capture capture(c, llama2cpp::all_places(c.n_layers), 2, 5, {});
  std::int64_t end = 0;
  for (const Capture::Slot& slot : capture.slots()) {
    CHECK(slot.begin >= end);
    CHECK(slot.begin % 16 == 0);
    std::int64_t size = 1;
    for (const std::int64_t n : slot.shape) size *= n;
    end = slot.begin + size;
  }
  CHECK(end <= capture.floats());
  CHECK_THROWS_AS(Capture(c, {}, 1, 5, {5}), std::invalid_argument);
  CHECK_THROWS_AS(Capture(c, {}, 1, 5, {-1}), std::invalid_argument);
  const std::int64_t huge = std::int64_t{1} << 40;
  CHECK_THROWS_AS(Capture(c, {{Point::pattern, 0}}, huge, 1 << 20, {}), std::length_error);
}

TEST_CASE("interventions change what is addressed and nothing else") {
  const HookSpan span{.row = 0, .count = 3, .position = 4, .sequence = 0};  // positions 4, 5, 6
  const auto changed = [&](Point point, Change change, Intervention::Address address, Intervention::Values values) {
    std::vector<float> memory(24);
    for (std::size_t i = 0; i < 24; ++i) memory[i] = static_cast<float>(i);
    const Tensor shape = llama2cpp::is_pattern(point) ? Tensor(memory.data(), {2, 3, 4})
                         : point == Point::z          ? Tensor(memory.data(), {3, 2, 4})
                                                      : Tensor(memory.data(), {3, 8});
    Intervention(change, std::move(address), std::move(values)).at(point, 0, shape, span);
    std::vector<std::size_t> where;
    for (std::size_t i = 0; i < 24; ++i) {
      if (memory[i] != static_cast<float>(i)) where.push_back(i);
    }
    return where;
  };
  const Intervention::Values minus_one{{-1.0}};
  using Where = std::vector<std::size_t>;
  CHECK(changed(Point::z, Change::set, {}, minus_one).size() == 24);
  CHECK(changed(Point::z, Change::set, {{1}, {5}, {}}, minus_one) == Where{12, 13, 14, 15});
  CHECK(changed(Point::z, Change::set, {{0}, {}, {3}}, minus_one) == Where{3, 11, 19});
  CHECK(changed(Point::z, Change::set, {{}, {-1}, {0}}, minus_one) == Where{16, 20});
  CHECK(changed(Point::z, Change::set, {{}, {3, 7, -4}, {}}, minus_one).empty());
  CHECK(changed(Point::z, Change::set, {{2, -1}, {}, {}}, minus_one).empty());
  CHECK(changed(Point::pattern, Change::set, {{1}, {4}, {2}}, minus_one) == Where{14});
  CHECK(changed(Point::pattern, Change::set, {{0}, {6}, {9}}, minus_one).empty());
  CHECK(changed(Point::mlp_out, Change::set, {{}, {6}, {7, 1}}, {{-1, -2}, 1, 1, 2}) == Where{17, 23});
  CHECK(changed(Point::mlp_out, Change::set, {{}, {6, 4}, {0}}, {{-1, -2}, 2, 1, 1}) == Where{0, 16});

  CHECK_THROWS_AS(Intervention(Change::set, {}, {{1, 2}, 1, 1, 1}), std::invalid_argument);
  CHECK_THROWS_AS(Intervention(Change::set, {}, {{1, 2}, 2, 1, 1}), std::invalid_argument);
  CHECK_THROWS_AS(Intervention(Change::set, {{1, 2, 3}, {}, {}}, {{1, 2}, 1, 2, 1}), std::invalid_argument);
}

TEST_CASE("a masked pattern sums to 1 again, or is 0") {
  float rows[] = {0.5F, 0.25F, 0.25F, 0.0F, 1.0F, 0.0F, 0.0F, 0.0F};
  const Tensor pattern(rows, {1, 2, 4});
  Intervention(Change::mask, {{}, {}, {0}}, {{0.0}}).at(Point::pattern, 0, pattern, {0, 2, 0, 0});
  CHECK(std::vector<float>(rows, rows + 8) == std::vector<float>{0, 0.5F, 0.5F, 0, 0, 0, 0, 0});
}

TEST_CASE("results are a head's part of z times its columns of wo, cut out or not") {
  for (const std::int64_t group : {0, 2}) {  // floats can be cut, llama2.c's int8 is not
    CAPTURE(group);
    const Config c = tiny::config();
    const auto model =
        group == 0 ? tiny::model(2) : tiny::model(c, {.threads = 2, .activation_dtype = "f32"}, 1, group);
    const auto width = static_cast<std::size_t>(c.dim);
    const auto heads = static_cast<std::size_t>(c.n_heads);
    const auto head_dim = static_cast<std::size_t>(c.head_dim);
    std::vector<float> z, result;
    Hooks hooks(c, model->backend(), [&](Point point, std::int64_t, const Tensor& t, const HookSpan&) {
      (point == Point::z ? z : result).assign(t.row(0), t.row(0) + t.rows() * t.columns());
    });
    hooks.watch(Point::z, 1);
    hooks.watch(Point::result, 1);
    Session session(model, 0);
    const Tokens tokens = tiny::tokens(5, 1);
    const Work work{&session, tokens, nullptr};
    llama2cpp::run({&work, 1}, hooks, tiny::no_poll);
    std::vector<float> row(heads * head_dim);
    bool right = true;
    for (std::size_t o = 0; o < width; ++o) {
      model->weights().layers[1].wo.decode_row(static_cast<std::int64_t>(o), row.data());
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        for (std::size_t h = 0; h < heads; ++h) {
          double sum = 0;
          for (std::size_t i = 0; i < head_dim; ++i) {
            sum += static_cast<double>(z[(t * heads + h) * head_dim + i]) * row[h * head_dim + i];
          }
          right = right && std::abs(result[(t * heads + h) * width + o] - sum) < 1e-5;
        }
      }
    }
    CHECK(right);
  }
}

TEST_CASE("a forward that stops leaves sessions as they were") {
  const auto model = tiny::model();
  Session session(model, 0);
  tiny::feed(session, {1, 2, 3});
  const auto before = tiny::logits_of(session);
  Hooks hooks(model->config(), model->backend());
  hooks.stop_at_layer = 1;
  int fired = 0;
  Hooks watching(model->config(), model->backend(),
                 [&](Point, std::int64_t layer, const Tensor&, const HookSpan&) { fired += layer == 0 ? 1 : 100; });
  for (const Place& place : llama2cpp::all_places(model->config().n_layers)) watching.watch(place.point, place.layer);
  watching.stop_at_layer = 1;
  const Tokens tokens = {4, 5};
  const Work work{&session, tokens, nullptr};
  for (const Hooks& stopping : {hooks, watching}) {
    llama2cpp::run({&work, 1}, stopping, tiny::no_poll);
    CHECK(session.position() == 3);
    CHECK(tiny::logits_of(session) == before);
  }
  CHECK(fired == llama2cpp::kPoints - 12);  // all but the last norm, and those that a Llama lacks
}

namespace {

// Puts a value in the place of what it is shown, and keeps what that was.
class Replacement final : public llama2cpp::Hook {
 public:
  Replacement() : Hook(Kind::edit) {}
  bool replaces() const override { return true; }
  void at(Point, std::int64_t, const Tensor& activation, const HookSpan&) override {
    shown.assign(activation.row(0), activation.row(0) + activation.rows() * activation.columns());
    std::fill_n(activation.row(0), activation.rows() * activation.columns(), 0.25F);
  }
  std::vector<float> shown;
};

class Watcher final : public llama2cpp::Hook {
 public:
  Watcher() : Hook(Kind::look) {}
  void at(Point, std::int64_t, const Tensor&, const HookSpan&) override {}
};

}  // namespace

TEST_CASE("an MLP that is replaced is not computed, unless somebody looks at it") {
  const auto model = tiny::model(tiny::config(), {.threads = 2});
  const Tokens tokens = tiny::tokens(7, 3);
  const auto size = tokens.size() * static_cast<std::size_t>(model->config().vocab_size);
  enum class Beside { nothing, inside, before, one_sequence, another_sequence, set };
  std::vector<std::uint32_t> expected;
  for (const Beside beside :
       {Beside::inside, Beside::nothing, Beside::before, Beside::one_sequence, Beside::another_sequence, Beside::set}) {
    CAPTURE(static_cast<int>(beside));
    Hooks hooks(model->config(), model->backend());
    const auto replacement = std::make_shared<Replacement>();
    const auto watcher = std::make_shared<Watcher>();
    llama2cpp::PlaceSet out(model->config().n_layers);
    llama2cpp::PlaceSet post(model->config().n_layers);
    out.add({Point::mlp_out, 1});
    post.add({Point::mlp_post, 1});
    if (beside == Beside::before) hooks.add(watcher, out);
    if (beside == Beside::inside) hooks.add(watcher, post);
    if (beside == Beside::another_sequence) hooks.add(watcher, post, 1);
    if (beside == Beside::set) {
      hooks.add(std::make_shared<Intervention>(Change::set, Intervention::Address{}, Intervention::Values{{0.25}}),
                out);
    } else {
      hooks.add(replacement, out, beside == Beside::one_sequence ? std::optional<std::size_t>(0) : std::nullopt);
    }
    const bool left_out = beside != Beside::inside && beside != Beside::before;
    CHECK(hooks.replaces_mlp(1, 0) == left_out);
    CHECK(hooks.replaces_mlp(1, 1) ==
          (left_out && beside != Beside::one_sequence && beside != Beside::another_sequence));
    CHECK(!hooks.replaces_mlp(0, 0));
    Session session(model, 0);
    std::vector<float> logits(size);
    std::vector<Work> work = {{&session, tokens, logits.data()}};
    llama2cpp::run(work, hooks, tiny::no_poll, 3);
    if (expected.empty()) expected = tiny::bits_of(logits);
    CHECK(tiny::bits_of(logits) == expected);
    if (beside == Beside::set) continue;
    const bool zeros =
        std::all_of(replacement->shown.begin(), replacement->shown.end(), [](float x) { return x == 0; });
    CHECK(zeros == left_out);
  }
}
