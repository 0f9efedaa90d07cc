// The shim alone: fibers, what metal_stdlib does, traced accesses, thunks.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "backend/metal/metal_source.h"
#include "kernel_table.h"
#include "trace.h"

namespace {

using soft::Order;

const soft::LibraryEntry& probe(bool contracted = false) {
  const auto all = soft::libraries(contracted);
  REQUIRE(all.size() == 1);
  return all[0];
}

const soft::KernelEntry& kernel(const char* name, bool contracted = false) {
  const auto& kernels = probe(contracted).kernels;
  const auto found =
      std::find_if(kernels.begin(), kernels.end(), [&](const auto& k) { return name == std::string(k.name); });
  REQUIRE(found != kernels.end());
  return *found;
}

// Fills threadgroup memory with NaN before each threadgroup, as the device does.
struct NanFill : soft::GridWatcher {
  std::vector<float> shared = std::vector<float>(1024);
  unsigned groups = 0;
  void begin_group(const soft::Size3&) override {
    ++groups;
    std::fill(shared.begin(), shared.end(), std::numeric_limits<float>::quiet_NaN());
  }
};

std::uint64_t run(const char* name, std::vector<void*> buffers, const soft::Size3& groups, const soft::Size3& threads,
                  const soft::Orders& orders = {}, bool contracted = false) {
  const soft::KernelEntry& entry = kernel(name, contracted);
  NanFill watcher;
  soft::Arguments arguments;
  REQUIRE(buffers.size() == entry.buffers.size());
  std::copy(buffers.begin(), buffers.end(), arguments.buffers.begin());
  for (const int index : entry.threadgroup)
    arguments.threadgroup[static_cast<std::size_t>(index)] = watcher.shared.data();
  return soft::run_grid(
      name, groups, threads, orders, [&](const soft::ThreadIds& ids) { entry.run(arguments, ids); }, watcher);
}

std::vector<soft::Orders> all_orders() {
  std::vector<soft::Orders> out;
  for (const Order threads : {Order::forward, Order::reverse, Order::shuffled}) {
    for (const Order simdgroups : {Order::forward, Order::reverse, Order::shuffled}) {
      for (const Order groups : {Order::forward, Order::reverse, Order::shuffled}) {
        out.push_back({threads, simdgroups, groups, 7});
      }
    }
  }
  return out;
}

}  // namespace

TEST_CASE("The kept text, the text that was compiled and the program's string are the same bytes") {
  std::ifstream file(LLAMA2CPP_PROBE_TEXT, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  REQUIRE(text.size() > 1000);
  CHECK(text == probe(false).source);
  CHECK(text == probe(true).source);
  CHECK(text == llama2cpp::metal::metal_source("probe"));
  CHECK(text.find("#include \"") == std::string::npos);
  CHECK(text.find("struct ProbeArgs") != std::string::npos);
  CHECK(llama2cpp::metal::metal_source("other").empty());
}

TEST_CASE("A library's table says what its kernels take") {
  const soft::KernelEntry& scale = kernel("scale");
  REQUIRE(scale.buffers.size() == 3);
  CHECK(std::string(scale.buffers[0].name) == "x");
  CHECK_FALSE(scale.buffers[0].writes);
  CHECK(scale.buffers[0].size == 4);
  CHECK(scale.buffers[1].writes);
  CHECK(scale.buffers[2].reference);
  CHECK(scale.threadgroup.empty());
  CHECK(kernel("group_sum").threadgroup.size() == 1);
  REQUIRE(probe().constants.size() == 2);
  CHECK(probe().constants[0].index == 1);
  CHECK(std::string(probe().constants[0].name) == "kOffset");
}

TEST_CASE("Function constants are set between grids") {
  std::vector<float> x{1, 2, 3, 4}, out(5, -1.0f);
  std::uint32_t n = 4;
  for (const std::uint32_t factor : {2u, 5u}) {
    *probe().constants[0].variable = 1;
    *probe().constants[1].variable = factor;
    run("scale", {x.data(), out.data(), &n}, {2, 1, 1}, {3, 1, 1});
    for (std::size_t i = 0; i < 4; ++i) CHECK(out[i] == x[i] * static_cast<float>(factor) + 1);
    CHECK(out[4] == -1.0f);
  }
}

TEST_CASE("A missing barrier shows: some order gives another result, threadgroup memory begins as NaN") {
  std::vector<float> x(3 * 70), out(3);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  std::size_t wrong = 0;
  for (const soft::Orders& orders : all_orders()) {
    run("group_sum", {x.data(), out.data()}, {3, 1, 1}, {70, 1, 1}, orders);
    for (std::size_t g = 0; g < 3; ++g) {
      float sum = 0;
      for (std::size_t i = 0; i < 70; ++i) sum += x[g * 70 + i];
      CHECK(out[g] == sum);
    }
    run("group_sum_without_barrier", {x.data(), out.data()}, {3, 1, 1}, {70, 1, 1}, orders);
    if (std::isnan(out[0])) ++wrong;
  }
  CHECK(wrong > 0);
}
