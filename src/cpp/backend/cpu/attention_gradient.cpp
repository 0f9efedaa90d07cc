// Gradients of attention, a head at a time on each thread, in tiles of queries. What the forward computed of them is
// computed again, by its own kernels; and all products are those kernels too:
//
//   scores  = q . keys, pattern = softmax        as in the forward
//   dpattern = dz . values                       as scores, with values for keys
//   dscores = pattern * (dpattern - pattern . dpattern)
//   dq      = dscores mixed over keys            as z, with keys for values
//             (the pattern of softmax; where a hook changed it, only dv has the changed one)
//   dk, dv  = dscores^T over q, pattern^T over dz: as z, over the tile's queries; then tile after tile, and head after head
#include <algorithm>

#include "backend/cpu/arena.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/gradient_checks.h"
#include "core/q8_rows.h"

namespace llama2cpp {

void back_through_cap(const float* y, float cap, float* d, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float part = y[i] / cap;
    d[i] = d[i] * (1.0F - part * part);
  }
}

namespace {

// [n_kv_heads, context, head_dim]: where a head begins.
template <class T>
const T* head_of(const Tensor& cache, std::int64_t head) {
  return static_cast<const T*>(cache.data) + head * cache.dim(1) * cache.row_stride;
}

// One head, for one worker. Rows are queries; keys are counted from 0.
template <class T>
struct HeadGradient {
  const KernelTable& kernels;
  void (*scores)(const ScoresOf<T>&);
  void (*mix)(const MixOf<T>&);
  const Tensor& q;
  const AttentionSpan& span;
  const AttentionGradients& g;
  const Tensor& dk;  // [T, n_heads * head_dim], this head's part of what its keys get
  const Tensor& dv;

  std::int64_t tokens = span.count;
  std::int64_t head_dim = span.keys.columns();

  struct Memory {
    float* pattern;  // [tile][T], and the next two
    float* dscores;
    float* capped;  // where scores have a cap
    float* by_key;  // [T][tile]
    float* rows;    // [tile][head_dim] of q or of dz
    float* sums;    // [kMostQueries][head_dim]

    Memory(Arena& arena, std::int64_t tokens, std::int64_t head_dim, bool has_cap) {
      const std::int64_t tile = std::min(kKeyTile, tokens);
      pattern = arena.take<float>(tile * tokens);
      dscores = arena.take<float>(tile * tokens);
      capped = arena.take<float>(has_cap ? tile * tokens : 0);
      by_key = arena.take<float>(tokens * tile);
      rows = arena.take<float>(tile * head_dim);
      sums = arena.take<float>(kMostQueries * head_dim);
    }
  };

  void run(std::int64_t head, const Memory& memory) const {
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::fill_n(dk.row(t) + head * head_dim, head_dim, 0.0F);
      std::fill_n(dv.row(t) + head * head_dim, head_dim, 0.0F);
    }
    for (std::int64_t t = 0; t < tokens; t += kKeyTile) tile(head, {t, std::min(t + kKeyTile, tokens)}, memory);
  }

 private:
  std::int64_t first_key(std::int64_t t) const { return span.window > 0 ? std::max(t + 1 - span.window, kZero) : 0; }
  // From where a tile's products go: whole tiles of keys.
  std::int64_t first_tile(Range rows) const { return first_key(rows.begin) / kKeyTile * kKeyTile; }
  std::int64_t kv_head(std::int64_t head) const { return head / (q.columns() / head_dim / span.keys.dim(0)); }

  void tile(std::int64_t head, Range rows, const Memory& m) const {
    const std::int64_t n = rows.end - rows.begin;
    const T* const keys = head_of<T>(span.keys, kv_head(head));
    const T* const values = head_of<T>(span.values, kv_head(head));
    products(q, head, rows, keys, span.divisor, m.pattern);
    products(g.dz, head, rows, values, 1.0F, m.dscores);
    for (std::int64_t i = 0; i < n; ++i) row(head, rows.begin + i, i, m);
    for (std::int64_t i = 0; g.pattern && i < n; ++i) {
      given(g.pattern, head, rows.begin + i, m.pattern + i * tokens + first_key(rows.begin + i));
    }

    over_queries(g.dz, head, rows, m.pattern, m, dv);
    if (!g.through_scores || !g.through_pattern) {
      for (std::int64_t t = rows.begin; t < rows.end; ++t) std::fill_n(g.dq.row(t) + head * head_dim, head_dim, 0.0F);
      return;
    }
    over_keys(head, rows, keys, m.dscores);
    over_queries(q, head, rows, m.dscores, m, dk);
  }

