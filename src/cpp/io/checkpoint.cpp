// THE list of readers, and what is said of a file that none of them knows.
#include "io/checkpoint.h"

#include <algorithm>
#include <span>

#include "core/check.h"
#include "core/file_kind.h"
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

[[noreturn]] void throw_unknown(const Buffer& file) {
  const std::span<const std::byte> bytes(file.data(), file.size());
  const std::string_view guess = find_file_kind(bytes);
  std::string tried;
  for (const Reader* reader : kReaders) {
    tried += cat(tried.empty() ? "" : "; ", reader->name, ": ", reader->why_not(file));
  }
  throw FormatError(cat("not a checkpoint that this version reads. ", guess.empty() ? "" : "This looks like ", guess,
                        guess.empty() ? "It" : ". It", " has ", file.size(), " bytes and begins with ",
                        first_bytes(bytes), ". Tried ", tried));
}

Checkpoint open_with_a_reader(const Buffer& file, const std::string& path, const OpenBeside& open_beside) {
  const auto knows = [&](const Reader* reader) { return reader->why_not(file).empty(); };
  const auto* const found = std::find_if(std::begin(kReaders), std::end(kReaders), knows);
  if (found == std::end(kReaders)) throw_unknown(file);
  return (*found)->open(path, file, open_beside);
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

bool is_vector(const Checkpoint& checkpoint, const Weight& weight) {
  const auto found = find_part(checkpoint.naming, weight.name);
  return found && is_vector(found->part);
}

Checkpoint open_checkpoint(const Buffer& file, const std::string& path, const OpenBeside& open_beside) {
  const FileReads reads({&file, 1});
  try {
    Checkpoint checkpoint = open_with_a_reader(file, path, open_beside);
    reads.check();
    checkpoint.path = path;
    return checkpoint;
  } catch (const FormatError& error) {
    throw FormatError(cat(path, ": ", error.what()));
  }
}

Checkpoint open_checkpoint(const std::string& path, bool use_mmap) {
  const std::optional<FolderPath> folder = find_hf_folder(path);
  const auto open = [&](const std::string& file) { return Buffer::file(file, use_mmap); };
  if (!folder) return open_checkpoint(open(path), path, open);
  try {
    Checkpoint checkpoint = open_hf_folder(*folder, use_mmap);
    checkpoint.path = path;
    return checkpoint;
  } catch (const FormatError& error) {
    throw FormatError(cat(path, ": ", error.what()));
  }
}

}  // namespace llama2cpp
