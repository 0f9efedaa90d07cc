// What a Hugging Face folder itself calls the weights that have other names here, as its family's row says.
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "io/checkpoint.h"
#include "io/families.h"
#include "io/hf.h"
#include "io/names.h"

namespace llama2cpp {
namespace {

// All experts' weights of these parts in a layer, one expert's after the other's.
std::vector<std::string> of_experts(const Config& config, const std::vector<Part>& parts, std::int64_t layer) {
  std::vector<std::string> names;
  for (std::int64_t e = 0; e < config.n_experts; ++e) {
    for (const Part part : parts) names.push_back(weight_name(Naming::hugging_face, part, layer, e));
  }
  return names;
}

void add_experts(const Family& family, std::int64_t layer, Checkpoint& checkpoint) {
  const Config& config = checkpoint.config;
  for (const Stacked& whole : family.stacked(Naming::hugging_face)) {
    const std::vector<std::string> names = of_experts(config, whole.parts, layer);
    if (!checkpoint.weights.contains(names.front())) continue;
    checkpoint.file_tensors.emplace(cat(kLayers, layer, ".", whole.name),
                                    FileTensor{names, config.n_experts, whole.turned, {}});
  }
}

// The name in the file of a weight with a name of its own.
std::string own_name(const Family& family, const NamedPart& place) {
  std::string stem = family.stem(Naming::hugging_face, place.part);
  if (const std::size_t at = stem.find("{}"); at != std::string::npos) stem.replace(at, 2, cat(place.expert));
  const std::string name = weight_name(Naming::hugging_face, place.part, place.layer, place.expert);
  if (!per_layer(place.part)) return name;
  const std::string ending = facts(place.part).kind == PartKind::sinks ? "" : name.substr(name.rfind('.'));
  return cat(kLayers, place.layer, ".", stem, ending);
}

}  // namespace

void add_file_tensors(const Family& family, Checkpoint& checkpoint) {
  const Config& config = checkpoint.config;
  const bool turned = family.experts && !family.experts->turned_inputs.empty();
  for (const auto& [name, weight] : checkpoint.weights) {
    const auto place = find_part(Naming::hugging_face, name, config);
    if (!place || (turned && per_expert(facts(place->part).kind))) continue;
    const std::string own = own_name(family, *place);
    if (own != name) checkpoint.file_tensors.emplace(own, FileTensor{{name}, 0, false, {}});
  }
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    if (family.experts) add_experts(family, layer, checkpoint);
    for (const Fused& whole : family.fused) {
      for (const std::string_view ending : {".weight", ".bias"}) {
        std::vector<std::string> names;
        for (const Part part : whole.parts) {
          const std::string weight = weight_name(Naming::hugging_face, part, layer);
          names.push_back(cat(weight.substr(0, weight.rfind('.')), ending));
        }
        if (!checkpoint.weights.contains(names.front())) continue;
        checkpoint.file_tensors.emplace(cat(kLayers, layer, ".", whole.hugging_face, ending),
                                        FileTensor{names, 0, false, {}});
      }
    }
  }
}

}  // namespace llama2cpp
