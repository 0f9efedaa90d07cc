// The numerics contract at the level of kernels: every ISA's bits are the reference's, and a kernel that is one unit in
// the last place off is found.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "backend/cpu/isa/select.h"
#include "core/half.h"
#include "kernel_outputs.h"

using llama2cpp::Activation;
using llama2cpp::Arithmetic;
using llama2cpp::KernelTable;
using llama2cpp::PanelBlock;

namespace {

constexpr Arithmetic kArithmetics[] = {Arithmetic::contract, Arithmetic::llama2c};

std::vector<const KernelTable*> usable_tables(Arithmetic order = Arithmetic::contract) {
  std::vector<const KernelTable*> tables = {llama2cpp::scalar_kernels(order)};
  if (llama2cpp::cpu_has_avx2()) tables.push_back(llama2cpp::avx2_kernels(order));
  if (llama2cpp::cpu_has_avx2_vnni()) tables.push_back(llama2cpp::avx2_vnni_kernels(order));
  if (llama2cpp::cpu_has_avx512()) tables.push_back(llama2cpp::avx512_kernels(order));
  if (llama2cpp::cpu_has_avx512_vnni()) tables.push_back(llama2cpp::avx512_vnni_kernels(order));
  if (llama2cpp::cpu_has_avx512_bf16()) tables.push_back(llama2cpp::avx512_bf16_kernels(order));
  if (llama2cpp::cpu_has_neon()) tables.push_back(llama2cpp::neon_kernels(order));
  if (llama2cpp::cpu_has_neon_dotprod()) tables.push_back(llama2cpp::neon_dotprod_kernels(order));
  if (llama2cpp::cpu_has_neon_i8mm()) tables.push_back(llama2cpp::neon_i8mm_kernels(order));
  return tables;
}

std::vector<std::string> differences(const std::map<std::string, kernel_outputs::Bits>& a,
                                     const std::map<std::string, kernel_outputs::Bits>& b) {
  std::vector<std::string> names;
  for (const auto& [name, bits] : a) {
    if (!(b.at(name) == bits)) names.push_back(name);
  }
  return names;
}

const KernelTable* g_real = nullptr;  // what the planted kernels call first

void nudge(float& x) {
  if (std::isfinite(x)) x = std::nextafter(x, 1e38F);
}

struct Planted {
  const char* kernel;
  void (*into)(KernelTable&);
};

// One activation, with or without a product.
template <Activation kActivation, bool kUp>
void plant_gated(KernelTable& t) {
  t.gated = [](Activation activation, const float* gate, const float* up, float* out, std::int64_t n) {
    g_real->gated(activation, gate, up, out, n);
    if (activation == kActivation && (up != nullptr) == kUp) nudge(out[n - 1]);
  };
}

template <Activation kActivation, bool kUp>
void plant_gated_gradient(KernelTable& t) {
  t.gated_gradient = [](Activation activation, const float* gate, const float* up, float* d, float* dup,
                        std::int64_t n) {
    g_real->gated_gradient(activation, gate, up, d, dup, n);
    if (activation == kActivation && (up != nullptr) == kUp) nudge(kUp ? dup[n - 1] : d[n - 1]);
  };
}

// One kernel each, its last output one ulp off.
const Planted kPlanted[] = {
    {"matmul_f32",
     [](KernelTable& t) {
       t.matmul_f32 = [](const PanelBlock& b) {
         g_real->matmul_f32(b);
         nudge(b.out[(b.n_tokens - 1) * b.out_stride + (b.n_panels - 1) * 16 + b.last_rows - 1]);
       };
     }},
    {"matmul_f16",
     [](KernelTable& t) {
       t.matmul_f16 = [](const llama2cpp::PanelBlock16& b) {
         g_real->matmul_f16(b);
         nudge(b.out[(b.n_tokens - 1) * b.out_stride + (b.n_panels - 1) * 16 + b.last_rows - 1]);
       };
     }},
    {"matmul_bf16",
     [](KernelTable& t) {
       t.matmul_bf16 = [](const llama2cpp::PanelBlock16& b) {
         g_real->matmul_bf16(b);
         nudge(b.out[(b.n_tokens - 1) * b.out_stride + (b.n_panels - 1) * 16 + b.last_rows - 1]);
       };
     }},
    {"matmul_pairs",
     [](KernelTable& t) {
       t.matmul_pairs = [](const llama2cpp::PairBlock& b) {
         g_real->matmul_pairs(b);
         nudge(b.out[(b.n_tokens - 1) * b.out_stride + (b.n_panels - 1) * 16 + b.last_rows - 1]);
       };
     }},
    {"matmul_blocks",
     [](KernelTable& t) {
       t.matmul_blocks = [](const llama2cpp::BlockCall& b) {
         g_real->matmul_blocks(b);
         nudge(b.out[(b.n_tokens - 1) * b.out_stride + (b.n_panels - 1) * 16 + b.last_rows - 1]);
       };
     }},
    {"matmul_open",
     [](KernelTable& t) {
       t.matmul_open = [](const llama2cpp::BlockCall& b) {
         g_real->matmul_open(b);
         nudge(b.out[(b.n_tokens - 1) * b.out_stride + (b.n_panels - 1) * 16 + b.last_rows - 1]);
       };
     }},
    {"matmul_wide",
     [](KernelTable& t) {
       t.matmul_wide = [](const llama2cpp::BlockCall& b) {
         g_real->matmul_wide(b);
         nudge(b.out[(b.n_tokens - 1) * b.out_stride + (b.n_panels - 1) * 16 + b.last_rows - 1]);
       };
     }},
    {"unpack_blocks",
     [](KernelTable& t) {
       t.unpack_blocks = [](const llama2cpp::BlockLayout& layout, const std::uint8_t* unit, std::int64_t blocks,
                            std::uint8_t* open) {
         g_real->unpack_blocks(layout, unit, blocks, open);
         open[blocks * 512 - 1] ^= 1;
       };
     }},
    {"widen_blocks",
     [](KernelTable& t) {
       t.widen_blocks = [](const llama2cpp::BlockLayout& layout, const std::uint8_t* open, std::int64_t blocks,
                           float* out) {
         g_real->widen_blocks(layout, open, blocks, out);
         nudge(out[blocks * 512 - 1]);
       };
     }},
    {"quantize_blocks",
     [](KernelTable& t) {
       t.quantize_blocks = [](const llama2cpp::BlockRounding& r) {
         g_real->quantize_blocks(r);
         nudge(r.scales[(r.blocks - 1) * r.n_tokens]);
       };
     }},
    {"matmul_llm_int8",
     [](KernelTable& t) {
       t.matmul_llm_int8 = [](const llama2cpp::LlmInt8Call& c) {
         g_real->matmul_llm_int8(c);
         nudge(c.out[(c.n_tokens - 1) * c.out_stride + (c.n_panels - 1) * 16 + c.last_rows - 1]);
       };
     }},
    {"quantize_row",
     [](KernelTable& t) {
       t.quantize_row = [](const llama2cpp::LlmInt8Row& r) {
         const std::int64_t count = g_real->quantize_row(r);
         nudge(*r.scale);
         return count;
       };
     }},
    {"matmul_int8",
     [](KernelTable& t) {
       t.matmul_int8 = [](const llama2cpp::Int8Block& b) {
         g_real->matmul_int8(b);
         nudge(b.out[(b.n_tokens - 1) * b.out_stride + (b.n_panels - 1) * 16 + b.last_rows - 1]);
       };
     }},
    {"quantize",
     [](KernelTable& t) {
       t.quantize = [](const float* x, std::int64_t groups, std::int64_t group, std::int8_t* q, float* scales) {
         g_real->quantize(x, groups, group, q, scales);
         nudge(scales[groups - 1]);
       };
     }},
    {"sum_squares",
     [](KernelTable& t) {
       t.sum_squares = [](const float* x, std::int64_t n) {
         float sum = g_real->sum_squares(x, n);
         nudge(sum);
         return sum;
       };
     }},
    {"scale",
     [](KernelTable& t) {
       t.scale = [](const float* x, float factor, const float* gain, float* out, std::int64_t n) {
         g_real->scale(x, factor, gain, out, n);
         nudge(out[n - 1]);
       };
     }},
    {"center",
     [](KernelTable& t) {
       t.center = [](const float* x, float* out, std::int64_t n) {
         g_real->center(x, out, n);
         nudge(out[n - 1]);
       };
     }},
    {"add",
     [](KernelTable& t) {
       t.add = [](const float* a, const float* b, float* out, std::int64_t n) {
         g_real->add(a, b, out, n);
         nudge(out[n - 1]);
       };
     }},
    {"gated_silu", plant_gated<Activation::silu, true>},
    {"gated_gelu_tanh", plant_gated<Activation::gelu_tanh, true>},
    {"gated_relu_squared", plant_gated<Activation::relu_squared, true>},
    {"gated_clamped_swiglu", plant_gated<Activation::clamped_swiglu, true>},
    {"activate_silu", plant_gated<Activation::silu, false>},
    {"activate_gelu_tanh", plant_gated<Activation::gelu_tanh, false>},
    {"activate_relu_squared", plant_gated<Activation::relu_squared, false>},
    {"gated_gradient_silu", plant_gated_gradient<Activation::silu, true>},
    {"gated_gradient_gelu_tanh", plant_gated_gradient<Activation::gelu_tanh, true>},
    {"gated_gradient_relu_squared", plant_gated_gradient<Activation::relu_squared, true>},
    {"gated_gradient_clamped_swiglu", plant_gated_gradient<Activation::clamped_swiglu, true>},
    {"activate_gradient_silu", plant_gated_gradient<Activation::silu, false>},
    {"activate_gradient_gelu_tanh", plant_gated_gradient<Activation::gelu_tanh, false>},
    {"activate_gradient_relu_squared", plant_gated_gradient<Activation::relu_squared, false>},
    {"soft_cap",
     [](KernelTable& t) {
       t.soft_cap = [](const float* x, float cap, float* out, std::int64_t n) {
         g_real->soft_cap(x, cap, out, n);
         nudge(out[n - 1]);
       };
     }},
    {"rope_interleaved",
     [](KernelTable& t) {
       t.rope_interleaved = [](float* x, const float* c, const float* s, std::int64_t n) {
         g_real->rope_interleaved(x, c, s, n);
         nudge(x[n - 1]);
       };
     }},
    {"rope_half_split",
     [](KernelTable& t) {
       t.rope_half_split = [](float* x, const float* c, const float* s, std::int64_t n) {
         g_real->rope_half_split(x, c, s, n);
         nudge(x[n - 1]);
       };
     }},
    {"narrow",
     [](KernelTable& t) {
       t.narrow = [](const float* x, std::uint16_t* out, std::int64_t n) {
         g_real->narrow(x, out, n);
         ++out[n - 1];
       };
     }},
    {"narrow_bf16",
     [](KernelTable& t) {
       t.narrow_bf16 = [](const float* x, std::uint16_t* out, std::int64_t n) {
         g_real->narrow_bf16(x, out, n);
         ++out[n - 1];
       };
     }},
    {"turn_rows",
     [](KernelTable& t) {
       t.turn_rows = [](const float* x, std::int64_t stride, std::int64_t rows, float* out, std::int64_t out_stride) {
         g_real->turn_rows(x, stride, rows, out, out_stride);
         nudge(out[15 * out_stride + rows - 1]);
       };
     }},
    {"scores_f32",
     [](KernelTable& t) {
       t.scores_f32 = [](const llama2cpp::ScoresOf<float>& c) {
         g_real->scores_f32(c);
         nudge(c.out[c.queries - 1][c.n - 1]);
       };
     }},
    {"scores_f16",
     [](KernelTable& t) {
       t.scores_f16 = [](const llama2cpp::ScoresOf<std::uint16_t>& c) {
         g_real->scores_f16(c);
         nudge(c.out[c.queries - 1][c.n - 1]);
       };
     }},
    {"scores_q8",
     [](KernelTable& t) {
       t.scores_q8 = [](const llama2cpp::ScoresOf<llama2cpp::Q8Block>& c) {
         g_real->scores_q8(c);
         nudge(c.out[c.queries - 1][c.n - 1]);
       };
     }},
    {"softmax",
     [](KernelTable& t) {
       t.softmax = [](const float* s, const float* sink, float* out, std::int64_t n) {
         g_real->softmax(s, sink, out, n);
         if (sink == nullptr) nudge(out[n - 1]);
       };
     }},
    {"softmax_with_sink",
     [](KernelTable& t) {
       t.softmax = [](const float* s, const float* sink, float* out, std::int64_t n) {
         g_real->softmax(s, sink, out, n);
         if (sink != nullptr) nudge(out[n - 1]);
       };
     }},
    {"mix_f32",
     [](KernelTable& t) {
       t.mix_f32 = [](const llama2cpp::MixOf<float>& c) {
         g_real->mix_f32(c);
         nudge(c.z[c.queries - 1][c.head_dim - 1]);
       };
     }},
    {"mix_f16",
     [](KernelTable& t) {
       t.mix_f16 = [](const llama2cpp::MixOf<std::uint16_t>& c) {
         g_real->mix_f16(c);
         nudge(c.z[c.queries - 1][c.head_dim - 1]);
       };
     }},
    {"mix_q8",
     [](KernelTable& t) {
       t.mix_q8 = [](const llama2cpp::MixOf<llama2cpp::Q8Block>& c) {
         g_real->mix_q8(c);
         nudge(c.z[c.queries - 1][c.head_dim - 1]);
       };
     }},
};

}  // namespace

