// tokenizer.json, `tokenizers`' own format: BPE over bytes as GPT-2, Llama 3 and SmolLM2 have it, BPE over characters as
// Llama 2 and Mistral have it and Unigram models. Parts that change ids in a way that is not known here are refused by name.
#include <algorithm>
#include <limits>
#include <span>
#include <unordered_map>
#include <utility>

#include "core/base64.h"
#include "core/byte_alphabet.h"
#include "core/check.h"
#include "core/quote.h"
#include "io/hf.h"
#include "text/pattern.h"
#include "text/readers.h"

namespace llama2cpp {
namespace {

std::string_view type_of(const Json& part) { return part.get("type").string(); }

bool flag(const Json& part, std::string_view name, bool otherwise) {
  const std::optional<Json> found = part.find(name);
  return found ? found->boolean() : otherwise;
}

std::string_view text(const Json& part, std::string_view name) {
  const std::optional<Json> found = part.find(name);
  return found ? found->string() : "";
}

// A part, or the parts of a Sequence, be they in Sequences again. A missing part is none.
void flatten(const Json& part, std::string_view list, std::vector<Json>& out) {
  if (type_of(part) != "Sequence") return out.push_back(part);
  for (const Json inner : part.get(list).elements()) flatten(inner, list, out);
}

std::vector<Json> parts_of(const Json& tokenizer, std::string_view name, std::string_view list) {
  std::vector<Json> parts;
  if (const std::optional<Json> found = tokenizer.find(name)) flatten(*found, list, parts);
  return parts;
}

[[noreturn]] void fail_unknown(const Json& part, std::string_view expected) {
  part.fail(cat("of type ", excerpt(type_of(part)), ", expected ", expected, ": others are not implemented"));
}

// --- how a text is cut and changed before it is merged

void refuse_prefix_space(const Json& byte_level) {
  const Json prefix = byte_level.get("add_prefix_space");
  if (prefix.boolean()) prefix.fail("true, and only false is implemented");
}

SplitBehavior behavior_of(const Json& part) {
  using enum SplitBehavior;
  constexpr std::pair<std::string_view, SplitBehavior> kNames[] = {{"Isolated", isolated},
                                                                   {"Removed", removed},
                                                                   {"MergedWithPrevious", merged_with_previous},
                                                                   {"MergedWithNext", merged_with_next},
                                                                   {"Contiguous", contiguous}};
  const Json behavior = part.get("behavior");
  for (const auto& [name, value] : kNames) {
    if (behavior.string() == name) return value;
  }
  behavior.fail(cat(excerpt(behavior.string()),
                    ", expected one of: Isolated, Removed, MergedWithPrevious, "
                    "MergedWithNext, Contiguous"));
}

// A pattern that only this text matches.
std::string pattern_of(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    if (std::string_view("\\^$.|?*+()[]{}-&/").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

void add_split(const Json& part, std::vector<Split>& splits) {
  if (type_of(part) == "Digits") {
    splits.push_back({flag(part, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)"});
    return;
  }
  if (type_of(part) != "Split") fail_unknown(part, "Split or Digits before ByteLevel");
  const Json pattern = part.get("pattern");
  const std::optional<Json> regex = pattern.find("Regex");
  const std::string_view found = regex ? regex->string() : pattern.get("String").string();
  if (!regex && found.empty()) return;  // finds nothing
  splits.push_back({regex ? std::string(found) : pattern_of(found), behavior_of(part), flag(part, "invert", false)});
  try {
    Pattern compiled(splits.back().pattern);
  } catch (const FormatError& error) {
    part.fail(error.what());
  }
}

// Nothing where the last part is not ByteLevel.
std::optional<std::vector<Split>> find_byte_level(const std::vector<Json>& parts) {
  constexpr std::size_t kMostSplits = 64;
  if (parts.empty() || type_of(parts.back()) != "ByteLevel") return {};
  refuse_prefix_space(parts.back());
  if (parts.size() > kMostSplits) parts[kMostSplits].fail(cat("more than ", kMostSplits, " steps are not implemented"));
  std::vector<Split> splits;
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) add_split(parts[i], splits);
  if (flag(parts.back(), "use_regex", true)) splits.push_back({std::string(patterns_of(PreTokenizer::gpt2)[0])});
  return splits;
}

// As files wrote it before there was a prepend_scheme: add_prefix_space.
SpacePrefix metaspace_prefix(const Json& metaspace) {
  const Json replacement = metaspace.get("replacement");
  if (replacement.string() != kEscapedSpace) replacement.fail(cat(excerpt(replacement.string()), ", expected U+2581"));
  const std::optional<Json> scheme = metaspace.find("prepend_scheme");
  if (!scheme) return flag(metaspace, "add_prefix_space", true) ? SpacePrefix::where_none : SpacePrefix::none;
  if (scheme->string() == "always") return SpacePrefix::where_none;
  if (scheme->string() == "first") return SpacePrefix::first_where_none;
  if (scheme->string() == "never") return SpacePrefix::none;
  scheme->fail(cat(excerpt(scheme->string()), ", expected \"always\", \"first\" or \"never\""));
}

bool is_space_replacement(const Json& part) {
  const std::optional<Json> pattern = part.get("pattern").find("String");
  return pattern && pattern->string() == " " && part.get("content").string() == kEscapedSpace;
}

// Either a normaliser [Prepend U+2581,] Replace " " by U+2581, or a pre-tokeniser Metaspace.
SpacePrefix read_prefix(const std::vector<Json>& normalizers, const std::vector<Json>& pre_tokenizers) {
  if (normalizers.empty()) {
    if (pre_tokenizers.size() == 1 && type_of(pre_tokenizers[0]) == "Metaspace") {
      if (flag(pre_tokenizers[0], "split", true)) {
        pre_tokenizers[0].fail("splits at spaces, and only \"split\": false is implemented");
      }
      return metaspace_prefix(pre_tokenizers[0]);
    }
    if (!pre_tokenizers.empty())
      fail_unknown(pre_tokenizers.back(), "ByteLevel, Metaspace, or Digits or Split before ByteLevel");
    throw FormatError("tokenizer.json: neither a normalizer nor a pre_tokenizer, expected what makes spaces U+2581");
  }
  // Gemma's files split at spaces, which the normalizer has left none of.
  for (const Json& part : pre_tokenizers) {
    if (type_of(part) != "Split" || flag(part, "invert", false) || text(part.get("pattern"), "String") != " ") {
      fail_unknown(part, "none, or a Split at spaces, beside a normalizer");
    }
  }
  SpacePrefix prefix = SpacePrefix::none;
  for (std::size_t i = 0; i < normalizers.size(); ++i) {
    const Json& part = normalizers[i];
    if (i == 0 && normalizers.size() == 2 && type_of(part) == "Prepend" && text(part, "prepend") == kEscapedSpace) {
      prefix = SpacePrefix::always;
    } else if (i + 1 != normalizers.size() || type_of(part) != "Replace" || !is_space_replacement(part)) {
      fail_unknown(part, "Prepend of U+2581 and Replace of spaces by U+2581");
    }
  }
  return prefix;
}

// --- Unigram

bool is_unigram(const Json& model) {
  const std::optional<Json> type = model.find("type");
  return type && type->string() == "Unigram";
}

constexpr std::string_view kStepTypes = "Precompiled, Replace, Prepend, Strip or NFC before a Unigram model";

void check_pattern(const Json& part, const std::string& pattern) {
  try {
    const Pattern compiled(pattern);
    Pattern::Budget budget{1024};
    if (compiled.find("", 0, budget)) part.fail("its pattern finds an empty text, which is not implemented");
  } catch (const FormatError& error) {
    part.fail(error.what());
  }
}

std::string read_charsmap(const Json& part) {
  const Json map = part.get("precompiled_charsmap");
  const std::optional<std::string> bytes = base64_bytes(map.string());
  if (!bytes) map.fail("expected base64");
  try {
    check_charsmap(*bytes);
  } catch (const FormatError& error) {
    map.fail(error.what());
  }
  return *bytes;
}

void read_step(const Json& part, UnigramRules& rules) {
  const std::string_view type = type_of(part);
  if (type == "Precompiled") {
    std::string charsmap = read_charsmap(part);
    if (!rules.charsmap.empty() && charsmap != rules.charsmap) part.fail("a second map, which is not implemented");
    rules.charsmap = std::move(charsmap);
    rules.steps.push_back({TextStepKind::charsmap, {}, {}});
  } else if (type == "NFC") {
    rules.steps.push_back({TextStepKind::nfc, {}, {}});
  } else if (type == "Prepend") {
    rules.steps.push_back({TextStepKind::prepend, {}, std::string(part.get("prepend").string())});
  } else if (type == "Strip") {
    if (flag(part, "strip_left", true)) rules.steps.push_back({TextStepKind::strip_left, {}, {}});
    if (flag(part, "strip_right", true)) rules.steps.push_back({TextStepKind::strip_right, {}, {}});
  } else if (type == "Replace") {
    const Json pattern = part.get("pattern");
    const std::optional<Json> regex = pattern.find("Regex");
    std::string found(regex ? std::string(regex->string()) : pattern_of(pattern.get("String").string()));
    if (found.empty()) part.fail("its pattern is empty, which is not implemented");
    check_pattern(part, found);
    rules.steps.push_back({TextStepKind::replace, std::move(found), std::string(part.get("content").string())});
  } else {
    fail_unknown(part, kStepTypes);
  }
}

// [WhitespaceSplit,] Metaspace; or a normaliser that leaves no spaces.
void read_unigram_cuts(const std::vector<Json>& normalizers, std::span<const Json> parts, UnigramRules& rules) {
  if (parts.empty()) {
    if (normalizers.empty() || type_of(normalizers.back()) != "Replace" || !is_space_replacement(normalizers.back())) {
      throw FormatError("tokenizer.json: neither a normalizer nor a pre_tokenizer makes spaces U+2581");
    }
    return;
  }
  if (parts.size() > 1) {
    if (type_of(parts[0]) != "WhitespaceSplit") fail_unknown(parts[0], "WhitespaceSplit before Metaspace");
    rules.cuts_white_space = true;
  }
  const Json& metaspace = parts[parts.size() - 1];
  if (type_of(metaspace) != "Metaspace" || parts.size() > 2) {
    fail_unknown(metaspace, "Metaspace, or WhitespaceSplit and Metaspace, before a Unigram model");
  }
  rules.prefix = metaspace_prefix(metaspace);
  rules.cuts_spaces = flag(metaspace, "split", true);
  if (rules.cuts_white_space && rules.prefix == SpacePrefix::first_where_none) {
    metaspace.get("prepend_scheme").fail("\"first\" behind WhitespaceSplit, which is not implemented");
  }
}

// --- pieces and merges

// Ids are counted from 0. What a file leaves out is filled in, but no more than one hole for each piece.
constexpr std::int64_t kMostHoles = 1 << 20;

struct Pieces {
  Vocabulary& vocabulary;
  std::vector<Merge>& merges;                              // of its rules
  std::vector<AddedToken>& added;                          // the same
  std::unordered_map<std::string_view, std::int32_t> ids;  // views of the document

  void put(const Json& where, std::string_view piece, std::int64_t id, PieceType type) {
    const auto size = static_cast<std::int64_t>(vocabulary.pieces.size());
    if (id < 0 || id >= size) where.fail(cat("the id ", id, " leaves holes in the vocabulary, whose end is ", size));
    const auto index = static_cast<std::size_t>(id);
    vocabulary.pieces[index] = piece;
    vocabulary.types[index] = type;
    ids.emplace(piece, static_cast<std::int32_t>(id));
  }
};

void add_vocab(const Json& model, Pieces& pieces) {
  const Json vocab = model.get("vocab");
  std::vector<bool> taken(pieces.vocabulary.pieces.size());
  for (const Json piece : vocab.members()) {
    if (piece.name().empty()) piece.fail("a piece without text");
    pieces.put(piece, piece.name(), piece.int64(), PieceType::normal);
    const auto id = static_cast<std::size_t>(piece.int64());
    if (taken[id]) piece.fail(cat("the id ", id, " has two pieces"));
    taken[id] = true;
  }
}

// [["<unk>", 0.0], ...]: the ids are the places in the list.
void add_scored(const Json& model, Pieces& pieces, UnigramRules& rules) {
  rules.log_probs.assign(pieces.vocabulary.pieces.size(), std::numeric_limits<double>::infinity());
  std::size_t id = 0;
  for (const Json piece : model.get("vocab").elements()) {
    if (piece.size() != 2) piece.fail(cat("expected a piece and its score, found ", piece.size(), " values"));
    const std::string_view text = piece.at(0).string();
    if (text.empty()) piece.fail("a piece without text");
    if (pieces.ids.contains(text)) piece.fail(cat("the piece ", excerpt(text), " comes twice"));
    pieces.put(piece, text, static_cast<std::int64_t>(id), PieceType::normal);
    rules.log_probs[id++] = piece.at(1).number();
  }
}

// Tokens that are found in a text before anything is merged. Special ones only where they are asked for.
void add_added_tokens(const Json& tokenizer, Pieces& pieces) {
  const std::optional<Json> tokens = tokenizer.find("added_tokens");
  if (!tokens) return;
  for (const Json token : tokens->elements()) {
    const Json content = token.get("content");
    if (flag(token, "single_word", false)) token.get("single_word").fail("true, and only false is implemented");
    if (content.string().empty()) content.fail("a token without text");
    const bool special = flag(token, "special", false);
    const std::int64_t id = token.get("id").int64();
    const auto known = pieces.ids.find(content.string());
    if (known != pieces.ids.end() && known->second != id) {
      token.get("id").fail(cat(id, ", but the piece ", excerpt(content.string()), " has the id ", known->second));
    }
    const auto index = static_cast<std::size_t>(id);
    if (known == pieces.ids.end() && id >= 0 && index < pieces.vocabulary.pieces.size() &&
        !pieces.vocabulary.pieces[index].empty()) {
      token.get("id").fail(cat(id, ", which is that of the piece ", excerpt(pieces.vocabulary.pieces[index])));
    }
    pieces.put(token, content.string(), id, special ? PieceType::control : PieceType::user_defined);
    const AddedToken added{static_cast<std::int32_t>(id), flag(token, "lstrip", false), flag(token, "rstrip", false),
                           flag(token, "normalized", !special)};
    if (added.lstrip || added.rstrip || added.normalized) pieces.added.push_back(added);
  }
}

// The most that ids reach. No file can make us allocate more than a multiple of its own length.
std::size_t count_pieces(const Json& tokenizer, const Json& model, std::int64_t vocab_size) {
  std::int64_t end = 0;
  std::int64_t pieces = 0;
  const auto count = [&](const Json& id) {
    end = std::max(end, id.int64() < std::numeric_limits<std::int32_t>::max() ? id.int64() + 1 : 0);
    ++pieces;
    if (id.int64() < 0 || id.int64() >= std::numeric_limits<std::int32_t>::max()) id.fail(cat(id.int64(), " is no id"));
  };
  if (is_unigram(model)) {
    end = pieces = static_cast<std::int64_t>(model.get("vocab").size());
  } else {
    for (const Json piece : model.get("vocab").members()) count(piece);
  }
  if (const std::optional<Json> tokens = tokenizer.find("added_tokens")) {
    for (const Json token : tokens->elements()) count(token.get("id"));
  }
  if (pieces == 0) model.get("vocab").fail("no pieces");
  if (end - pieces > kMostHoles) {
    throw FormatError(cat("tokenizer.json: ", pieces, " pieces, but ids up to ", end - 1));
  }
  if (vocab_size - end > kMostHoles) {
    throw FormatError(cat("tokenizer.json: ids up to ", end - 1, ", and the model has a vocabulary of ", vocab_size));
  }
  return static_cast<std::size_t>(std::max(end, vocab_size));
}

void fill_holes(Vocabulary& vocabulary) {
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (!vocabulary.pieces[i].empty()) continue;
    vocabulary.pieces[i] = cat("[UNUSED_", i, "]");
    vocabulary.types[i] = PieceType::unused;
  }
}

// "left right", or ["left", "right"] since a piece may have a space.
std::pair<std::string_view, std::string_view> merge_parts(const Json& merge) {
  if (merge.type() == Json::Type::array) {
    if (merge.size() != 2) merge.fail(cat("expected two pieces, found ", merge.size()));
    return {merge.at(0).string(), merge.at(1).string()};
  }
  const std::string_view both = merge.string();
  const std::size_t space = both.find(' ');
  if (space == std::string_view::npos) merge.fail(cat(excerpt(both), ", expected two pieces with a space between"));
  return {both.substr(0, space), both.substr(space + 1)};
}

void add_merges(const Json& model, Pieces& pieces) {
  const Json merges = model.get("merges");
  pieces.merges.reserve(merges.size());
  for (const Json merge : merges.elements()) {
    const auto [left, right] = merge_parts(merge);
    const auto id_of = [&](const std::string& piece) {
      const auto found = pieces.ids.find(piece);
      if (found == pieces.ids.end()) merge.fail(cat("the piece ", excerpt(piece), " is not in the vocabulary"));
      return found->second;
    };
    if (left.empty() || right.empty()) merge.fail("a piece without text");
    pieces.merges.push_back(
        {id_of(std::string(left)), id_of(std::string(right)), id_of(std::string(left) + std::string(right))});
  }
}

// Pieces in the stand-ins of GPT-2 become the bytes that they stand for. Others among the normal ones are never made.
void spell_out(Vocabulary& vocabulary) {
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (vocabulary.types[i] != PieceType::normal) continue;
    if (const auto bytes = bytes_of_stand_ins(vocabulary.pieces[i])) {
      vocabulary.pieces[i] = *bytes;
    } else {
      vocabulary.types[i] = PieceType::unused;
    }
  }
}

// A merge joins bytes; one of pieces that are not spelled in them is never met.
void keep_byte_merges(const Vocabulary& vocabulary, std::vector<Merge>& merges) {
  std::erase_if(merges, [&](const Merge& merge) {
    const auto piece = [&](std::size_t i) -> const std::string& {
      return vocabulary.pieces[static_cast<std::size_t>(merge[i])];
    };
    return piece(0) + piece(1) != piece(2);
  });
}

bool has_all_stand_ins(const Pieces& pieces) {
  for (int byte = 0; byte < 256; ++byte) {
    if (!pieces.ids.contains(stand_ins_of_bytes(std::string(1, static_cast<char>(byte))))) return false;
  }
  return true;
}

// <0x0A>
std::string byte_name(int byte) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  return cat("<0x", kDigits[static_cast<std::size_t>(byte / 16)], kDigits[static_cast<std::size_t>(byte % 16)], ">");
}

// Whether every byte has a piece, which what no piece spells can fall back to.
bool mark_bytes(const Pieces& pieces) {
  bool all = true;
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = pieces.ids.find(byte_name(byte));
    all = all && found != pieces.ids.end();
    if (found != pieces.ids.end()) {
      pieces.vocabulary.types[static_cast<std::size_t>(found->second)] = PieceType::byte;
    }
  }
  return all;
}

void refuse_model_settings(const Json& model) {
  if (const auto type = model.find("type"); type && type->string() != "BPE" && !is_unigram(model)) {
    type->fail(cat(excerpt(type->string()), ", expected \"BPE\" or \"Unigram\": others are not implemented"));
  }
  if (const auto dropout = model.find("dropout"); dropout && dropout->number() != 0) {
    dropout->fail(cat(dropout->number(), ", and dropout gives other ids every time"));
  }
  for (const std::string_view name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!text(model, name).empty()) model.get(name).fail(cat(excerpt(text(model, name)), ", which is not implemented"));
  }
}

