// The arithmetic is plain and in order, so that a Python hook that says the same in NumPy gives the same bits.
#include "observe/interventions.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace llama2cpp {

Intervention::Intervention(Change change, Address address, Values values)
    : Hook(Kind::edit), change_(change), address_(std::move(address)), values_(std::move(values)) {
  const Values& v = values_;
  LLAMA2CPP_CHECK(static_cast<std::int64_t>(v.numbers.size()) == v.positions * v.heads * v.neurons, "there are ",
                  v.numbers.size(), " values, expected [", v.positions, ", ", v.heads, ", ", v.neurons, "]");
  const auto check = [](std::int64_t count, const std::vector<std::int64_t>& addressed, const char* what) {
    LLAMA2CPP_CHECK(count == 1 || addressed.empty() || count == static_cast<std::int64_t>(addressed.size()),
                    "there are values for ", count, " ", what, ", but ", addressed.size(), " are addressed");
  };
  check(v.positions, address_.positions, "positions");
  LLAMA2CPP_CHECK(v.positions == 1 || !address_.positions.empty(), "values for several positions need their numbers");
  check(v.heads, address_.heads, "heads");
  check(v.neurons, address_.neurons, "neurons");
}

void Intervention::at(Point point, std::int64_t, const Tensor& activation, const HookSpan& span) {
  const bool pattern = is_pattern(point);                 // [heads, T, keys]
  const bool by_head = !pattern && activation.rank == 3;  // [T, heads, width]
  const std::int64_t heads = pattern ? activation.dim(0) : by_head ? activation.dim(1) : 1;
  const std::int64_t width = activation.columns();
  const std::int64_t head_values = values_.heads > 1 ? values_.neurons : 0;  // from a head's values to the next one's
  const std::int64_t row_values = values_.positions > 1 ? values_.heads * values_.neurons : 0;

  const auto change_head = [&](std::int64_t t, std::int64_t head, const double* values) {
    if (head < 0 || head >= heads) return;
    float* const row = activation.row(pattern ? head * span.count + t : t * heads + head);
    change(row, width, values);
  };
  const auto change_token = [&](std::int64_t t, const double* values) {
    if (t < 0 || t >= span.count) return;
    if (address_.heads.empty()) {
      for (std::int64_t head = 0; head < heads; ++head) change_head(t, head, values + head * head_values);
    }
    for (const std::int64_t head : address_.heads) {
      change_head(t, head, values);
      values += head_values;
    }
  };

  const double* values = values_.numbers.data();
  if (address_.positions.empty()) {
    for (std::int64_t t = 0; t < span.count; ++t) change_token(t, values);
  }
  for (const std::int64_t position : address_.positions) {
    change_token(position < 0 ? span.count + position : position - span.position, values);
    values += row_values;
  }
}

void Intervention::change(float* row, std::int64_t width, const double* values) const {
  if (change_ == Change::mask) return mask(row, width);
  const std::int64_t step = values_.neurons > 1 ? 1 : 0;
  const std::vector<std::int64_t>& neurons = address_.neurons;
  // Calls back with each addressed element and its value.
  const auto each = [&](const auto& apply) {
    if (neurons.empty()) {
      const std::int64_t count = step == 0 ? width : std::min(width, values_.neurons);
      for (std::int64_t i = 0; i < count; ++i) apply(row[i], values[i * step]);
    } else {
      for (std::size_t i = 0; i < neurons.size(); ++i) {
        if (neurons[i] < width) apply(row[neurons[i]], values[static_cast<std::int64_t>(i) * step]);
      }
    }
  };
  switch (change_) {
    case Change::set:
      return each([](float& x, double v) { x = static_cast<float>(v); });
    case Change::scale:
      return each([](float& x, double v) { x = x * static_cast<float>(v); });
    case Change::add:
      return each([](float& x, double v) { x = x + static_cast<float>(v); });
    default: {
      double along = 0;
      each([&](float& x, double v) { along += static_cast<double>(x) * v; });
      return each([&](float& x, double v) { x = static_cast<float>(static_cast<double>(x) - along * v); });
    }
  }
}

void Intervention::mask(float* row, std::int64_t width) const {
  if (address_.neurons.empty()) std::fill(row, row + width, 0.0F);
  for (const std::int64_t neuron : address_.neurons) {
    if (neuron < width) row[neuron] = 0.0F;
  }
  double sum = 0;
  for (std::int64_t i = 0; i < width; ++i) sum += static_cast<double>(row[i]);
  if (sum == 0) return;
  for (std::int64_t i = 0; i < width; ++i) row[i] = static_cast<float>(static_cast<double>(row[i]) / sum);
}

}  // namespace llama2cpp