  // out[i][p] = x[i] . keys[p] / root, of all keys that the tile's rows look at, and a few more.
  void products(const Tensor& x, std::int64_t head, Range rows, const T* keys, float root, float* out) const {
    const std::int64_t begin = first_tile(rows);
    for (std::int64_t t = rows.begin; t < rows.end; t += kMostQueries) {
      const std::int64_t end = std::min(t + kMostQueries, rows.end);
      ScoresOf<T> call{.queries = end - t,
                       .q = {},
                       .keys = keys + begin * head_dim,
                       .n = end - begin,
                       .head_dim = head_dim,
                       .root = root,
                       .out = {}};
      for (std::int64_t i = t; i < end; ++i) {
        call.q[i - t] = x.row(i) + head * head_dim;
        call.out[i - t] = out + (i - rows.begin) * tokens + begin;
      }
      scores(call);
    }
  }

  // From a query's scores and dpattern its pattern and dscores, with zeros for what it does not look at. i: in the tile
  void row(std::int64_t head, std::int64_t t, std::int64_t i, const Memory& m) const {
    const std::int64_t begin = first_key(t);
    const std::int64_t n = t + 1 - begin;
    float* const pattern = m.pattern + i * tokens;
    float* const d = m.dscores + i * tokens;
    float* const p = pattern + begin;
    if (span.score_cap > 0.0F) {
      float* const capped = m.capped + i * tokens + begin;
      kernels.soft_cap(p, span.score_cap, capped, n);
      std::copy_n(capped, n, p);
    }
    given(g.scores, head, t, p);
    kernels.softmax(p, span.sinks ? span.sinks.row(0) + head : nullptr, p, n);
    for (float* const x : {pattern, d}) {
      std::fill(x, x + begin, 0.0F);
      std::fill(x + t + 1, x + tokens, 0.0F);
    }
    const auto show = [&](const Tensor& to) {
      if (to) std::copy_n(d, tokens, to.row(head * tokens + t));
    };
    show(g.dpattern);
    if (!g.through_pattern) std::fill_n(d, tokens, 0.0F);
    float sum = 0.0F;
    kernels.scores_f32({.queries = 1, .q = {p}, .keys = d + begin, .n = 1, .head_dim = n, .root = 1.0F, .out = {&sum}});
    for (std::int64_t k = begin; k <= t; ++k) d[k] = pattern[k] * (d[k] - sum);
    show(g.dscores);
    if (span.score_cap > 0.0F) back_through_cap(m.capped + i * tokens + begin, span.score_cap, d + begin, n);
    const float factor = 1.0F / span.divisor;
    for (std::int64_t k = begin; k <= t; ++k) d[k] = d[k] * factor;
  }

  // What a query has been given of a tensor, for the keys that it looks at; nothing if the tensor is empty.
  void given(const Tensor& from, std::int64_t head, std::int64_t t, float* to) const {
    if (!from) return;
    const std::int64_t begin = first_key(t);
    std::copy_n(from.row(head * tokens + t) + begin, t + 1 - begin, to);
  }

  // dq = dscores mixed over keys
  void over_keys(std::int64_t head, Range rows, const T* keys, const float* dscores) const {
    const std::int64_t begin = first_tile(rows);
    for (std::int64_t t = rows.begin; t < rows.end; t += kMostQueries) {
      const std::int64_t end = std::min(t + kMostQueries, rows.end);
      MixOf<T> call{
          .queries = end - t, .pattern = {}, .values = keys + begin * head_dim, .n = {}, .head_dim = head_dim, .z = {}};
      for (std::int64_t i = t; i < end; ++i) {
        call.pattern[i - t] = dscores + (i - rows.begin) * tokens + begin;
        call.n[i - t] = i + 1 - begin;
        call.z[i - t] = g.dq.row(i) + head * head_dim;
      }
      mix(call);
    }
  }

