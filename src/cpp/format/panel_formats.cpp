#include "format/panel_formats.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "core/check.h"
#include "format/bf16.h"
#include "format/blocks.h"
#include "format/f16.h"
#include "format/f32.h"
#include "format/int8_group.h"
#include "format/llm_int8.h"

namespace llama2cpp {
namespace {

// Where the panel of a row begins, and which of its 16 the row is.
struct Lane {
  const std::byte* panel;
  std::int64_t index;
};

Lane lane_of(const Weight& weight, std::int64_t row) {
  const std::int64_t bytes = panel_bytes(weight, weight.format->form, weight.cols);
  return {weight.planes[0].data + row / kPanelRows * bytes, row % kPanelRows};
}

void decode_f32(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const auto [panel, lane] = lane_of(weight, row);
  for (std::int64_t k = 0; k < count; ++k) std::memcpy(out + k, panel + ((begin + k) * kPanelRows + lane) * 4, 4);
}

float bf16_at(const std::byte* p) { return std::bit_cast<float>(static_cast<std::uint32_t>(u16_at(p)) << 16); }

template <auto kWiden>
void decode_16(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const auto [panel, lane] = lane_of(weight, row);
  for (std::int64_t k = 0; k < count; ++k) out[k] = kWiden(panel + ((begin + k) * kPanelRows + lane) * 2);
}

void decode_int8(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const auto [panel, lane] = lane_of(weight, row);
  const std::int64_t bytes = group_bytes(weight.group);
  for (std::int64_t k = begin; k < begin + count; ++k) {
    const std::byte* const group = panel + k / weight.group * bytes;
    const std::int64_t i = k % weight.group;
    float scale = 0.0F;
    std::memcpy(&scale, group + bytes - (kPanelRows - lane) * 4, sizeof(scale));
    const int value = byte_at(group + (i / 4 * kPanelRows + lane) * 4 + i % 4) - 128;
    *out++ = static_cast<float>(value) * scale;
  }
}

// Whole rows are groups; the weights of fixed columns lie behind them as halves.
void decode_rows_int8(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  decode_int8(weight, row, begin, count, out);
  const auto [panel, lane] = lane_of(weight, row);
  const std::byte* half = panel + group_bytes(weight.cols) + lane * 2;
  for (const std::int32_t column : fixed_outliers(weight)) {
    if (column >= begin && column < begin + count) out[column - begin] = half_at(half);
    half += kPanelRows * 2;
  }
}

// The 32 codes of one lane, from a block's planes.
void read_codes(const std::byte* planes, int bits, std::int64_t lane, std::array<std::uint8_t, kBlockCols>& codes) {
  codes.fill(0);
  int from = 0;  // bits that earlier planes had
  for (int width = 8; width >= 1; width /= 2) {
    if ((bits & width) == 0) continue;
    const int mask = (1 << width) - 1;
    for (std::size_t k = 0; k < kBlockCols; ++k) {
      const int at = static_cast<int>(k / 4) * width;  // of the quad, in bits
      const std::byte* const word = planes + ((at / 8) * kPanelRows + lane) * 4;
      codes[k] = static_cast<std::uint8_t>(codes[k] | (byte_at(word + k % 4) >> at % 8 & mask) << from);
    }
    from += width;
    planes += width * kPanelRows * 4;
  }
}

void integers(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const auto [panel, lane] = lane_of(weight, row);
  const BlockLayout layout = layout_of(weight);
  const std::int64_t unit = block / kUnitBlocks;
  const std::int64_t blocks = std::min(kUnitBlocks, weight.cols / kBlockCols - unit * kUnitBlocks);
  const std::int64_t i = block % kUnitBlocks;
  const std::byte* const header = panel + unit * unit_bytes(layout, kUnitBlocks);

  const std::int64_t fields = layout.minimum ? 2 : 1;
  const std::byte* scales = header;
  if (layout.zeros) {
    scales += (i >> layout.share) * kZeroEntry;
    out.zero = static_cast<std::int8_t>(byte_at(scales + 2 * kPanelRows + lane));
  } else if (!layout.sub_scales) {
    scales += i * fields * 2 * kPanelRows;
  }
  out.d = half_at(scales + 2 * lane);
  if (layout.minimum) {
    out.dm = half_at(scales + 2 * (kPanelRows + lane));
    out.m = {1, 1};
  }
  if (layout.sub_scales) {
    const std::byte* const sub = header + (fields * 2 + i * fields * layout.halves) * kPanelRows + lane;
    for (std::int64_t h = 0; h < 2; ++h) {
      const std::int64_t half = std::min<std::int64_t>(h, layout.halves - 1);
      const auto at = static_cast<std::size_t>(h);
      out.sub[at] = static_cast<std::int8_t>(byte_at(sub + half * kPanelRows));
      if (layout.minimum) out.m[at] = static_cast<std::int8_t>(byte_at(sub + (layout.halves + half) * kPanelRows));
    }
  }
  std::array<std::uint8_t, kBlockCols> codes;
  read_codes(header + header_bytes(layout, blocks) + i * layout.bits * kPanelRows * 4, layout.bits, lane, codes);
  for (std::size_t k = 0; k < kBlockCols; ++k) out.q[k] = static_cast<std::int8_t>(codes[k] - layout.offset);
}

// As GPTQ's own decode: columns in the file's order.
void decode_zeros(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const auto* const order = reinterpret_cast<const std::int32_t*>(weight.order.data());
  const std::int64_t first = order == nullptr ? begin / kBlockCols : 0;
  const std::int64_t last = order == nullptr ? (begin + count) / kBlockCols : weight.cols / kBlockCols;
  IntegerBlock b;
  for (std::int64_t block = first; block < last; ++block) {
    integers(weight, row, block, b);
    for (std::size_t k = 0; k < kBlockCols; ++k) {
      const std::int64_t place = block * kBlockCols + static_cast<std::int64_t>(k);
      const std::int64_t column = order == nullptr ? place : order[place];
      if (column < begin || column >= begin + count) continue;
      out[column - begin] = b.d * static_cast<float>(b.q[k] - b.zero);
    }
  }
}

Format blocks_of(const Format& numbers) {
  Format format = numbers;
  format.integers = integers;
  format.decode = numbers.blocks.zeros     ? decode_zeros
                  : numbers.blocks.minimum ? decode_blocks<integers, true>
                                           : decode_blocks<integers, false>;
  return format;
}

Format floats_of(const Format& numbers, PanelForm form) {
  Format format = numbers;
  format.integers = nullptr;
  format.blocks = {};
  format.decode = form == PanelForm::f32   ? decode_f32
                  : form == PanelForm::f16 ? decode_16<half_at>
                                           : decode_16<bf16_at>;
  return format;
}

// Of each format in the list: its natural form, and where that is blocks, f32, for weights that come in none.
std::vector<Format> make_formats() {
  std::vector<Format> all;
  const auto add = [&](const Format& numbers, PanelForm form, Format format) {
    format.in_panels_of = &numbers;
    format.form = form;
    format.encode = nullptr;
    format.units = nullptr;
    all.push_back(format);
  };
  for (const Format* numbers : all_formats()) {
    if (numbers->integers != nullptr) {
      add(*numbers, PanelForm::blocks, blocks_of(*numbers));
      if (numbers->group == 0) add(*numbers, PanelForm::f32, floats_of(*numbers, PanelForm::f32));
    } else if (numbers == &kInt8Group) {
      Format format = *numbers;
      format.decode = decode_int8;
      add(*numbers, PanelForm::int8_group, format);
    } else if (numbers == &kLlmInt8) {
      Format format = *numbers;
      format.decode = decode_rows_int8;
      add(*numbers, PanelForm::llm_int8, format);
    } else if (numbers->group == 1 && !numbers->quantized) {
      const PanelForm form = numbers == &kF16 ? PanelForm::f16 : numbers == &kBF16 ? PanelForm::bf16 : PanelForm::f32;
      add(*numbers, form, floats_of(*numbers, form));
    }
  }
  return all;
}

}  // namespace

PanelForm stored_form(const Weight& weight) {
  Weight rounded = weight;
  const std::string_view name = weight.format->name;
  rounded.bf16_input = false;
  rounded.int8_input = in_blocks(weight) || name == kInt8Group.name || name == kLlmInt8.name;
  return panel_form(rounded);
}

const Format* in_panels(const Format& numbers, PanelForm form) {
  static const std::vector<Format> all = make_formats();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Format& format) {
    return format.in_panels_of == &numbers && format.form == form;
  });
  return found == all.end() ? nullptr : &*found;
}

