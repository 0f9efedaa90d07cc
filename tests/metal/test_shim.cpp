// The shim alone: fibers, what metal_stdlib does, traced accesses, thunks.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <numeric>
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

TEST_CASE("Threads know where they are") {
  const soft::Size3 groups{2, 3, 2}, threads{5, 2, 4};
  const std::size_t count = 12 * 40;
  for (const soft::Orders& orders : all_orders()) {
    std::vector<std::uint32_t> out(count * 16, 999);
    run("ids", {out.data()}, groups, threads, orders);
    std::size_t at = 0;
    for (std::uint32_t z = 0; z < 8; ++z) {
      for (std::uint32_t y = 0; y < 6; ++y) {
        for (std::uint32_t x = 0; x < 10; ++x, at += 16) {
          const std::uint32_t index = (z % 4 * 2 + y % 2) * 5 + x % 5;
          const std::vector<std::uint32_t> expected{x / 5, y / 2, z / 4, x % 5, y % 2, z % 4,      2,          3,
                                                    2,     5,     2,     4,     index, index % 32, index / 32, 2};
          CHECK(std::vector<std::uint32_t>(out.begin() + static_cast<std::ptrdiff_t>(at),
                                           out.begin() + static_cast<std::ptrdiff_t>(at + 16)) == expected);
        }
      }
    }
  }
}

TEST_CASE("Vectors compute as their elements do") {
  alignas(16) float x[8] = {1.0f, 2.0f, 3.0f, 4.0f, -5.0f, 6.5f, 0.25f, 8.0f};
  std::vector<float> out(64, -1.0f), expected;
  for (const bool contracted : {false, true}) {
    run("vectors", {x, out.data()}, {}, {}, {}, contracted);
    expected.clear();
    for (std::size_t i = 0; i < 4; ++i) expected.push_back(x[i] + x[4 + i] * 2 - 1 / x[i]);
    const float b[4] = {5.0f, 7.0f, 1.0f, 2.0f};
    expected.insert(expected.end(), b, b + 4);
    expected.push_back(1 + 20 + 100 + 2000);
    expected.push_back(5 + 14 + 3 + 8);
    expected.push_back(4 - 2 - 3);
    for (const float bits : {2.0f, 4.0f, 8.0f, 254.0f}) expected.push_back(bits);
    for (const float tenth : {0x1.998p-4f, 0x1.998p-3f, 0x1.334p-2f, 0x1.998p-2f}) expected.push_back(tenth);
    for (const float cut : {1.0f, -1.0f, 0.0f, 100.0f}) expected.push_back(cut);
    for (const float larger : {2.5f, 2.5f, 3.0f, 4.0f}) expected.push_back(larger);
    for (const float fused : {6.0f, 15.0f, 4.0f, 9.0f}) expected.push_back(fused);
    expected.push_back(0);
    expected.push_back(1);
    for (const float chosen : {1.0f, 2.0f, 1.0f, 2.0f}) expected.push_back(chosen);
    expected.push_back(1 + 3);
    REQUIRE(expected.size() == 38);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      INFO("number ", i);
      CHECK(out[i] == doctest::Approx(expected[i]).epsilon(1e-6));
    }
    CHECK(out[expected.size()] == -1.0f);
  }
}

TEST_CASE("Bits of one type are read as another") {
  std::vector<std::uint32_t> x{0x40490fdb, 0x3c00, 0x80ff7f01, 0xc0000000, 0x3f80};
  std::vector<float> out(9);
  run("bits_of", {x.data(), out.data()}, {}, {});
  CHECK(out == std::vector<float>{3.14159274f, 1, 1, 127, -1, -128, -2, 1, 1073741824.0f});
}

