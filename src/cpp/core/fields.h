// Structs whose members are listed once, each with the name that dicts and files have for it:
//
//   struct Point {
//     int x = 0, y = 0;
//     template <class Visit>
//     static constexpr void fields(Visit visit) { visit("x", &Point::x); visit("y", &Point::y); }
//   };
//
// Whatever stores, reads or compares such a struct goes through that list. (Config's has more to say than a name.) all_listed() is for a static_assert beside it.
#pragma once

#include <cstddef>
#include <string_view>
#include <utility>

namespace llama2cpp {

// Calls visit(name, member) for each.
template <class T, class Visit>
constexpr void visit_fields(T& object, Visit&& visit) {
  T::fields([&](const auto& name, auto member) { visit(name, object.*member); });
}

template <class T>
constexpr bool same_fields(const T& a, const T& b) {
  bool same = true;
  T::fields([&](const auto&, auto member) { same = same && a.*member == b.*member; });
  return same;
}

namespace detail {

struct Anything {
  template <class T>
  operator T() const;  // NOLINT: never called
};

template <class T, std::size_t... I>
constexpr bool takes(std::index_sequence<I...>) {
  return requires { T{(static_cast<void>(I), Anything{})...}; };
}

// How many members an aggregate has: the most values that it can be made of.
template <class T, std::size_t N = 0>
constexpr std::size_t count_members() {
  if constexpr (takes<T>(std::make_index_sequence<N + 1>())) {
    return count_members<T, N + 1>();
  } else {
    return N;
  }
}

}  // namespace detail

// Whether the list has every member of T, but for `others`.
template <class T>
constexpr bool all_listed(std::size_t others = 0) {
  std::size_t listed = others;
  T::fields([&](const auto&, auto) { ++listed; });
  return listed == detail::count_members<T>();
}

}  // namespace llama2cpp
