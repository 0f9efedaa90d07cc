// libFuzzer: no files in a Hugging Face folder may crash its reader. The input is a folder: for each file a byte that
// says which, two bytes of length, and its bytes. Every byte of every weight of a folder that opens must lie inside a
// file, and its weights and tokenizer must be usable or refused. tests/support/fuzz_corpus.py writes a folder to start with.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "core/check.h"
#include "fuzz_checks.h"
#include "io/checkpoint.h"

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

// Memory, where there is such a place: a folder for this process.
fs::path make_folder() {
  std::error_code error;
  const fs::path memory = fs::is_directory("/dev/shm", error) ? fs::path("/dev/shm") : fs::temp_directory_path();
  std::string name = (memory / "llama2cpp-fuzz-XXXXXX").string();
  fuzz_checks::check(mkdtemp(name.data()) != nullptr);
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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  write_files(data, size);
  if (!fs::exists(kFolder / "config.json")) return 0;  // an error of the system's, as for any file that is not there
  try {
    // Read, not mapped: sanitizers then see every step past the end.
    const llama2cpp::Checkpoint checkpoint = llama2cpp::open_checkpoint(kFolder.string(), false);
    fuzz_checks::check_checkpoint(checkpoint, [](const llama2cpp::Weight&, const llama2cpp::Plane& plane) {
      fuzz_checks::check_inside(plane, plane.owner);
    });
  } catch (const llama2cpp::FormatError&) {  // the only exception that a file may cause
  }
  return 0;
}
