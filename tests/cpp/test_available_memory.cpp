// How much memory there is, from made-up /proc and /sys/fs/cgroup: control groups of both versions, nested, hybrid, in
// containers with and without a namespace of their own; and what messages say of it.
#include <doctest/doctest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string>

#include "core/available_memory.h"
#include "core/check.h"
#include "core/memory_needs.h"
#include "core/small_file.h"

namespace {

namespace fs = std::filesystem;
using llama2cpp::available_in_files;
using llama2cpp::available_under_limit;

constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();
constexpr const char* kV2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
constexpr const char* kV1 =
    "33 25 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
    "34 25 0:30 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n";

using Files = std::map<std::string, std::string>;

std::size_t available(const Files& files) {
  static int count = 0;
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  const fs::path root = fs::temp_directory_path() / llama2cpp::cat("llama2cpp-memory-", now, "-", count++);
  for (const auto& [name, text] : files) {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name, std::ios::binary) << text;
  }
  const std::size_t found = available_in_files(root.string());
  fs::remove_all(root);
  return found;
}

// Files of one group: limit, use, and the page cache in it.
Files v2(const std::string& path, const std::string& limit, const std::string& used, const std::string& stat = "",
         const std::string& high = "max") {
  const std::string folder = "sys/fs/cgroup" + path + "/memory.";
  return {{folder + "max", limit + "\n"},
          {folder + "high", high + "\n"},
          {folder + "current", used + "\n"},
          {folder + "stat", stat}};
}

Files v1(const std::string& path, const std::string& limit, const std::string& used, const std::string& stat = "") {
  const std::string folder = "sys/fs/cgroup/memory" + path + "/memory.";
  return {{folder + "limit_in_bytes", limit + "\n"}, {folder + "usage_in_bytes", used + "\n"}, {folder + "stat", stat}};
}

Files together(std::initializer_list<Files> parts) {
  Files all;
  for (const Files& part : parts) all.insert(part.begin(), part.end());
  return all;
}

