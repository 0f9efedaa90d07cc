// UTF-8: where characters end, and turning a stream of bytes into whole characters.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace llama2cpp {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Scan {
  enum class State { valid, invalid, incomplete };
  State state;         // incomplete: all that is there could begin a character
  std::size_t length;  // of the character, or of the longest part that could begin one (at least 1)
};

// Looks at the start of `text`, which is not empty. Surrogates, overlong forms and values above U+10FFFF are invalid.
Utf8Scan scan_utf8(std::string_view text);

// Where the first character begins that is not UTF-8; the text's length if there is none.
std::size_t utf8_valid_bytes(std::string_view text);

// The length that a leading byte announces (1 for a byte that cannot lead).
std::size_t utf8_length_of_lead(char lead);

// Makes valid UTF-8 from bytes that come in pieces of any size. Every invalid sequence becomes one U+FFFD, as in
// Python's bytes.decode("utf-8", errors="replace"): the parts joined are what decoding all the bytes at once gives.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);  // holds back at most 3 bytes, the start of an unfinished character
  std::string flush();                       // what was held back, as U+FFFD

 private:
  std::string held_;
};

}  // namespace llama2cpp
