// Attention on the CPU: writing keys and values to the cache, and sharing out (token, head) pairs.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "core/check.h"

namespace llama2cpp {
namespace {

// Where [head][position] begins in a cache of [n_kv_heads, context, head_dim].
std::byte* entry(const Tensor& cache, std::int64_t head, std::int64_t position) {
  return static_cast<std::byte*>(cache.data) +
         (head * cache.dim(1) + position) * cache.row_stride * size_of(cache.dtype);
}

void check_spans(const char* op, std::span<const AttentionSpan> spans, std::int64_t rows) {
  std::int64_t next = 0;
  for (const AttentionSpan& span : spans) {
    LLAMA2CPP_CHECK(span.row == next && span.count > 0, "[", op, "] a span begins at row ", span.row, " and has ",
                    span.count, " rows, expected it to begin at row ", next);
    LLAMA2CPP_CHECK(span.keys.rank == 3 && span.keys.shape == span.values.shape && span.keys.dtype == span.values.dtype,
                    "[", op, "] keys are ", shape_text(span.keys), " but values are ", shape_text(span.values));
    LLAMA2CPP_CHECK(span.position >= 0 && span.position + span.count <= span.keys.dim(1), "[", op, "] positions ",
                    span.position, " to ", span.position + span.count - 1, " do not fit into keys of ",
                    shape_text(span.keys));
    next += span.count;
  }
  LLAMA2CPP_CHECK(next == rows, "[", op, "] the spans have ", next, " rows, expected ", rows);
}

// The row of [n_heads, count, positions] that belongs to one head and one of the span's tokens.
float* pattern_row(const Tensor& tensor, std::int64_t head, std::int64_t t) {
  return tensor.row(head * tensor.dim(1) + t);
}

}  // namespace

void CpuBackend::store_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans) {
  LLAMA2CPP_CHECK(k.rows() == v.rows() && k.columns() == v.columns(), "[store_kv] k is ", shape_text(k), " but v is ",
                  shape_text(v));
  check_spans("store_kv", spans, k.rows());
  for (const AttentionSpan& span : spans) {
    const std::int64_t head_dim = span.keys.columns();
    LLAMA2CPP_CHECK(k.columns() == span.keys.dim(0) * head_dim, "[store_kv] k is ", shape_text(k), " but keys are ",
                    shape_text(span.keys));
    for (std::int64_t t = 0; t < span.count; ++t) {
      for (std::int64_t head = 0; head < span.keys.dim(0); ++head) {
        const auto copy = [&](const Tensor& from, const Tensor& cache) {
          const float* source = from.row(span.row + t) + head * head_dim;
          std::byte* target = entry(cache, head, span.position + t);
          if (cache.dtype == DType::f16) {
            kernels_.narrow(source, reinterpret_cast<std::uint16_t*>(target), head_dim);
          } else {
            std::memcpy(target, source, static_cast<std::size_t>(head_dim) * sizeof(float));
          }
        };
        copy(k, span.keys);
        copy(v, span.values);
      }
    }
  }
}

