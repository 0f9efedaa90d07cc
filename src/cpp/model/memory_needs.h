// What is about to be allocated, against what there is: an absurd request ends with a message and not with a killed
// process.
#pragma once

#include <string>

namespace llama2cpp {

// "1.234 GB"
std::string gigabytes(double bytes);

// Throws OutOfMemoryError, if `bytes` are not available: "<what> <bytes> <details>, and ... are available: <advice>".
void need_memory(double bytes, const std::string& what, const std::string& details, const std::string& advice);

}  // namespace llama2cpp
