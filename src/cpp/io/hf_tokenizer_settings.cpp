// What stands beside tokenizer.json or tokenizer.model in a Hugging Face folder: which tokens are added, which begin and end
// a text, and the chat template. Of the files that say it twice the one counts that counts in transformers.
#include <algorithm>
#include <charconv>
#include <iterator>
#include <limits>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <variant>

#include "core/file_kind.h"
#include "core/quote.h"
#include "io/hf.h"

namespace llama2cpp {
namespace {

using Token = TokenizerSettings::Token;

// In the order in which transformers adds them.
constexpr std::string_view kNamed[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};

bool flag(const Json& part, std::string_view name, bool otherwise) {
  const std::optional<Json> found = part.find(name);
  return found ? found->boolean() : otherwise;
}

std::optional<bool> find_flag(const Json& config, std::string_view name) {
  const std::optional<Json> found = config.find(name);
  return found ? std::optional(found->boolean()) : std::nullopt;
}

// A token is its text, or an object that has it.
Token token_of(const Json& json, bool special) {
  Token token;
  token.special = special;
  if (json.type() == Json::Type::string) {
    token.text = json.string();
    return token;
  }
  token.text = json.get("content").string();
  token.special = flag(json, "special", special);
  token.lstrip = flag(json, "lstrip", false);
  token.rstrip = flag(json, "rstrip", false);
  token.normalized = flag(json, "normalized", false);
  if (flag(json, "single_word", false)) {
    token.flaw = cat(json.get("single_word").path(), ": true, and only false is implemented");
  }
  return token;
}

bool is_null(const Json& config, std::string_view name) {
  for (const Json member : config.members()) {
    if (member.name() == name) return member.is_null();
  }
  return false;
}

// Of two templates of a name the later one counts, as in a dict.
void add_template(TokenizerSettings& settings, std::string_view name, std::string_view text) {
  if (name == "default") {
    settings.chat_template = text;
    return;
  }
  auto& names = settings.template_names;
  const auto found = std::lower_bound(names.begin(), names.end(), name);
  const auto at = settings.template_texts.begin() + (found - names.begin());
  if (found != names.end() && *found == name) {
    *at = text;
  } else {
    names.emplace(found, name);
    settings.template_texts.emplace(at, text);
  }
}

// One template, or a list of named ones, of which chats have "default".
void read_chat_templates(const Json& config, TokenizerSettings& settings) {
  const std::optional<Json> found = config.find("chat_template");
  if (!found) return;
  if (found->type() == Json::Type::string) {
    settings.chat_template = found->string();
    return;
  }
  for (const Json item : found->elements()) {
    add_template(settings, item.get("name").string(), item.get("template").string());
  }
}

constexpr std::string_view kTemplate = "chat_template.jinja";
constexpr std::string_view kTemplates = "additional_chat_templates";
constexpr std::string_view kJinja = ".jinja";

// Where there is one of these files, those of tokenizer_config.json do not count.
void read_template_files(const HfFolder& folder, TokenizerSettings& settings) {
  const auto read = [&](std::string_view name, const Buffer& file, std::string_view path) {
    refuse_stand_in({file.data(), file.size()}, cat(path, ", a chat template"));
    add_template(settings, name, {reinterpret_cast<const char*>(file.data()), file.size()});
  };
  const std::vector<std::string> others = folder.list(kTemplates, kJinja);
  const bool has_default = folder.has(kTemplate);
  if (!has_default && others.empty()) return;
  settings.chat_template.clear();
  settings.template_names.clear();
  settings.template_texts.clear();
  if (has_default) read("default", folder.open(kTemplate, false, kMostText), kTemplate);
  for (const std::string& file : others) {
    const std::string_view name = std::string_view(file).substr(0, file.size() - kJinja.size());
    read(name, folder.open_within(kTemplates, file, kMostText), cat(kTemplates, "/", file));
  }
}

// The special tokens that a file names, by their keys; those of the second file replace the first one's.
class NamedTokens {
 public:
  void read(const Json& config) {
    for (const Json member : config.members()) {
      const std::string_view key = member.name();
      if (!key.ends_with("_token") || member.is_null() || member.type() == Json::Type::boolean) continue;
      if (member.type() == Json::Type::string || member.type() == Json::Type::object) {
        put(std::string(key), token_of(member, true));
      }
    }
    for (const std::string_view key : {"extra_special_tokens", "additional_special_tokens"}) {
      const std::optional<Json> list = config.find(key);
      if (!list) continue;
      if (list->type() == Json::Type::object) {
        for (const Json member : list->members()) put(std::string(member.name()), token_of(member, true));
      } else {
        for (const Json item : list->elements()) extra_.push_back(token_of(item, true));
      }
      break;  // the second one is what older files call the first
    }
  }

