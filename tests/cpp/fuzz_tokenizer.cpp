// libFuzzer: no bytes may crash the readers of tokenizer files, and with what opens no text may crash encode, nor may
// decoding id by id differ from decoding at once. Byte-level BPE must give back every text.
// Input: one byte of flags, one byte: the length of the text, the text, then the file. Good files to start from: any
// small tokenizer.bin or .model with two bytes before it. The flags' upper five bits are how many pieces are read; but 31
// puts all single bytes before a tiktoken file, 28 to 30 take the file for the merges of a byte-level BPE, 27 for the
// pattern that cuts its words, and 26 for what a Unigram model is made of.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/utf8.h"
#include "text/readers.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace {

using llama2cpp::PieceType;
using llama2cpp::read_tokenizer_file;
using llama2cpp::Tokenizer;
using llama2cpp::Vocabulary;

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

// The lines of a tiktoken file for the 256 bytes, then what the fuzzer says.
Tokenizer tiktoken_of(std::string_view rest) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string file;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    file += kDigits[byte >> 2];
    file += kDigits[(byte & 3) << 4];
    file += llama2cpp::cat("== ", byte, "\n");
  }
  file += rest;
  return Tokenizer(read_tokenizer_file({reinterpret_cast<const std::byte*>(file.data()), file.size()}, 0));
}

// Two bytes for each merge: how far its parts are from the last piece. The words, and so the merges, stay short enough
// that a few of them are above the encoder's limit of short words.
Tokenizer byte_bpe_of(std::string_view merges, unsigned flags) {
  Vocabulary vocabulary;
  auto& rules = vocabulary.rules.emplace<llama2cpp::ByteBpeRules>();
  rules.pre_tokenizer = static_cast<llama2cpp::PreTokenizer>((flags >> 3) - 28);
  rules.ignore_merges = merges.size() % 2 == 1;
  const auto add = [&](std::string piece, PieceType type) {
    vocabulary.pieces.push_back(std::move(piece));
    vocabulary.types.push_back(type);
  };
  add("<s>", PieceType::control);
  add("</s>", PieceType::control);
  add("<u>", PieceType::user_defined);
  vocabulary.bos_id = 0;
  vocabulary.eos_ids = {1};
  for (int byte = 0; byte < 256; ++byte) add(std::string(1, static_cast<char>(byte)), PieceType::normal);
  for (std::size_t i = 0; i + 1 < merges.size(); i += 2) {
    const auto id = [&](char c) {
      return static_cast<std::int32_t>(vocabulary.pieces.size() - 1 - static_cast<std::uint8_t>(c));
    };
    const std::int32_t left = id(merges[i]);
    const std::int32_t right = id(merges[i + 1]);
    std::string joined =
        vocabulary.pieces[static_cast<std::size_t>(left)] + vocabulary.pieces[static_cast<std::size_t>(right)];
    if (joined.size() > 80) continue;
    rules.merges.push_back({left, right, static_cast<std::int32_t>(vocabulary.pieces.size())});
    add(std::move(joined), PieceType::normal);
  }
  return Tokenizer(std::move(vocabulary));
}

// Single bytes, and words that are cut by what the fuzzer says.
Tokenizer cut_by(std::string_view pattern) {
  Vocabulary vocabulary;
  auto& rules = vocabulary.rules.emplace<llama2cpp::ByteBpeRules>();
  rules.pre_tokenizer = llama2cpp::PreTokenizer::splits;
  rules.splits.push_back({std::string(pattern)});
  vocabulary.bos_id = vocabulary.unk_id = -1;
  vocabulary.eos_ids.clear();
  for (int byte = 0; byte < 256; ++byte) vocabulary.pieces.emplace_back(1, static_cast<char>(byte));
  vocabulary.types.resize(vocabulary.pieces.size(), PieceType::normal);
  return Tokenizer(std::move(vocabulary));
}

// One byte: which steps there are, one for how words are cut; a line for each piece; and behind an empty line the charsmap.
Tokenizer unigram_of(std::string_view file) {
  if (file.size() < 2) return cut_by("a");
  const auto steps = static_cast<std::uint8_t>(file[0]);
  const auto cuts = static_cast<std::uint8_t>(file[1]);
  file.remove_prefix(2);
  Vocabulary vocabulary;
  auto& rules = vocabulary.rules.emplace<llama2cpp::UnigramRules>();
  const auto add = [&](std::string_view piece, PieceType type) {
    vocabulary.pieces.emplace_back(piece);
    vocabulary.types.push_back(type);
    rules.log_probs.push_back(-0.25 * static_cast<double>(vocabulary.pieces.size()));
  };
  add("<unk>", PieceType::control);
  vocabulary.unk_id = 0;
  vocabulary.bos_id = -1;
  vocabulary.eos_ids.clear();
  while (!file.empty() && file[0] != '\n') {
    const std::string_view line = file.substr(0, file.find('\n'));
    add(line, line.starts_with('<') ? PieceType::user_defined : PieceType::normal);
    file.remove_prefix(line.size() < file.size() ? line.size() + 1 : line.size());
  }
  if (!file.empty()) rules.charsmap = file.substr(1);
  llama2cpp::check_charsmap(rules.charsmap);
  using enum llama2cpp::TextStepKind;
  const std::vector<llama2cpp::TextStep> all = {{charsmap, {}, {}},  {nfc, {}, {}},        {replace, " {2,}|o", " "},
                                                {prepend, {}, "o "}, {strip_left, {}, {}}, {strip_right, {}, {}}};
  for (std::size_t i = 0; i < all.size(); ++i) {
    if ((steps >> i & 1) != 0) rules.steps.push_back(all[i]);
  }
  rules.cuts_white_space = (cuts & 1) != 0;
  rules.cuts_spaces = (cuts & 2) != 0;
  rules.prefix = (cuts & 4) != 0 ? llama2cpp::SpacePrefix::where_none : llama2cpp::SpacePrefix::first_where_none;
  llama2cpp::check_vocabulary(vocabulary);
  return Tokenizer(std::move(vocabulary));
}

// Every byte has an id, so nothing of a text is lost; and what its words are does not matter for that.
void check_byte_bpe(const Tokenizer& tokenizer, std::string_view text) {
  check(tokenizer.decode(tokenizer.encode(text, true, true)) == text);
  std::string joined;
  for (const std::string& word : tokenizer.words(text)) {
    check(!word.empty());
    joined += word;
  }
  check(joined == text);
}

Tokenizer open(std::string_view file, unsigned flags) {
  const unsigned mode = flags >> 3;
  if (mode == 31) return tiktoken_of(file);
  if (mode >= 28) return byte_bpe_of(file, flags);
  if (mode == 27) return cut_by(file);
  if (mode == 26) return unigram_of(file);
  return Tokenizer(read_tokenizer_file({reinterpret_cast<const std::byte*>(file.data()), file.size()}, mode));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const unsigned flags = data[0];
  const std::size_t text_size = data[1] < size - 2 ? data[1] : size - 2;
  const std::string_view text(reinterpret_cast<const char*>(data + 2), text_size);
  const std::string_view file(reinterpret_cast<const char*>(data + 2 + text_size), size - 2 - text_size);
  try {
    const Tokenizer tokenizer = open(file, flags);
    use(tokenizer, text, flags);
    if (tokenizer.vocabulary().is<llama2cpp::ByteBpeRules>() && flags >> 3 >= 27) check_byte_bpe(tokenizer, text);
  } catch (const llama2cpp::FormatError&) {
  } catch (const std::invalid_argument&) {  // a pattern that would take too long on the text
  }
  return 0;
}
