// The text of the kernels, as metal_sources.py makes it from kernels/: one piece for each library, with all that it includes
// but Metal's own headers.
#pragma once

#include <string_view>

namespace llama2cpp::metal {

// Of kernels/<library>.metal or kernels/formats/<library>.metal. Empty where there is no such file.
std::string_view metal_source(std::string_view library);

}  // namespace llama2cpp::metal
