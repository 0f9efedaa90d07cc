// Decoding steps of a checkpoint and nothing else, on one thread: for valgrind to count, and for its own clock.
//   bench_step CHECKPOINT STEPS [ROUNDS]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <vector>

#include "io/checkpoint.h"
#include "model/session.h"

int main(int argc, char** argv) {
  using namespace llama2cpp;
  if (argc < 3) return std::puts("bench_step CHECKPOINT STEPS [ROUNDS]"), 2;
  const auto model = std::make_shared<const Model>(open_checkpoint(argv[1], true), ModelOptions{.threads = 1});
  const int steps = std::atoi(argv[2]);
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 1;
  Session session(model, steps);
  const std::vector<std::int32_t> token = {5};
  double best = 1e300;  // microseconds of a step
  for (int round = 0; round < rounds; ++round) {
    session.rewind(0);
    const std::clock_t begin = std::clock();
    for (int i = 0; i < steps; ++i) {
      const Work work{&session, token, nullptr};
      run({&work, 1}, {}, [] {});
    }
    best = std::min(best, static_cast<double>(std::clock() - begin) * 1e6 / CLOCKS_PER_SEC / steps);
  }
  std::printf("%.4f\n", best);
}
