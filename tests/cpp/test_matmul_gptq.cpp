// Matmul of GPTQ weights on every instruction set, packed and not, against sums written here from the bit layout: the
// order of columns, zero points and their wrapping, groups that fill no unit. Equal bits, no tolerance.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "core/half.h"
#include "format/format.h"
#include "kernel_inputs.h"
#include "transposed.h"

namespace {

using kernel_outputs::Bits;
using kernel_outputs::Kind;
using kernel_outputs::Random;
using llama2cpp::Weight;

enum class Fill { random, largest, least, special };

// The numbers of a weight, and how they are grouped.
struct Subject {
  int bits = 4;
  int version = 1;
  std::int64_t rows = 32;
  std::int64_t cols = 256;
  std::int64_t group = 128;
  bool act_order = false;
  std::vector<int> q{};                 // [rows][cols]
  std::vector<int> zeros{};             // [rows][groups]
  std::vector<std::uint16_t> scales{};  // [rows][groups] f16
  std::vector<std::int32_t> order{};    // [cols] the column at each place

  std::int64_t groups() const { return (cols - 1) / group + 1; }
  float scale(std::int64_t row, std::int64_t place) const {
    return llama2cpp::half_to_float(scales[static_cast<std::size_t>(row * groups() + place / group)]);
  }
  // q - zero of the column at a place.
  int whole(std::int64_t row, std::int64_t place) const {
    const std::int64_t column = order[static_cast<std::size_t>(place)];
    return q[static_cast<std::size_t>(row * cols + column)] -
           zeros[static_cast<std::size_t>(row * groups() + place / group)];
  }
};

Subject make_subject(Subject s, Fill fill, std::uint64_t seed) {
  Random random(seed);
  const int most = (1 << s.bits) - 1;
  const auto value = [&](int extreme) {
    if (fill == Fill::largest) return extreme;
    if (fill == Fill::least) return most - extreme;
    return static_cast<int>(random.next() % static_cast<std::uint32_t>(most + 1));
  };
  for (std::int64_t i = 0; i < s.rows * s.cols; ++i) s.q.push_back(value(most));
  for (std::int64_t i = 0; i < s.rows * s.groups(); ++i) {
    s.zeros.push_back(value(0));
    const std::uint16_t specials[] = {0x7C00, 0x7E00, 0x0001, 0x8001, 0x03FF, 0x7BFF, 0x0000, 0x8000};
    const bool special = fill == Fill::special && random.next() % 4 == 0;
    s.scales.push_back(special ? specials[random.next() % 8] : llama2cpp::float_to_half(random.uniform() * 0.1F));
  }
  s.order.resize(static_cast<std::size_t>(s.cols));
  std::iota(s.order.begin(), s.order.end(), 0);
  if (s.act_order) {
    for (std::size_t i = s.order.size() - 1; i > 0; --i) std::swap(s.order[i], s.order[random.next() % (i + 1)]);
    // within a group columns keep their order
    for (std::int64_t begin = 0; begin < s.cols; begin += s.group) {
      std::sort(s.order.begin() + begin, s.order.begin() + std::min(begin + s.group, s.cols));
    }
  }
  return s;
}

llama2cpp::Plane plane_of(const std::vector<std::uint8_t>& bytes) {
  llama2cpp::Plane plane;
  plane.owner = llama2cpp::Buffer::heap(bytes.size());
  std::memcpy(plane.owner.data(), bytes.data(), bytes.size());
  plane.data = plane.owner.data();
  plane.bytes = bytes.size();
  return plane;
}

// Bits as a file has them: bit `position` of the stream that goes through words `stride` apart, from word `begin` on.
void put(std::vector<std::uint8_t>& words, std::int64_t begin, std::int64_t stride, std::int64_t index, int bits,
         int value) {
  for (int bit = 0; bit < bits; ++bit) {
    const std::int64_t position = index * bits + bit;
    const std::int64_t word = begin + position / 32 * stride;
    if ((value >> bit & 1) != 0) {
      words[static_cast<std::size_t>(word * 4 + position % 32 / 8)] |= static_cast<std::uint8_t>(1U << position % 8);
    }
  }
}

Weight weight_of(const Subject& s) {
  Weight w;
  w.format = &llama2cpp::find_format(llama2cpp::cat("gptq", s.bits, s.version == 2 ? "_v2" : ""));
  w.rows = s.rows;
  w.cols = s.cols;
  w.group = s.group;
  std::vector<std::uint8_t> q(static_cast<std::size_t>(s.cols * s.bits / 8 * s.rows));
  std::vector<std::uint8_t> zeros(static_cast<std::size_t>(s.groups() * s.rows * s.bits / 8));
  std::vector<std::uint8_t> scales(static_cast<std::size_t>(s.groups() * s.rows * 2));
  for (std::int64_t row = 0; row < s.rows; ++row) {
    for (std::int64_t k = 0; k < s.cols; ++k) {
      put(q, row, s.rows, k, s.bits, s.q[static_cast<std::size_t>(row * s.cols + k)]);
    }
    for (std::int64_t g = 0; g < s.groups(); ++g) {
      const auto i = static_cast<std::size_t>(row * s.groups() + g);
      const int stored = s.version == 1 ? (s.zeros[i] - 1) & ((1 << s.bits) - 1) : s.zeros[i];
      put(zeros, g * s.rows * s.bits / 32, 1, row, s.bits, stored);
      std::memcpy(scales.data() + (g * s.rows + row) * 2, &s.scales[i], 2);
    }
  }
  w.planes[0] = plane_of(q);
  w.planes[1] = plane_of(scales);
  w.planes[2] = plane_of(zeros);
  if (s.act_order) {
    std::vector<std::uint8_t> g_idx(static_cast<std::size_t>(s.cols * 4));
    for (std::int64_t place = 0; place < s.cols; ++place) {
      const auto group = static_cast<std::int32_t>(place / s.group);
      std::memcpy(g_idx.data() + s.order[static_cast<std::size_t>(place)] * 4, &group, 4);
    }
    w.planes[3] = plane_of(g_idx);
    w.order = llama2cpp::Buffer::heap(static_cast<std::size_t>(s.cols * 4));
    std::memcpy(w.order.data(), s.order.data(), w.order.size());
  }
  return w;
}

float x_at(const Subject& s, const float* x, std::int64_t place) { return x[s.order[static_cast<std::size_t>(place)]]; }

// p = fma(round(s_w * s_x), float(sum((q - zero) * x)), p) over blocks of 32 places
float expected_integers(const Subject& s, std::int64_t row, const float* x) {
  float p = 0.0F;
  for (std::int64_t block = 0; block < s.cols; block += 32) {
    float most = 0.0F;
    bool finite = true;
    for (std::int64_t k = block; k < block + 32; ++k) {
      finite = finite && std::isfinite(x_at(s, x, k));
      most = std::max(most, std::fabs(x_at(s, x, k)));
    }
    const float scale = finite ? most / 127.0F : std::numeric_limits<float>::quiet_NaN();
    long sum = 0;
    for (std::int64_t k = block; k < block + 32; ++k) {
      if (!finite || scale == 0.0F) continue;
      sum += s.whole(row, k) * std::lrint(std::max(-127.0F, std::min(127.0F, x_at(s, x, k) / scale)));
    }
    p = std::fma(s.scale(row, block) * scale, static_cast<float>(sum), p);
  }
  return p;
}

float expected_floats(const Subject& s, std::int64_t row, const float* x) {
  float sum = 0.0F;
  for (std::int64_t begin = 0; begin < s.cols; begin += 256) {
    float p = 0.0F;
    for (std::int64_t k = begin; k < std::min(s.cols, begin + 256); ++k) {
      p = std::fma(s.scale(row, k) * static_cast<float>(s.whole(row, k)), x_at(s, x, k), p);
    }
    sum = sum + p;
  }
  return sum;
}

Bits expected(const Subject& s, bool integers, const std::vector<float>& x) {
  Bits bits;
  for (const float* from = x.data(); from != x.data() + x.size(); from += s.cols) {
    for (std::int64_t row = 0; row < s.rows; ++row) {
      bits.add(integers ? expected_integers(s, row, from) : expected_floats(s, row, from));
    }
  }
  return bits;
}

Bits multiply(llama2cpp::Backend& backend, const Weight& w, std::vector<float>& x) {
  const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / w.cols;
  std::vector<float> memory(static_cast<std::size_t>(tokens * w.rows + 1), kernel_outputs::kGuard);
  const llama2cpp::Tensor out(memory.data(), {tokens, w.rows});
  const Weight* const pointer = &w;
  const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
  backend.matmul({&pointer, 1}, llama2cpp::Tensor(x.data(), {tokens, w.cols}), {&out, 1});
  CHECK(memory.back() == kernel_outputs::kGuard);
  memory.pop_back();
  Bits bits;
  bits.add(memory);
  return bits;
}

std::vector<std::unique_ptr<llama2cpp::CpuBackend>> backends() {
  std::vector<std::unique_ptr<llama2cpp::CpuBackend>> all;
  for (const char* isa : {"reference", "scalar", "neon-base", "neon-dotprod", "neon-i8mm", "avx2-base", "avx2-vnni",
                          "avx512-base", "avx512-vnni"}) {
    try {
      all.push_back(std::make_unique<llama2cpp::CpuBackend>(2, llama2cpp::select_kernels(isa)));
    } catch (const std::invalid_argument&) {
      continue;  // not on this machine
    }
  }
  return all;
}

void check(const std::vector<std::unique_ptr<llama2cpp::CpuBackend>>& all, const Subject& s, Kind kind,
           std::uint64_t seed) {
  for (const std::int64_t tokens : {1, 2, 3, 14}) {
    auto x = kernel_outputs::make(static_cast<std::size_t>(tokens * s.cols), kind, seed);
    for (const bool integers : {false, true}) {
      const Bits wanted = expected(s, integers, x);
      Weight w = weight_of(s);
      REQUIRE(llama2cpp::in_blocks(w));
      w.int8_input = integers;
      for (const auto& backend : all) {
        CAPTURE(w.format->name);
        CAPTURE(s.group);
        CAPTURE(s.act_order);
        CAPTURE(backend->isa());
        CAPTURE(tokens);
        CAPTURE(integers);
        w.panels = {};
        CHECK((multiply(*backend, w, x) == wanted));
        backend->pack(w);
        CHECK(w.panels.size() == backend->packed_bytes(w));
        CHECK((multiply(*backend, w, x) == wanted));
      }
    }
  }
}

}  // namespace

