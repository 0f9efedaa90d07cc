// How a file of panels is known. (Its Reader is in io/checkpoint.h, its parts are told in panel_file.cpp.)
#pragma once

#include <string>
#include <string_view>

namespace llama2cpp {

// How a file of panels begins, behind the eight bytes of the header's length. Other safetensors files do not.
inline constexpr std::string_view kPanelFileBegins = R"({"__metadata__":{"llama2cpp.layout":)";

// The version that files name. It goes up with any change of what they hold: the bytes of panels (format/block_layout.h), the
// config, the tokenizer (panel_vocabulary.h).
inline constexpr int kPanelVersion = 4;

bool is_panel_file(const std::string& path);

}  // namespace llama2cpp