  std::optional<std::string> text(std::string_view key) const {
    const auto found = find(key);
    return found == tokens_.end() || found->second.text.empty() ? std::nullopt : std::optional(found->second.text);
  }

  // In the order in which new ones are numbered.
  std::vector<Token> all() const {
    std::vector<Token> all;
    for (const std::string_view key : kNamed) {
      if (const auto found = find(key); found != tokens_.end()) all.push_back(found->second);
    }
    for (const auto& [key, token] : tokens_) {
      if (std::find(std::begin(kNamed), std::end(kNamed), key) == std::end(kNamed)) all.push_back(token);
    }
    all.insert(all.end(), extra_.begin(), extra_.end());
    std::erase_if(all, [](const Token& token) { return token.text.empty(); });
    return all;
  }

 private:
  using Tokens = std::vector<std::pair<std::string, Token>>;

  Tokens::const_iterator find(std::string_view key) const {
    return std::find_if(tokens_.begin(), tokens_.end(), [&](const auto& entry) { return entry.first == key; });
  }

  void put(const std::string& key, Token token) {
    token.special = true;
    const auto found =
        std::find_if(tokens_.begin(), tokens_.end(), [&](const auto& entry) { return entry.first == key; });
    if (found == tokens_.end()) {
      tokens_.emplace_back(key, std::move(token));
    } else {
      found->second = std::move(token);
    }
  }

  Tokens tokens_;
  std::vector<Token> extra_;
};

void add(TokenizerSettings& settings, const Json& where, std::int64_t id, Token token) {
  if (token.text.empty()) where.fail("a token without text");
  if (id < 0 || id > std::numeric_limits<std::int32_t>::max()) where.fail(cat(id, " is no id"));
  if (!settings.added.emplace(id, std::move(token)).second) where.fail(cat("the id ", id, " has two tokens"));
}

// {"32000": {"content": "<|im_end|>", ...}}
void read_decoder(const Json& decoder, TokenizerSettings& settings) {
  for (const Json member : decoder.members()) {
    std::int64_t id = -1;
    const std::string_view name = member.name();
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id);
    if (error != std::errc() || end != name.data() + name.size()) member.fail(cat(excerpt(name), " is no id"));
    add(settings, member, id, token_of(member, false));
  }
}

// A tokenizer.json has its added tokens itself: what is wrong with those beside it matters to a tokenizer.model alone.
template <class Read>
void note_flaw(TokenizerSettings& settings, Read read) {
  try {
    read();
  } catch (const FormatError& error) {
    settings.flaw = error.what();
  }
}

// {"<|im_end|>": 32000}
void read_added_tokens(const Json& tokens, const std::vector<Token>& special, TokenizerSettings& settings) {
  for (const Json member : tokens.members()) {
    const std::string_view text = member.name();
    const bool is_special =
        std::any_of(special.begin(), special.end(), [&](const Token& token) { return token.text == text; });
    Token token;
    token.text = text;
    token.special = is_special;
    token.normalized = !is_special;
    add(settings, member, member.int64(), std::move(token));
  }
}

}  // namespace

TokenizerSettings read_tokenizer_settings(const HfFolder& folder) {
  TokenizerSettings settings;
  NamedTokens named;
  bool has_decoder = false;
  if (const auto file = HfJson::find(folder, "tokenizer_config.json")) {
    const Json config = file->root();
    settings.any = true;
    read_chat_templates(config, settings);
    settings.add_bos = find_flag(config, "add_bos_token");
    settings.add_eos = find_flag(config, "add_eos_token");
    settings.add_prefix_space = find_flag(config, "add_prefix_space");
    settings.legacy = flag(config, "legacy", false);
    settings.split_special_tokens = flag(config, "split_special_tokens", false);
    if (const auto name = config.find("tokenizer_class"); name && name->type() == Json::Type::string) {
      settings.tokenizer_class = name->string();
    }
    settings.no_bos = is_null(config, "bos_token");
    settings.no_eos = is_null(config, "eos_token");
    named.read(config);
    if (const auto decoder = config.find("added_tokens_decoder")) {
      has_decoder = true;
      note_flaw(settings, [&] { read_decoder(*decoder, settings); });
    }
  }
  if (const auto map = HfJson::find(folder, "special_tokens_map.json")) {
    settings.any = true;
    if (has_decoder) {  // then transformers passes over the file; it may still say what no other does
      NamedTokens others;
      others.read(map->root());
      for (const auto& [token, key] :
           {std::pair{&settings.bos_token, "bos_token"}, {&settings.eos_token, "eos_token"}}) {
        *token = others.text(key);
      }
    } else {
      named.read(map->root());
    }
  }
  settings.special = named.all();
  if (const auto text = named.text("bos_token")) settings.bos_token = text;
  if (const auto text = named.text("eos_token")) settings.eos_token = text;
  settings.no_bos = settings.no_bos && !settings.bos_token;
  settings.no_eos = settings.no_eos && !settings.eos_token;
  if (const auto tokens = has_decoder ? nullptr : HfJson::find(folder, "added_tokens.json")) {
    settings.any = true;
    note_flaw(settings, [&] { read_added_tokens(tokens->root(), settings.special, settings); });
  }
  read_template_files(folder, settings);
  for (const char* name : {"config.json", "generation_config.json"}) {
    const auto config = HfJson::find(folder, name);
    if (config == nullptr) continue;
    for (const std::int64_t id : read_eos_ids(config->root())) settings.eos_ids.push_back(id);
  }
  return settings;
}