TEST_CASE("GPTQ weights times integers and floats are what their bits say") {
  const auto all = backends();
  CHECK(all.size() >= 2);
  std::uint64_t seed = 1;
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::int64_t group : {32, 64, 96, 128, 256, 352}) {
      for (const bool act_order : {false, true}) {
        const Subject shape{
            .bits = bits, .version = bits % 2 + 1, .rows = 64, .cols = 352, .group = group, .act_order = act_order};
        ++seed;
        check(all, make_subject(shape, Fill::random, seed), Kind::ordinary, seed);
      }
    }
  }
}

TEST_CASE("GPTQ weights transposed, in an order of their own too") {
  const auto all = backends();
  std::uint64_t seed = 500;
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool act_order : {false, true}) {
      Subject s;
      s.bits = bits;
      s.rows = 48;
      s.act_order = act_order;
      Weight w = weight_of(make_subject(s, Fill::random, ++seed));
      w.int8_input = act_order;
      transposed::check(all, w, 5, ++seed);
    }
  }
}

TEST_CASE("GPTQ weights at the ends of their range") {
  const auto all = backends();
  std::uint64_t seed = 100;
  for (const int bits : {2, 3, 4, 8}) {
    for (const int version : {1, 2}) {
      const Subject shape{.bits = bits, .version = version, .rows = 96, .cols = 512, .group = 128};
      for (const Fill fill : {Fill::largest, Fill::least, Fill::special}) {
        for (const Kind kind : {Kind::wide, Kind::special, Kind::tiny}) {
          ++seed;
          check(all, make_subject(shape, fill, seed), kind, seed);
        }
      }
    }
  }
}

