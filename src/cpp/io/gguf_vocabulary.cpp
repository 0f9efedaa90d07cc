// The tokenizer in a GGUF file's metadata. What a file leaves out is taken as llama.cpp takes it, except that a
// byte-level vocabulary without bos_token_id or eos_token_id has none (llama.cpp takes 11, which is GPT-2's comma).
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/byte_alphabet.h"
#include "core/check.h"
#include "core/quote.h"
#include "io/gguf_model.h"

namespace llama2cpp {
namespace {

using Kind = Vocabulary::Kind;

constexpr std::string_view kModel = "tokenizer.ggml.model";
constexpr std::string_view kPre = "tokenizer.ggml.pre";
constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
constexpr std::string_view kScores = "tokenizer.ggml.scores";
constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
constexpr std::string_view kMerges = "tokenizer.ggml.merges";

struct Pre {
  std::string_view name;
  Vocabulary::PreTokenizer cut;
  bool ignore_merges;
  bool add_bos;
};

// Another pre-tokenizer is one more line, once text/ cuts words as it does.
constexpr Pre kPres[] = {
    {"default", Vocabulary::PreTokenizer::gpt2, false, false},
    {"gpt-2", Vocabulary::PreTokenizer::gpt2, false, false},
    {"llama-bpe", Vocabulary::PreTokenizer::llama3, true, true},
    {"llama3", Vocabulary::PreTokenizer::llama3, true, true},
    {"llama-v3", Vocabulary::PreTokenizer::llama3, true, true},
    {"smollm", Vocabulary::PreTokenizer::smollm, false, false},
};

// Pieces that end a generation whatever eos_token_id says: chat models end a turn with one that is not the end of a text.
// (llama.cpp's list, without the separators of files and repositories that models for code have.)
constexpr std::string_view kEnds[] = {
    "<|eot_id|>",    "<|im_end|>", "<|end|>", "<|return|>", "<|call|>",        "<end_of_turn>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>",   "_<EOT>",     "<|end_of_text|>", "<end_of_utterance>",
};

constexpr std::string_view kEndKeys[] = {
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
};

const Pre* find_pre(std::string_view name) {
  const auto* const found =
      std::find_if(std::begin(kPres), std::end(kPres), [&](const Pre& pre) { return pre.name == name; });
  return found == std::end(kPres) ? nullptr : found;
}

// The format numbers types as SentencePiece does, and has 0 for undefined, which llama.cpp treats as no type at all.
PieceType type_of(const Gguf& gguf, std::int64_t number, std::size_t id) {
  if (number == 0) return PieceType::normal;
  const auto type = piece_type_of(static_cast<std::uint64_t>(number));  // below 0: a number that is none
  if (!type) gguf.fail(kTypes, cat(number, " for piece ", id, ", expected 0 to 6"));
  return *type;
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
  for (std::size_t i = 0; i < types->size(); ++i) vocabulary.types[i] = type_of(gguf, (*types)[i], i);
}

void read_scores(const Gguf& gguf, Vocabulary& vocabulary) {
  const auto scores = gguf.numbers(kScores);
  vocabulary.scores.assign(vocabulary.pieces.size(), 0.0F);
  if (!scores) return;
  expect_count(gguf, kScores, scores->size(), vocabulary.pieces.size());
  const auto bad = std::find_if(scores->begin(), scores->end(), [](float score) { return std::isnan(score); });
  if (bad != scores->end()) gguf.fail(kScores, cat("NaN for piece ", bad - scores->begin()));
  vocabulary.scores = *scores;
}

void check_pieces(const Gguf& gguf, Vocabulary& vocabulary) {
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    std::string& piece = vocabulary.pieces[i];
    if (vocabulary.types[i] == PieceType::byte && byte_of_piece(piece) < 0) {
      gguf.fail(kTokens, cat(excerpt(piece), " for piece ", i, ", which is of type byte, expected <0x00> to <0xFF>"));
    }
    if (piece.empty()) {  // some vocabularies have holes; nothing may be made from one
      piece = cat("[EMPTY_", i, "]");
      vocabulary.types[i] = PieceType::unused;
    }
  }
}

// Pieces in the stand-ins of GPT-2 become the bytes that they stand for; special ones are spelled as they are.
void spell_out(const Gguf& gguf, Vocabulary& vocabulary) {
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (vocabulary.types[i] != PieceType::normal) continue;
    const auto bytes = bytes_of_stand_ins(vocabulary.pieces[i]);
    if (!bytes) {
      gguf.fail(kTokens, cat(excerpt(vocabulary.pieces[i]), " for piece ", i,
                             ", expected a normal piece in the alphabet that GPT-2 writes bytes with"));
    }
    vocabulary.pieces[i] = *bytes;
  }
}

// An id in the vocabulary, or -1 where the file has none.
std::int32_t find_id(const Gguf& gguf, std::string_view key, std::size_t pieces, std::int32_t otherwise) {
  const auto id = gguf.integer(key);
  if (!id) return otherwise >= 0 && static_cast<std::size_t>(otherwise) < pieces ? otherwise : -1;
  if (*id < 0 || static_cast<std::uint64_t>(*id) >= pieces) {
    gguf.fail(key, cat(*id, ", expected an id below ", pieces));
  }
  return static_cast<std::int32_t>(*id);
}

