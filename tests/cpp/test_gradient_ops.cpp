// The ops of gradients against plain loops in the order of the contract, on every instruction set and for any number of
// threads: equal bits. And what they refuse. The transposed product is tested beside matmul, format by format.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "backend/gradient_ops.h"
#include "core/half.h"
#include "kernel_inputs.h"
#include "transposed.h"

namespace {

using kernel_outputs::Bits;
using kernel_outputs::Kind;
using llama2cpp::Activation;
using llama2cpp::AttentionGradients;
using llama2cpp::AttentionSpan;
using llama2cpp::CpuBackend;
using llama2cpp::DType;
using llama2cpp::KernelTable;
using llama2cpp::Tensor;
using Floats = std::vector<float>;

std::vector<std::unique_ptr<CpuBackend>> backends() {
  std::vector<std::unique_ptr<CpuBackend>> all;
  for (const char* isa : {"reference", "scalar", "neon-base", "avx2-base", "avx512-base"}) {
    for (const int threads : {1, 3}) {
      try {
        all.push_back(std::make_unique<CpuBackend>(threads, llama2cpp::select_kernels(isa)));
      } catch (const std::invalid_argument&) {
        continue;  // not on this machine
      }
    }
  }
  return all;
}

Floats ordinary(std::int64_t n, std::uint64_t seed) {
  return kernel_outputs::make(static_cast<std::size_t>(n), Kind::ordinary, seed);
}

// Sums along a vector, as the contract has them.
float dot(const float* a, const float* b, std::int64_t n) {
  float lanes[16] = {};
  for (std::int64_t i = 0; i < (n + 15) / 16 * 16; ++i) {
    lanes[i % 16] = std::fma(i < n ? a[i] : 0.0F, i < n ? b[i] : 0.0F, lanes[i % 16]);
  }
  for (int half = 8; half >= 1; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] = lanes[j] + lanes[j + half];
  }
  return lanes[0];
}

struct Case {
  std::int64_t tokens = 7, heads = 4, kv_heads = 2, head_dim = 24, window = 0;
  float cap = 0.0F;
  bool sinks = false, halves = false, through_scores = true, through_pattern = true;
  bool given_scores = false, given_pattern = false;  // what the forward went on from was changed
};

// What attention takes, and what is to come out.
struct Attention {
  Case c;
  std::int64_t context = c.tokens + 3;
  Floats q = ordinary(c.tokens * c.heads * c.head_dim, 1), dz = ordinary(c.tokens * c.heads * c.head_dim, 2);
  Floats keys = ordinary(c.kv_heads * context * c.head_dim, 3), values = ordinary(c.kv_heads * context * c.head_dim, 4);
  Floats sinks = ordinary(c.heads, 5);
  Floats own_scores = ordinary(c.heads * c.tokens * c.tokens, 6);
  Floats own_pattern = ordinary(c.heads * c.tokens * c.tokens, 7);
  std::vector<std::uint16_t> half_keys, half_values;

  explicit Attention(const Case& given) : c(given) {
    if (!c.halves) return;
    for (Floats* const x : {&keys, &values}) {
      auto& halves = x == &keys ? half_keys : half_values;
      for (float& value : *x) {
        halves.push_back(llama2cpp::float_to_half(value));
        value = llama2cpp::half_to_float(halves.back());
      }
    }
  }

