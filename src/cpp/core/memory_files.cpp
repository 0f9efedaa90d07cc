// Parsers of /proc and of control groups' files. A file that is missing or says something else sets no limit.
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/available_memory.h"
#include "core/small_file.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kNoLimit = std::numeric_limits<std::size_t>::max();
constexpr std::size_t kMost = std::size_t{1} << 22;  // mountinfo is the longest: a line for each mount

std::size_t minus(std::size_t a, std::size_t b) { return a > b ? a - b : 0; }

// The number that a text begins with, after spaces. "max" is none.
std::optional<std::size_t> number(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
  std::size_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  return parsed.ec == std::errc{} ? std::optional(value) : std::nullopt;
}

std::optional<std::size_t> number_in(const std::string& path) { return number(read_beginning(path, kMost)); }

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t end = std::min(text.find(separator), text.size());
    parts.push_back(text.substr(0, end));
    if (end == text.size()) return parts;
    text.remove_prefix(end + 1);
  }
}

// The number of the line that begins with `name`: "MemAvailable:   123 kB", "inactive_file 456".
std::optional<std::size_t> number_of(std::string_view text, std::string_view name) {
  for (const std::string_view line : split(text, '\n')) {
    if (!line.starts_with(name)) continue;
    const std::string_view rest = line.substr(name.size());
    if (rest.starts_with(' ') || rest.starts_with('\t')) return number(rest);
  }
  return std::nullopt;
}

std::size_t kibibytes(std::string_view text, std::string_view name) {
  const std::size_t found = number_of(text, name).value_or(kNoLimit);
  return found > kNoLimit / 1024 ? kNoLimit : found * 1024;
}

// mountinfo writes spaces and their like as \040.
std::string without_escapes(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    int code = 0;
    if (text[i] == '\\' && i + 3 < text.size() &&
        std::from_chars(&text[i + 1], &text[i + 1] + 3, code, 8).ec == std::errc{}) {
      out += static_cast<char>(code);
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool has_option(std::string_view list, std::string_view wanted) {
  const std::vector<std::string_view> options = split(list, ',');
  return std::find(options.begin(), options.end(), wanted) != options.end();
}

// Where a hierarchy of groups is mounted, and which of its groups that is.
struct Mount {
  bool v2;
  std::string root;
  std::string point;
};

// 36 35 0:32 /docker/ab /sys/fs/cgroup/memory rw,nosuid shared:1 - cgroup cgroup rw,memory
std::vector<Mount> mounts_of_groups(const std::string& root) {
  const std::string text = read_beginning(root + "/proc/self/mountinfo", kMost);
  std::vector<Mount> mounts;
  for (const std::string_view line : split(text, '\n')) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string_view::npos) continue;
    const std::vector<std::string_view> left = split(line.substr(0, dash), ' ');
    const std::vector<std::string_view> right = split(line.substr(dash + 3), ' ');
    if (left.size() < 5 || right.size() < 3) continue;
    const bool v2 = right[0] == "cgroup2";
    if (!v2 && (right[0] != "cgroup" || !has_option(right[2], "memory"))) continue;
    mounts.push_back({v2, without_escapes(left[3]), without_escapes(left[4])});
  }
  // Where /proc is hidden, the usual places.
  if (text.empty()) mounts = {{true, "/", "/sys/fs/cgroup"}, {false, "/", "/sys/fs/cgroup/memory"}};
  return mounts;
}

// The process's group in a hierarchy: "0::/user.slice/x" is version 2's, "4:cpu,memory:/x" one of version 1.
std::string group_of(const std::string& root, bool v2) {
  const std::string text = read_beginning(root + "/proc/self/cgroup", kMost);
  for (const std::string_view line : split(text, '\n')) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string_view::npos || second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? controllers.empty() : has_option(controllers, "memory")) return std::string(line.substr(second + 1));
  }
  return "/";
}

// `group` seen from the mount: "" for the mount's own, "/a/b" for one below it; nothing where it lies elsewhere.
std::optional<std::string> below(const Mount& mount, const std::string& group) {
  if (group.starts_with("/..")) return std::nullopt;  // outside the namespace
  const std::string top = mount.root == "/" ? "" : mount.root;
  if (!group.starts_with(top)) return std::nullopt;
  const std::string rest = group.substr(top.size());
  if (rest.empty() || rest == "/") return "";
  return rest.starts_with('/') ? std::optional(rest) : std::nullopt;
}

