// THE list of readers, and what is said of a file that none of them knows.
#include "io/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <ios>

#include "core/check.h"
#include "format/weight_rows.h"
#include "io/hf.h"

namespace llama2cpp {
namespace {

// Adding a file format: a new file beside llama2c.cpp, and one line here. The first that recognises a file opens it,
// so llama2.c v0, which has no magic, is the last.
constexpr const Reader* kReaders[] = {
    &kGguf,
    &kPanelFile,
    &kLlama2cV1,
    &kLlama2cV0,
};

struct Signature {
  std::string_view start;
  std::string_view what;
};

// Files that people give by mistake, by their first bytes.
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
    {"version https://git-lfs", "a Git LFS pointer, not the file itself (run `git lfs pull`)"},
    {"<", "an HTML or XML page: the download went wrong"},
    {"{", "a JSON file"},
    {"\x0A\x0E\x0A\x05<unk>", "a SentencePiece tokenizer, which is no checkpoint"},
};

std::string_view text_of(const Buffer& file) { return {reinterpret_cast<const char*>(file.data()), file.size()}; }

// A little-endian header length, then JSON.
bool looks_like_safetensors(const Buffer& file) {
  std::uint64_t header = 0;
  if (file.size() < sizeof(header) + 2) return false;
  std::memcpy(&header, file.data(), sizeof(header));
  return header <= file.size() - sizeof(header) && text_of(file)[sizeof(header)] == '{';
}

// The longest piece's length, then pieces: f32 score, i32 length, bytes. llama2.c's first piece is always <unk>.
bool looks_like_tokenizer_bin(const Buffer& file) {
  return file.size() >= 17 && text_of(file).substr(12, 5) == "<unk>";
}

// "" for bytes that say nothing to us.
std::string_view looks_like(const Buffer& file) {
  if (looks_like_safetensors(file)) return "a safetensors file (one beside its config.json opens)";
  if (looks_like_tokenizer_bin(file)) return "a llama2.c tokenizer.bin, which is no checkpoint";
  for (const Signature& signature : kSignatures) {
    if (text_of(file).starts_with(signature.start)) return signature.what;
  }
  return "";
}

// "47 47 55 46 (GGUF)"
std::string first_bytes(const Buffer& file) {
  std::ostringstream hex;
  std::string text;
  hex << std::hex;
  for (const char c : text_of(file).substr(0, 8)) {
    const auto byte = static_cast<unsigned char>(c);
    hex << (byte >> 4) << (byte & 15) << ' ';
    text += byte >= 0x20 && byte < 0x7F ? c : '.';
  }
  return cat(hex.str(), "(", text, ")");
}

[[noreturn]] void throw_unknown(const Buffer& file) {
  const std::string_view guess = looks_like(file);
  std::string tried;
  for (const Reader* reader : kReaders) {
    tried += cat(tried.empty() ? "" : "; ", reader->name, ": ", reader->why_not(file));
  }
  throw FormatError(cat("not a checkpoint that this version reads. ", guess.empty() ? "" : "This looks like ", guess,
                        guess.empty() ? "It" : ". It", " has ", file.size(), " bytes and begins with ",
                        first_bytes(file), ". Tried ", tried));
}

Checkpoint open_with_a_reader(const Buffer& file, const std::string& path) {
  const auto knows = [&](const Reader* reader) { return reader->why_not(file).empty(); };
  const auto* const found = std::find_if(std::begin(kReaders), std::end(kReaders), knows);
  if (found == std::end(kReaders)) throw_unknown(file);
  return (*found)->open(path, file);
}

}  // namespace

const Weight& Checkpoint::weight(const std::string& name) const {
  const auto found = weights.find(name);
  if (found == weights.end()) {
    throw FormatError(cat(path, path.empty() ? "" : ": ", "tensor '", name, "' is missing from the ", weights.size(),
                          " tensors of this ", file_format, " checkpoint"));
  }
  return found->second;
}

std::vector<Buffer> mapped_files(const Checkpoint& checkpoint) {
  std::vector<Buffer> files;
  for (const auto& [name, weight] : checkpoint.weights) add_files(weight, files);
  return files;
}

MatrixShape part_shape(const Config& config, Part part) {
  switch (part) {
    case Part::tok_embeddings:
    case Part::output:
      return {config.vocab_size, config.dim};
    case Part::attention_norm:
    case Part::ffn_norm:
    case Part::norm:
      return {1, config.dim};
    case Part::wq:
      return {config.q_dim(), config.dim};
    case Part::wk:
    case Part::wv:
      return {config.kv_dim(), config.dim};
    case Part::wo:
      return {config.dim, config.q_dim()};
    case Part::w1:
    case Part::w3:
      return {config.hidden_dim, config.dim};
    case Part::w2:
      return {config.dim, config.hidden_dim};
    case Part::bq:
      return {1, config.q_dim()};
    case Part::bk:
    case Part::bv:
      return {1, config.kv_dim()};
    case Part::bo:
    case Part::b2:
      return {1, config.dim};
    case Part::b1:
    case Part::b3:
      return {1, config.hidden_dim};
  }
  throw std::invalid_argument(cat("no such part: ", static_cast<int>(part)));
}

Checkpoint open_checkpoint(const Buffer& file, const std::string& path) {
  const FileReads reads({&file, 1});
  try {
    Checkpoint checkpoint = open_with_a_reader(file, path);
    reads.check();
    checkpoint.path = path;
    return checkpoint;
  } catch (const FormatError& error) {
    throw FormatError(cat(path, ": ", error.what()));
  }
}

Checkpoint open_checkpoint(const std::string& path, bool use_mmap) {
  const std::optional<FolderPath> folder = find_hf_folder(path);
  if (!folder) return open_checkpoint(Buffer::file(path, use_mmap), path);
  try {
    Checkpoint checkpoint = open_hf_folder(*folder, use_mmap);
    checkpoint.path = path;
    return checkpoint;
  } catch (const FormatError& error) {
    throw FormatError(cat(path, ": ", error.what()));
  }
}

}  // namespace llama2cpp
