#include "model/run_with_cache.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/memory_needs.h"
#include "model/activations.h"

namespace llama2cpp {
namespace {

void check_prompts(const Model& model, std::span<Session* const> sessions,
                   std::span<const std::vector<std::int32_t>> prompts) {
  for (std::size_t i = 0; i < sessions.size(); ++i) {
    const Session* const session = sessions[i];
    LLAMA2CPP_CHECK(session != nullptr && &session->model() == &model && session->position() == 0,
                    "a session belongs to another model or has begun");
    LLAMA2CPP_CHECK(prompts[i].size() == prompts[0].size(), "the prompts have different lengths");
  }
  LLAMA2CPP_CHECK(!prompts.empty() && !prompts[0].empty(), "there are no tokens, expected at least one");
}

// The residual stream that the forward ends with.
Place place_before(std::int64_t layer) {
  return layer == 0 ? Place{Point::embed, 0} : Place{Point::resid_post, layer - 1};
}

}  // namespace

double cached_run_bytes(const Config& c, std::span<const Capture::Slot> slots, double kept_bytes, double out_bytes,
                        std::int64_t sequences, std::int64_t tokens, bool one_pass) {
  const double rows = static_cast<double>(one_pass ? sequences * tokens : std::min(chunk_of(c), sequences * tokens));
  double row = out_bytes > 0 ? static_cast<double>(c.vocab_size) : 0.0;  // floats, beside a pass's activations
  const auto pattern = [](const Capture::Slot& slot) { return is_pattern(slot.place.point); };
  const auto result = [](const Capture::Slot& slot) { return slot.place.point == Point::result; };
  if (std::any_of(slots.begin(), slots.end(), pattern)) {
    row += 2.0 * static_cast<double>(c.n_heads) * static_cast<double>(tokens);
  }
  if (std::any_of(slots.begin(), slots.end(), result)) row += static_cast<double>(c.n_heads * c.dim + c.q_dim());
  return kept_bytes + out_bytes + Activations::bytes(c, static_cast<std::int64_t>(rows)) + rows * row * sizeof(float);
}

CachedRun run_with_cache(const Model& model, std::span<Session* const> sessions,
                         std::span<const std::vector<std::int32_t>> prompts, std::vector<Place> places,
                         std::vector<std::int64_t> positions, std::optional<std::int64_t> stop_at_layer, Hooks hooks,
                         FunctionRef<void()> poll) {
  const Config& c = model.config();
  check_prompts(model, sessions, prompts);
  LLAMA2CPP_CHECK(!stop_at_layer || (*stop_at_layer >= 0 && *stop_at_layer <= c.n_layers), "stop_at_layer is ",
                  stop_at_layer.value_or(0), ", expected 0 to ", c.n_layers);
  const auto sequences = static_cast<std::int64_t>(prompts.size());
  const auto tokens = static_cast<std::int64_t>(prompts[0].size());
  CachedRun done;
  done.width = stop_at_layer ? c.dim : c.vocab_size;
  hooks.stop_at_layer = stop_at_layer;
  const auto capture = std::make_shared<Capture>(c, std::move(places), sequences, tokens, std::move(positions));
  done.slots = capture->slots();
  const double kept = static_cast<double>(capture->floats()) * sizeof(float);
  const double out = static_cast<double>(sequences) * static_cast<double>(tokens * done.width) * sizeof(float);
  need_memory(cached_run_bytes(c, done.slots, kept, out, sequences, tokens, hooks.need_one_pass()), "run_with_cache",
              cat(gigabytes(kept), " of activations, ", gigabytes(out), " of logits"),
              "ask for fewer names, positions or tokens", model.backend().memory_left());

  done.activations = model.borrow_memory(static_cast<std::size_t>(capture->floats()) * sizeof(float));
  capture->write_to(reinterpret_cast<float*>(done.activations.data()), model.backend());
  hooks.add(capture, capture->places());
  done.out = model.borrow_memory(static_cast<std::size_t>(out));
  auto* const out_floats = reinterpret_cast<float*>(done.out.data());
  std::vector<Work> work;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    float* const logits = out_floats + static_cast<std::int64_t>(i) * tokens * done.width;
    work.push_back({.session = sessions[i],
                    .tokens = prompts[i],
                    .all_logits = stop_at_layer ? nullptr : logits,
                    .last_logits = nullptr});
  }
  if (stop_at_layer) {
    const auto residual = std::make_shared<Capture>(c, std::vector{place_before(*stop_at_layer)}, sequences, tokens,
                                                    std::vector<std::int64_t>());
    residual->write_to(out_floats, model.backend());
    hooks.add(residual, residual->places());
  }
  run(work, hooks, poll);
  return done;
}

}  // namespace llama2cpp
