// Weights of Hugging Face folders that GPTQ has quantized. A module is quantized if it has a qweight, whatever the
// settings say of it; the others are floats.
#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <span>

#include "core/check.h"
#include "core/quote.h"
#include "format/bf16.h"
#include "format/encode.h"
#include "format/f32.h"
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

std::int64_t read_group_size(const Json& group) {
  if (group.int64() < 1 && group.int64() != -1) {
    group.fail(cat(group.int64(), ", expected 1 or more, or -1 for one group"));
  }
  return group.int64();
}

const Version* find_version(std::int64_t bits) {
  const auto* const found = std::find_if(std::begin(kVersions), std::end(kVersions),
                                         [&](const Version& version) { return version.bits == bits; });
  return found == std::end(kVersions) ? nullptr : found;
}

const Version& read_bits(const Json& bits) {
  const Version* const version = find_version(bits.int64());
  if (version == nullptr) bits.fail(cat(bits.int64(), ", expected 2, 3, 4 or 8"));
  return *version;
}

// GPTQModel's rules for some modules: "-:pattern" leaves those as they are that the pattern matches, "+:pattern" or the
// pattern alone gives them settings of their own. A module's tensors show its bits, and how many groups there are: so the
// patterns, which are Python's regular expressions, need not be matched, and the sizes of groups are all that is kept.
void read_rules(const Json& rules, GptqSettings& settings) {
  for (const Json rule : rules.members()) {
    if (rule.name().starts_with("-:")) continue;
    refuse_settings(rule);
    if (const auto bits = rule.find("bits")) read_bits(*bits);
    if (const auto group = rule.find("group_size")) settings.group_sizes.push_back(read_group_size(*group));
    for (const std::string_view name : {"checkpoint_format", "format"}) {
      const auto version = rule.find(name);
      if (version && (version->string() == "gptq_v2") != settings.version_2) {
        version->fail("another version than that of the other modules, which is not implemented");
      }
    }
  }
}

GptqSettings read_settings(const Json& json) {
  refuse_settings(json);
  GptqSettings settings;
  settings.version_2 = is_version_2(json);
  const Version& version = read_bits(json.get("bits"));
  settings.format = settings.version_2 ? version.v2 : version.v1;
  settings.group_sizes.push_back(read_group_size(json.get("group_size")));
  if (const auto rules = json.find("dynamic")) {
    settings.has_rules = true;
    read_rules(*rules, settings);
  }
  return settings;
}

const Placed& part_of(const Tensors& tensors, const std::string& module, std::string_view part) {
  const std::string name = cat(module, part);
  const auto found = tensors.find(name);
  if (found == tensors.end())
    throw FormatError(cat("tensor ", excerpt(name), " is missing, beside ", module, ".qweight"));
  return found->second;
}

[[noreturn]] void throw_other(const std::string& module, std::string_view part, const Placed& placed,
                              const std::string& expected) {
  throw FormatError(cat(placed.file_name, ": tensor ", excerpt(cat(module, part)), " is ", placed.describe(),
                        ", expected ", expected));
}

