// The float functions of llama2.c's order of arithmetic are the GNU C library's to the bit, on every platform.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "backend/cpu/isa/select.h"
#include "backend/cpu/llama2c_reference.h"
#include "model/llama2c_rope.h"

namespace {

using llama2cpp::llama2c_exponential;
using llama2cpp::llama2c_power_of_10000;
using llama2cpp::llama2c_sin_cos;

// The library that the functions are taken from, on the processors where it uses fma.
bool has_the_library() {
#if defined(__GLIBC__) && defined(__x86_64__)
  return llama2cpp::cpu_has_avx2();
#else
  return false;
#endif
}

// One function: ours, the C library's, and the bits of the floats [first, last] that it is made for.
struct Function {
  const char* name;
  float (*ours)(float);
  float (*library)(float);
  std::uint32_t first, last;
  std::uint64_t hash;  // of the library's results for every 10007th of them
};

const Function kFunctions[] = {
    {"exp of 0 and up", llama2c_exponential, [](float x) { return std::exp(x); }, 0, 0x7F800000U,
     0x4A08D3F50EB0FE52ULL},
    {"exp below 0", llama2c_exponential, [](float x) { return std::exp(x); }, 0x80000000U, 0xFF800000U,
     0x8074DE5632D8CBB6ULL},
    {"sin", [](float x) { return llama2c_sin_cos(x).sin; }, [](float x) { return std::sin(x); }, 0, 0x7F7FFFFFU,
     0x7F9FE919F38F20BEULL},
    {"cos", [](float x) { return llama2c_sin_cos(x).cos; }, [](float x) { return std::cos(x); }, 0, 0x7F7FFFFFU,
     0xD281E17B9A7C09D9ULL},
    {"power of 10000", llama2c_power_of_10000, [](float y) { return std::pow(10000.0F, y); }, 0, 0x3F800000U,
     0xCF5ED2E26BF02892ULL},
};

std::uint64_t differing(const Function& f, std::uint64_t step) {
  std::uint64_t count = 0;
  for (std::uint64_t bits = f.first; bits <= f.last; bits += step) {
    const auto x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if (std::bit_cast<std::uint32_t>(f.ours(x)) != std::bit_cast<std::uint32_t>(f.library(x))) ++count;
  }
  return count;
}

std::uint64_t hash(const Function& f) {
  std::uint64_t h = 14695981039346656037ULL;
  for (std::uint64_t bits = f.first; bits <= f.last; bits += 10007) {
    const float y = f.ours(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
    h = (h ^ std::bit_cast<std::uint32_t>(y)) * 1099511628211ULL;
  }
  return h;
}

}  // namespace

TEST_CASE("llama2.c's float functions: every 10007th float") {
  for (const Function& f : kFunctions) {
    CAPTURE(f.name);
    if (has_the_library()) CHECK(differing(f, 10007) == 0);
    CHECK(hash(f) == f.hash);  // what the library gave where it was; holds everywhere
  }
}

// Some minutes: tests/slow.sh runs it.
TEST_CASE("llama2.c's float functions: every float" * doctest::skip()) {
  REQUIRE(has_the_library());
  for (const Function& f : kFunctions) {
    CAPTURE(f.name);
    CHECK(differing(f, 1) == 0);
  }
}

TEST_CASE("llama2.c's exponential at its ends") {
  CHECK(std::isnan(llama2c_exponential(std::nanf(""))));
  CHECK(llama2c_exponential(-0.0F) == 1.0F);
  CHECK(llama2c_exponential(-0x1.9fe368p+6F) == 0x1p-149F);  // the least float above 0
  CHECK(llama2c_exponential(std::nextafter(-0x1.9fe368p+6F, -200.0F)) == 0.0F);
  CHECK(llama2c_exponential(0x1.62e42ep+6F) < std::numeric_limits<float>::infinity());
  CHECK(llama2c_exponential(std::nextafter(0x1.62e42ep+6F, 200.0F)) == std::numeric_limits<float>::infinity());
}
