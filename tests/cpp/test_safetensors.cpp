// The safetensors container: where tensors lie, by numbers written down by hand. What damaged headers say is tested by
// way of session files, in tests/engine/test_session_file.py.
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "core/check.h"
#include "io/safetensors.h"

namespace {

using llama2cpp::Buffer;
using llama2cpp::FormatError;
using llama2cpp::NamedShape;
using llama2cpp::SafetensorsHeader;

// The bytes are those of `text`, which must outlive the buffer.
Buffer buffer_of(const std::string& text) { return Buffer::wrap(text.data(), text.size(), nullptr); }

// A header with the length that it needs, and `bytes` of data.
std::string file(const std::string& json, std::size_t bytes) {
  const std::uint64_t size = json.size();
  std::string text(sizeof(size), '\0');
  std::memcpy(text.data(), &size, sizeof(size));
  return text + json + std::string(bytes, 'x');
}

SafetensorsHeader read(const std::string& text) { return llama2cpp::read_safetensors_header(buffer_of(text)); }

std::string error_of(const std::string& text) {
  try {
    read(text);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("tensors of every kind, in any order") {
  const std::string json =
      R"({"b":{"data_offsets":[2,8],"shape":[3],"dtype":"BF16"},"scalar":{"dtype":"U8","shape":[],"data_offsets":[0,1]},)"
      R"("__metadata__":{"x":"y","":"\u00e9"},"empty":{"dtype":"F64","shape":[2,0,5],"data_offsets":[8,8]},)"
      R"("fours":{"dtype":"F4","shape":[2],"data_offsets":[1,2],"more":[1,2]}}   )";
  const SafetensorsHeader header = read(file(json, 8));
  const std::size_t data = 8 + json.size();
  CHECK(header.metadata.size() == 2);
  CHECK(header.metadata.at("x") == "y");
  CHECK(header.metadata.at("") == "\xC3\xA9");
  REQUIRE(header.tensors.size() == 4);
  const auto check = [&](const char* name, const char* dtype, std::vector<std::int64_t> shape, std::size_t begin,
                         std::size_t end) {
    CAPTURE(name);
    const llama2cpp::SafetensorsTensor& tensor = header.tensors.at(name);
    CHECK(tensor.dtype == dtype);
    CHECK(tensor.shape == shape);
    CHECK(tensor.begin == data + begin);
    CHECK(tensor.end == data + end);
  };
  check("scalar", "U8", {}, 0, 1);
  check("fours", "F4", {2}, 1, 2);
  check("b", "BF16", {3}, 2, 8);
  check("empty", "F64", {2, 0, 5}, 8, 8);
}

TEST_CASE("a file without tensors") {
  CHECK(read(file("{}", 0)).tensors.empty());
  CHECK(read(file(R"({"__metadata__":{}})", 0)).metadata.empty());
  CHECK(error_of(file("{}", 1)) == "expected 10 bytes, which is where the last tensor ends, found 11");
}

TEST_CASE("every byte is one tensor's") {
  const std::string hole = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                           R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})";
  CHECK(error_of(file(hole, 3)) == llama2cpp::cat("tensor \"b\" begins at byte ", 8 + hole.size() + 2, ", expected ",
                                                  8 + hole.size() + 1, ", where the tensor before it ends"));
  const std::string overlap = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                              R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})";
  CHECK(error_of(file(overlap, 3)) == llama2cpp::cat("tensor \"b\" begins at byte ", 8 + overlap.size() + 1,
                                                     ", expected ", 8 + overlap.size() + 2,
                                                     ", where the tensor before it ends"));
  const std::string inside = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                             R"("b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}})";
  CHECK(error_of(file(inside, 2)).find("tensor \"b\" begins at byte") == 0);
}

TEST_CASE("a header longer than 100 MB is refused, whatever the file's length is") {
  const std::string text = file("{}", 100'000'010);
  std::string damaged = text;
  const std::uint64_t size = 100'000'001;
  std::memcpy(damaged.data(), &size, sizeof(size));
  CHECK(error_of(damaged) == "the header's length (byte 0) is 100000001, expected at most 100000000");
}

TEST_CASE("what is written is read") {
  const std::vector<NamedShape> tensors = {
      {"layers.0.\"odd\"", "F16", {2, 3}}, {"none", "F32", {0, 7}}, {"ids", "I32", {5}}, {"scalar", "I64", {}}};
  const std::string start = llama2cpp::write_safetensors_header({{"a", "b"}, {"c", "d\n\xC3\xA9"}}, tensors);
  CHECK(start.size() % 8 == 0);
  const SafetensorsHeader header = read(start + std::string(12 + 0 + 20 + 8, 'x'));
  CHECK(header.metadata.size() == 2);
  CHECK(header.metadata.at("c") == "d\n\xC3\xA9");
  REQUIRE(header.tensors.size() == 4);
  std::size_t end = start.size();
  for (const NamedShape& tensor : tensors) {
    const llama2cpp::SafetensorsTensor& found = header.tensors.at(tensor.name);
    CHECK(found.dtype == tensor.dtype);
    CHECK(found.shape == tensor.shape);
    CHECK(found.begin == end);
    end = found.end;
  }
  CHECK(end == start.size() + 40);
  const std::vector<NamedShape> wrong = {{"x", "F33", {1}}};
  CHECK_THROWS_AS(llama2cpp::write_safetensors_header({}, wrong), std::invalid_argument);
}
