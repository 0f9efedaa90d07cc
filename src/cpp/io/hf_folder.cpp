// Hugging Face folders as checkpoints: config.json says what the model is, safetensors files hold its weights, which
// stay in place. Of the files that a folder may have for the same thing the one is read that transformers reads.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>

#include "core/check.h"
#include "core/quote.h"
#include "format/bf16.h"
#include "format/f16.h"
#include "format/f32.h"
#include "format/f64.h"
#include "format/llm_int8.h"
#include "format/weight_rows.h"
#include "io/checkpoint.h"
#include "io/families.h"
#include "io/hf.h"
#include "io/panel_file.h"
#include "text/readers.h"

namespace llama2cpp {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeights = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

// Weights that we do not read, by the files that hold them.
constexpr std::string_view kOtherWeights[] = {
    "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "consolidated.00.pth",
};

fs::path path_of(const std::string& utf8) { return std::u8string(utf8.begin(), utf8.end()); }

std::string utf8_of(const fs::path& path) {
  const std::u8string text = path.u8string();
  return {text.begin(), text.end()};
}

bool is_plain(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\:\0", 4)) == std::string_view::npos;
}

// Whether `folder`, without links, is the parent of `file`, without links.
bool is_in(const fs::path& folder, const fs::path& file) {
  const fs::path way = file.lexically_relative(folder);
  return !way.empty() && way != "." && *way.begin() != "..";
}

// models--org--name/snapshots/revision -> models--org--name/blobs; nothing for a folder that lies elsewhere.
fs::path blobs_of(const fs::path& folder) {
  return folder.parent_path().filename() == "snapshots" ? folder.parent_path().parent_path() / "blobs" : fs::path();
}

// What says that a folder came from elsewhere, links and all: Hugging Face's cache, a folder that its client has filled,
// a Git repository. Empty where nothing does.
std::string download_mark(const fs::path& folder) {
  std::error_code ignored;
  if (!blobs_of(folder).empty()) return "the name of the folder above, \"snapshots\",";
  if (fs::exists(folder / ".cache" / "huggingface", ignored)) return "the folder .cache/huggingface";
  for (fs::path place = folder;; place = place.parent_path()) {
    if (fs::exists(place / ".git", ignored)) return cat("the Git repository ", excerpt(utf8_of(place)));
    if (place == place.parent_path()) return "";
  }
}

[[noreturn]] void throw_foreign(std::string_view name, const fs::path& target, std::string_view note) {
  throw FormatError(cat(name, " is a link to ", excerpt(utf8_of(target)),
                        ", which is neither in the folder nor in the blobs of Hugging Face's cache beside it", note));
}

void read_file(const HfFolder& folder, const std::string& name, bool use_mmap, Tensors& tensors) {
  const HfFolder::Weights weights = folder.open_weights(name, use_mmap);
  const Buffer& file = weights.file;
  const FileReads reads({&file, 1});
  SafetensorsHeader header;
  try {
    header = read_safetensors_header(file);
  } catch (const FormatError& error) {
    // What lies behind a link out of the folder is only shown where it is weights.
    throw FormatError(weights.link.empty() ? cat(name, ": ", error.what())
                                           : cat(name, " is a link to ", excerpt(weights.link),
                                                 ", which is no complete safetensors file"));
  }
  try {
    for (const auto& [tensor_name, tensor] : header.tensors) {
      const auto [place, is_new] = tensors.emplace(tensor_name, Placed{tensor, file, name});
      if (!is_new) throw FormatError(cat("tensor ", excerpt(tensor_name), " is in ", place->second.file_name, " too"));
    }
    reads.check();
  } catch (const FormatError& error) {
    throw FormatError(cat(name, ": ", error.what()));
  }
}

[[noreturn]] void throw_no_weights(const HfFolder& folder) {
  std::string others;
  for (const std::string_view name : kOtherWeights) {
    if (folder.has(name)) others += cat(others.empty() ? "" : ", ", name);
  }
  throw FormatError(
      cat("expected weights in ", kWeights, " or in the files that ", kIndex, " names, found neither",
          others.empty() ? "" : cat("; ", others, " is not read: save the model with transformers as safetensors")));
}

// The files that the index names, each of which has what the index says of it.
void read_shards(const HfFolder& folder, bool use_mmap, Tensors& tensors) {
  const HfJson index(folder, std::string(kIndex));
  const Json map = index.root().get("weight_map");
  std::set<std::string, std::less<>> names;
  for (const Json entry : map.members()) names.emplace(entry.string());
  for (const std::string& name : names) read_file(folder, name, use_mmap, tensors);
  for (const Json entry : map.members()) {
    const auto found = tensors.find(entry.name());
    if (found == tensors.end() || found->second.file_name != entry.string()) {
      entry.fail(cat("tensor ", excerpt(entry.name()), " is not in ", entry.string()));
    }
  }
}

bool is_shard(const HfFolder& folder, std::string_view name) {
  if (!folder.has(kIndex)) return false;
  const HfJson index(folder, std::string(kIndex));
  const Json map = index.root().get("weight_map");
  const auto names_it = [&](const Json& entry) { return entry.string() == name; };
  return std::any_of(map.members().begin(), map.members().end(), names_it);
}

constexpr std::string_view kPrefix = "model.";  // of all names but the output's

void rename(Tensors& tensors, const std::string& from, std::string to) {
  auto node = tensors.extract(from);
  node.key() = std::move(to);
  tensors.insert(std::move(node));
}

// A model that was saved without its output matrix (LlamaModel) names its tensors without "model.".
void add_prefix(Tensors& tensors) {
  const std::string head = cat(facts(Part::output).hugging_face, ".");
  std::vector<std::string> names;
  for (const auto& [name, placed] : tensors) {
    if (name.starts_with(kPrefix)) return;
    if (!name.starts_with(head)) names.push_back(name);
  }
  for (const std::string& name : names) rename(tensors, name, cat(kPrefix, name));
}

// Of a matrix that is both, some programs keep the output's name alone.
void name_tied(Tensors& tensors) {
  const std::string output = weight_name(Naming::hugging_face, Part::output);
  const std::string embedding = weight_name(Naming::hugging_face, Part::tok_embeddings);
  if (tensors.contains(output) && !tensors.contains(embedding)) rename(tensors, output, embedding);
}

// `named`: the file that was asked for, where it was not the folder.
Tensors read_tensors(const HfFolder& folder, const std::string& named, bool use_mmap, bool tied) {
  Tensors tensors;
  if (!named.empty() && !is_shard(folder, named)) {
    read_file(folder, named, use_mmap, tensors);
  } else if (named.empty() && folder.has(kWeights)) {
    read_file(folder, std::string(kWeights), use_mmap, tensors);
  } else if (folder.has(kIndex)) {
    read_shards(folder, use_mmap, tensors);
  } else {
    throw_no_weights(folder);
  }
  add_prefix(tensors);
  if (tied) name_tied(tensors);
  return tensors;
}

// Stored frequencies, which follow from the config.
bool is_harmless(std::string_view name) { return name.ends_with("rotary_emb.inv_freq"); }

const Format& format_of(const std::string& name, const Placed& placed) {
  for (const auto& [dtype, format] : {std::pair{"F32", &kF32}, {"F16", &kF16}, {"BF16", &kBF16}, {"F64", &kF64}}) {
    if (placed.tensor.dtype == dtype) return *format;
  }
  throw FormatError(cat(placed.file_name, ": tensor ", excerpt(name), " is ", placed.describe(),
                        ", expected F32, F16 or BF16, or F64, which is rounded: other types are not implemented"));
}

Weight weight_of(const std::string& name, const Placed& placed, Part part, const Config& config) {
  const MatrixShape shape = part_shape(config, part);
  std::vector<std::int64_t> expected = {shape.rows, shape.cols};
  if (is_vector(part)) expected.erase(expected.begin());
  const Format& format = placed.format != nullptr ? *placed.format : format_of(name, placed);
  if (placed.tensor.shape != expected) {
    throw FormatError(cat(placed.file_name, ": tensor ", excerpt(name), " is ", placed.describe(), ", expected ",
                          describe_tensor(placed.tensor.dtype, expected)));
  }
  Weight weight;
  weight.name = name;
  weight.format = &format;
  weight.group = format.group;
  weight.rows = shape.rows;
  weight.cols = shape.cols;
  Plane& plane = weight.planes[0];
  plane.data = placed.bytes();
  plane.bytes = placed.tensor.end - placed.tensor.begin;
  plane.row_bytes = row_bytes(format, shape.cols);
  plane.owner = placed.file;
  return weight;
}

// q_proj.qweight and its like are the weight that q_proj.weight is elsewhere. Empty for other names.
std::string quantized_module(std::string_view name) {
  for (const std::string_view part : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
    if (name.ends_with(part)) return std::string(name.substr(0, name.size() - part.size()));
  }
  return {};
}

bool is_matrix(PartKind kind) { return kind == PartKind::matrix || kind == PartKind::experts; }
bool is_bias(PartKind kind) { return kind == PartKind::bias || kind == PartKind::expert_biases; }

bool is_zero(const Placed& placed) {
  const std::byte* const begin = placed.bytes();
  const std::byte* const end = begin + (placed.tensor.end - placed.tensor.begin);
  return std::all_of(begin, end, [](std::byte b) { return b == std::byte{0}; });
}

// GPTQ's writers add biases of zeros where a model has none. Others that config.json does not announce, transformers
// would not add.
bool is_no_bias(const std::string& name, const Placed& placed, Part part, const Family& family,
                const std::vector<Part>& announced) {
  if (!is_bias(facts(part).kind) || contains(announced, part)) return false;
  if (is_zero(placed)) return true;
  const std::string_view own = family.bias_switch(part);
  throw FormatError(cat(placed.file_name, ": tensor ", excerpt(name), " is there, but config.json has no ",
                        own.empty() ? bias_switch(facts(part).scope) : own));
}

// Whether a model of the folder's config has the part.
bool has_place(Part part, const Config& config, const std::vector<Part>& announced) {
  const std::optional<bool> needed = is_needed(config, part);
  if (needed || facts(part).need == Need::untied) return *needed || facts(part).need == Need::untied;
  return is_bias(facts(part).kind) || contains(announced, part);
}

// Gains as they are computed with. What the folder has is kept beside them, by its names.
void add_ones(Checkpoint& checkpoint) {
  std::map<std::string, std::string, std::less<>> own;
  for (const auto& [file_name, tensor] : checkpoint.file_tensors) {
    if (tensor.weights.size() == 1) own.emplace(tensor.weights[0], file_name);
  }
  for (auto& [name, weight] : checkpoint.weights) {
    const auto found = find_part(Naming::hugging_face, name, checkpoint.config);
    if (!found || facts(found->part).kind != PartKind::gain) continue;
    const auto renamed = own.find(name);
    checkpoint.file_tensors[renamed == own.end() ? name : renamed->second] = {{name}, 0, false, weight};
    weight = with_added(weight, 1.0F);
  }
}

// Names that only this family has.
void rename_parts(Tensors& tensors, const Family& family) {
  if (family.hugging_face_renames.empty()) return;
  Tensors named;
  for (const auto& [name, placed] : tensors) {
    if (!named.emplace(renamed(family.hugging_face_renames, name), placed).second) {
      throw FormatError(cat(placed.file_name, ": tensor ", excerpt(name), " is there twice, by two names"));
    }
  }
  tensors = std::move(named);
}

void add_weights(const Tensors& tensors, const std::optional<GptqSettings>& gptq,
                 const std::optional<LlmInt8Settings>& int8, const Family& family, const std::vector<Part>& announced,
                 Checkpoint& checkpoint) {
  const Config& config = checkpoint.config;
  for (const auto& [name, placed] : tensors) {
    if (is_harmless(name) || (int8 && is_llm_int8_part(tensors, name))) continue;
    const std::string module = gptq ? quantized_module(name) : "";
    const std::string weight = module.empty() ? name : module + ".weight";
    const auto found = find_part(Naming::hugging_face, weight, config);
    const bool matrix = found && is_matrix(facts(found->part).kind);
    if (!found || !has_place(found->part, config, announced) || (!module.empty() && !matrix)) {
      throw FormatError(cat(placed.file_name, ": tensor ", excerpt(name), ", ", placed.describe(),
                            ", has no place in a Llama of ", config.n_layers,
                            " layers, so this folder computes something that this version does not"));
    }
    if (is_no_bias(name, placed, found->part, family, announced)) continue;
    if (int8 && matrix && placed.tensor.dtype == "I8") {
      const MatrixShape shape = part_shape(config, found->part);
      checkpoint.weights.emplace(name, llm_int8_weight(tensors, name, *int8, shape.rows, shape.cols));
    } else if (module.empty()) {
      if (!checkpoint.weights.emplace(name, weight_of(name, placed, found->part, config)).second) {
        throw FormatError(cat(placed.file_name, ": tensor ", excerpt(name), " is there twice: quantized and not"));
      }
    } else if (name.ends_with(".qweight")) {
      const MatrixShape shape = part_shape(config, found->part);
      checkpoint.weights.emplace(weight, gptq_weight(tensors, module, *gptq, shape.rows, shape.cols));
    } else if (!tensors.contains(module + ".qweight")) {
      throw FormatError(cat("tensor ", excerpt(module + ".qweight"), " is missing, beside ", name));
    }
  }
}

// What config.json announces, all layers have.
void check_announced(const std::vector<Part>& announced, const Family& family, const Checkpoint& checkpoint) {
  for (const Part part : announced) {
    if (is_needed(checkpoint.config, part) == false) continue;
    const std::int64_t layers = per_layer(part) ? checkpoint.config.n_layers : 1;
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const std::string name = weight_name(Naming::hugging_face, part, layer);
      const std::string_view says = family.bias_switch(part);
      if (!checkpoint.weights.contains(name) && !says.empty()) {
        throw FormatError(cat("tensor '", name, "' is missing, which ", says, " of config.json says to be there"));
      }
      checkpoint.weight(part, layer);
    }
  }
}

