// Rows of numbers to weight formats and back, shared by threads. All throw std::invalid_argument for what cannot be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "core/thread_pool.h"
#include "format/format.h"

namespace llama2cpp {

// The format of that name, which must have rows of its own.
const Format& find_row_format(std::string_view name);

// Bytes of a row of so many columns, and the opposite: whole groups only.
std::int64_t checked_row_bytes(const Format& format, std::int64_t columns);
std::int64_t checked_row_columns(const Format& format, std::int64_t bytes);

// As many threads as it pays to start for `count` numbers in `rows` rows, at most `wanted`.
int threads_for_rows(std::int64_t rows, std::int64_t count, std::optional<int> wanted = {});

// from [rows, columns] -> to [rows, row_bytes]. importance [columns] or empty; see Format::encode. Quantized formats take
// magnitudes up to 65,504, the largest of f16.
void encode_rows(const Format& format, std::span<const float> from, std::int64_t columns,
                 std::span<const float> importance, std::byte* to, ThreadPool& pool);

// from [rows, row_bytes] -> to [rows, columns]
void decode_rows(const Format& format, std::span<const std::byte> from, std::int64_t columns, float* to,
                 ThreadPool& pool);

// from [rows, columns] -> q [rows, columns] and scales [rows, columns / group]; see encode_int8_group.
void encode_int8_groups(std::span<const float> from, std::int64_t columns, std::int64_t group, std::int8_t* q,
                        float* scales, ThreadPool& pool);

// from [rows, columns] -> q [rows, columns] and largest [rows]; see encode_llm_int8.
void encode_llm_int8_rows(std::span<const float> from, std::int64_t columns, std::int8_t* q, float* largest,
                          ThreadPool& pool);

}  // namespace llama2cpp
