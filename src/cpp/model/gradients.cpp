// What gradients take of memory, asked for before anything is computed; a forward for the residual streams, where the caller
// has none; and the way back through each sequence by itself.
#include "model/gradients.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "core/check.h"
#include "core/memory_needs.h"
#include "core/now_and_then.h"
#include "model/backward.h"

namespace llama2cpp {
namespace {

void check(const Model& model, const GradientCall& call) {
  const std::string reason = why_no_gradients(model);
  LLAMA2CPP_CHECK(reason.empty(), reason);
  check_prompts(model, call.sessions, call.prompts);
  for (std::size_t i = 0; i < call.prompts.size(); ++i) {
    const Session* const session = call.sessions[i];
    LLAMA2CPP_CHECK(session->adapter() == nullptr, "a run with an adapter has no gradients");
    const auto tokens = static_cast<std::int64_t>(call.prompts[i].size());
    LLAMA2CPP_CHECK(call.prompts[i].size() == call.prompts[0].size(), "the prompts have different lengths");
    LLAMA2CPP_CHECK(tokens <= session->context(), "the prompts have ", tokens, " tokens, expected at most ",
                    session->context());
    for (const std::int32_t token : call.prompts[i]) {
      LLAMA2CPP_CHECK(token >= 0 && token < model.config().vocab_size, "token is ", token, ", expected 0 to ",
                      model.config().vocab_size - 1);
    }
  }
  const std::size_t logits =
      call.prompts.size() * call.prompts[0].size() * static_cast<std::size_t>(model.config().vocab_size);
  LLAMA2CPP_CHECK(call.dlogits.size() == logits, "dlogits has ", call.dlogits.size(), " numbers, expected ", logits);
  const auto streams = static_cast<std::size_t>(model.config().n_layers + 1);
  LLAMA2CPP_CHECK(call.stream.empty() || call.stream.size() == streams, "there are ", call.stream.size(),
                  " residual streams, expected ", streams);
  LLAMA2CPP_CHECK(call.given.empty() || !call.stream.empty(),
                  "activations that hooks changed are given, and no residual streams");
}

bool has_any(std::span<const Place> places, std::initializer_list<Point> points) {
  return std::any_of(places.begin(), places.end(), [&](const Place& place) {
    return std::find(points.begin(), points.end(), place.point) != points.end();
  });
}

// The residual streams of a forward: each [sequences, tokens, dim].
struct Streams {
  std::vector<const float*> of;  // [n_layers + 1]
  Buffer memory;

  static double bytes(const Config& c, std::int64_t rows) {
    return static_cast<double>(c.n_layers + 1) * static_cast<double>(rows * c.dim + 16) * sizeof(float);
  }

