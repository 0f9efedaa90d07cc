// Sampler: logits -> id. Knows no session and no tokenizer. With top_k, min_p and the penalty off it is llama2.c's,
// draw for draw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace llama2cpp {

struct SamplerOptions {
  float temperature = 1.0F;         // 0: the largest logit, no random number is drawn
  float top_p = 0.9F;               // <= 0 or >= 1: off
  std::int64_t top_k = 0;           // 0, or not below the size of the vocabulary: off
  float min_p = 0.0F;               // 0 to 1; 0: off
  float repetition_penalty = 1.0F;  // above 0; 1: off
  std::uint64_t seed = 0;           // any; equal seeds give equal draws
};

// The rule. All arithmetic is f32, sums run in the order named, ties go to the lower id.
//   1. penalty      once per distinct id of the history: a positive logit is divided by it, any other multiplied.
//                   What leaves the range of f32 becomes its largest value: a penalty neither forbids nor forces.
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

  // `logits` [vocab_size] are not changed; `history` are the ids that the penalty applies to, repeated or not.
  // Throws std::invalid_argument for an empty or bad array of logits and for ids outside the vocabulary; then the
  // generator has not moved.
  std::int32_t sample(std::span<const float> logits, std::span<const std::int32_t> history = {});

  const SamplerOptions& options() const { return options_; }

  // The generator's state, never 0: a sampler that is given another's goes on as that one would.
  std::uint64_t state() const { return state_; }
  void set_state(std::uint64_t state);

 private:
  struct Candidate {
    float probability;
    std::int32_t id;
  };

  std::span<const float> penalised(std::span<const float> logits, std::span<const std::int32_t> history);
  float next_coin();
  std::int32_t draw_from_all(std::span<const float> logits, float coin) const;
  std::int32_t draw_by_id(float coin);
  std::int32_t draw_by_rank(bool top_k_on, bool top_p_on, float coin);
  float largest_probability() const { return 1.0F / sum_; }  // exp(0) is 1
  float least_of_top(std::size_t count);
  float least_exponential(float p) const;
  void collect_candidates(float least);
  void sort_candidates(std::size_t sorted, std::size_t wanted);
  float sum_of_candidates() const;
  std::int32_t draw_from_candidates(std::size_t count, float mass, float coin) const;

  SamplerOptions options_;
  std::uint64_t state_;
  std::vector<float> e_;               // scratch [vocab_size]: exp(logit - largest); before that, penalised logits
  float sum_ = 1.0F;                   // of them: p is e / sum
  std::vector<Candidate> candidates_;  // scratch, at most [vocab_size]
  std::vector<float> block_largest_;   // scratch, for top-k
  std::vector<bool> penalised_;        // scratch [vocab_size]
};

}  // namespace llama2cpp