Vocabulary from_tokenizer_json(const HfFolder& folder, std::int64_t vocab_size) {
  const auto tokenizer = HfJson::find(folder, "tokenizer.json");
  if (tokenizer == nullptr) throw FormatError("the folder has no tokenizer.json");
  Vocabulary vocabulary = read_tokenizer_json(tokenizer->root(), vocab_size);
  apply(read_tokenizer_settings(folder), vocabulary);
  return vocabulary;
}

Vocabulary from_tokenizer_model(const HfFolder& folder, std::int64_t vocab_size) {
  const Buffer file = folder.open("tokenizer.model", false, kMostText);
  Vocabulary vocabulary = read_tokenizer_file({file.data(), file.size()}, 0);
  apply_to_model(read_tokenizer_settings(folder), vocabulary);
  fit(vocabulary, vocab_size, "tokenizer.model");
  check_vocabulary(vocabulary);
  return vocabulary;
}

// A model without a tokenizer that we know still takes and gives ids. Where tokenizer.json is missing or unknown to us there
// may be a tokenizer.model.
void add_vocabulary(const HfFolder& folder, Checkpoint& checkpoint) {
  const auto add = [&](Vocabulary (*read)(const HfFolder&, std::int64_t), std::string_view what) {
    std::string problem;
    try {
      checkpoint.vocabulary = std::make_shared<const Vocabulary>(read(folder, checkpoint.config.vocab_size));
      return checkpoint.no_vocabulary_reason.clear();
    } catch (const FormatError& error) {
      problem = error.what();
    } catch (const std::system_error& error) {  // a file that may not be read
      problem = error.what();
    }
    checkpoint.no_vocabulary_reason += cat(what, problem);
  };
  add(from_tokenizer_json, "");
  if (checkpoint.vocabulary == nullptr && folder.has("tokenizer.model")) {
    add(from_tokenizer_model, "; tokenizer.model: ");
  }
}

}  // namespace

