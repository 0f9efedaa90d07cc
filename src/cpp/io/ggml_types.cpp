// The numbers are those of ggml's enum ggml_type. Where one is missing here, ggml has given its type up.
#include "io/ggml_types.h"

#include <algorithm>
#include <iterator>

namespace llama2cpp {
namespace {

// Another type becomes readable with its header in format/ and the name of its Format in the third column.
constexpr GgmlType kTypes[] = {
    {0, "F32", "f32"},    {1, "F16", "f16"},        {2, "Q4_0", "q4_0"},      {3, "Q4_1", "q4_1"},
    {6, "Q5_0", "q5_0"},  {7, "Q5_1", "q5_1"},      {8, "Q8_0", "q8_0"},      {9, "Q8_1", ""},
    {10, "Q2_K", "q2_k"}, {11, "Q3_K", "q3_k"},     {12, "Q4_K", "q4_k"},     {13, "Q5_K", "q5_k"},
    {14, "Q6_K", "q6_k"}, {15, "Q8_K", ""},         {16, "IQ2_XXS", ""},      {17, "IQ2_XS", ""},
    {18, "IQ3_XXS", ""},  {19, "IQ1_S", ""},        {20, "IQ4_NL", "iq4_nl"}, {21, "IQ3_S", ""},
    {22, "IQ2_S", ""},    {23, "IQ4_XS", "iq4_xs"}, {24, "I8", ""},           {25, "I16", ""},
    {26, "I32", ""},      {27, "I64", ""},          {28, "F64", "f64"},       {29, "IQ1_M", ""},
    {30, "BF16", "bf16"}, {34, "TQ1_0", ""},        {35, "TQ2_0", ""},        {39, "MXFP4", "mxfp4"},
    {40, "NVFP4", ""},    {41, "Q1_0", ""},
};

}  // namespace

const GgmlType* find_ggml_type(std::uint32_t number) {
  const auto* const found =
      std::find_if(std::begin(kTypes), std::end(kTypes), [&](const GgmlType& type) { return type.number == number; });
  return found == std::end(kTypes) ? nullptr : found;
}

}  // namespace llama2cpp
