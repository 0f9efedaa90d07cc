// Errors of Config::validate in a file's own words.
#include "io/field_names.h"

#include <algorithm>
#include <vector>

#include "core/check.h"

namespace llama2cpp {
namespace {

bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; }

// Where a message has the name as a word of its own.
std::size_t find_word(std::string_view message, std::string_view name) {
  for (std::size_t at = message.find(name); at != std::string_view::npos; at = message.find(name, at + 1)) {
    const std::size_t end = at + name.size();
    if ((at == 0 || !is_word(message[at - 1])) && (end == message.size() || !is_word(message[end]))) return at;
  }
  return std::string_view::npos;
}

// "head_dim is 7, expected ..." -> "head_dim is 7, expected ... (head_dim is llama.attention.key_length)"
std::string with_keys(std::string_view message, std::span<const FieldName> names) {
  struct Found {
    std::size_t at;
    const FieldName* name;
  };
  std::vector<Found> found;
  for (const FieldName& name : names) {
    const std::size_t at = find_word(message, name.field);
    if (at != std::string_view::npos && !name.key.empty() && name.key != name.field) found.push_back({at, &name});
  }
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.at < b.at; });
  std::string text(message);
  for (std::size_t i = 0; i < found.size(); ++i) {
    text += cat(i == 0 ? " (" : ", ", found[i].name->field, " is ", found[i].name->key);
  }
  return found.empty() ? text : text + ")";
}

}  // namespace

void validate(const Config& config, std::span<const FieldName> names) {
  try {
    config.validate();
  } catch (const FormatError& error) {
    throw FormatError(with_keys(error.what(), names));
  }
}

}  // namespace llama2cpp
