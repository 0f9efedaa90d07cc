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
  use_huge_pages(count);
  touched_ = count;
}

// Decoding reads all keys and values in each step, and looks up every 4 kB of them anew: more than caches of addresses
// hold. Huge pages that reach beyond `count` would take memory that is never used, so there are none before half of the
// context is in use; then all of it has them, which takes twice the memory at most.
void KvCache::use_huge_pages(std::int64_t count) {
  const auto bytes = static_cast<std::int64_t>(memory_.size());
  constexpr auto kPage = static_cast<std::int64_t>(kHugePage);
  if (!backend_.reserves() || bytes < 4 * kPage) return;
  const std::int64_t head = bytes / (n_layers_ * 2 * n_kv_heads_);
  const bool half = 2 * count >= context_;
  const std::int64_t used = half ? head : head / context_ * count;
  if (used / kPage == huge_ / kPage && (!half || used == huge_)) return;
  huge_ = used;
  if (half) {
    if (backend_.memory_left() / 2 >= memory_.size()) memory_.use_huge_pages(memory_.data(), memory_.size());
  } else {
    for (std::int64_t at = 0; at < bytes; at += head) {
      memory_.use_huge_pages(memory_.data() + at, static_cast<std::size_t>(used));
    }
  }
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
