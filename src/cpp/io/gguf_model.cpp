// GGUF files as checkpoints: the weights lie in place in the file, rows in the order that llama.cpp gives them.
#include <algorithm>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/checkpoint.h"
#include "io/gguf.h"
#include "io/gguf_model.h"

namespace llama2cpp {
namespace {

// Tensors that some converters add and no computation needs: rope_freqs and longrope's divisors are in the config, attn_rot_embd holds the
// frequencies that follow from rope.freq_base.
bool is_harmless(std::string_view name, const Family& family) {
  const bool longrope = name == "rope_factors_short.weight" || name == "rope_factors_long.weight";
  if (longrope && family.computes_switch("partial_rotary_factor")) return true;
  return name == "rope_freqs.weight" || (name.starts_with("blk.") && name.ends_with(".attn_rot_embd.weight"));
}

// Biases are there or not, as a file pleases, but for those of experts; config and family say of all other parts.
bool has_place(Part part, const Config& config, const Family& family) {
  if (const auto needed = is_needed(config, part)) return *needed || facts(part).need == Need::untied;
  if (facts(part).need == Need::routed_bias || facts(part).need == Need::sinks) return family.may_have(part);
  return facts(part).need != Need::optional || facts(part).kind == PartKind::bias || family.may_have(part);
}

void refuse_unknown(std::string_view name, const GgufTensor& tensor, const Config& config, const Family& family) {
  if (const auto found = find_part(Naming::gguf, name, config); found && has_place(found->part, config, family)) return;
  throw FormatError(cat("tensor ", excerpt(name), " (byte ", tensor.described, ") has no place in a Llama of ",
                        config.n_layers, " layers, so this file computes something that this version does not"));
}

// "blk.3.ffn_gate_exps.weight" -> e1 of layer 3: a tensor of all experts' matrices, or of all their biases.
std::optional<NamedPart> find_stacked(std::string_view name, const Config& config, const Family& family) {
  const std::size_t end = name.rfind('.');
  if (end == std::string_view::npos || !name.substr(0, end).ends_with(kAllExperts)) return {};
  const std::string first =
      cat(name.substr(0, end - kAllExperts.size()), ".0", name.substr(end));  // the first expert's own name
  const auto found = find_part(Naming::gguf, first, config);
  if (!found || !per_expert(facts(found->part).kind)) return {};
  return has_place(found->part, config, family) ? found : std::nullopt;
}

Weight weight_of(std::string_view name, const GgufTensor& tensor, bool stacked) {
  Weight weight;
  weight.name = name;
  weight.format = tensor.format;
  weight.group = tensor.format->group;
  weight.cols = tensor.shape[0];
  weight.rows = 1;
  for (std::size_t i = 1; i < tensor.shape.size(); ++i) {
    if (i > (stacked ? 2 : 1) && tensor.shape[i] != 1) {
      throw FormatError(cat("tensor ", excerpt(name), " (byte ", tensor.described, ") has ", tensor.shape.size(),
                            " dimensions, expected ", stacked ? "three" : "a vector or a matrix"));
    }
    weight.rows *= tensor.shape[i];
  }
  Plane& plane = weight.planes[0];
  plane.data = tensor.file.data() + tensor.begin;
  plane.bytes = tensor.end - tensor.begin;
  plane.row_bytes = row_bytes(*tensor.format, weight.cols);
  plane.owner = tensor.file;
  return weight;
}

// Rows of a weight, where they lie, as one of its own.
Weight rows_of(const Weight& whole, const FusedRows& rows) {
  Weight weight = whole;
  weight.name = rows.name;
  weight.rows = rows.count;
  Plane& plane = weight.planes[0];
  plane.data += rows.first * plane.row_bytes;
  plane.bytes = static_cast<std::size_t>(rows.count * plane.row_bytes);
  return weight;
}

// Each expert's rows of a tensor of all, as a weight of its own.
void add_experts(const Weight& whole, const GgufTensor& tensor, const NamedPart& place, Checkpoint& checkpoint) {
  const std::int64_t rows = part_shape(checkpoint.config, place.part).rows;
  const std::int64_t experts = checkpoint.config.n_experts;
  const std::vector<std::int64_t>& shape = tensor.shape;
  const bool fits = is_vector(place.part) ? shape.size() >= 2 && shape[1] == experts
                                          : shape.size() >= 3 && shape[1] == rows && shape[2] == experts;
  if (!fits) {
    throw FormatError(cat("tensor ", excerpt(whole.name), " (byte ", tensor.described, ") has ", whole.rows,
                          " rows in all, expected those of ", experts, " experts of ", rows, " each"));
  }
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::string name = weight_name(Naming::gguf, place.part, place.layer, e);
    if (!checkpoint.weights.emplace(name, rows_of(whole, {name, e * rows, rows})).second) {
      throw FormatError(cat("tensor ", excerpt(whole.name), " has an expert that tensor ", excerpt(name), " is too"));
    }
  }
}

Checkpoint open(const std::string& path, const Buffer& file, const OpenBeside& open_beside) {
  Gguf gguf(file);
  const std::vector<Buffer> parts = add_gguf_parts(gguf, path, open_beside);  // beside the first
  const FileReads reads(parts);
  Checkpoint checkpoint;
  checkpoint.file_format = cat("GGUF v", gguf.version());
  if (!parts.empty()) checkpoint.file_format += cat(", ", parts.size() + 1, " files");
  checkpoint.naming = Naming::gguf;
  const Family& family = read_gguf_family(gguf);
  checkpoint.config = read_gguf_config(gguf, family);
  for (const auto& [stored, tensor] : gguf.tensors()) {
    if (is_harmless(stored, family)) continue;
    const std::string name = renamed(family.gguf_renames, stored);
    const std::optional<NamedPart> stacked = find_stacked(name, checkpoint.config, family);
    const Weight weight = weight_of(name, tensor, stacked && !is_vector(stacked->part));
    if (stacked) {
      add_experts(weight, tensor, *stacked, checkpoint);
      continue;
    }
    const auto parts = fused_rows(family, Naming::gguf, name, checkpoint.config, weight.rows);
    if (!parts.empty()) {
      for (const FusedRows& rows : parts) checkpoint.weights.emplace(rows.name, rows_of(weight, rows));
      continue;
    }
    refuse_unknown(name, tensor, checkpoint.config, family);
    if (!checkpoint.weights.emplace(name, weight).second) {
      throw FormatError(cat("tensor ", excerpt(stored), " is there twice, by two names"));
    }
  }
  for (const Part part : family.parts) {
    for (std::int64_t layer = 0; layer < checkpoint.config.n_layers; ++layer) checkpoint.weight(part, layer);
  }
  auto [vocabulary, reason] = read_gguf_vocabulary(gguf, checkpoint.config.vocab_size);
  checkpoint.vocabulary = std::move(vocabulary);
  checkpoint.no_vocabulary_reason = std::move(reason);
  checkpoint.generation = read_generation_config(gguf);
  reads.check();
  return checkpoint;
}

std::string why_not(const Buffer& file) { return has_gguf_magic(file) ? "" : "no magic 'GGUF' (bytes 47 47 55 46)"; }

}  // namespace

const Reader kGguf{"GGUF", why_not, open};

Vocabulary open_checkpoint_vocabulary(const std::string& path) {
  try {
    const Buffer file = Buffer::file(path);
    const FileReads reads({&file, 1});
    auto [vocabulary, reason] = read_gguf_vocabulary(Gguf(file), kAnySize);
    reads.check();
    if (vocabulary == nullptr) throw FormatError(reason);
    return std::move(*vocabulary);
  } catch (const FormatError& error) {
    throw FormatError(cat(path, ": ", error.what()));
  }
}

}  // namespace llama2cpp
