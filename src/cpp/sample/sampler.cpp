// The rule that sampler.h states, step by step.
#include "sample/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "core/check.h"
#include "sample/exponentials.h"

namespace llama2cpp {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The generator would stay at 0 for ever. llama2.c has no such seed: its command line takes the time instead.
constexpr std::uint64_t kStateOfSeedZero = 0x9E3779B97F4A7C15;

// How many candidates are put in order at first: a nucleus is seldom larger.
constexpr std::size_t kFirstSorted = 128;

void check_option(bool good, const char* name, float value, const char* expected) {
  LLAMA2CPP_CHECK(good && std::isfinite(value), name, " is ", value, ", expected ", expected);
}

// Compilers make vectors of the inner loops of these two, and not of a plain loop.

// The largest of numbers that are not NaN.
float largest_of(std::span<const float> values) {
  constexpr std::size_t kLanes = 32;
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -kInfinity);
  std::size_t i = 0;
  for (; i + kLanes <= values.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) lanes[j] = values[i + j] > lanes[j] ? values[i + j] : lanes[j];
  }
  for (; i < values.size(); ++i) lanes[0] = values[i] > lanes[0] ? values[i] : lanes[0];
  return *std::max_element(lanes, lanes + kLanes);
}

// Calls see(index, value) for the values that pass(value), in their order.
template <class Pass, class See>
void for_each_that(std::span<const float> values, Pass pass, See see) {
  constexpr std::size_t kBlock = 64;
  for (std::size_t begin = 0; begin < values.size(); begin += kBlock) {
    const std::span<const float> block = values.subspan(begin, std::min(kBlock, values.size() - begin));
    std::int32_t passed = 0;
    for (const float value : block) passed += pass(value) ? 1 : 0;
    if (passed == 0) continue;  // mostly
    std::size_t found[kBlock];
    std::size_t count = 0;
    for (std::size_t i = 0; i < block.size(); ++i) {  // without a branch that would be guessed wrongly
      found[count] = i;
      count += pass(block[i]) ? 1 : 0;
    }
    for (std::size_t i = 0; i < count; ++i) see(begin + found[i], block[found[i]]);
  }
}

void check_logits(std::span<const float> logits) {
  LLAMA2CPP_CHECK(!logits.empty(), "logits are empty, expected one for each id of the vocabulary");
  LLAMA2CPP_CHECK(logits.size() <= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()), "logits has ",
                  logits.size(), " values, more than there are ids");
  for_each_that(
      logits, [](float logit) { return !(logit < kInfinity); },
      [](std::size_t id, float logit) {
        LLAMA2CPP_CHECK(false, "logits[", id, "] is ", logit,
                        ", expected a finite number or -inf (which forbids the id)");
      });
  LLAMA2CPP_CHECK(largest_of(logits) != -kInfinity, "all ", logits.size(), " logits are -inf: every id is forbidden");
}

void check_history(std::span<const std::int32_t> history, std::size_t vocab_size) {
  for (std::size_t i = 0; i < history.size(); ++i) {
    LLAMA2CPP_CHECK(history[i] >= 0 && static_cast<std::size_t>(history[i]) < vocab_size, "history[", i, "] is ",
                    history[i], ", expected an id from 0 to ", vocab_size - 1);
  }
}

void check_mask(std::span<const std::uint32_t> mask, std::size_t vocab_size) {
  const std::size_t words = (vocab_size + 31) / 32;
  LLAMA2CPP_CHECK(mask.empty() || mask.size() >= words, "the mask has ", mask.size(), " words of 32 bits, expected ",
                  words, " for a vocabulary of ", vocab_size);
}

float within_range(float logit) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  return std::clamp(logit, -kLargest, kLargest);
}

