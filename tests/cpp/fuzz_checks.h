// What the fuzz targets that open checkpoints ask of one that opened.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "backend/backend.h"
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
inline void try_vocabulary(const llama2cpp::Vocabulary& vocabulary) {
  const llama2cpp::Tokenizer tokenizer(vocabulary);
  for (const char* text : {"", "aab abc <s><|eot_id|>\n\xC3\xA9\xFF", "<0x-1><s></s>  a \xE2\x96\x81"}) {
    try {
      tokenizer.decode(tokenizer.encode(text, true, true, true));
    } catch (const std::invalid_argument&) {  // no id for some character
    }
  }
}

// A row's whole numbers are what it is decoded to, where a format has zero points.
inline void check_blocks(const llama2cpp::Weight& weight, std::int64_t row, const std::vector<float>& decoded) {
  if (!llama2cpp::in_blocks(weight)) return;
  llama2cpp::IntegerBlock block;
  for (std::int64_t i = 0; i < weight.cols / 32; ++i) {
    weight.format->integers(weight, row, i, block);
    for (std::int64_t k = 0; weight.format->blocks.zeros && k < 32; ++k) {
      std::int32_t column = static_cast<std::int32_t>(i * 32 + k);
      if (weight.order) std::memcpy(&column, weight.order.data() + column * 4, 4);
      const float value = block.d * static_cast<float>(block.q[static_cast<std::size_t>(k)] - block.zero);
      const float expected = decoded[static_cast<std::size_t>(column)];
      check(value == expected || (value != value && expected != expected));
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
    for (std::int64_t r = 0; r < weight.rows; ++r) {
      weight.decode_row(r, row.data());
      check_blocks(weight, r, row);
    }
  }
  check(checkpoint.vocabulary == nullptr || checkpoint.no_vocabulary_reason.empty());
  if (checkpoint.vocabulary != nullptr) try_vocabulary(*checkpoint.vocabulary);
  static const std::shared_ptr<llama2cpp::Backend> backend = llama2cpp::make_backend("cpu", 1);
  const llama2cpp::Weights weights(checkpoint, *backend);
  check(static_cast<std::int64_t>(weights.layers.size()) == checkpoint.config.n_layers);
}

}  // namespace fuzz_checks
