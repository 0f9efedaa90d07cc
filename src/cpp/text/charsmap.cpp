#include "text/charsmap.h"

#include <algorithm>
#include <optional>

#include "core/check.h"
#include "text/code_points.h"
#include "text/readers.h"

namespace llama2cpp {
namespace {

std::uint32_t unit_at(std::string_view bytes, std::size_t at) {
  std::uint32_t unit = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    unit |= static_cast<std::uint32_t>(static_cast<std::uint8_t>(bytes[at + i])) << (8 * i);
  }
  return unit;
}

std::uint32_t label_of(std::uint32_t unit) { return unit & 0x800000FFU; }  // the upper bit: it is a value
bool ends_string(std::uint32_t unit) { return (unit >> 8 & 1) != 0; }
std::uint32_t offset_of(std::uint32_t unit) { return unit >> 10 << ((unit & 0x200U) >> 6); }

// --- grapheme clusters, as far as it matters which of them have at most 5 bytes: emoji that are joined and the conjuncts
// of Indic scripts have more, and are not looked for.

CodeSet categories(std::initializer_list<std::string_view> names) {
  CodeSet all;
  for (const std::string_view name : names) all = all.united(*CodeSet::category(name));
  return all;
}

struct ClusterSets {
  CodeSet prepends{{{0x600, 0x606},
                    {0x6DD, 0x6DE},
                    {0x70F, 0x710},
                    {0x890, 0x892},
                    {0x8E2, 0x8E3},
                    {0xD4E, 0xD4F},
                    {0x110BD, 0x110BE},
                    {0x110CD, 0x110CE},
                    {0x111C2, 0x111C4},
                    {0x113D1, 0x113D2},
                    {0x1193F, 0x11940},
                    {0x11941, 0x11942},
                    {0x11A84, 0x11A8A},
                    {0x11D46, 0x11D47},
                    {0x11F02, 0x11F03}}};
  // Marks, but for those that are letters of their own, and what else continues a cluster.
  CodeSet extends = categories({"M"})
                        .united(CodeSet({{0x200C, 0x200E},
                                         {0xFF9E, 0xFFA0},
                                         {0xE33, 0xE34},
                                         {0xEB3, 0xEB4},
                                         {0x1F3FB, 0x1F400},
                                         {0xE0020, 0xE0080}}))
                        .intersected(CodeSet({{0x102B, 0x102D},
                                              {0x1038, 0x1039},
                                              {0x1062, 0x1065},
                                              {0x1067, 0x106E},
                                              {0x1083, 0x1084},
                                              {0x1087, 0x108D},
                                              {0x108F, 0x1090},
                                              {0x109A, 0x109D},
                                              {0x1A61, 0x1A62},
                                              {0x1A63, 0x1A65},
                                              {0xAA7B, 0xAA7C},
                                              {0xAA7D, 0xAA7E},
                                              {0x11720, 0x11722}})
                                         .inverted());
  // Nothing continues these, nor do they continue anything.
  CodeSet controls = categories({"Cc", "Cf", "Zl", "Zp"})
                         .united(CodeSet({{0x2065, 0x2066}, {0xFFF0, 0xFFF9}, {0xE0000, 0xE1000}}))
                         .intersected(extends.inverted())
                         .intersected(CodeSet({{0xE0100, 0xE01F0}}).inverted())
                         .intersected(prepends.inverted());
};

enum class Hangul { none, l, v, t, lv, lvt };

Hangul hangul_of(std::uint32_t code) {
  if (code >= 0xAC00 && code < 0xD7A4) return (code - 0xAC00) % 28 == 0 ? Hangul::lv : Hangul::lvt;
  if ((code >= 0x1100 && code < 0x1160) || (code >= 0xA960 && code < 0xA97D)) return Hangul::l;
  if ((code >= 0x1160 && code < 0x11A8) || (code >= 0xD7B0 && code < 0xD7C7)) return Hangul::v;
  if ((code >= 0x11A8 && code < 0x1200) || (code >= 0xD7CB && code < 0xD7FC)) return Hangul::t;
  return Hangul::none;
}

bool joins(Hangul left, Hangul right) {
  if (left == Hangul::l) return right != Hangul::none && right != Hangul::t;
  if (left == Hangul::lv || left == Hangul::v) return right == Hangul::v || right == Hangul::t;
  return (left == Hangul::lvt || left == Hangul::t) && right == Hangul::t;
}

// Bytes of the cluster that a text begins with.
std::size_t cluster_length(std::string_view text) {
  static const ClusterSets sets;
  CodePoint last = decode(text);
  std::size_t length = last.length;
  if (last.code == '\r') return text.substr(1).starts_with('\n') ? 2 : 1;
  if (last.code < 0x80 && (length == text.size() || static_cast<std::uint8_t>(text[length]) < 0x80)) return length;
  if (sets.controls.contains(last.code)) return length;
  while (length < text.size()) {
    const CodePoint next = decode(text.substr(length));
    const bool same =
        !sets.controls.contains(next.code) && (sets.extends.contains(next.code) || sets.prepends.contains(last.code) ||
                                               joins(hangul_of(last.code), hangul_of(next.code)));
    if (!same) break;
    length += next.length;
    last = next;
  }
  return length;
}

}  // namespace

Charsmap::Charsmap(std::string_view bytes) {
  if (bytes.empty()) return;
  if (bytes.size() < 4) throw FormatError(cat("precompiled_charsmap: expected at least 4 bytes, found ", bytes.size()));
  const std::size_t trie = unit_at(bytes, 0);
  if (trie > bytes.size() - 4 || trie % 4 != 0) {
    throw FormatError(cat("precompiled_charsmap: a trie of ", trie,
                          " bytes, expected a multiple of 4 and no more than ", bytes.size() - 4));
  }
  units_.reserve(trie / 4);
  for (std::size_t at = 0; at < trie; at += 4) units_.push_back(unit_at(bytes, 4 + at));
  texts_ = bytes.substr(4 + trie);
}

Charsmap::Match Charsmap::find(std::string_view text, bool longest) const {
  Match match;
  if (units_.empty()) return match;
  std::size_t at = offset_of(units_[0]);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<std::uint8_t>(text[i]);
    at ^= byte;
    if (byte == 0 || at >= units_.size()) break;  // a NUL is what values have in the place of a label
    const std::uint32_t unit = units_[at];
    if (label_of(unit) != byte) break;
    at ^= offset_of(unit);
    if (!ends_string(unit)) continue;
    if (at >= units_.size()) break;
    const std::size_t place = units_[at] & 0x7FFFFFFFU;
    if (place > texts_.size()) break;
    const std::string_view rest = std::string_view(texts_).substr(place);
    match = {i + 1, rest.substr(0, rest.find('\0'))};
    if (!longest) break;
  }
  return match;
}

void check_charsmap(std::string_view bytes) { const Charsmap compiled(bytes); }

std::string Charsmap::by_clusters(std::string_view text) const {
  constexpr std::size_t kLongest = 5;
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    std::string_view cluster = text.substr(0, cluster_length(text));
    text.remove_prefix(cluster.size());
    if (cluster.size() <= kLongest) {
      if (const Match match = shortest(cluster); match.length > 0) {
        out.append(match.text);
        continue;
      }
    }
    while (!cluster.empty()) {
      const std::string_view character = cluster.substr(0, decode(cluster).length);
      const Match match = shortest(character);
      out.append(match.length > 0 ? match.text : character);
      cluster.remove_prefix(character.size());
    }
  }
  return out;
}

}  // namespace llama2cpp