  // dq, dk, dv, dpattern, dscores, one after the other.
  Bits by_loops() const {
    const KernelTable& table = *llama2cpp::reference_kernels();
    const std::int64_t T = c.tokens, D = c.head_dim, group = c.heads / c.kv_heads;
    Floats dq(q.size()), dk(static_cast<std::size_t>(T * c.kv_heads * D)), dv(dk.size());
    Floats dpattern(static_cast<std::size_t>(c.heads * T * T)), dscores(dpattern.size());
    for (std::int64_t h = 0; h < c.heads; ++h) {
      const float* const k_of = keys.data() + h / group * context * D;
      const float* const v_of = values.data() + h / group * context * D;
      Floats pattern(static_cast<std::size_t>(T * T)),
          back(pattern.size());  // back: dscores as keys and queries get them
      for (std::int64_t t = 0; t < T; ++t) {
        const std::int64_t begin = c.window > 0 ? std::max<std::int64_t>(t + 1 - c.window, 0) : 0, n = t + 1 - begin;
        const float* const q_row = q.data() + (t * c.heads + h) * D;
        const float* const dz_row = dz.data() + (t * c.heads + h) * D;
        Floats scores, d;
        for (std::int64_t p = begin; p <= t; ++p) {
          scores.push_back(dot(q_row, k_of + p * D, D) * (1.0F / 3.7F));
          d.push_back(dot(dz_row, v_of + p * D, D) * (1.0F / 1.0F));
        }
        Floats capped = scores;
        if (c.cap > 0.0F) table.soft_cap(scores.data(), c.cap, capped.data(), n);
        float* const row = pattern.data() + t * T + begin;
        Floats taken = capped;
        if (c.given_scores) std::copy_n(own_scores.begin() + (h * T + t) * T + begin, n, taken.begin());
        table.softmax(taken.data(), c.sinks ? &sinks[static_cast<std::size_t>(h)] : nullptr, row, n);
        std::copy(d.begin(), d.end(), dpattern.begin() + (h * T + t) * T + begin);
        if (!c.through_pattern) std::fill(d.begin(), d.end(), 0.0F);
        const float sum = dot(row, d.data(), n);
        for (std::int64_t i = 0; i < n; ++i) {
          float& x = d[static_cast<std::size_t>(i)];
          x = row[i] * (x - sum);
          dscores[static_cast<std::size_t>((h * T + t) * T + begin + i)] = x;
          const float part = capped[static_cast<std::size_t>(i)] / c.cap;
          if (c.cap > 0.0F) x = x * (1.0F - part * part);
          back[static_cast<std::size_t>(t * T + begin + i)] = x * (1.0F / 3.7F);
        }
        if (c.given_pattern) std::copy_n(own_pattern.begin() + (h * T + t) * T + begin, n, row);
      }
      const bool through = c.through_scores && c.through_pattern;
      for (std::int64_t t = 0; through && t < T; ++t) {
        for (std::int64_t j = 0; j < D; ++j) {
          float sum = 0.0F;
          for (std::int64_t tile = 0; tile <= t; tile += 256) {
            float part = 0.0F;
            for (std::int64_t p = tile; p < std::min(tile + 256, t + 1); ++p) {
              part = std::fma(back[static_cast<std::size_t>(t * T + p)], k_of[p * D + j], part);
            }
            sum = sum + part;
          }
          dq[static_cast<std::size_t>((t * c.heads + h) * D + j)] = sum;
        }
      }
      const auto over_queries = [&](const Floats& weights, const Floats& x, Floats& out) {
        for (std::int64_t p = 0; p < T; ++p) {
          for (std::int64_t j = 0; j < D; ++j) {
            float sum = 0.0F;
            for (std::int64_t tile = 0; tile < T; tile += 256) {
              float part = 0.0F;
              for (std::int64_t t = tile; t < std::min(tile + 256, T); ++t) {
                part = std::fma(weights[static_cast<std::size_t>(t * T + p)],
                                x[static_cast<std::size_t>((t * c.heads + h) * D + j)], part);
              }
              sum = sum + part;
            }
            float& to = out[static_cast<std::size_t>((p * c.kv_heads + h / group) * D + j)];
            to = h % group == 0 ? sum : to + sum;
          }
        }
      };
      over_queries(pattern, dz, dv);
      if (through) over_queries(back, q, dk);
    }
    Bits bits;
    for (const Floats* const x : {&dq, &dk, &dv, &dpattern, &dscores}) add(bits, *x);
    return bits;
  }

  Bits by_op(CpuBackend& backend) {
    const std::int64_t T = c.tokens, D = c.head_dim;
    Floats dq(q.size()), dk(static_cast<std::size_t>(T * c.kv_heads * D)), dv(dk.size());
    Floats dpattern(static_cast<std::size_t>(c.heads * T * T)), dscores(dpattern.size());
    const auto cache = [&](Floats& floats, std::vector<std::uint16_t>& halves) {
      void* const data = c.halves ? static_cast<void*>(halves.data()) : floats.data();
      return Tensor(data, c.halves ? DType::f16 : DType::f32, {c.kv_heads, context, D});
    };
    AttentionSpan span;
    span.count = T;
    span.window = c.window;
    span.divisor = 3.7F;
    span.score_cap = c.cap;
    span.keys = cache(keys, half_keys);
    span.values = cache(values, half_values);
    if (c.sinks) span.sinks = Tensor(sinks.data(), {c.heads});
    const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
    backend.attention_gradient(Tensor(q.data(), {T, c.heads * D}), span,
                               {.dz = Tensor(dz.data(), {T, c.heads * D}),
                                .dq = Tensor(dq.data(), {T, c.heads * D}),
                                .dk = Tensor(dk.data(), {T, c.kv_heads * D}),
                                .dv = Tensor(dv.data(), {T, c.kv_heads * D}),
                                .dpattern = Tensor(dpattern.data(), {c.heads, T, T}),
                                .dscores = Tensor(dscores.data(), {c.heads, T, T}),
                                .through_pattern = c.through_pattern,
                                .through_scores = c.through_scores,
                                .scores = c.given_scores ? Tensor(own_scores.data(), {c.heads, T, T}) : Tensor(),
                                .pattern = c.given_pattern ? Tensor(own_pattern.data(), {c.heads, T, T}) : Tensor()});
    Bits bits;
    for (const Floats* const x : {&dq, &dk, &dv, &dpattern, &dscores}) add(bits, *x);
    return bits;
  }

