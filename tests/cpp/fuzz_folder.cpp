// libFuzzer: no files in a Hugging Face folder may crash its reader. The input is a folder: for each file a byte that
// says which, two bytes of length, and its bytes. Every byte of every weight of a folder that opens must lie inside a
// file, and its weights and tokenizer must be usable or refused. tests/fuzz_corpus.py writes a folder to start with.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/check.h"
#include "io/checkpoint.h"
#include "model/weights.h"
#include "text/tokenizer.h"

namespace {

namespace fs = std::filesystem;

constexpr const char* kNames[] = {
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "a.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "quantize_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
};

void check(bool condition) {
  if (!condition) std::abort();  // libFuzzer's way to report
}

// Memory, where there is such a place: a folder for this process.
fs::path make_folder() {
  std::error_code error;
  const fs::path memory = fs::is_directory("/dev/shm", error) ? fs::path("/dev/shm") : fs::temp_directory_path();
  std::string name = (memory / "llama2cpp-fuzz-XXXXXX").string();
  check(mkdtemp(name.data()) != nullptr);
  return name;
}

const fs::path kFolder = make_folder();

void write_files(const std::uint8_t* data, std::size_t size) {
  for (const char* name : kNames) fs::remove(kFolder / name);
  while (size >= 3) {
    const std::size_t which = data[0] % std::size(kNames);
    const std::size_t length = std::min(data[1] + std::size_t{256} * data[2], size - 3);
    std::ofstream file(kFolder / kNames[which], std::ios::binary);
    file.write(reinterpret_cast<const char*>(data) + 3, static_cast<std::streamsize>(length));
    data += 3 + length;
    size -= 3 + length;
  }
}

void check_weight(const llama2cpp::Weight& weight) {
  check(weight.rows > 0 && weight.cols > 0);
  for (const llama2cpp::Plane& plane : weight.planes) {
    if (plane.data == nullptr) continue;
    check(plane.data >= plane.owner.data() && plane.bytes <= plane.owner.size());
    check(static_cast<std::size_t>(plane.data - plane.owner.data()) <= plane.owner.size() - plane.bytes);
  }
  std::vector<float> row(static_cast<std::size_t>(weight.cols));
  for (std::int64_t r = 0; r < weight.rows; ++r) weight.decode_row(r, row.data());
}

// A tokenizer that can be made can be used: what it makes of a text, it can read.
void check_vocabulary(const llama2cpp::Vocabulary& vocabulary) {
  const llama2cpp::Tokenizer tokenizer(vocabulary);
  for (const char* text : {"", "aab abc <s>\n\xC3\xA9\xFF", "<0x-1><s></s>  a \xE2\x96\x81"}) {
    try {
      tokenizer.decode(tokenizer.encode(text, true, true, true));
    } catch (const std::invalid_argument&) {  // no id for some character
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  write_files(data, size);
  if (!fs::exists(kFolder / "config.json")) return 0;  // an error of the system's, as for any file that is not there
  try {
    // Read, not mapped: sanitizers then see every step past the end.
    const llama2cpp::Checkpoint checkpoint = llama2cpp::open_checkpoint(kFolder.string(), false);
    for (const auto& [name, weight] : checkpoint.weights) check_weight(weight);
    check(checkpoint.vocabulary == nullptr || checkpoint.no_vocabulary_reason.empty());
    if (checkpoint.vocabulary != nullptr) check_vocabulary(*checkpoint.vocabulary);
    const llama2cpp::Weights weights(checkpoint);
    check(static_cast<std::int64_t>(weights.layers.size()) == checkpoint.config.n_layers);
  } catch (const llama2cpp::FormatError&) {  // the only exception that a file may cause
  }
  return 0;
}