namespace {

// The piece that a token's text names; a control piece before others.
std::int32_t find_piece(const Vocabulary& vocabulary, const std::optional<std::string>& text) {
  std::int32_t found = -1;
  for (std::size_t i = 0; text && i < vocabulary.pieces.size(); ++i) {
    const PieceType type = vocabulary.types[i];
    if (type == PieceType::unused || vocabulary.pieces[i] != *text) continue;
    if (type == PieceType::control) return static_cast<std::int32_t>(i);
    if (found < 0) found = static_cast<std::int32_t>(i);
  }
  return found;
}

// `first`: what encode adds, -1: what the vocabulary has.
void set_ends(const TokenizerSettings& settings, std::int32_t first, std::int32_t named, Vocabulary& vocabulary) {
  std::vector<std::int32_t> ends;
  const auto add = [&](std::int64_t id) {
    if (id < 0 || id >= static_cast<std::int64_t>(vocabulary.pieces.size())) return;  // such an id is never sampled
    const auto end = static_cast<std::int32_t>(id);
    if (std::find(ends.begin(), ends.end(), end) == ends.end()) ends.push_back(end);
  };
  add(first);
  for (const std::int32_t id : vocabulary.eos_ids) add(id);
  add(named);
  for (const std::int64_t id : settings.eos_ids) add(id);
  vocabulary.eos_ids = std::move(ends);
}

void set_templates(const TokenizerSettings& settings, Vocabulary& vocabulary) {
  vocabulary.chat_template = settings.chat_template;
  vocabulary.template_names = settings.template_names;
  vocabulary.template_texts = settings.template_texts;
}

void set_added(Vocabulary& vocabulary, std::size_t id, const Token& token) {
  vocabulary.types[id] = token.special ? PieceType::control : PieceType::user_defined;
  auto* const added = find_added(vocabulary);
  if (added == nullptr) return;
  std::erase_if(*added, [&](const auto& old) { return old.id == static_cast<std::int32_t>(id); });
  if (token.lstrip || token.rstrip || token.normalized) {
    added->push_back({static_cast<std::int32_t>(id), token.lstrip, token.rstrip, token.normalized});
  }
}

[[noreturn]] void refuse_split() {
  throw FormatError("tokenizer_config.json.split_special_tokens: true, and only false is implemented");
}

// Whether the class that transformers makes a tokenizer of takes everything from tokenizer.json.
bool is_generic(std::string_view tokenizer_class) {
  return tokenizer_class.empty() || tokenizer_class == "PreTrainedTokenizerFast" ||
         tokenizer_class == "TokenizersBackend";
}

bool is_llama(std::string_view tokenizer_class) {
  return tokenizer_class == "LlamaTokenizer" || tokenizer_class == "LlamaTokenizerFast";
}

// Its class puts no space before a text, whatever the settings say.
bool is_gemma(std::string_view tokenizer_class) {
  return tokenizer_class == "GemmaTokenizer" || tokenizer_class == "GemmaTokenizerFast";
}

SpacePrefix prefix_of(const TokenizerSettings& settings) {
  if (!settings.add_prefix_space.value_or(true)) return SpacePrefix::none;
  return settings.legacy ? SpacePrefix::where_none : SpacePrefix::first_where_none;
}

// add_prefix_space, where a class has it: for transformers it counts before what tokenizer.json says. (So does, since its
// version 5, `legacy` for Llama's class. Where that is said alone, tokenizer.json counts here, as in `tokenizers`.)
void apply_prefix(const TokenizerSettings& settings, Vocabulary& vocabulary) {
  if (!settings.add_prefix_space || is_generic(settings.tokenizer_class)) return;
  if (auto* const ranked = std::get_if<RankedBpeRules>(&vocabulary.rules);
      ranked && is_llama(settings.tokenizer_class)) {
    const bool puts_one = ranked->prefix != SpacePrefix::none;
    if (puts_one == *settings.add_prefix_space) return;
    ranked->prefix = prefix_of(settings);
    ranked->normalizes = false;
  } else if (vocabulary.is<ByteBpeRules>() && *settings.add_prefix_space && !is_llama(settings.tokenizer_class)) {
    throw FormatError("tokenizer_config.json.add_prefix_space: true, and for byte-level BPE only false is implemented");
  }
}

}  // namespace

