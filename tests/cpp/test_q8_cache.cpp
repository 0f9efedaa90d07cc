// Keys and values in q8_0: how numbers are rounded, and that attention over the blocks has the bits of attention over the
// floats that they stand for, whatever the chunks of a prompt, the threads and the SIMD level.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "backend/cpu/q8_cache.h"
#include "core/half.h"
#include "core/q8_rows.h"
#include "kernel_inputs.h"
#include "tiny_model.h"

using kernel_outputs::Bits;
using kernel_outputs::Kind;
using llama2cpp::Arithmetic;
using llama2cpp::AttentionSpan;
using llama2cpp::CpuBackend;
using llama2cpp::DType;
using llama2cpp::KernelTable;
using llama2cpp::kQ8Numbers;
using llama2cpp::Q8Block;
using llama2cpp::Session;
using llama2cpp::Tensor;

namespace {

using Floats = std::vector<float>;

std::vector<const KernelTable*> tables(Arithmetic order) {
  std::vector<const KernelTable*> all = {llama2cpp::reference_kernels(order), llama2cpp::scalar_kernels(order)};
  if (llama2cpp::cpu_has_avx2()) all.push_back(llama2cpp::avx2_kernels(order));
  if (llama2cpp::cpu_has_avx512()) all.push_back(llama2cpp::avx512_kernels(order));
  if (llama2cpp::cpu_has_neon()) all.push_back(llama2cpp::neon_kernels(order));
  return all;
}

std::vector<Q8Block> rounded(const KernelTable& table, const Floats& x) {
  std::vector<Q8Block> blocks(x.size() / kQ8Numbers);
  llama2cpp::narrow_q8(table, x.data(), static_cast<std::int64_t>(x.size()), blocks.data());
  return blocks;
}

Floats widened(const std::vector<Q8Block>& blocks) {
  Floats out(blocks.size() * kQ8Numbers);
  llama2cpp::widen_q8(blocks.data(), static_cast<std::int64_t>(out.size()), out.data());
  return out;
}

void add(Bits& bits, const Floats& values) { bits.add(values); }

}  // namespace

TEST_CASE("a group's largest number becomes 127, and each other one is within half a step") {
  for (const KernelTable* table : tables(Arithmetic::contract)) {
    CAPTURE(table->name);
    const Floats x = kernel_outputs::make(64 * kQ8Numbers, Kind::ordinary, 3);
    const std::vector<Q8Block> blocks = rounded(*table, x);
    const Floats back = widened(blocks);
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      float largest = 0.0F;
      int most = 0;
      for (std::size_t i = 0; i < kQ8Numbers; ++i) largest = std::max(largest, std::fabs(x[b * kQ8Numbers + i]));
      for (std::size_t i = b * kQ8Numbers; i < (b + 1) * kQ8Numbers; ++i) {
        most = std::max(most, std::abs(int{blocks[b].q[i % kQ8Numbers]}));
        // Half a step, and what the scale lost when it was rounded to f16.
        CHECK(std::fabs(back[i] - x[i]) <= largest / 254.0F + largest * 0x1p-11F);
      }
      CHECK(most == 127);
      CHECK(llama2cpp::half_to_float(blocks[b].scale) == doctest::Approx(largest / 127.0F).epsilon(0x1p-11));
    }
    // What has been rounded once stays as it is.
    CHECK(widened(rounded(*table, back)) == back);
  }
}

TEST_CASE("groups that are not ordinary: zeros, too small and too large for f16, not finite") {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const KernelTable* table : tables(Arithmetic::contract)) {
    CAPTURE(table->name);
    const auto group = [&](float first, float rest) {
      Floats x(kQ8Numbers, rest);
      x[7] = first;
      return widened(rounded(*table, x));
    };
    for (const float x : group(0.0F, -0.0F)) CHECK(x == 0.0F);
    for (const float x : group(1e-12F, 1e-13F)) CHECK(x == 0.0F);
    CHECK(std::isinf(group(1e9F, 1e9F)[0]));
    for (const float odd : {infinity, -infinity, std::nanf("")}) {
      for (const float x : group(odd, 1.0F)) CHECK(std::isnan(x));
    }
  }
}