std::int32_t find_piece(const Pieces& pieces, std::string_view piece) {
  const auto found = pieces.ids.find(piece);
  return found == pieces.ids.end() ? -1 : found->second;
}

void read_characters(const Json& model, const Pieces& pieces) {
  const bool falls_back = flag(model, "byte_fallback", false) && mark_bytes(pieces);
  if (!falls_back && (pieces.vocabulary.unk_id < 0 || !flag(model, "fuse_unk", false))) {
    model.fail(
        "without byte_fallback to pieces for all bytes, only an unk_token with \"fuse_unk\": true is implemented");
  }
}

void read_unknown(const Json& model, const Pieces& pieces) {
  if (const auto id = model.find("unk_id")) {
    const std::int64_t found = id->int64();
    if (found < 0 || found >= static_cast<std::int64_t>(model.get("vocab").size())) {
      id->fail(cat(found, ", expected an id below ", model.get("vocab").size()));
    }
    pieces.vocabulary.unk_id = static_cast<std::int32_t>(found);
  }
  if (flag(model, "byte_fallback", false)) mark_bytes(pieces);
}

void read_bytes(const Json& model, const Pieces& pieces) {
  if ((pieces.vocabulary.unk_id >= 0 || flag(model, "byte_fallback", false)) && !has_all_stand_ins(pieces)) {
    model.fail("some bytes have no piece, and what becomes of them then (unk_token, byte_fallback) is not implemented");
  }
  spell_out(pieces.vocabulary);
  keep_byte_merges(pieces.vocabulary, pieces.merges);
}

