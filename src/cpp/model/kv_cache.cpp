// Where each layer's keys and values lie, and copying the part that is used.
#include "model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "core/check.h"
#include "core/memory_needs.h"

namespace llama2cpp {

std::string_view kv_name(DType dtype) { return dtype == DType::q8_0 ? "q8_0" : dtype == DType::f16 ? "f16" : "f32"; }

KvCache::KvCache(const Config& config, std::int64_t context, DType dtype, Backend& backend)
    : n_layers_(config.n_layers),
      n_kv_heads_(config.n_kv_heads),
      context_(context),
      head_dim_(config.head_dim),
      dtype_(dtype),
      backend_(backend) {
  config.check_context(context);
  // No product of integers: `context` may be a number that nobody would count to.
  const double bytes = static_cast<double>(context) * static_cast<double>(row_bytes());
  constexpr double kAddresses = 9e18;  // less than 2^63: what no system has, and what still is a size_t
  try {
    if (bytes > kAddresses) throw std::bad_alloc();
    memory_ = backend.reserve(static_cast<std::size_t>(context) * static_cast<std::size_t>(row_bytes()));
  } catch (const std::bad_alloc&) {
    throw OutOfMemoryError(cat("a context of ", context, " tokens needs ", gigabytes(bytes),
                               " of addresses for keys and values, and ",
                               gigabytes(static_cast<double>(std::min(backend.memory_left(), backend.largest_piece()))),
                               " of memory are available: ask for a smaller context"));
  }
  if (!backend.reserves()) touched_ = context;  // all of it was taken
}

Tensor KvCache::view(std::int64_t layer, std::int64_t which) const {
  LLAMA2CPP_CHECK(layer >= 0 && layer < n_layers_, "layer is ", layer, ", expected 0 to ", n_layers_ - 1);
  const std::int64_t numbers = n_kv_heads_ * context_ * head_dim_;
  return {memory_.data() + (layer * 2 + which) * bytes_of(dtype_, numbers), dtype_, {n_kv_heads_, context_, head_dim_}};
}

void KvCache::need(std::int64_t count) {
  if (count <= touched_) return;
  const double bytes = static_cast<double>(count - touched_) * static_cast<double>(row_bytes());
  if (bytes >= kWorthChecking) {
    need_memory(bytes, cat("room for keys and values of ", count - touched_, " positions"), "", "use fewer tokens",
                backend_.memory_left());
  }
  touched_ = count;
}

void KvCache::copy_from(const KvCache& other, std::int64_t count) {
  need(count);
  const std::int64_t row = bytes_of(dtype_, head_dim_);
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
