// A pass brings some of the tokens: rows go to their places, and masked keys beyond the pass are filled in.
#include "observe/capture.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "core/check.h"

namespace llama2cpp {

Capture::Capture(const Config& config, std::vector<Place> places, std::int64_t sequences, std::int64_t tokens,
                 std::vector<std::int64_t> rows)
    : Hook(Kind::look),
      n_layers_(config.n_layers),
      tokens_(tokens),
      rows_(std::move(rows)),
      all_rows_(rows_.empty()),
      index_(static_cast<std::size_t>(config.n_layers * kPoints), -1) {
  if (all_rows_) {
    rows_.resize(static_cast<std::size_t>(tokens));
    std::iota(rows_.begin(), rows_.end(), 0);
  }
  for (const std::int64_t row : rows_) {
    LLAMA2CPP_CHECK(row >= 0 && row < tokens, "a position is ", row, ", expected 0 to ", tokens - 1);
  }
  const auto kept = static_cast<std::int64_t>(rows_.size());
  for (const Place& place : places) {
    const PointShape shape = point_shape(place.point, config);
    Slot slot{place, {sequences, kept}, floats_};
    if (is_pattern(place.point)) {
      slot.shape = {sequences, shape.heads, kept, tokens};
    } else if (shape.heads > 0) {
      slot.shape.insert(slot.shape.end(), {shape.heads, shape.width});
    } else {
      slot.shape.push_back(shape.width);
    }
    std::int64_t size = 1;
    for (const std::int64_t n : slot.shape) {
      if (n > 0 && size > std::numeric_limits<std::int64_t>::max() / 8 / n) {
        throw std::length_error("the activations are larger than any memory");
      }
      size *= n;
    }
    floats_ += (size + 15) / 16 * 16;  // each begins on a cache line
    if (floats_ > std::numeric_limits<std::int64_t>::max() / 8) {
      throw std::length_error("the activations are larger than any memory");
    }
    index_[static_cast<std::size_t>(place.layer * kPoints + static_cast<int>(place.point))] =
        static_cast<std::int32_t>(slots_.size());
    slots_.push_back(std::move(slot));
  }
}

PlaceSet Capture::places() const {
  PlaceSet set(n_layers_);
  for (const Slot& slot : slots_) set.add(slot.place);
  return set;
}

const Capture::Slot& Capture::slot(Point point, std::int64_t layer) const {
  return slots_[static_cast<std::size_t>(index_[static_cast<std::size_t>(layer * kPoints + static_cast<int>(point))])];
}

void Capture::keep_halves() {
  halves_ = true;
  for (const Slot& slot : slots_) {
    LLAMA2CPP_CHECK(!is_pattern(slot.place.point), point_name(slot.place.point, slot.place.layer),
                    " is not kept in halves");
  }
}

void Capture::keep(const float* from, std::int64_t to, std::int64_t count) {
  if (!halves_) {
    std::copy_n(from, count, static_cast<float*>(memory_) + to);
    return;
  }
  std::uint16_t* const halves = static_cast<std::uint16_t*>(memory_) + to;
  backend_->narrow(from, halves, count);
  constexpr unsigned kInfinite = 0x7C00;
  unsigned largest = 0;  // of those that are numbers or infinite; what is above is no number
  for (std::int64_t i = 0; i < count; ++i) {
    const unsigned size = halves[i] & 0x7FFFU;
    largest = std::max(largest, size > kInfinite ? 0U : size);
  }
  if (largest < kInfinite) return;
  for (std::int64_t i = 0; i < count; ++i) {
    if ((halves[i] & 0x7FFFU) == kInfinite && !std::isinf(from[i])) overflowed_ = true;
  }
}

void Capture::at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) {
  const Slot& to = slot(point, layer);
  const auto kept = static_cast<std::int64_t>(rows_.size());
  const auto sequence = static_cast<std::int64_t>(span.sequence) - first_;
  const std::int64_t end = span.position + span.count;

  const auto bytes_of = [](std::int64_t floats) { return floats * static_cast<std::int64_t>(sizeof(float)); };

  if (is_pattern(point)) {
    const std::int64_t heads = to.shape[1];
    const float masked = point == Point::attn_scores ? -std::numeric_limits<float>::infinity() : 0.0F;
    const auto copy_rows = [&](std::int64_t first, std::int64_t last) {  // of [heads, kept]
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t position = rows_[static_cast<std::size_t>(i % kept)];
        if (position < span.position || position >= end) continue;
        float* const row = static_cast<float*>(memory_) + to.begin + (sequence * heads * kept + i) * tokens_;
        std::copy_n(activation.row(i / kept * span.count + position - span.position), end, row);
        std::fill(row + end, row + tokens_, masked);
      }
    };
    return backend_->parallel_for(heads * kept, bytes_of(heads * kept * tokens_), copy_rows);
  }

  const std::int64_t width = activation.rows() * activation.columns() / span.count;  // floats of a token
  const std::int64_t first = to.begin + sequence * kept * width;
  const float* const from = activation.row(0);
  if (all_rows_) {
    return backend_->parallel_for(span.count, bytes_of(span.count * width), [&](std::int64_t begin, std::int64_t last) {
      keep(from + begin * width, first + (span.position + begin) * width, (last - begin) * width);
    });
  }
  for (std::int64_t r = 0; r < kept; ++r) {
    const std::int64_t position = rows_[static_cast<std::size_t>(r)];
    if (position < span.position || position >= end) continue;
    keep(from + (position - span.position) * width, first + r * width, width);
  }
}

}  // namespace llama2cpp
