// Experts in Hugging Face folders: families call the same tensors by several names, and some hold all experts' in one.
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/families.h"
#include "io/hf.h"
#include "io/names.h"

namespace llama2cpp {
namespace {

// "model.layers.3.mlp.gate.weight" -> "3", "mlp.gate" and ".weight"; nothing for other names.
struct LayerName {
  std::string_view layer, stem, end;
};
std::optional<LayerName> split(std::string_view name) {
  const std::string_view end = plane_ending(name);
  if (!name.starts_with(kLayers) || end.empty()) return {};
  name.remove_prefix(kLayers.size());
  name.remove_suffix(end.size());
  const std::size_t dot = name.find('.');
  if (dot == std::string_view::npos) return {};
  return LayerName{name.substr(0, dot), name.substr(dot + 1), end};
}

std::string joined(const LayerName& name, std::string_view stem) {
  return cat(kLayers, name.layer, ".", stem, name.end);
}

// "block_sparse_moe.experts.7.w1" -> "mlp.experts.7.gate_proj"; empty for what is no expert's of this family.
std::string expert_stem(const ExpertFacts& facts, std::string_view stem) {
  if (facts.prefix.empty() || !stem.starts_with(facts.prefix)) return {};
  const std::string_view rest = stem.substr(facts.prefix.size());
  const std::size_t dot = rest.find('.');
  if (dot == std::string_view::npos) return {};
  const std::string_view matrix = rest.substr(dot + 1);
  for (const auto& [own, name] :
       {std::pair{facts.gate, "gate_proj"}, {facts.up, "up_proj"}, {facts.down, "down_proj"}}) {
    if (matrix == own) return cat("mlp.experts.", rest.substr(0, dot), ".", name);
  }
  return {};
}

// All experts' tensor, each one's rows of the parts one after the other.
void cut(const LayerName& name, const Placed& whole, const std::string& own, const std::vector<Part>& parts,
         const Config& config, Tensors& tensors) {
  std::int64_t rows = 0;
  for (const Part part : parts) rows += part_shape(config, part).rows;
  const std::vector<std::int64_t> expected = {config.n_experts, rows, part_shape(config, parts[0]).cols};
  if (whole.tensor.shape != expected) {
    throw FormatError(cat(whole.file_name, ": tensor ", excerpt(own), " is ", whole.describe(), ", expected ",
                          describe_tensor(whole.tensor.dtype, expected)));
  }
  const std::optional<NamedPart> place =
      find_part(Naming::hugging_face, joined(name, "mlp.gate"), config);  // the router's layer is a layer of the model
  if (!place) return;
  const std::size_t row = (whole.tensor.end - whole.tensor.begin) / static_cast<std::size_t>(config.n_experts * rows);
  std::size_t next = whole.tensor.begin;
  for (std::int64_t e = 0; e < config.n_experts; ++e) {
    for (const Part part : parts) {
      const MatrixShape shape = part_shape(config, part);
      Placed placed = whole;
      placed.tensor.shape = {shape.rows, shape.cols};
      placed.tensor.begin = next;
      next += static_cast<std::size_t>(shape.rows) * row;
      placed.tensor.end = next;
      const std::string part_name = weight_name(Naming::hugging_face, part, place->layer, e);
      if (!tensors.emplace(part_name, placed).second) {
        throw FormatError(
            cat(whole.file_name, ": tensor ", excerpt(own), " holds ", excerpt(part_name), ", which is there too"));
      }
    }
  }
  tensors.erase(own);
}

// GPTQModel's modules of families whose folders have all experts' matrices in one tensor: "<stem>.7.linear". Their parts, of
// which such a module has the rows; nothing for other names.
std::vector<FusedRows> rows_of_linear(const LayerName& name, std::string_view stacked, const std::vector<Part>& parts,
                                      const Config& config) {
  constexpr std::string_view kLinear = ".linear";
  if (stacked.empty() || !name.stem.starts_with(cat(stacked, ".")) || !name.stem.ends_with(kLinear)) return {};
  std::string_view number = name.stem.substr(stacked.size() + 1);
  if (number.size() <= kLinear.size()) return {};
  number.remove_suffix(kLinear.size());
  const LayerName expert{name.layer, name.stem, ".weight"};
  const auto place = find_part(Naming::hugging_face, joined(expert, cat("mlp.experts.", number, ".down_proj")), config);
  if (!place) return {};
  std::vector<FusedRows> found;
  std::int64_t next = 0;
  for (const Part part : parts) {
    const std::int64_t count = part_shape(config, part).rows;
    found.push_back({weight_name(Naming::hugging_face, part, place->layer, place->expert), next, count});
    next += count;
  }
  return found;
}

// Whether it was such a module's tensor, which is then its parts'.
bool cut_linear(const LayerName& found, const std::string& name, std::string_view stacked,
                const std::vector<Part>& parts, const Config& config, Tensors& tensors) {
  const std::vector<FusedRows> rows = rows_of_linear(found, stacked, parts, config);
  if (rows.empty()) return false;
  const Placed& placed = tensors.at(name);
  const auto given = rows_of_plane(name, placed);
  const std::int64_t all = rows.back().first + rows.back().count;
  if (given && *given != all) {
    throw FormatError(cat(placed.file_name, ": tensor ", excerpt(name), " is ", placed.describe(), ", expected ", all,
                          " rows of ", rows.size(), " weights"));
  }
  split_module(name, rows, tensors);
  return true;
}

}  // namespace

void name_experts(const ExpertFacts& facts, const Config& config, Tensors& tensors) {
  name_turned_experts(facts, config, tensors);
  std::vector<std::string> names;
  for (const auto& [name, placed] : tensors) names.push_back(name);
  for (const std::string& name : names) {
    const std::optional<LayerName> found = split(name);
    if (!found) continue;
    const bool weight = found->end == ".weight";
    if (weight && !facts.stacked_inputs.empty() && found->stem == facts.stacked_inputs) {
      cut(*found, Placed(tensors.at(name)), name, {Part::e1, Part::e3}, config, tensors);
    } else if (weight && !facts.stacked_output.empty() && found->stem == facts.stacked_output) {
      cut(*found, Placed(tensors.at(name)), name, {Part::e2}, config, tensors);
    } else if (cut_linear(*found, name, facts.stacked_inputs, {Part::e1, Part::e3}, config, tensors) ||
               cut_linear(*found, name, facts.stacked_output, {Part::e2}, config, tensors)) {
      continue;
    } else {
      const bool router = !facts.router.empty() && found->stem == facts.router;
      const std::string stem = router ? "mlp.gate" : expert_stem(facts, found->stem);
      if (stem.empty()) continue;
      const std::string renamed = joined(*found, stem);
      if (tensors.contains(renamed)) {
        throw FormatError(cat("tensor ", excerpt(name), " is ", excerpt(renamed), ", which is there too"));
      }
      auto node = tensors.extract(name);
      node.key() = renamed;
      tensors.insert(std::move(node));
    }
  }
}

}  // namespace llama2cpp