// --- what is put around a text

// A template of one sequence: [BOS] A [EOS].
void read_template(const Json& processor, const Pieces& pieces) {
  Vocabulary& vocabulary = pieces.vocabulary;
  const Json special = processor.get("special_tokens");
  bool after = false;
  int before_count = 0;
  for (const Json item : processor.get("single").elements()) {
    if (item.find("Sequence")) {
      if (after) item.fail("the text comes twice");
      after = true;
      continue;
    }
    const Json ids = special.get(item.get("SpecialToken").get("id").string()).get("ids");
    if (ids.size() != 1 || ids.at(0).int64() < 0 ||
        ids.at(0).int64() >= static_cast<std::int64_t>(vocabulary.pieces.size())) {
      ids.fail("expected one id of the vocabulary");
    }
    const auto id = static_cast<std::int32_t>(ids.at(0).int64());
    const bool again = after ? vocabulary.add_eos : before_count++ > 0;
    if (again) item.fail("more than one token on a side of the text, which is not implemented");
    if (after) {
      vocabulary.add_eos = true;
      vocabulary.eos_ids = {id};
    } else {
      vocabulary.add_bos = true;
      vocabulary.bos_id = id;
    }
  }
  if (!after) processor.fail("the text is not in it");
}

void read_post_processors(const Json& tokenizer, const Pieces& pieces) {
  bool seen = false;
  for (const Json& part : parts_of(tokenizer, "post_processor", "processors")) {
    if (type_of(part) == "ByteLevel") continue;  // moves offsets only
    if (type_of(part) != "TemplateProcessing" || seen) fail_unknown(part, "one TemplateProcessing");
    seen = true;
    read_template(part, pieces);
  }
}

}  // namespace

