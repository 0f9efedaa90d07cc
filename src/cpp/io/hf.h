// The parts of reading a Hugging Face folder, for hf_folder.cpp. What the files mean is what transformers and
// `tokenizers` make of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/buffer.h"
#include "core/check.h"
#include "core/config.h"
#include "core/file_kind.h"
#include "core/parts.h"
#include "core/vocabulary.h"
#include "format/format.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace llama2cpp {

// What names of tensors of a layer begin with; its number follows.
inline constexpr std::string_view kLayers = "model.layers.";

struct Checkpoint;
struct Family;
struct ExpertFacts;
struct FusedRows;

// What a path stands for: a folder, and the file in it where that was named.
struct FolderPath {
  std::string folder;
  std::string file;
};

// Nothing for a path that is neither a folder nor a safetensors file beside a config.json, and for a file of panels.
std::optional<FolderPath> find_hf_folder(const std::string& path);

// Throws FormatError for a folder that is not as transformers writes them, or whose model computes what this version
// does not, and std::system_error for one without config.json. Its errors need not name the folder.
Checkpoint open_hf_folder(const FolderPath& path, bool use_mmap);

// Says what the folder calls the weights that have other names in a checkpoint.
void add_file_tensors(const Family& family, Checkpoint& checkpoint);

// A folder of files that may have come from elsewhere. A name leads to a regular file inside the folder, or, through a
// link as Hugging Face's cache makes them (models--org--name/snapshots/revision/file -> ../../blobs/hash), to one in the
// blobs beside it. Any other link is refused: a downloaded folder shall not make us read, and show, what is not its own.
// One exception: weights. Users keep them on other disks, and of a file that is no safetensors file nothing is shown.
// Their links are followed wherever they lead, unless something says that the folder, and so the link, was downloaded.
class HfFolder {
 public:
  struct Weights {
    Buffer file;
    std::string link;  // where it leads, if that is out of the folder
  };

  explicit HfFolder(std::string path) : path_(std::move(path)) {}

  bool has(std::string_view name) const;

  // The files of a folder within it that end so, by their names; none where there is no such folder.
  std::vector<std::string> list(std::string_view within, std::string_view ending) const;

  // Opens a file of a folder within it, as `open` does.
  Buffer open_within(std::string_view within, std::string_view name, std::size_t most) const;

  // Throws FormatError for a name that is no plain file name and a file that is not the folder's, std::system_error for
  // one that cannot be opened.
  Buffer open(std::string_view name, bool use_mmap, std::size_t most = std::numeric_limits<std::size_t>::max()) const;
  Weights open_weights(std::string_view name, bool use_mmap) const;

 private:
  std::filesystem::path target_of(std::string_view name, std::string_view within = "") const;
  bool owns(const std::filesystem::path& target) const;

  std::string path_;
};

// A JSON file of the folder, with the bytes that it is parsed from.
class HfJson {
 public:
  HfJson(const HfFolder& folder, const std::string& name) : HfJson(folder.open(name, false, kMostText), name) {}
  HfJson(Buffer file, const std::string& name) : file_(std::move(file)), document_(text_of(file_, name), name) {}

  // The file's value; nothing where the folder has no such file.
  static std::unique_ptr<HfJson> find(const HfFolder& folder, const std::string& name) {
    return folder.has(name) ? std::make_unique<HfJson>(folder, name) : nullptr;
  }

  Json root() const { return document_.root(); }

 private:
  static std::string_view text_of(const Buffer& file, const std::string& name) {
    const std::span<const std::byte> bytes(file.data(), file.size());
    refuse_stand_in(bytes, cat(name, ", a JSON file"));
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  Buffer file_;
  JsonDocument document_;
};

// A tensor, in one of the folder's files.
struct Placed {
  SafetensorsTensor tensor;
  Buffer file;
  std::string file_name;
  const Format* format = nullptr;  // of a copy that is in no type of safetensors files

