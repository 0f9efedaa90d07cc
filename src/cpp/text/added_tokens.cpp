#include "text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "text/pre_tokenizer.h"

namespace llama2cpp {

AddedTokens::AddedTokens(const Vocabulary& vocabulary, std::span<const AddedToken> added, bool normalized,
                         FunctionRef<std::string(const std::string&)> spell)
    : rules_(vocabulary.pieces.size()) {
  std::vector<bool> wanted(vocabulary.pieces.size(), !normalized);
  for (const AddedToken& token : added) {
    const auto index = static_cast<std::size_t>(token.id);
    rules_[index].lstrip = token.lstrip;
    rules_[index].rstrip = token.rstrip;
    wanted[index] = token.normalized == normalized;
  }
  std::vector<std::pair<std::string, std::int32_t>> tokens;
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    const PieceType type = vocabulary.types[i];
    rules_[i].control = type == PieceType::control;
    const bool is_added = type == PieceType::control || type == PieceType::user_defined;
    if (is_added && wanted[i]) tokens.emplace_back(spell(vocabulary.pieces[i]), static_cast<std::int32_t>(i));
  }
  matcher_ = PrefixMatcher(std::move(tokens));
}

void AddedTokens::cut(std::string_view text, bool special,
                      FunctionRef<void(std::string_view, std::int32_t)> each) const {
  std::size_t done = 0;  // up to where the text has been given
  for (std::size_t at = 0; !empty() && at < text.size();) {
    const PrefixMatcher::Match match = matcher_.longest_prefix(text.substr(at));
    if (match.id < 0) {
      ++at;
      continue;
    }
    std::size_t begin = at;
    std::size_t end = at += match.length;
    const Rules& rules = rules_[static_cast<std::size_t>(match.id)];
    if (rules.control && !special) continue;  // its text is over all the same: no other token begins in it
    if (rules.lstrip) begin = std::max(done, begin - spaces_at_end(text.substr(0, begin)));
    if (rules.rstrip) end += spaces_at_start(text.substr(end));
    if (done < begin) each(text.substr(done, begin - done), -1);
    each({}, match.id);
    done = end;
  }
  if (done < text.size()) each(text.substr(done), -1);
}

}  // namespace llama2cpp