  // out[key] += weights[., key] mixed over the tile's rows of x
  void over_queries(const Tensor& x, std::int64_t head, Range rows, const float* weights, const Memory& m,
                    const Tensor& out) const {
    const std::int64_t n = rows.end - rows.begin;
    const std::int64_t begin = first_tile(rows);
    for (std::int64_t i = 0; i < n; ++i) {
      std::copy_n(x.row(rows.begin + i) + head * head_dim, head_dim, m.rows + i * head_dim);
    }
    constexpr std::int64_t kSide = 16;  // of the squares that are turned: lines of both sides stay in cache
    for (std::int64_t k = begin; k < rows.end; k += kSide) {
      for (std::int64_t i = 0; i < n; i += kSide) {
        if (k + kSide <= rows.end) {
          kernels.turn_rows(weights + i * tokens + k, tokens, std::min(kSide, n - i), m.by_key + k * n + i, n);
          continue;
        }
        for (std::int64_t a = k; a < rows.end; ++a) {
          for (std::int64_t b = i; b < std::min(i + kSide, n); ++b) m.by_key[a * n + b] = weights[b * tokens + a];
        }
      }
    }
    for (std::int64_t k = begin; k < rows.end; k += kMostQueries) {
      const std::int64_t end = std::min(k + kMostQueries, rows.end);
      MixOf<float> call{.queries = end - k, .pattern = {}, .values = m.rows, .n = {}, .head_dim = head_dim, .z = {}};
      for (std::int64_t i = k; i < end; ++i) {
        call.pattern[i - k] = m.by_key + i * n;
        call.n[i - k] = n;
        call.z[i - k] = m.sums + (i - k) * head_dim;
      }
      kernels.mix_f32(call);
      for (std::int64_t i = k; i < end; ++i) {
        float* const to = out.row(i) + head * head_dim;
        kernels.add(to, m.sums + (i - k) * head_dim, to, head_dim);
      }
    }
  }

  static constexpr std::int64_t kZero = 0;
};

// The first positions of a cache in q8_0, as floats in memory that is returned.
Buffer widened(const Tensor& cache, std::int64_t positions, Tensor& out) {
  const std::int64_t heads = cache.dim(0);
  const std::int64_t row = cache.columns();
  Buffer memory = Buffer::heap(static_cast<std::size_t>(heads * positions * row) * sizeof(float));
  out = Tensor(reinterpret_cast<float*>(memory.data()), {heads, positions, row});
  for (std::int64_t head = 0; head < heads; ++head) {
    widen_q8(head_of<Q8Block>(cache, head), positions * row, out.row(head * positions));
  }
  return memory;
}

}  // namespace

void CpuBackend::attention_gradient(const Tensor& q, const AttentionSpan& span, const AttentionGradients& g) {
  op_checks::attention_gradient(q, span, g);
  const std::int64_t tokens = span.count;
  if (tokens == 0) return;
  const std::int64_t head_dim = span.keys.columns();
  if (span.keys.dtype == DType::q8_0) {  // what it stands for, as floats
    AttentionSpan floats = span;
    const Buffer keys = widened(span.keys, tokens, floats.keys);
    const Buffer values = widened(span.values, tokens, floats.values);
    return attention_gradient(q, floats, g);
  }
  const std::int64_t heads = q.columns() / head_dim;
  const std::int64_t kv_heads = span.keys.dim(0);
  // Each head's part by itself: several heads have their keys in common.
  const std::int64_t all = tokens * q.columns();
  const auto bytes = static_cast<std::size_t>(2 * all) * sizeof(float);
  if (tiles_.size() < bytes) tiles_ = Buffer::heap(bytes);
  auto* const parts = reinterpret_cast<float*>(tiles_.data());
  const Tensor dk(parts, {tokens, q.columns()});
  const Tensor dv(parts + all, {tokens, q.columns()});

  const auto run = [&]<class T>(void (*scores)(const ScoresOf<T>&), void (*mix)(const MixOf<T>&)) {
    using Job = HeadGradient<T>;
    const bool has_cap = span.score_cap > 0.0F;
    Arena counted;
    const typename Job::Memory sizes(counted, tokens, head_dim, has_cap);
    reserve_scratch(counted.used());
    region(all * tokens, [&](int worker, int workers) {
      Arena arena(scratch(worker));
      const typename Job::Memory memory(arena, tokens, head_dim, has_cap);
      const Job job{kernels_, scores, mix, q, span, g, dk, dv};
      const Range mine = share(heads, worker, workers);
      for (std::int64_t head = mine.begin; head < mine.end; ++head) job.run(head, memory);
    });
  };
  if (span.keys.dtype == DType::f16) {
    run(kernels_.scores_f16, kernels_.mix_f16);
  } else {
    run(kernels_.scores_f32, kernels_.mix_f32);
  }

  // The heads of each key, in order.
  const std::int64_t group = heads / kv_heads;
  each_row(tokens, 2 * q.columns() / 8, [&](std::int64_t t) {
    for (std::int64_t kv = 0; kv < kv_heads; ++kv) {
      for (const auto& [from, to] : {std::pair<const Tensor&, const Tensor&>{dk, g.dk}, {dv, g.dv}}) {
        float* const out = to.row(t) + kv * head_dim;
        const float* const first = from.row(t) + kv * group * head_dim;
        std::copy_n(first, head_dim, out);
        for (std::int64_t i = 1; i < group; ++i) kernels_.add(out, first + i * head_dim, out, head_dim);
      }
    }
  });
}

}  // namespace llama2cpp
