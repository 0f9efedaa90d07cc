// What the files for Windows share: its own header, without what gets in the way, and its errors as exceptions.
#pragma once

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <string>
#include <system_error>

namespace llama2cpp {

[[noreturn]] inline void throw_last_error(const std::string& path) {
  throw std::system_error(static_cast<int>(GetLastError()), std::system_category(), path);
}

}  // namespace llama2cpp
