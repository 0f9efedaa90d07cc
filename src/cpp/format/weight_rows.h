// Weights as numbers, and weights of mapped files in memory: read from the file instead of touched in its map, so that a file that has become shorter or a
// disk that fails is an exception.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "format/format.h"

namespace llama2cpp {

// Decoded numbers, of all rows, of some, and of the columns [begin, begin + count) of all, with no more of their neighbours than
// the format's groups demand. Throws std::invalid_argument for a row or columns that are not there, and what FileReads does.
void decode(const Weight& weight, float* out);                                           // -> [rows, cols]
void decode_rows(const Weight& weight, std::span<const std::int64_t> rows, float* out);  // -> [rows, cols]
void check_columns(const Weight& weight, std::int64_t begin, std::int64_t count);
void decode_columns(const Weight& weight, std::int64_t begin, std::int64_t count, float* out);  // -> [rows, count]

// Throws FormatError where a mapped file of a weight is not as it was opened.
void check_files(const Weight& weight);

// The numbers where they lie, if they are float32 and aligned; null: they have to be decoded.
const float* find_floats(const Weight& weight);

// A vector with a number added to each of its own, as float32 in memory: gains of files to which 1 is added, and back.
Weight with_added(const Weight& vector, float number);

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
