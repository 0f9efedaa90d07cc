// libFuzzer: no bytes may crash the readers of tokenizer files, and with what opens no text may crash encode, nor may
// decoding id by id differ from decoding at once.
// Input: one byte of flags, one byte: the length of the text, the text, then the file. Good files to start from: any
// small tokenizer.bin or .model with two bytes before it.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/check.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace {

using llama2cpp::Tokenizer;

void check(bool condition) {
  if (!condition) std::abort();  // libFuzzer's way to report
}

void check_decoding(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids) {
  llama2cpp::Utf8Stream whole;
  std::string expected = whole.push(tokenizer.decode(ids));
  expected += whole.flush();

  llama2cpp::StreamDecoder decoder(tokenizer);
  std::string text;
  for (const std::int32_t id : ids) {
    text += decoder.push(id);
    for (std::string_view rest = text; !rest.empty();) {  // always whole characters
      const llama2cpp::Utf8Scan scan = llama2cpp::scan_utf8(rest);
      check(scan.state == llama2cpp::Utf8Scan::State::valid);
      rest.remove_prefix(scan.length);
    }
  }
  check(text + decoder.flush() == expected);
}

void use(const Tokenizer& tokenizer, std::string_view text, unsigned flags) {
  std::vector<std::int32_t> some;
  for (std::int64_t id = 0; id < tokenizer.vocab_size() && id < 64; ++id) {
    some.push_back(static_cast<std::int32_t>(id));
    tokenizer.piece(some.back());
    tokenizer.piece_after(1, some.back());
  }
  check_decoding(tokenizer, some);
  try {
    const std::vector<std::int32_t> ids = tokenizer.encode(text, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0);
    for (const std::int32_t id : ids) check(id >= 0 && id < tokenizer.vocab_size());
    check_decoding(tokenizer, ids);
  } catch (const std::invalid_argument&) {  // text that the vocabulary lacks
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const unsigned flags = data[0];
  const std::size_t text_size = data[1] < size - 2 ? data[1] : size - 2;
  const std::string_view text(reinterpret_cast<const char*>(data + 2), text_size);
  const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data + 2 + text_size), size - 2 - text_size);
  try {
    use(Tokenizer::from_bytes(file, flags >> 3), text, flags);
  } catch (const llama2cpp::FormatError&) {
  }
  return 0;
}
