// Each system's own way to ask.
#include "core/available_memory.h"

#include <algorithm>
#include <limits>

#include "core/small_file.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#elif defined(__linux__)
#include <sys/resource.h>
#elif defined(__APPLE__)
#include <mach/mach.h>
#else
#include <unistd.h>
#endif

namespace llama2cpp {

#ifdef _WIN32

std::size_t available_memory() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof(status);
  if (!GlobalMemoryStatusEx(&status)) return std::numeric_limits<std::size_t>::max();
  // What memory, the page file (memory is committed) and this process's addresses leave.
  return static_cast<std::size_t>(std::min({status.ullAvailPhys, status.ullAvailPageFile, status.ullAvailVirtual}));
}

#elif defined(__linux__)

std::size_t available_memory() {
  std::size_t least = available_in_files("");
  std::string status;
  const auto limit = [&](auto which, const char* line) {
    rlimit found{};
    if (::getrlimit(which, &found) != 0 || found.rlim_cur == RLIM_INFINITY) return;
    if (status.empty()) status = read_beginning("/proc/self/status", std::size_t{1} << 16);
    least = std::min(least, available_under_limit(static_cast<std::size_t>(found.rlim_cur), status, line));
  };
  limit(RLIMIT_AS, "VmSize:");
  limit(RLIMIT_DATA, "VmData:");
  return least;
}

#elif defined(__APPLE__)

std::size_t available_memory() {
  const mach_port_t host = mach_host_self();
  vm_statistics64_data_t memory{};
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  vm_size_t page = 0;
  const bool known =
      host_page_size(host, &page) == KERN_SUCCESS &&
      host_statistics64(host, HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&memory), &count) == KERN_SUCCESS;
  mach_port_deallocate(mach_task_self(), host);
  if (!known) return std::numeric_limits<std::size_t>::max();
  // Free pages, those of files and what programs said they can lose: all but what would have to be compressed or swapped. It
  // is what Activity Monitor does not count as used. Inactive pages are no measure: many are programs' own.
  std::size_t pages = 0;
  for (const natural_t count : {memory.free_count, memory.external_page_count, memory.purgeable_count}) pages += count;
  return pages * static_cast<std::size_t>(page);
}

#else

std::size_t available_memory() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page = ::sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page <= 0) return std::numeric_limits<std::size_t>::max();
  return static_cast<std::size_t>(pages) * static_cast<std::size_t>(page);
}

#endif

}  // namespace llama2cpp
