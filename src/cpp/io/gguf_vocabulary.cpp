// The tokenizer in a GGUF file's metadata. What a file leaves out is taken as llama.cpp takes it, except that a
// byte-level vocabulary without bos_token_id or eos_token_id has none (llama.cpp takes 11, which is GPT-2's comma).
//
// A model can be run on ids whatever its tokenizer is like. So a flaw is a warning where the tokenizer works without what
// is wrong (an id that is none, a piece that text cannot become), and else the reason why there is none.
#include <algorithm>
#include <cmath>
#include <utility>
#include <variant>
#include <vector>

#include "core/byte_alphabet.h"
#include "core/check.h"
#include "core/quote.h"
#include "io/gguf_model.h"
#include "io/gguf_pre_tokenizers.h"
#include "text/readers.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kModel = "tokenizer.ggml.model";
constexpr std::string_view kPre = "tokenizer.ggml.pre";
constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
constexpr std::string_view kScores = "tokenizer.ggml.scores";
constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
constexpr std::string_view kCharsmap = "tokenizer.ggml.precompiled_charsmap";
constexpr std::string_view kMerges = "tokenizer.ggml.merges";

// Pieces that end a generation whatever eos_token_id says: chat models end a turn with one that is not the end of a text.
// (llama.cpp's list, without the separators of files and repositories that models for code have.) In gpt-oss's format,
// which has <|return|> and <|call|> too, <|end|> only ends a message, behind which the answer goes on.
constexpr std::string_view kEnds[] = {
    "<|eot_id|>",    "<|im_end|>", "<|end|>", "<|return|>", "<|call|>",        "<end_of_turn>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>",   "_<EOT>",     "<|end_of_text|>", "<end_of_utterance>",
};

constexpr std::string_view kEndKeys[] = {
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
};

// What could not be used, and what is done instead.
void warn(Vocabulary& vocabulary, std::string_view key, const std::string& what) {
  vocabulary.warnings.push_back(cat("metadata ", excerpt(key), " is ", what));
}

// The format numbers types as SentencePiece does, and has 0 for undefined, which llama.cpp treats as no type at all. So it
// does with numbers that mean none.
PieceType type_of(std::int64_t number, std::size_t id, Vocabulary& vocabulary) {
  if (number == 0) return PieceType::normal;
  const auto type = piece_type_of(static_cast<std::uint64_t>(number));  // below 0: a number that is none
  if (!type) warn(vocabulary, kTypes, cat(number, " for piece ", id, ", expected 0 to 6: taken as 0"));
  return type.value_or(PieceType::normal);
}

void expect_count(const Gguf& gguf, std::string_view key, std::size_t count, std::size_t expected) {
  if (count != expected)
    gguf.fail(key, cat("an array of ", count, ", expected one for each of the ", expected, " pieces"));
}

void read_types(const Gguf& gguf, Vocabulary& vocabulary) {
  vocabulary.types.assign(vocabulary.pieces.size(), PieceType::normal);
  const auto types = gguf.integers(kTypes);
  if (!types) return;
  expect_count(gguf, kTypes, types->size(), vocabulary.pieces.size());
  for (std::size_t i = 0; i < types->size(); ++i) vocabulary.types[i] = type_of((*types)[i], i, vocabulary);
}

std::vector<float> read_scores(const Gguf& gguf, std::size_t pieces) {
  const auto scores = gguf.numbers(kScores);
  if (!scores) return std::vector<float>(pieces, 0.0F);
  expect_count(gguf, kScores, scores->size(), pieces);
  const auto bad = std::find_if(scores->begin(), scores->end(), [](float score) { return std::isnan(score); });
  if (bad != scores->end()) gguf.fail(kScores, cat("NaN for piece ", bad - scores->begin()));
  return *scores;
}