// The lowest id of the largest value.
std::int32_t argmax(std::span<const float> values) {
  return static_cast<std::int32_t>(std::find(values.begin(), values.end(), largest_of(values)) - values.begin());
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options) {
  check_option(options.temperature >= 0.0F, "temperature", options.temperature, "a finite number of 0 or more");
  check_option(true, "top_p", options.top_p, "a finite number (0 to 1; others are off)");
  check_option(options.min_p >= 0.0F && options.min_p <= 1.0F, "min_p", options.min_p, "a number from 0 to 1");
  check_option(options.repetition_penalty > 0.0F, "repetition_penalty", options.repetition_penalty,
               "a finite number above 0");
  check_option(true, "presence_penalty", options.presence_penalty, "a finite number");
  check_option(true, "frequency_penalty", options.frequency_penalty, "a finite number");
  std::int64_t before = -1;
  for (const auto& [id, bias] : options.logit_bias) {
    LLAMA2CPP_CHECK(id > before, "logit_bias has the id ", id, " after ", before,
                    ", expected ids of 0 or more in ascending order");
    LLAMA2CPP_CHECK(bias < kInfinity, "logit_bias[", id, "] is ", bias,
                    ", expected a finite number or -inf (which forbids the id)");
    before = id;
  }
  LLAMA2CPP_CHECK(options.top_k >= 0, "top_k is ", options.top_k, ", expected 0 (off) or more");
  state_ = options.seed != 0 ? options.seed : kStateOfSeedZero;
}

void Sampler::set_state(std::uint64_t state) {
  LLAMA2CPP_CHECK(state != 0, "the state is 0, which this generator never reaches and never leaves");
  state_ = state;
}

std::int32_t Sampler::sample(std::span<const float> logits, const SampleInput& input) {
  check_logits(logits);
  check_history(input.history, logits.size());
  check_mask(input.mask, logits.size());
  LLAMA2CPP_CHECK(input.prompt_tokens <= input.history.size(), "prompt_tokens is ", input.prompt_tokens,
                  ", and the history has ", input.history.size());
  const std::span<const float> values = adjusts(input) ? adjusted(logits, input) : logits;
  if (options_.temperature == 0.0F) return argmax(values);
  e_.resize(logits.size());
  candidates_.clear();
  candidates_.reserve(logits.size());
  if (options_.top_k > 0 || options_.top_p > 0.0F) ranked_.reserve(logits.size());  // the last step that may throw
  sum_ = exponentials(values, options_.temperature, largest_of(values), e_);

  const float coin = next_coin();
  const bool top_k_on = options_.top_k > 0 && static_cast<std::uint64_t>(options_.top_k) < e_.size();
  const bool top_p_on = options_.top_p > 0.0F && options_.top_p < 1.0F;
  if (top_k_on || top_p_on) return draw_by_rank(top_k_on, top_p_on, coin);
  if (options_.min_p > 0.0F) return draw_by_id(coin);
  return draw_from_all(logits, !input.mask.empty() || !options_.logit_bias.empty(), coin);
}

bool Sampler::adjusts(const SampleInput& input) const {
  return options_.repetition_penalty != 1.0F || options_.presence_penalty != 0.0F ||
         options_.frequency_penalty != 0.0F || !options_.logit_bias.empty() || !input.mask.empty();
}

std::span<const float> Sampler::adjusted(std::span<const float> logits, const SampleInput& input) {
  e_.assign(logits.begin(), logits.end());
  if (options_.repetition_penalty != 1.0F) penalise_repetition(input.history);
  if (options_.presence_penalty != 0.0F || options_.frequency_penalty != 0.0F) {
    penalise_text(input.history.subspan(input.prompt_tokens));
  }
  for (const auto& [id, bias] : options_.logit_bias) {
    const auto index = static_cast<std::size_t>(id);
    LLAMA2CPP_CHECK(index < e_.size(), "logit_bias has the id ", id, ", expected an id from 0 to ", e_.size() - 1);
    if (bias == -kInfinity) {
      e_[index] = bias;
    } else if (e_[index] != -kInfinity) {
      e_[index] = within_range(e_[index] + bias);
    }
  }
  if (!input.mask.empty()) {
    constexpr std::size_t kBits = 32;
    for (std::size_t begin = 0; begin < e_.size(); begin += kBits) {
      const std::uint32_t word = input.mask[begin / kBits];
      if (word == ~std::uint32_t{0}) continue;
      const std::span<float> block = std::span(e_).subspan(begin, std::min(kBits, e_.size() - begin));
      for (std::size_t i = 0; i < block.size(); ++i) {
        if ((word >> i & 1U) == 0) block[i] = -kInfinity;
      }
    }
  }
  LLAMA2CPP_CHECK(largest_of(e_) != -kInfinity, "every id is forbidden",
                  input.mask.empty() ? "" : ": no id that the mask allows has a finite logit");
  return e_;
}

