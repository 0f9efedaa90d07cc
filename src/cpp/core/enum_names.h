// Enums by name, as dicts, files and messages have them. Beside each enum stands
//   template <> inline constexpr std::array<std::string_view, 2> kEnumNames<Fruit> = {"apple", "pear"};  // in its order
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace llama2cpp {

template <class Enum>
inline constexpr std::array<std::string_view, 0> kEnumNames = {};

template <class Enum>
constexpr std::string_view name_of(Enum value) {
  return kEnumNames<Enum>[static_cast<std::size_t>(value)];
}

template <class Enum>
constexpr std::optional<Enum> find_named(std::string_view name) {
  for (std::size_t i = 0; i < kEnumNames<Enum>.size(); ++i) {
    if (kEnumNames<Enum>[i] == name) return static_cast<Enum>(i);
  }
  return {};
}

// "apple, pear", for messages.
template <class Enum>
std::string list_names() {
  std::string names;
  for (const std::string_view name : kEnumNames<Enum>) names.append(names.empty() ? "" : ", ").append(name);
  return names;
}

}  // namespace llama2cpp
