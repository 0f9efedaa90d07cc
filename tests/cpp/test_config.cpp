// The list of Config's fields: nothing is left out of it, and what goes through it.
#include <doctest/doctest.h>

#include <cstddef>
#include <set>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/config.h"
#include "core/fields.h"
#include "tiny_model.h"

using llama2cpp::Config;
using llama2cpp::Field;
using llama2cpp::FormatError;
using llama2cpp::RopeScaling;

namespace {

// Where in an object the listed fields lie.
template <class T>
std::set<std::size_t> places() {
  std::set<std::size_t> found;
  const T object{};
  T::fields([&](const Field&, auto member) {
    found.insert(static_cast<std::size_t>(reinterpret_cast<const char*>(&(object.*member)) -
                                          reinterpret_cast<const char*>(&object)));
  });
  return found;
}

template <class T>
std::set<std::string_view> names() {
  std::set<std::string_view> found;
  T::fields([&](const Field& field, auto) {
    found.insert(field.name);
    CHECK_FALSE(field.doc.empty());
  });
  return found;
}

}  // namespace

TEST_CASE("every field is in the list, once and under a name of its own") {
  CHECK(places<Config>().size() == llama2cpp::detail::count_members<Config>());
  CHECK(places<RopeScaling>().size() == llama2cpp::detail::count_members<RopeScaling>());
  CHECK(names<Config>().size() == llama2cpp::detail::count_members<Config>());
  CHECK(names<RopeScaling>().size() == llama2cpp::detail::count_members<RopeScaling>());
}

TEST_CASE("a scaling has the fields of its kind") {
  const auto fields_of = [](RopeScaling::Kind kind) {
    RopeScaling scaling;
    scaling.kind = kind;
    std::vector<std::string_view> found;
    RopeScaling::fields([&](const Field& field, auto) {
      if (scaling.has(field)) found.push_back(field.name);
    });
    return found;
  };
  using Names = std::vector<std::string_view>;
  using enum RopeScaling::Kind;
  CHECK(fields_of(none) == Names{"type"});
  CHECK(fields_of(linear) == Names{"type", "factor"});
  CHECK(fields_of(llama3) == Names{"type", "factor", "low_freq_factor", "high_freq_factor", "original_context"});
  CHECK(fields_of(yarn) ==
        Names{"type", "factor", "original_context", "attention_factor", "beta_fast", "beta_slow", "truncate"});
  CHECK(fields_of(dynamic) == Names{"type", "factor", "original_context"});
  CHECK(fields_of(longrope) == Names{"type", "factor", "original_context", "attention_factor"});
}

TEST_CASE("a size of 0, one below 0 and one above the most are refused by the field's name") {
  const Config good = tiny::config();
  good.validate();
  int tried = 0;
  Config::fields([&](const Field& field, auto member) {
    if constexpr (std::is_same_v<decltype(member), std::int64_t Config::*>) {
      for (const std::int64_t value : {field.least - 1, field.most + 1}) {
        Config bad = good;
        bad.*member = value;
        const std::string expected = llama2cpp::cat("config: ", field.name, " is ", value, ", expected 1 to ",
                                                    field.most, field.least == 0 ? ", or 0 for none" : "");
        CHECK_THROWS_WITH_AS(bad.validate(), expected.c_str(), FormatError);
        ++tried;
      }
    }
  });
  CHECK(tried == 24);
}
