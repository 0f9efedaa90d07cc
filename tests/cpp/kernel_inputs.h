// Inputs for kernel tests, ordinary and extreme and the same on every machine, and the bits that come out.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace kernel_outputs {

// A generator of our own, so that inputs are the same on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {}
  std::uint32_t next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<std::uint32_t>(state_ >> 32);
  }
  float uniform() { return static_cast<float>(next() >> 8) / 8388608.0F - 1.0F; }  // [-1, 1)

 private:
  std::uint64_t state_;
};

// Kinds of inputs. Each leaves traces of its own: denormals and tiny products, overflow, both zeros, NaN and infinity.
enum class Kind { ordinary, tiny, huge, wide, zeros, special };
constexpr Kind kKinds[] = {Kind::ordinary, Kind::tiny, Kind::huge, Kind::wide, Kind::zeros, Kind::special};

inline std::vector<float> make(std::size_t n, Kind kind, std::uint64_t seed) {
  Random random(seed * 31 + static_cast<std::uint64_t>(kind));
  std::vector<float> values(n);
  for (float& x : values) {
    x = random.uniform();
    switch (kind) {
      case Kind::ordinary:
        break;
      case Kind::tiny:
        x *= 1e-30F * (random.next() % 3 == 0 ? 1e-10F : 1.0F);
        break;
      case Kind::huge:
        x *= 1e30F;
        break;
      case Kind::wide:
        x = std::ldexp(x, static_cast<int>(random.next() % 60) - 30);
        break;
      case Kind::zeros:
        x = random.next() % 3 == 0 ? 0.0F : random.next() % 2 == 0 ? -0.0F : x * 1e-25F;
        break;
      case Kind::special:
        if (random.next() % 40 == 0) x = std::numeric_limits<float>::infinity() * (x < 0.0F ? -1.0F : 1.0F);
        if (random.next() % 60 == 0) x = std::numeric_limits<float>::quiet_NaN();
        break;
    }
  }
  return values;
}

class Bits {
 public:
  void add(float x) {
    bits_.push_back(std::isnan(x) ? 0x7FC00000U : std::bit_cast<std::uint32_t>(x));  // NaN payloads are free
  }
  void add(std::uint32_t bits) { bits_.push_back(bits); }
  void add(const std::vector<float>& values) {
    for (const float x : values) add(x);
  }
  void add(const std::vector<std::uint16_t>& values) {
    for (const std::uint16_t x : values) bits_.push_back((x & 0x7FFFU) > 0x7C00U ? 0x7E00U : x);
  }
  bool operator==(const Bits&) const = default;
  std::uint64_t hash() const {  // FNV-1a over 32-bit words
    std::uint64_t h = 14695981039346656037ULL;
    for (const std::uint32_t b : bits_) h = (h ^ b) * 1099511628211ULL;
    return h;
  }
  std::size_t size() const { return bits_.size(); }

 private:
  std::vector<std::uint32_t> bits_;
};

inline const std::vector<std::int64_t>& lengths() {
  static const std::vector<std::int64_t> all = {1,  2,  3,  8,   15,  16,  17,  31,  32,
                                                48, 63, 64, 100, 128, 255, 256, 257, 600};
  return all;
}

// A float guard behind every output shows a kernel that writes too far.
inline constexpr float kGuard = 12345.0F;

}  // namespace kernel_outputs