  const std::byte* bytes() const { return file.data() + tensor.begin; }
  std::string describe() const { return describe_tensor(tensor.dtype, tensor.shape); }
};

using Tensors = std::map<std::string, Placed, std::less<>>;

struct GptqSettings {
  const Format* format = nullptr;         // of modules without a rule of their own
  bool version_2 = false;                 // of all modules
  bool has_rules = false;                 // then other modules may have other bits, and
  std::vector<std::int64_t> group_sizes;  // groups of one of these sizes; -1: one group for all columns
};

// Nothing for a folder of floats. Throws FormatError for every other way to quantize, by its name.
std::optional<GptqSettings> read_gptq_settings(const HfFolder& folder, const Json& config);

// The weight of a module ("model.layers.0.mlp.up_proj") that has a qweight.
Weight gptq_weight(const Tensors& tensors, const std::string& module, const GptqSettings& settings, std::int64_t rows,
                   std::int64_t cols);

struct LlmInt8Settings {
  float threshold;  // 0: none
  bool fixed;       // each weight brings its outlier columns along
};

// Nothing where bitsandbytes is not the way to quantize. Throws FormatError for its 4 bits, by their name.
std::optional<LlmInt8Settings> read_llm_int8_settings(const Json& config);

// What a module's tensor is called behind the module: ".weight", ".bias", ".qweight" ... Empty for other names.
std::string_view plane_ending(std::string_view name);

// How many rows the module's weight has by this tensor of it, where that shows them.
std::optional<std::int64_t> rows_of_plane(std::string_view name, const Placed& placed);

// Puts tensors of the parts in place of one of a module that holds their rows. Throws FormatError where they are there too.
void split_module(const std::string& name, const std::vector<FusedRows>& parts, Tensors& tensors);

// Weights that the family's files hold as one become weights of their own.
void split_fused(const Family& family, const Config& config, Tensors& tensors);

// Gives the tensors of experts the names that the table of parts has, cutting those of all experts: each becomes a tensor
// of its own where it lies. Throws FormatError for other shapes than the config's.
void name_experts(const ExpertFacts& facts, const Config& config, Tensors& tensors);

// The part of it for families whose experts' columns come first: those tensors become copies, one for each expert. Throws
// OutOfMemoryError too.
void name_turned_experts(const ExpertFacts& facts, const Config& config, Tensors& tensors);

// Whether a config.json says that experts are MXFP4, as OpenAI's are.
bool says_mxfp4(const Json& config);

// Whether a tensor belongs to another, which is int8.
bool is_llm_int8_part(const Tensors& tensors, const std::string& name);

// The weight of this name ("model.layers.0.mlp.up_proj.weight"), which is int8.
Weight llm_int8_weight(const Tensors& tensors, const std::string& name, const LlmInt8Settings& settings,
                       std::int64_t rows, std::int64_t cols);

// Sizes and constants from config.json. `tied` is its wish: a folder that has an output matrix all the same is not.
// Throws FormatError for architectures that are not Llama's and for settings that would change the result in a way that
// is not implemented.
Config read_hf_config(const Json& config);

// The row of the table of families that it names. Throws FormatError for one that is in none.
const Family& find_family(const Json& config);

// The optional parts that a config.json which has been read announces: its family's, and biases that it says.
std::vector<Part> read_hf_parts(const Json& config);

// The ids of eos_token_id, in config.json or generation_config.json: a number, a list of them, or nothing.
std::vector<std::int64_t> read_eos_ids(const Json& config);

// The vocabulary in tokenizer.json. Throws FormatError for a file that contradicts itself or does what this version does
// not: then the model has no tokenizer, and the error is the reason. Pieces up to `vocab_size` that the file does not
// have are filled in, as nothing that a text could become; 0: none.
Vocabulary read_tokenizer_json(const Json& tokenizer, std::int64_t vocab_size);

// What tokenizer_config.json, special_tokens_map.json, added_tokens.json and the ids of eos_token_id add to a vocabulary.
// Any of the files may be missing.
struct TokenizerSettings {
  struct Token {
    std::string text;
    bool special = true;
    bool lstrip = false;
    bool rstrip = false;
    bool normalized = false;
    std::string flaw;  // why it cannot be added to a tokenizer.model; its text may name BOS or EOS all the same
  };

  std::optional<std::string> bos_token, eos_token;  // nothing: not said, or said to be none
  bool no_bos = false;                              // said to be none
  bool no_eos = false;
  std::string chat_template;
  std::vector<std::string> template_names, template_texts;  // of others than that
  std::vector<std::int64_t> eos_ids;

  std::string tokenizer_class;  // transformers', empty where none is named
  bool split_special_tokens = false;

  // The rest is for a tokenizer.model; a tokenizer.json has most of this itself.
  bool any = false;                     // one of the first three files is there
  std::map<std::int64_t, Token> added;  // by their ids
  std::vector<Token> special;           // those that the files name, in the order of the ids that new ones get
  std::optional<bool> add_bos, add_eos, add_prefix_space;
  bool legacy = false;
  std::string flaw;  // of the added tokens, the first one
};

TokenizerSettings read_tokenizer_settings(const HfFolder& folder);

// Which tokens begin and end a text, and the chat template: beside a tokenizer.json.
void apply(const TokenizerSettings& settings, Vocabulary& vocabulary);

// All of the settings, beside a tokenizer.model: what transformers' LlamaTokenizer makes of them. Of a SentencePiece model
// it makes BPE by rank. Throws FormatError for settings that contradict the model or each other.
void apply_to_model(const TokenizerSettings& settings, Vocabulary& vocabulary);

// Gives a vocabulary as many pieces as the model has rows, with a warning where tokens are left out. Throws FormatError
// where a text could become one of those. `file` is for messages.
void fit(Vocabulary& vocabulary, std::int64_t vocab_size, std::string_view file);

// tokenizer.json alone, with the settings that lie beside it. Errors begin with the path.
Vocabulary open_tokenizer_json(const std::string& path, std::int64_t vocab_size);

}  // namespace llama2cpp
