// What stands beside tokenizer.json in a Hugging Face folder: which tokens begin and end a text, and the chat template.
#include <algorithm>
#include <unordered_map>

#include "io/hf.h"

namespace llama2cpp {
namespace {

// A token is its text, or an object that has it.
std::optional<std::string> find_token(const Json& config, std::string_view name) {
  const std::optional<Json> found = config.find(name);
  if (!found) return {};
  return std::string(found->type() == Json::Type::string ? found->string() : found->get("content").string());
}

// One template, or a list of named ones, of which chats have "default".
std::string read_chat_template(const Json& config) {
  const std::optional<Json> found = config.find("chat_template");
  if (!found) return {};
  if (found->type() == Json::Type::string) return std::string(found->string());
  for (const Json item : found->elements()) {
    if (item.get("name").string() == "default") return std::string(item.get("template").string());
  }
  return {};
}

void read_config(const Json& config, TokenizerSettings& settings) {
  const auto take = [&](std::optional<std::string>& token, std::string_view name) {
    if (!token) token = find_token(config, name);
  };
  take(settings.bos_token, "bos_token");
  take(settings.eos_token, "eos_token");
}

}  // namespace

TokenizerSettings read_tokenizer_settings(const HfFolder& folder) {
  TokenizerSettings settings;
  if (const auto config = HfJson::find(folder, "tokenizer_config.json")) {
    read_config(config->root(), settings);
    settings.chat_template = read_chat_template(config->root());
  }
  if (const auto map = HfJson::find(folder, "special_tokens_map.json")) read_config(map->root(), settings);
  if (folder.has("chat_template.jinja")) {
    const Buffer file = folder.open("chat_template.jinja", false);
    settings.chat_template.assign(reinterpret_cast<const char*>(file.data()), file.size());
  }
  for (const char* name : {"config.json", "generation_config.json"}) {
    const auto config = HfJson::find(folder, name);
    if (config == nullptr) continue;
    for (const std::int64_t id : read_eos_ids(config->root())) settings.eos_ids.push_back(id);
  }
  return settings;
}

// What is put around a text is tokenizer.json's to say: transformers 5 passes over add_bos_token and add_eos_token, and so
// do we. Which token is BOS, where it puts none, and which are EOS too, the settings tell.
void apply(const TokenizerSettings& settings, Vocabulary& vocabulary) {
  std::unordered_map<std::string_view, std::int32_t> ids;
  for (const bool special : {true, false}) {
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      const PieceType type = vocabulary.types[i];
      if (type == PieceType::unused || (type == PieceType::control) != special) continue;
      ids.emplace(vocabulary.pieces[i], static_cast<std::int32_t>(i));
    }
  }
  const auto find = [&](const std::optional<std::string>& token, std::int32_t otherwise) {
    const auto found = token ? ids.find(*token) : ids.end();
    return found == ids.end() ? otherwise : found->second;
  };
  if (!vocabulary.add_bos) vocabulary.bos_id = find(settings.bos_token, vocabulary.bos_id);

  std::vector<std::int32_t> ends;
  const auto add = [&](std::int64_t id) {
    if (id < 0 || id >= static_cast<std::int64_t>(vocabulary.pieces.size())) return;  // such an id is never sampled
    const auto end = static_cast<std::int32_t>(id);
    if (std::find(ends.begin(), ends.end(), end) == ends.end()) ends.push_back(end);
  };
  for (const std::int32_t id : vocabulary.eos_ids) add(id);
  add(find(settings.eos_token, -1));
  for (const std::int64_t id : settings.eos_ids) add(id);
  vocabulary.eos_ids = std::move(ends);
  vocabulary.chat_template = settings.chat_template;
}

}  // namespace llama2cpp
