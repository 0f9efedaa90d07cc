// Recorder: keeps activations of whatever is fed while it is on, in decode as in prefill, for as many calls as there are.
// A token's activations are one piece of memory, so a step appends in one place and nothing ever moves.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "core/wait_lock.h"
#include "observe/hooks.h"

namespace llama2cpp {

// What has been recorded of one session. It follows the session's tokens: those fed in the place of others replace them.
class Track {
 public:
  struct Row {
    std::int64_t position = 0;
    Buffer memory;                // which it shares with other rows
    const float* data = nullptr;  // [Recorder::row_floats(position)]
  };
  // What was there when it was asked for. tokens [n]: the session's, from position 0 on, recorded or not.
  struct Rows {
    std::vector<std::int32_t> tokens;
    std::vector<Row> rows;  // by position
  };

  Rows rows() const;
  std::size_t size() const;             // how many rows
  std::shared_ptr<Track> fork() const;  // the same so far, and apart from here on

 private:
  friend class RecorderHook;

  mutable WaitLock lock_;  // held while the below is read or written
  Rows rows_;
};

class Recorder {
 public:
  // Throws std::invalid_argument for places named twice.
  Recorder(const Config& config, std::vector<Place> places);

  const std::vector<Place>& places() const { return places_; }

  // Floats of the token at a position: patterns have as many keys as there are positions up to it.
  std::int64_t row_floats(std::int64_t position) const;
  // Bytes of the tokens at positions [begin, begin + count).
  double bytes(std::int64_t begin, std::int64_t count) const;
  // Bytes taken since it was made, of which some may have been given back.
  std::int64_t bytes_taken() const;

  // Makes room for that many bytes beforehand. Throws OutOfMemoryError.
  void reserve(double bytes);

  // The shape of a place's activation of `rows`: [rows, ...], or [heads, rows, last position + 1] for patterns.
  std::vector<std::int64_t> shape(Place place, std::span<const Track::Row> rows) const;
  // Copies it there. Masked entries of patterns are 0, those of scores -inf; what was not computed is NaN.
  void copy(Place place, std::span<const Track::Row> rows, float* out) const;

  // The same of all places, in one piece of memory.
  struct Copies {
    struct Part {
      Place place;
      std::vector<std::int64_t> shape;
      std::int64_t begin = 0;  // in floats
    };
    std::vector<Part> parts;
    Buffer memory;
  };
  // Throws OutOfMemoryError.
  Copies copy_all(std::span<const Track::Row> rows) const;

 private:
  friend class RecorderHook;

  struct Piece {
    Buffer memory;
    std::size_t begin = 0;
    std::size_t bytes = 0;
    float* floats() const { return reinterpret_cast<float*>(memory.data() + begin); }
  };
  void make_block(double bytes);  // with the lock held
  Piece borrow(double bytes);
  void give_back(const Piece& piece);

  // Where a place lies in a token's row: `begin` floats after its start and, for patterns, after `patterns` patterns.
  struct Slot {
    std::int64_t begin = 0;
    std::int64_t patterns = 0;
    std::int64_t width = 0;  // 0 for patterns
  };
  const Slot& slot(Point point, std::int64_t layer) const;
  std::int64_t offset(const Slot& slot, std::int64_t position) const {
    return slot.begin + slot.patterns * n_heads_ * (position + 1);
  }

  Config config_;
  std::int64_t n_heads_;
  std::vector<Place> places_;
  std::vector<Slot> slots_;          // of places_
  std::vector<std::int32_t> index_;  // [n_layers, kPoints] into slots_, -1: none
  std::int64_t fixed_floats_ = 0;    // of a token without its patterns
  std::int64_t patterns_ = 0;        // how many places have them

  mutable WaitLock lock_;  // held while the below is read or written
  Piece block_;            // what is left of the newest piece of memory
  std::size_t taken_ = 0;
};

// One call's hook: what it has copied belongs to the tracks when the call has succeeded, and is forgotten otherwise.
class RecorderHook final : public Hook {
 public:
  // tracks: of each sequence of the call, null where it is not recorded.
  RecorderHook(std::shared_ptr<Recorder> recorder, std::vector<std::shared_ptr<Track>> tracks);
  ~RecorderHook() override;

  PlaceSet places() const;

  void begin(std::span<const Feed> feeds) override;
  void at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) override;
  void succeeded() noexcept override;

 private:
  struct Pending {
    std::int64_t position = 0;             // of the first token
    std::vector<Track::Row> rows;          // of the call's tokens
    std::vector<float*> data;              // the same, to be written
    std::vector<std::int32_t> new_tokens;  // what the track does not have of the session's
    std::size_t kept_rows = 0;             // of the track's, which the session still stands behind
    std::size_t kept_tokens = 0;
  };

  std::shared_ptr<Recorder> recorder_;
  std::vector<std::shared_ptr<Track>> tracks_;
  std::vector<Pending> pending_;  // by sequence
  Recorder::Piece piece_;         // the call's memory, until it has succeeded
};

}  // namespace llama2cpp
