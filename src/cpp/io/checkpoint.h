// Checkpoint: an opened file. Its config, its weights under their names in the file (in place, nothing is read
// ahead), and its tokenizer data where it has any.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/buffer.h"
#include "core/config.h"
#include "core/vocabulary.h"
#include "format/format.h"
#include "io/generation_config.h"
#include "io/names.h"

namespace llama2cpp {

// A tensor of the file whose weights have other names here, or other numbers.
struct FileTensor {
  std::vector<std::string> weights;  // in this order: rows behind rows, and experts behind experts
  std::int64_t experts = 0;          // all of them in one: [experts, ...]; 0: a weight of a layer
  bool turned = false;               // an expert's columns first, and rows of its weights in turn
  Weight stored = {};                // a gain without the 1 that is added to it; without a format: as here
};

struct Checkpoint {
  std::string path;         // empty for arrays
  std::string file_format;  // "llama2.c v0", "GGUF v3", "arrays", ...
  std::string model_type;   // of a Hugging Face folder's config.json; empty for other files
  Config config;
  Naming naming = Naming::meta;
  bool llama2c_arithmetic = false;  // llama2.c's runq runs it: rounded to int8, its text should be runq's
  std::map<std::string, Weight, std::less<>> weights;
  std::shared_ptr<const Vocabulary> vocabulary;  // null where the file has no tokenizer, or one that we do not know
  std::string no_vocabulary_reason;              // which of the two, where it is a file that could have one
  GenerationConfig generation;
  // What the file itself has, where weights are otherwise here: by the names in the file. Empty for most files.
  std::map<std::string, FileTensor, std::less<>> file_tensors;

  // Throws FormatError that lists the tensor as missing.
  const Weight& weight(const std::string& name) const;
  const Weight& weight(Part part, std::int64_t layer = 0, std::int64_t expert = 0) const {
    return weight(weight_name(naming, part, layer, expert));
  }
};

// Whether an array of it has one dimension.
bool is_vector(const Checkpoint& checkpoint, const Weight& weight);

// The mapped files that a checkpoint's weights lie in, each once.
std::vector<Buffer> mapped_files(const Checkpoint& checkpoint);

// Opens any file that a reader in checkpoint.cpp's list knows, or a Hugging Face folder: by its path, or by that of a
// safetensors file beside a config.json. Throws FormatError (what was expected, what was found,
// at which byte or in which tensor) or std::system_error from the operating system.
Checkpoint open_checkpoint(const std::string& path, bool use_mmap = true);

// Opens another file of the same model, by its path. Empty where there is none but the one.
using OpenBeside = std::function<Buffer(const std::string& path)>;

// The same for a file that is in memory already; `path` is for error messages, and for the names of files beside it, where
// `open_beside` can open them. The weights keep `file` alive.
Checkpoint open_checkpoint(const Buffer& file, const std::string& path, const OpenBeside& open_beside = {});

// The tokenizer alone of a GGUF file, which may be one without weights. Throws FormatError where it has none, or one that
// we do not know.
Vocabulary open_checkpoint_vocabulary(const std::string& path);

// A reader: looks at a file's first bytes, and opens it. Its errors need not name the file.
struct Reader {
  std::string_view name;
  std::string (*why_not)(const Buffer& file);  // empty: the file is this reader's; else what says that it is not
  Checkpoint (*open)(const std::string& path, const Buffer& file, const OpenBeside& open_beside);
};

// The readers that checkpoint.cpp lists.
extern const Reader kGguf;       // gguf_model.cpp
extern const Reader kLlama2cV0;  // llama2c.cpp
extern const Reader kLlama2cV1;  // llama2c.cpp; version 2 too
extern const Reader kPanelFile;  // panel_file.cpp

}  // namespace llama2cpp
