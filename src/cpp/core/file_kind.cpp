#include "core/file_kind.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/check.h"

namespace llama2cpp {
namespace {

struct Signature {
  std::string_view start;
  std::string_view what;
};

constexpr std::string_view kLfs = "a Git LFS pointer, not the file itself (run `git lfs pull`)";
constexpr std::string_view kHtml = "an HTML page: the download went wrong";
constexpr std::string_view kXml = "an XML page, as servers send for errors: the download went wrong";
constexpr std::string_view kServerError = "a server's error message: the download went wrong";

// In lower case, after white space and a byte order mark. None of them can begin a file of a format that we read; a chat
// template may begin with '<' all the same, so that is not enough.
constexpr Signature kStandIns[] = {
    {"version https://git-lfs.github.com/spec/", kLfs},
    {"version https://hawser.github.com/spec/", kLfs},  // its first name
    {"<!doctype html", kHtml},
    {"<html", kHtml},
    {"<head>", kHtml},
    {"<body", kHtml},
    {"<?xml", kXml},
    {"<error>", kXml},
    {"entry not found", kServerError},
    {"repository not found", kServerError},
    {"404: not found", kServerError},
    {"invalid username or password", kServerError},
    {"access to model ", kServerError},
    {"{\"error\":", kServerError},
};

// Files that people give by mistake for a checkpoint.
constexpr Signature kSignatures[] = {
    {"lmgg", "a GGML file (the format before GGUF)"},
    {"fmgg", "a GGMF file (a format before GGUF)"},
    {"tjgg", "a GGJT file (a format before GGUF)"},
    {"ak42", "a llama2.c file of a big-endian machine"},
    {"PK\x03\x04",
     "a zip archive, as PyTorch's .pt, .pth and .bin files are (`llama2cpp export` reads Meta's .pth and llama2.c's "
     ".pt, "
     "and writes what opens)"},
    {"\x80\x02", "a Python pickle, as PyTorch's old .pt and .pth files are"},
    {"\x80\x04", "a Python pickle"},
    {"\x89HDF", "an HDF5 file"},
    {"\x1F\x8B", "a gzip archive"},
    {"\x28\xB5\x2F\xFD", "a Zstandard archive"},
    {"<", "an HTML or XML page: the download went wrong"},
    {"{", "a JSON file"},
    {"\x0A\x0E\x0A\x05<unk>", "a SentencePiece tokenizer, which is no checkpoint"},
};

std::string_view text_of(std::span<const std::byte> file) {
  return {reinterpret_cast<const char*>(file.data()), std::min(file.size(), kFileKindBytes)};
}

// A little-endian header length, then JSON.
bool looks_like_safetensors(std::span<const std::byte> file) {
  std::uint64_t header = 0;
  if (file.size() < sizeof(header) + 2) return false;
  std::memcpy(&header, file.data(), sizeof(header));
  return header <= file.size() - sizeof(header) && text_of(file)[sizeof(header)] == '{';
}

// The longest piece's length, then pieces: f32 score, i32 length, bytes. llama2.c's first piece is always <unk>.
bool looks_like_tokenizer_bin(std::span<const std::byte> file) {
  return file.size() >= 17 && text_of(file).substr(12, 5) == "<unk>";
}

}  // namespace

std::string_view find_stand_in(std::span<const std::byte> file) {
  constexpr std::size_t kLongest = 64;  // of the starts above
  std::string_view text = text_of(file);
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return "";
  char lower[kLongest];
  const std::size_t length = std::min(kLongest, text.size() - begin);
  for (std::size_t i = 0; i < length; ++i) {
    const char c = text[begin + i];
    lower[i] = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  for (const Signature& one : kStandIns) {
    if (std::string_view(lower, length).starts_with(one.start)) return one.what;
  }
  return "";
}

void refuse_stand_in(std::span<const std::byte> file, std::string_view what) {
  const std::string_view found = find_stand_in(file);
  if (!found.empty()) throw FormatError(cat("expected ", what, ", found ", found));
}

std::string_view find_file_kind(std::span<const std::byte> file) {
  if (const std::string_view stand_in = find_stand_in(file); !stand_in.empty()) return stand_in;
  if (looks_like_safetensors(file)) return "a safetensors file (one beside its config.json opens)";
  if (looks_like_tokenizer_bin(file)) return "a llama2.c tokenizer.bin, which is no checkpoint";
  for (const Signature& one : kSignatures) {
    if (text_of(file).starts_with(one.start)) return one.what;
  }
  return "";
}

std::string first_bytes(std::span<const std::byte> file) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string hex;
  std::string text;
  for (const char c : text_of(file).substr(0, 8)) {
    const auto byte = static_cast<unsigned char>(c);
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
    hex += ' ';
    text += byte >= 0x20 && byte < 0x7F ? c : '.';
  }
  return cat(hex, "(", text, ")");
}

}  // namespace llama2cpp
