#include "model/pack_weight.h"

#include "core/check.h"
#include "format/panel_formats.h"
#include "format/weight_rows.h"

namespace llama2cpp {

void pack_for_file(Weight& weight, Backend& backend, FunctionRef<void()> poll) {
  LLAMA2CPP_CHECK(backend.packs(), "[pack_for_file] the ", backend.name(), " backend makes no panels");
  const PanelForm form = as_in_panel_file(weight).format->form;
  weight.int8_input = form == PanelForm::blocks || form == PanelForm::int8_group || form == PanelForm::llm_int8;
  weight.bf16_input = false;
  const Backend::Lease lease(backend, poll);
  backend.pack(weight);
  check_files(weight);
}

}  // namespace llama2cpp