TEST_CASE("Halves: each operation is rounded to half, and a half among floats is a float") {
  std::vector<std::uint16_t> x{0x6800, 0x3c00, 0x0001}, out(4);  // 2048, 1, 2^-24
  std::vector<float> wide(2);
  run("halves", {x.data(), out.data(), wide.data()}, {}, {});
  CHECK(out[0] == 0x6800);  // 2049 is none: to even
  CHECK(out[1] == 0x6800);
  CHECK(out[2] == 0);
  CHECK(out[3] == 0x6801);  // 2050
  CHECK(wide[0] == 2048);
  CHECK(wide[1] == 2049);
}

TEST_CASE("Mathematics at its edges") {
  std::vector<float> x{1.5f, 4.0f, -2.5f}, out(10);
  run("math", {x.data(), out.data()}, {}, {});
  CHECK(out[0] == std::exp(1.5f));
  CHECK(out[1] == 0.5f);
  CHECK(out[2] == 1.5f);
  CHECK(out[3] == 1.5f);
  CHECK(out[4] == 1.0f);
  CHECK(out[5] == 4.5f);
  CHECK(out[6] == 1.0f);
  CHECK(out[7] == 0.0f);
  CHECK(out[8] == -3.0f - 20.0f - 200.0f + 2000.0f);
  CHECK(out[9] == 0.0f);
}

TEST_CASE("A library is compiled with two roundings and with one") {
  const float x = 1.0f + 0x1p-12f;
  std::vector<float> in{x, x, -1.0f}, apart(2), fused(2);
  run("contraction", {in.data(), apart.data()}, {}, {}, {}, false);
  run("contraction", {in.data(), fused.data()}, {}, {}, {}, true);
  CHECK(apart[0] == 0x1p-11f);  // the product is rounded: 2^-24 is lost
  CHECK(fused[0] == 0x1p-11f + 0x1p-24f);
  CHECK(apart[1] == fused[0]);
  CHECK(fused[1] == fused[0]);
}

TEST_CASE("What a thread has not set is NaN") {
  std::vector<float> out(4);
  std::uint32_t n = 3;
  run("unset", {out.data(), &n}, {}, {});
  CHECK(out[2] == 1.0f);
  CHECK(std::isnan(out[3]));
}

TEST_CASE("Functions of a simdgroup are what loops over its lanes give, also in one that is not full") {
  const std::size_t threads = 70;
  std::vector<float> x(threads);
  for (std::size_t i = 0; i < threads; ++i) x[i] = static_cast<float>(i * 37 % 64);
  for (const soft::Orders& orders : all_orders()) {
    std::vector<float> out(12 * threads, -1.0f);
    run("simdgroups", {x.data(), out.data()}, {}, {threads, 1, 1}, orders);
    for (std::size_t i = 0; i < threads; ++i) {
      const std::size_t first = i / 32 * 32, last = std::min(first + 32, threads), lanes = last - first;
      float sum = 0, most = x[first], least = x[first];
      bool any = false, all = true;
      for (std::size_t k = first; k < last; ++k) {
        sum += x[k];  // small integers: exact in any order
        most = std::max(most, x[k]);
        least = std::min(least, x[k]);
        any = any || x[k] > 60;
        all = all && x[k] > 60;
      }
      const float expected[] = {sum,
                                most,
                                least,
                                x[first + 3],
                                x[i ^ 1],
                                x[i],
                                x[first],
                                any ? 1.0f : 0.0f,
                                all ? 1.0f : 0.0f,
                                static_cast<float>(lanes * (lanes - 1) / 2),
                                static_cast<float>(lanes) + 2 * sum,
                                static_cast<float>(lanes) - 41};
      for (std::size_t k = 0; k < 12; ++k) {
        INFO("thread ", i, ", function ", k);
        CHECK(out[k * threads + i] == expected[k]);
      }
    }
  }
}

