// The input of a matmul as the kernels read it: in tiles of tokens, normalised and, where a weight wants it, rounded.
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "backend/cpu/arena.h"
#include "backend/cpu/kernel_table.h"
#include "core/thread_pool.h"
#include "format/format.h"

namespace llama2cpp {

// What a weight wants its input to be.
struct InputForm {
  enum class Kind : std::uint8_t { f32, bf16, int8_group, blocks, llm_int8 };

  Kind kind = Kind::f32;
  std::int64_t group = 0;                 // int8_group: columns that share a scale; llm_int8: all of them
  std::int64_t halves = 0;                // blocks: sums for each 32 columns
  std::span<const std::int32_t> order{};  // the column at each place; empty: as they lie
  // llm_int8: what is above the limit is an outlier; or these columns are, whatever they hold.
  float limit = std::numeric_limits<float>::infinity();
  std::span<const std::int32_t> fixed{};

  bool operator==(const InputForm& other) const;
  bool own_outliers() const { return limit < std::numeric_limits<float>::infinity(); }
};

InputForm input_form(const Weight& weight);
// Columns that kernels go through at once, for weights that take this form: whole groups.
std::int64_t step_cols(const InputForm& form);

// How T tokens are cut into tiles of at most `most`: as evenly as can be.
struct Tiles {
  std::int64_t tokens;
  std::int64_t count;
  Tiles(std::int64_t total, std::int64_t most) : tokens(total), count((total + most - 1) / most) {}
  Range of(std::int64_t tile) const { return {tokens * tile / count, tokens * (tile + 1) / count}; }
};

// All tiles' columns of one step (what kernels go through at once) lie together, so that they stream past the weights:
// [steps][tiles] of what follows, for a tile of n tokens. In the form `blocks` there is one step, and a group is a block of
// 32.
struct InputParts {
  float* f32 = nullptr;             // [columns][n]
  std::uint32_t* pairs = nullptr;   // bf16: [pairs][n], the even column in the lower half
  std::int8_t* int8 = nullptr;      // [groups][quads][n][4]; blocks: [groups][n][32]
  float* scales = nullptr;          // [groups][n]
  std::int32_t* starts = nullptr;   // [groups][halves][n] minus the sum of the integers
  float* sums = nullptr;            // blocks: [groups][halves][n] scale * the sum of the integers
  float* outliers = nullptr;        // llm_int8: [n][columns], or [fixed][n]
  std::int32_t* columns = nullptr;  // [n][columns], where outliers are each token's own
  std::int32_t* counts = nullptr;   // [n], likewise
};

// A matmul's input in one form: the whole of it, or the part of one worker that has its own.
class MatmulInput {
 public:
  MatmulInput() = default;
  MatmulInput(InputForm form, std::int64_t cols, std::int64_t tokens);

  // Memory for all tokens, a multiple of 64, and for what `put` needs beside it.
  std::int64_t bytes() const;
  std::int64_t scratch_bytes() const;
  // Takes that memory for its parts.
  void use(std::byte* memory);
  // For one token whose row is as it should be: it is a tile already.
  void use_row(float* row) { parts_.f32 = row; }

  // The part of one tile from column k on, which is where a step begins, or a block of 32.
  InputParts tile(Range tokens, std::int64_t k) const;

  // Takes one token (a row of x) to place t of the tile with `tokens`.
  void put(const KernelTable& kernels, const float* row, Range tokens, std::int64_t t, std::byte* scratch) const;

  const InputForm& form() const { return form_; }
  std::int64_t quads() const { return quads_; }

 private:
  // What put() does not do in place.
  struct Scratch {
    float* ordered;       // [cols] where the weight has an order
    float* others;        // [cols] where it has fixed outliers
    float* scales;        // [groups]
    std::int8_t* q;       // [cols]
    std::uint16_t* bf16;  // [cols, and one if that is odd]
  };
  Scratch carve(Arena& arena) const;

  void put_floats(const float* row, Range tokens, std::int64_t t) const;
  void put_pairs(const KernelTable& kernels, const float* row, Range tokens, std::int64_t t, std::uint16_t* bf16) const;
  void put_blocks(const KernelTable& kernels, const float* row, Range tokens, std::int64_t t) const;
  void put_integers(const KernelTable& kernels, const float* row, Range tokens, std::int64_t t,
                    const Scratch& scratch) const;
  // One group's integers q [group], as place t of the tile's n, and as the g-th group of `to`.
  void put_group(const std::int8_t* q, float scale, const InputParts& to, std::int64_t n, std::int64_t t,
                 std::int64_t g, bool in_place) const;
  // Outliers of a token, at most.
  std::int64_t outliers() const;
  bool in_pairs() const { return form_.kind == InputForm::Kind::bf16; }
  bool integers() const { return form_.kind != InputForm::Kind::f32 && !in_pairs(); }

  InputForm form_;
  std::int64_t cols_ = 0;
  std::int64_t tokens_ = 0;  // all
  std::int64_t step_ = 1;    // columns of a step
  std::int64_t group_ = 1;   // columns of a group
  std::int64_t groups_ = 0;
  std::int64_t quads_ = 0;  // of a group
  std::int64_t halves_ = 1;
  InputParts parts_;
};

// In the header: a result that is copied whole waits for all that was stored before it.
inline InputParts MatmulInput::tile(Range tokens, std::int64_t k) const {
  // columns of all tokens before this step, of this step before this tile, and of this tile before k
  const std::int64_t step = k / step_ * step_;
  if (in_pairs()) {  // the same in pairs; only the last of all may lack a column
    const std::int64_t pairs = (std::min(step_, cols_ - step) + 1) / 2;
    return {.pairs = parts_.pairs + step / 2 * tokens_ + pairs * tokens.begin +
                     (k - step) / 2 * (tokens.end - tokens.begin)};
  }
  const std::int64_t before =
      step * tokens_ + std::min(step_, cols_ - step) * tokens.begin + (k - step) * (tokens.end - tokens.begin);
  if (!integers()) return {.f32 = parts_.f32 + before};
  const std::int64_t groups = before / group_;
  if (form_.kind == InputForm::Kind::llm_int8) {
    const bool own = form_.own_outliers();
    return {.int8 = parts_.int8 + tokens.begin * quads_ * 4,
            .scales = parts_.scales + tokens.begin,
            .starts = parts_.starts + tokens.begin,
            .sums = parts_.sums + tokens.begin,
            .outliers = parts_.outliers + tokens.begin * outliers(),
            .columns = own ? parts_.columns + tokens.begin * cols_ : nullptr,
            .counts = own ? parts_.counts + tokens.begin : nullptr};
  }
  return {.int8 = parts_.int8 + groups * quads_ * 4,
          .scales = parts_.scales + groups,
          .starts = parts_.starts + groups * halves_,
          .sums = parts_.sums + groups * halves_};
}

}  // namespace llama2cpp
