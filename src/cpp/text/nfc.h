// NFC: canonical composition, of Unicode 16.0. (The tables of `tokenizers` 0.23 are those of an older version: it does not
// order 120 marks that came later, and does not compose 21 pairs. Of single characters it makes the same.)
#pragma once

#include <string>
#include <string_view>

namespace llama2cpp {

// Bytes that belong to no character stay as they are. Linear in the length of the text, but for runs of combining marks,
// which are sorted.
std::string nfc(std::string_view text);

}  // namespace llama2cpp
