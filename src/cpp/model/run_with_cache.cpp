#include "model/run_with_cache.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "core/check.h"
#include "core/memory_needs.h"
#include "model/activations.h"

namespace llama2cpp {
namespace {

void check_layers(const CachedRunOptions& options, const Config& c) {
  const std::optional<std::int64_t>& stop = options.stop_at_layer;
  LLAMA2CPP_CHECK(!stop || (*stop >= 0 && *stop <= c.n_layers), "stop_at_layer is ", stop.value_or(0),
                  ", expected 0 to ", c.n_layers);
  const std::int64_t end = stop.value_or(c.n_layers + 1);
  LLAMA2CPP_CHECK(!options.start_at_layer || (*options.start_at_layer >= 0 && *options.start_at_layer < end),
                  "start_at_layer is ", options.start_at_layer.value_or(0), ", expected 0 to ", end - 1);
}

// The residual stream that the forward ends with.
Place place_before(std::int64_t layer) {
  return layer == 0 ? Place{Point::embed, 0} : Place{Point::resid_post, layer - 1};
}

}  // namespace

void check_prompts(const Model& model, std::span<Session* const> sessions,
                   std::span<const std::vector<std::int32_t>> prompts) {
  for (std::size_t i = 0; i < sessions.size(); ++i) {
    const Session* const session = sessions[i];
    LLAMA2CPP_CHECK(session != nullptr && &session->model() == &model && session->position() == 0,
                    "a session belongs to another model or has begun");
    LLAMA2CPP_CHECK(!prompts[i].empty(), "there are no tokens, expected at least one");
  }
  LLAMA2CPP_CHECK(!prompts.empty(), "there are no tokens, expected at least one");
}

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

std::vector<CachedRun> run_with_cache(const Model& model, std::span<Session* const> sessions,
                                      std::span<const std::vector<std::int32_t>> prompts,
                                      const std::vector<Place>& places, const CachedRunOptions& options, Hooks hooks,
                                      FunctionRef<void()> poll) {
  const Config& c = model.config();
  check_prompts(model, sessions, prompts);
  check_layers(options, c);
  const auto all = static_cast<std::int64_t>(prompts.size());
  const auto first_tokens = static_cast<std::int64_t>(prompts[0].size());
  const bool even = std::all_of(prompts.begin(), prompts.end(),
                                [&](const auto& prompt) { return prompt.size() == prompts[0].size(); });
  LLAMA2CPP_CHECK(!options.start_at_layer ||
                      (even && static_cast<std::int64_t>(options.residual.size()) == all * first_tokens * c.dim),
                  "there are ", options.residual.size(), " numbers of the residual stream, expected ", all, " * ",
                  first_tokens, " * ", c.dim);
  const std::size_t runs = even ? 1 : prompts.size();
  LLAMA2CPP_CHECK(options.positions.empty() || options.positions.size() == runs, "there are positions for ",
                  options.positions.size(), " runs, expected ", runs);
  hooks.start_at_layer = options.start_at_layer;
  hooks.stop_at_layer = options.stop_at_layer;
  hooks.no_logits = !options.stop_at_layer && !options.logits;
  const std::int64_t width = options.stop_at_layer ? c.dim : options.logits ? c.vocab_size : 0;

  // What each run keeps, and what it takes.
  std::vector<CachedRun> done(runs);
  std::vector<std::shared_ptr<Capture>> captures;
  const std::int64_t sequences = even ? all : 1;  // of a run
  double needed = 0;
  double kept = 0;
  double out = 0;
  for (std::size_t r = 0; r < runs; ++r) {
    const auto tokens = static_cast<std::int64_t>(prompts[r].size());
    auto positions = options.positions.empty() ? std::vector<std::int64_t>() : options.positions[r];
    captures.push_back(std::make_shared<Capture>(c, places, sequences, tokens, std::move(positions)));
    captures[r]->begin_at(r);
    if (options.halves) captures[r]->keep_halves();
    done[r].slots = captures[r]->slots();
    done[r].width = width;
    const auto kept_bytes = static_cast<double>(captures[r]->bytes());
    const double out_bytes = static_cast<double>(sequences) * static_cast<double>(tokens * width) * sizeof(float);
    needed += cached_run_bytes(c, done[r].slots, kept_bytes, out_bytes, sequences, tokens, hooks.need_one_pass());
    kept += kept_bytes;
    out += out_bytes;
  }
  need_memory(needed, "run_with_cache", cat(gigabytes(kept), " of activations, ", gigabytes(out), " of logits"),
              "ask for fewer names, positions or tokens", model.backend().memory_left());

  std::vector<Work> work;
  for (std::size_t r = 0; r < runs; ++r) {
    Capture& capture = *captures[r];
    const auto tokens = static_cast<std::int64_t>(prompts[r].size());
    done[r].activations = model.borrow_memory(capture.bytes());
    capture.write_to(done[r].activations.data(), model.backend());
    hooks.add(captures[r], capture.places(), even ? std::nullopt : std::optional(r));
    done[r].out = model.borrow_memory(static_cast<std::size_t>(sequences * tokens * width) * sizeof(float));
    auto* const out_floats = reinterpret_cast<float*>(done[r].out.data());
    for (std::int64_t s = 0; s < sequences; ++s) {
      const std::size_t i = r + static_cast<std::size_t>(s);
      work.push_back(
          {.session = sessions[i],
           .tokens = prompts[i],
           .all_logits = options.stop_at_layer || !options.logits ? nullptr : out_floats + s * tokens * width,
           .last_logits = nullptr});
      if (options.start_at_layer) work.back().residual = options.residual.data() + s * tokens * c.dim;
    }
    if (!options.stop_at_layer) continue;
    const auto residual = std::make_shared<Capture>(c, std::vector{place_before(*options.stop_at_layer)}, sequences,
                                                    tokens, std::vector<std::int64_t>());
    residual->begin_at(r);
    residual->write_to(out_floats, model.backend());
    hooks.add(residual, residual->places(), even ? std::nullopt : std::optional(r));
  }
  run(work, hooks, poll);
  if (std::any_of(captures.begin(), captures.end(), [](const auto& capture) { return capture->overflowed(); })) {
    throw std::overflow_error("an activation is a number that float16 has not");
  }
  return done;
}

}  // namespace llama2cpp
