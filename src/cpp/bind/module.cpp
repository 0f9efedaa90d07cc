// The _core extension module: calls the register functions, and nothing else.
#include <pybind11/pybind11.h>

#include "bind/bind.h"

// What Python threads share is locked by the core (see ARCHITECTURE, "Threads") or by an ObjectLock: no GIL is needed.
PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "The C++ core of llama2cpp. Use the llama2cpp package; these names may change.";
  module.attr("__version__") = LLAMA2CPP_VERSION;
  llama2cpp::bind::register_errors(module);
  llama2cpp::bind::register_files(module);
  llama2cpp::bind::register_format(module);
  llama2cpp::bind::register_gptq(module);
  llama2cpp::bind::register_text(module);
  llama2cpp::bind::register_sampler(module);
  llama2cpp::bind::register_session(module);
  llama2cpp::bind::register_config(module);
  llama2cpp::bind::register_model(module);
  llama2cpp::bind::register_adapter(module);
  llama2cpp::bind::register_parts(module);
  llama2cpp::bind::register_recorder(module);
  llama2cpp::bind::register_safetensors(module);
  llama2cpp::bind::register_panels(module);
  llama2cpp::bind::register_hooks(module);
  llama2cpp::bind::register_machine(module);
  llama2cpp::bind::tidy_signatures(module);
}
