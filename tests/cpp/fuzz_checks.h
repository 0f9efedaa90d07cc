// What the fuzz targets that open checkpoints ask of one that opened.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "io/checkpoint.h"
#include "model/weights.h"
#include "text/tokenizer.h"

namespace fuzz_checks {

inline void check(bool condition) {
  if (!condition) std::abort();  // libFuzzer's way to report
}

inline void check_inside(const llama2cpp::Plane& plane, const llama2cpp::Buffer& file) {
  check(plane.data >= file.data() && plane.bytes <= file.size());
  check(static_cast<std::size_t>(plane.data - file.data()) <= file.size() - plane.bytes);
}

// A tokenizer that can be made can be used: what it makes of a text, it can read.
inline void check_vocabulary(const llama2cpp::Vocabulary& vocabulary) {
  const llama2cpp::Tokenizer tokenizer(vocabulary);
  for (const char* text : {"", "aab abc <s><|eot_id|>\n\xC3\xA9\xFF", "<0x-1><s></s>  a \xE2\x96\x81"}) {
    try {
      tokenizer.decode(tokenizer.encode(text, true, true, true));
    } catch (const std::invalid_argument&) {  // no id for some character
    }
  }
}

// Every plane passes check_plane(weight, plane), every row can be decoded, the tokenizer is usable or refused, and the
// weights are those of the config.
template <class CheckPlane>
void check_checkpoint(const llama2cpp::Checkpoint& checkpoint, CheckPlane check_plane) {
  for (const auto& [name, weight] : checkpoint.weights) {
    check(weight.rows > 0 && weight.cols > 0);
    for (const llama2cpp::Plane& plane : weight.planes) {
      if (plane.data != nullptr) check_plane(weight, plane);
    }
    std::vector<float> row(static_cast<std::size_t>(weight.cols));
    for (std::int64_t r = 0; r < weight.rows; ++r) weight.decode_row(r, row.data());
  }
  check(checkpoint.vocabulary == nullptr || checkpoint.no_vocabulary_reason.empty());
  if (checkpoint.vocabulary != nullptr) check_vocabulary(*checkpoint.vocabulary);
  const llama2cpp::Weights weights(checkpoint);
  check(static_cast<std::int64_t>(weights.layers.size()) == checkpoint.config.n_layers);
}

}  // namespace fuzz_checks
