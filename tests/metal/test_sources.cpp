// What runs on the software device is the text that macOS compiles: the same bytes.
#include <doctest/doctest.h>

#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include "backend/metal/metal_source.h"
#include "kernel_table.h"

TEST_CASE("Every Metal library: the program's text, the device's text and the compiled file are the same bytes") {
  const auto apart = soft::libraries(false), contracted = soft::libraries(true);
  REQUIRE(apart.size() == contracted.size());
  REQUIRE(apart.size() >= 19);
  std::set<std::string> names;
  for (std::size_t i = 0; i < apart.size(); ++i) {
    const std::string name = apart[i].name;
    INFO("library ", name);
    std::ifstream file(LLAMA2CPP_METAL_TEXTS + ("/" + name) + ".metal", std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    CHECK(text.size() > 500);
    CHECK(text == apart[i].source);
    CHECK(text == contracted[i].source);
    CHECK(text == llama2cpp::metal::metal_source(name));
    CHECK(name == contracted[i].name);
    CHECK_FALSE(apart[i].contracted);
    CHECK(contracted[i].contracted);
    CHECK(apart[i].kernels.size() == contracted[i].kernels.size());
    CHECK(names.insert(name).second);
  }
  CHECK(names.count("q4_0") == 1);
  CHECK(names.count("attention") == 1);
}
