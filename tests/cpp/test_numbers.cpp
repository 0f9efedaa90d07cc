// Numbers as text and back, against the C library's and the streams' of the classic locale; and that no locale of the
// process reaches them, nor anything that is made of them: error messages, headers of files, JSON, sessions.
#include <doctest/doctest.h>

#include <bit>
#include <clocale>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <locale>
#include <optional>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/numbers.h"
#include "io/json.h"
#include "model/session.h"
#include "model/session_file.h"
#include "tiny_model.h"

namespace llama2cpp_without_charconv {
void append_number(std::string& out, double number);
std::string fixed_point(double number, int digits);
std::optional<double> parse_number(std::string_view text);
}  // namespace llama2cpp_without_charconv

namespace {

namespace fallback = llama2cpp_without_charconv;
using llama2cpp::cat;
using llama2cpp::JsonDocument;
using llama2cpp::parse_number;

std::string classic(const auto& value, int fixed = -1) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  if (fixed >= 0) text.precision(fixed);
  if (fixed >= 0) text << std::fixed;
  text << value;
  return text.str();
}

std::string spelled_without(double number) {
  std::string text;
  fallback::append_number(text, number);
  return text;
}

// Doubles of all sizes: any bits, and such as people write.
std::vector<double> many_doubles() {
  std::mt19937_64 random(1);
  std::vector<double> numbers = {0.0, -0.0, 1.0, 0.1, 1e-5, 1e5, 1e6, 999999.5, 123456789.0, 1e300, 5e-324, 2.5e-310};
  for (const double limit : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN(),
                             std::numeric_limits<double>::max(), std::numeric_limits<double>::min()}) {
    numbers.push_back(limit);
    numbers.push_back(-limit);
  }
  for (int i = 0; i < 20000; ++i) {
    const std::uint64_t bits = random();
    numbers.push_back(std::bit_cast<double>(bits));
    numbers.push_back(static_cast<double>(static_cast<float>(bits % 1000000)) / 1000.0);
  }
  return numbers;
}

// What a German desktop's program may do to the whole process, for as long as this lives.
class GroupedDigits {
 public:
  GroupedDigits() : before_(std::locale::global(std::locale(std::locale::classic(), new Punctuation))) {
    for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"}) {  // C's, where the system has one
      if (std::setlocale(LC_NUMERIC, name) != nullptr) break;
    }
  }
  ~GroupedDigits() {
    std::locale::global(before_);
    std::setlocale(LC_NUMERIC, "C");
  }
  GroupedDigits(const GroupedDigits&) = delete;
  GroupedDigits& operator=(const GroupedDigits&) = delete;

 private:
  struct Punctuation : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  std::locale before_;
};

}  // namespace

TEST_CASE("cat spells what a stream of the classic locale does") {
  const std::string text = "text";
  const std::string_view view = "view";
  const char* const pointer = "pointer";
  CHECK(cat(text, ' ', view, " ", pointer, "literal") == "text view pointerliteral");
  CHECK(cat() == "");
  const auto same = [](auto number) { CHECK(cat(number) == classic(number)); };
  const auto limits = [&](auto zero) {
    using Limits = std::numeric_limits<decltype(zero)>;
    for (const auto number : {zero, Limits::min(), Limits::max(), Limits::lowest()}) same(number);
  };
  limits(std::int16_t{0});
  limits(std::uint16_t{0});
  limits(int{0});
  limits(unsigned{0});
  limits(long{0});
  limits(static_cast<unsigned long>(0));
  limits(std::int64_t{0});
  limits(std::uint64_t{0});
  limits(std::size_t{0});
  limits(0.0F);
  limits(0.0);
  for (const double number : many_doubles()) {
    // Windows' streams have spellings of their own for what is no number.
    if (std::isnan(number) && classic(number).find('(') != std::string::npos) continue;
    REQUIRE(cat(number) == classic(number));
    REQUIRE(cat(static_cast<float>(number)) == classic(static_cast<float>(number)));
    REQUIRE(spelled_without(number) == classic(number));
    for (const int digits : {0, 3}) {
      REQUIRE(llama2cpp::fixed_point(number, digits) == classic(number, digits));
      REQUIRE(fallback::fixed_point(number, digits) == classic(number, digits));
    }
  }
}