void CpuBackend::attention(const Tensor& q, std::span<const AttentionSpan> spans, const Tensor& z, AttentionStage first,
                           AttentionStage last) {
  LLAMA2CPP_CHECK(q.rows() == z.rows() && q.columns() == z.columns(), "[attention] q is ", shape_text(q), " but z is ",
                  shape_text(z));
  check_spans("attention", spans, q.rows());
  std::int64_t most_keys = 0;
  std::int64_t all_keys = 0;
  for (const AttentionSpan& span : spans) {
    const std::int64_t head_dim = span.keys.columns();
    const std::int64_t kv_dim = span.keys.dim(0) * head_dim;
    LLAMA2CPP_CHECK(q.columns() % kv_dim == 0, "[attention] q is ", shape_text(q), ", which keys of ",
                    shape_text(span.keys), " do not divide");
    const auto check_pattern = [&](const Tensor& t, const char* name, bool needed) {
      LLAMA2CPP_CHECK(t || !needed, "[attention] a stage alone needs a place for ", name);
      LLAMA2CPP_CHECK(!t || (t.rank == 3 && t.dim(0) == q.columns() / head_dim && t.dim(1) == span.count &&
                             t.dim(2) == span.position + span.count),
                      "[attention] ", name, " is ", shape_text(t), ", expected [", q.columns() / head_dim, ", ",
                      span.count, ", ", span.position + span.count, "]");
    };
    check_pattern(span.scores, "scores", first == AttentionStage::pattern || last == AttentionStage::scores);
    check_pattern(span.pattern, "pattern", first == AttentionStage::values || last == AttentionStage::pattern);
    LLAMA2CPP_CHECK(span.window >= 0, "[attention] the window is ", span.window, ", expected 0 or more");
    most_keys = std::max(most_keys, span.position + span.count);
    all_keys += span.count * (span.position + span.count);
  }

  // One piece of work: one token of one head, its scores staying in the worker's cache from the first stage to the
  // last. Heads that share keys follow each other; a token's pieces go to workers in turn, since later tokens have
  // more keys than earlier ones.
  const auto one = [&](const AttentionSpan& span, std::int64_t t, std::int64_t head, float* row) {
    const std::int64_t head_dim = span.keys.columns();
    const std::int64_t heads_per_kv = q.columns() / head_dim / span.keys.dim(0);
    const std::int64_t keys = span.position + t + 1;
    // What lies before the window is masked as the future is: never read.
    const std::int64_t begin = span.window > 0 ? std::max(keys - span.window, std::int64_t{0}) : 0;
    const std::int64_t width = span.position + span.count;
    const std::byte* k = entry(span.keys, head / heads_per_kv, begin);
    const bool half = span.keys.dtype == DType::f16;

    float* scores = span.scores ? pattern_row(span.scores, head, t) : row;
    float* pattern = span.pattern ? pattern_row(span.pattern, head, t) : row;
    if (first == AttentionStage::scores) {
      const float root = std::sqrt(static_cast<float>(head_dim));
      const float* query = q.row(span.row + t) + head * head_dim;
      if (half) {
        kernels_.scores_f16(query, reinterpret_cast<const std::uint16_t*>(k), keys - begin, head_dim, root,
                            scores + begin);
      } else {
        kernels_.scores_f32(query, reinterpret_cast<const float*>(k), keys - begin, head_dim, root, scores + begin);
      }
      if (span.scores) {
        std::fill(scores, scores + begin, -std::numeric_limits<float>::infinity());
        std::fill(scores + keys, scores + width, -std::numeric_limits<float>::infinity());
      }
      if (last == AttentionStage::scores) return;
    }
    if (first != AttentionStage::values) {
      kernels_.softmax(scores + begin, pattern + begin, keys - begin);
      if (span.pattern) {
        std::fill(pattern, pattern + begin, 0.0F);
        std::fill(pattern + keys, pattern + width, 0.0F);
      }
      if (last == AttentionStage::pattern) return;
    }
    const auto mix = [&](std::int64_t from, std::int64_t to, float* out) {
      const std::byte* v = entry(span.values, head / heads_per_kv, from);
      if (half) {
        kernels_.mix_f16(pattern + from, reinterpret_cast<const std::uint16_t*>(v), to - from, head_dim, out);
      } else {
        kernels_.mix_f32(pattern + from, reinterpret_cast<const float*>(v), to - from, head_dim, out);
      }
    };
    float* out = z.row(span.row + t) + head * head_dim;
    if (begin % kKeyTile == 0) return mix(begin, keys, out);
    // The kernel counts tiles from where it begins, so a window that begins inside one goes tile by tile.
    mix(begin, std::min((begin / kKeyTile + 1) * kKeyTile, keys), out);
    for (std::int64_t p = (begin / kKeyTile + 1) * kKeyTile; p < keys; p += kKeyTile) {
      float* part = row + most_keys;  // [head_dim]
      mix(p, std::min(p + kKeyTile, keys), part);
      kernels_.add(out, part, out, head_dim);
    }
  };

  reserve_scratch(most_keys + q.columns());
  region(all_keys * q.columns() / 8, [&](int w, int workers) {
    float* row = scratch(w);
    for (const AttentionSpan& span : spans) {
      const std::int64_t heads = q.columns() / span.keys.columns();
      for (std::int64_t t = 0; t < span.count; ++t) {
        const Range mine = share(heads, static_cast<int>((w + t) % workers), workers);
        for (std::int64_t head = mine.begin; head < mine.end; ++head) one(span, t, head, row);
      }
    }
  });
}

}  // namespace llama2cpp
