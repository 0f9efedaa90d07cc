// Rotary frequencies against transformers' own, which the arrays below were printed from
// (ROPE_INIT_FUNCTIONS of modeling_rope_utils, a head of 64, theta 500,000 and for the linear one 10,000).
#include <doctest/doctest.h>

#include <cmath>
#include <span>
#include <vector>

#include "core/check.h"
#include "model/rope.h"

namespace {

using llama2cpp::Config;
using llama2cpp::RopeScaling;

constexpr float kLlama3By8[] = {
    0x1.000000p+0F,  0x1.53c38cp-1F,  0x1.c2ef78p-2F,  0x1.2b3dc6p-2F,  0x1.8d2760p-3F,  0x1.078d40p-3F,
    0x1.5dc95ap-4F,  0x1.d03ccep-5F,  0x1.341190p-5F,  0x1.98de92p-6F,  0x1.0f5386p-6F,  0x1.681adap-7F,
    0x1.ddee9ep-8F,  0x1.3d2804p-8F,  0x1.a4ee40p-9F,  0x1.67a23ap-10F, 0x1.132ba4p-11F, 0x1.765ba4p-13F,
    0x1.46831ap-14F, 0x1.b15902p-15F, 0x1.1f91f0p-15F, 0x1.7da9e8p-16F, 0x1.fa8b86p-17F, 0x1.5024d6p-17F,
    0x1.be2188p-18F, 0x1.280d96p-18F, 0x1.88ec20p-19F, 0x1.04be68p-19F, 0x1.5a0f4ep-20F, 0x1.cb4a9ap-21F,
    0x1.30c94ep-21F, 0x1.948360p-22F,
};
constexpr float kLlama3By32[] = {
    0x1.000000p+0F,  0x1.53c38cp-1F,  0x1.c2ef78p-2F,  0x1.2b3dc6p-2F,  0x1.8d2760p-3F,  0x1.078d40p-3F,
    0x1.5dc95ap-4F,  0x1.d03ccep-5F,  0x1.341190p-5F,  0x1.98de92p-6F,  0x1.0f5386p-6F,  0x1.681adap-7F,
    0x1.ddee9ep-8F,  0x1.3d2804p-8F,  0x1.a4ee40p-9F,  0x1.524f36p-10F, 0x1.c26c40p-12F, 0x1.9731eep-14F,
    0x1.46831ap-16F, 0x1.b15902p-17F, 0x1.1f91f0p-17F, 0x1.7da9e8p-18F, 0x1.fa8b86p-19F, 0x1.5024d6p-19F,
    0x1.be2188p-20F, 0x1.280d96p-20F, 0x1.88ec20p-21F, 0x1.04be68p-21F, 0x1.5a0f4ep-22F, 0x1.cb4a9ap-23F,
    0x1.30c94ep-23F, 0x1.948360p-24F,
};
constexpr float kLinearBy3[] = {
    0x1.555556p-2F,  0x1.ffed82p-3F,  0x1.7fe446p-3F,  0x1.1fe0cep-3F,  0x1.afc19ep-4F,  0x1.43c584p-4F,
    0x1.e596bep-5F,  0x1.6c23e8p-5F,  0x1.111112p-5F,  0x1.998acep-6F,  0x1.331d02p-6F,  0x1.cc9ae2p-7F,
    0x1.5967b2p-7F,  0x1.03046ap-7F,  0x1.847898p-8F,  0x1.234feep-8F,  0x1.b4e81ap-9F,  0x1.47a240p-9F,
    0x1.eb61a0p-10F, 0x1.707be8p-10F, 0x1.1452f6p-10F, 0x1.9e6d78p-11F, 0x1.36c6e0p-11F, 0x1.d2197ap-12F,
    0x1.5d867ep-12F, 0x1.061b66p-12F, 0x1.891ae6p-13F, 0x1.26c986p-13F, 0x1.ba1e56p-14F, 0x1.4b8ac6p-14F,
    0x1.f13e32p-15F, 0x1.74e130p-15F,
};

Config config(RopeScaling::Kind kind, float factor, float theta) {
  Config c;
  c.dim = c.head_dim = 64;
  c.hidden_dim = c.n_layers = c.n_heads = c.n_kv_heads = c.vocab_size = c.seq_len = 1;
  c.rope_theta = theta;
  c.rope_scaling.kind = kind;
  c.rope_scaling.factor = factor;
  return c;
}

// Of position 1, whose angles are the frequencies. Two units in the last place: transformers rounds its powers itself.
void check_frequencies(const Config& c, std::span<const float> expected) {
  std::vector<float> cos(32);
  std::vector<float> sin(32);
  llama2cpp::RopeAngles(c).at(1, cos.data(), sin.data());
  for (std::size_t j = 0; j < expected.size(); ++j) {
    CAPTURE(j);
    const double angle = std::atan2(double{sin[j]}, double{cos[j]});
    CHECK(std::abs(angle / double{expected[j]} - 1.0) < 0x1.0p-22);
  }
}

}  // namespace

TEST_CASE("scaled frequencies are transformers'") {
  check_frequencies(config(RopeScaling::Kind::llama3, 8.0F, 500'000.0F), kLlama3By8);
  check_frequencies(config(RopeScaling::Kind::llama3, 32.0F, 500'000.0F), kLlama3By32);
  check_frequencies(config(RopeScaling::Kind::linear, 3.0F, 10'000.0F), kLinearBy3);
}

TEST_CASE("each frequency can have a divisor of its own") {
  Config c = config(RopeScaling::Kind::none, 1.0F, 500'000.0F);
  std::vector<float> expected;
  std::vector<float> cos(32);
  std::vector<float> sin(32);
  llama2cpp::RopeAngles(c).at(1, cos.data(), sin.data());
  for (std::size_t j = 0; j < 32; ++j) {
    c.rope_factors.push_back(static_cast<float>(j + 1));
    expected.push_back(std::atan2(sin[j], cos[j]) / static_cast<float>(j + 1));
  }
  check_frequencies(c, expected);
}

TEST_CASE("scalings that cannot be") {
  const auto refused = [](auto change) {
    Config c = config(RopeScaling::Kind::llama3, 8.0F, 500'000.0F);
    c.head_dim = 2;
    c.validate();
    change(c);
    CHECK_THROWS_AS(c.validate(), llama2cpp::FormatError);
  };
  refused([](Config& c) { c.rope_scaling.factor = 0.0F; });
  refused([](Config& c) { c.rope_scaling.factor = std::nanf(""); });
  refused([](Config& c) { c.rope_scaling.low_freq_factor = 4.0F; });
  refused([](Config& c) { c.rope_scaling.low_freq_factor = -1.0F; });
  refused([](Config& c) { c.rope_scaling.original_context = 0; });
  refused([](Config& c) { c.rope_factors = {1.0F, 1.0F}; });
  refused([](Config& c) { c.rope_factors = {0.0F}; });
  refused([](Config& c) { c.sliding_window = -1; });
}
