// The sampler against the same rule written plainly, with a full sort; and what it refuses.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "sample/sampler.h"

namespace {

using llama2cpp::Sampler;
using llama2cpp::SamplerOptions;
using Ids = std::vector<std::int32_t>;
using Logits = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

float next_coin(std::uint64_t& state) {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return static_cast<float>(static_cast<std::uint32_t>((state * 0x2545F4914F6CDD1DULL) >> 32) >> 8) / 16777216.0F;
}

// The state from which the next coin is this one: the odd multiplier has an inverse, and so has each shift.
std::uint64_t state_before(float coin) {
  constexpr std::uint64_t kMultiplier = 0x2545F4914F6CDD1D;
  std::uint64_t inverse = kMultiplier;
  for (int i = 0; i < 6; ++i) inverse *= 2 - kMultiplier * inverse;
  const std::uint64_t product = (static_cast<std::uint64_t>(coin * 16777216.0F) << 40) + 1;
  const std::uint64_t after = product * inverse;
  std::uint64_t state = after;
  for (int i = 0; i < 3; ++i) state = after ^ (state >> 27);
  const std::uint64_t middle = state;
  for (int i = 0; i < 3; ++i) state = middle ^ (state << 25);
  const std::uint64_t first = state;
  for (int i = 0; i < 6; ++i) state = first ^ (state >> 12);
  return state;
}

std::int32_t sample_with_coin(const SamplerOptions& options, const Logits& logits, float coin) {
  Sampler sampler(options);
  sampler.set_state(state_before(coin));
  std::uint64_t state = sampler.state();
  REQUIRE(next_coin(state) == coin);
  return sampler.sample(logits);
}

std::int32_t walk(const Logits& p, const Ids& ids, float target) {
  float sum = 0.0F;
  for (const std::int32_t id : ids) {
    sum += p[static_cast<std::size_t>(id)];
    if (target < sum) return id;
  }
  return ids.back();
}

// sampler.h's rule for finite logits, a temperature above 0 and no penalty; every stage a list of ids.
std::int32_t plain_sample(const Logits& logits, const SamplerOptions& options, float coin) {
  const auto n = static_cast<std::int64_t>(logits.size());
  const float largest = *std::max_element(logits.begin(), logits.end()) / options.temperature;
  Logits p(logits.size());
  float sum = 0.0F;
  for (std::size_t i = 0; i < p.size(); ++i) {
    p[i] = std::exp(logits[i] / options.temperature - largest);
    sum += p[i];
  }
  for (float& value : p) value /= sum;
  const auto at = [&](std::int32_t id) { return p[static_cast<std::size_t>(id)]; };

  Ids ids(p.size());
  std::iota(ids.begin(), ids.end(), 0);
  const bool top_k = options.top_k > 0 && options.top_k < n;
  const bool top_p = options.top_p > 0.0F && options.top_p < 1.0F;
  if (!top_k && !top_p && options.min_p == 0.0F) return walk(p, ids, coin);
  if (top_k || top_p) std::stable_sort(ids.begin(), ids.end(), [&](auto a, auto b) { return at(a) > at(b); });
  const float most = *std::max_element(p.begin(), p.end());
  const auto sum_of = [&](const Ids& list) {
    float total = 0.0F;
    for (const std::int32_t id : list) total += at(id);
    return total;
  };

  if (top_k) ids.resize(static_cast<std::size_t>(options.top_k));
  if (top_p) {
    const float mass = top_k ? sum_of(ids) : 1.0F;
    const float cutoff = top_k ? 0.0F : (1.0F - options.top_p) / static_cast<float>(n - 1);
    Ids kept;
    float total = 0.0F;
    for (const std::int32_t id : ids) {
      if (at(id) < cutoff) break;
      kept.push_back(id);
      total += at(id);
      if (total > options.top_p * mass) break;
    }
    if (kept.empty()) kept.push_back(ids.front());
    ids = kept;
  }
  std::erase_if(ids, [&](std::int32_t id) { return at(id) < options.min_p * most || at(id) == 0.0F; });
  return walk(p, ids, coin * sum_of(ids));
}

Logits random_logits(std::mt19937& random, std::size_t size, float spread, int levels) {
  std::normal_distribution<float> normal(0.0F, spread);
  Logits logits(size);
  for (float& logit : logits) {
    logit = normal(random);
    // few levels: many ids with the same probability
    if (levels > 0) logit = std::round(logit / spread * static_cast<float>(levels)) * spread;
  }
  return logits;
}

void check_against_plain(const SamplerOptions& options, const Logits& logits, int draws) {
  CAPTURE(options.temperature);
  CAPTURE(options.top_p);
  CAPTURE(options.top_k);
  CAPTURE(options.min_p);
  CAPTURE(logits.size());
  Sampler sampler(options);
  std::uint64_t state = options.seed;
  int different = 0;
  for (int i = 0; i < draws; ++i) {
    if (sampler.sample(logits) != plain_sample(logits, options, next_coin(state))) ++different;
  }
  CHECK(different == 0);
  CHECK(sampler.state() == state);
}

SamplerOptions greedy() {
  SamplerOptions options;
  options.temperature = 0.0F;
  return options;
}

std::string error_of(const SamplerOptions& options) {
  try {
    const Sampler sampler(options);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "no error";
}

std::string error_of(const Logits& logits, const Ids& history = {}) {
  Sampler sampler{SamplerOptions{}};
  const std::uint64_t before = sampler.state();
  try {
    sampler.sample(logits, {.history = history});
  } catch (const std::invalid_argument& error) {
    CHECK(sampler.state() == before);
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("draws are those of the plain rule with a full sort") {
  std::mt19937 random(7);
  for (const std::size_t size : {1U, 2U, 3U, 17U, 128U, 129U, 512U, 2000U}) {
    for (const int levels : {0, 1, 4}) {
      const Logits logits = random_logits(random, size, 2.0F, levels);
      for (const float temperature : {0.1F, 1.0F, 3.0F}) {
        for (const float top_p : {-1.0F, 0.0F, 1e-9F, 0.3F, 0.9F, 0.999F, 1.0F, 2.0F}) {
          for (const std::int64_t top_k : {0, 1, 5, 128, 100'000}) {
            for (const float min_p : {0.0F, 1e-6F, 0.05F, 1.0F}) {
              check_against_plain({temperature, top_p, top_k, min_p, 1.0F, 0x123456789ABCDEF}, logits, 8);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("a vocabulary of 49,152 draws as with a full sort") {
  std::mt19937 random(11);
  struct Shape {
    float spread;
    int levels;
  };
  for (const Shape shape : {Shape{0.0F, 0}, {0.3F, 0}, {4.0F, 0}, {1.0F, 2}}) {  // the last: thousands of equal ones
    const Logits logits = random_logits(random, 49'152, shape.spread, shape.levels);
    for (const float top_p : {0.0F, 0.5F, 0.95F}) {
      for (const std::int64_t top_k : {0, 50, 20'000}) {
        for (const float min_p : {0.0F, 0.02F}) {
          check_against_plain({0.8F, top_p, top_k, min_p, 1.0F, 42}, logits, 5);
        }
      }
    }
  }
}

TEST_CASE("at temperature 0 the largest logit wins, ties go to the lower id, nothing is drawn") {
  Sampler sampler(greedy());
  const std::uint64_t before = sampler.state();
  CHECK(sampler.sample(Logits{0.5F, 2.0F, -1.0F, 2.0F}) == 1);
  CHECK(sampler.sample(Logits{-0.0F, 0.0F}) == 0);
  CHECK(sampler.sample(Logits{-kInfinity, -3e38F}) == 1);
  CHECK(sampler.state() == before);
}

TEST_CASE("a forbidden id is never drawn") {
  const Logits logits{-kInfinity, 0.0F, -kInfinity, 0.0F, -kInfinity};
  for (const float top_p : {0.0F, 0.9F, 0.999999F}) {
    for (const std::int64_t top_k : {0, 4}) {
      for (const float min_p : {0.0F, 0.5F}) {
        Sampler sampler({1.0F, top_p, top_k, min_p, 1.0F, 5});
        std::set<std::int32_t> drawn;
        for (int i = 0; i < 200; ++i) drawn.insert(sampler.sample(logits));
        CHECK(drawn == std::set<std::int32_t>{1, 3});
      }
    }
  }
}

TEST_CASE("a sum that ends below the coin takes the last id that is not forbidden") {
  constexpr int kCount = 12;
  constexpr float kLargestCoin = 1.0F - 0x1p-24F;
  float sum = 0.0F;
  for (int i = 0; i < kCount; ++i) sum += 1.0F / static_cast<float>(kCount);
  REQUIRE(sum <= kLargestCoin);
  Logits logits(kCount, 0.0F);
  logits.push_back(-kInfinity);
  CHECK(sample_with_coin({.top_p = 0.0F}, logits, kLargestCoin) == kCount - 1);
}

TEST_CASE("borders: a coin on a sum belongs to the next id, a sum on top_p takes one more") {
  const Logits logits(4, 0.0F);  // each has exactly 1/4
  for (const SamplerOptions& options :
       {SamplerOptions{.top_p = 0.0F}, SamplerOptions{.top_p = 0.9F}, SamplerOptions{.top_p = 0.0F, .min_p = 0.5F}}) {
    CHECK(sample_with_coin(options, logits, 0.0F) == 0);
    CHECK(sample_with_coin(options, logits, 0.25F - 0x1p-24F) == 0);
    CHECK(sample_with_coin(options, logits, 0.25F) == 1);
    CHECK(sample_with_coin(options, logits, 1.0F - 0x1p-24F) == 3);
  }
  CHECK(sample_with_coin({.top_p = 0.25F}, logits, 1.0F - 0x1p-24F) == 1);
  CHECK(sample_with_coin({.top_p = 0.5F}, logits, 1.0F - 0x1p-24F) == 2);
  CHECK(sample_with_coin({.top_p = 0.5F, .top_k = 2}, logits, 1.0F - 0x1p-24F) == 1);  // half of the half that is left
  CHECK(sample_with_coin({.top_p = 0.49F, .top_k = 2}, logits, 1.0F - 0x1p-24F) == 0);
  CHECK(sample_with_coin({.top_p = 0.0F, .top_k = 3, .min_p = 1.0F}, logits, 1.0F - 0x1p-24F) == 2);
}

TEST_CASE("temperatures that overflow the quotient draw the largest logit") {
  for (const float sign : {1.0F, -1.0F}) {
    Sampler sampler({1e-38F, 0.9F, 0, 0.0F, 1.0F, 9});
    const std::uint64_t before = sampler.state();
    CHECK(sampler.sample(Logits{sign * 30.0F, sign * 29.0F, sign * 31.0F}) == (sign > 0 ? 2 : 1));
    CHECK(sampler.state() != before);
  }
}

TEST_CASE("the penalty: positive logits are divided, others multiplied, once per id") {
  SamplerOptions options = greedy();
  options.repetition_penalty = 2.0F;
  Sampler sampler(options);
  CHECK(sampler.sample(Logits{3.0F, 2.0F, 1.0F}) == 0);
  CHECK(sampler.sample(Logits{3.0F, 2.0F, 1.0F}, {.history = Ids{0}}) == 1);
  CHECK(sampler.sample(Logits{3.0F, 1.4F, 1.0F}, {.history = Ids{0, 0, 0}}) == 0);  // 1.5, not 0.375
  CHECK(sampler.sample(Logits{-1.0F, -1.5F}, {.history = Ids{0}}) == 1);
  CHECK(sampler.sample(Logits{3e38F, -3e38F}, {.history = Ids{0, 1}}) == 0);
  CHECK(sampler.sample(Logits{-3e38F, -3.2e38F}, {.history = Ids{0}}) == 1);
  CHECK(sampler.sample(Logits{-kInfinity, -3e38F}, {.history = Ids{0, 1}}) ==
        1);  // a penalty neither forbids nor allows
  options.repetition_penalty = 1e-30F;
  Sampler strong(options);
  CHECK(strong.sample(Logits{1e30F, 2.0F}, {.history = Ids{1}}) == 1);
  CHECK(strong.sample(Logits{1e30F, 2.0F}, {.history = Ids{0}}) == 0);  // saturates: no infinity
}

TEST_CASE("equal seeds give equal draws; seed 0 works; a state goes on") {
  const Logits logits(100, 0.0F);
  for (const std::uint64_t seed : {std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0}}) {
    SamplerOptions options;
    options.seed = seed;
    Sampler a(options);
    Sampler b(options);
    CHECK(a.options().seed == seed);
    std::set<std::int32_t> drawn;
    for (int i = 0; i < 20; ++i) {
      const std::int32_t id = a.sample(logits);
      CHECK(id == b.sample(logits));
      drawn.insert(id);
    }
    CHECK(drawn.size() > 5);
    Sampler c{SamplerOptions{}};
    c.set_state(a.state());
    CHECK(c.sample(logits) == a.sample(logits));
  }
  Sampler sampler{SamplerOptions{}};
  CHECK_THROWS_AS(sampler.set_state(0), std::invalid_argument);
}

TEST_CASE("bad options name themselves and what was received") {
  CHECK(error_of(SamplerOptions{.temperature = -1.0F}) == "temperature is -1, expected a finite number of 0 or more");
  CHECK(error_of(SamplerOptions{.temperature = kNaN}) == "temperature is nan, expected a finite number of 0 or more");
  CHECK(error_of(SamplerOptions{.temperature = kInfinity}).starts_with("temperature is inf"));
  CHECK(error_of(SamplerOptions{.top_p = kNaN}).starts_with("top_p is nan"));
  CHECK(error_of(SamplerOptions{.top_k = -1}).starts_with("top_k is -1"));
  CHECK(error_of(SamplerOptions{.min_p = 1.5F}).starts_with("min_p is 1.5"));
  CHECK(error_of(SamplerOptions{.min_p = kNaN}).starts_with("min_p is nan"));
  CHECK(error_of(SamplerOptions{.repetition_penalty = 0.0F}).starts_with("repetition_penalty is 0"));
  CHECK(error_of(SamplerOptions{.repetition_penalty = kInfinity}).starts_with("repetition_penalty is inf"));
}

TEST_CASE("bad logits and ids name their index, and the generator has not moved") {
  CHECK(error_of(Logits{}) == "logits are empty, expected one for each id of the vocabulary");
  CHECK(error_of(Logits{0.0F, 1.0F, kNaN}).starts_with("logits[2] is nan"));
  CHECK(error_of(Logits{0.0F, kInfinity}).starts_with("logits[1] is inf"));
  CHECK(error_of(Logits{-kInfinity, -kInfinity}) == "all 2 logits are -inf: every id is forbidden");
  CHECK(error_of(Logits{0.0F, 1.0F}, Ids{0, 2}) == "history[1] is 2, expected an id from 0 to 1");
  CHECK(error_of(Logits{0.0F, 1.0F}, Ids{-1}) == "history[0] is -1, expected an id from 0 to 1");
}