TEST_CASE("Shuffles up and down; a lane that is not there is a fault") {
  std::vector<float> x(32), out(96);
  for (std::size_t i = 0; i < 32; ++i) x[i] = static_cast<float>(i);
  for (std::uint32_t n = 0; n < 32; ++n) {
    run("shuffles", {x.data(), out.data(), &n}, {}, {32, 1, 1});
    for (std::size_t i = 0; i < 32; ++i) {
      CHECK(out[i] == static_cast<float>(i + n < 32 ? i + n : i));
      CHECK(out[32 + i] == static_cast<float>(i >= n ? i - n : i));
      CHECK(out[64 + i] == static_cast<float>(n));
    }
  }
  std::uint32_t n = 32;
  CHECK_THROWS_WITH_AS(run("shuffles", {x.data(), out.data(), &n}, {}, {32, 1, 1}),
                       doctest::Contains("asks in simd_shuffle (probe.metal:"), soft::Fault);
  n = 4;  // of 6 lanes, down by 4 reaches lane 9
  CHECK_THROWS_WITH_AS(run("shuffles", {x.data(), out.data(), &n}, {}, {6, 1, 1}),
                       doctest::Contains("for lane 9; its simdgroup has 6"), soft::Fault);
}

TEST_CASE("Matrices of a simdgroup multiply as loops do") {
  std::vector<float> a(64), b(24 * 16), c(64);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 7 % 13) - 6;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 5 % 11) - 5;
  for (std::size_t i = 0; i < c.size(); ++i) c[i] = static_cast<float>(i) / 4;
  for (const soft::Orders& orders : all_orders()) {
    std::vector<float> d(64 + 128, -1.0f);
    run("matrices", {a.data(), b.data(), c.data(), d.data()}, {}, {32, 1, 1}, orders);
    for (std::size_t row = 0; row < 8; ++row) {
      for (std::size_t column = 0; column < 8; ++column) {
        float sum = c[row * 8 + column];  // exact: small numbers
        for (std::size_t k = 0; k < 8; ++k) sum += a[row * 8 + k] * b[(3 + column) * 24 + 5 + k];
        CHECK(d[row * 8 + column] == sum);
        CHECK(d[64 + row * 16 + 8 + column] == 2 * a[column * 8 + row]);
        CHECK(d[64 + row * 16 + column] == 3.0f);
      }
    }
  }
}

TEST_CASE("Threads that wait for ever are named, with kernel, place and line") {
  std::vector<float> out(64);
  for (const soft::Orders& orders : all_orders()) {
    CHECK_THROWS_WITH_AS(
        run("barrier_for_some", {}, {}, {48, 1, 1}, orders),
        doctest::Contains("kernel barrier_for_some, threadgroup (0, 0, 0): threads wait for ever: 8-47 in "
                          "threadgroup_barrier (probe.metal:"),
        soft::Fault);
    CHECK_THROWS_WITH_AS(run("barrier_for_some", {}, {}, {48, 1, 1}, orders), doctest::Contains("; returned have 0-7"),
                         soft::Fault);
    CHECK_THROWS_WITH_AS(run("sum_after_return", {out.data()}, {}, {32, 1, 1}, orders),
                         doctest::Contains("0-4, 6-31 in simd_sum (probe.metal:"), soft::Fault);
    CHECK_THROWS_WITH_AS(run("sum_for_some", {out.data()}, {}, {32, 1, 1}, orders),
                         doctest::Contains("lanes of one simdgroup wait in different places"), soft::Fault);
    CHECK_THROWS_WITH_AS(run("two_barriers", {}, {}, {64, 1, 1}, orders),
                         doctest::Contains("threads of one threadgroup wait in different places"), soft::Fault);
  }
  // and then all is as before
  std::vector<float> x(32, 1.0f);
  run("group_sum", {x.data(), out.data()}, {}, {32, 1, 1});
  CHECK(out[0] == 32.0f);
}