const Placed& part_of(const Tensors& tensors, const std::string& module, std::string_view part, std::string_view dtype,
                      const std::vector<std::int64_t>& shape) {
  const Placed& placed = part_of(tensors, module, part);
  if (placed.tensor.dtype != dtype || placed.tensor.shape != shape) {
    throw_other(module, part, placed, describe_tensor(dtype, shape));
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

// Scales as halves where they all are halves, whatever they are stored in; else as floats.
Plane scales_of(const Placed& placed, std::int64_t groups, std::int64_t rows, const std::string& module) {
  const std::string_view dtype = placed.tensor.dtype;
  if (placed.tensor.shape != std::vector{groups, rows} || (dtype != "F16" && dtype != "F32" && dtype != "BF16")) {
    throw_other(module, ".scales", placed, cat(describe_tensor("F16", std::vector{groups, rows}), ", F32 or BF16"));
  }
  if (dtype == "F16") return plane_of(placed);
  const auto count = static_cast<std::size_t>(groups * rows);
  Weight stored;
  stored.planes[0] = plane_of(placed);
  Buffer floats = Buffer::heap(count * sizeof(float));
  auto* const values = reinterpret_cast<float*>(floats.data());
  (dtype == "F32" ? kF32 : kBF16).decode(stored, 0, 0, groups * rows, values);
  Buffer halves = Buffer::heap(count * 2);
  for (std::size_t i = 0; i < count; ++i) {
    put_half(halves.data() + i * 2, values[i]);
    if (half_at(halves.data() + i * 2) == values[i]) continue;
    return {floats.data(), count * sizeof(float), rows * static_cast<std::int64_t>(sizeof(float)), floats};
  }
  return {halves.data(), count * 2, 0, halves};
}

// By how many words a column of values takes.
const Version& version_of(const Tensors& tensors, const std::string& module, const GptqSettings& settings,
                          std::int64_t rows, std::int64_t cols) {
  const Placed& placed = part_of(tensors, module, ".qweight");
  const std::vector<std::int64_t>& shape = placed.tensor.shape;
  const int usual = settings.format->blocks.bits;
  if (!settings.has_rules) return *find_version(usual);
  const bool whole = shape.size() == 2 && shape[0] <= cols && shape[0] * 32 % cols == 0;
  const Version* const version = whole ? find_version(shape[0] * 32 / cols) : nullptr;
  if (version == nullptr) {
    throw_other(module, ".qweight", placed,
                cat(describe_tensor("I32", std::vector{cols * usual / 32, rows}),
                    ", or as many rows as 2, 3, 4 or 8 bits take"));
  }
  return *version;
}

// Which of the settings' sizes gives as many groups as there are scales.
std::int64_t group_of(const Tensors& tensors, const std::string& module, const GptqSettings& settings,
                      std::int64_t rows, std::int64_t cols) {
  const auto whole = [&](std::int64_t size) { return size == -1 ? cols : size; };
  const std::int64_t usual = whole(settings.group_sizes.front());
  const Placed& placed = part_of(tensors, module, ".scales");
  const std::vector<std::int64_t>& shape = placed.tensor.shape;
  std::optional<std::int64_t> found;
  for (const std::int64_t size : settings.group_sizes) {
    const std::int64_t group = whole(size);
    if (shape.size() != 2 || (cols - 1) / group + 1 != shape[0] || found == group) continue;
    // Where a g_idx says which column is of which group, any of them will do.
    if (found && !tensors.contains(module + ".g_idx") && std::min(*found, cols) != std::min(group, cols)) {
      throw FormatError(cat("module ", excerpt(module), " has ", shape[0], " groups and no g_idx, so they may have ",
                            *found, " or ", group, " columns: which, is not known"));
    }
    if (!found) found = group;
  }
  if (!found) throw_other(module, ".scales", placed, describe_tensor("F16", std::vector{(cols - 1) / usual + 1, rows}));
  return *found;
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
  const Version& version = version_of(tensors, module, settings, rows, cols);
  for (const std::int64_t size : {rows, cols}) {
    if (size * version.bits % 32 == 0) continue;
    throw FormatError(cat("module ", excerpt(module), " is [", rows, ", ", cols, "], and ", size, " values of ",
                          version.bits, " bits fill no whole 32-bit words"));
  }
  const std::int64_t group = group_of(tensors, module, settings, rows, cols);
  const std::int64_t groups = (cols - 1) / group + 1;
  Weight weight;
  weight.name = module + ".weight";
  weight.format = settings.version_2 ? version.v2 : version.v1;
  weight.rows = rows;
  weight.cols = cols;
  weight.group = group;
  weight.planes[0] = plane_of(part_of(tensors, module, ".qweight", "I32", {cols * version.bits / 32, rows}));
  weight.planes[1] = scales_of(part_of(tensors, module, ".scales"), groups, rows, module);
  weight.planes[2] = plane_of(part_of(tensors, module, ".qzeros", "I32", {groups, rows * version.bits / 32}));
  add_groups(tensors, module, groups, weight);
  return weight;
}

}  // namespace llama2cpp
