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

InputLayout::InputLayout(InputForm form, std::int64_t cols) : form_(form), cols_(cols), step_(step_cols(form)) {
  if (!integers()) return;
  if (form.kind == InputForm::Kind::blocks) step_ = cols;  // kernels take any number of blocks
  group_ = form.group;
  groups_ = cols / group_;
  quads_ = quads_of(group_);
  halves_ = form.halves;
}

std::int64_t InputLayout::bytes(std::int64_t tokens) const {
  const std::int64_t own = form_.own_outliers() ? 4 + 8 * outliers() : 4 * outliers();
  const std::int64_t token = integers() ? groups_ * (4 + halves_ * 8 + quads_ * 4) + own : cols_ * 4;
  return (tokens * token + 63) / 64 * 64;
}

Input InputLayout::at(std::byte* memory, std::int64_t tokens) const {
  Input input;
  if (!integers()) {
    input.f32 = reinterpret_cast<float*>(memory);
    return input;
  }
  input.scales = reinterpret_cast<float*>(memory);
  input.sums = input.scales + groups_ * tokens;
  input.starts = reinterpret_cast<std::int32_t*>(input.sums + groups_ * halves_ * tokens);
  input.outliers = reinterpret_cast<float*>(input.starts + groups_ * halves_ * tokens);
  std::int32_t* next = reinterpret_cast<std::int32_t*>(input.outliers + outliers() * tokens);
  if (form_.own_outliers()) {
    input.columns = next;
    input.counts = input.columns + outliers() * tokens;
    next = input.counts + tokens;
  }
  input.int8 = reinterpret_cast<std::int8_t*>(next);
  return input;
}

std::int64_t InputLayout::outliers() const {
  if (form_.own_outliers()) return cols_;
  return static_cast<std::int64_t>(form_.fixed.size());
}

void InputLayout::put(const KernelTable& kernels, const float* row, const Input& to, std::int64_t all_tokens,
                      Range tokens, std::int64_t t, std::byte* scratch) const {
  const std::int64_t n = tokens.end - tokens.begin;
  if (!form_.order.empty()) {
    auto* const ordered = reinterpret_cast<float*>(scratch);
    for (std::size_t i = 0; i < form_.order.size(); ++i) ordered[i] = row[form_.order[i]];
    row = ordered;
    scratch += form_.order.size_bytes();
  }
  if (!integers()) {
    for (std::int64_t begin = 0; begin < cols_; begin += step_) {
      float* out = tile(to, all_tokens, tokens, begin).f32 + t;
      for (std::int64_t k = begin; k < std::min(begin + step_, cols_); ++k, out += n) *out = row[k];
    }
    return;
  }
  if (!form_.fixed.empty()) {
    auto* const others = reinterpret_cast<float*>(scratch);
    std::copy_n(row, cols_, others);
    float* out = tile(to, all_tokens, tokens, 0).outliers + t;
    for (const std::int32_t column : form_.fixed) {
      *out = std::exchange(others[column], 0.0F);
      out += n;
    }
    row = others;
    scratch += cols_ * 4;
  }
  if (form_.kind == InputForm::Kind::blocks) {
    const Input part = tile(to, all_tokens, tokens, 0);
    return kernels.quantize_blocks({.x = row,
                                    .blocks = groups_,
                                    .halves = halves_,
                                    .n_tokens = n,
                                    .q = part.int8 + t * 4,
                                    .scales = part.scales + t,
                                    .starts = part.starts + t,
                                    .sums = part.sums + t});
  }
  const bool in_place = all_tokens == 1 && group_ % 4 == 0;
  auto* const q_scales = reinterpret_cast<float*>(scratch);
  auto* const q = in_place ? to.int8 : reinterpret_cast<std::int8_t*>(q_scales + groups_);
  if (form_.kind == InputForm::Kind::llm_int8) {
    const Input part = tile(to, all_tokens, tokens, 0);
    const bool own = form_.own_outliers();
    const std::int64_t count = kernels.quantize_row({.x = row,
                                                     .n = cols_,
                                                     .limit = form_.limit,
                                                     .q = q,
                                                     .scale = q_scales,
                                                     .columns = own ? part.columns + t * cols_ : nullptr,
                                                     .outliers = own ? part.outliers + t * cols_ : nullptr});
    if (own) part.counts[t] = static_cast<std::int32_t>(count);
  } else {
    kernels.quantize(row, groups_, group_, q, q_scales);
  }
  for (std::int64_t begin = 0; begin < cols_; begin += step_) {
    const Input part = tile(to, all_tokens, tokens, begin);
    const std::int64_t first = begin / group_;
    const std::int64_t count = std::min(step_, cols_ - begin) / group_;
    for (std::int64_t g = 0; g < count; ++g) {
      put_group(q + (first + g) * group_, q_scales[first + g], part, n, t, g, in_place);
    }
  }
}

void InputLayout::put_group(const std::int8_t* q, float scale, const Input& to, std::int64_t n, std::int64_t t,
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
