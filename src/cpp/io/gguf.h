// The container of GGUF files, versions 2 and 3: metadata by key, and where each tensor lies. What they mean for a model
// is for gguf_model.cpp to say.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/buffer.h"
#include "format/format.h"

namespace llama2cpp {

// The numbers are the file's.
enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// A value in the metadata, checked to lie inside the file. `type` and `count` are an array's elements'.
struct GgufValue {
  GgufType type = GgufType::u8;
  bool is_array = false;
  std::uint64_t count = 1;
  std::size_t offset = 0;  // of the first byte in the file
};

// A tensor whose type we read, checked to lie inside its file and to overlap no other.
struct GgufTensor {
  Buffer file;  // which of a split model's it is in
  const Format* format = nullptr;
  std::vector<std::int64_t> shape;  // 1 to 4 sizes of 1 or more, ggml's order: the length of a row comes first
  std::size_t described = 0;        // the byte in the header where the tensor's entry begins
  std::size_t begin = 0;            // the tensor's bytes in the file
  std::size_t end = 0;
};

class Gguf {
 public:
  // Throws FormatError, with the tensor or key and the byte, for any file that is not as the format demands. Reads the
  // header only.
  explicit Gguf(const Buffer& file);

  std::uint32_t version() const { return version_; }
  const std::map<std::string_view, GgufValue>& metadata() const { return metadata_; }
  const std::map<std::string_view, GgufTensor>& tensors() const { return tensors_; }

  // Adds the tensors of another file of the same model. Throws FormatError for one that is here already.
  void add_tensors(const Gguf& part);

  // The values of metadata; nothing where the key is missing. Throw FormatError for a value of another type.
  // Integers may be of any width and are what they are; a number is a float of either width. A string that is read has
  // to be UTF-8; those that nobody reads, such as descriptions, may be any bytes.
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> string(std::string_view key) const;
  std::optional<std::vector<std::int64_t>> integers(std::string_view key) const;
  std::optional<std::vector<bool>> booleans(std::string_view key) const;
  std::optional<std::vector<float>> numbers(std::string_view key) const;
  std::optional<std::vector<std::string_view>> strings(std::string_view key) const;

  // Throws FormatError: "metadata 'key' (byte n) is ...".
  [[noreturn]] void fail(std::string_view key, std::string_view problem) const;

 private:
  const GgufValue* find(std::string_view key, bool array) const;
  std::string_view text_at(std::string_view key, std::size_t offset) const;

  Buffer file_;
  std::uint32_t version_ = 0;
  std::map<std::string_view, GgufValue> metadata_;  // the keys are views of the file
  std::map<std::string_view, GgufTensor> tensors_;  // so are the names, each of its tensor's file
};

// Whether the file begins as a GGUF does.
bool has_gguf_magic(const Buffer& file);

}  // namespace llama2cpp