// What is put around a text is tokenizer.json's to say: transformers 5 passes over add_bos_token and add_eos_token, and so
// do we. Which token is BOS, where it puts none, and which are EOS too, the settings tell.
void apply(const TokenizerSettings& settings, Vocabulary& vocabulary) {
  if (settings.split_special_tokens) refuse_split();
  apply_prefix(settings, vocabulary);
  for (const Token& token : settings.special) {  // those that tokenizer.json has not added itself
    const std::int32_t known = find_piece(vocabulary, token.text);
    const auto index = static_cast<std::size_t>(known);
    if (known < 0 || vocabulary.types[index] != PieceType::normal) continue;
    if (!token.flaw.empty()) throw FormatError(token.flaw);
    set_added(vocabulary, index, token);
  }
  const std::int32_t bos = find_piece(vocabulary, settings.bos_token);
  if (!vocabulary.add_bos && bos >= 0) vocabulary.bos_id = bos;
  set_ends(settings, -1, find_piece(vocabulary, settings.eos_token), vocabulary);
  set_templates(settings, vocabulary);
}

namespace {

void refuse_flaws(const TokenizerSettings& settings) {
  if (!settings.flaw.empty()) throw FormatError(settings.flaw);
  const auto refuse = [](const Token& token) {
    if (!token.flaw.empty()) throw FormatError(token.flaw);
  };
  for (const auto& [id, token] : settings.added) refuse(token);
  for (const Token& token : settings.special) refuse(token);
}

void append(Vocabulary& vocabulary, const Token& token) {
  vocabulary.pieces.push_back(token.text);
  vocabulary.types.push_back(PieceType::control);
  if (auto* const scores = find_scores(vocabulary)) scores->push_back(0.0F);
  set_added(vocabulary, vocabulary.pieces.size() - 1, token);
}

// Tokens with ids. transformers numbers the new ones from the model's end on, whatever ids the files give them: where that
// is not the same, the embeddings of one or the other would be wrong.
void add_with_ids(const TokenizerSettings& settings, Vocabulary& vocabulary) {
  for (const auto& [id, token] : settings.added) {
    const auto size = static_cast<std::int64_t>(vocabulary.pieces.size());
    const std::int32_t known = find_piece(vocabulary, token.text);
    if (id > size || (known >= 0 && known != id)) {
      throw FormatError(
          cat("the added token ", excerpt(token.text), " has the id ", id, ", expected ", known >= 0 ? known : size));
    }
    if (id == size) {
      append(vocabulary, token);
      continue;
    }
    const auto index = static_cast<std::size_t>(id);
    // The names of Llama 3's special pieces are not in its file, and models have changed some.
    const auto* const bytes = std::get_if<ByteBpeRules>(&vocabulary.rules);
    const bool unnamed = bytes != nullptr && bytes->merges_by_id && vocabulary.types[index] == PieceType::control;
    if (known < 0 && !unnamed) {
      throw FormatError(cat("the added token ", excerpt(token.text), " has the id ", id, ", which is that of ",
                            quoted_piece(vocabulary.pieces[index])));
    }
    vocabulary.pieces[index] = token.text;
    set_added(vocabulary, index, token);
  }
}

// Special tokens by their names: a piece that is there becomes special, another is new.
void add_special(const TokenizerSettings& settings, Vocabulary& vocabulary) {
  for (const Token& token : settings.special) {
    const std::int32_t known = find_piece(vocabulary, token.text);
    const auto index = static_cast<std::size_t>(known);
    if (known < 0) {
      append(vocabulary, token);
    } else if (vocabulary.types[index] == PieceType::user_defined) {  // with what the file of its id says
      vocabulary.types[index] = PieceType::control;
    } else if (vocabulary.types[index] != PieceType::control) {
      set_added(vocabulary, index, token);
    }
  }
}

// Every way to cut a piece in two pieces; the lower the piece's id, and then the shorter the left part, the earlier.
std::vector<Merge> all_merges(const Vocabulary& vocabulary) {
  std::unordered_map<std::string_view, std::int32_t> ids;
  ids.reserve(vocabulary.pieces.size());
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    const PieceType type = vocabulary.types[i];
    if (type != PieceType::normal && type != PieceType::unused && type != PieceType::user_defined) continue;
    ids.emplace(vocabulary.pieces[i], static_cast<std::int32_t>(i));
  }
  std::vector<Merge> merges;
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    const std::string_view piece = vocabulary.pieces[i];
    const auto both = ids.find(piece);
    if (both == ids.end() || both->second != static_cast<std::int32_t>(i)) continue;
    for (std::size_t cut = 1; cut < piece.size(); ++cut) {
      if ((static_cast<unsigned char>(piece[cut]) & 0xC0U) == 0x80U) continue;  // within a character
      const auto left = ids.find(piece.substr(0, cut));
      const auto right = ids.find(piece.substr(cut));
      if (left != ids.end() && right != ids.end()) merges.push_back({left->second, right->second, both->second});
    }
  }
  return merges;
}

