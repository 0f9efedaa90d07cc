// Writing keys and values to a cache, and attention over it, for the rows of one span.
//
// decode goes from q to z at once: a group takes a query head of a row and at most kSplit of its keys, and has their scores in
// threadgroup memory. Where a row has more keys, each group leaves its part to `combine`. For hooks the three stages are kernels
// of their own: scores, pattern, values.
// A row at position p looks at keys [begin, p + 1), where begin is 0, or p + 1 - window. No other key is read: what lies there may
// be anything.
#include <metal_stdlib>
#include "args.h"

using namespace metal;

constant uint kHeadDim [[function_constant(0)]];
constant uint kCapped [[function_constant(1)]];  // scores have a cap
constant uint kSinks [[function_constant(2)]];   // heads have sinks: where they have not, those are another operand


// Which of a group's threads this one is.
struct Thread {
  uint index;
  uint lane;
  uint simdgroup;
  uint simdgroups;
};

// The keys that a row looks at: [begin, end).
struct Keys {
  uint begin;
  uint end;
};

static inline Keys keys_of(constant SpanArgs& args, uint row) {
  Keys keys;
  keys.end = args.position + row + 1;
  keys.begin = args.window != 0 && keys.end > args.window ? keys.end - args.window : 0;
  return keys;
}

// Where a kv head's entry for a position begins.
static inline ulong entry(constant SpanArgs& args, uint kv_head, uint position) {
  return (ulong(kv_head) * args.context + position) * args.cache_stride;
}

static inline uint kv_head_of(constant SpanArgs& args, uint head) { return head / (args.heads / args.kv_heads); }

// q . key, in every lane of a simdgroup
template <class T>
static inline float dot_of(device const float* q, device const T* key, uint lane) {
  float sum = 0.0f;
  for (uint d = lane; d < kHeadDim; d += kSimdgroup) sum = fma(q[d], float(key[d]), sum);
  return simd_sum(sum);
}

// What softmax sees of a query's product with a key.
static inline float score_of(float product, constant SpanArgs& args) {
  const float score = product * args.factor;
  return kCapped != 0 ? args.cap * precise::tanh(score / args.cap) : score;
}

// The largest of, or the sum of, what a group's threads have; to all of them. `room`: a float for each simdgroup.
static inline float largest_of(float value, threadgroup float* room, Thread t) {
  value = simd_max(value);
  if (t.lane == 0) room[t.simdgroup] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  value = room[0];
  for (uint i = 1; i < t.simdgroups; ++i) value = max(value, room[i]);
  return value;
}

static inline float sum_of(float value, threadgroup float* room, Thread t) {
  value = simd_sum(value);
  if (t.lane == 0) room[t.simdgroup] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  value = room[0];
  for (uint i = 1; i < t.simdgroups; ++i) value += room[i];
  return value;
}

// exp(score - largest); 0 for -inf, also where all are.
static inline float exp_of(float score, float largest) {
  return score == -INFINITY ? 0.0f : precise::exp(score - largest);
}

