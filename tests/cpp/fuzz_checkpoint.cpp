// libFuzzer: no bytes may crash the checkpoint readers, every byte of every weight of a file that opens must lie inside
// the file, and its weights and tokenizer must be usable or refused. Start it with a few small files as corpus;
// tests/fuzz_corpus.py writes them.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "core/check.h"
#include "io/checkpoint.h"
#include "model/weights.h"
#include "text/tokenizer.h"

namespace {

void check(bool condition) {
  if (!condition) std::abort();  // libFuzzer's way to report
}

void check_weight(const llama2cpp::Weight& weight, const llama2cpp::Buffer& file) {
  check(weight.rows > 0 && weight.cols > 0);
  for (const llama2cpp::Plane& plane : weight.planes) {
    if (plane.data == nullptr) continue;
    check(plane.data >= file.data() && plane.bytes <= file.size());
    check(static_cast<std::size_t>(plane.data - file.data()) <= file.size() - plane.bytes);
    check(static_cast<std::size_t>(plane.row_bytes * weight.rows) == plane.bytes);
  }
  std::vector<float> row(static_cast<std::size_t>(weight.cols));
  for (std::int64_t r = 0; r < weight.rows; ++r) weight.decode_row(r, row.data());
}

// A tokenizer that can be made can be used: what it makes of a text, it can read.
void check_vocabulary(const llama2cpp::Vocabulary& vocabulary) {
  const llama2cpp::Tokenizer tokenizer(vocabulary);
  for (const char* text : {"", "aab abc <|eot_id|>\n\xC3\xA9\xFF", "<0x-1><s></s>"}) {
    try {
      tokenizer.decode(tokenizer.encode(text, true, true, true));
    } catch (const std::invalid_argument&) {  // no id for some character
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const llama2cpp::Buffer file = llama2cpp::Buffer::wrap(data, size, nullptr);
  try {
    const llama2cpp::Checkpoint checkpoint = llama2cpp::open_checkpoint(file, "fuzz");
    for (const auto& [name, weight] : checkpoint.weights) check_weight(weight, file);
    check(checkpoint.vocabulary == nullptr || checkpoint.no_vocabulary_reason.empty());
    if (checkpoint.vocabulary != nullptr) check_vocabulary(*checkpoint.vocabulary);
    const llama2cpp::Weights weights(checkpoint);
    check(static_cast<std::int64_t>(weights.layers.size()) == checkpoint.config.n_layers);
  } catch (const llama2cpp::FormatError&) {  // the only exception that a file may cause
  }
  return 0;
}