TEST_CASE("a number of a text is the double nearest to it") {
  std::mt19937_64 random(2);
  std::vector<std::string> texts = {"0",     "-0",     "-0.0",     "0e5",    "1e22",    "1e23",    "9007199254740993",
                                    "1e308", "1e-308", "4.9e-324", "1e-999", "-1e-999", "0.1e-400"};
  texts.push_back("0." + std::string(400, '0') + "1e401");
  texts.push_back(std::string(400, '9') + "e-390");
  texts.push_back("2.2250738585072011e-308");
  texts.push_back("1.00000000000000011102230246251565404236316680908203125");  // halfway between two doubles
  for (int i = 0; i < 20000; ++i) {
    std::string digits = cat(random() % 1000, ".", random() % 1000000000);
    if (i % 3 != 0) digits += cat(random());
    if (i % 2 != 0) digits += cat("e", static_cast<int>(random() % 600) - 300);
    texts.push_back(digits);
  }
  for (const std::string& text : texts) {
    CAPTURE(text);
    char* end = nullptr;
    const double expected = std::strtod(text.c_str(), &end);
    for (const auto value : {parse_number(text), fallback::parse_number(text)}) {
      REQUIRE(value);
      REQUIRE(std::bit_cast<std::uint64_t>(*value) == std::bit_cast<std::uint64_t>(expected));
    }
  }
  for (const std::string& text : {std::string("1e999"), std::string("-1e309"), "1" + std::string(400, '0'),
                                  std::string("0.001e99999999999999999999"), std::string("1.8e308")}) {
    CAPTURE(text);
    CHECK(!parse_number(text));
    CHECK(!fallback::parse_number(text));
  }
}

TEST_CASE("no locale of the process reaches a number") {
  std::vector<std::string> expected;
  const std::vector<double> numbers = many_doubles();
  for (const double number : numbers) expected.push_back(cat(number, " ", llama2cpp::fixed_point(number, 3)));
  const GroupedDigits grouped;
  REQUIRE(std::use_facet<std::numpunct<char>>(std::locale()).thousands_sep() == '.');
  CHECK(cat(1234567, " ", std::int64_t{-9876543210}, " ", 1234567.0F, " ", 0.5) ==
        "1234567 -9876543210 1.23457e+06 0.5");
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    REQUIRE(cat(numbers[i], " ", llama2cpp::fixed_point(numbers[i], 3)) == expected[i]);
    REQUIRE(spelled_without(numbers[i]) + " " + fallback::fixed_point(numbers[i], 3) == expected[i]);
  }
  for (const auto value : {parse_number("1234.5678"), fallback::parse_number("1234.5678")}) CHECK(value == 1234.5678);
  const JsonDocument json(R"({"eps": 1e-05, "theta": 1234567.25, "big": 1234567})", "text");
  CHECK(json.root().get("eps").number() == 1e-05);
  CHECK(json.root().get("theta").number() == 1234567.25);
  CHECK(json.root().get("big").int64() == 1234567);
}

TEST_CASE("files and messages are the same under a locale that groups digits") {
  llama2cpp::Config config = tiny::config();
  config.seq_len = 1500;  // a number that is grouped
  const auto model = tiny::model(config, {.threads = 1});
  const auto all = [&] {
    llama2cpp::Session session(model, 0);
    tiny::feed(session, tiny::tokens(1200, 1));
    std::string file;
    const auto add = [&](std::span<const std::byte> more) {
      file.append(reinterpret_cast<const char*>(more.data()), more.size());
    };
    llama2cpp::write_session(session, add, tiny::no_poll);
    const auto loaded =
        llama2cpp::read_session(model, llama2cpp::Buffer::wrap(file.data(), file.size(), nullptr), 0, tiny::no_poll);
    CHECK(loaded->position() == 1200);
    std::string message;
    try {
      tiny::feed(session, {1234567});
    } catch (const std::exception& error) {
      message = error.what();
    }
    CHECK(message.find("1234567") != std::string::npos);
    return std::pair(file, message);
  };
  const auto before = all();
  const GroupedDigits grouped;
  const auto after = all();
  CHECK(after.second == before.second);
  CHECK((after.first == before.first));  // in parentheses: megabytes are not to be printed
}