  // Zeros have no sign here: a product with a masked 0 may be either.
  static void add(Bits& bits, const Floats& values) {
    Floats plain = values;
    for (float& x : plain) x = x == 0.0F ? 0.0F : x;
    bits.add(plain);
  }
};

}  // namespace

TEST_CASE("attention's gradients are the loops'") {
  const auto all = backends();
  CHECK(all.size() >= 4);
  for (const Case& c :
       {Case{}, Case{.tokens = 1}, Case{.tokens = 300}, Case{.tokens = 60, .kv_heads = 4, .head_dim = 7},
        Case{.tokens = 520, .heads = 2, .kv_heads = 1, .head_dim = 9, .window = 270}, Case{.tokens = 40, .window = 5},
        Case{.cap = 0.8F}, Case{.tokens = 21, .sinks = true}, Case{.tokens = 70, .halves = true},
        Case{.tokens = 30, .window = 4, .cap = 1.5F, .sinks = true, .halves = true}, Case{.through_scores = false},
        Case{.through_pattern = false}, Case{.tokens = 60, .given_scores = true},
        Case{.tokens = 520, .heads = 2, .kv_heads = 1, .head_dim = 9, .window = 270, .given_pattern = true},
        Case{.tokens = 30,
        .window = 4,
        .cap = 1.5F,
        .sinks = true,
        .halves = true,
        .given_scores = true,
        .given_pattern = true}}) {
    Attention attention(c);
    const Bits wanted = attention.by_loops();
    for (const auto& backend : all) {
      CAPTURE(backend->isa());
      CAPTURE(backend->threads());
      CAPTURE(c.tokens);
      CAPTURE(c.window);
      CHECK((attention.by_op(*backend) == wanted));
    }
    if (c.tokens == 300) {
      std::printf("op attention_gradient %8zu words  %016llx\n", wanted.size(),
                  static_cast<unsigned long long>(wanted.hash()));
    }
  }
}

TEST_CASE("gradients of norms, activations and caps are the loops'") {
  constexpr std::int64_t kRows = 9, kColumns = 1100;
  for (const auto& backend : backends()) {
    CAPTURE(backend->isa());
    const llama2cpp::Backend::Lease lease(*backend, llama2cpp::kNoPoll);
    const Floats d = ordinary(kRows * kColumns, 1), normalized = ordinary(kRows * kColumns, 2);
    Floats scales = ordinary(kRows, 3);
    for (float& x : scales) x = std::fabs(x) + 0.1F;
    Floats found(d.begin(), d.end()), other = normalized, dscales(kRows);
    const auto begin_with_d = [&] { std::copy(d.begin(), d.end(), found.begin()); };
    const Tensor x(found.data(), {kRows, kColumns}), n(other.data(), {kRows, kColumns});
    const Tensor scale(scales.data(), {kRows, 1}), dscale(dscales.data(), {kRows, 1});
    backend->norm_scale_gradient(x, n, scale, dscale);
    backend->norm_gradient(x, n, scale, dscale);
    Floats wanted;
    for (std::int64_t r = 0; r < kRows; ++r) {
      const float* const row = d.data() + r * kColumns;
      const float* const of = normalized.data() + r * kColumns;
      const float s = scales[static_cast<std::size_t>(r)];
      const float along = -dot(row, of, kColumns) / s;
      CHECK(dscales[static_cast<std::size_t>(r)] == along);
      for (std::int64_t i = 0; i < kColumns; ++i) {
        const float part = row[i] * (1.0F / s);
        wanted.push_back(part + of[i] * (along / static_cast<float>(kColumns)));
      }
    }
    CHECK(found == wanted);

    for (const Activation activation : {Activation::silu, Activation::clamped_swiglu}) {
      Floats gate = ordinary(kRows * kColumns, 4), up = ordinary(kRows * kColumns, 5), dup(gate.size());
      Floats plain = d, plain_up(gate.size());
      begin_with_d();
      backend->gated_gradient(activation, Tensor(gate.data(), {kRows, kColumns}), Tensor(up.data(), {kRows, kColumns}),
                              x, Tensor(dup.data(), {kRows, kColumns}));
      llama2cpp::reference_kernels()->gated_gradient(activation, gate.data(), up.data(), plain.data(), plain_up.data(),
                                                     kRows * kColumns);
      CHECK(found == plain);
      CHECK(dup == plain_up);
    }
    begin_with_d();
    Floats plain = d;
    backend->activate_gradient(Activation::gelu_tanh, n, x);
    llama2cpp::reference_kernels()->gated_gradient(Activation::gelu_tanh, other.data(), nullptr, plain.data(), nullptr,
                                                   kRows * kColumns);
    CHECK(found == plain);
    begin_with_d();
    backend->soft_cap_gradient(n, 1.7F, x);
    for (std::size_t i = 0; i < d.size(); ++i) {
      const float part = normalized[i] / 1.7F;
      plain[i] = d[i] * (1.0F - part * part);
    }
    CHECK(found == plain);
  }
}

