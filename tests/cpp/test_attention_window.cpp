// Attention within a sliding window: what lies before it is masked as the future is, and never read.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "kernel_outputs.h"

namespace {

using kernel_outputs::Kind;
using llama2cpp::AttentionSpan;
using llama2cpp::Tensor;

constexpr std::int64_t kHeadDim = 24;
constexpr std::int64_t kContext = 700;
constexpr std::int64_t kRows = 3;

// Two query heads on one head of keys. Rows are the positions `position` ... `position` + 2.
struct Sequence {
  std::vector<float> q = kernel_outputs::make(kRows * 2 * kHeadDim, Kind::ordinary, 1);
  std::vector<float> keys = kernel_outputs::make(kContext * kHeadDim, Kind::ordinary, 2);
  std::vector<float> values = kernel_outputs::make(kContext * kHeadDim, Kind::ordinary, 3);
  std::vector<float> scores, pattern;

  std::vector<float> attend(std::int64_t position, std::int64_t window, bool look = false) {
    llama2cpp::CpuBackend cpu(1, *llama2cpp::scalar_kernels());
    llama2cpp::Backend& backend = cpu;
    std::vector<float> z(q.size());
    AttentionSpan span;
    span.count = kRows;
    span.position = position;
    span.window = window;
    span.divisor = std::sqrt(static_cast<float>(kHeadDim));
    span.keys = Tensor(keys.data(), {1, kContext, kHeadDim});
    span.values = Tensor(values.data(), {1, kContext, kHeadDim});
    if (look) {
      const std::int64_t width = position + kRows;
      scores.assign(static_cast<std::size_t>(2 * kRows * width), 7.0F);
      pattern = scores;
      span.scores = Tensor(scores.data(), {2, kRows, width});
      span.pattern = Tensor(pattern.data(), {2, kRows, width});
    }
    const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
    backend.attention(Tensor(q.data(), {kRows, 2 * kHeadDim}), {&span, 1}, Tensor(z.data(), {kRows, 2 * kHeadDim}));
    return z;
  }
};

}  // namespace

TEST_CASE("a window that holds every position changes no bit") {
  Sequence s;
  for (const std::int64_t position : {0, 5, 300}) CHECK(s.attend(position, 0) == s.attend(position, position + kRows));
}

TEST_CASE("a window's attention is that of its positions alone") {
  Sequence s;
  for (const std::int64_t position : {3, 255, 256, 300, 600, 690}) {
    for (const std::int64_t window : {1, 2, 45, 256, 300}) {
      const std::vector<float> z = s.attend(position, window, true);
      CHECK(z == s.attend(position, window));  // to look changes no bit
      for (std::int64_t head = 0; head < 2; ++head) {
        for (std::int64_t t = 0; t < kRows; ++t) {
          const std::int64_t last = position + t;
          const std::int64_t first = std::max(last - window + 1, std::int64_t{0});
          double sum = 0.0;
          std::vector<double> mixed(kHeadDim, 0.0);
          for (std::int64_t p = first; p <= last; ++p) {
            double score = 0.0;
            for (std::int64_t d = 0; d < kHeadDim; ++d) {
              score += static_cast<double>(s.q[static_cast<std::size_t>((t * 2 + head) * kHeadDim + d)]) *
                       static_cast<double>(s.keys[static_cast<std::size_t>(p * kHeadDim + d)]);
            }
            const double e = std::exp(score / std::sqrt(static_cast<double>(kHeadDim)));
            sum += e;
            for (std::int64_t d = 0; d < kHeadDim; ++d) {
              mixed[static_cast<std::size_t>(d)] +=
                  e * static_cast<double>(s.values[static_cast<std::size_t>(p * kHeadDim + d)]);
            }
          }
          for (std::int64_t d = 0; d < kHeadDim; ++d) {
            const double got = static_cast<double>(z[static_cast<std::size_t>((t * 2 + head) * kHeadDim + d)]);
            CHECK(std::abs(got - mixed[static_cast<std::size_t>(d)] / sum) < 1e-5);
          }
          const std::int64_t width = position + kRows;
          for (std::int64_t p = 0; p < width; ++p) {
            const auto i = static_cast<std::size_t>((head * kRows + t) * width + p);
            const bool seen = p >= first && p <= last;
            if (seen ? !(s.pattern[i] > 0.0F) : (s.pattern[i] != 0.0F || !(s.scores[i] < -1e38F))) {
              FAIL("position ", p, " at ", last, " with a window of ", window);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("tiles are of absolute positions, so a whole tile that leaves the window leaves nothing behind") {
  Sequence s;
  const std::vector<float> z = s.attend(512 + 40, 41, false);  // row 0 sees 512 ... 552
  Sequence shifted;
  std::copy(s.keys.begin() + 512 * kHeadDim, s.keys.end(), shifted.keys.begin());
  std::copy(s.values.begin() + 512 * kHeadDim, s.values.end(), shifted.values.begin());
  const std::vector<float> near = shifted.attend(40, 0);
  CHECK(std::vector<float>(z.begin(), z.begin() + 2 * kHeadDim) ==
        std::vector<float>(near.begin(), near.begin() + 2 * kHeadDim));
}

TEST_CASE("what lies before the window is never read") {
  Sequence s;
  const std::vector<float> z = s.attend(300, 40);
  std::fill_n(s.keys.begin(), 261 * kHeadDim, std::numeric_limits<float>::quiet_NaN());
  std::fill_n(s.values.begin(), 261 * kHeadDim, std::numeric_limits<float>::quiet_NaN());
  CHECK(s.attend(300, 40) == z);
}
