// How much memory there is: the least of what the machine, this process's control groups and its own limits leave.
#pragma once

#include <cstddef>
#include <string>

namespace llama2cpp {

// Bytes that this process can still take, without swapping and without being refused or killed.
std::size_t available_memory();

// What Linux's files say of it, read below `root` ("" is the machine's; tests make trees of their own): MemAvailable; the
// commit limit, where there is no overcommitting; and of the process's control group (version 1 or 2, wherever it is
// mounted) and each one above it that can be seen, the limit minus what is used and is no page cache. The greatest number,
// where nothing says anything.
std::size_t available_in_files(const std::string& root);

// What `limit` leaves of `bytes` where a line of /proc/self/status ("VmSize:", "VmData:") says how much is taken.
std::size_t available_under_limit(std::size_t limit, const std::string& status, const std::string& line);

}  // namespace llama2cpp