TEST_CASE("Orders are what they say") {
  struct Seen : soft::GridWatcher {
    std::vector<std::uint32_t> groups, threads;
    unsigned ended = 0, barriers = 0, simd_barriers = 0, flags = 0;
    void begin_group(const soft::Size3& group) override { groups.push_back(group.x + 10 * group.y); }
    void end_group(const soft::Size3&) override { ++ended; }
    void threadgroup_barrier(unsigned which) override {
      ++barriers;
      flags |= which;
    }
    void simdgroup_barrier(std::uint32_t, unsigned) override { ++simd_barriers; }
  };
  const auto order_of = [](const soft::Orders& orders) {
    Seen seen;
    soft::run_grid(
        "none", {2, 2, 1}, {64, 1, 1}, orders,
        [&](const soft::ThreadIds& ids) {
          CHECK(soft::running.ids == &ids);
          const auto* here = reinterpret_cast<const std::byte*>(&ids.index);
          CHECK_FALSE((here >= soft::running.stack_begin && here < soft::running.stack_end));
          const std::byte local{};
          CHECK((&local >= soft::running.stack_begin && &local < soft::running.stack_end));
          if (ids.group.x == 0 && ids.group.y == 0) seen.threads.push_back(ids.index);
          soft::wait_for_simdgroup(soft::mem_threadgroup, {"a", "b", 1});
          soft::wait_for_threadgroup(soft::mem_device, {"a", "b", 2});
        },
        seen);
    CHECK(seen.ended == 4);
    CHECK(seen.barriers == 4);
    CHECK(seen.simd_barriers == 8);
    CHECK(seen.flags == soft::mem_device);
    return seen;
  };
  std::vector<std::uint32_t> forward(64), reverse;
  std::iota(forward.begin(), forward.end(), 0u);
  reverse.assign(forward.rbegin(), forward.rend());
  CHECK(order_of({}).threads == forward);
  CHECK(order_of({}).groups == std::vector<std::uint32_t>{0, 1, 10, 11});
  const Seen backward = order_of({Order::reverse, Order::reverse, Order::reverse, 1});
  CHECK(backward.threads == reverse);
  CHECK(backward.groups == std::vector<std::uint32_t>{11, 10, 1, 0});
  const Seen some = order_of({Order::shuffled, Order::shuffled, Order::shuffled, 1});
  const Seen again = order_of({Order::shuffled, Order::shuffled, Order::shuffled, 1});
  const Seen other = order_of({Order::shuffled, Order::shuffled, Order::shuffled, 2});
  CHECK(some.threads == again.threads);
  CHECK(some.groups == again.groups);
  CHECK(some.threads != other.threads);
  CHECK(some.threads != forward);
  std::vector<std::uint32_t> sorted = some.threads;
  std::sort(sorted.begin(), sorted.end());
  CHECK(sorted == forward);
  CHECK(soft::running.ids == nullptr);
}

TEST_CASE("What is thrown in a grid comes out of it, and sizes are checked") {
  soft::GridWatcher watcher;
  const auto nothing = [](const soft::ThreadIds&) {};
  CHECK_THROWS_AS(soft::run_grid("none", {0, 1, 1}, {}, {}, nothing, watcher), std::invalid_argument);
  CHECK_THROWS_AS(soft::run_grid("none", {}, {0, 1, 1}, {}, nothing, watcher), std::invalid_argument);
  CHECK_THROWS_AS(soft::run_grid("none", {}, {32, 33, 1}, {}, nothing, watcher), std::invalid_argument);
  CHECK_THROWS_AS(soft::run_grid("none", {}, {65536, 65536, 65536}, {}, nothing, watcher), std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      soft::run_grid(
          "none", {}, {4, 1, 1}, {}, [](const soft::ThreadIds&) { throw std::runtime_error("thrown"); }, watcher),
      "thrown", std::runtime_error);
  CHECK_THROWS_WITH_AS(soft::run_grid(
                           "none", {}, {4, 1, 1}, {},
                           [](const soft::ThreadIds& ids) {
                             if (ids.index == 2) soft::fail(std::make_exception_ptr(soft::Fault("failed")));
                           },
                           watcher),
                       "failed", soft::Fault);
  CHECK_THROWS_WITH_AS(soft::run_grid(
                           "none", {}, {}, {},
                           [&](const soft::ThreadIds&) { soft::run_grid("b", {}, {}, {}, nothing, watcher); }, watcher),
                       "a grid runs already", std::logic_error);
  struct Throws : soft::GridWatcher {
    void threadgroup_barrier(unsigned) override { throw std::runtime_error("at the barrier"); }
  } throws;
  CHECK_THROWS_WITH_AS(soft::run_grid(
                           "none", {}, {40, 1, 1}, {},
                           [](const soft::ThreadIds&) {
                             soft::wait_for_threadgroup(0, {"a", "b", 1});
                           },
                           throws),
                       "at the barrier", std::runtime_error);
  CHECK_NOTHROW(soft::run_grid("none", {}, {1024, 1, 1}, {}, nothing, watcher));
}