// Limit, minus what is used, with the page cache that can be dropped counted back.
std::size_t left(std::optional<std::size_t> limit, std::optional<std::size_t> used, std::size_t cache) {
  if (!limit || !used) return kNoLimit;
  return minus(*limit, minus(*used, cache));
}

std::size_t left_in_v2(const std::string& folder) {
  const auto limit = std::min(number_in(folder + "/memory.max").value_or(kNoLimit),
                              number_in(folder + "/memory.high").value_or(kNoLimit));
  if (limit == kNoLimit) return kNoLimit;
  const std::string stat = read_beginning(folder + "/memory.stat", kMost);
  std::size_t cache = 0;
  for (const char* name : {"inactive_file", "active_file", "slab_reclaimable"})
    cache += number_of(stat, name).value_or(0);
  return left(limit, number_in(folder + "/memory.current"), cache);
}

std::size_t left_in_v1(const std::string& folder) {
  const std::string stat = read_beginning(folder + "/memory.stat", kMost);
  // The least of the groups above as well, those that cannot be seen from here among them.
  const std::size_t above = number_of(stat, "hierarchical_memory_limit").value_or(kNoLimit);
  const auto limit = std::min(number_in(folder + "/memory.limit_in_bytes").value_or(kNoLimit), above);
  if (limit == kNoLimit) return kNoLimit;
  std::size_t cache = 0;
  for (const char* name : {"total_inactive_file", "total_active_file"}) cache += number_of(stat, name).value_or(0);
  return left(limit, number_in(folder + "/memory.usage_in_bytes"), cache);
}

// The group at `path` below the mount and those above it, up to the mount.
std::size_t left_from(const std::string& root, const Mount& mount, std::string path) {
  const std::string top = root + mount.point;
  std::size_t least = kNoLimit;
  for (bool own = true;; own = false) {
    const std::string folder = top + path;
    // Version 1's groups may be told not to count what is below them.
    const bool counts = mount.v2 || own || number_in(folder + "/memory.use_hierarchy").value_or(1) != 0;
    if (counts) least = std::min(least, mount.v2 ? left_in_v2(folder) : left_in_v1(folder));
    if (path.empty()) return least;
    path.resize(path.rfind('/'));
  }
}

std::size_t left_in_groups(const std::string& root) {
  const std::vector<Mount> mounts = mounts_of_groups(root);
  std::size_t least = kNoLimit;
  for (const bool v2 : {true, false}) {
    const std::string group = group_of(root, v2);
    bool seen = false;
    for (const Mount& mount : mounts) {
      const auto path = mount.v2 == v2 ? below(mount, group) : std::nullopt;
      if (!path) continue;
      seen = true;
      least = std::min(least, left_from(root, mount, *path));
    }
    // A namespace shows the group under another name, or not at all: then what is mounted is the nearest that is known.
    for (const Mount& mount : mounts) {
      if (!seen && mount.v2 == v2) least = std::min(least, left_from(root, mount, ""));
    }
  }
  return least;
}

}  // namespace

std::size_t available_in_files(const std::string& root) {
  const std::string meminfo = read_beginning(root + "/proc/meminfo", kMost);
  std::size_t least = kibibytes(meminfo, "MemAvailable:");
  if (number_in(root + "/proc/sys/vm/overcommit_memory") == std::size_t{2}) {
    const std::size_t limit = kibibytes(meminfo, "CommitLimit:");
    const std::size_t taken = kibibytes(meminfo, "Committed_AS:");
    if (limit != kNoLimit && taken != kNoLimit) least = std::min(least, minus(limit, taken));
  }
  return std::min(least, left_in_groups(root));
}

std::size_t available_under_limit(std::size_t limit, const std::string& status, const std::string& line) {
  const std::size_t taken = kibibytes(status, line);
  return limit == kNoLimit || taken == kNoLimit ? limit : minus(limit, taken);
}

}  // namespace llama2cpp