TEST_CASE("slopes of activations are those of central differences in double") {
  const KernelTable& table = *llama2cpp::reference_kernels();
  const auto sigmoid = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  const auto value = [&](Activation activation, double x) {
    if (activation == Activation::silu) return x * sigmoid(x);
    if (activation == Activation::relu_squared) return x < 0.0 ? 0.0 : x * x;
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x));
  };
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh, Activation::relu_squared}) {
    for (float x = -9.0F; x < 9.0F; x += 0.137F) {
      float slope = 1.0F;
      table.gated_gradient(activation, &x, nullptr, &slope, nullptr, 1);
      const double step = 1e-5;
      const double exact = (value(activation, x + step) - value(activation, x - step)) / (2 * step);
      CHECK(std::abs(slope - exact) < 2e-6 * std::max(1.0, std::abs(exact)));
    }
  }
}

TEST_CASE("gradient ops refuse operands that do not fit, and say what they expected") {
  CpuBackend backend(1, *llama2cpp::reference_kernels());
  Floats memory(4096);
  std::int64_t used = 0;
  const auto tensor = [&](std::int64_t rows, std::int64_t columns) {
    const Tensor x(memory.data() + used, {rows, columns});
    used += rows * columns;
    return x;
  };
  const Tensor x = tensor(3, 8), y = tensor(3, 8), out = tensor(3, 8), half = tensor(3, 4), column = tensor(3, 1);
  const auto refuses = [](const std::string& message, auto call) {
    CAPTURE(message);
    CHECK_THROWS_WITH_AS(call(), doctest::Contains(message.c_str()), std::invalid_argument);
  };
  llama2cpp::Weight w;
  w.format = &llama2cpp::find_format("f32");
  w.rows = 8;
  w.cols = 4;
  const llama2cpp::Weight* const one[] = {&w};
  refuses("[matmul_transposed] 1 weights but 0 dys", [&] { backend.matmul_transposed(one, {}, half); });
  refuses("[matmul_transposed] w is [8, 4] but dy is [3, 4]", [&] {
    backend.matmul_transposed(one, {&half, 1}, half);
  });
  refuses("[matmul_transposed] w is [8, 4] and dy is [3, 8] but out is [3, 8]", [&] {
    backend.matmul_transposed(one, {&x, 1}, out);
  });
  refuses("[norm_scale_gradient] d is [3, 8] but normalized is [3, 4]",
          [&] { backend.norm_scale_gradient(x, half, column, column); });
  refuses("[norm_scale_gradient] d is [3, 8] but scale is [3, 8]",
          [&] { backend.norm_scale_gradient(x, y, out, column); });
  refuses("[norm_gradient] d [3, 8] overlaps normalized [3, 8]", [&] { backend.norm_gradient(x, x, column, column); });
  refuses("[gated_gradient] gate is [3, 8] but dup is [3, 4]",
          [&] { backend.gated_gradient(Activation::silu, x, y, out, half); });
  refuses("[gated_gradient] d [3, 8] overlaps gate [3, 8]",
          [&] { backend.gated_gradient(Activation::silu, x, y, x, out); });
  refuses("[activate_gradient] clamped_swiglu is of two numbers",
          [&] { backend.activate_gradient(Activation::clamped_swiglu, x, y); });
  refuses("[soft_cap_gradient] the cap is 0", [&] { backend.soft_cap_gradient(x, 0.0F, y); });
  AttentionSpan span;
  span.count = 2;
  refuses("[attention_gradient] q is [3, 8] but the span has 2 tokens",
          [&] { backend.attention_gradient(x, span, {.dz = y, .dq = out, .dk = half, .dv = half}); });
  span.count = 3;
  span.divisor = 1.0F;
  span.keys = span.values = Tensor(memory.data(), {1, 4, 4});
  refuses("[attention_gradient] q is [3, 8] but dz is [3, 4]",
          [&] { backend.attention_gradient(x, span, {.dz = half, .dq = out, .dk = half, .dv = half}); });
  refuses("[attention_gradient] dk [3, 4] overlaps dv [3, 4]",
          [&] { backend.attention_gradient(x, span, {.dz = y, .dq = out, .dk = half, .dv = half}); });
}
