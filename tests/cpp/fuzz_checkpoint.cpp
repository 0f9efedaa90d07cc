// libFuzzer: no bytes may crash the checkpoint readers, every byte of every weight of a file that opens must lie inside
// the file, and its weights and tokenizer must be usable or refused. Start it with a few small files as corpus;
// tests/support/fuzz_corpus.py writes them.
#include <cstddef>
#include <cstdint>

#include "core/check.h"
#include "fuzz_checks.h"
#include "io/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const llama2cpp::Buffer file = llama2cpp::Buffer::wrap(data, size, nullptr);
  try {
    const llama2cpp::Checkpoint checkpoint = llama2cpp::open_checkpoint(file, "fuzz");
    fuzz_checks::check_checkpoint(checkpoint, [&](const llama2cpp::Weight& weight, const llama2cpp::Plane& plane) {
      if (&plane == &weight.planes[2] && weight.format->form == llama2cpp::PanelForm::llm_int8) return;  // a copy
      fuzz_checks::check_inside(plane, file);
      const bool in_panels = weight.format->in_panels_of != nullptr;  // which are no rows
      fuzz_checks::check(in_panels || static_cast<std::size_t>(plane.row_bytes * weight.rows) == plane.bytes);
    });
  } catch (const llama2cpp::FormatError&) {  // the only exception that a file may cause
  }
  return 0;
}
