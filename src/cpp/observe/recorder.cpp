// Memory comes in blocks. Rows hold their block, so it goes when the last row of it does, and arrays are copies.
#include "observe/recorder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>

#include "core/check.h"
#include "core/memory_needs.h"

namespace llama2cpp {
namespace {

constexpr double kBlock = 4 << 20;  // bytes: dozens of tokens, of which the system hears once

// A row begins on a cache line.
std::int64_t aligned(std::int64_t floats) { return (floats + 15) / 16 * 16; }

bool in_last_norm(Point point) { return point == Point::ln_final_scale || point == Point::ln_final_normalized; }

}  // namespace

Track::Rows Track::rows() const {
  const std::lock_guard lock(lock_);
  return rows_;
}

std::size_t Track::size() const {
  const std::lock_guard lock(lock_);
  return rows_.rows.size();
}

std::shared_ptr<Track> Track::fork() const {
  auto copy = std::make_shared<Track>();
  copy->rows_ = rows();
  return copy;
}

Recorder::Recorder(const Config& config, std::vector<Place> places)
    : config_(config),
      n_heads_(config.n_heads),
      places_(std::move(places)),
      index_(static_cast<std::size_t>(config.n_layers * kPoints), -1) {
  for (const Place& place : places_) {
    std::int32_t& index = index_[static_cast<std::size_t>(place.layer * kPoints + static_cast<int>(place.point))];
    LLAMA2CPP_CHECK(index < 0, point_name(place.point, place.layer), " is named twice");
    index = static_cast<std::int32_t>(slots_.size());
    const PointShape shape = point_shape(place.point, config);
    Slot slot{fixed_floats_, 0, shape.width * std::max<std::int64_t>(shape.heads, 1)};
    if (is_pattern(place.point)) slot = {0, patterns_++, 0};
    fixed_floats_ += slot.width;
    slots_.push_back(slot);
  }
  for (Slot& slot : slots_) {
    if (slot.width == 0) slot.begin = fixed_floats_;
  }
}

std::int64_t Recorder::row_floats(std::int64_t position) const {
  return aligned(fixed_floats_ + patterns_ * n_heads_ * (position + 1));
}

double Recorder::bytes(std::int64_t begin, std::int64_t count) const {
  // No sum: `count` may be a number that nobody would count to. A row's rounding takes 15 floats at most.
  const auto n = static_cast<double>(count);
  const double keys = n * static_cast<double>(begin) + n * (n + 1) / 2;  // of all tokens
  const double floats = n * static_cast<double>(fixed_floats_ + 15) + static_cast<double>(patterns_ * n_heads_) * keys;
  return floats * sizeof(float);
}

std::int64_t Recorder::bytes_taken() const {
  const std::lock_guard lock(lock_);
  return static_cast<std::int64_t>(taken_ - block_.bytes);
}

void Recorder::reserve(double bytes) {
  const std::lock_guard lock(lock_);
  make_block(bytes);
}

void Recorder::make_block(double bytes) {
  if (bytes <= static_cast<double>(block_.bytes)) return;
  need_memory(bytes, "a recording", "", "record fewer names or tokens");
  const auto size = static_cast<std::size_t>(std::max(bytes, kBlock));
  taken_ += size - block_.bytes;
  block_ = {Buffer::heap(size), 0, size};
}

Recorder::Piece Recorder::borrow(double bytes) {
  const std::lock_guard lock(lock_);
  make_block(bytes);
  const Piece piece{block_.memory, block_.begin, static_cast<std::size_t>(bytes)};
  block_.begin += piece.bytes;
  block_.bytes -= piece.bytes;
  return piece;
}

void Recorder::give_back(const Piece& piece) {
  const std::lock_guard lock(lock_);
  if (piece.memory.data() != block_.memory.data() || piece.begin + piece.bytes != block_.begin) return;
  block_.begin -= piece.bytes;
  block_.bytes += piece.bytes;
}

const Recorder::Slot& Recorder::slot(Point point, std::int64_t layer) const {
  return slots_[static_cast<std::size_t>(index_[static_cast<std::size_t>(layer * kPoints + static_cast<int>(point))])];
}

std::vector<std::int64_t> Recorder::shape(Place place, std::span<const Track::Row> rows) const {
  const auto count = static_cast<std::int64_t>(rows.size());
  if (is_pattern(place.point)) return {n_heads_, count, rows.empty() ? 0 : rows.back().position + 1};
  const PointShape shape = point_shape(place.point, config_);
  if (shape.heads == 0) return {count, shape.width};
  return {count, shape.heads, shape.width};
}

void Recorder::copy(Place place, std::span<const Track::Row> rows, float* out) const {
  const Slot& from = slot(place.point, place.layer);
  if (!is_pattern(place.point)) {
    for (const Track::Row& row : rows) out = std::copy_n(row.data + from.begin, from.width, out);
    return;
  }
  const float masked = place.point == Point::attn_scores ? -std::numeric_limits<float>::infinity() : 0.0F;
  for (std::int64_t head = 0; head < n_heads_; ++head) {
    for (const Track::Row& row : rows) {
      const std::int64_t keys = row.position + 1;
      out = std::copy_n(row.data + offset(from, row.position) + head * keys, keys, out);
      out = std::fill_n(out, rows.back().position - row.position, masked);
    }
  }
}

Recorder::Copies Recorder::copy_all(std::span<const Track::Row> rows) const {
  Copies copies;
  double floats = 0;
  for (const Place& place : places_) {
    copies.parts.push_back({place, shape(place, rows), static_cast<std::int64_t>(floats)});
    double size = 1;
    for (const std::int64_t n : copies.parts.back().shape) size *= static_cast<double>(n);
    floats += std::ceil(size / 16) * 16;  // each begins on a cache line
  }
  need_memory(floats * sizeof(float), "a cache of this recording", "", "record fewer names or tokens");
  copies.memory = Buffer::heap(static_cast<std::size_t>(floats) * sizeof(float));
  auto* const begin = reinterpret_cast<float*>(copies.memory.data());
  for (const Copies::Part& part : copies.parts) copy(part.place, rows, begin + part.begin);
  return copies;
}

RecorderHook::RecorderHook(std::shared_ptr<Recorder> recorder, std::vector<std::shared_ptr<Track>> tracks)
    : Hook(Kind::look), recorder_(std::move(recorder)), tracks_(std::move(tracks)) {}

RecorderHook::~RecorderHook() {
  if (piece_.bytes > 0) recorder_->give_back(piece_);
}

PlaceSet RecorderHook::places() const {
  PlaceSet set(recorder_->config_.n_layers);
  for (const Place& place : recorder_->places()) set.add(place);
  return set;
}

void RecorderHook::begin(std::span<const Feed> feeds) {
  const Recorder& r = *recorder_;
  LLAMA2CPP_CHECK(feeds.size() == tracks_.size(), "there are ", tracks_.size(), " tracks for ", feeds.size(),
                  " sequences");
  std::vector<std::int64_t> positions;
  double bytes = 0;
  for (std::size_t s = 0; s < feeds.size(); ++s) {
    positions.push_back(static_cast<std::int64_t>(feeds[s].before.size()));
    for (std::size_t t = 0; tracks_[s] && t < feeds[s].tokens.size(); ++t) {
      bytes += static_cast<double>(r.row_floats(positions[s] + static_cast<std::int64_t>(t))) * sizeof(float);
    }
  }
  if (piece_.bytes > 0) recorder_->give_back(std::exchange(piece_, {}));
  piece_ = recorder_->borrow(bytes);

  float* next = piece_.floats();
  pending_.assign(feeds.size(), {});
  for (std::size_t s = 0; s < feeds.size(); ++s) {
    if (!tracks_[s]) continue;
    const auto& [before, tokens] = feeds[s];
    Pending& pending = pending_[s];
    pending.position = positions[s];
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const std::int64_t position = positions[s] + static_cast<std::int64_t>(t);
      pending.rows.push_back({position, piece_.memory, next});
      pending.data.push_back(next);
      for (std::size_t i = 0; i < r.places_.size(); ++i) {  // of which a call may show only some tokens
        if (in_last_norm(r.places_[i].point)) {
          std::fill_n(next + r.slots_[i].begin, r.slots_[i].width, std::numeric_limits<float>::quiet_NaN());
        }
      }
      next += r.row_floats(position);
    }

    Track& track = *tracks_[s];
    const std::lock_guard lock(track.lock_);
    const auto& [known, rows] = track.rows_;
    const auto differ = std::mismatch(known.begin(), known.end(), before.begin(), before.end());
    pending.kept_tokens = static_cast<std::size_t>(differ.first - known.begin());
    const auto kept = std::find_if(rows.rbegin(), rows.rend(), [&](const Track::Row& row) {
      return row.position < static_cast<std::int64_t>(pending.kept_tokens);
    });
    pending.kept_rows = static_cast<std::size_t>(rows.rend() - kept);
    pending.new_tokens.assign(differ.second, before.end());
    pending.new_tokens.insert(pending.new_tokens.end(), tokens.begin(), tokens.end());
    // What succeeded() will need: it must not fail.
    const auto make_room = [](auto& vector, std::size_t size) {
      if (vector.capacity() < size) vector.reserve(std::max(size, 2 * vector.capacity()));
    };
    make_room(track.rows_.tokens, pending.kept_tokens + pending.new_tokens.size());
    make_room(track.rows_.rows, pending.kept_rows + pending.rows.size());
  }
}

