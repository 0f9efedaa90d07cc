// Weights of mapped files in memory: read from the file instead of touched in its map, so that a file that has become shorter or a
// disk that fails is an exception.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "format/format.h"

namespace llama2cpp {

// Whether any plane lies in a mapped file.
bool is_mapped(const Weight& weight);

// Appends the mapped files of a weight to a list, each once.
void add_files(const Weight& weight, std::vector<Buffer>& files);

// Whether what lies in mapped files are rows, one after another, in every plane. GPTQ's planes and panels are none.
bool has_file_rows(const Weight& weight);

// Bytes of memory that read_rows fills.
std::size_t rows_memory(const Weight& weight, std::int64_t rows);

// Rows [first, first + rows) as a weight of its own, without a name, whose planes are in `memory`; planes that lie in memory
// already stay where they are, and must have no rows. Where has_file_rows(). Throws what File::read does.
Weight read_rows(const Weight& weight, std::int64_t first, std::int64_t rows, std::byte* memory);

}  // namespace llama2cpp
