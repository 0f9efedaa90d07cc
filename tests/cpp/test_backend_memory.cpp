// The backend owns what its ops touch: a whole model on a backend that checks every operand, with the bits of one that
// does not; and what the model does where a backend lacks something.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "checking_backend.h"
#include "core/check.h"
#include "model/kv_cache.h"
#include "model/unembed.h"
#include "tiny_model.h"

using llama2cpp::Activations;
using llama2cpp::Buffer;
using llama2cpp::Checkpoint;
using llama2cpp::Config;
using llama2cpp::Hooks;
using llama2cpp::HookSpan;
using llama2cpp::Model;
using llama2cpp::ModelOptions;
using llama2cpp::Naming;
using llama2cpp::Part;
using llama2cpp::Point;
using llama2cpp::Session;
using llama2cpp::Tensor;
using llama2cpp::Work;
using tiny::Bits;
using tiny::CheckingBackend;

namespace {

// A tiny model with biases in all its layers.
Checkpoint with_biases(const Config& config, std::int64_t group = 0) {
  Checkpoint checkpoint = tiny::model(config, {.threads = 1}, 1, group)->checkpoint();
  checkpoint.llama2c_arithmetic = false;  // of one arithmetic on every backend
  tiny::Random random(5);
  for (const Part part : {Part::bq, Part::bk, Part::bv, Part::bo, Part::b1, Part::b2, Part::b3}) {
    const auto [rows, cols] = llama2cpp::part_shape(config, part);
    for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
      std::vector<float> values(static_cast<std::size_t>(rows * cols));
      for (float& x : values) x = random.uniform();
      const std::string name = llama2cpp::weight_name(checkpoint.naming, part, layer);
      checkpoint.weights.emplace(name, tiny::weight(name, rows, cols, values));
    }
  }
  return checkpoint;
}

Hooks hooks_everywhere(const Model& model, bool edits) {
  Hooks hooks(model.config(), model.backend(), [edits](Point, std::int64_t, const Tensor& t, const HookSpan&) {
    if (edits) *t.row(0) += 0.5F;
  });
  for (const auto& place : llama2cpp::all_places(model.config().n_layers)) hooks.watch(place.point, place.layer);
  return hooks;
}

void add(Bits& bits, std::span<const float> values) {
  const Bits more = tiny::bits_of(values);
  bits.insert(bits.end(), more.begin(), more.end());
}

// Everything that a model is used for, and all logits that come of it.
Bits use(const std::shared_ptr<const Model>& model) {
  const auto vocab_size = static_cast<std::size_t>(model->config().vocab_size);
  Bits bits;
  Session first(model, 0);
  Session second(model, 0);
  const auto prompt = tiny::tokens(9, 1);
  const auto other = tiny::tokens(5, 2);
  const std::size_t count = prompt.size() * vocab_size;
  const Buffer memory = model->borrow_memory(count * sizeof(float));
  auto* const logits = reinterpret_cast<float*>(memory.data());
  const Work both[] = {{.session = &first, .tokens = prompt, .all_logits = logits},
                       {.session = &second, .tokens = other}};
  llama2cpp::run(both, {}, tiny::no_poll, 4);
  add(bits, {logits, count});
  for (const bool edits : {false, true}) {
    const Work work[] = {{.session = &first, .tokens = other}, {.session = &second, .tokens = prompt}};
    llama2cpp::run(work, hooks_everywhere(*model, edits), tiny::no_poll);
  }
  const auto fork = first.fork(tiny::no_poll);
  tiny::feed(*fork, {3});
  first.rewind(2, tiny::no_poll);
  tiny::feed(first, {7, 8});
  for (Session* session : {&first, &second, fork.get()}) {
    const Bits last = tiny::logits_of(*session);
    bits.insert(bits.end(), last.begin(), last.end());
  }
  std::vector<float> x(static_cast<std::size_t>(2 * model->config().dim), 0.25F);
  std::vector<float> unembedded(2 * vocab_size);
  for (const bool norm : {false, true}) {
    llama2cpp::unembed(*model, x, norm, unembedded, tiny::no_poll);
    add(bits, unembedded);
  }
  return bits;
}

}  // namespace

TEST_CASE("a model's ops read and write their backend's memory only, and the bits are the same") {
  for (const auto style : {llama2cpp::RopeStyle::interleaved, llama2cpp::RopeStyle::half_split}) {
    for (const std::int64_t group : {0, 2}) {
      Config config = tiny::config(style);
      config.sliding_window = 6;
      const auto checking = std::make_shared<CheckingBackend>(2);
      const auto on_it = std::make_shared<const Model>(with_biases(config, group), ModelOptions{}, checking);
      const auto plain = std::make_shared<const Model>(with_biases(config, group), ModelOptions{.threads = 1});
      CHECK(use(on_it) == use(plain));
      for (const char* op : {"embed", "take_rows", "rms_scale", "normalize", "matmul", "rope", "store_kv", "attention",
                             "gated", "add", "add_bias"}) {
        CAPTURE(op);
        CHECK(checking->calls[op] > 0);
      }
      CHECK(checking->reserved > 0);
    }
  }
}