// The end of a text first, then what else ends a generation.
// Some converters have called those user-defined, which they are not: they would be made from any text.
std::vector<std::int32_t> find_ends(const Gguf& gguf, Vocabulary& vocabulary, std::int32_t usual_eos) {
  std::vector<std::int32_t> ids;
  const auto add = [&](std::int32_t id) {
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  };
  for (const std::string_view key : kEndKeys) {
    add(find_id(gguf, key, vocabulary.pieces.size(), key == kEndKeys[0] ? usual_eos : -1));
  }
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (std::find(std::begin(kEnds), std::end(kEnds), vocabulary.pieces[i]) == std::end(kEnds)) continue;
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

void read_sentencepiece(const Gguf& gguf, Vocabulary& vocabulary) {
  const std::size_t pieces = vocabulary.pieces.size();
  for (std::size_t i = 0; i < pieces; ++i) {
    if (vocabulary.types[i] == PieceType::user_defined) escape_spaces(vocabulary.pieces[i]);
  }
  vocabulary.kind = Kind::sentencepiece;
  vocabulary.bos_id = find_id(gguf, "tokenizer.ggml.bos_token_id", pieces, 1);
  vocabulary.unk_id = find_id(gguf, "tokenizer.ggml.unknown_token_id", pieces, 0);
  vocabulary.eos_ids = find_ends(gguf, vocabulary, 2);
  vocabulary.add_dummy_prefix = gguf.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  vocabulary.remove_extra_whitespaces = gguf.boolean("tokenizer.ggml.remove_extra_whitespaces").value_or(false);
  vocabulary.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token").value_or(true);
}

void read_byte_bpe(const Gguf& gguf, const Pre& pre, Vocabulary& vocabulary) {
  const std::size_t pieces = vocabulary.pieces.size();
  vocabulary.kind = Kind::byte_bpe;
  spell_out(gguf, vocabulary);
  const auto merges = gguf.strings(kMerges);
  if (!merges) throw FormatError(cat("metadata '", kMerges, "' is missing"));
  vocabulary.merges = resolve_merges(vocabulary.pieces, vocabulary.types, *merges);
  vocabulary.pre_tokenizer = pre.cut;
  vocabulary.ignore_merges = pre.ignore_merges;
  vocabulary.bos_id = find_id(gguf, "tokenizer.ggml.bos_token_id", pieces, -1);
  vocabulary.unk_id = find_id(gguf, "tokenizer.ggml.unknown_token_id", pieces, -1);
  vocabulary.eos_ids = find_ends(gguf, vocabulary, -1);
  vocabulary.add_dummy_prefix = false;
  vocabulary.add_bos = gguf.boolean("tokenizer.ggml.add_bos_token").value_or(pre.add_bos);
}

}  // namespace

GgufVocabulary read_gguf_vocabulary(const Gguf& gguf, std::int64_t vocab_size) {
  const auto model = gguf.string(kModel);
  if (!model || *model == "no_vocab" || *model == "none") return {nullptr, "the file has no tokenizer"};
  if (*model != "llama" && *model != "gpt2") {
    return {nullptr,
            cat("the file's tokenizer is of kind ", excerpt(*model), ", and only \"llama\" and \"gpt2\" are known")};
  }
  const std::string_view pre_name = gguf.string(kPre).value_or("default");
  const Pre* pre = find_pre(pre_name);
  if (*model == "gpt2" && pre == nullptr) {
    std::string known;
    for (const Pre& one : kPres) known += cat(known.empty() ? "" : ", ", quote(one.name));
    return {nullptr, cat("the file's pre-tokenizer is ", excerpt(pre_name), ", known are ", known)};
  }

  auto vocabulary = std::make_unique<Vocabulary>();
  const auto tokens = gguf.strings(kTokens);
  if (!tokens) throw FormatError(cat("metadata '", kTokens, "' is missing"));
  if (tokens->empty()) gguf.fail(kTokens, "empty");
  if (vocab_size != kAnySize && static_cast<std::int64_t>(tokens->size()) != vocab_size) {
    gguf.fail(kTokens, cat("an array of ", tokens->size(), " pieces, but the model has a vocabulary of ", vocab_size));
  }
  vocabulary->pieces.assign(tokens->begin(), tokens->end());
  read_types(gguf, *vocabulary);
  read_scores(gguf, *vocabulary);
  check_pieces(gguf, *vocabulary);
  if (*model == "llama") {
    read_sentencepiece(gguf, *vocabulary);
  } else {
    read_byte_bpe(gguf, *pre, *vocabulary);
  }
  vocabulary->add_eos = gguf.boolean("tokenizer.ggml.add_eos_token").value_or(false);
  vocabulary->chat_template = gguf.string("tokenizer.chat_template").value_or("");
  return {std::move(vocabulary), ""};
}

}  // namespace llama2cpp