bool HfFolder::has(std::string_view name) const {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path_of(path_) / path_of(std::string(name)), ignored));
}

std::vector<std::string> HfFolder::list(std::string_view within, std::string_view ending) const {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(path_of(path_) / path_of(std::string(within)), ignored)) {
    std::string name = utf8_of(entry.path().filename());
    if (name.ends_with(ending)) names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

fs::path HfFolder::target_of(std::string_view name, std::string_view within) const {
  if (!is_plain(name))
    throw FormatError(cat(excerpt(name), " is no plain file name, and files of the folder have one"));
  std::error_code error;
  const fs::path target =
      fs::canonical(path_of(path_) / path_of(std::string(within)) / path_of(std::string(name)), error);
  if (error) throw FormatError(cat(name, " is missing from the folder (", error.message(), ")"));
  if (!fs::is_regular_file(target)) throw FormatError(cat(name, " is no file"));
  return target;
}

bool HfFolder::owns(const fs::path& target) const {
  const fs::path folder = fs::canonical(path_of(path_));
  const fs::path blobs = blobs_of(folder);
  return is_in(folder, target) || (!blobs.empty() && is_in(blobs, target));
}

Buffer HfFolder::open(std::string_view name, bool use_mmap, std::size_t most) const {
  const fs::path target = target_of(name);
  if (!owns(target)) throw_foreign(name, target, "");
  return Buffer::file(utf8_of(target), use_mmap, most);
}

Buffer HfFolder::open_within(std::string_view within, std::string_view name, std::size_t most) const {
  const fs::path target = target_of(name, within);
  if (!owns(target)) throw_foreign(cat(within, "/", name), target, "");
  return Buffer::file(utf8_of(target), false, most);
}

HfFolder::Weights HfFolder::open_weights(std::string_view name, bool use_mmap) const {
  const fs::path target = target_of(name);
  if (owns(target)) return {Buffer::file(utf8_of(target), use_mmap), ""};
  const std::string mark = download_mark(fs::canonical(path_of(path_)));
  if (!mark.empty())
    throw_foreign(name, target,
                  cat("; links to weights elsewhere are followed in folders of your own, "
                      "and ",
                      mark, " says that this one was downloaded"));
  return {Buffer::file(utf8_of(target), use_mmap), utf8_of(target)};
}

std::optional<FolderPath> find_hf_folder(const std::string& path) {
  const fs::path given = path_of(path);
  std::error_code ignored;
  if (fs::is_directory(given, ignored)) return FolderPath{path, ""};
  if (given.extension() != ".safetensors" || is_panel_file(path)) return {};
  const fs::path folder = given.has_parent_path() ? given.parent_path() : fs::path(".");
  if (!fs::exists(folder / "config.json", ignored)) return {};
  return FolderPath{utf8_of(folder), utf8_of(given.filename())};
}

Vocabulary open_tokenizer_json(const std::string& path, std::int64_t vocab_size) {
  try {
    const fs::path given = path_of(path);
    const HfJson tokenizer(Buffer::file(path, false, kMostText), utf8_of(given.filename()));
    Vocabulary vocabulary = read_tokenizer_json(tokenizer.root(), vocab_size);
    apply(read_tokenizer_settings(HfFolder(given.has_parent_path() ? utf8_of(given.parent_path()) : ".")), vocabulary);
    return vocabulary;
  } catch (const FormatError& error) {
    throw FormatError(cat(path, ": ", error.what()));
  }
}

Checkpoint open_hf_folder(const FolderPath& path, bool use_mmap) {
  const HfFolder folder(path.folder);
  if (!folder.has("config.json") && folder.has("params.json")) {
    throw FormatError(
        "a folder of Meta's (params.json, consolidated.00.pth), which is not opened in place: `llama2cpp export` reads "
        "it, and writes a GGUF file or a Hugging Face folder, which open");
  }
  // Where there is none the error is the system's, and names what was looked for.
  if (!folder.has("config.json")) Buffer::file(utf8_of(path_of(path.folder) / "config.json"));
  const HfJson config(folder, "config.json");
  Checkpoint checkpoint;
  checkpoint.file_format = "Hugging Face folder";
  checkpoint.naming = Naming::hugging_face;
  checkpoint.config = read_hf_config(config.root());
  const std::optional<LlmInt8Settings> int8 = read_llm_int8_settings(config.root());
  const Family& family = find_family(config.root());
  checkpoint.model_type = family.model_type;
  const bool mxfp4 = family.experts && !family.experts->turned_inputs.empty() && says_mxfp4(config.root());
  const auto gptq = int8 || mxfp4 ? std::nullopt : read_gptq_settings(folder, config.root());
  if (int8) checkpoint.file_format += cat(", ", kLlmInt8.name);
  if (gptq) checkpoint.file_format += cat(", ", gptq->format->name);
  if (mxfp4) checkpoint.file_format += ", mxfp4";
  Tensors tensors = read_tensors(folder, path.file, use_mmap, checkpoint.config.tied);
  rename_parts(tensors, family);
  split_fused(family, checkpoint.config, tensors);
  if (family.experts) {
    const bool turned = !family.experts->turned_inputs.empty();
    if (int8 || (gptq && turned)) {
      throw FormatError(cat("config.json: quantization_config: weights of experts that are quantized like this (",
                            int8 ? kLlmInt8.name : gptq->format->name, turned ? ", of gate and up in turn" : "",
                            ") are not implemented"));
    }
    name_experts(*family.experts, checkpoint.config, tensors);
  }
  std::vector<Buffer> files;
  for (const auto& [name, placed] : tensors) placed.file.add_to(files);
  const FileReads reads(files);
  const std::vector<Part> announced = read_hf_parts(config.root());
  add_weights(tensors, gptq, int8, family, announced, checkpoint);
  add_file_tensors(family, checkpoint);
  if (family.gain_plus_one) add_ones(checkpoint);
  // As in transformers: an output matrix that is there is the output.
  const std::string output = weight_name(Naming::hugging_face, Part::output);
  checkpoint.config.tied = checkpoint.config.tied && !checkpoint.weights.contains(output);
  check_announced(announced, family, checkpoint);
  checkpoint.weight(Part::tok_embeddings);  // vocab_size is true: pieces are counted by it
  add_vocabulary(folder, checkpoint);
  checkpoint.generation = read_generation_config(folder);
  reads.check();
  return checkpoint;
}

}  // namespace llama2cpp
