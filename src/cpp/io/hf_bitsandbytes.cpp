// Weights of Hugging Face folders that bitsandbytes has quantized to 8 bits, which is LLM.int8(). Of a module
// ("model.layers.0.mlp.up_proj") there are
//   .weight           I8 [rows, cols]
//   .SCB              F32 [rows], the largest magnitude of each row
//   .weight_format    U8 [], 0 for rows one after another; files before its time have none
// and where our own export has fixed the outliers, which `llama2cpp_fixed_outliers` announces,
//   .outlier_columns  I32 [n], ascending
//   .outlier_weight   F16 [rows, n], the weights of these columns
// A module is quantized if its weight is I8, whatever the settings say of it.
#include "core/check.h"
#include "core/quote.h"
#include "format/llm_int8.h"
#include "io/hf.h"
#include "io/outliers.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kPlanes[] = {".SCB", ".weight_format", ".outlier_columns", ".outlier_weight"};
constexpr float kUsualThreshold = 6.0F;  // where the settings do not say

// The ways in which bitsandbytes once laid weights out for certain GPUs, by their numbers.
constexpr std::string_view kLayouts[] = {"row", "col32", "col_turing", "col_ampere"};

bool is_set(const Json& settings, std::string_view name) {
  const auto found = settings.find(name);
  return found && found->boolean();
}

// Settings from before quant_method was among them are known by what they load in.
bool is_bitsandbytes(const Json& settings) {
  if (const auto method = settings.find("quant_method")) return method->string() == "bitsandbytes";
  return is_set(settings, "load_in_8bit") || is_set(settings, "load_in_4bit");
}

float read_threshold(const Json& settings) {
  const auto threshold = settings.find("llm_int8_threshold");
  return threshold ? read_outlier_threshold(*threshold) : kUsualThreshold;
}

// Null where there is no such tensor.
const Placed* find_part_of(const Tensors& tensors, const std::string& module, std::string_view part) {
  const auto found = tensors.find(cat(module, part));
  return found == tensors.end() ? nullptr : &found->second;
}

const Placed& part_of(const Tensors& tensors, const std::string& module, std::string_view part, std::string_view dtype,
                      const std::vector<std::int64_t>& shape) {
  const Placed* const placed = find_part_of(tensors, module, part);
  const std::string name = cat(module, part);
  if (placed == nullptr) throw FormatError(cat("tensor ", excerpt(name), " is missing, beside ", module, ".weight"));
  if (placed->tensor.dtype != dtype || placed->tensor.shape != shape) {
    throw FormatError(cat(placed->file_name, ": tensor ", excerpt(name), " is ", placed->describe(), ", expected ",
                          describe_tensor(dtype, shape)));
  }
  return *placed;
}

Plane plane_of(const Placed& placed, std::int64_t row_bytes) {
  return {placed.bytes(), placed.tensor.end - placed.tensor.begin, row_bytes, placed.file};
}

void check_layout(const Tensors& tensors, const std::string& module) {
  if (find_part_of(tensors, module, ".weight_format") == nullptr) return;
  const Placed& placed = part_of(tensors, module, ".weight_format", "U8", {});
  const auto layout = static_cast<std::size_t>(*placed.bytes());
  if (layout == 0) return;
  throw FormatError(cat(placed.file_name, ": tensor ", excerpt(module + ".weight_format"), " is ", layout,
                        layout < std::size(kLayouts) ? cat(" (", kLayouts[layout], ")") : "",
                        ", expected 0 (row): other layouts are not implemented"));
}

Plane fixed_columns(const Tensors& tensors, const std::string& module, std::int64_t cols) {
  const Placed* const placed = find_part_of(tensors, module, ".outlier_columns");
  const std::int64_t n = placed == nullptr || placed->tensor.shape.size() != 1 ? 0 : placed->tensor.shape[0];
  const Placed& columns = part_of(tensors, module, ".outlier_columns", "I32", {n});
  return read_outlier_columns(cat(columns.file_name, ": tensor ", excerpt(module + ".outlier_columns")),
                              columns.bytes(), n, cols);
}

}  // namespace

std::optional<LlmInt8Settings> read_llm_int8_settings(const Json& config) {
  const auto settings = config.find("quantization_config");
  if (!settings || !is_bitsandbytes(*settings)) return {};
  if (is_set(*settings, "load_in_4bit")) {
    const auto type = settings->find("bnb_4bit_quant_type");
    settings->get("load_in_4bit")
        .fail(cat("bitsandbytes' 4 bits (", type ? excerpt(type->string()) : "fp4 or nf4",
                  ") are not implemented, its 8 bits are"));
  }
  if (!is_set(*settings, "load_in_8bit")) {
    settings->fail("neither load_in_8bit nor load_in_4bit is set, expected the first");
  }
  if (is_set(*settings, "llm_int8_has_fp16_weight")) {
    settings->get("llm_int8_has_fp16_weight").fail("it is set, which is not implemented");
  }
  const bool fixed = is_set(*settings, "llama2cpp_fixed_outliers");
  return LlmInt8Settings{.threshold = fixed ? 0.0F : read_threshold(*settings), .fixed = fixed};
}

bool is_llm_int8_part(const Tensors& tensors, const std::string& name) {
  for (const std::string_view part : kPlanes) {
    if (!name.ends_with(part)) continue;
    const Placed* const weight = find_part_of(tensors, name.substr(0, name.size() - part.size()), ".weight");
    return weight != nullptr && weight->tensor.dtype == "I8";
  }
  return false;
}

Weight llm_int8_weight(const Tensors& tensors, const std::string& name, const LlmInt8Settings& settings,
                       std::int64_t rows, std::int64_t cols) {
  const std::string module = name.substr(0, name.rfind('.'));
  const Placed& values = part_of(tensors, module, ".weight", "I8", {rows, cols});
  check_layout(tensors, module);
  if (cols > kMostLlmInt8Columns) {
    throw FormatError(cat(values.file_name, ": tensor ", excerpt(name), " is ", values.describe(),
                          ", expected at most ", kMostLlmInt8Columns, " columns"));
  }
  Weight weight;
  weight.name = name;
  weight.format = &kLlmInt8;
  weight.rows = rows;
  weight.cols = cols;
  weight.group = cols;
  weight.outlier_threshold = settings.threshold;
  weight.planes[0] = plane_of(values, cols);
  weight.planes[1] = plane_of(part_of(tensors, module, ".SCB", "F32", {rows}), 4);
  if (settings.fixed) {
    weight.planes[2] = fixed_columns(tensors, module, cols);
    const auto n = static_cast<std::int64_t>(fixed_outliers(weight).size());
    weight.planes[3] = plane_of(part_of(tensors, module, ".outlier_weight", "F16", {rows, n}), n * 2);
  } else if (const Placed* const others = find_part_of(tensors, module, ".outlier_columns")) {
    throw FormatError(cat(others->file_name, ": tensor ", excerpt(module + ".outlier_columns"),
                          " is there, but config.json has no llama2cpp_fixed_outliers"));
  }
  return weight;
}

}  // namespace llama2cpp