void Sampler::penalise_repetition(std::span<const std::int32_t> history) {
  const float penalty = options_.repetition_penalty;
  penalised_.assign(e_.size(), false);
  for (const std::int32_t signed_id : history) {
    const auto id = static_cast<std::size_t>(signed_id);
    float& logit = e_[id];
    if (penalised_[id] || logit == -kInfinity) continue;
    penalised_[id] = true;
    logit = within_range(logit > 0.0F ? logit / penalty : logit * penalty);
  }
}

void Sampler::penalise_text(std::span<const std::int32_t> text) {
  text_.assign(text.begin(), text.end());
  std::sort(text_.begin(), text_.end());
  for (auto at = text_.begin(); at != text_.end();) {
    const auto end = std::upper_bound(at, text_.end(), *at);
    float& logit = e_[static_cast<std::size_t>(*at)];
    const auto count = static_cast<float>(end - at);
    const float penalty = within_range(options_.frequency_penalty * count + options_.presence_penalty);
    if (logit != -kInfinity) logit = within_range(logit - penalty);
    at = end;
  }
}

// xorshift*, as llama2.c has it: the top 24 of 64 bits.
float Sampler::next_coin() {
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  const std::uint64_t bits = (state_ * 0x2545F4914F6CDD1D) >> 40;
  return static_cast<float>(bits) / 16777216.0F;
}

std::int32_t Sampler::draw_from_all(std::span<const float> logits, bool forbids, float coin) const {
  constexpr std::size_t kBlock = 64;  // divided at once
  float p[kBlock];
  float sum = 0.0F;
  for (std::size_t begin = 0; begin < e_.size(); begin += kBlock) {
    const std::size_t count = std::min(kBlock, e_.size() - begin);
    for (std::size_t i = 0; i < count; ++i) p[i] = e_[begin + i] / sum_;
    for (std::size_t i = 0; i < count; ++i) {
      sum += p[i];
      if (coin < sum) return static_cast<std::int32_t>(begin + i);
    }
  }
  // The sum may end a little below 1. llama2.c then takes the last id; here the last that is not forbidden.
  std::size_t last = e_.size() - 1;
  while (logits[last] == -kInfinity || (forbids && e_[last] == 0.0F)) --last;
  return static_cast<std::int32_t>(last);
}

std::int32_t Sampler::draw_from_candidates(std::size_t count, float mass, float coin) const {
  const float target = coin * mass;
  float sum = 0.0F;
  for (std::size_t i = 0; i < count; ++i) {
    sum += candidates_[i].probability;
    if (target < sum) return candidates_[i].id;
  }
  return candidates_[count - 1].id;  // not reached: a coin is at most 1 - 2^-24, so target is below the mass
}

std::int32_t Sampler::draw_by_id(float coin) {
  collect_candidates(options_.min_p * largest_probability());
  return draw_from_candidates(candidates_.size(), sum_of_candidates(), coin);
}

// Top-k, top-p and min-p each keep a prefix of the candidates in descending order, so one walk finds where the
// shortest ends. The first few candidates are sorted, and all of them only if the walk comes further.
std::int32_t Sampler::draw_by_rank(bool top_k_on, bool top_p_on, float coin) {
  std::size_t sorted = 0;
  float least = 0.0F;        // a probability that all of the prefix have
  float enough = kInfinity;  // the walk ends where the sum exceeds it
  if (top_k_on) {
    sorted = static_cast<std::size_t>(options_.top_k);
    collect_candidates(least_of_top(sorted));
    sorted <= kFirstSorted ? sort_first(sorted) : sort_all();
    candidates_.resize(sorted);
    if (top_p_on) enough = options_.top_p * sum_of_candidates();
  } else {
    // What top-p would still take is never less than the mean of what is left. (One id: no mean, the fallback takes it.)
    const auto others = static_cast<float>(e_.size() - 1);
    least = others > 0.0F ? (1.0F - options_.top_p) / others : kInfinity;
    collect_candidates(least);
    if (candidates_.empty()) {
      collect_candidates(largest_probability());
      return candidates_[0].id;
    }
    enough = options_.top_p;
  }

  const auto next = [&](std::size_t rank) {
    if (rank < sorted) return candidates_[rank].probability;
    if (rank == 0) {
      sorted = std::min(candidates_.size(), kFirstSorted);
      sort_first(sorted);
    } else {
      collect_candidates(least);  // in the order of ids again
      sort_all();
      sorted = candidates_.size();
    }
    return candidates_[rank].probability;
  };
  const float lowest = options_.min_p * next(0);
  float mass = 0.0F;
  std::size_t count = 0;
  while (count < candidates_.size() && mass <= enough && next(count) >= lowest)
    mass += candidates_[count++].probability;
  return draw_from_candidates(count, mass, coin);
}

