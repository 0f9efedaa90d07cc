// KvCache: the keys and values that one sequence has left behind, per layer [n_kv_heads][position][head_dim], so that a
// head streams. On the CPU the context is address space only: memory is taken as positions are used.
#pragma once

#include <string_view>

#include "backend/backend.h"
#include "core/buffer.h"
#include "core/config.h"
#include "core/tensor.h"

namespace llama2cpp {

// "f32", "f16" or "q8_0": a type of keys and values.
std::string_view kv_name(DType dtype);

class KvCache {
 public:
  // dtype: f32, f16 or q8_0. 1 <= context. The backend outlives the cache, but not what memory() is copied to.
  KvCache(const Config& config, std::int64_t context, DType dtype, Backend& backend);

  std::int64_t context() const { return context_; }
  DType dtype() const { return dtype_; }

  // [n_kv_heads, context, head_dim]
  Tensor keys(std::int64_t layer) const { return view(layer, 0); }
  Tensor values(std::int64_t layer) const { return view(layer, 1); }

  // Owns what the views point to: NumPy arrays keep it alive.
  const Buffer& memory() const { return memory_; }

  // Before positions [0, count) are written: throws OutOfMemoryError where those that never were do not fit into memory.
  void need(std::int64_t count);

  // Bytes of one position in all layers.
  std::int64_t row_bytes() const { return bytes_of(dtype_, n_layers_ * 2 * n_kv_heads_ * head_dim_); }

  // Copies positions [0, count) of another cache of the same model.
  void copy_from(const KvCache& other, std::int64_t count);

 private:
  Tensor view(std::int64_t layer, std::int64_t which) const;

  // Positions [0, count) are going to be in memory: where they fill huge pages, or half of all there is, they get some.
  void use_huge_pages(std::int64_t count);

  std::int64_t n_layers_, n_kv_heads_, context_, head_dim_;
  DType dtype_;
  const Backend& backend_;
  std::int64_t touched_ = 0;  // positions that have been asked for: their memory is taken
  std::int64_t huge_ = 0;     // bytes of each head, from its first position on, that have been in use_huge_pages()
  Buffer memory_;             // [n_layers][keys, values][n_kv_heads][context][head_dim]
};

}  // namespace llama2cpp
