// Reads whole cache lines in plain C++, which compilers turn into loads of 16 bytes: wider ones are no faster.
#include "core/read_bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/available_memory.h"
#include "core/check.h"
#include "core/thread_pool.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kStep = 256;                              // bytes of a stream before it is the next one's turn
constexpr std::size_t kUnit = 8 * kStep;                        // what any number of streams divides
constexpr std::size_t kPiece = std::size_t{1} << 20;            // of one thread, where threads take turns
constexpr std::size_t kLineWords = 64 / sizeof(std::uint64_t);  // of a cache line

// Bytes [0, bytes), a multiple of kUnit, in so many streams side by side. Gives all words that were read, joined, so that no
// compiler leaves the reading out.
template <int Streams>
std::uint64_t read_once(const std::byte* memory, std::size_t bytes) {
  std::uint64_t joined[kLineWords] = {};
  const std::size_t each = bytes / Streams;
  for (std::size_t at = 0; at < each; at += kStep) {
    for (std::size_t stream = 0; stream < Streams; ++stream) {
      const std::byte* const from = memory + stream * each + at;
      for (std::size_t line = 0; line < kStep; line += 64) {
        for (std::size_t i = 0; i < kLineWords; ++i) {
          std::uint64_t word;
          std::memcpy(&word, from + line + i * sizeof(word), sizeof(word));
          joined[i] |= word;
        }
      }
    }
  }
  std::uint64_t all = 0;
  for (const std::uint64_t word : joined) all |= word;
  return all;
}

struct Streams {
  int count;
  std::uint64_t (*read)(const std::byte* memory, std::size_t bytes);
};
constexpr Streams kStreams[] = {{1, read_once<1>}, {2, read_once<2>}, {4, read_once<4>}, {8, read_once<8>}};

}  // namespace

ReadLimit::ReadLimit(ThreadPool& pool, std::size_t bytes) : pool_(pool) {
  LLAMA2CPP_CHECK(bytes >= 1, "bytes is ", bytes, ", expected 1 or more");
  bytes_ = (std::min(bytes, kMost) + kUnit - 1) / kUnit * kUnit;
  LLAMA2CPP_CHECK(bytes_ <= available_memory() / 2, "bytes is ", bytes, ", expected at most half of the ",
                  available_memory(), " that are free");
  large_ = Buffer::heap(bytes_);
  small_ = Buffer::reserve(bytes_);
  for (const Buffer& memory : {large_, small_}) {
    std::memset(memory.data(), 1, memory.size());  // pages that nobody wrote to are all the same page
  }
}

ReadLimit::Speed ReadLimit::measure(double seconds) const {
  LLAMA2CPP_CHECK(std::isfinite(seconds) && seconds >= 0.0, "seconds is ", seconds, ", expected 0 or more");
  using Clock = std::chrono::steady_clock;
  std::atomic<std::uint64_t> joined{0};
  // All of `memory` so many times. Each thread reads a share of its own, or they take pieces in turn.
  const auto read = [&](const Buffer& memory, const Streams& streams, bool turns, std::int64_t passes) {
    const auto begin = Clock::now();
    pool_.run([&](int w, int workers) {
      const auto part = static_cast<std::int64_t>(turns ? kPiece : kUnit);
      const std::int64_t parts = (static_cast<std::int64_t>(bytes_) + part - 1) / part;
      const Range mine = turns ? Range{w, parts} : share(parts, w, workers);
      std::uint64_t words = 0;
      for (std::int64_t pass = 0; pass < passes; ++pass) {
        if (!turns) {
          words |=
              streams.read(memory.data() + mine.begin * part, static_cast<std::size_t>((mine.end - mine.begin) * part));
          continue;
        }
        for (std::int64_t p = mine.begin; p < mine.end; p += workers) {
          const std::int64_t left = static_cast<std::int64_t>(bytes_) - p * part;
          words |= streams.read(memory.data() + p * part, static_cast<std::size_t>(std::min(part, left)));
        }
      }
      joined.fetch_or(words);
    });
    const double took = std::chrono::duration<double>(Clock::now() - begin).count();
    return static_cast<double>(bytes_) * static_cast<double>(passes) / std::max(took, 1e-9);
  };

  const bool both = pool_.threads() > 1 && bytes_ >= 4 * kPiece * static_cast<std::size_t>(pool_.threads());
  const double readers = 2 * std::size(kStreams) * (both ? 2 : 1);
  Speed best{};
  for (const bool turns : {false, true}) {
    if (turns && !both) continue;
    for (const Buffer* memory : {&large_, &small_}) {
      for (const Streams& streams : kStreams) {
        double speed = read(*memory, streams, turns, 1);  // and caches hold what they can
        const double once = static_cast<double>(bytes_) / speed;
        const double more = std::min(1e6, seconds / readers / once - 1.0);
        if (more >= 1.0) speed = std::max(speed, read(*memory, streams, turns, static_cast<std::int64_t>(more)));
        if (speed <= best.bytes_per_second) continue;
        best.bytes_per_second = speed;
        best.reader = std::to_string(streams.count) + (streams.count == 1 ? " stream" : " streams") + " a thread, " +
                      (memory == &large_ ? "huge" : "small") + " pages" + (turns ? ", threads in turns" : "");
      }
    }
  }
  return best;
}

}  // namespace llama2cpp
