// The JSON parser against tables: what RFC 8259 allows and forbids, exact numbers, and what errors say.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/json.h"

namespace {

using llama2cpp::excerpt;
using llama2cpp::FormatError;
using llama2cpp::Json;
using llama2cpp::JsonDocument;
using llama2cpp::quote;
using namespace std::string_literals;

// The error of anything that throws one; "" for what does not.
template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

std::string error_of_text(std::string_view text) {
  return error_of([&] { const JsonDocument document(text, "text"); });
}

// Every value of a document in one line, so that a test can compare all of it.
std::string dump(const Json& value) {
  switch (value.type()) {
    case Json::Type::null:
      return "null";
    case Json::Type::boolean:
      return value.boolean() ? "true" : "false";
    case Json::Type::integer:
      return value.number() < 0 ? std::to_string(value.int64()) : std::to_string(value.uint64());
    case Json::Type::number:
      return llama2cpp::cat("~", value.number());
    case Json::Type::string:
      return quote(value.string());
    case Json::Type::array: {
      std::string out = "[";
      for (const Json element : value.elements()) out += dump(element) + " ";
      return out + "]";
    }
    case Json::Type::object: {
      std::string out = "{";
      for (const Json member : value.members()) out += quote(member.name()) + dump(member) + " ";
      return out + "}";
    }
  }
  return "";
}

std::string parse(std::string_view text) { return dump(JsonDocument(text, "text").root()); }

}  // namespace

