#include "io/adapter_file.h"

#include <cmath>

#include "core/check.h"
#include "core/file_kind.h"
#include "core/quote.h"
#include "format/bf16.h"
#include "format/f16.h"
#include "format/f32.h"
#include "format/f64.h"
#include "io/families.h"
#include "io/gguf.h"
#include "io/gguf_holds.h"
#include "io/safetensors.h"

namespace llama2cpp {
namespace {

Weight weight_at(std::string_view name, const Format& format, std::int64_t rows, std::int64_t cols, const Buffer& file,
                 std::size_t begin, std::size_t end) {
  Weight weight;
  weight.name = name;
  weight.format = &format;
  weight.group = format.group;
  weight.rows = rows;
  weight.cols = cols;
  Plane& plane = weight.planes[0];
  plane.data = file.data() + begin;
  plane.bytes = end - begin;
  plane.row_bytes = row_bytes(format, cols);
  plane.owner = file;
  return weight;
}

const Format* float_format(std::string_view dtype) {
  for (const auto& [name, format] : {std::pair{"F32", &kF32}, {"F16", &kF16}, {"BF16", &kBF16}, {"F64", &kF64}}) {
    if (dtype == name) return format;
  }
  return nullptr;
}

AdapterFile open_safetensors(const Buffer& file) {
  AdapterFile adapter;
  for (const auto& [name, tensor] : read_safetensors_header(file).tensors) {
    const Format* const format = float_format(tensor.dtype);
    if (format == nullptr || tensor.shape.size() != 2 || tensor.shape[0] < 1 || tensor.shape[1] < 1) {
      throw FormatError(cat("tensor ", excerpt(name), " is ", describe_tensor(tensor.dtype, tensor.shape),
                            ", expected a matrix of F32, F16, BF16 or F64"));
    }
    adapter.tensors.emplace(name,
                            weight_at(name, *format, tensor.shape[0], tensor.shape[1], file, tensor.begin, tensor.end));
  }
  return adapter;
}

// A text that the file must have, and what it must be.
void need_text(const Gguf& gguf, std::string_view key, std::string_view expected) {
  const std::string_view found = gguf.string(key).value_or("");
  if (found == expected) return;
  throw FormatError(cat("metadata '", key, "' is ", found.empty() ? "missing" : excerpt(found), ", expected \"",
                        expected, "\": an adapter that llama.cpp's convert_lora_to_gguf.py has written"));
}

AdapterFile open_gguf(const Buffer& file) {
  const Gguf gguf(file);
  need_text(gguf, "general.type", "adapter");
  need_text(gguf, "adapter.type", "lora");
  AdapterFile adapter;
  adapter.gguf = true;
  adapter.architecture = gguf.string("general.architecture").value_or("");
  if (gguf.metadata().contains("adapter.alora.invocation_tokens")) {
    gguf.fail("adapter.alora.invocation_tokens",
              "there: an adapter that begins to act in the middle of a text is not "
              "implemented");
  }
  const std::optional<double> alpha = gguf.number("adapter.lora.alpha");
  if (!alpha) throw FormatError("metadata 'adapter.lora.alpha' is missing");
  if (!std::isfinite(*alpha)) gguf.fail("adapter.lora.alpha", "not finite");
  adapter.alpha = *alpha;
  for (const auto& [name, tensor] : gguf.tensors()) {
    if (tensor.shape.size() > 2) {
      throw FormatError(cat("tensor ", excerpt(name), " (byte ", tensor.described, ") has ", tensor.shape.size(),
                            " dimensions, expected a matrix"));
    }
    const std::int64_t rows = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
    adapter.tensors.emplace(
        name, weight_at(name, *tensor.format, rows, tensor.shape[0], tensor.file, tensor.begin, tensor.end));
  }
  return adapter;
}

// The optional parts that a checkpoint has.
std::vector<Part> optional_parts(const Checkpoint& model) {
  std::vector<Part> parts;
  for (const PartFacts& row : kParts) {
    if (is_needed(model.config, row.part).has_value()) continue;
    if (model.weights.contains(weight_name(model.naming, row.part))) parts.push_back(row.part);
  }
  return parts;
}

const Family& gguf_family(const Checkpoint& model, std::string_view architecture) {
  const Family* const family = find_gguf_family(architecture, model.config.n_experts > 0);
  if (family != nullptr && gguf_holds(*family, model.config, optional_parts(model))) return *family;
  throw FormatError(cat("metadata 'general.architecture' is ", excerpt(architecture), ", and ",
                        family == nullptr ? "no model here is of that" : "no such model has this one's configuration"));
}

// The parts of a module by one family's names; none where it has no such.
std::vector<AdapterTarget> find_targets(const Config& config, Naming naming, const Family& family,
                                        const std::string& weight) {
  const auto& renames = naming == Naming::gguf ? family.gguf_renames : family.hugging_face_renames;
  const std::string name = renamed(renames, weight);
  std::vector<AdapterTarget> targets;
  for (const FusedRows& rows : fused_rows(family, naming, name, config, {})) {
    const auto place = find_part(naming, rows.name);
    targets.push_back({place->part, place->layer, rows.first, rows.count});
  }
  if (!targets.empty()) return targets;
  const auto place = find_part(naming, name);
  if (place) targets.push_back({place->part, place->layer, 0, part_shape(config, place->part).rows});
  return targets;
}

}  // namespace

AdapterFile open_adapter_file(const std::string& path) {
  const Buffer file = Buffer::file(path);
  const FileReads reads({&file, 1});
  try {
    refuse_stand_in({file.data(), file.size()}, "an adapter");
    AdapterFile adapter = has_gguf_magic(file) ? open_gguf(file) : open_safetensors(file);
    reads.check();
    return adapter;
  } catch (const FormatError& error) {
    throw FormatError(cat(path, ": ", error.what()));
  }
}

AdapterNames adapter_names(const Checkpoint& model, bool gguf, std::string_view architecture) {
  const Config& config = model.config;
  if (gguf) {
    const Family& family = gguf_family(model, architecture);
    return {Naming::gguf, &family, model.naming == Naming::gguf ? config.rope_style : family.gguf_rope_style};
  }
  const Family* const family = find_hugging_face_family(model.model_type);
  if (model.naming == Naming::hugging_face) return {Naming::hugging_face, family, config.rope_style};
  const std::vector<Part> parts = optional_parts(model);
  return {Naming::hugging_face, family,
          hugging_face_family_of(config, parts, model.model_type).hugging_face_rope_style};
}

std::vector<AdapterTarget> adapter_targets(const Config& config, const AdapterNames& names, std::string_view module) {
  const std::string weight = cat(module, ".weight");
  std::vector<AdapterTarget> targets;
  if (names.family != nullptr) {
    targets = find_targets(config, names.naming, *names.family, weight);
  } else {
    for (const Family& family : families()) {
      if (targets.empty()) targets = find_targets(config, names.naming, family, weight);
    }
  }
  if (targets.empty())
    throw FormatError(cat(excerpt(module), " is no matrix of this model, which has ", config.n_layers,
                          config.n_layers == 1 ? " layer" : " layers",
                          "; expected such as \"model.layers.0.self_attn.q_proj\" or \"blk.0.attn_q\""));
  for (const AdapterTarget& target : targets) {
    if (per_layer(target.part) && target.layer >= config.n_layers) {
      throw FormatError(cat(excerpt(module), " is of layer ", target.layer, ", and the model has ", config.n_layers));
    }
  }
  return targets;
}

}  // namespace llama2cpp