TEST_CASE("panels of GPTQ weights are about as large as the file") {
  llama2cpp::CpuBackend backend(1, *llama2cpp::reference_kernels());
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::int64_t group : {32, 64, 128, 1024}) {
      const Weight w =
          weight_of(make_subject({.bits = bits, .rows = 64, .cols = 1024, .group = group}, Fill::random, 1));
      const double per_weight = static_cast<double>(backend.packed_bytes(w)) * 8.0 / (64.0 * 1024.0);
      CHECK(per_weight <= bits + 24.0 / static_cast<double>(group) + 0.13);
    }
  }
}

TEST_CASE("columns whose groups do not come together are no blocks") {
  Weight w = weight_of(make_subject({.group = 32, .act_order = true}, Fill::random, 1));
  CHECK(llama2cpp::in_blocks(w));
  w.order = {};
  CHECK_FALSE(llama2cpp::in_blocks(w));
  w = weight_of(make_subject({.group = 48}, Fill::random, 1));
  CHECK_FALSE(llama2cpp::in_blocks(w));
  CHECK_FALSE(llama2cpp::in_blocks(weight_of(make_subject({.cols = 240, .group = 240}, Fill::random, 1))));
}

TEST_CASE("one matmul takes weights with orders of their own") {
  const auto all = backends();
  for (const std::int64_t tokens : {1, 2, 14}) {
    std::vector<Subject> subjects;
    for (std::uint64_t seed = 7; seed < 10; ++seed) {
      subjects.push_back(make_subject({.act_order = seed != 8}, Fill::random, seed));
    }
    subjects.push_back(subjects.front());
    for (const bool integers : {false, true}) {
      std::vector<Weight> weights;
      std::vector<std::vector<float>> memory;
      for (const Subject& s : subjects) {
        weights.push_back(weight_of(s));
        weights.back().int8_input = integers;
        memory.emplace_back(static_cast<std::size_t>(tokens * s.rows));
      }
      auto x = kernel_outputs::make(static_cast<std::size_t>(tokens * 256), Kind::ordinary, 5);
      std::vector<const Weight*> pointers;
      std::vector<llama2cpp::Tensor> outs;
      for (std::size_t i = 0; i < weights.size(); ++i) {
        pointers.push_back(&weights[i]);
        outs.emplace_back(memory[i].data(), std::initializer_list<std::int64_t>{tokens, weights[i].rows});
      }
      for (const auto& backend : all) {
        const llama2cpp::Backend::Lease lease(*backend, llama2cpp::kNoPoll);
        backend->matmul(pointers, llama2cpp::Tensor(x.data(), {tokens, 256}), outs, {});
        for (std::size_t i = 0; i < weights.size(); ++i) {
          Bits bits;
          bits.add(memory[i]);
          CHECK((bits == expected(subjects[i], integers, x)));
        }
      }
    }
  }
}