TEST_CASE("every ISA gives the reference's bits") {
  const auto expected = kernel_outputs::all(*llama2cpp::reference_kernels());
  for (const KernelTable* table : usable_tables()) {
    CAPTURE(table->name);
    CHECK(differences(expected, kernel_outputs::all(*table)) == std::vector<std::string>{});
  }
  for (const auto& [name, bits] : expected) {
    // Equal on every machine: the aarch64 run in tests/slow.sh compares these lines with x86's.
    std::printf("kernel %-29s %8zu words  %016llx\n", name.c_str(), bits.size(),
                static_cast<unsigned long long>(bits.hash()));
  }
}

TEST_CASE("every ISA gives the reference's bits: llama2.c's order") {
  const KernelTable& reference = *llama2cpp::reference_kernels(Arithmetic::llama2c);
  const auto expected = kernel_outputs::along_vectors(reference);
  for (const KernelTable* table : usable_tables(Arithmetic::llama2c)) {
    CAPTURE(table->name);
    CHECK(differences(expected, kernel_outputs::along_vectors(*table)) == std::vector<std::string>{});
  }
  // What has an order of its own, and no more than that.
  const auto ours = kernel_outputs::along_vectors(*llama2cpp::reference_kernels());
  CHECK(differences(expected, ours) == std::vector<std::string>{"activate_silu", "gated_silu", "mix_f16", "mix_f32",
                                                                "mix_q8", "rope_half_split", "rope_interleaved",
                                                                "scores_f16", "scores_f32", "scores_q8", "softmax",
                                                                "softmax_with_sink", "sum_squares"});
  for (const std::string& name : differences(expected, ours)) {
    std::printf("kernel %-17s %8zu words  %016llx in llama2.c's order\n", name.c_str(), expected.at(name).size(),
                static_cast<unsigned long long>(expected.at(name).hash()));
  }
}

