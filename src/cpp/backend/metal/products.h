// Products of activations and weights, and rows of weights: Backend::matmul and Backend::embed. A weight is read as its file
// stores it; what is said of a format is its file in kernels/formats, and a line of the table in products.cpp.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "backend/backend.h"
#include "backend/metal/tools.h"

namespace llama2cpp::metal {

// Why a weight cannot be multiplied here: "there is no Metal kernel for weights of format f64". Empty where it can.
std::string refused(const Weight& weight);

// The kernels of a weight that is not refused: of kernels/formats.
std::string_view library_of(const Weight& weight);

// As Backend's, after op_checks. Throw FormatError for a weight that is refused.
void matmul(Tools& tools, std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs,
            const Norm& norm);
void embed(Tools& tools, const Weight& table, std::span<const std::int32_t> tokens, const Tensor& out);

}  // namespace llama2cpp::metal
