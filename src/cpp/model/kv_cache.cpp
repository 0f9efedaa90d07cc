// Where each layer's keys and values lie, and copying the part that is used.
#include "model/kv_cache.h"

#include <cstring>

#include "core/check.h"

namespace llama2cpp {

KvCache::KvCache(const Config& config, std::int64_t context, DType dtype)
    : n_layers_(config.n_layers),
      n_kv_heads_(config.n_kv_heads),
      context_(context),
      head_dim_(config.head_dim),
      dtype_(dtype) {
  config.check_context(context);
  std::size_t bytes = static_cast<std::size_t>(size_of(dtype)) * 2;
  for (const std::int64_t size : {n_layers_, n_kv_heads_, context_, head_dim_}) {
    bytes = checked_mul(bytes, static_cast<std::size_t>(size), "KV cache");
  }
  memory_ = Buffer::reserve(bytes);
}

Tensor KvCache::view(std::int64_t layer, std::int64_t which) const {
  LLAMA2CPP_CHECK(layer >= 0 && layer < n_layers_, "layer is ", layer, ", expected 0 to ", n_layers_ - 1);
  const std::int64_t floats = n_kv_heads_ * context_ * head_dim_;
  return {memory_.data() + (layer * 2 + which) * floats * size_of(dtype_), dtype_, {n_kv_heads_, context_, head_dim_}};
}

void KvCache::copy_from(const KvCache& other, std::int64_t count) {
  const std::int64_t row = head_dim_ * size_of(dtype_);
  for (std::int64_t layer = 0; layer < n_layers_; ++layer) {
    for (std::int64_t which = 0; which < 2; ++which) {
      auto* to = static_cast<std::byte*>(view(layer, which).data);
      const auto* from = static_cast<const std::byte*>(other.view(layer, which).data);
      for (std::int64_t head = 0; head < n_kv_heads_; ++head) {
        std::memcpy(to + head * context_ * row, from + head * other.context_ * row,
                    static_cast<std::size_t>(count * row));
      }
    }
  }
}

}  // namespace llama2cpp
