// The parts of reading a file of panels, for panel_file.cpp. (Its Reader is in io/checkpoint.h.)
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/buffer.h"
#include "core/vocabulary.h"
#include "io/safetensors.h"

namespace llama2cpp {

// How a file of panels begins, behind the eight bytes of the header's length. Other safetensors files do not.
inline constexpr std::string_view kPanelFileBegins = R"({"__metadata__":{"llama2cpp.layout":)";

bool is_panel_file(const std::string& path);

// The tokenizer, from metadata "tokenizer" (JSON) and tensors "tokenizer.*"; null where there is none. Throws FormatError
// for one that contradicts itself.
std::unique_ptr<Vocabulary> read_panel_vocabulary(const SafetensorsHeader& header, const Buffer& file);

}  // namespace llama2cpp