  void run(const Model& model, const GradientCall& call, FunctionRef<void()> poll) {
    const Config& c = model.config();
    const auto sequences = static_cast<std::int64_t>(call.prompts.size());
    const auto tokens = static_cast<std::int64_t>(call.prompts[0].size());
    std::vector<Place> places;
    for (std::int64_t i = 0; i < c.n_layers; ++i) places.push_back({Point::resid_pre, i});
    places.push_back({Point::resid_post, c.n_layers - 1});
    const auto capture =
        std::make_shared<Capture>(c, std::move(places), sequences, tokens, std::vector<std::int64_t>());
    memory = model.borrow_memory(static_cast<std::size_t>(capture->floats()) * sizeof(float));
    auto* const floats = reinterpret_cast<float*>(memory.data());
    capture->write_to(floats, model.backend());
    for (const Capture::Slot& slot : capture->slots()) of.push_back(floats + slot.begin);
    Hooks hooks(c, model.backend());
    hooks.add(capture, capture->places());
    hooks.stop_at_layer = c.n_layers;  // no logits, and the sessions do not move on
    std::vector<Work> work;
    for (std::size_t i = 0; i < call.prompts.size(); ++i) {
      work.push_back({.session = call.sessions[i], .tokens = call.prompts[i]});
    }
    llama2cpp::run(work, hooks, poll);
  }
};

}  // namespace

std::string why_no_gradients(const Model& model) {
  if (model.backend().gradient_ops() == nullptr) {
    return cat("the ", model.backend().name(), " backend has no gradients; load the model with backend='cpu'");
  }
  return {};
}

CachedRun gradients(const Model& model, GradientCall call, FunctionRef<void()> poll) {
  check(model, call);
  const Config& c = model.config();
  Backend& be = model.backend();
  const auto sequences = static_cast<std::int64_t>(call.prompts.size());
  const auto tokens = static_cast<std::int64_t>(call.prompts[0].size());
  const bool patterns = has_any(call.places, {Point::pattern, Point::attn_scores});
  const bool results = has_any(call.places, {Point::result});
  const auto capture = std::make_shared<Capture>(c, call.places, sequences, tokens, call.positions);
  CachedRun done;
  done.slots = capture->slots();
  const double kept = static_cast<double>(capture->floats()) * sizeof(float);
  const double streams = call.stream.empty() ? Streams::bytes(c, sequences * tokens) : 0.0;
  const double working = Activations::bytes(c, tokens) + LayerTape::bytes(c, tokens) +
                         GradientBuffers::bytes(c, tokens, patterns, results);
  need_memory(kept + streams + working, "backward",
              cat(gigabytes(kept), " of gradients, ", gigabytes(streams), " of residual streams, ", gigabytes(working),
                  " for one layer"),
              "ask for fewer names, positions or tokens", be.memory_left());
  done.activations = model.borrow_memory(static_cast<std::size_t>(kept));
  capture->write_to(reinterpret_cast<float*>(done.activations.data()), be);
  Hooks hooks(c, be);
  hooks.add(capture, capture->places());

  Streams made;
  if (call.stream.empty()) {
    made.run(model, call, poll);
    call.stream = made.of;
  }
  model.prepare(poll);
  const FileReads reads(model.files());
  const auto tape = std::make_shared<LayerTape>(c, be, tokens);
  const GivenActivations given(c, tokens, call.given);
  Hooks forward_hooks(c, be);
  std::shared_ptr<LayerTape> unchanged;
  if (given.any_norms()) {
    unchanged = LayerTape::of_norms(c, be, tokens);
    forward_hooks.add(unchanged, unchanged->places());
  }
  given.add_to(forward_hooks);
  forward_hooks.add(tape, tape->places());
  const auto activations = model.borrow_activations(tokens);
  GradientBuffers buffers(c, be, tokens, patterns, results);
  if (call.stop.n_layers() == 0) call.stop = PlaceSet(c.n_layers);
  const auto pause = [&] {
    const Backend::Pause others_may_run(be);
    poll();
  };
  NowAndThen poll_now_and_then(pause);
  for (std::int64_t s = 0; s < sequences; ++s) {
    const auto at = static_cast<std::size_t>(s);
    KvCache& kv = call.sessions[at]->kv();
    kv.need(tokens);
    const SequenceInput sequence{&kv, 0, call.prompts[at], SequenceInput::Logits::none, at};
    const std::int64_t begin = s * tokens * c.dim;
    const Backend::Lease lease(be, poll);
    Backward back{.model = model,
                  .sequence = sequence,
                  .a = *activations,
                  .tape = *tape,
                  .g = buffers,
                  .forward_hooks = forward_hooks,
                  .hooks = hooks,
                  .stop = call.stop,
                  .given = given,
                  .unchanged = unchanged.get()};
    back.logits(call.stream.back() + begin, call.dlogits.data() + s * tokens * c.vocab_size);
    for (std::int64_t i = c.n_layers - 1; i >= 0; --i) {
      poll_now_and_then();
      back.layer(i, call.stream[static_cast<std::size_t>(i)] + begin);
    }
    back.embed();
    be.sync();
  }
  reads.check();
  if (be.has_warning()) poll();
  return done;
}

}  // namespace llama2cpp