TEST_CASE("a pass waits once for its ops, where nobody looks at it") {
  const auto checking = std::make_shared<CheckingBackend>();
  const auto model = std::make_shared<const Model>(with_biases(tiny::config()), ModelOptions{}, checking);
  Session session(model, 0);
  tiny::feed(session, tiny::tokens(5, 1));
  const int before = checking->syncs;
  tiny::feed(session, {4});
  CHECK(checking->syncs == before + 1);
  const auto more = tiny::tokens(3, 1);
  const Work work{.session = &session, .tokens = more};
  llama2cpp::run({&work, 1}, {}, tiny::no_poll);
  CHECK(checking->syncs == before + 2);
}

TEST_CASE("every view of a pass's activations begins on a cache line, and none reaches into another") {
  const Config config = tiny::config();
  CheckingBackend backend;
  Activations a(config, backend, 7);
  for (const std::int64_t rows : {1, 2, 7}) {
    a.resize(rows, rows);
    a.add_results(config.head_dim);
    std::vector<Tensor> views = {a.x,    a.scale, a.normalized, a.cos,  a.sin,    a.q,       a.k,        a.v,       a.z,
                                 a.gate, a.up,    a.mlp_out,    a.last, a.logits, a.results, a.one_head, a.attn_out};
    std::sort(views.begin(), views.end(), [](const Tensor& x, const Tensor& y) { return x.row(0) < y.row(0); });
    for (std::size_t i = 0; i < views.size(); ++i) {
      CHECK(reinterpret_cast<std::uintptr_t>(views[i].data) % 64 == 0);
      if (i > 0) CHECK(views[i - 1].row(0) + views[i - 1].rows() * views[i - 1].columns() <= views[i].row(0));
    }
  }
  // The last view of the largest pass ends in memory that was made for it.
  a.resize(7, 7);
  const Tensor all[] = {a.last};
  backend.add(all[0], all[0], all[0]);
}

TEST_CASE("a backend that packs nothing is not asked to") {
  const auto checking = std::make_shared<CheckingBackend>();
  checking->can_pack = false;
  const auto model = [&](const char* pack) {
    return std::make_shared<const Model>(with_biases(tiny::config()), ModelOptions{.pack = pack}, checking);
  };
  CHECK_THROWS_WITH_AS(
      model("always"),
      "pack is 'always', but the checking backend reads weights where they lie; use 'auto', or backend='cpu'",
      std::invalid_argument);
  const auto plain = std::make_shared<const Model>(with_biases(tiny::config()), ModelOptions{.threads = 1});
  for (const char* pack : {"auto", "never"}) {
    CHECK_FALSE(model(pack)->packed());
    CHECK(use(model(pack)) == use(plain));
  }
}

TEST_CASE("a backend that multiplies floats only gets float activations") {
  const auto checking = std::make_shared<CheckingBackend>();
  checking->can_multiply_integers = false;
  const Config config = tiny::config(llama2cpp::RopeStyle::half_split);
  const auto model = [&](const char* activations) {
    return std::make_shared<const Model>(with_biases(config, 2), ModelOptions{.activation_dtype = activations},
                                         checking);
  };
  CHECK_THROWS_WITH_AS(
      model("int8"),
      "activation_dtype is 'int8', but the checking backend multiplies floats only; use 'f32', or backend='cpu'",
      std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      model("bf16"),
      "activation_dtype is 'bf16', but the checking backend multiplies float32 only; use 'f32', or backend='cpu'",
      std::invalid_argument);
  CHECK(model("auto")->activation_dtype() == "f32");
  const auto floats =
      std::make_shared<const Model>(with_biases(config, 2), ModelOptions{.threads = 1, .activation_dtype = "f32"});
  CHECK(use(model("auto")) == use(floats));
}

TEST_CASE("what a backend has left decides what is packed and what is refused") {
  const auto checking = std::make_shared<CheckingBackend>();
  checking->left = 1000;
  const auto model = std::make_shared<const Model>(with_biases(tiny::config()), ModelOptions{}, checking);
  CHECK_FALSE(model->packed());
  llama2cpp::KvCache cache(tiny::config(), 300'000, llama2cpp::DType::f32, *checking);
  CHECK_THROWS_WITH_AS(cache.need(300'000), doctest::Contains("and 0.000 GB are available: use fewer tokens"),
                       llama2cpp::OutOfMemoryError);
  CHECK_THROWS_WITH_AS(Activations(tiny::config(), *checking, 300'000),
                       doctest::Contains("a pass of 300000 tokens at once needs"), llama2cpp::OutOfMemoryError);
}