// SentencePiece's pieces with the merges, the spaces and the added tokens of transformers' LlamaTokenizer, or GemmaTokenizer. They know no
// unused pieces, and none of the model's own rules for spaces.
void rank_merges(const TokenizerSettings& settings, Vocabulary& vocabulary) {
  RankedBpeRules rules;
  rules.merges = all_merges(vocabulary);
  for (PieceType& type : vocabulary.types) {
    if (type == PieceType::unused) type = PieceType::normal;
    if (type == PieceType::unknown) type = PieceType::control;
  }
  if (is_gemma(settings.tokenizer_class)) {
    rules.normalizes = true;
  } else {
    rules.prefix = prefix_of(settings);
  }
  vocabulary.rules = std::move(rules);
}

// Classes of transformers that are made from a tokenizer.model, but number, cut or normalise otherwise than its library. No
// family of ours has them.
bool has_own_ids(std::string_view tokenizer_class) {
  constexpr std::string_view kStems[] = {
      "Albert",   "Barthez", "BertGeneration", "BigBird", "Camembert",   "Cpm",    "DebertaV2", "FNet",
      "GPTSw3",   "M2M100",  "MBart",          "MBart50", "MLuke",       "Marian", "Nllb",      "PLBart",
      "Parakeet", "Pegasus", "Reformer",       "RemBert", "SeamlessM4T", "Siglip", "Siglip2",   "Speech2Text",
      "SpeechT5", "T5",      "Udop",           "XGLM",    "XLMRoberta",  "XLNet",
  };
  constexpr std::string_view kFast = "Fast", kTokenizer = "Tokenizer";
  if (tokenizer_class.ends_with(kFast)) tokenizer_class.remove_suffix(kFast.size());
  if (!tokenizer_class.ends_with(kTokenizer)) return false;
  tokenizer_class.remove_suffix(kTokenizer.size());
  return std::find(std::begin(kStems), std::end(kStems), tokenizer_class) != std::end(kStems);
}

}  // namespace

void apply_to_model(const TokenizerSettings& settings, Vocabulary& vocabulary) {
  if (settings.split_special_tokens) refuse_split();
  if (has_own_ids(settings.tokenizer_class)) {
    throw FormatError(cat("tokenizer_config.json.tokenizer_class: ", excerpt(settings.tokenizer_class),
                          ", which makes other ids than those of tokenizer.model, is implemented with a tokenizer.json "
                          "only: save it with transformers, or pass the file itself for its own ids"));
  }
  const auto* const pieces = std::get_if<SentencePieceRules>(&vocabulary.rules);
  if (pieces != nullptr && !pieces->unigram && settings.any) rank_merges(settings, vocabulary);
  refuse_flaws(settings);
  add_with_ids(settings, vocabulary);
  add_special(settings, vocabulary);

  if (const std::int32_t bos = find_piece(vocabulary, settings.bos_token); bos >= 0) vocabulary.bos_id = bos;
  const std::int32_t eos = find_piece(vocabulary, settings.eos_token);
  set_ends(settings, eos, eos, vocabulary);
  vocabulary.add_bos = settings.add_bos.value_or(true) && !settings.no_bos;
  vocabulary.add_eos = settings.add_eos.value_or(false) && !settings.no_eos;
  set_templates(settings, vocabulary);
}

}  // namespace llama2cpp
