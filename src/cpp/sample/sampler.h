// Sampler: logits -> id. Knows no session and no tokenizer. With top_k, min_p and the penalty off it is llama2.c's,
// draw for draw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace llama2cpp {

struct SamplerOptions {
  float temperature = 1.0F;         // 0: the largest logit, no random number is drawn
  float top_p = 0.9F;               // <= 0 or >= 1: off
  std::int64_t top_k = 0;           // 0, or not below the size of the vocabulary: off
  float min_p = 0.0F;               // 0 to 1; 0: off
  float repetition_penalty = 1.0F;  // above 0; 1: off
  std::uint64_t seed = 0;           // any; equal seeds give equal draws
  float presence_penalty = 0.0F;    // finite; 0: off
  float frequency_penalty = 0.0F;   // finite; 0: off
  // What is added to the logits of ids: finite, or -inf, which forbids one. Ids in ascending order, each once.
  std::vector<std::pair<std::int32_t, float>> logit_bias = {};
};

// What one draw is given beside logits.
struct SampleInput {
  std::span<const std::int32_t> history = {};  // the ids that penalties apply to, repeated or not
  std::size_t prompt_tokens = 0;  // how many of them are the prompt's, which presence and frequency do not count
  // One bit for each id, bit id % 32 of word id / 32: whether it may be drawn. Further bits do not matter; empty: all may.
  std::span<const std::uint32_t> mask = {};
};

// The rule. All arithmetic is f32, sums run in the order named, ties go to the lower id.
//   1. penalty      once per distinct id of the history: a positive logit is divided by it, any other multiplied.
//                   What leaves the range of f32 becomes its largest value: a penalty neither forbids nor forces.
//                   Then, for each distinct id of the history behind the prompt, minus (frequency * how often it is
//                   there + presence); then the bias of each id is added; and the mask forbids ids. The same range holds.
//   2. temperature  0: the id of the largest logit, and that is all. Else logits are divided by it.
//   3. softmax      p = exp(logit - largest) / sum, the sum in the order of ids.
//   4. coin         one number in [0, 1) from the generator, whatever the options.
//   5. top-k        the k most probable ids.
//   6. top-p        of those, from the most probable on, as many as it takes to exceed top_p * mass. The mass is the sum
//                   of step 5's k probabilities from the largest on, and exactly 1 without top-k, as in llama2.c. As
//                   there, without top-k ids below (1 - top_p) / (vocab_size - 1) are left out first; where rounding
//                   leaves none, the most probable id is it.
//   7. min-p        of those, the ones with p >= min_p * (the largest p).
//   8. draw         the first id whose running sum of p exceeds coin * (the sum of what is left), in descending order
//                   of p if top-k or top-p is on, in the order of ids if not. With nothing on at all: exceeds coin.
// Probabilities are never divided again after step 3: steps 6 and 8 compare with what is left instead.
// A logit of -inf forbids its id, which is never drawn. NaN, +inf and nothing but -inf are errors.
//
// exp is the GNU C library's expf, computed by ourselves (sample/exponentials.h): so a text is llama2.c's where that is
// linked with this library, and the same on every system.
class Sampler {
 public:
  // Throws std::invalid_argument, with the value, for NaN, infinite and negative options (top_p may be negative).
  explicit Sampler(const SamplerOptions& options);

  // `logits` [vocab_size] are not changed. Throws std::invalid_argument for an empty or bad array of logits, for ids
  // outside the vocabulary, a mask that is too short, and where every id is forbidden; then the generator has not moved.
  std::int32_t sample(std::span<const float> logits, const SampleInput& input = {});

  const SamplerOptions& options() const { return options_; }

  // The generator's state, never 0: a sampler that is given another's goes on as that one would.
  std::uint64_t state() const { return state_; }
  void set_state(std::uint64_t state);

 private:
  struct Candidate {
    float probability;
    std::int32_t id;
  };

  bool adjusts(const SampleInput& input) const;
  std::span<const float> adjusted(std::span<const float> logits, const SampleInput& input);
  void penalise_repetition(std::span<const std::int32_t> history);
  void penalise_text(std::span<const std::int32_t> text);
  float next_coin();
  std::int32_t draw_from_all(std::span<const float> logits, bool forbids, float coin) const;
  std::int32_t draw_by_id(float coin);
  std::int32_t draw_by_rank(bool top_k_on, bool top_p_on, float coin);
  float largest_probability() const { return 1.0F / sum_; }  // exp(0) is 1
  float least_of_top(std::size_t count);
  float least_exponential(float p) const;
  void collect_candidates(float least);
  void sort_first(std::size_t count);
  void sort_all();
  float sum_of_candidates() const;
  std::int32_t draw_from_candidates(std::size_t count, float mass, float coin) const;

  SamplerOptions options_;
  std::uint64_t state_;
  std::vector<float> e_;               // scratch [vocab_size]: exp(logit - largest); before that, adjusted logits
  float sum_ = 1.0F;                   // of them: p is e / sum
  std::vector<Candidate> candidates_;  // scratch, at most [vocab_size]
  std::vector<Candidate> ranked_;      // scratch, at most [vocab_size]: what sort_all writes to
  std::vector<float> block_largest_;   // scratch, for top-k
  std::vector<bool> penalised_;        // scratch [vocab_size]
  std::vector<std::int32_t> text_;     // scratch: the history behind the prompt, in the order of ids
};

}  // namespace llama2cpp
