// The input of a matmul as the kernels read it: in tiles of tokens, normalised and, where a weight wants it, rounded.
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "backend/cpu/kernel_table.h"
#include "core/thread_pool.h"
#include "format/format.h"

namespace llama2cpp {

// What a weight wants its input to be.
struct InputForm {
  enum class Kind : std::uint8_t { f32, int8_group, blocks, llm_int8 };

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
struct Input {
  float* f32 = nullptr;             // [columns][n]
  std::int8_t* int8 = nullptr;      // [groups][quads][n][4]
  float* scales = nullptr;          // [groups][n]
  std::int32_t* starts = nullptr;   // [groups][halves][n] minus the sum of the integers
  float* sums = nullptr;            // blocks: [groups][halves][n] scale * the sum of the integers
  float* outliers = nullptr;        // llm_int8: [n][columns], or [fixed][n]
  std::int32_t* columns = nullptr;  // [n][columns], where outliers are each token's own
  std::int32_t* counts = nullptr;   // [n], likewise
};

class InputLayout {
 public:
  InputLayout() = default;
  InputLayout(InputForm form, std::int64_t cols);

  // Memory for an Input of some tokens, a multiple of 64, and for what `put` needs beside it.
  std::int64_t bytes(std::int64_t tokens) const;
  std::int64_t scratch_bytes() const {
    const auto reordered = static_cast<std::int64_t>(form_.order.size_bytes());
    return (integers() ? cols_ + groups_ * 4 : 0) + reordered + (form_.fixed.empty() ? 0 : cols_ * 4);
  }
  Input at(std::byte* memory, std::int64_t tokens) const;

  // The part of one tile from column k on, which is where a step begins, or a block of 32.
  Input tile(const Input& input, std::int64_t all_tokens, Range tokens, std::int64_t k) const;

  // Takes one token (a row of x) to place `t` of the tile with these tokens.
  void put(const KernelTable& kernels, const float* row, const Input& to, std::int64_t all_tokens, Range tokens,
           std::int64_t t, std::byte* scratch) const;

  const InputForm& form() const { return form_; }
  std::int64_t quads() const { return quads_; }

 private:
  // One group's integers q [group], as place `t` of the tile's n, and as its g-th group.
  void put_group(const std::int8_t* q, float scale, const Input& to, std::int64_t n, std::int64_t t, std::int64_t g,
                 bool in_place) const;
  // Outliers of a token, at most.
  std::int64_t outliers() const;
  bool integers() const { return form_.kind != InputForm::Kind::f32; }

  InputForm form_;
  std::int64_t cols_ = 0;
  std::int64_t step_ = 1;   // columns of a step
  std::int64_t group_ = 1;  // columns of a group
  std::int64_t groups_ = 0;
  std::int64_t quads_ = 0;  // of a group
  std::int64_t halves_ = 1;
};

// In the header: a result that is copied whole waits for all that was stored before it.
inline Input InputLayout::tile(const Input& input, std::int64_t all_tokens, Range tokens, std::int64_t k) const {
  // columns of all tokens before this step, of this step before this tile, and of this tile before k
  const std::int64_t step = k / step_ * step_;
  const std::int64_t before =
      step * all_tokens + std::min(step_, cols_ - step) * tokens.begin + (k - step) * (tokens.end - tokens.begin);
  if (!integers()) return {.f32 = input.f32 + before};
  const std::int64_t groups = before / group_;
  if (form_.kind == InputForm::Kind::llm_int8) {
    const bool own = form_.own_outliers();
    return {.int8 = input.int8 + tokens.begin * quads_ * 4,
            .scales = input.scales + tokens.begin,
            .starts = input.starts + tokens.begin,
            .sums = input.sums + tokens.begin,
            .outliers = input.outliers + tokens.begin * outliers(),
            .columns = own ? input.columns + tokens.begin * cols_ : nullptr,
            .counts = own ? input.counts + tokens.begin : nullptr};
  }
  return {.int8 = input.int8 + groups * quads_ * 4,
          .scales = input.scales + groups,
          .starts = input.starts + groups * halves_,
          .sums = input.sums + groups * halves_};
}

}  // namespace llama2cpp
