// Rows to formats and back, and parts of weights as numbers: the same whatever the threads and whichever part is asked for.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "format/encode_rows.h"
#include "format/gptq.h"
#include "format/gptq_store.h"
#include "format/weight_rows.h"
#include "tiny_model.h"

namespace {

using namespace llama2cpp;

constexpr std::int64_t kRows = 5;
constexpr std::int64_t kCols = 512;

std::vector<float> numbers(std::size_t count) {
  tiny::Random random(7);
  std::vector<float> values(count);
  for (float& value : values) value = random.uniform();
  return values;
}

std::vector<const Format*> written() {
  std::vector<const Format*> formats;
  for (const Format* format : all_formats()) {
    if (format->encode != nullptr) formats.push_back(format);
  }
  return formats;
}

std::vector<std::byte> encoded(const Format& format, const std::vector<float>& values, int threads) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(kRows * row_bytes(format, kCols)));
  ThreadPool pool(threads);
  encode_rows(format, values, kCols, {}, bytes.data(), pool);
  return bytes;
}

Weight weight_of(const Format& format, const std::vector<std::byte>& bytes) {
  Weight weight;
  weight.name = std::string("w");
  weight.format = &format;
  weight.rows = kRows;
  weight.cols = kCols;
  weight.group = format.group;
  weight.planes[0] = {bytes.data(), bytes.size(), row_bytes(format, kCols), {}};
  return weight;
}

template <class Call>
std::string error_of(Call call) {
  try {
    call();
    return "";
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("rows have the same bytes and the same numbers with any number of threads") {
  const std::vector<float> values = numbers(kRows * kCols);
  REQUIRE(written().size() >= 13);
  for (const Format* format : written()) {
    CAPTURE(format->name);
    const std::vector<std::byte> bytes = encoded(*format, values, 1);
    CHECK(bytes == encoded(*format, values, 4));
    std::vector<float> whole(values.size());
    decode(weight_of(*format, bytes), whole.data());
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      std::vector<float> decoded(values.size());
      decode_rows(*format, bytes, kCols, decoded.data(), pool);
      CHECK(decoded == whole);
    }
  }
}

TEST_CASE("rows and columns of a weight are parts of all its numbers") {
  const std::vector<float> values = numbers(kRows * kCols);
  for (const Format* format : written()) {
    CAPTURE(format->name);
    const std::vector<std::byte> bytes = encoded(*format, values, 1);
    const Weight weight = weight_of(*format, bytes);
    std::vector<float> whole(values.size());
    decode(weight, whole.data());

    const std::vector<std::int64_t> rows = {4, 0, 4};
    std::vector<float> some(rows.size() * kCols);
    decode_rows(weight, rows, some.data());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      CHECK(std::equal(some.begin() + static_cast<std::ptrdiff_t>(i) * kCols,
                       some.begin() + static_cast<std::ptrdiff_t>(i + 1) * kCols, whole.begin() + rows[i] * kCols));
    }
    for (const auto& [begin, count] : {std::pair<std::int64_t, std::int64_t>{0, kCols},
                                       {0, 1},
                                       {31, 2},
                                       {256, 256},
                                       {257, 255},
                                       {511, 1},
                                       {100, 0},
                                       {512, 0}}) {
      std::vector<float> columns(static_cast<std::size_t>(kRows * count));
      decode_columns(weight, begin, count, columns.data());
      for (std::int64_t row = 0; row < kRows; ++row) {
        CHECK(std::equal(columns.begin() + row * count, columns.begin() + (row + 1) * count,
                         whole.begin() + row * kCols + begin));
      }
    }
    CHECK(error_of([&] { decode_rows(weight, std::vector<std::int64_t>{5}, nullptr); }) ==
          "row is 5, but 'w' has 5 rows");
    CHECK(!error_of([&] { decode_rows(weight, std::vector<std::int64_t>{-1}, nullptr); }).empty());
    constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
    for (const auto& [begin, count] : {std::pair<std::int64_t, std::int64_t>{-1, 1},
                                       {0, -1},
                                       {0, 513},
                                       {512, 1},
                                       {kMost, 1},
                                       {1, kMost},
                                       {kMost, kMost}}) {
      CHECK(!error_of([&] { decode_columns(weight, begin, count, nullptr); }).empty());
    }
  }
}

TEST_CASE("the bytes of a row and its columns say the same") {
  for (const Format* format : all_formats()) {
    if (format->group == 0) {
      CHECK(!error_of([&] { find_row_format(format->name); }).empty());
      continue;
    }
    CHECK(&find_row_format(format->name) == format);
    for (const std::int64_t groups : {0, 1, 3, 1000}) {
      const std::int64_t columns = groups * format->group;
      const std::int64_t bytes = checked_row_bytes(*format, columns);
      CHECK(bytes == groups * format->group_bytes);
      CHECK(checked_row_columns(*format, bytes) == columns);
    }
    if (format->group > 1) CHECK(!error_of([&] { checked_row_bytes(*format, format->group + 1); }).empty());
    CHECK(!error_of([&] { checked_row_bytes(*format, -format->group); }).empty());
    if (format->group_bytes > 1) {
      CHECK(!error_of([&] { checked_row_columns(*format, format->group_bytes + 1); }).empty());
    }
  }
}

