// Names that nobody guesses and two processes do not both take.
#pragma once

#include <string>

namespace llama2cpp {

std::string random_name();  // 16 hexadecimal digits
bool is_random_name(const std::string& text);

}  // namespace llama2cpp