namespace {
struct Access {
  const void* address;
  std::size_t bytes, alignment;
  bool writes;
  bool operator==(const Access&) const = default;
};
std::vector<Access> accesses;
}  // namespace

TEST_CASE("Every load and store is reported, with what it takes for granted") {
  alignas(16) std::uint8_t bytes[64] = {0, 1, 2};
  alignas(16) float fours[16] = {};
  alignas(16) std::uint8_t blocks[3 * 36] = {};
  std::uint32_t n = 16;
  accesses.clear();
  soft::tracer = [](const void* address, std::size_t size, std::size_t alignment, bool writes) {
    accesses.push_back({address, size, alignment, writes});
  };
  run("accesses", {bytes, fours, blocks, &n}, {}, {});
  soft::tracer = nullptr;
  const auto seen = [](const Access& access) { return std::count(accesses.begin(), accesses.end(), access); };
  CHECK(seen({bytes + 16, 16, 16, false}) == 1);
  CHECK(seen({fours + 4, 16, 16, true}) == 1);
  CHECK(seen({fours + 8, 4, 4, true}) == 1);  // an element alone
  CHECK(seen({&n, 4, 4, false}) == 1);
  CHECK(seen({bytes + 1, 2, 1, false}) + seen({bytes + 1, 1, 1, false}) == 1);  // one of two bytes, or two of one
  const auto covered = [](const std::uint8_t* begin, std::size_t size, bool writes) {
    for (std::size_t i = 0; i < size; ++i) {
      const bool found = std::any_of(accesses.begin(), accesses.end(), [&](const Access& access) {
        const auto* at = static_cast<const std::uint8_t*>(access.address);
        return access.writes == writes && begin + i >= at && begin + i < at + access.bytes;
      });
      if (!found) return false;
    }
    return true;
  };
  CHECK(covered(blocks, 36, false));
  CHECK(covered(blocks + 36, 36, true));
  CHECK(covered(blocks + 72 + 2, 16, true));
  CHECK_FALSE(covered(blocks + 72, 1, true));
  for (const Access& access : accesses) {
    const auto address = reinterpret_cast<std::uintptr_t>(access.address);
    const auto within = [&](const void* begin, std::size_t size) {
      const auto first = reinterpret_cast<std::uintptr_t>(begin);
      return address >= first && address + access.bytes <= first + size;
    };
    INFO("an access of ", access.bytes, " bytes that is none of the kernel's");
    CHECK(
        (within(bytes, sizeof bytes) || within(fours, sizeof fours) || within(blocks, sizeof blocks) || within(&n, 4)));
  }
  // A pointer at an odd place: the vector's alignment is asked for before the load, so the device can say so.
  soft::tracer = [](const void* address, std::size_t, std::size_t alignment, bool) {
    if (reinterpret_cast<std::uintptr_t>(address) % alignment != 0) {
      soft::fail(std::make_exception_ptr(soft::Fault("misaligned")));
    }
  };
  n = 20;
  CHECK_THROWS_WITH_AS(run("accesses", {bytes, fours, blocks, &n}, {}, {}), "misaligned", soft::Fault);
  soft::tracer = nullptr;
}