Files process(const std::string& mounts, const std::string& group) {
  return {{"proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts}, {"proc/self/cgroup", group}};
}

}  // namespace

TEST_CASE("the machine's own word") {
  CHECK(available({}) == kNone);
  CHECK(available({{"proc/meminfo", "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:    2000 kB\n"}}) == 2000 * 1024);
  CHECK(available({{"proc/meminfo", "MemTotal:  9000 kB\n"}}) == kNone);
  CHECK(available({{"proc/meminfo", "MemAvailable: no number\n"}}) == kNone);
  CHECK(available({{"proc/meminfo", "MemAvailable: 99999999999999999999 kB\n"}}) == kNone);
  const std::string committed = "MemAvailable: 2000 kB\nCommitLimit: 1500 kB\nCommitted_AS: 1000 kB\n";
  CHECK(available({{"proc/meminfo", committed}, {"proc/sys/vm/overcommit_memory", "0\n"}}) == 2000 * 1024);
  CHECK(available({{"proc/meminfo", committed}, {"proc/sys/vm/overcommit_memory", "2\n"}}) == 500 * 1024);
}

TEST_CASE("version 2: the least of all groups above, page cache counted back") {
  const Files own = process(kV2, "0::/a/b\n");
  CHECK(available(own) == kNone);
  CHECK(available(together({own, v2("/a/b", "max", "700")})) == kNone);
  CHECK(available(together({own, v2("/a/b", "1000", "700")})) == 300);
  CHECK(available(together({own, v2("/a/b", "1000", "1700")})) == 0);
  CHECK(available(together({own, v2("/a/b", "1000", "700",
                                    "anon 1\nfile 600\ninactive_file 100\nactive_file 50\n"
                                    "inactive_file_x 9\nslab_reclaimable 7\n")})) == 457);
  CHECK(available(together({own, v2("/a/b", "1000", "700", "inactive_file 9999\n")})) == 1000);  // counts may lag
  CHECK(available(together({own, v2("/a/b", "1000", "700", "", "800")})) == 100);                // memory.high
  CHECK(available(together({own, v2("/a/b", "max", "700", "", "800")})) == 100);
  CHECK(available(together({own, v2("/a/b", "1000", "700"), v2("/a", "5000", "4900")})) == 100);
  CHECK(available(together({own, v2("/a/b", "1000", "700"), v2("/a", "max", "4900"), v2("", "6000", "5950")})) == 50);
  CHECK(available(together({own, v2("/a/b", "1000", "700"), v2("/a/c", "10", "10"), v2("/a", "max", "1")})) == 300);
  CHECK(available(together({own, v2("/a/b", "1000", "700"), {{"proc/meminfo", "MemAvailable: 0 kB\n"}}})) == 0);
  // A limit without use says nothing.
  CHECK(available(together({own, {{"sys/fs/cgroup/a/b/memory.max", "1000\n"}}})) == kNone);
}

TEST_CASE("version 1: groups above, those that cannot be seen, and no limit at all") {
  const Files own = process(kV1, "5:cpu,cpuacct:/other\n4:memory:/a/b\n");
  const std::string unlimited = "9223372036854771712";
  CHECK(available(together({own, v1("/a/b", "1000", "700")})) == 300);
  CHECK(available(together({own, v1("/a/b", unlimited, "700")})) > std::size_t{1} << 60);
  CHECK(available(together({own, v1("/a/b", "1000", "700",
                                    "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 50\n")})) == 450);
  CHECK(available(together({own, v1("/a/b", "1000", "700"), v1("/a", "5000", "4900"), v1("", unlimited, "1")})) == 100);
  CHECK(available(together({own, v1("/a/b", unlimited, "700", "hierarchical_memory_limit 900\n")})) == 200);
  // A group that does not count those below it sets them no limit.
  const Files apart = {{"sys/fs/cgroup/memory/a/memory.use_hierarchy", "0\n"}};
  CHECK(available(together({own, v1("/a/b", "1000", "700"), v1("/a", "5000", "4900"), apart})) == 300);
  const std::string joined = "33 25 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,cpu,memory\n";
  CHECK(available(together({process(joined, "4:cpu,memory:/a\n"), v1("/a", "1000", "700")})) == 300);
}

TEST_CASE("hybrid: memory is version 1's while version 2 is mounted beside it") {
  const std::string unified = "31 25 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
  const Files own = process(unified + kV1, "4:memory:/a\n0::/a\n");
  CHECK(available(together({own, v1("/a", "1000", "700")})) == 300);
}

TEST_CASE("containers: the group under its own name, under a part of it, and under none") {
  // With a namespace the group is "/", and the mount shows it.
  CHECK(available(together({process(kV2, "0::/\n"), v2("", "1000", "700")})) == 300);
  // Without one the path is the host's, and a part of it is mounted.
  const std::string docker = "33 25 0:29 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
  CHECK(available(together({process(docker, "4:memory:/docker/ab\n"), v1("", "1000", "700")})) == 300);
  CHECK(available(together({process(docker, "4:memory:/docker/ab/in\n"), v1("/in", "1000", "700")})) == 300);
  // Version 2 with the host's path, which is not there in the container.
  CHECK(available(together({process(kV2, "0::/docker/ab\n"), v2("", "1000", "700")})) == 300);
  // A process from outside the namespace; one whose group merely begins with the same letters.
  CHECK(available(together({process(kV2, "0::/../../x\n"), v2("", "1000", "700")})) == 300);
  CHECK(available(together({process(docker, "4:memory:/docker/abc\n"), v1("", "1000", "700"), v1("c", "9", "9")})) ==
        300);
  // No /proc: the usual places.
  CHECK(available(v2("", "1000", "700")) == 300);
  CHECK(available(v1("", "1000", "700")) == 300);
  // A mount point with a space in its name.
  const std::string spaced = "30 25 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw\n";
  CHECK(available(together({process(spaced, "0::/a\n"),
                            {{"my groups/a/memory.max", "1000"}, {"my groups/a/memory.current", "700"}}})) == 300);
  // Lines that are cut off.
  CHECK(available(together(
            {process("30 25 0:26 / - cgroup2\n30 - \n - cgroup2 a b\n", "0::\nx\n:\n"), v2("", "1", "1")})) == kNone);
}

TEST_CASE("a limit of the process itself") {
  const std::string status = "Name:\tx\nVmPeak:\t    9000 kB\nVmSize:\t    1000 kB\nVmData:\t     300 kB\n";
  CHECK(available_under_limit(kNone, status, "VmSize:") == kNone);
  CHECK(available_under_limit(1500 * 1024, status, "VmSize:") == 500 * 1024);
  CHECK(available_under_limit(1500 * 1024, status, "VmData:") == 1200 * 1024);
  CHECK(available_under_limit(100, status, "VmSize:") == 0);
  CHECK(available_under_limit(100, "", "VmSize:") == 100);
}

TEST_CASE("messages have both numbers") {
  CHECK(llama2cpp::available_memory() > 0);
  try {
    llama2cpp::need_memory(5e18, "a test", "for nothing", "ask for less");
    FAIL("there cannot be so much");
  } catch (const llama2cpp::OutOfMemoryError& error) {
    const std::string message = error.what();
    CAPTURE(message);
    CHECK(message.starts_with("a test needs 5000000000 GB (for nothing), and "));
    CHECK(message.ends_with(" GB are available: ask for less"));
  }
  llama2cpp::need_memory(1, "a byte", "", "");
}

TEST_CASE("the beginning of a file is read as far as it goes") {
  const fs::path path = fs::temp_directory_path() / "llama2cpp-beginning";
  std::string text(100'000, 'x');
  text += "end";
  std::ofstream(path, std::ios::binary) << text;
  for (const std::size_t most :
       {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{4097}, text.size(), kNone}) {
    CHECK((llama2cpp::read_beginning(path.string(), most) == text.substr(0, most)));
  }
  fs::remove(path);
  CHECK(llama2cpp::read_beginning(path.string(), 5) == "");
  CHECK(llama2cpp::read_beginning(fs::temp_directory_path().string(), 5) == "");  // a folder
}