// exp is where a small mistake hides best: the last coefficients matter to one value in many thousands.
TEST_CASE("every ISA gives the reference's bits: exponentials in millions") {
  std::vector<float> x;
  kernel_outputs::Random random(7);
  for (int i = 0; i < 3'000'000; ++i) x.push_back((random.uniform() - 1.0F) * 44.0F);  // [-88, 0)
  for (int i = 0; i < 1'000'000; ++i) x.push_back(random.uniform() * 110.0F);
  const auto around = [&](float middle) {  // forty neighbours
    for (int i = 0; i < 20; ++i) middle = std::nextafter(middle, -100.0F);
    for (int i = 0; i < 40; ++i) x.push_back(middle = std::nextafter(middle, 100.0F));
  };
  around(-87.0F);                                                                        // below it, the result is 0
  for (int n = 0; n < 126; ++n) around(-(static_cast<float>(n) + 0.5F) * 0.693147181F);  // where n changes
  const std::vector<float> ones(x.size(), 1.0F);
  const auto n = static_cast<std::int64_t>(x.size());
  std::vector<float> expected(x.size());
  for (const Arithmetic order : kArithmetics) {
    llama2cpp::reference_kernels(order)->gated(Activation::silu, x.data(), ones.data(), expected.data(), n);
    for (const KernelTable* table : usable_tables(order)) {
      CAPTURE(table->name);
      std::vector<float> got(x.size());
      table->gated(Activation::silu, x.data(), ones.data(), got.data(), n);
      CHECK(std::memcmp(got.data(), expected.data(), x.size() * sizeof(float)) == 0);
    }
  }
}

