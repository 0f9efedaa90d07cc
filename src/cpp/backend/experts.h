// What ops on routed experts take: a token goes to k of the E experts, each of which has weights of its own.
//
// A place is one of a token's experts: place t * k + j is token t's j-th, in ascending order of the experts' numbers.
#pragma once

#include <cstdint>
#include <span>

#include "core/router_order.h"
#include "core/tensor.h"
#include "format/format.h"

namespace llama2cpp {

// How a router's scores become weights.
struct Routing {
  RouterOrder order = RouterOrder::softmax_topk;
  bool renormalise = false;  // softmax_topk: the k weights are divided by their sum
  float scale = 1.0F;        // and then multiplied by this
};

// One of the matrices that all experts have: expert e's is [e], and all have the same shape.
using ExpertWeights = std::span<const Weight>;

}  // namespace llama2cpp
