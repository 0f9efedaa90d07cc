// THE list of kernels, for the ISA file that includes this last in its anonymous namespace: it has defined kIsaName, the
// registers f32x16 and i32x16 with their operations, and how much is in flight: isa/scalar.cpp has all that in plain C++.

// In this order: each builds on the ones before.
// clang-format off
#include "backend/cpu/tiles.inl"
#include "backend/cpu/activations.inl"
#include "backend/cpu/activation_gradients.inl"
#include "backend/cpu/elementwise.inl"
#include "backend/cpu/attention.inl"
#include "backend/cpu/attention_q8.inl"
#include "backend/cpu/matmul_blocks.inl"
#include "backend/cpu/unpack_blocks.inl"
#include "backend/cpu/llm_int8.inl"
#include "backend/cpu/wide_blocks.inl"
#include "backend/cpu/matmul.inl"
#include "backend/cpu/matmul_pairs.inl"
#include "backend/cpu/llama2c_q8.inl"
#include "backend/cpu/llama2c_order.inl"
// clang-format on

[[maybe_unused]] constexpr KernelTable kTable{
    .name = kIsaName,
    .tile = kTileTokens,
    .packed_tokens = kPackedTokens,
    .most_scores = kMostScores,
    .matmul_f32 = matmul_float<FromF32>,
    .matmul_f16 = matmul_float<FromF16>,
    .matmul_bf16 = matmul_float<FromBf16>,
    .matmul_pairs = matmul_pairs<FloatProducts>,
    .matmul_int8 = matmul_int8,
    .quantize = quantize,
    .matmul_blocks = matmul_blocks,
    .matmul_open = matmul_open,
    .matmul_wide = matmul_wide,
    .unpack_blocks = unpack_blocks,
    .widen_blocks = widen_blocks,
    .quantize_blocks = quantize_blocks,
    .matmul_llm_int8 = matmul_llm_int8,
    .quantize_row = quantize_row,
    .sum_squares = sum_squares,
    .scale = scale,
    .center = center,
    .add = add_vectors,
    .gated = gated,
    .gated_gradient = gated_gradient,
    .soft_cap = soft_cap,
    .rope_interleaved = rope_interleaved,
    .rope_half_split = rope_half_split,
    .narrow = narrow,
    .narrow_bf16 = narrow_bf16,
    .turn_rows = turn_rows,
    .scores_f32 = scores<float>,
    .scores_f16 = scores<std::uint16_t>,
    .scores_q8 = scores_q8,
    .softmax = softmax,
    .mix_f32 = mix<float>,
    .mix_f16 = mix<std::uint16_t>,
    .mix_q8 = mix_q8,
};
[[maybe_unused]] constexpr KernelTable kLlama2cTable = llama2c_order::in_order(kTable);

inline const KernelTable* kernels(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::llama2c ? &kLlama2cTable : &kTable;
}

// For an ISA that differs from another in its products of integers alone: the other's kernels, with these in place of
// them. Compiling the rest a second time would take as long again, and give the same code.
inline KernelTable with_integer_products(KernelTable other) noexcept {
  other.name = kIsaName;
  other.packed_tokens = kPackedTokens;
  other.matmul_int8 = matmul_int8;
  other.matmul_blocks = matmul_blocks;
  other.matmul_open = matmul_open;
  other.matmul_llm_int8 = matmul_llm_int8;
  return other;
}