// out[d] = (sum over n keys of pattern[key] * values[key][d]) / divisor.   sums: [simdgroups][kColumns]
template <class T, class Pattern>
static inline void weighted_sum(Pattern pattern, device const T* values, uint n, uint stride, float divisor,
                                device float* out, threadgroup float* sums, Thread t) {
  for (uint first = 0; first < kHeadDim; first += kColumns) {
    float part[kKeys][kColumns / kSimdgroup];
    for (uint k = 0; k < kKeys; ++k) {
      for (uint c = 0; c < kColumns / kSimdgroup; ++c) part[k][c] = 0.0f;
    }
    for (uint i = t.simdgroup * kKeys; i < n; i += t.simdgroups * kKeys) {
      for (uint k = 0; k < kKeys && i + k < n; ++k) {
        const float p = pattern[i + k];
        device const T* const value = values + ulong(i + k) * stride + first;
        for (uint c = 0; c < kColumns / kSimdgroup; ++c) {
          const uint d = c * kSimdgroup + t.lane;
          if (first + d < kHeadDim) part[k][c] = fma(p, float(value[d]), part[k][c]);
        }
      }
    }
    for (uint c = 0; c < kColumns / kSimdgroup; ++c) {
      sums[t.simdgroup * kColumns + c * kSimdgroup + t.lane] = (part[0][c] + part[1][c]) + (part[2][c] + part[3][c]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint d = t.index; d < kColumns && first + d < kHeadDim; d += t.simdgroups * kSimdgroup) {
      float sum = sums[d];
      for (uint i = 1; i < t.simdgroups; ++i) sum += sums[i * kColumns + d];
      out[first + d] = sum / divisor;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// ---- store_kv: z of the grid is 0 for keys, 1 for values; x: pieces of kStorePiece columns, y: rows.

template <class T>
static inline void store(device const float* in, uint stride, device T* cache, constant SpanArgs& args, uint3 group, uint index,
                         uint threads) {
  const uint columns = args.kv_heads * kHeadDim;
  const uint end = min(group.x * kStorePiece + kStorePiece, columns);
  for (uint c = group.x * kStorePiece + index; c < end; c += threads) {
    const ulong to = entry(args, c / kHeadDim, args.position + group.y) + c % kHeadDim;
    cache[to] = T(in[ulong(group.y) * stride + c]);
  }
}

kernel void store_kv_f32(device const float* k [[buffer(0)]], device const float* v [[buffer(1)]],
                         device float* keys [[buffer(2)]], device float* values [[buffer(3)]],
                         constant SpanArgs& args [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                         uint index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]]) {
  if (group.z == 0) {
    store(k, args.in_stride, keys, args, group, index, threads.x);
  } else {
    store(v, args.out_stride, values, args, group, index, threads.x);
  }
}

kernel void store_kv_f16(device const float* k [[buffer(0)]], device const float* v [[buffer(1)]],
                         device half* keys [[buffer(2)]], device half* values [[buffer(3)]],
                         constant SpanArgs& args [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                         uint index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]]) {
  if (group.z == 0) {
    store(k, args.in_stride, keys, args, group, index, threads.x);
  } else {
    store(v, args.out_stride, values, args, group, index, threads.x);
  }
}

// ---- decode. Grid: x: heads, y: rows, z: splits. A sink is for combine, where there are several.
// out: z [rows, heads * head_dim], or of each row, head and split: head_dim sums, the largest score, the sum of exponentials.
// shared: [kSplit] scores, [2][kMostSimdgroups] for reductions, [simdgroups][kColumns].

template <class T>
static inline void decode(device const float* q, device const T* keys, device const T* values,
                          device const float* sinks, device float* out, constant SpanArgs& args, threadgroup float* shared, uint3 group, Thread t) {
  const uint head = group.x;
  const uint row = group.y;
  Keys mine = keys_of(args, row);
  mine.begin += group.z * kSplit;
  mine.end = min(mine.end, mine.begin + kSplit);
  const ulong part = (ulong(row) * args.heads + head) * args.splits + group.z;
  device float* const to =
      out + (args.splits == 1 ? ulong(row) * args.out_stride + ulong(head) * kHeadDim : part * (kHeadDim + 2));
  if (mine.begin >= mine.end) {  // a row of fewer splits than others
    for (uint d = t.index; d < kHeadDim; d += t.simdgroups * kSimdgroup) to[d] = 0.0f;
    if (t.index == 0) {
      to[kHeadDim] = -INFINITY;
      to[kHeadDim + 1] = 0.0f;
    }
    return;
  }
  const uint n = mine.end - mine.begin;
  threadgroup float* const scores = shared;
  threadgroup float* const room = shared + kSplit;
  const ulong first = entry(args, kv_head_of(args, head), mine.begin);
  device const float* const query = q + ulong(row) * args.in_stride + ulong(head) * kHeadDim;

  for (uint i = t.simdgroup; i < n; i += t.simdgroups) {
    const float score = score_of(dot_of(query, keys + first + ulong(i) * args.cache_stride, t.lane), args);
    if (t.lane == 0) scores[i] = score;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float value = -INFINITY;
  for (uint i = t.index; i < n; i += t.simdgroups * kSimdgroup) value = max(value, scores[i]);
  float largest = largest_of(value, room, t);
  const bool sinks_here = kSinks != 0 && args.splits == 1;
  if (sinks_here) largest = max(largest, sinks[head]);
  value = 0.0f;
  for (uint i = t.index; i < n; i += t.simdgroups * kSimdgroup) {
    scores[i] = exp_of(scores[i], largest);
    value += scores[i];
  }
  float sum = sum_of(value, room + kMostSimdgroups, t);  // its barrier is the exponentials', too
  if (sinks_here) sum += exp_of(sinks[head], largest);
  weighted_sum(scores, values + first, n, args.cache_stride, args.splits == 1 ? sum : 1.0f, to, room + 2 * kMostSimdgroups, t);
  if (args.splits > 1 && t.index == 0) {
    to[kHeadDim] = largest;
    to[kHeadDim + 1] = sum;
  }
}

kernel void decode_f32(device const float* q [[buffer(0)]], device const float* keys [[buffer(1)]],
                       device const float* values [[buffer(2)]], device const float* sinks [[buffer(3)]],
                       device float* out [[buffer(4)]], constant SpanArgs& args [[buffer(5)]],
                       threadgroup float* shared [[threadgroup(0)]],
                       uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
  decode(q, keys, values, sinks, out, args, shared, group, Thread{index, lane, simdgroup, simdgroups});
}

kernel void decode_f16(device const float* q [[buffer(0)]], device const half* keys [[buffer(1)]],
                       device const half* values [[buffer(2)]], device const float* sinks [[buffer(3)]],
                       device float* out [[buffer(4)]], constant SpanArgs& args [[buffer(5)]],
                       threadgroup float* shared [[threadgroup(0)]],
                       uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
  decode(q, keys, values, sinks, out, args, shared, group, Thread{index, lane, simdgroup, simdgroups});
}

// z from what the splits have left. Grid: x: heads, y: rows.
kernel void combine(device const float* parts [[buffer(0)]], device const float* sinks [[buffer(1)]],
                    device float* z [[buffer(2)]], constant SpanArgs& args [[buffer(3)]], uint3 group [[threadgroup_position_in_grid]],
                    uint index [[thread_index_in_threadgroup]], uint3 threads [[threads_per_threadgroup]]) {
  const uint width = kHeadDim + 2;
  device const float* const mine = parts + (ulong(group.y) * args.heads + group.x) * args.splits * width;
  float largest = -INFINITY;
  for (uint s = 0; s < args.splits; ++s) largest = max(largest, mine[s * width + kHeadDim]);
  if (kSinks != 0) largest = max(largest, sinks[group.x]);
  float sum = kSinks != 0 ? exp_of(sinks[group.x], largest) : 0.0f;
  for (uint s = 0; s < args.splits; ++s) {
    sum = fma(exp_of(mine[s * width + kHeadDim], largest), mine[s * width + kHeadDim + 1], sum);
  }
  device float* const to = z + ulong(group.y) * args.out_stride + ulong(group.x) * kHeadDim;
  for (uint d = index; d < kHeadDim; d += threads.x) {
    float value = 0.0f;
    for (uint s = 0; s < args.splits; ++s) {
      value = fma(exp_of(mine[s * width + kHeadDim], largest), mine[s * width + d], value);
    }
    to[d] = value / sum;
  }
}

// ---- The stages. scores and pattern: [heads, rows, keys].

// Grid: x: blocks of keys, y: heads, z: rows.
template <class T>
static inline void scores_of(device const float* q, device const T* keys, device float* scores, constant SpanArgs& args,
                             uint3 group, Thread t) {
  const uint head = group.y;
  const uint row = group.z;
  const Keys mine = keys_of(args, row);
  const uint end = min(group.x * kKeyPiece + kKeyPiece, args.keys);
  device const float* const query = q + ulong(row) * args.in_stride + ulong(head) * kHeadDim;
  device float* const to = scores + (ulong(head) * args.rows + row) * args.scores_stride;
  for (uint i = group.x * kKeyPiece + t.simdgroup; i < end; i += t.simdgroups) {
    float score = -INFINITY;
    if (i >= mine.begin && i < mine.end) {  // the same for all lanes
      score = score_of(dot_of(query, keys + entry(args, kv_head_of(args, head), i), t.lane), args);
    }
    if (t.lane == 0) to[i] = score;
  }
}

kernel void scores_f32(device const float* q [[buffer(0)]], device const float* keys [[buffer(1)]],
                       device float* scores [[buffer(2)]], constant SpanArgs& args [[buffer(3)]],
                       uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
  scores_of(q, keys, scores, args, group, Thread{index, lane, simdgroup, simdgroups});
}

kernel void scores_f16(device const float* q [[buffer(0)]], device const half* keys [[buffer(1)]],
                       device float* scores [[buffer(2)]], constant SpanArgs& args [[buffer(3)]],
                       uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
  scores_of(q, keys, scores, args, group, Thread{index, lane, simdgroup, simdgroups});
}

// Softmax of a row over its keys, 0 elsewhere. Grid: x: heads, y: rows. room: [2][kMostSimdgroups].
static inline void softmax(device const float* scores, device const float* sinks, device float* pattern,
                           constant SpanArgs& args, threadgroup float* room, uint head, uint row, Thread t) {
  const Keys mine = keys_of(args, row);
  const uint threads = t.simdgroups * kSimdgroup;
  float value = -INFINITY;
  for (uint i = mine.begin + t.index; i < mine.end; i += threads) value = max(value, scores[i]);
  float largest = largest_of(value, room, t);
  if (kSinks != 0) largest = max(largest, sinks[head]);
  value = 0.0f;
  for (uint i = mine.begin + t.index; i < mine.end; i += threads) value += exp_of(scores[i], largest);
  float sum = sum_of(value, room + kMostSimdgroups, t);
  if (kSinks != 0) sum += exp_of(sinks[head], largest);
  // Each thread reads what it then writes, and nothing else, so pattern may be scores.
  for (uint i = t.index; i < args.keys; i += threads) {
    const bool seen = i >= mine.begin && i < mine.end;
    pattern[i] = seen ? exp_of(scores[i], largest) / sum : 0.0f;
  }
}

kernel void softmax_rows(device const float* scores [[buffer(0)]], device const float* sinks [[buffer(1)]],
                         device float* out [[buffer(2)]], constant SpanArgs& args [[buffer(3)]], threadgroup float* room [[threadgroup(0)]],
                         uint3 group [[threadgroup_position_in_grid]], uint index [[thread_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
  const ulong row = ulong(group.x) * args.rows + group.y;
  softmax(scores + row * args.scores_stride, sinks, out + row * args.pattern_stride, args, room, group.x, group.y,
          Thread{index, lane, simdgroup, simdgroups});
}

kernel void softmax_rows_in_place(device float* x [[buffer(0)]], device const float* sinks [[buffer(1)]],
                                  constant SpanArgs& args [[buffer(2)]],
                                  threadgroup float* room [[threadgroup(0)]],
                                  uint3 group [[threadgroup_position_in_grid]],
                                  uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                                  uint simdgroup [[simdgroup_index_in_threadgroup]],
                                  uint simdgroups [[simdgroups_per_threadgroup]]) {
  const Thread t = Thread{index, lane, simdgroup, simdgroups};
  const ulong row = ulong(group.x) * args.rows + group.y;
  device float* const mine = x + row * args.pattern_stride;
  softmax(mine, sinks, mine, args, room, group.x, group.y, t);
}

// Grid: x: heads, y: rows. shared: [simdgroups][kColumns].
kernel void values_f32(device const float* pattern [[buffer(0)]], device const float* values [[buffer(1)]],
                       device float* z [[buffer(2)]], constant SpanArgs& args [[buffer(3)]],
                       threadgroup float* shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                       uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
  const Thread t = Thread{index, lane, simdgroup, simdgroups};
  const Keys mine = keys_of(args, group.y);
  device const float* const row = pattern + (ulong(group.x) * args.rows + group.y) * args.pattern_stride;
  weighted_sum(row + mine.begin, values + entry(args, kv_head_of(args, group.x), mine.begin), mine.end - mine.begin,
               args.cache_stride, 1.0f, z + ulong(group.y) * args.out_stride + ulong(group.x) * kHeadDim, shared, t);
}

kernel void values_f16(device const float* pattern [[buffer(0)]], device const half* values [[buffer(1)]],
                       device float* z [[buffer(2)]], constant SpanArgs& args [[buffer(3)]],
                       threadgroup float* shared [[threadgroup(0)]], uint3 group [[threadgroup_position_in_grid]],
                       uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
  const Thread t = Thread{index, lane, simdgroup, simdgroups};
  const Keys mine = keys_of(args, group.y);
  device const float* const row = pattern + (ulong(group.x) * args.rows + group.y) * args.pattern_stride;
  weighted_sum(row + mine.begin, values + entry(args, kv_head_of(args, group.x), mine.begin), mine.end - mine.begin,
               args.cache_stride, 1.0f, z + ulong(group.y) * args.out_stride + ulong(group.x) * kHeadDim, shared, t);
}
