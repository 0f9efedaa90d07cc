// Reads one word of every cache line, which is as fast as whole lines and needs no instruction set.
#include "core/read_bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/available_memory.h"
#include "core/buffer.h"
#include "core/check.h"
#include "core/thread_pool.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kStep = 4 * kLine;  // lines that are on their way side by side

// All words that were read, joined, so that no compiler leaves the reading out.
std::uint64_t read_once(const std::byte* memory, std::size_t bytes) {
  std::uint64_t joined[4] = {};
  for (std::size_t at = 0; at < bytes; at += kStep) {
    for (std::size_t i = 0; i < 4; ++i) {
      std::uint64_t word;
      std::memcpy(&word, memory + at + i * kLine, sizeof(word));
      joined[i] |= word;
    }
  }
  return joined[0] | joined[1] | joined[2] | joined[3];
}

}  // namespace

double read_bandwidth(ThreadPool& pool, std::size_t bytes, double seconds) {
  LLAMA2CPP_CHECK(bytes >= 1 && bytes <= available_memory(), "bytes is ", bytes, ", expected 1 to the ",
                  available_memory(), " that are free");
  LLAMA2CPP_CHECK(std::isfinite(seconds) && seconds >= 0.0, "seconds is ", seconds, ", expected 0 or more");
  const auto parts = static_cast<std::size_t>(pool.threads());
  const std::size_t part = (bytes / parts + kStep) / kStep * kStep;  // [threads] of these
  const Buffer memory = Buffer::heap(part * parts);
  std::memset(memory.data(), 1, memory.size());  // pages that nobody wrote to are all the same page

  using Clock = std::chrono::steady_clock;
  std::atomic<std::uint64_t> joined{0};
  const auto read = [&](std::int64_t passes) {
    const auto begin = Clock::now();
    pool.run([&](int w, int workers) {
      const Range mine = share(pool.threads(), w, workers);  // one part, unless threads could not be started
      for (std::int64_t i = 0; i < passes; ++i) {
        for (std::int64_t p = mine.begin; p < mine.end; ++p) {
          joined.fetch_or(read_once(memory.data() + static_cast<std::size_t>(p) * part, part));
        }
      }
    });
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  const double once = read(1);  // and caches hold what they can
  const auto passes = static_cast<std::int64_t>(std::min(1e6, seconds / std::max(once, 1e-7))) + 1;
  return static_cast<double>(memory.size()) * static_cast<double>(passes) / std::max(read(passes), 1e-9);
}

}  // namespace llama2cpp
