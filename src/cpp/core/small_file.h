// What the system says of itself in /proc and /sys. Those files have no size until they are read; files of users are opened
// by File.
#pragma once

#include <cstddef>
#include <string>

namespace llama2cpp {

// The first `most` bytes of a file, or all of a shorter one. Nothing of one that cannot be read.
std::string read_beginning(const std::string& path, std::size_t most);

}  // namespace llama2cpp
