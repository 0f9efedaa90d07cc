// core/numbers.cpp as it is where <charconv> knows no doubles, beside the other: test_numbers.cpp compares the two.
#include <charconv>
#include <string>
#ifdef __cpp_lib_to_chars
#undef __cpp_lib_to_chars
#endif
#define llama2cpp llama2cpp_without_charconv
#include "core/numbers.cpp"
