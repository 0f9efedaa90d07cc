#include "text/prefix_matcher.h"

#include <algorithm>

namespace llama2cpp {

PrefixMatcher::PrefixMatcher(std::vector<std::pair<std::string, std::int32_t>> strings) : strings_(std::move(strings)) {
  std::erase_if(strings_, [](const auto& entry) { return entry.first.empty(); });
  std::sort(strings_.begin(), strings_.end());
  const auto same = [](const auto& a, const auto& b) { return a.first == b.first; };
  strings_.erase(std::unique(strings_.begin(), strings_.end(), same), strings_.end());
  for (const auto& entry : strings_) begins_[static_cast<std::uint8_t>(entry.first[0])] = true;
}

PrefixMatcher::Match PrefixMatcher::longest_prefix(std::string_view text) const {
  Match match;
  if (text.empty() || !begins_[static_cast<std::uint8_t>(text[0])]) return match;

  // [first, last) are the strings whose first `depth` bytes are the text's; the shortest of them comes first.
  auto first = strings_.begin();
  auto last = strings_.end();
  for (std::size_t depth = 0; depth < text.size() && first != last; ++depth) {
    const auto wanted = static_cast<std::uint8_t>(text[depth]);
    const auto byte = [depth](const auto& entry) {
      return depth < entry.first.size() ? static_cast<std::uint8_t>(entry.first[depth]) : -1;
    };
    first = std::partition_point(first, last, [&](const auto& entry) { return byte(entry) < wanted; });
    last = std::partition_point(first, last, [&](const auto& entry) { return byte(entry) == wanted; });
    if (first != last && first->first.size() == depth + 1) match = {first->second, depth + 1};
  }
  return match;
}

}  // namespace llama2cpp
