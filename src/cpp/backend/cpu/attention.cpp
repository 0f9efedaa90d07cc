// Attention on the CPU: writing keys and values to the cache, and sharing out (token, head) pairs.
#include <algorithm>
#include <cstring>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/q8_cache.h"
#include "backend/op_checks.h"

namespace llama2cpp {
namespace {

constexpr std::int64_t kWholeBlocks = 12;  // queries, of which kernels take 2, 3 or 4 at a time
constexpr std::int64_t kMostTokens = 16;   // that go together: a query gets scores of the others' keys, too

// Where [head][position] begins in a cache of [n_kv_heads, context, head_dim].
std::byte* entry(const Tensor& cache, std::int64_t head, std::int64_t position) {
  return static_cast<std::byte*>(cache.data) +
         (head * cache.dim(1) + position) * cache.row_stride * size_of(cache.dtype);
}

// The row of [n_heads, count, positions] that belongs to one head and one of the span's tokens.
float* pattern_row(const Tensor& tensor, std::int64_t head, std::int64_t t) {
  return tensor.row(head * tensor.dim(1) + t);
}

// Attention of some tokens and heads, for one worker.
struct AttentionJob {
  const KernelTable& kernels;
  const Tensor& q;
  const Tensor& z;
  AttentionStage first;
  AttentionStage last;
  float* memory;           // [together] of [row_width]
  std::int64_t row_width;  // the most keys, and what a head has at most
  std::int64_t together;   // queries, 1 to kMostQueries

  struct Query {
    std::int64_t token;
    std::int64_t head;
  };

  // Heads that share keys go together, and tokens that follow each other.
  void run(const AttentionSpan& span, Range tokens, Range heads) const {
    const std::int64_t heads_per_kv = q.columns() / span.keys.columns() / span.keys.dim(0);
    for (std::int64_t head = heads.begin; head < heads.end;) {
      const std::int64_t kv_head = head / heads_per_kv;
      const std::int64_t end = std::min(heads.end, (kv_head + 1) * heads_per_kv);
      Query queries[kMostQueries];
      std::int64_t count = 0;
      for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
        for (std::int64_t h = head; h < end; ++h) {
          queries[count++] = {t, h};
          if (count < together) continue;
          few(span, kv_head, queries, count, end < heads.end);
          count = 0;
        }
      }
      if (count > 0) few(span, kv_head, queries, count, end < heads.end);
      head = end;
    }
  }

 private:
  // One piece of work: a few queries over the same keys, their scores staying in the worker's cache from the first
  // stage to the last. `more` tells whether the next head's keys come after it.
  void few(const AttentionSpan& span, std::int64_t kv_head, const Query* queries, std::int64_t count, bool more) const {
    const auto keys_of = [&](std::int64_t i) { return span.position + queries[i].token + 1; };
    const std::int64_t keys = keys_of(count - 1);  // the last query's, which are the most
    const std::int64_t begin = span.window > 0 ? std::max(keys - span.window, std::int64_t{0}) : 0;
    const std::int64_t width = span.position + span.count;
    float* scores[kMostQueries] = {};
    float* pattern[kMostQueries] = {};
    for (std::int64_t i = 0; i < count; ++i) {
      const auto [t, head] = queries[i];
      scores[i] = span.scores ? pattern_row(span.scores, head, t) : memory + i * row_width;
      pattern[i] = span.pattern ? pattern_row(span.pattern, head, t) : memory + i * row_width;
    }

    if (first == AttentionStage::scores) {
      if (span.keys.dtype == DType::q8_0) {
        score(kernels.scores_q8, span, kv_head, queries, count, begin, keys, scores);
      } else if (span.keys.dtype == DType::f16) {
        score(kernels.scores_f16, span, kv_head, queries, count, begin, keys, scores);
      } else {
        score(kernels.scores_f32, span, kv_head, queries, count, begin, keys, scores);
      }
      for (std::int64_t i = 0; i < count && span.score_cap > 0.0F; ++i) {
        kernels.soft_cap(scores[i] + begin, span.score_cap, scores[i] + begin, keys_of(i) - begin);
      }
      for (std::int64_t i = 0; i < count && span.scores; ++i) {
        std::fill(scores[i], scores[i] + begin, -std::numeric_limits<float>::infinity());
        std::fill(scores[i] + keys_of(i), scores[i] + width, -std::numeric_limits<float>::infinity());
      }
      if (last == AttentionStage::scores) return;
    }
    if (first != AttentionStage::values) {
      for (std::int64_t i = 0; i < count; ++i) {
        const float* const sink = span.sinks ? span.sinks.row(0) + queries[i].head : nullptr;
        kernels.softmax(scores[i] + begin, sink, pattern[i] + begin, keys_of(i) - begin);
        if (!span.pattern) continue;
        std::fill(pattern[i], pattern[i] + begin, 0.0F);
        std::fill(pattern[i] + keys_of(i), pattern[i] + width, 0.0F);
      }
      if (last == AttentionStage::pattern) return;
    }
    if (span.values.dtype == DType::q8_0) {
      mix(kernels.mix_q8, span, kv_head, queries, count, begin, pattern, more);
    } else if (span.values.dtype == DType::f16) {
      mix(kernels.mix_f16, span, kv_head, queries, count, begin, pattern, more);
    } else {
      mix(kernels.mix_f32, span, kv_head, queries, count, begin, pattern, more);
    }
  }