void RecorderHook::at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) {
  if (pending_.empty() || !tracks_[span.sequence]) return;  // of a call that leaves layers out nothing is kept
  const Recorder::Slot& to = recorder_->slot(point, layer);
  const Pending& pending = pending_[span.sequence];
  float* const* const rows = pending.data.data() + (span.position - pending.position);
  for (std::int64_t t = 0; t < span.count; ++t) {
    if (!is_pattern(point)) {
      std::copy_n(activation.row(0) + t * to.width, to.width, rows[t] + to.begin);
      continue;
    }
    const std::int64_t position = span.position + t;
    float* out = rows[t] + recorder_->offset(to, position);
    for (std::int64_t head = 0; head < recorder_->n_heads_; ++head) {
      out = std::copy_n(activation.row(head * span.count + t), position + 1, out);
    }
  }
}

void RecorderHook::succeeded() noexcept {
  for (std::size_t s = 0; s < tracks_.size(); ++s) {
    if (!tracks_[s]) continue;
    Pending& pending = pending_[s];
    const std::lock_guard lock(tracks_[s]->lock_);
    auto& [tokens, rows] = tracks_[s]->rows_;
    tokens.resize(pending.kept_tokens);
    tokens.insert(tokens.end(), pending.new_tokens.begin(), pending.new_tokens.end());
    rows.resize(pending.kept_rows);
    rows.insert(rows.end(), std::make_move_iterator(pending.rows.begin()), std::make_move_iterator(pending.rows.end()));
  }
  piece_ = {};
}

}  // namespace llama2cpp
