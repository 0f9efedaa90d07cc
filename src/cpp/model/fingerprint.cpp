// The hash is FNV-1a with 128 bits: h = (h xor byte) * prime, modulo 2^128. (Offset basis and prime are those of its
// authors, Fowler, Noll and Vo.) What goes into it, in order: the fields of Config (add_config), then for each weight, in the order
// of names, what add_weight adds. Numbers go in as 8 bytes, little-endian; texts as their length and their bytes.
#include "model/fingerprint.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include "model/adapter.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kSample = 4096;  // bytes

class Fnv1a128 {
 public:
  void add(std::span<const std::byte> bytes) {
    for (const std::byte byte : bytes) {
      low_ ^= static_cast<std::uint64_t>(byte);
      multiply_by_prime();
    }
  }

  void add(std::uint64_t number) {
    std::byte bytes[8];
    for (unsigned i = 0; i < 8; ++i) bytes[i] = static_cast<std::byte>(number >> (8 * i));
    add(std::span<const std::byte>(bytes));
  }
  void add(std::int64_t number) { add(static_cast<std::uint64_t>(number)); }
  void add(float number) { add(std::uint64_t{std::bit_cast<std::uint32_t>(number)}); }

  void add(std::string_view text) {
    add(std::uint64_t{text.size()});
    add(std::as_bytes(std::span(text)));
  }

  std::string hex() const {
    std::string digits;
    for (const std::uint64_t half : {high_, low_}) {
      for (int shift = 60; shift >= 0; shift -= 4) digits += "0123456789abcdef"[(half >> shift) & 15U];
    }
    return digits;
  }

 private:
  // By 2^88 + 0x13B.
  void multiply_by_prime() {
    constexpr std::uint64_t kFactor = 0x13B;
    const std::uint64_t lowest = (low_ & 0xFFFFFFFFU) * kFactor;
    const std::uint64_t middle = (low_ >> 32) * kFactor + (lowest >> 32);
    high_ = high_ * kFactor + (middle >> 32) + (low_ << 24);  // 24: 88 bits up are 24 above the low 64
    low_ = (middle << 32) | (lowest & 0xFFFFFFFFU);
  }

  std::uint64_t high_ = 0x6C62272E07BB0142;
  std::uint64_t low_ = 0x62B821756295C58D;
};

void add(Fnv1a128& hash, std::int64_t number) { hash.add(number); }
void add(Fnv1a128& hash, float number) { hash.add(number); }
void add(Fnv1a128& hash, bool flag) { hash.add(std::uint64_t{flag}); }
template <class Value>
  requires std::is_enum_v<Value>
void add(Fnv1a128& hash, Value value) {
  hash.add(to_string(value));
}
void add(Fnv1a128& hash, const Layers& layers) {
  hash.add(std::uint64_t{layers.size()});
  for (const std::int64_t layer : layers) hash.add(layer);
}
void add(Fnv1a128& hash, const std::vector<float>& numbers) {
  hash.add(std::uint64_t{numbers.size()});
  for (const float number : numbers) hash.add(number);
}

// Fields of a scaling that came later are in the hash of the kinds that have them.
void add(Fnv1a128& hash, const RopeScaling& scaling) {
  RopeScaling::fields([&](const Field& field, auto member) {
    using Value = std::remove_cvref_t<decltype(scaling.*member)>;
    if constexpr (!std::is_same_v<Value, std::int64_t>) {
      if (field.original || scaling.has(field)) add(hash, scaling.*member);
    }
  });
}

// Integers first, then all else. A field of Config that came later is behind those of before, and only where it is set: older
// session files stay those of their models.
void add_config(Fnv1a128& hash, const Config& config) {
  const auto add_integers = [&](const auto& object) {
    std::remove_cvref_t<decltype(object)>::fields([&](const Field& field, auto member) {
      using Value = std::remove_cvref_t<decltype(object.*member)>;
      if constexpr (std::is_same_v<Value, std::int64_t>) {
        if (field.original) add(hash, object.*member);
      }
    });
  };
  add_integers(config);
  add_integers(config.rope_scaling);
  Config::fields([&](const Field& field, auto member) {
    using Value = std::remove_cvref_t<decltype(config.*member)>;
    if (field.original && !std::is_same_v<Value, std::int64_t>) add(hash, config.*member);
  });
  const Config unset;
  Config::fields([&](const Field& field, auto member) {
    if (field.original || config.*member == unset.*member) return;
    hash.add(field.name);
    add(hash, config.*member);
  });
}

// Bytes [begin, end) of the plane's rows, as if each lay behind the one before: an array's may lie apart.
void add_bytes(Fnv1a128& hash, const Plane& plane, std::size_t row, std::size_t begin, std::size_t end) {
  while (begin < end) {
    const std::size_t in_row = begin % row;
    const std::size_t count = std::min(row - in_row, end - begin);
    const std::byte* start = plane.data + static_cast<std::int64_t>(begin / row) * plane.row_bytes;
    hash.add(std::span(start + in_row, count));
    begin += count;
  }
}

void add_plane(Fnv1a128& hash, const Plane& plane, std::int64_t rows) {
  hash.add(std::uint64_t{plane.bytes});
  if (plane.bytes == 0) return;
  // A plane without rows is one.
  const std::size_t row = plane.row_bytes == 0 ? plane.bytes : plane.bytes / static_cast<std::size_t>(rows);
  if (plane.bytes <= 3 * kSample) {
    add_bytes(hash, plane, row, 0, plane.bytes);
    return;
  }
  for (const std::size_t begin : {std::size_t{0}, (plane.bytes - kSample) / 2, plane.bytes - kSample}) {
    add_bytes(hash, plane, row, begin, begin + kSample);
  }
}

void add_weight(Fnv1a128& hash, const std::string& name, const Weight& weight) {
  hash.add(name);
  hash.add(weight.format->name);
  for (const std::int64_t size : {weight.rows, weight.cols, weight.group}) hash.add(size);
  for (const Plane& plane : weight.planes) add_plane(hash, plane, weight.rows);
  if (weight.outlier_threshold > 0.0F) hash.add(weight.outlier_threshold);
}

}  // namespace

std::string fingerprint(const Checkpoint& checkpoint) {
  const std::vector<Buffer> files = mapped_files(checkpoint);
  const FileReads reads(files);
  Fnv1a128 hash;
  add_config(hash, checkpoint.config);
  for (const auto& [name, weight] : checkpoint.weights) add_weight(hash, name, weight);
  reads.check();
  return hash.hex();
}

std::string fingerprint(std::span<const LowRankPart> parts) {
  Fnv1a128 hash;
  for (const LowRankPart& part : parts) {
    hash.add(weight_name(Naming::meta, part.part, part.layer));
    hash.add(part.rank);
    hash.add(part.scale);
    hash.add(std::as_bytes(part.a));
    hash.add(std::as_bytes(part.b));
  }
  return hash.hex();
}

}  // namespace llama2cpp