TEST_CASE("texts that are JSON") {
  const struct {
    std::string text;
    std::string expected;
  } kTable[] = {
      {"null", "null"},
      {" \t\r\n true \n", "true"},
      {"[]", "[]"},
      {"{ }", "{}"},
      {"[ 1 , [ ] , { } ]", "[1 [] {} ]"},
      {R"({"a":[false,{"b":null}],"":""})", R"({"a"[false {"b"null } ] """" })"},
      {"0", "0"},
      {"-1", "-1"},
      {"9223372036854775807", "9223372036854775807"},
      {"9223372036854775808", "9223372036854775808"},
      {"18446744073709551615", "18446744073709551615"},
      {"18446744073709551616", "~1.84467e+19"},
      {"-9223372036854775808", "-9223372036854775808"},
      {"-9223372036854775809", "~-9.22337e+18"},
      {"-0", "~-0"},
      {"0.5", "~0.5"},
      {"1e2", "~100"},
      {"1E+2", "~100"},
      {"12.5e-1", "~1.25"},
      {"1e-999", "~0"},
      {R"("")", R"("")"},
      {R"("\"\\\/\b\f\n\r\t")", R"("\"\\/\u0008\u000c\u000a\u000d\u0009")"},
      {R"("a\u0041b")", R"("aAb")"},
      {R"("\u00e9\u20AC\uD83D\ude00")", "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\""},
      {R"("\u0000x")", R"("\u0000x")"},
      {"\"\x7F \xC3\xA9 \xED\x9F\xBF \xEE\x80\x80 \xF4\x8F\xBF\xBF\"",
       "\"\\u007f \xC3\xA9 \xED\x9F\xBF \xEE\x80\x80 \xF4\x8F\xBF\xBF\""},
  };
  for (const auto& [text, expected] : kTable) {
    CAPTURE(text);
    CHECK(parse(text) == expected);
  }
}

TEST_CASE("texts that are not, and where") {
  const struct {
    std::string text;
    std::string error;
  } kTable[] = {
      {"", "byte 0: expected a value, found the end"},
      {"  ", "byte 2: expected a value, found the end"},
      {"nul", "byte 0: expected a value, found 'n'"},
      {"TRUE", "byte 0: expected a value, found 'T'"},
      {"NaN", "byte 0: expected a value, found 'N'"},
      {"Infinity", "byte 0: expected a value, found 'I'"},
      {"\xEF\xBB\xBF{}", "byte 0: expected a value, found byte 239"},
      {"1 2", "byte 2: expected nothing after the value, found '2'"},
      {"{}\0"s, "byte 2: expected nothing after the value, found byte 0"},
      {"[1,]", "byte 3: expected a value, found ']'"},
      {"[,1]", "byte 1: expected a value, found ','"},
      {"[1 2]", "byte 3: expected ',' or ']', found '2'"},
      {"[1", "byte 2: expected ',' or ']', found the end"},
      {"{\"a\":1,}", "byte 7: expected a name in quotes, found '}'"},
      {"{a:1}", "byte 1: expected a name in quotes, found 'a'"},
      {"{\"a\"}", "byte 4: expected ':', found '}'"},
      {"{\"a\":1", "byte 6: expected ',' or '}', found the end"},
      {"{'a':1}", "byte 1: expected a name in quotes, found '''"},
      {"// no\n1", "byte 0: expected a value, found '/'"},
      {"01", "byte 1: expected nothing after the value, found '1'"},
      {"-", "byte 1: expected a digit, found the end"},
      {"-01", "byte 2: expected nothing after the value, found '1'"},
      {"+1", "byte 0: expected a value, found '+'"},
      {".5", "byte 0: expected a value, found '.'"},
      {"5.", "byte 2: expected a digit, found the end"},
      {"1e", "byte 2: expected a digit, found the end"},
      {"1e+", "byte 3: expected a digit, found the end"},
      {"0x10", "byte 1: expected nothing after the value, found 'x'"},
      {"1e999", "byte 0: the number \"1e999\" is too large for a double"},
      {"[-1e999]", "byte 1: the number \"-1e999\" is too large for a double"},
      {"\"a", "byte 0: the string that begins here has no end"},
      {"\"a\\", "byte 3: expected one of \" \\ / b f n r t u after a backslash, found the end"},
      {"\"a\\\"", "byte 0: the string that begins here has no end"},
      {R"("\x41")", "byte 2: expected one of \" \\ / b f n r t u after a backslash, found 'x'"},
      {R"("\u12g4")", "byte 5: expected four hexadecimal digits after \\u, found 'g'"},
      {R"("\u 123")", "byte 3: expected four hexadecimal digits after \\u, found byte 32"},
      {R"("\ud83d")", "byte 1: half of a surrogate pair without the other half"},
      {R"("\ud83d\n")", "byte 1: half of a surrogate pair without the other half"},
      {R"("\ud83dA")", "byte 1: half of a surrogate pair without the other half"},
      {R"("\ud83d\u0041")", "byte 1: half of a surrogate pair without the other half"},
      {R"("\ude00\ud83d")", "byte 1: half of a surrogate pair without the other half"},
      {"\"\n\"", "byte 1: expected an escape (control characters need one), found byte 10"},
      {"\"\0\""s, "byte 1: expected an escape (control characters need one), found byte 0"},
      {"\"\x80\"", "byte 1: expected UTF-8, found byte 128"},
      {"\"\xC0\xAF\"", "byte 1: expected UTF-8, found byte 192"},
      {"\"\xE0\x80\x80\"", "byte 1: expected UTF-8, found byte 224"},
      {"\"\xED\xA0\x80\"", "byte 1: expected UTF-8, found byte 237"},
      {"\"\xF0\x8F\xBF\xBF\"", "byte 1: expected UTF-8, found byte 240"},
      {"\"\xF4\x90\x80\x80\"", "byte 1: expected UTF-8, found byte 244"},
      {"\"\xF5\x80\x80\x80\"", "byte 1: expected UTF-8, found byte 245"},
      {"\"a\xC3\"", "byte 2: expected UTF-8, found byte 195"},
      {"\"a\xE2\x82", "byte 2: expected UTF-8, found byte 226"},
      {R"({"a":1,"b":2,"a":3})", "byte 17: the object has \"a\" twice"},
      {R"({"a":1,"\u0061":3})", "byte 16: the object has \"a\" twice"},
  };
  for (const auto& [text, error] : kTable) {
    CAPTURE(text);
    CHECK(error_of_text(text) == "text: " + error);
  }
}

TEST_CASE("depth has a limit, length has none") {
  const auto nested = [](int depth) {
    return std::string(static_cast<std::size_t>(depth), '[') + std::string(static_cast<std::size_t>(depth), ']');
  };
  CHECK(error_of_text(nested(100)) == "");
  CHECK(error_of_text(nested(101)) == "text: byte 100: more than 100 values within each other");
  CHECK(error_of_text(std::string(1'000'000, '[')) == "text: byte 100: more than 100 values within each other");

  std::string many = "{";
  for (int i = 0; i < 50'000; ++i) many += llama2cpp::cat(i > 0 ? "," : "", "\"name ", i, "\":[", i, "]");
  many += "}";
  const JsonDocument document(many, "many");
  CHECK(document.root().size() == 50'000);
  for (int i = 0; i < 50'000; i += 997) {
    CHECK(document.root().get(llama2cpp::cat("name ", i)).at(0).int64() == i);
  }
}

TEST_CASE("doubles are those that a compiler reads") {
  const struct {
    std::string_view text;
    double expected;
  } kTable[] = {
      {"0.1", 0.1},
      {"1e-5", 1e-5},
      {"3.141592653589793", 3.141592653589793},
      {"1.7976931348623157e308", std::numeric_limits<double>::max()},
      {"-2.2250738585072014e-308", -std::numeric_limits<double>::min()},
      {"4.9406564584124654e-324", std::numeric_limits<double>::denorm_min()},
      {"9007199254740993.0", 9007199254740992.0},
      {"500000", 500000.0},
      {"-7", -7.0},
  };
  for (const auto& [text, expected] : kTable) {
    CAPTURE(text);
    CHECK(JsonDocument(text, "text").root().number() == expected);
  }
  CHECK(std::signbit(JsonDocument("-0", "text").root().number()));
}

TEST_CASE("accessors say where, what they expected and what they found") {
  const std::string_view text =
      R"({"dim": 64, "eps": 1e-5, "name": "x", "tied": true, "none": null, "big": 18446744073709551615, "minus": -1,)"
      R"( "rope": {"factor": "8"}, "layers": [1, [2, {"odd name": 3}]]})";
  const JsonDocument document(text, "config", 1000);
  const Json root = document.root();
  CHECK(root.get("dim").int64() == 64);
  CHECK(root.get("dim").uint64() == 64);
  CHECK(root.get("dim").number() == 64.0);
  CHECK(root.get("name").string() == "x");
  CHECK(root.get("tied").boolean());
  CHECK(root.get("none").is_null());
  CHECK_FALSE(root.find("none"));
  CHECK_FALSE(root.find("nothing"));
  REQUIRE(root.find("dim"));
  CHECK(root.find("dim")->name() == "dim");
  CHECK(root.get("big").uint64() == std::numeric_limits<std::uint64_t>::max());
  CHECK(root.get("minus").int64() == -1);
  CHECK(root.size() == 9);
  CHECK(root.get("layers").size() == 2);

  const Json odd = root.get("layers").at(1).at(1).get("odd name");
  // What an error about `path` says, if the value there begins with `value` in the text.
  const auto expected = [&](const std::string& path, std::string_view value, const std::string& problem) {
    return llama2cpp::cat("config", path, " (byte ", 1000 + text.find(value), "): ", problem);
  };
  CHECK(error_of([&] { root.get("rope").get("factor").number(); }) ==
        expected(".rope.factor", "\"8\"", "expected a number, found a string"));
  CHECK(error_of([&] { root.get("dim").string(); }) == expected(".dim", "64", "expected a string, found an integer"));
  CHECK(error_of([&] { root.get("none").int64(); }) == expected(".none", "null", "expected an integer, found null"));
  CHECK(error_of([&] { root.get("eps").int64(); }) == expected(".eps", "1e-5", "expected an integer, found a number"));
  CHECK(error_of([&] { root.get("tied").elements(); }) ==
        expected(".tied", "true", "expected an array, found a boolean"));
  CHECK(error_of([&] { root.get("rope").at(0); }) == expected(".rope", "{\"f", "expected an array, found an object"));
  CHECK(error_of([&] { root.get("name").size(); }) == expected(".name", "\"x\"", "expected an array, found a string"));
  CHECK(error_of([&] { root.get("layers").members(); }) ==
        expected(".layers", "[1", "expected an object, found an array"));
  CHECK(error_of([&] { root.get("layers").get("x"); }) ==
        expected(".layers", "[1", "expected an object, found an array"));
  CHECK(error_of([&] { root.get("layers").at(2); }) ==
        expected(".layers", "[1", "expected at least 3 elements, found 2"));
  CHECK(error_of([&] { root.get("big").int64(); }) ==
        expected(".big", "184", "expected an integer below 2^63, found 18446744073709551615"));
  CHECK(error_of([&] { root.get("minus").uint64(); }) ==
        expected(".minus", "-1", "expected an integer of 0 or more, found -1"));
  CHECK(error_of([&] { root.get("seq_len"); }) == expected("", "{", "expected a member \"seq_len\", found none"));
  CHECK(error_of([&] { odd.boolean(); }) ==
        expected(".layers[1][1][\"odd name\"]", "3}", "expected a boolean, found an integer"));
  CHECK(error_of([&] { odd.fail("no good"); }) == expected(".layers[1][1][\"odd name\"]", "3}", "no good"));
}

TEST_CASE("what is quoted is read again, and excerpts end between characters") {
  std::string all;
  for (char c = 0; c < 127; ++c) all += c;
  all += "\x7F\xC3\xA9\xF0\x9F\x98\x80";
  CHECK(JsonDocument(quote(all), "text").root().string() == all);

  CHECK(excerpt("short") == "\"short\"");
  CHECK(excerpt(std::string(59, 'x') + "\xC3\xA9" + "more") == "\"" + std::string(59, 'x') + "\"...");
  CHECK(excerpt(std::string(60, 'x')) == "\"" + std::string(60, 'x') + "\"");
}