TEST_CASE("every ISA rounds keys and values to the same blocks") {
  for (const Kind kind : kernel_outputs::kKinds) {
    const Floats x = kernel_outputs::make(100 * kQ8Numbers, kind, 11);
    const std::vector<Q8Block> expected = rounded(*llama2cpp::reference_kernels(), x);
    Bits wanted;
    add(wanted, widened(expected));
    for (const KernelTable* table : tables(Arithmetic::contract)) {
      CAPTURE(table->name);
      Bits found;
      add(found, widened(rounded(*table, x)));
      CHECK(found == wanted);
    }
    std::printf("kernel narrow_q8, kind %d %14zu words  %016llx\n", static_cast<int>(kind), wanted.size(),
                static_cast<unsigned long long>(wanted.hash()));
  }
}

TEST_CASE("attention over blocks has the bits of attention over the floats that they stand for") {
  for (const Arithmetic order : {Arithmetic::contract, Arithmetic::llama2c}) {
    for (const std::int64_t head_dim : {32, 64, 96, 128, 288}) {
      for (const auto& [position, count, window] :
           {std::tuple<int, int, int>{0, 1, 0}, {0, 37, 0}, {300, 1, 0}, {511, 9, 0}, {290, 3, 270}, {250, 40, 7}}) {
        if (order == Arithmetic::llama2c && window > 0) continue;  // which adds tiles
        const std::int64_t heads = 6, kv_heads = 2, context = 560;
        const auto numbers = static_cast<std::size_t>(kv_heads * context * head_dim);
        const auto size = static_cast<std::size_t>(count * heads * head_dim);
        const KernelTable& reference = *llama2cpp::reference_kernels(order);
        std::vector<Q8Block> keys = rounded(reference, kernel_outputs::make(numbers, Kind::ordinary, 1));
        std::vector<Q8Block> values = rounded(reference, kernel_outputs::make(numbers, Kind::wide, 2));
        Floats float_keys = widened(keys), float_values = widened(values);
        Floats q = kernel_outputs::make(size, Kind::ordinary, 4);
        AttentionSpan span;
        span.count = count;
        span.position = position;
        span.window = window;
        span.divisor = 2.5F;
        const auto run = [&](const KernelTable& table, int threads, bool floats) {
          CpuBackend cpu(threads, table);
          llama2cpp::Backend& backend = cpu;
          const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
          const auto cache = [&](std::vector<Q8Block>& blocks, Floats& wide) {
            void* const data = floats ? static_cast<void*>(wide.data()) : blocks.data();
            return Tensor(data, floats ? DType::f32 : DType::q8_0, {kv_heads, context, head_dim});
          };
          span.keys = cache(keys, float_keys);
          span.values = cache(values, float_values);
          Floats z(size);
          backend.attention(Tensor(q.data(), {count, heads * head_dim}), {&span, 1},
                            Tensor(z.data(), {count, heads * head_dim}));
          Bits bits;
          add(bits, z);
          return bits;
        };
        const Bits wanted = run(reference, 1, true);
        for (const KernelTable* table : tables(order)) {
          CAPTURE(table->name);
          CAPTURE(head_dim);
          CAPTURE(position);
          CAPTURE(count);
          CHECK(run(*table, 1, false) == wanted);
          CHECK(run(*table, 3, false) == wanted);
        }
      }
    }
  }
}

TEST_CASE("a whole model's bits with keys and values in q8_0 do not depend on chunks or threads") {
  for (const int group : {0, 2}) {  // 2: llama2.c's int8, in its order
    llama2cpp::Config config = tiny::config();
    config.head_dim = 32;
    const auto model = [&](int threads) {
      return tiny::model(config, {.threads = threads, .kv_dtype = "q8_0"}, 1, group);
    };
    const std::vector<std::int32_t> tokens = tiny::tokens(30, 1);
    const auto one = model(1);
    Session whole(one, 40);
    tiny::feed(whole, tokens);
    for (const int threads : {1, 3}) {
      const auto other = model(threads);
      for (const std::size_t chunk : {1U, 7U, 29U}) {
        Session session(other, 40);
        for (std::size_t i = 0; i < tokens.size(); i += chunk) {
          tiny::feed(session, {tokens.begin() + static_cast<std::ptrdiff_t>(i),
                               tokens.begin() + static_cast<std::ptrdiff_t>(std::min(i + chunk, tokens.size()))});
        }
        CHECK(tiny::logits_of(session) == tiny::logits_of(whole));
      }
    }
  }
}
