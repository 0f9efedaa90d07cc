// PrefixMatcher: the longest of a set of strings that a text begins with.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llama2cpp {

class PrefixMatcher {
 public:
  struct Match {
    std::int32_t id = -1;  // -1: none
    std::size_t length = 0;
  };

  PrefixMatcher() = default;

  // Empty strings are left out; of two equal strings the one with the lower id stays.
  explicit PrefixMatcher(std::vector<std::pair<std::string, std::int32_t>> strings);

  Match longest_prefix(std::string_view text) const;

  bool empty() const { return strings_.empty(); }

 private:
  std::vector<std::pair<std::string, std::int32_t>> strings_;  // sorted: those with a common prefix lie together
  std::array<bool, 256> begins_ = {};                          // a quick no for most characters
};

}  // namespace llama2cpp
