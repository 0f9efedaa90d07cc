#include "text/viterbi.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"
#include "text/bpe_merge.h"

namespace llama2cpp {

Viterbi::Viterbi(std::vector<Piece> pieces, const Settings& settings) : settings_(settings) {
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.text < b.text; });
  // The pieces that begin with what leads to a node, of which the first `depth` bytes are known.
  struct Range {
    std::size_t begin, end, depth;
  };
  std::vector<Range> ranges = {{0, pieces.size(), 0}};  // [node]
  nodes_.emplace_back();
  for (std::size_t n = 0; n < nodes_.size(); ++n) {
    auto [begin, end, depth] = ranges[n];
    for (; begin < end && pieces[begin].text.size() == depth; ++begin) {
      const Piece& piece = pieces[begin];
      nodes_[n].piece = static_cast<std::int32_t>(scores_.size());
      scores_.push_back({piece.id, piece.score});
    }
    nodes_[n].child = static_cast<std::uint32_t>(nodes_.size());
    while (begin < end) {
      const char byte = pieces[begin].text[depth];
      std::size_t next = begin;
      while (next < end && pieces[next].text[depth] == byte) ++next;
      Node child;
      child.byte = static_cast<std::uint8_t>(byte);
      nodes_.push_back(child);
      ranges.push_back({begin, next, depth + 1});
      ++nodes_[n].children;
      begin = next;
    }
    LLAMA2CPP_CHECK(nodes_.size() <= kLongestText, "the pieces are too long together to look for");
  }
  first_.fill(-1);
  for (std::uint32_t i = 0; i < nodes_[0].children; ++i) {
    const std::uint32_t child = nodes_[0].child + i;
    first_[nodes_[child].byte] = static_cast<std::int32_t>(child);
  }
}

const Viterbi::Node* Viterbi::step(const Node& from, char byte) const {
  const auto wanted = static_cast<std::uint8_t>(byte);
  if (&from == nodes_.data()) {
    const std::int32_t child = first_[wanted];
    return child < 0 ? nullptr : &nodes_[static_cast<std::size_t>(child)];
  }
  const auto begin = nodes_.begin() + static_cast<std::ptrdiff_t>(from.child);
  const auto end = begin + from.children;
  const auto found =
      std::lower_bound(begin, end, wanted, [](const Node& node, std::uint8_t value) { return node.byte < value; });
  return found != end && found->byte == wanted ? &*found : nullptr;
}

std::int32_t Viterbi::find(std::string_view text) const {
  const Node* node = nodes_.data();
  for (std::size_t i = 0; i < text.size() && node != nullptr; ++i) node = step(*node, text[i]);
  return node == nullptr || node->piece < 0 ? -1 : scores_[static_cast<std::size_t>(node->piece)].id;
}

void Viterbi::cut(std::string_view text, FunctionRef<void(std::string_view, std::int32_t)> each) const {
  LLAMA2CPP_CHECK(text.size() <= kLongestText, "the text is too long to encode at once: ", text.size(), " bytes");
  // The best cut of the text up to a place: its score, and where its last piece begins.
  struct Best {
    double score = 0;
    std::int32_t begin = -1;  // -1: none reaches here
    std::int32_t id = -1;
  };
  std::vector<Best> best(text.size() + 1);
  constexpr double kFar = 100000;
  std::size_t reached = 0;  // the furthest place that a piece ends at
  const auto rounded = [&](double sum) {
    return settings_.single ? static_cast<double>(static_cast<float>(sum)) : sum;
  };
  for (std::size_t at = 0; at < text.size();) {
    if (const double far = best[at].score; settings_.single && std::abs(far) > kFar) {
      for (std::size_t i = at; i <= reached; ++i) best[i].score = rounded(best[i].score - far);
    }
    const double here = best[at].score;
    const std::size_t length = std::min(utf8_length_of_lead(text[at]), text.size() - at);
    const auto offer = [&](std::size_t end, double score, std::int32_t id) {
      const double sum = rounded(score + here);
      reached = std::max(reached, end);
      Best& there = best[end];
      if (there.begin < 0 || sum > there.score) there = {sum, static_cast<std::int32_t>(at), id};
    };
    bool is_piece = false;
    const Node* node = nodes_.data();
    for (std::size_t end = at; end < text.size();) {
      node = step(*node, text[end++]);
      if (node == nullptr) break;
      if (node->piece < 0) continue;
      const Scored& found = scores_[static_cast<std::size_t>(node->piece)];
      offer(end, found.score, found.id);
      is_piece = is_piece || end - at == length;
    }
    if (!is_piece) offer(at + length, settings_.unknown_score, -1);
    at += length;
  }

  std::vector<std::size_t> ends;  // from the last on
  for (std::size_t end = text.size(); end > 0; end = static_cast<std::size_t>(best[end].begin)) ends.push_back(end);
  for (std::size_t begin = 0; !ends.empty(); ends.pop_back()) {
    const std::size_t end = ends.back();
    each(text.substr(begin, end - begin), best[end].id);
    begin = end;
  }
}

}  // namespace llama2cpp
