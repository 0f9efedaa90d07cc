// In which order a router's scores become weights: softmax over all experts and then the k largest, or the k largest and then
// softmax over those.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace llama2cpp {

enum class RouterOrder : std::uint8_t { softmax_topk, topk_softmax };

inline std::string_view to_string(RouterOrder order) {
  return order == RouterOrder::softmax_topk ? "softmax_topk" : "topk_softmax";
}

inline constexpr RouterOrder kRouterOrders[] = {RouterOrder::softmax_topk, RouterOrder::topk_softmax};

}  // namespace llama2cpp