Vocabulary read_tokenizer_json(const Json& tokenizer, std::int64_t vocab_size) {
  const Json model = tokenizer.get("model");
  refuse_model_settings(model);
  Vocabulary vocabulary;
  vocabulary.bos_id = vocabulary.unk_id = -1;
  vocabulary.eos_ids.clear();
  vocabulary.add_bos = false;

  const std::vector<Json> normalizers = parts_of(tokenizer, "normalizer", "normalizers");
  const std::vector<Json> pre_tokenizers = parts_of(tokenizer, "pre_tokenizer", "pretokenizers");
  const bool unigram = is_unigram(model);
  const auto byte_level = unigram ? std::nullopt : find_byte_level(pre_tokenizers);
  if (unigram) {
    auto& rules = vocabulary.rules.emplace<UnigramRules>();
    for (const Json& part : normalizers) read_step(part, rules);
    read_unigram_cuts(normalizers, pre_tokenizers, rules);
  } else if (byte_level) {
    auto& rules = vocabulary.rules.emplace<ByteBpeRules>();
    for (const Json& part : normalizers) {
      if (type_of(part) != "NFC") fail_unknown(part, "NFC or none before ByteLevel");
      rules.nfc = true;
    }
    rules.pre_tokenizer = cut_of(*byte_level);
    if (rules.pre_tokenizer == PreTokenizer::splits) rules.splits = *byte_level;
    rules.ignore_merges = flag(model, "ignore_merges", false);
  } else {
    auto& rules = vocabulary.rules.emplace<RankedBpeRules>();
    rules.prefix = read_prefix(normalizers, pre_tokenizers);
    rules.normalizes = !normalizers.empty();
  }

  const std::size_t size = count_pieces(tokenizer, model, vocab_size);
  vocabulary.pieces.resize(size);
  vocabulary.types.resize(size, PieceType::normal);
  std::vector<Merge> none;
  Pieces pieces{vocabulary, unigram ? none : *find_merges(vocabulary), *find_added(vocabulary), {}};
  if (unigram) {
    add_scored(model, pieces, std::get<UnigramRules>(vocabulary.rules));
  } else {
    add_vocab(model, pieces);
    add_merges(model, pieces);
  }
  add_added_tokens(tokenizer, pieces);
  if (!unigram && !text(model, "unk_token").empty()) {
    vocabulary.unk_id = find_piece(pieces, text(model, "unk_token"));
  }
  if (unigram) {
    read_unknown(model, pieces);
  } else if (byte_level) {
    read_bytes(model, pieces);
  } else {
    read_characters(model, pieces);
  }
  read_post_processors(tokenizer, pieces);
  fill_holes(vocabulary);
  if (vocab_size > 0) fit(vocabulary, vocab_size, "tokenizer.json");
  check_vocabulary(vocabulary);
  return vocabulary;
}

void fit(Vocabulary& vocabulary, std::int64_t vocab_size, std::string_view file) {
  const auto have = static_cast<std::int64_t>(vocabulary.pieces.size());
  const std::string first_beyond = have > vocab_size ? vocabulary.pieces[static_cast<std::size_t>(vocab_size)] : "";
  if (!fit_pieces(vocabulary, vocab_size)) {
    throw FormatError(cat(file, ": ids up to ", have - 1, ", but the model has a vocabulary of ", vocab_size));
  }
  if (have > vocab_size) {
    vocabulary.warnings.push_back(cat(file, ": ids up to ", have - 1, ", but the model has a vocabulary of ",
                                      vocab_size, ": the tokens from ", excerpt(first_beyond), " on are left out"));
  }
}

}  // namespace llama2cpp
