// What becomes of attention's scores before they weigh values: a cap on them, and a sink beside them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "kernel_outputs.h"

namespace {

using kernel_outputs::Kind;
using kernel_outputs::make;
using llama2cpp::AttentionSpan;
using llama2cpp::AttentionStage;
using llama2cpp::Tensor;
using Numbers = std::vector<float>;

constexpr std::int64_t kHeads = 4;  // in two groups of two
constexpr std::int64_t kHeadDim = 24;
constexpr std::int64_t kContext = 300;
constexpr std::int64_t kRows = 21;
constexpr std::int64_t kPosition = 250;
constexpr std::int64_t kKeys = kPosition + kRows;

struct Seen {
  Numbers z = Numbers(kRows * kHeads * kHeadDim);
  Numbers scores = Numbers(kHeads * kRows * kKeys);
  Numbers pattern = scores;
  bool operator==(const Seen&) const = default;
};

// Rows of positions kPosition and on. In `steps` calls, each of one stage or of all.
struct Sequence {
  float cap = 0.0F;
  std::int64_t window = 0;
  Numbers sinks;
  Numbers q = make(kRows * kHeads * kHeadDim, Kind::ordinary, 1);
  Numbers keys = make(2 * kContext * kHeadDim, Kind::ordinary, 2);
  Numbers values = make(2 * kContext * kHeadDim, Kind::ordinary, 3);

  Sequence() {
    for (float& x : q) x *= 9.0F;  // scores of some size
  }

  AttentionSpan span(std::int64_t row, std::int64_t count) {
    AttentionSpan made;
    made.count = count;
    made.position = kPosition + row;
    made.window = window;
    made.divisor = std::sqrt(static_cast<float>(kHeadDim));
    made.score_cap = cap;
    made.keys = Tensor(keys.data(), {2, kContext, kHeadDim});
    made.values = Tensor(values.data(), {2, kContext, kHeadDim});
    if (!sinks.empty()) made.sinks = Tensor(sinks.data(), {kHeads});
    return made;
  }

  Seen all(bool by_stages) {
    Seen seen;
    llama2cpp::CpuBackend cpu(1, llama2cpp::select_kernels(""));
    AttentionSpan made = span(0, kRows);
    made.scores = Tensor(seen.scores.data(), {kHeads, kRows, kKeys});
    made.pattern = Tensor(seen.pattern.data(), {kHeads, kRows, kKeys});
    const Tensor query(q.data(), {kRows, kHeads * kHeadDim});
    const Tensor z(seen.z.data(), {kRows, kHeads * kHeadDim});
    const llama2cpp::Backend::Lease lease(cpu, llama2cpp::kNoPoll);
    if (!by_stages) {
      cpu.attention(query, {&made, 1}, z, AttentionStage::scores, AttentionStage::values);
      return seen;
    }
    for (const auto stage : {AttentionStage::scores, AttentionStage::pattern, AttentionStage::values}) {
      cpu.attention(query, {&made, 1}, z, stage, stage);
    }
    return seen;
  }

  // z alone, `together` rows in a call.
  Numbers z(int threads, std::int64_t together) {
    Numbers out(q.size());
    llama2cpp::CpuBackend cpu(threads, *llama2cpp::scalar_kernels());
    const llama2cpp::Backend::Lease lease(cpu, llama2cpp::kNoPoll);
    for (std::int64_t row = 0; row < kRows; row += together) {
      const std::int64_t count = std::min(together, kRows - row);
      const AttentionSpan made = span(row, count);
      cpu.attention(Tensor(q.data() + row * kHeads * kHeadDim, {count, kHeads * kHeadDim}), {&made, 1},
                    Tensor(out.data() + row * kHeads * kHeadDim, {count, kHeads * kHeadDim}), AttentionStage::scores,
                    AttentionStage::values);
    }
    return out;
  }
};

double at(const Numbers& x, std::int64_t i) { return double{x[static_cast<std::size_t>(i)]}; }

}  // namespace

TEST_CASE("scores with a cap and a sink are those of plain loops, and the same bits in every way to compute them") {
  for (const float cap : {0.0F, 1.5F, 50.0F}) {
    for (const bool sunk : {false, true}) {
      for (const std::int64_t window : {0, 100}) {
        Sequence s;
        s.cap = cap;
        s.window = window;
        if (sunk) s.sinks = {2.0F, -30.0F, 0.0F, 6.0F};
        const Seen seen = s.all(false);
        CHECK(seen == s.all(true));
        CHECK(seen.z == s.z(1, kRows));
        CHECK(seen.z == s.z(3, kRows));
        CHECK(seen.z == s.z(1, 4));
        CHECK(seen.z == s.z(2, 1));

        double worst_score = 0.0;
        double worst_weight = 0.0;
        double worst_z = 0.0;
        for (std::int64_t row = 0; row < kRows; ++row) {
          for (std::int64_t head = 0; head < kHeads; ++head) {
            const std::int64_t first = window > 0 ? kPosition + row - window + 1 : 0;
            double sum = sunk ? std::exp(at(s.sinks, head)) : 0.0;
            std::vector<double> weights;
            for (std::int64_t p = first; p <= kPosition + row; ++p) {
              double score = 0.0;
              for (std::int64_t d = 0; d < kHeadDim; ++d) {
                score += at(s.q, (row * kHeads + head) * kHeadDim + d) *
                         at(s.keys, (head / 2 * kContext + p) * kHeadDim + d);
              }
              score /= std::sqrt(static_cast<double>(kHeadDim));
              if (cap > 0.0F) score = double{cap} * std::tanh(score / double{cap});
              const double got = at(seen.scores, (head * kRows + row) * kKeys + p);
              worst_score = std::max(worst_score, std::abs(got - score));
              weights.push_back(std::exp(score));
              sum += weights.back();
            }
            double mixed = 0.0;  // the last number of z
            for (std::int64_t p = first; p <= kPosition + row; ++p) {
              const double weight = weights[static_cast<std::size_t>(p - first)] / sum;
              const double got = at(seen.pattern, (head * kRows + row) * kKeys + p);
              worst_weight = std::max(worst_weight, std::abs(got - weight));
              mixed += weight * at(s.values, (head / 2 * kContext + p + 1) * kHeadDim - 1);
            }
            worst_z = std::max(worst_z, std::abs(at(seen.z, (row * kHeads + head + 1) * kHeadDim - 1) - mixed));
          }
        }
        CHECK(worst_score < 1e-5);
        CHECK(worst_weight < 1e-6);
        CHECK(worst_z < 1e-5);
      }
    }
  }
}
