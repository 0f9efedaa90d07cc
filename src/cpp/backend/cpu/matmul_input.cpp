// Laying out a matmul's input: which form a weight wants, where its parts are, and putting tokens in their places.
#include "backend/cpu/matmul_input.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "backend/cpu/panels.h"
#include "format/llm_int8.h"

namespace llama2cpp {

InputForm input_form(const Weight& weight) {
  const bool blocks = panel_form(weight) == PanelForm::blocks;
  InputForm form;
  if (blocks && weight.order) {
    form.order = {reinterpret_cast<const std::int32_t*>(weight.order.data()), static_cast<std::size_t>(weight.cols)};
  }
  if (panel_form(weight) == PanelForm::bf16_pairs) form.kind = InputForm::Kind::bf16;
  if (!weight.int8_input) return form;
  if (panel_form(weight) == PanelForm::llm_int8) {
    form.kind = InputForm::Kind::llm_int8;
    form.group = weight.cols;
    form.halves = 1;
    form.fixed = fixed_outliers(weight);
    if (form.fixed.empty() && weight.outlier_threshold > 0.0F) {
      form.limit = std::nextafter(weight.outlier_threshold, 0.0F);
    }
    return form;
  }
  form.kind = blocks ? InputForm::Kind::blocks : InputForm::Kind::int8_group;
  form.group = blocks ? kBlockCols : weight.group;
  form.halves = blocks ? weight.format->blocks.halves : 1;
  return form;
}

bool InputForm::operator==(const InputForm& other) const {
  return kind == other.kind && group == other.group && halves == other.halves && limit == other.limit &&
         std::ranges::equal(order, other.order) && std::ranges::equal(fixed, other.fixed);
}

std::int64_t step_cols(const InputForm& form) {
  if (form.kind == InputForm::Kind::llm_int8) return form.group;
  if (form.kind != InputForm::Kind::int8_group) return kBlock;
  return std::max(std::int64_t{1}, 4 * kBlock / form.group) * form.group;
}

MatmulInput::MatmulInput(InputForm form, std::int64_t cols, std::int64_t tokens)
    : form_(form), cols_(cols), tokens_(tokens), step_(step_cols(form)) {
  if (!integers()) return;
  if (form.kind == InputForm::Kind::blocks) step_ = cols;  // kernels take any number of blocks
  group_ = form.group;
  groups_ = cols / group_;
  quads_ = quads_of(group_);
  halves_ = form.halves;
}

std::int64_t MatmulInput::bytes() const {
  if (in_pairs()) return (tokens_ * ((cols_ + 1) / 2) * 4 + 63) / 64 * 64;
  const std::int64_t own = form_.own_outliers() ? 4 + 8 * outliers() : 4 * outliers();
  const std::int64_t token = integers() ? groups_ * (4 + halves_ * 8 + quads_ * 4) + own : cols_ * 4;
  return (tokens_ * token + 63) / 64 * 64;
}

void MatmulInput::use(std::byte* memory) {
  InputParts& parts = parts_;
  if (in_pairs()) {
    parts.pairs = reinterpret_cast<std::uint32_t*>(memory);
    return;
  }
  if (!integers()) {
    parts.f32 = reinterpret_cast<float*>(memory);
    return;
  }
  parts.scales = reinterpret_cast<float*>(memory);
  parts.sums = parts.scales + groups_ * tokens_;
  parts.starts = reinterpret_cast<std::int32_t*>(parts.sums + groups_ * halves_ * tokens_);
  parts.outliers = reinterpret_cast<float*>(parts.starts + groups_ * halves_ * tokens_);
  std::int32_t* next = reinterpret_cast<std::int32_t*>(parts.outliers + outliers() * tokens_);
  if (form_.own_outliers()) {
    parts.columns = next;
    parts.counts = parts.columns + outliers() * tokens_;
    next = parts.counts + tokens_;
  }
  parts.int8 = reinterpret_cast<std::int8_t*>(next);
}

std::int64_t MatmulInput::outliers() const {
  if (form_.own_outliers()) return cols_;
  return static_cast<std::int64_t>(form_.fixed.size());
}

MatmulInput::Scratch MatmulInput::carve(Arena& arena) const {
  return {.ordered = arena.take<float>(static_cast<std::int64_t>(form_.order.size())),
          .others = arena.take<float>(form_.fixed.empty() ? 0 : cols_),
          .scales = arena.take<float>(groups_),
          .q = arena.take<std::int8_t>(integers() ? cols_ : 0),
          .bf16 = arena.take<std::uint16_t>(in_pairs() ? (cols_ + 1) / 2 * 2 : 0)};
}

std::int64_t MatmulInput::scratch_bytes() const {
  Arena arena;
  carve(arena);
  return arena.used();
}

void MatmulInput::put(const KernelTable& kernels, const float* row, Range tokens, std::int64_t t,
                      std::byte* memory) const {
  Arena arena(memory);
  const Scratch scratch = carve(arena);
  if (!form_.order.empty()) {
    for (std::size_t i = 0; i < form_.order.size(); ++i) scratch.ordered[i] = row[form_.order[i]];
    row = scratch.ordered;
  }
  if (in_pairs()) return put_pairs(kernels, row, tokens, t, scratch.bf16);
  if (!integers()) return put_floats(row, tokens, t);
  if (!form_.fixed.empty()) {
    std::copy_n(row, cols_, scratch.others);
    const std::int64_t n = tokens.end - tokens.begin;
    float* out = tile(tokens, 0).outliers + t;
    for (const std::int32_t column : form_.fixed) {
      *out = std::exchange(scratch.others[column], 0.0F);
      out += n;
    }
    row = scratch.others;
  }
  if (form_.kind == InputForm::Kind::blocks) return put_blocks(kernels, row, tokens, t);
  put_integers(kernels, row, tokens, t, scratch);
}

void MatmulInput::put_floats(const float* row, Range tokens, std::int64_t t) const {
  const std::int64_t n = tokens.end - tokens.begin;
  for (std::int64_t begin = 0; begin < cols_; begin += step_) {
    float* out = tile(tokens, begin).f32 + t;
    for (std::int64_t k = begin; k < std::min(begin + step_, cols_); ++k, out += n) *out = row[k];
  }
}

void MatmulInput::put_pairs(const KernelTable& kernels, const float* row, Range tokens, std::int64_t t,
                            std::uint16_t* bf16) const {
  if (cols_ % 2 != 0) bf16[cols_] = 0;
  kernels.narrow_bf16(row, bf16, cols_);
  const std::int64_t n = tokens.end - tokens.begin;
  for (std::int64_t begin = 0; begin < cols_; begin += step_) {
    std::uint32_t* out = tile(tokens, begin).pairs + t;
    for (std::int64_t k = begin; k < std::min(begin + step_, cols_); k += 2, out += n) std::memcpy(out, bf16 + k, 4);
  }
}

void MatmulInput::put_blocks(const KernelTable& kernels, const float* row, Range tokens, std::int64_t t) const {
  const InputParts part = tile(tokens, 0);
  kernels.quantize_blocks({.x = row,
                           .blocks = groups_,
                           .halves = halves_,
                           .n_tokens = tokens.end - tokens.begin,
                           .q = part.int8 + t * kBlockCols,
                           .scales = part.scales + t,
                           .starts = part.starts + t,
                           .sums = part.sums + t});
}

void MatmulInput::put_integers(const KernelTable& kernels, const float* row, Range tokens, std::int64_t t,
                               const Scratch& scratch) const {
  const std::int64_t n = tokens.end - tokens.begin;
  const bool in_place = tokens_ == 1 && group_ % 4 == 0;
  std::int8_t* const q = in_place ? parts_.int8 : scratch.q;
  if (form_.kind == InputForm::Kind::llm_int8) {
    const InputParts part = tile(tokens, 0);
    const bool own = form_.own_outliers();
    const std::int64_t count = kernels.quantize_row({.x = row,
                                                     .n = cols_,
                                                     .limit = form_.limit,
                                                     .q = q,
                                                     .scale = scratch.scales,
                                                     .columns = own ? part.columns + t * cols_ : nullptr,
                                                     .outliers = own ? part.outliers + t * cols_ : nullptr});
    if (own) part.counts[t] = static_cast<std::int32_t>(count);
  } else {
    kernels.quantize(row, groups_, group_, q, scratch.scales);
  }
  for (std::int64_t begin = 0; begin < cols_; begin += step_) {
    const InputParts part = tile(tokens, begin);
    const std::int64_t first = begin / group_;
    const std::int64_t count = std::min(step_, cols_ - begin) / group_;
    for (std::int64_t g = 0; g < count; ++g) {
      put_group(q + (first + g) * group_, scratch.scales[first + g], part, n, t, g, in_place);
    }
  }
}

void MatmulInput::put_group(const std::int8_t* q, float scale, const InputParts& to, std::int64_t n, std::int64_t t,
                            std::int64_t g, bool in_place) const {
  to.scales[g * n + t] = scale;
  std::int32_t sum = 0;
  for (std::int64_t k = 0; k < group_; ++k) sum += q[k];
  to.starts[g * n + t] = -sum;
  if (in_place) return;
  std::int8_t* values = to.int8 + (g * quads_ * n + t) * 4;
  const std::int64_t whole = group_ / 4 * 4;
  for (std::int64_t k = 0; k < whole; k += 4, values += 4 * n) std::memcpy(values, q + k, 4);
  if (whole == group_) return;
  std::memset(values, 0, 4);  // the last quad is filled up
  std::memcpy(values, q + whole, static_cast<std::size_t>(group_ - whole));
}

}  // namespace llama2cpp
