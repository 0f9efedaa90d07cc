// NFC: canonical composition, of Unicode 16.0.
#pragma once

#include <string>
#include <string_view>

namespace llama2cpp {

// Bytes that belong to no character stay as they are. Linear in the length of the text, but for runs of combining marks,
// which are sorted.
std::string nfc(std::string_view text);

}  // namespace llama2cpp