void check_pieces(Vocabulary& vocabulary) {
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    std::string& piece = vocabulary.pieces[i];
    if (vocabulary.types[i] == PieceType::byte && byte_of_piece(piece) < 0) {
      vocabulary.types[i] = PieceType::unused;
      warn(vocabulary, kTokens,
           cat(excerpt(piece), " for piece ", i, ", which is of type byte, expected <0x00> to <0xFF>: never used"));
    }
    if (piece.empty()) {  // some vocabularies have holes; nothing may be made from one
      piece = cat("[EMPTY_", i, "]");
      vocabulary.types[i] = PieceType::unused;
    }
  }
}

// Pieces in the stand-ins of GPT-2 become the bytes that they stand for; special ones are spelled as they are.
void spell_out(Vocabulary& vocabulary) {
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (vocabulary.types[i] != PieceType::normal) continue;
    const auto bytes = bytes_of_stand_ins(vocabulary.pieces[i]);
    if (bytes) {
      vocabulary.pieces[i] = *bytes;
      continue;
    }
    vocabulary.types[i] = PieceType::unused;
    warn(vocabulary, kTokens,
         cat(excerpt(vocabulary.pieces[i]), " for piece ", i,
             ", expected a normal piece in the alphabet that GPT-2 writes bytes with: never used"));
  }
}

// An id in the vocabulary, or -1 where the file has none. One that is not in it is passed over, as llama.cpp does: some
// converters write -1 for none.
std::int32_t find_id(const Gguf& gguf, std::string_view key, Vocabulary& vocabulary, std::int32_t otherwise) {
  const auto pieces = static_cast<std::int64_t>(vocabulary.pieces.size());
  if (otherwise >= pieces) otherwise = -1;
  const auto instead = [&] { return otherwise < 0 ? std::string("none is taken") : cat(otherwise, " is taken"); };
  try {
    const auto id = gguf.integer(key);
    if (!id) return otherwise;
    if (*id >= 0 && *id < pieces) return static_cast<std::int32_t>(*id);
    warn(vocabulary, key, cat(*id, ", expected an id below ", pieces, ": ", instead()));
  } catch (const FormatError& error) {
    vocabulary.warnings.push_back(cat(error.what(), ": ", instead()));
  }
  return otherwise;
}

// The end of a text first, then what else ends a generation.
// Some converters have called those user-defined, which they are not: they would be made from any text.
std::vector<std::int32_t> find_ends(const Gguf& gguf, Vocabulary& vocabulary, std::int32_t usual_eos) {
  std::vector<std::int32_t> ids;
  const auto add = [&](std::int32_t id) {
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  };
  for (const std::string_view key : kEndKeys) {
    add(find_id(gguf, key, vocabulary, key == kEndKeys[0] ? usual_eos : -1));
  }
  const auto has = [&](std::string_view piece) {
    return std::find(vocabulary.pieces.begin(), vocabulary.pieces.end(), piece) != vocabulary.pieces.end();
  };
  const bool is_harmony = has("<|return|>") && has("<|call|>");
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (std::find(std::begin(kEnds), std::end(kEnds), vocabulary.pieces[i]) == std::end(kEnds)) continue;
    if (is_harmony && vocabulary.pieces[i] == "<|end|>") continue;
    PieceType& type = vocabulary.types[i];
    if (type == PieceType::user_defined) type = PieceType::control;
    if (type == PieceType::control) add(static_cast<std::int32_t>(i));
  }
  return ids;
}

// Converters write the spaces of user-defined pieces as spaces, SentencePiece's files and its encoder as U+2581.
void escape_spaces(std::string& piece) {
  for (std::size_t at = piece.find(' '); at != std::string::npos; at = piece.find(' ', at)) {
    piece.replace(at, 1, kEscapedSpace);
  }
}

void read_unigram(const Gguf& gguf, SentencePieceRules& rules) {
  for (const auto& [key, usual] : {std::pair{"tokenizer.ggml.escape_whitespaces", true},
                                   std::pair{"tokenizer.ggml.treat_whitespace_as_suffix", false}}) {
    if (gguf.boolean(key).value_or(usual) != usual)
      gguf.fail(key, usual ? "false, and only true is implemented" : "true, and only false is implemented");
  }
  const auto charsmap = gguf.integers(kCharsmap);
  if (!charsmap) return;
  for (const std::int64_t byte : *charsmap) {
    if (byte < -128 || byte > 255) gguf.fail(kCharsmap, cat(byte, " in it, expected bytes"));
    rules.charsmap.push_back(static_cast<char>(static_cast<std::uint8_t>(byte)));
  }
  try {
    check_charsmap(rules.charsmap);
  } catch (const FormatError& error) {
    gguf.fail(kCharsmap, error.what());
  }
}