// A probability that at least `count` ids have, and few others: the count-th largest of the blocks' largest.
float Sampler::least_of_top(std::size_t count) {
  constexpr std::size_t kBlock = 64;
  const std::size_t blocks = (e_.size() + kBlock - 1) / kBlock;
  if (count >= blocks) return 0.0F;
  block_largest_.resize(blocks);
  for (std::size_t i = 0; i < blocks; ++i) {
    const std::size_t begin = i * kBlock;
    block_largest_[i] = largest_of(std::span(e_).subspan(begin, std::min(kBlock, e_.size() - begin)));
  }
  const auto at = block_largest_.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(block_largest_.begin(), at, block_largest_.end(), std::greater<>());
  return *at / sum_;
}

// The least e >= 0 with e / sum_ >= p. Quotients rise with e, and positive floats with their bits.
float Sampler::least_exponential(float p) const {
  std::uint32_t low = 0;
  std::uint32_t high = std::bit_cast<std::uint32_t>(kInfinity);
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (std::bit_cast<float>(middle) / sum_ >= p) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return std::bit_cast<float>(low);
}

// The ids that have at least this probability, in the order of ids.
void Sampler::collect_candidates(float least) {
  const float least_e = least_exponential(least);
  candidates_.clear();
  for_each_that(
      e_, [=](float e) { return e >= least_e; },
      [this](std::size_t id, float e) {
        candidates_.push_back({e / sum_, static_cast<std::int32_t>(id)});
      });
}

// Makes the first `count` candidates the most probable, in order; the others have none.
void Sampler::sort_first(std::size_t count) {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
  };
  const auto at = candidates_.begin() + static_cast<std::ptrdiff_t>(count);
  if (count < candidates_.size()) std::nth_element(candidates_.begin(), at, candidates_.end(), before);
  std::sort(candidates_.begin(), at, before);
}

// Puts candidates that are in the order of ids in descending order of probability, equal ones in the order of ids: a
// radix sort, from the lowest digit of their bits to the highest. It costs the same for any distribution.
void Sampler::sort_all() {
  constexpr std::uint32_t kOne = std::bit_cast<std::uint32_t>(1.0F);  // no probability is above it
  constexpr unsigned kBits = 10;                                      // of a digit
  constexpr std::size_t kDigits = 3;
  constexpr std::uint32_t kValues = 1U << kBits;
  static_assert(kOne >> kBits * kDigits == 0);
  const auto digit = [](const Candidate& candidate, std::size_t i) {
    return (kOne - std::bit_cast<std::uint32_t>(candidate.probability)) >> i * kBits & (kValues - 1);
  };
  std::uint32_t begin[kDigits][kValues] = {};  // how many have this digit, then where the next that has it goes
  for (const Candidate& candidate : candidates_) {
    for (std::size_t i = 0; i < kDigits; ++i) ++begin[i][digit(candidate, i)];
  }
  ranked_.resize(candidates_.size());
  for (std::size_t i = 0; i < kDigits; ++i) {
    std::exclusive_scan(begin[i], begin[i] + kValues, begin[i], 0U);
    for (const Candidate& candidate : candidates_) ranked_[begin[i][digit(candidate, i)]++] = candidate;
    candidates_.swap(ranked_);
  }
}

float Sampler::sum_of_candidates() const {
  float sum = 0.0F;
  for (const Candidate& candidate : candidates_) sum += candidate.probability;
  return sum;
}

}  // namespace llama2cpp
