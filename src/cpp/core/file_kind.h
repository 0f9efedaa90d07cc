// What a file is by its first bytes, in words for error messages; and what stands in a file's place where a download
// went wrong, which every reader refuses by its name before it looks for its own format.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace llama2cpp {

// The bytes that the functions here look at. More of a file makes no difference.
inline constexpr std::size_t kFileKindBytes = 512;

// "a Git LFS pointer, ...", "an HTML page, ...": empty for bytes that may be the file itself.
std::string_view find_stand_in(std::span<const std::byte> file);

// Throws FormatError for such a file: "expected <what>, found a Git LFS pointer, ...".
void refuse_stand_in(std::span<const std::byte> file, std::string_view what);

// Any other kind that people give where a checkpoint is expected; empty for bytes that say nothing.
std::string_view find_file_kind(std::span<const std::byte> file);

// "47 47 55 46 (GGUF)": at most eight bytes.
std::string first_bytes(std::span<const std::byte> file);

}  // namespace llama2cpp