void read_sentencepiece(const Gguf& gguf, Vocabulary& vocabulary) {
  auto& rules = std::get<SentencePieceRules>(vocabulary.rules);
  const std::size_t pieces = vocabulary.pieces.size();
  for (std::size_t i = 0; i < pieces; ++i) {
    if (vocabulary.types[i] == PieceType::user_defined) escape_spaces(vocabulary.pieces[i]);
  }
  vocabulary.bos_id = find_id(gguf, "tokenizer.ggml.bos_token_id", vocabulary, rules.unigram ? -1 : 1);
  vocabulary.unk_id = find_id(gguf, "tokenizer.ggml.unknown_token_id", vocabulary, rules.unigram ? 2 : 0);
  vocabulary.eos_ids = find_ends(gguf, vocabulary, rules.unigram ? 1 : 2);
  rules.add_space_prefix = gguf.boolean("tokenizer.ggml.add_space_prefix").value_or(!rules.unigram);
  rules.remove_extra_whitespaces = gguf.boolean("tokenizer.ggml.remove_extra_whitespaces").value_or(false);
  vocabulary.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token").value_or(!rules.unigram);
  if (rules.unigram) read_unigram(gguf, rules);
}

bool has_longer_pieces(const Vocabulary& vocabulary) {
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (vocabulary.types[i] == PieceType::normal && vocabulary.pieces[i].size() > 1) return true;
  }
  return false;
}

// Pieces that the model has no row for are left out, if no text needs them: converters have appended a [PAD]. Rows that
// have no piece are holes.
void fit(const Gguf& gguf, Vocabulary& vocabulary, std::int64_t vocab_size) {
  const auto have = static_cast<std::int64_t>(vocabulary.pieces.size());
  if (vocab_size == kAnySize || have == vocab_size) return;
  if (!fit_pieces(vocabulary, vocab_size)) {
    gguf.fail(kTokens, cat("an array of ", have, " pieces, but the model has a vocabulary of ", vocab_size));
  }
  warn(vocabulary, kTokens,
       cat("an array of ", have, " pieces, but the model has a vocabulary of ", vocab_size,
           have > vocab_size ? ": those behind it are left out" : ": the others are never used"));
}

void read_byte_bpe(const Gguf& gguf, const GgufPreTokenizer& pre, Vocabulary& vocabulary) {
  auto& rules = std::get<ByteBpeRules>(vocabulary.rules);
  spell_out(vocabulary);
  // Writers leave an empty list out, and files have lost theirs.
  const auto merges = gguf.strings(kMerges);
  if (merges) {
    rules.merges = resolve_merges(vocabulary.pieces, vocabulary.types, *merges);
  } else if (has_longer_pieces(vocabulary)) {
    vocabulary.warnings.push_back(cat("metadata ", quote(kMerges),
                                      " is missing: taken as an empty list, so that words are spelled byte by byte"));
  }
  rules.pre_tokenizer = pre.cut;
  rules.ignore_merges = pre.ignore_merges;
  vocabulary.bos_id = find_id(gguf, "tokenizer.ggml.bos_token_id", vocabulary, -1);
  vocabulary.unk_id = find_id(gguf, "tokenizer.ggml.unknown_token_id", vocabulary, -1);
  vocabulary.eos_ids = find_ends(gguf, vocabulary, -1);
  vocabulary.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token").value_or(pre.add_bos);
}

constexpr std::string_view kTemplate = "tokenizer.chat_template";

