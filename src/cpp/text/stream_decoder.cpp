#include "text/stream_decoder.h"

namespace llama2cpp {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer)
    : tokenizer_(tokenizer), strips_space_(tokenizer.strips_first_space()) {}

std::string StreamDecoder::push(std::int32_t id) {
  std::string bytes;
  tokenizer_.append_text(id, strips_space_, bytes);
  return characters_.push(bytes);
}

std::string StreamDecoder::flush() {
  strips_space_ = tokenizer_.strips_first_space();
  return characters_.flush();
}

}  // namespace llama2cpp
