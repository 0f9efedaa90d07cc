// Tensors of Hugging Face folders that hold several weights, the rows of one behind those of the other: they become tensors of
// their own, where they lie or as copies.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/families.h"
#include "io/hf.h"
#include "io/names.h"

namespace llama2cpp {
namespace {

// What a module's tensors have for each row of its weight: a row, a column, or nothing, being the same for all.
enum class Along : std::uint8_t { rows, columns, none };

struct PlaneKind {
  std::string_view ending;
  Along along;
};

constexpr PlaneKind kPlaneKinds[] = {
    {".weight", Along::rows},
    {".bias", Along::rows},
    {".qweight", Along::columns},
    {".scales", Along::columns},
    {".qzeros", Along::columns},
    {".g_idx", Along::none},
    {".SCB", Along::rows},
    {".weight_format", Along::none},
    {".outlier_columns", Along::none},
    {".outlier_weight", Along::rows},
};

// Rows where they lie.
Placed cut_rows(const Placed& whole, std::int64_t first, std::int64_t count) {
  Placed placed = whole;
  const std::size_t all = whole.tensor.end - whole.tensor.begin;
  const std::size_t row = all / static_cast<std::size_t>(whole.tensor.shape[0]);
  placed.tensor.shape[0] = count;
  placed.tensor.begin += static_cast<std::size_t>(first) * row;
  placed.tensor.end = placed.tensor.begin + static_cast<std::size_t>(count) * row;
  return placed;
}

// Columns of a matrix, copied: GPTQ's planes have a column for each row of the weight.
Placed cut_columns(const Placed& whole, std::int64_t first, std::int64_t count) {
  Placed placed = whole;
  const auto rows = static_cast<std::size_t>(whole.tensor.shape[0]);
  const std::size_t row = rows == 0 ? 0 : (whole.tensor.end - whole.tensor.begin) / rows;
  const std::size_t each = row / static_cast<std::size_t>(whole.tensor.shape[1]);
  const std::size_t kept = static_cast<std::size_t>(count) * each;
  placed.file = Buffer::heap(rows * kept);
  for (std::size_t i = 0; i < rows; ++i) {
    std::memcpy(placed.file.data() + i * kept, whole.bytes() + i * row + static_cast<std::size_t>(first) * each, kept);
  }
  placed.tensor.shape[1] = count;
  placed.tensor.begin = 0;
  placed.tensor.end = rows * kept;
  return placed;
}

// GPTQ's zeros of several rows share a word: how many of the columns are for so many of all rows.
std::int64_t words_of(const std::string& name, const Placed& whole, std::int64_t rows, std::int64_t all) {
  const std::int64_t words = whole.tensor.shape[1];
  if (words < 1 || words > all || words * rows % all != 0) {
    throw FormatError(cat(whole.file_name, ": tensor ", excerpt(name), " is ", whole.describe(), ", and ", rows, " of ",
                          all, " rows are no whole number of its columns"));
  }
  return words * rows / all;
}

const PlaneKind* kind_of(std::string_view name) {
  const auto* const kind = std::find_if(std::begin(kPlaneKinds), std::end(kPlaneKinds),
                                        [&](const PlaneKind& known) { return name.ends_with(known.ending); });
  return kind == std::end(kPlaneKinds) ? nullptr : kind;
}

}  // namespace

std::string_view plane_ending(std::string_view name) {
  const PlaneKind* const kind = kind_of(name);
  return kind == nullptr ? std::string_view() : kind->ending;
}

std::optional<std::int64_t> rows_of_plane(std::string_view name, const Placed& placed) {
  const PlaneKind* const kind = kind_of(name);
  const std::vector<std::int64_t>& shape = placed.tensor.shape;
  if (kind == nullptr || kind->along == Along::none || kind->ending == ".qzeros") return {};
  const std::size_t axis = kind->along == Along::columns ? 1 : 0;
  return axis < shape.size() ? std::optional(shape[axis]) : std::nullopt;
}

void split_module(const std::string& name, const std::vector<FusedRows>& parts, Tensors& tensors) {
  const PlaneKind& kind = *kind_of(name);
  const Placed whole = tensors.at(name);
  const std::size_t axes = whole.tensor.shape.size();
  if (kind.along == Along::columns ? axes != 2 : kind.along == Along::rows && axes == 0) return;
  const bool packed = kind.ending == ".qzeros";
  const std::int64_t all = parts.back().first + parts.back().count;
  tensors.erase(name);
  for (const FusedRows& part : parts) {
    const std::int64_t first = packed ? words_of(name, whole, part.first, all) : part.first;
    const std::int64_t count = packed ? words_of(name, whole, part.count, all) : part.count;
    const std::string own = part.name.substr(0, part.name.rfind('.')) + std::string(kind.ending);
    const Placed placed = kind.along == Along::none      ? whole
                          : kind.along == Along::columns ? cut_columns(whole, first, count)
                                                         : cut_rows(whole, first, count);
    if (!tensors.emplace(own, placed).second) {
      throw FormatError(
          cat(whole.file_name, ": tensor ", excerpt(name), " holds ", excerpt(own), ", which is there too"));
    }
  }
}

void split_fused(const Family& family, const Config& config, Tensors& tensors) {
  std::vector<std::string> names;
  for (const auto& [name, placed] : tensors) names.push_back(name);
  for (const std::string& name : names) {
    const std::string_view ending = plane_ending(name);
    if (ending.empty()) continue;
    const std::string weight = name.substr(0, name.size() - ending.size()) + ".weight";
    const auto rows = rows_of_plane(name, tensors.at(name));
    const auto parts = fused_rows(family, Naming::hugging_face, weight, config, rows);
    if (!parts.empty()) split_module(name, parts, tensors);
  }
}

}  // namespace llama2cpp
