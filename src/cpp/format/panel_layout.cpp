#include "format/panel_layout.h"

#include "format/bf16.h"
#include "format/f16.h"
#include "format/llm_int8.h"

namespace llama2cpp {

PanelForm panel_form(const Weight& weight) {
  if (in_blocks(weight)) return PanelForm::blocks;
  const Format* const numbers = weight.format->in_panels_of != nullptr ? weight.format->in_panels_of : weight.format;
  if (weight.int8_input) return numbers == &kLlmInt8 ? PanelForm::llm_int8 : PanelForm::int8_group;
  if (weight.bf16_input) return PanelForm::bf16_pairs;
  if (numbers == &kF16) return PanelForm::f16;
  return numbers == &kBF16 ? PanelForm::bf16 : PanelForm::f32;
}

BlockLayout layout_of(const Weight& weight) {
  const BlockFacts& b = weight.format->blocks;
  int share = 0;
  while (b.zeros && share < 3 && (weight.group >= weight.cols || weight.group % (2 * kBlockCols << share) == 0))
    ++share;
  return {b.bits, b.offset, b.halves, b.sub_scales, b.minimum, b.zeros, share};
}

std::int64_t header_bytes(const BlockLayout& layout, std::int64_t blocks) {
  if (layout.zeros) return ((((blocks - 1) >> layout.share) + 1) * kZeroEntry + 63) / 64 * 64;
  const std::int64_t fields = layout.minimum ? 2 : 1;
  const std::int64_t scales = fields * 2 * kPanelRows;
  const std::int64_t bytes =
      layout.sub_scales ? scales + blocks * fields * layout.halves * kPanelRows : blocks * scales;
  return (bytes + 63) / 64 * 64;
}

std::int64_t unit_bytes(const BlockLayout& layout, std::int64_t blocks) {
  return header_bytes(layout, blocks) + blocks * layout.bits * kPanelRows * 4;
}

std::int64_t llm_int8_panel_bytes(const Weight& weight) {
  const auto fixed = static_cast<std::int64_t>(fixed_outliers(weight).size());
  return (group_bytes(weight.cols) + fixed * kPanelRows * 2 + 63) / 64 * 64;
}

std::int64_t panel_bytes(const Weight& weight, PanelForm form, std::int64_t cols) {
  switch (form) {
    case PanelForm::f32:
      return cols * kPanelRows * 4;
    case PanelForm::f16:
    case PanelForm::bf16:
      return cols * kPanelRows * 2;
    case PanelForm::bf16_pairs:
      return (cols + 1) / 2 * 2 * kPanelRows * 2;
    case PanelForm::int8_group:
      return cols / weight.group * group_bytes(weight.group);
    case PanelForm::llm_int8:
      return cols / weight.cols * llm_int8_panel_bytes(weight);
    case PanelForm::blocks:
      break;
  }
  constexpr std::int64_t kUnitCols = kUnitBlocks * kBlockCols;
  const BlockLayout layout = layout_of(weight);
  const std::int64_t rest = cols % kUnitCols / kBlockCols;
  return cols / kUnitCols * unit_bytes(layout, kUnitBlocks) + (rest > 0 ? unit_bytes(layout, rest) : 0);
}

}  // namespace llama2cpp