  // Keys or values that are read next. With one token they were read a step ago and have left the caches since; with
  // more they stay there.
  template <class T>
  static const T* ahead(const AttentionSpan& span, const Tensor& cache, std::int64_t head, std::int64_t begin) {
    return span.count == 1 ? reinterpret_cast<const T*>(entry(cache, head, begin)) : nullptr;
  }

  // A query also gets the scores of the few keys that only later ones of these queries look at, and nobody reads them.
  template <class T>
  void score(void (*kernel)(const ScoresOf<T>&), const AttentionSpan& span, std::int64_t kv_head, const Query* queries,
             std::int64_t count, std::int64_t begin, std::int64_t end, float* const* scores) const {
    const std::int64_t head_dim = span.keys.columns();
    ScoresOf<T> call{.queries = count,
                     .q = {},
                     .keys = reinterpret_cast<const T*>(entry(span.keys, kv_head, begin)),
                     .n = end - begin,
                     .head_dim = head_dim,
                     .root = span.divisor,
                     .out = {},
                     .ahead = ahead<T>(span, span.values, kv_head, begin)};
    for (std::int64_t i = 0; i < count; ++i) {
      call.q[i] = q.row(span.row + queries[i].token) + queries[i].head * head_dim;
      call.out[i] = scores[i] + begin;
    }
    kernel(call);
  }

  // The kernel counts tiles from where it begins, so a window that begins inside one goes tile by tile.
  template <class T>
  void mix(void (*kernel)(const MixOf<T>&), const AttentionSpan& span, std::int64_t kv_head, const Query* queries,
           std::int64_t count, std::int64_t begin, float* const* pattern, bool more) const {
    const std::int64_t head_dim = span.values.columns();
    const std::int64_t keys = span.position + queries[count - 1].token + 1;
    for (std::int64_t from = begin; from < keys;) {
      const bool whole = from % kKeyTile == 0 && from == begin;
      const std::int64_t to = whole ? keys : std::min((from / kKeyTile + 1) * kKeyTile, keys);
      MixOf<T> call{.queries = count,
                    .pattern = {},
                    .values = reinterpret_cast<const T*>(entry(span.values, kv_head, from)),
                    .n = {},
                    .head_dim = head_dim,
                    .z = {},
                    .ahead = to < keys ? ahead<T>(span, span.values, kv_head, to)
                             : more    ? ahead<T>(span, span.keys, kv_head + 1, begin)
                                       : ahead<T>(span, span.values, kv_head, begin)};
      for (std::int64_t i = 0; i < count; ++i) {
        call.pattern[i] = pattern[i] + from;
        call.n[i] = std::min(span.position + queries[i].token + 1, to) - from;
        float* const out = z.row(span.row + queries[i].token) + queries[i].head * head_dim;
        call.z[i] = from == begin ? out : memory + (i + 1) * row_width - head_dim;
      }
      kernel(call);
      for (std::int64_t i = 0; i < count && from > begin; ++i) {
        float* const out = z.row(span.row + queries[i].token) + queries[i].head * head_dim;
        kernels.add(out, call.z[i], out, head_dim);
      }
      from = to;
    }
  }
};

}  // namespace

void CpuBackend::store_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans) {
  op_checks::store_kv(k, v, spans);
  for (const AttentionSpan& span : spans) {
    const std::int64_t head_dim = span.keys.columns();
    for (std::int64_t t = 0; t < span.count; ++t) {
      for (std::int64_t head = 0; head < span.keys.dim(0); ++head) {
        const auto copy = [&](const Tensor& from, const Tensor& cache) {
          const float* source = from.row(span.row + t) + head * head_dim;
          std::byte* target = entry(cache, head, span.position + t);
          if (cache.dtype == DType::q8_0) {
            narrow_q8(kernels_, source, head_dim, reinterpret_cast<Q8Block*>(target));
          } else if (cache.dtype == DType::f16) {
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
  op_checks::attention(q, spans, z, first, last);
  std::int64_t most_keys = 0;
  std::int64_t all_keys = 0;
  for (const AttentionSpan& span : spans) {
    most_keys = std::max(most_keys, span.position + span.count);
    all_keys += span.count * (span.position + span.count);
  }

  const std::int64_t row_width = most_keys + q.columns();  // a query's scores, and a tile of its z
  const std::int64_t fit = std::clamp(kernels_.most_scores / row_width, std::int64_t{4}, kMostQueries);
  const std::int64_t together = fit < kWholeBlocks ? fit : fit / kWholeBlocks * kWholeBlocks;
  reserve_scratch(together * row_width * static_cast<std::int64_t>(sizeof(float)));
  region(all_keys * q.columns() / 8, [&](int w, int workers) {
    auto* const memory = reinterpret_cast<float*>(scratch(w));
    const AttentionJob job{kernels_, q, z, first, last, memory, row_width, together};
    // A few tokens' pieces go to workers in turn, since later tokens have more keys than earlier ones.
    for (const AttentionSpan& span : spans) {
      const std::int64_t heads = q.columns() / span.keys.columns();
      // What lies before a window is never read, so tokens whose windows begin elsewhere do not go together.
      const std::int64_t tokens = span.window > 0 ? 1 : std::clamp(span.count / 8, std::int64_t{4}, kMostTokens);
      for (std::int64_t t = 0; t < span.count; t += tokens) {
        const Range mine = share(heads, static_cast<int>((w + t / tokens) % workers), workers);
        job.run(span, {t, std::min(t + tokens, span.count)}, mine);
      }
    }
  });
}

}  // namespace llama2cpp
