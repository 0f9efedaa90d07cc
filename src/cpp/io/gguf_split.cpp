// GGUF models in several files, as llama-gguf-split and llama.cpp's converter write them. Every file says which one it is
// (split.no, from 0), how many there are (split.count) and how many tensors all have together (split.tensors.count); the
// name says the first two again, counted from 1.
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/gguf_model.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kNumber = "split.no";
constexpr std::string_view kCount = "split.count";
constexpr std::string_view kTensors = "split.tensors.count";
constexpr std::int64_t kMostParts = 65'535;  // the metadata are uint16

std::int64_t part_number(const Gguf& gguf) { return gguf.integer(kNumber).value_or(0); }

std::string five_digits(std::int64_t number) {
  std::string digits = cat(number);
  if (digits.size() < 5) digits.insert(0, 5 - digits.size(), '0');
  return digits;
}

// "-00002-of-00003.gguf" for part 1 of 3.
std::string suffix_of(std::int64_t no, std::int64_t count) {
  return cat("-", five_digits(no + 1), "-of-", five_digits(count), ".gguf");
}

std::string_view file_name(std::string_view path) {
  const std::size_t slash = path.find_last_of("/\\");
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

// The path without its suffix. The files that it names are all of the model.
std::string stem_of(const Gguf& gguf, std::string_view path, std::int64_t no, std::int64_t count) {
  const std::string suffix = suffix_of(no, count);
  if (!path.ends_with(suffix) || path.size() == suffix.size()) {
    gguf.fail(kCount, cat(count, ": the file is part ", no + 1, " of ", count,
                          " of a model, expected a name that ends in ", suffix));
  }
  return std::string(path.substr(0, path.size() - suffix.size()));
}

void check_part(const Gguf& gguf, std::int64_t no, std::int64_t count) {
  const std::int64_t own_count = gguf.integer(kCount).value_or(1);
  if (own_count != count) throw FormatError(cat("metadata '", kCount, "' is ", own_count, ", expected ", count));
  if (part_number(gguf) != no) {
    throw FormatError(cat("metadata '", kNumber, "' is ", part_number(gguf), ", which is part ", part_number(gguf) + 1,
                          ", expected ", no, ", as its name says"));
  }
}

}  // namespace

std::vector<Buffer> add_gguf_parts(Gguf& gguf, const std::string& path,
                                   const std::function<Buffer(const std::string&)>& open) {
  const std::int64_t count = gguf.integer(kCount).value_or(1);
  const std::int64_t no = part_number(gguf);
  if (count <= 1 && no == 0) return {};
  if (count < 1 || count > kMostParts) gguf.fail(kCount, cat(count, ", expected 1 to ", kMostParts));
  if (no < 0 || no >= count) gguf.fail(kNumber, cat(no, ", expected 0 to ", count - 1));
  const std::string stem = stem_of(gguf, path, no, count);
  if (no != 0) {
    gguf.fail(kNumber, cat(no, ": the file is part ", no + 1, " of ", count, " of a model; open the first, ",
                           file_name(cat(stem, suffix_of(0, count)))));
  }
  if (!open) gguf.fail(kCount, cat(count, ": the other parts of this model can only be opened beside a file"));
  std::vector<Buffer> files;
  for (std::int64_t i = 1; i < count; ++i) files.push_back(open(cat(stem, suffix_of(i, count))));
  const FileReads reads(files);  // names of tensors lie in all of them, and are compared
  for (std::int64_t i = 1; i < count; ++i) {
    try {
      const Gguf part(files[static_cast<std::size_t>(i - 1)]);
      check_part(part, i, count);
      gguf.add_tensors(part);
    } catch (const FormatError& error) {
      throw FormatError(cat(file_name(cat(stem, suffix_of(i, count))), ": ", error.what()));
    }
  }
  const auto tensors = static_cast<std::int64_t>(gguf.tensors().size());
  if (const auto expected = gguf.integer(kTensors); expected && *expected != tensors) {
    gguf.fail(kTensors, cat(*expected, ", but the ", count, " files have ", tensors, " tensors together"));
  }
  reads.check();
  return files;
}

}  // namespace llama2cpp
