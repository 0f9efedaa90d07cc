// What is about to be allocated, against what there is: an absurd request ends with a message and not with a killed
// process.
#pragma once

#include <cstddef>
#include <string>

#include "core/available_memory.h"

namespace llama2cpp {

// "1.234 GB"
std::string gigabytes(double bytes);

// Bytes from which on it pays to ask first: asking costs less than touching so much for the first time.
inline constexpr double kWorthChecking = 64.0 * (1 << 20);

// Throws OutOfMemoryError, if `bytes` are more than are available: "<what> <bytes> <details>, and ... are available:
// <advice>".
void need_memory(double bytes, const std::string& what, const std::string& details, const std::string& advice,
                 std::size_t available = available_memory());

// For an allocation that the system has refused: OutOfMemoryError with both numbers.
[[noreturn]] void throw_no_memory(std::size_t bytes);

}  // namespace llama2cpp