TEST_CASE("numbers that a format cannot hold are refused by their place") {
  std::vector<float> values = numbers(kRows * kCols);
  values[700] = 65505.0F;
  for (const Format* format : written()) {
    const std::string said = error_of([&] { encoded(*format, values, 2); });
    CHECK(said == (format->quantized ? "number 700 is 65505, expected a number from -65504 to 65504" : ""));
  }
  values[700] = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::int8_t> q(values.size());
  std::vector<float> scales(values.size());
  ThreadPool pool(1);
  CHECK(!error_of([&] { encode_int8_groups(values, kCols, 64, q.data(), scales.data(), pool); }).empty());
  CHECK(!error_of([&] { encode_llm_int8_rows(values, kCols, q.data(), scales.data(), pool); }).empty());
  values[700] = 0.0F;
  CHECK(error_of([&] { encode_int8_groups(values, kCols, 60, q.data(), scales.data(), pool); }) ==
        "group is 60, expected a divisor of 512");
  CHECK(!error_of([&] { encode_int8_groups(values, kCols, 0, q.data(), scales.data(), pool); }).empty());
}

TEST_CASE("threads are as many as the numbers are worth, and no more than asked for") {
  CHECK(threads_for_rows(100, 1000, 8) == 1);
  CHECK(threads_for_rows(100, 1 << 18, 8) == 4);
  CHECK(threads_for_rows(100, 1 << 30, 8) == 8);
  CHECK(threads_for_rows(3, 1 << 30, 8) == 3);
  CHECK(threads_for_rows(0, 0, 8) == 1);
  CHECK(error_of([] { threads_for_rows(1, 1, 0); }) == "threads is 0, expected 1 to 1024, or None");
  CHECK(!error_of([] { checked_threads(1025); }).empty());
  CHECK(checked_threads(1024) == 1024);
  CHECK(checked_threads({}) == default_threads());
}

TEST_CASE("GPTQ's planes hold the numbers that they are said to") {
  constexpr std::int64_t kOut = 32;
  constexpr std::int64_t kIn = 96;
  const std::vector<float> values = numbers(kOut * kIn);
  std::vector<std::int32_t> order(kIn);
  std::iota(order.begin(), order.end(), 0);
  std::reverse(order.begin(), order.end());
  for (const int bits : {2, 3, 4, 8}) {
    for (const int version : {1, 2}) {
      for (const bool symmetric : {true, false}) {
        for (const std::int64_t group : {32, 64, -1}) {
          const GptqSizes sizes = gptq_sizes(kOut, kIn, bits, group);
          std::vector<std::uint32_t> words(static_cast<std::size_t>(sizes.weight_words * kOut));
          std::vector<std::uint32_t> zeros(static_cast<std::size_t>(sizes.groups * sizes.zero_words));
          std::vector<std::uint16_t> scales(static_cast<std::size_t>(sizes.groups * kOut));
          std::vector<std::int32_t> g_idx(kIn);
          std::vector<float> stored(values.size());
          ThreadPool pool(2);
          gptq_store(values, order, {}, {bits, sizes.group, symmetric, true}, version,
                     {words, zeros, scales, g_idx, stored}, pool);
          Weight weight;
          weight.format = &find_format(cat("gptq", bits, version == 1 ? "" : "_v2"));
          weight.rows = kOut;
          weight.cols = kIn;
          weight.group = sizes.group;
          const auto plane = [](auto& numbers_) {
            const auto bytes = std::as_bytes(std::span(numbers_));
            return Plane{bytes.data(), bytes.size(), 0, {}};
          };
          weight.planes = {plane(words), plane(scales), plane(zeros), plane(g_idx)};
          std::vector<float> decoded(values.size());
          decode(weight, decoded.data());
          CAPTURE(bits);
          CAPTURE(version);
          CAPTURE(group);
          CHECK(decoded == stored);
        }
      }
    }
  }
  CHECK(!error_of([] { gptq_sizes(32, 96, 5, 32); }).empty());
  CHECK(!error_of([] { gptq_sizes(31, 96, 4, 32); }).empty());
  CHECK(!error_of([] { gptq_sizes(0, 96, 4, 32); }).empty());
  CHECK(!error_of([] { gptq_sizes(32, 96, 4, 0); }).empty());
  CHECK(gptq_sizes(32, 96, 4, 1000).group == 96);
}