Weight plain_matrix(std::string name, const Format& format, std::int64_t rows, std::int64_t cols) {
  Weight weight;
  weight.name = std::move(name);
  weight.format = &format;
  weight.rows = rows;
  weight.cols = cols;
  weight.group = format.group;
  LLAMA2CPP_CHECK(rows >= 1 && cols >= 1, "'", weight.name, "' is ", shape_text(weight),
                  ", expected at least one number");
  LLAMA2CPP_CHECK(weight.group > 0 && cols % weight.group == 0, "'", weight.name, "' is ", shape_text(weight),
                  ", whose rows cannot be ", format.name);
  return weight;
}

Weight as_in_panel_file(Weight weight) {
  if (weight.format->in_panels_of != nullptr) return weight;
  const Format* const format = in_panels(*weight.format, stored_form(weight));
  LLAMA2CPP_CHECK(format != nullptr, "'", weight.name, "' is ", weight.format->name,
                  ", which a file of panels cannot hold");
  LLAMA2CPP_CHECK(format->form != PanelForm::int8_group || weight.group <= kMostInt8Group, "'", weight.name,
                  "' is in groups of ", weight.group, ", expected at most ", kMostInt8Group);
  // GPTQ's that cannot be blocks are floats, and in groups of one a reader sees that.
  if (format->form == PanelForm::f32 && weight.format->group == 0) weight.group = 1;
  weight.format = format;
  if (format->form != PanelForm::blocks) weight.order = {};
  return weight;
}

std::size_t stored_bytes(const Weight& weight) {
  // A column takes at most 128 bytes of a panel: int8 in groups of one.
  checked_mul(static_cast<std::size_t>(weight.cols), std::size_t{128} * 2, weight.name.c_str());
  const auto bytes = static_cast<std::size_t>(panel_bytes(weight, weight.format->form, weight.cols));
  return checked_mul(static_cast<std::size_t>(panel_count(weight)), bytes, weight.name.c_str());
}

}  // namespace llama2cpp