// Against a score of 0 these weigh nothing in the sum, so that each result is its exponential: down to where it is 0.
TEST_CASE("every ISA gives the reference's bits: scores far apart") {
  kernel_outputs::Random random(8);
  std::vector<float> scores = {0.0F};
  for (int i = 0; i < 100'000; ++i) scores.push_back(-92.0F + random.uniform() * 13.0F);
  const auto n = static_cast<std::int64_t>(scores.size());
  for (const Arithmetic order : kArithmetics) {
    std::vector<float> expected(scores.size());
    llama2cpp::reference_kernels(order)->softmax(scores.data(), nullptr, expected.data(), n);
    for (const KernelTable* table : usable_tables(order)) {
      CAPTURE(table->name);
      std::vector<float> got(scores.size());
      table->softmax(scores.data(), nullptr, got.data(), n);
      CHECK(std::memcmp(got.data(), expected.data(), scores.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("a kernel that is one ulp off is found, and only it") {
  const auto expected = kernel_outputs::all(*llama2cpp::reference_kernels());
  g_real = usable_tables().back();
  CHECK(std::size(kPlanted) == expected.size());  // a new kernel needs its planted mistake here
  for (const Planted& planted : kPlanted) {
    KernelTable table = *g_real;
    planted.into(table);
    CHECK(differences(expected, kernel_outputs::all(table)) == std::vector<std::string>{planted.kernel});
  }
  const auto expected_llama2c = kernel_outputs::along_vectors(*llama2cpp::reference_kernels(Arithmetic::llama2c));
  g_real = usable_tables(Arithmetic::llama2c).back();
  for (const Planted& planted : kPlanted) {
    if (!expected_llama2c.contains(planted.kernel)) continue;  // matmul's
    KernelTable table = *g_real;
    planted.into(table);
    CHECK(differences(expected_llama2c, kernel_outputs::along_vectors(table)) ==
          std::vector<std::string>{planted.kernel});
  }
}

TEST_CASE("softmax is within a few ulps of double arithmetic") {
  const KernelTable& table = *llama2cpp::reference_kernels();
  const auto gate = kernel_outputs::make(4096, kernel_outputs::Kind::ordinary, 1);
  double worst = 0.0;
  std::vector<float> scores(1000);
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = gate[i] * 10.0F;
  std::vector<float> pattern(scores.size());
  table.softmax(scores.data(), nullptr, pattern.data(), static_cast<std::int64_t>(scores.size()));
  double sum = 0.0;
  for (const float s : scores) sum += std::exp(static_cast<double>(s));
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const double exact = std::exp(static_cast<double>(scores[i])) / sum;
    worst = std::max(worst, std::abs(pattern[i] - exact) / exact);
  }
  CHECK(worst < 32.0 * 0x1p-24);  // s - max loses up to 10 ulps of s before exp
}

TEST_CASE("half conversions: every half survives, and rounding is to nearest even") {
  for (std::uint32_t h = 0; h < 0x10000U; ++h) {
    const auto half = static_cast<std::uint16_t>(h);
    const float wide = llama2cpp::half_to_float(half);
    const std::uint16_t back = llama2cpp::float_to_half(wide);
    if (std::isnan(wide)) {
      CHECK((back & 0x7C00U) == 0x7C00U);
    } else if (back != half) {
      FAIL("half ", h, " came back as ", back);
    }
    // Between a half and the next one, the middle goes to the even one and everything else to the nearer.
    if ((half & 0x7FFFU) < 0x7BFFU) {
      const float next = llama2cpp::half_to_float(static_cast<std::uint16_t>(half + 1U));
      const float middle = wide + (next - wide) / 2.0F;
      const std::uint16_t even = half % 2 == 0 ? half : static_cast<std::uint16_t>(half + 1U);
      if (llama2cpp::float_to_half(middle) != even) FAIL("middle after half ", h);
      if (llama2cpp::float_to_half(std::nextafter(middle, wide)) != half) FAIL("below the middle after half ", h);
      if (llama2cpp::float_to_half(std::nextafter(middle, next)) != half + 1U) FAIL("above the middle after half ", h);
    }
  }
  CHECK(llama2cpp::float_to_half(65519.0F) == 0x7BFFU);
  CHECK(llama2cpp::float_to_half(65520.0F) == 0x7C00U);
}
