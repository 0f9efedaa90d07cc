// Weights of Hugging Face folders that GPTQ has quantised. A module is quantised if it has a qweight, whatever the
// settings say of it; the others are floats.
#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <span>

#include "core/check.h"
#include "core/quote.h"
#include "format/gptq.h"
#include "io/hf.h"

namespace llama2cpp {
namespace {

struct Version {
  int bits;
  const Format* v1;
  const Format* v2;
};

constexpr Version kVersions[] = {
    {2, &kGptq2, &kGptq2V2},
    {3, &kGptq3, &kGptq3V2},
    {4, &kGptq4, &kGptq4V2},
    {8, &kGptq8, &kGptq8V2},
};

// "gptq" where the settings do not say.
std::string_view text_or_gptq(const Json& settings, std::string_view name) {
  const std::optional<Json> found = settings.find(name);
  return found ? found->string() : "gptq";
}

// Settings that change what the planes mean, or what is computed beside them.
void refuse_settings(const Json& settings) {
  if (text_or_gptq(settings, "quant_method") != "gptq") {
    const Json method = settings.get("quant_method");
    method.fail(cat(excerpt(method.string()), ", expected \"gptq\" or \"bitsandbytes\": others are not implemented"));
  }
  for (const std::string_view name : {"is_marlin_format", "rotation", "adapter"}) {
    const std::optional<Json> found = settings.find(name);
    if (!found || (found->type() == Json::Type::boolean && !found->boolean())) continue;
    found->fail("it is set, which is not implemented");
  }
  if (const auto type = settings.find("pack_dtype"); type && type->string() != "int32") {
    type->fail(cat(excerpt(type->string()), ", expected \"int32\": others are not implemented"));
  }
  if (const auto dynamic = settings.find("dynamic")) {
    for (const Json rule : dynamic->members()) {
      // "-:pattern": modules that are left as they are
      if (!rule.name().starts_with("-:")) rule.fail("settings of some modules alone are not implemented");
    }
  }
}

bool is_version_2(const Json& settings) {
  for (const std::string_view name : {"checkpoint_format", "format"}) {
    const std::string_view version = text_or_gptq(settings, name);
    if (version == "gptq_v2") return true;
    if (version != "gptq") {
      settings.get(name).fail(cat(excerpt(version), ", expected \"gptq\" or \"gptq_v2\": others are not implemented"));
    }
  }
  return false;
}

GptqSettings read_settings(const Json& settings) {
  refuse_settings(settings);
  const Json bits = settings.get("bits");
  const Json group = settings.get("group_size");
  if (group.int64() < 1 && group.int64() != -1)
    group.fail(cat(group.int64(), ", expected 1 or more, or -1 for one group"));
  for (const Version& version : kVersions) {
    if (version.bits != bits.int64()) continue;
    return {is_version_2(settings) ? version.v2 : version.v1, version.bits, group.int64()};
  }
  bits.fail(cat(bits.int64(), ", expected 2, 3, 4 or 8"));
}

const Placed& part_of(const Tensors& tensors, const std::string& module, std::string_view part, std::string_view dtype,
                      const std::vector<std::int64_t>& shape) {
  const std::string name = cat(module, part);
  const auto found = tensors.find(name);
  if (found == tensors.end())
    throw FormatError(cat("tensor ", excerpt(name), " is missing, beside ", module, ".qweight"));
  const Placed& placed = found->second;
  if (placed.tensor.dtype != dtype || placed.tensor.shape != shape) {
    throw FormatError(cat(placed.file_name, ": tensor ", excerpt(name), " is ", placed.describe(), ", expected ",
                          describe_tensor(dtype, shape)));
  }
  return placed;
}

Plane plane_of(const Placed& placed) {
  return {placed.bytes(), placed.tensor.end - placed.tensor.begin, 0, placed.file};
}

// The columns by their groups, and within one as they lie; empty where a group is not of as many columns as it should be.
Buffer order_of(const std::vector<std::int32_t>& groups_of_columns, std::int64_t group) {
  const auto cols = groups_of_columns.size();
  Buffer order = Buffer::heap(cols * sizeof(std::int32_t));
  const std::span<std::int32_t> columns(reinterpret_cast<std::int32_t*>(order.data()), cols);
  std::iota(columns.begin(), columns.end(), 0);
  const auto group_of = [&](std::int32_t column) { return groups_of_columns[static_cast<std::size_t>(column)]; };
  std::ranges::stable_sort(columns, {}, group_of);
  for (std::size_t place = 0; place < cols; ++place) {
    if (group_of(columns[place]) != static_cast<std::int64_t>(place) / group) return {};
  }
  return order;
}

// The plane of groups and the order that they ask for, unless they are what one would count. Each is checked: it is an
// index.
void add_groups(const Tensors& tensors, const std::string& module, std::int64_t groups, Weight& weight) {
  if (!tensors.contains(module + ".g_idx")) return;
  const std::int64_t cols = weight.cols;
  const Placed& placed = part_of(tensors, module, ".g_idx", "I32", {cols});
  std::vector<std::int32_t> of_columns(static_cast<std::size_t>(cols));
  std::memcpy(of_columns.data(), placed.bytes(), of_columns.size() * sizeof(std::int32_t));
  bool counted = true;
  for (std::int64_t k = 0; k < cols; ++k) {
    const std::int32_t of_column = of_columns[static_cast<std::size_t>(k)];
    if (of_column < 0 || of_column >= groups) {
      throw FormatError(cat(placed.file_name, ": tensor ", excerpt(module + ".g_idx"), ": column ", k, " is of group ",
                            of_column, ", expected 0 to ", groups - 1));
    }
    counted = counted && of_column == k / weight.group;
  }
  if (counted) return;
  weight.planes[3] = plane_of(placed);
  weight.order = order_of(of_columns, weight.group);
}

}  // namespace

std::optional<GptqSettings> read_gptq_settings(const HfFolder& folder, const Json& config) {
  if (const auto settings = config.find("quantization_config")) {
    settings->get("quant_method").string();  // there it must say which
    return read_settings(*settings);
  }
  const auto settings = HfJson::find(folder, "quantize_config.json");  // where AutoGPTQ first put them
  return settings == nullptr ? std::nullopt : std::optional(read_settings(settings->root()));
}

Weight gptq_weight(const Tensors& tensors, const std::string& module, const GptqSettings& settings, std::int64_t rows,
                   std::int64_t cols) {
  for (const std::int64_t size : {rows, cols}) {
    if (size * settings.bits % 32 == 0) continue;
    throw FormatError(cat("module ", excerpt(module), " is [", rows, ", ", cols, "], and ", size, " values of ",
                          settings.bits, " bits fill no whole 32-bit words"));
  }
  const std::int64_t group = settings.group_size == -1 ? cols : settings.group_size;
  const std::int64_t groups = (cols - 1) / group + 1;
  Weight weight;
  weight.name = module + ".weight";
  weight.format = settings.format;
  weight.rows = rows;
  weight.cols = cols;
  weight.group = group;
  weight.planes[0] = plane_of(part_of(tensors, module, ".qweight", "I32", {cols * settings.bits / 32, rows}));
  weight.planes[1] = plane_of(part_of(tensors, module, ".scales", "F16", {groups, rows}));
  weight.planes[2] = plane_of(part_of(tensors, module, ".qzeros", "I32", {groups, rows * settings.bits / 32}));
  add_groups(tensors, module, groups, weight);
  return weight;
}

}  // namespace llama2cpp
