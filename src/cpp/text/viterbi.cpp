#include "text/viterbi.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "core/check.h"
#include "core/utf8.h"
#include "text/bpe_merge.h"

namespace llama2cpp {

namespace {

constexpr std::size_t kBytes = 256;
constexpr std::size_t kWindow = 1024;  // of the last nodes, among which room is looked for

}  // namespace

Viterbi::Viterbi(std::vector<Piece> pieces, const Settings& settings) : settings_(settings) {
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.text < b.text; });
  // The pieces that begin with what leads to a node, of which the first `depth` bytes are known.
  struct Range {
    std::uint32_t node;
    std::size_t begin, end, depth;
  };
  std::deque<Range> ranges = {{0, 0, pieces.size(), 0}};
  nodes_.resize(kBytes + 1);
  std::size_t free = 1;  // no node before it is free
  std::vector<std::uint8_t> bytes;
  std::vector<std::size_t> ends;
  for (; !ranges.empty(); ranges.pop_front()) {
    auto [node, begin, end, depth] = ranges.front();
    for (; begin < end && pieces[begin].text.size() == depth; ++begin) {
      nodes_[node].piece = static_cast<std::int32_t>(scores_.size());
      scores_.push_back({pieces[begin].id, pieces[begin].score});
    }
    if (begin == end) continue;
    bytes.clear();
    ends.clear();
    for (std::size_t next = begin; next < end;) {
      const char byte = pieces[next].text[depth];
      while (next < end && pieces[next].text[depth] == byte) ++next;
      bytes.push_back(static_cast<std::uint8_t>(byte));
      ends.push_back(next);
    }
    const std::uint32_t base = nodes_[node].base = room_for(bytes, free);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      nodes_[base + bytes[i]].parent = node;
      ranges.push_back({base + bytes[i], begin, ends[i], depth + 1});
      begin = ends[i];
    }
    LLAMA2CPP_CHECK(nodes_.size() <= kLongestText, "the pieces are too long together to look for");
  }
}

std::uint32_t Viterbi::room_for(std::span<const std::uint8_t> bytes, std::size_t& free) {
  const auto taken = [&](std::size_t at) { return nodes_[at].parent != kNone; };
  const std::size_t end = nodes_.size() - kBytes;  // from there on all are free
  free = std::max(free, end - std::min(end, kWindow));
  while (free < end && taken(free)) ++free;
  std::size_t at = std::max(free, std::size_t{bytes[0]});  // of the first child
  const auto meets = [&](std::uint8_t byte) { return taken(at - bytes[0] + byte); };
  while (at < end && std::any_of(bytes.begin(), bytes.end(), meets)) ++at;
  const std::size_t base = at - bytes[0];
  nodes_.resize(std::max(nodes_.size(), base + bytes.back() + 1 + kBytes));
  return static_cast<std::uint32_t>(base);
}

std::int32_t Viterbi::find(std::string_view text) const {
  std::uint32_t node = 0;
  for (std::size_t i = 0; i < text.size() && node != kNone; ++i) node = step(node, text[i]);
  return node == kNone || nodes_[node].piece < 0 ? -1 : scores_[static_cast<std::size_t>(nodes_[node].piece)].id;
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
    std::uint32_t node = 0;
    for (std::size_t end = at; end < text.size();) {
      node = step(node, text[end++]);
      if (node == kNone) break;
      if (nodes_[node].piece < 0) continue;
      const Scored& found = scores_[static_cast<std::size_t>(nodes_[node].piece)];
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
