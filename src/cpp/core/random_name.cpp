#include "core/random_name.h"

#include <algorithm>
#include <random>

namespace llama2cpp {
namespace {

constexpr const char* kDigits = "0123456789abcdef";
constexpr std::size_t kLength = 16;

}  // namespace

std::string random_name() {
  std::random_device random;
  std::string name(kLength, '0');
  for (std::size_t i = 0; i < kLength; i += 8) {
    unsigned bits = random();
    for (std::size_t j = i; j < i + 8; ++j, bits >>= 4U) name[j] = kDigits[bits & 15U];
  }
  return name;
}

bool is_random_name(const std::string& text) {
  return text.size() == kLength && text.find_first_not_of(kDigits) == std::string::npos;
}

}  // namespace llama2cpp
