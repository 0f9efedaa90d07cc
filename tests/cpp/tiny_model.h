// A small Llama with random weights, made in memory, for tests of the model: grouped heads, and sizes that no vector
// width divides. The numbers are the same on every platform.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "format/f32.h"
#include "format/int8_group.h"
#include "model/session.h"

namespace tiny {

using llama2cpp::Config;
using llama2cpp::Model;
using llama2cpp::ModelOptions;
using llama2cpp::Part;
using llama2cpp::Session;
using llama2cpp::Weight;

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2 + 1) {
    next();
    next();
  }
  std::uint32_t next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<std::uint32_t>(state_ >> 32);
  }
  // 0 to n - 1
  std::int32_t below(std::int64_t n) { return static_cast<std::int32_t>(next() % static_cast<std::uint32_t>(n)); }
  float uniform() { return static_cast<float>(next() >> 8) / 8388608.0F - 1.0F; }  // [-1, 1)

 private:
  std::uint64_t state_;
};

inline Config config(llama2cpp::RopeStyle rope_style = llama2cpp::RopeStyle::interleaved) {
  Config c;
  c.dim = 36;
  c.hidden_dim = 50;
  c.n_layers = 3;
  c.n_heads = 6;
  c.n_kv_heads = 2;
  c.head_dim = 6;
  c.vocab_size = 53;
  c.seq_len = 64;
  c.rope_style = rope_style;
  return c;
}

// float32 [rows, cols], in memory that the weight keeps.
inline Weight weight(const std::string& name, std::int64_t rows, std::int64_t cols, const std::vector<float>& values) {
  Weight w;
  w.name = name;
  w.format = &llama2cpp::kF32;
  w.rows = rows;
  w.cols = cols;
  llama2cpp::Plane& plane = w.planes[0];
  plane.bytes = values.size() * sizeof(float);
  plane.owner = llama2cpp::Buffer::heap(plane.bytes);
  std::memcpy(plane.owner.data(), values.data(), plane.bytes);
  plane.data = plane.owner.data();
  plane.row_bytes = cols * static_cast<std::int64_t>(sizeof(float));
  return w;
}

// The same as int8, with a scale for each `group` of weights.
inline Weight int8_weight(const std::string& name, std::int64_t rows, std::int64_t cols, std::int64_t group,
                          const std::vector<float>& values) {
  Weight w;
  w.name = name;
  w.format = &llama2cpp::kInt8Group;
  w.rows = rows;
  w.cols = cols;
  w.group = group;
  std::vector<float> scales;
  auto memory = llama2cpp::Buffer::heap(values.size());
  for (std::size_t first = 0; first < values.size(); first += static_cast<std::size_t>(group)) {
    const auto in_group = std::span(values).subspan(first, static_cast<std::size_t>(group));
    float most = 1e-6F;
    for (const float x : in_group) most = std::max(most, std::abs(x));
    scales.push_back(most / 127.0F);
    for (std::size_t i = 0; i < in_group.size(); ++i) {
      const auto rounded = static_cast<std::int8_t>(std::lround(in_group[i] / scales.back()));
      memory.data()[first + i] = static_cast<std::byte>(rounded);
    }
  }
  w.planes[0] = {memory.data(), values.size(), cols, memory};
  w.planes[1] = weight(name, rows, cols / group, scales).planes[0];
  return w;
}

// Rows of wq or wk from half-split to interleaved order: pair (j, j + head_dim / 2) of each head to (2j, 2j + 1).
inline std::vector<float> interleave(const std::vector<float>& values, std::int64_t rows, std::int64_t cols,
                                     std::int64_t head_dim) {
  std::vector<float> out(values.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t in_head = row % head_dim;
    const std::int64_t half_split = row - in_head + in_head / 2 + (in_head % 2) * (head_dim / 2);
    std::copy_n(values.data() + half_split * cols, cols, out.data() + row * cols);
  }
  return out;
}

// Equal seeds and sizes give the same function whatever config.rope_style is: the order of wq's and wk's rows follows it.
// Matrices are float32, or int8 in groups of `group`, which divides every row; interleaved, those are run as llama2.c's.
inline std::shared_ptr<const Model> model(const Config& config, const ModelOptions& options, std::uint64_t seed = 1,
                                          std::int64_t group = 0) {
  Random random(seed);
  llama2cpp::Checkpoint checkpoint;
  checkpoint.file_format = "arrays";
  checkpoint.llama2c_arithmetic = group > 0 && config.rope_style == llama2cpp::RopeStyle::interleaved;
  checkpoint.config = config;
  for (const llama2cpp::PartFacts& row : llama2cpp::kParts) {
    if (!llama2cpp::is_needed(config, row.part).value_or(false) && row.need != llama2cpp::Need::untied) continue;
    const Part part = row.part;
    const auto [rows, cols] = llama2cpp::part_shape(config, part);
    for (std::int64_t layer = 0; layer < (llama2cpp::per_layer(part) ? config.n_layers : 1); ++layer) {
      std::vector<float> values(static_cast<std::size_t>(rows * cols));
      const bool gain = row.kind == llama2cpp::PartKind::gain;
      const bool table = row.kind == llama2cpp::PartKind::table;
      // Large enough that attention attends to something, small enough that the residual stream stays near 1.
      const float size = gain ? 0.5F : table ? 1.0F : 2.0F / std::sqrt(static_cast<float>(cols));
      for (float& x : values) x = random.uniform() * size + (gain ? 1.0F : 0.0F);
      if (row.rotary && config.rope_style == llama2cpp::RopeStyle::interleaved) {
        values = interleave(values, rows, cols, config.head_dim);
      }
      const std::string name = llama2cpp::weight_name(checkpoint.naming, part, layer);
      const bool int8 = group > 0 && !gain;
      checkpoint.weights.emplace(
          name, int8 ? int8_weight(name, rows, cols, group, values) : weight(name, rows, cols, values));
    }
  }
  return std::make_shared<const Model>(std::move(checkpoint), options);
}

inline std::shared_ptr<const Model> model(int threads = 1) { return model(config(), {.threads = threads}); }

inline std::vector<std::int32_t> tokens(std::int64_t count, std::uint64_t seed, std::int64_t vocab_size = 53) {
  Random random(seed + 1000);
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < count; ++i) ids.push_back(random.below(vocab_size));
  return ids;
}

// What matters of a float here is its bits: NaN equals itself and -0 does not equal 0.
using Bits = std::vector<std::uint32_t>;

inline Bits bits_of(std::span<const float> values) {
  Bits bits(values.size());
  if (!values.empty()) std::memcpy(bits.data(), values.data(), values.size_bytes());
  return bits;
}

inline Bits logits_of(const Session& session) {
  Bits bits;
  session.with_logits([&](std::span<const float> logits) { bits = bits_of(logits); });
  return bits;
}

inline constexpr auto no_poll = llama2cpp::kNoPoll;

// Feeds one session, without hooks.
inline void feed(Session& session, const std::vector<std::int32_t>& ids, std::int64_t chunk = llama2cpp::kChunk) {
  const llama2cpp::Work work{&session, ids, nullptr};
  llama2cpp::run({&work, 1}, {}, no_poll, chunk);
}

}  // namespace tiny
