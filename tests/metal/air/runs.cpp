// Runs kernels of others on fibers, for ctypes: as Apple's compiler left them (air), or as published, through the shim.
#include "runs.h"

#include <exception>
#include <string>

using Three = unsigned __attribute__((ext_vector_type(3)));

extern "C" {
void air_rms(const float* x, const float* gain, float* out, const float* eps, const unsigned* columns,
             const unsigned* step, unsigned group, unsigned thread, unsigned lane, unsigned simdgroup);
void air_softmax(const float* x, float* out, const int* columns, unsigned group, unsigned thread, unsigned lane,
                 unsigned simdgroup);
void air_matvec(const void* codes, const void* scales, const void* biases, const void* x, void* out, const int* columns,
                const int* rows, const int*, const int*, const long*, const int*, const int*, const long*, const long*,
                const long*, Three group, unsigned simdgroup, unsigned lane);
using AttentionKernel = void(const void* q, const void* k, const void* v, void* out, const int* group, const int* keys,
                             const long* k_head, const long* k_row, const long* v_head, const long* v_row,
                             const float* scale, const void*, const void*, const int*, const int*, const int*,
                             const void*, const int*, Three group_position, Three groups, unsigned simdgroup,
                             unsigned lane);
AttentionKernel air_attention, air_attention_causal;
using GemmKernel = void(const float* a, const float* b, const float*, float* out, const GemmParameters*, const void*,
                        const int*, const long*, unsigned lane, unsigned simdgroup, Three group, Three thread);
GemmKernel air_gemm, air_gemm_aligned;
}

namespace {

std::string fault;

Three three(const soft::Size3& size) { return Three{size.x, size.y, size.z}; }

// 0, or 1 where the kernel did what it must not (last_fault). order: 0 forward, 1 reverse, 2 shuffled.
template <class Body>
int run(const char* name, int order, const soft::Size3& groups, const soft::Size3& threads, const Body& body) {
  const auto same = static_cast<soft::Order>(order);
  soft::GridWatcher watcher;
  try {
    soft::run_grid(name, groups, threads, {same, same, same, 7}, body, watcher);
  } catch (const std::exception& error) {
    fault = error.what();
    return 1;
  }
  return 0;
}

}  // namespace

extern "C" {

const char* last_fault() { return fault.c_str(); }

int run_rms(int order, const float* x, const float* gain, float* out, unsigned rows, unsigned columns, float eps) {
  const unsigned step = 1, threads = ((columns + 3) / 4 + 31) / 32 * 32;
  return run("rms", order, {rows, 1, 1}, {threads, 1, 1}, [&](const soft::ThreadIds& ids) {
    air_rms(x, gain, out, &eps, &columns, &step, ids.group.x, ids.thread.x, ids.lane, ids.simdgroup);
  });
}

int run_softmax(int air, int order, const float* x, float* out, unsigned rows, int columns) {
  const unsigned threads = unsigned((columns + 3) / 4 + 31) / 32 * 32;
  return run("softmax", order, {rows, 1, 1}, {threads, 1, 1}, [&](const soft::ThreadIds& ids) {
    if (air) {
      air_softmax(x, out, &columns, ids.group.x, ids.thread.x, ids.lane, ids.simdgroup);
    } else {
      softmax_source({x, out, columns}, ids);
    }
  });
}

int run_matvec(int air, int order, const std::uint32_t* codes, const float* scales, const float* biases, const float* x,
               float* out, int columns, int rows, unsigned tokens) {
  const int none = 0;
  const long strides = 0;
  return run("matvec", order, {tokens, unsigned(rows) / 8, 1}, {32, 2, 1}, [&](const soft::ThreadIds& ids) {
    if (air) {
      air_matvec(codes, scales, biases, x, out, &columns, &rows, &none, &none, &strides, &none, &none, &strides,
                 &strides, &strides, three(ids.group), ids.simdgroup, ids.lane);
    } else {
      matvec_source({codes, scales, biases, x, out, columns, rows}, ids);
    }
  });
}

int run_attention(int air, int order, const void* q, const void* k, const void* v, void* out, unsigned heads,
                  int kv_heads, int keys, float scale, int causal, unsigned rows) {
  const int group = int(heads) / kv_heads, none = 0;
  const long head = keys * 64l, row = 64;
  return run("attention", order, {heads, rows, 1}, {1024, 1, 1}, [&](const soft::ThreadIds& ids) {
    if (air) {
      (causal ? air_attention_causal : air_attention)(q, k, v, out, &group, &keys, &head, &row, &head, &row, &scale,
                                                      nullptr, nullptr, &none, &none, &none, nullptr, &none,
                                                      three(ids.group), three(ids.groups), ids.simdgroup, ids.lane);
    } else {
      attention_source({q, k, v, out, group, keys, scale, causal != 0}, ids);
    }
  });
}

int run_gemm(int air, int order, const float* a, const float* b, float* out, int rows, int columns, int inner) {
  const bool aligned = rows % 64 == 0 && columns % 64 == 0 && inner % 16 == 0;
  const GemmParameters parameters{
      rows, columns, inner, inner, inner, columns, (columns + 63) / 64, (rows + 63) / 64, {0, 0, 0}, 0, inner / 16, 1};
  const soft::Size3 groups{unsigned(parameters.column_tiles), unsigned(parameters.row_tiles), 1};
  const int batch = 1;
  const long strides[4] = {};
  const char unused[64] = {};  // of a sum with another matrix: it is loaded before it is known not to be wanted
  return run("gemm", order, groups, {32, 2, 2}, [&](const soft::ThreadIds& ids) {
    if (air) {
      (aligned ? air_gemm_aligned : air_gemm)(a, b, nullptr, out, &parameters, unused, &batch, strides, ids.lane,
                                              ids.simdgroup, three(ids.group), three(ids.thread));
    } else {
      gemm_source({a, b, out, parameters, aligned}, ids);
    }
  });
}
}
