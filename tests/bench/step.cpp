// A decoding loop and nothing else, on one thread: for valgrind to count, and for its own clock (CPU time of a step).
//   bench_step CHECKPOINT STEPS [ROUNDS]                               the same token each time, in one session
//   bench_step CHECKPOINT STEPS ROUNDS TEMPERATURE TOP_P SEED FIRST   each round what generate does: a new session, FIRST
//                                                                     fed, and each time the id that the sampler draws
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <optional>

#include "io/checkpoint.h"
#include "model/session.h"
#include "sample/sampler.h"

namespace {

using namespace llama2cpp;

void feed(Session& session, std::int32_t token) {
  const Work work{&session, {&token, 1}, nullptr};
  run({&work, 1}, {}, [] {});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4 && argc != 8) {
    return std::puts("bench_step CHECKPOINT STEPS [ROUNDS [TEMPERATURE TOP_P SEED FIRST]]"), 2;
  }
  const auto model = std::make_shared<const Model>(open_checkpoint(argv[1], true), ModelOptions{.threads = 1});
  const int steps = std::atoi(argv[2]);
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 1;
  std::optional<SamplerOptions> sampling;
  if (argc == 8) {
    sampling = {.temperature = std::strtof(argv[4], nullptr),
                .top_p = std::strtof(argv[5], nullptr),
                .seed = std::strtoull(argv[6], nullptr, 10)};
  }
  const std::int32_t first = sampling ? std::atoi(argv[7]) : 5;

  auto session = std::make_unique<Session>(model, steps);
  double best = 1e300;  // microseconds of a step
  for (int round = 0; round < rounds; ++round) {
    if (sampling) session.reset();
    const std::clock_t begin = std::clock();
    if (sampling) {
      session = std::make_unique<Session>(model, 0);
      Sampler sampler(*sampling);
      std::int32_t token = first;
      for (int i = 0; i < steps; ++i) {
        feed(*session, token);
        session->with_logits([&](std::span<const float> logits) { token = sampler.sample(logits); });
      }
    } else {
      session->rewind(0, llama2cpp::kNoPoll);
      for (int i = 0; i < steps; ++i) feed(*session, first);
    }
    best = std::min(best, static_cast<double>(std::clock() - begin) * 1e6 / CLOCKS_PER_SEC / steps);
  }
  std::printf("%.4f\n", best);
}