// The usual one and, behind a dot, those for other uses: tokenizer.chat_template.tool_use.
void read_templates(const Gguf& gguf, Vocabulary& vocabulary) {
  const std::string others = cat(kTemplate, ".");
  for (const auto& [key, value] : gguf.metadata()) {
    if (key != kTemplate && !key.starts_with(others)) continue;
    try {
      std::string text(gguf.string(key).value_or(""));
      if (key == kTemplate) {
        vocabulary.chat_template = std::move(text);
      } else {
        vocabulary.template_names.emplace_back(key.substr(others.size()));
        vocabulary.template_texts.push_back(std::move(text));
      }
    } catch (const FormatError& error) {
      vocabulary.warnings.push_back(cat(error.what(), ": there is no chat template"));
    }
  }
}

// A file of which every piece is wrong is told of once.
void shorten(std::vector<std::string>& warnings) {
  constexpr std::size_t kMost = 4;
  if (warnings.size() <= kMost) return;
  const std::size_t more = warnings.size() - kMost;
  warnings.resize(kMost);
  warnings.back() += cat("; and ", more, " more like these");
}

GgufVocabulary read_vocabulary(const Gguf& gguf, std::int64_t vocab_size) {
  const auto model = gguf.string(kModel);
  if (!model || *model == "no_vocab" || *model == "none") return {nullptr, "the file has no tokenizer"};
  if (*model != "llama" && *model != "gpt2" && *model != "t5") {
    return {nullptr, cat("the file's tokenizer is of kind ", excerpt(*model),
                         ", and only \"llama\", \"gpt2\" and \"t5\" are known")};
  }
  const std::string_view pre_name = gguf.string(kPre).value_or("default");
  const GgufPreTokenizer* pre = find_gguf_pre_tokenizer(pre_name);
  if (*model == "gpt2" && pre == nullptr) {
    std::string known;
    for (const GgufPreTokenizer& one : gguf_pre_tokenizers())
      known += cat(known.empty() ? "" : ", ", quote(one.names.front()));
    return {nullptr,
            cat("the file's pre-tokenizer is ", excerpt(pre_name), ", known are ", known, " and other names of these")};
  }

  auto vocabulary = std::make_unique<Vocabulary>();
  const auto tokens = gguf.strings(kTokens);
  if (!tokens) throw FormatError(cat("metadata '", kTokens, "' is missing"));
  if (tokens->empty()) gguf.fail(kTokens, "empty");
  vocabulary->pieces.assign(tokens->begin(), tokens->end());
  read_types(gguf, *vocabulary);
  std::vector<float> scores = read_scores(gguf, vocabulary->pieces.size());  // whichever kind it is, they must be right
  if (*model != "gpt2") {
    auto& rules = vocabulary->rules.emplace<SentencePieceRules>();
    rules.scores = std::move(scores);
    rules.unigram = *model == "t5";
  } else {
    vocabulary->rules.emplace<ByteBpeRules>();
  }
  check_pieces(*vocabulary);
  fit(gguf, *vocabulary, vocab_size);
  if (*model == "gpt2" && !gguf.string(kPre)) {
    vocabulary->warnings.push_back(
        cat("metadata ", quote(kPre),
            " is missing: words are cut by llama.cpp's rule \"default\", which may not be the "
            "model's, and then its answers are worse; convert it again with a new converter"));
  }
  if (*model != "gpt2") {
    read_sentencepiece(gguf, *vocabulary);
  } else {
    read_byte_bpe(gguf, *pre, *vocabulary);
  }
  vocabulary->add_eos = gguf.boolean("tokenizer.ggml.add_eos_token").value_or(*model == "t5");
  read_templates(gguf, *vocabulary);
  check_vocabulary(*vocabulary);
  shorten(vocabulary->warnings);
  return {std::move(vocabulary), ""};
}

}  // namespace

GgufVocabulary read_gguf_vocabulary(const Gguf& gguf, std::int64_t vocab_size) {
  try {
    return read_vocabulary(gguf, vocab_size);
  } catch (const FormatError& error) {
    return {nullptr, error.what()};
  }
}

}  // namespace llama2cpp
