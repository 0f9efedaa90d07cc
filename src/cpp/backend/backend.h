// Backend: about fifteen coarse ops on activations. Knows no layers and no sessions; an op covers enough work that speed
// fits behind it. CpuBackend implements it; forward.cpp is its only large user.
//
// Every op checks shapes at its door and throws std::invalid_argument with the op's name, what it expected and what it
// got (op_checks.h). T is the number of rows (tokens) in the pass; they may belong to several sequences.
//
// Memory: what ops read and write is the backend's, made by alloc() or reserve(), but for weights, which lie where their
// file does, and for spans, which are the host's and read before the op returns.
//
// In place: an output is the very tensor that is an input where the op says "out may be x", or overlaps nothing that the
// op reads and no other output. Kernels need not allow for anything between the two, and an op refuses it.
#pragma once

#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "backend/arithmetic.h"
#include "backend/experts.h"
#include "core/activation.h"
#include "core/buffer.h"
#include "core/config.h"
#include "core/function_ref.h"
#include "core/tensor.h"
#include "format/format.h"

namespace llama2cpp {

class GradientOps;

// A gain or a bias, in memory of the backend's.
struct Vector {
  Buffer memory;
  Tensor view;  // [n] f32; empty where the model has none

  explicit operator bool() const { return static_cast<bool>(view); }
};

// The second half of an RMSNorm: x[t] becomes (x[t] * (1 / scale[t])) * gain.
struct Norm {
  Tensor scale;  // [T, 1] from rms_scale; for matmul also empty, where x is normalised already
  Tensor gain;   // [n], n numbers in a row of x; empty: none
};

// Rows [row, row + count) of a pass are the tokens at `position`, `position` + 1, ... of one sequence.
struct AttentionSpan {
  std::int64_t row = 0;
  std::int64_t count = 0;
  std::int64_t position = 0;
  std::int64_t window = 0;  // a row at position p looks at p - window + 1 ... p; 0: at all up to p
  float divisor = 0.0F;     // scores are q . k / divisor; to be stated, above 0
  float score_cap = 0.0F;   // then cap * tanh(score / cap); 0: there is none
  Tensor keys;              // [n_kv_heads, context, head_dim] f32, f16 or q8_0
  Tensor values;            // [n_kv_heads, context, head_dim], same type
  Tensor sinks;             // [n_heads] f32, or empty: one more score of each head, whose weight goes nowhere
  Tensor scores;            // [n_heads, count, position + count] f32, or empty: not wanted. Masked ones are -inf
  Tensor pattern;           // the same shape, or empty. Masked ones are 0
};

// Attention can stop after, and go on from, the two places where a hook may look: all three at once is the fast way,
// with the same bits.
enum class AttentionStage : std::uint8_t { scores, pattern, values };

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;  // "cpu"
  virtual std::string_view isa() const = 0;   // "avx512"
  virtual int threads() const = 0;

  // Ops of one forward run under one lease. Concurrent forwards queue for it; a hook's Python code runs without it. It
  // also sets the floating-point mode that the numerics contract needs (round to nearest, no flush to zero) and gives
  // the caller's back.
  // Waiting for it calls `poll` about every 50 ms, which may throw to end the waiting. `poll` outlives the lease.
  class Lease {
   public:
    Lease(Backend& backend, FunctionRef<void()> poll) : backend_(backend) { backend_.acquire(poll); }
    ~Lease() { backend_.release(); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

   private:
    Backend& backend_;
  };
  // Within a lease: finishes the ops so far and lets go of it while other code runs (a hook, a signal handler), which
  // may want the backend for itself. At its end it waits for the lease again, with the lease's own poll. If that throws, or
  // that code has, the lease stays let go: nobody needs it on the way out.
  class Pause {
   public:
    explicit Pause(Backend& backend)
        : backend_(backend), poll_(backend.poll()), exceptions_(std::uncaught_exceptions()) {
      backend_.sync();
      backend_.release();
    }
    ~Pause() noexcept(false) {
      if (std::uncaught_exceptions() == exceptions_) backend_.acquire(poll_);
    }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    Backend& backend_;
    FunctionRef<void()> poll_;
    int exceptions_;
  };
  virtual void acquire(FunctionRef<void()> poll) = 0;
  // Does nothing for a thread that does not have the lease.
  virtual void release() = 0;
  // What the lease was taken with, by the thread that has it.
  virtual FunctionRef<void()> poll() const = 0;

  // What a user should hear of, once: fewer threads could be started than were asked for. Any thread may ask.
  virtual bool has_warning() const = 0;
  virtual std::string take_warning() = 0;  // empty: there is none

  // Zeroed memory that the ops can use, from any thread, with the lease or without. It may outlive the backend.
  virtual Buffer alloc(std::size_t bytes) = 0;

  // The same for what is used from its beginning on, and perhaps never to its end: a context of keys and values. Where the
  // backend can, it costs memory only where it is touched.
  virtual Buffer reserve(std::size_t bytes) { return alloc(bytes); }
  // Whether it can.
  virtual bool reserves() const { return false; }

  // Bytes that alloc() can still give, and of the largest piece of it.
  virtual std::size_t memory_left() const = 0;
  virtual std::size_t largest_piece() const { return std::numeric_limits<std::size_t>::max(); }

  // Why the ops cannot use a weight: "is of format q3_k, which has no kernel". Empty where they can.
  virtual std::string refuses(const Weight& /*weight*/) const { return {}; }

  // Whether it has the ops on routed experts.
  virtual bool routes_experts() const { return true; }

  // Whether adapters' factors are multiplied beside its matrices.
  virtual bool takes_adapters() const { return true; }

  // The ops that going back through a model needs (gradient_ops.h); null where it has none.
  virtual GradientOps* gradient_ops() { return nullptr; }

  // A Vector of n zeros.
  Vector make_vector(std::int64_t n);

  // Whether matmul is faster with a layout of its own, which pack() makes.
  virtual bool packs() const = 0;

  // Whether it multiplies quantized weights by activations that are rounded to int8 (Weight::int8_input).
  virtual bool multiplies_integers() const = 0;
  // Whether it multiplies bf16 and f16 weights by activations that are rounded to bf16 (Weight::bf16_input).
  virtual bool multiplies_bf16() const { return false; }

  // Makes the layout that matmul reads (weight.panels) from the file's, on all threads. Without it, matmul reads the
  // weight where it lies, slower, with the same bits.
  // The panels of all weights of a call are one piece of memory: large pages, and one stream from weight to weight.
  virtual void pack(std::span<Weight* const> weights) = 0;
  void pack(Weight& weight) {
    Weight* const one[] = {&weight};
    pack(one);
  }

  // Bytes that pack() would take for this weight.
  virtual std::size_t packed_bytes(const Weight& weight) const = 0;

  // out[t] = table[tokens[t]]                      table [vocab, dim], tokens [T] -> out [T, dim]
  virtual void embed(const Weight& table, std::span<const std::int32_t> tokens, const Tensor& out) = 0;

  // out[r] = x[rows[r]]                            x [T, n], rows [R] -> out [R, n]
  virtual void take_rows(const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) = 0;

  // scale[t] = sqrt(mean(x[t]^2) + eps)            x [T, n] -> scale [T, 1]
  virtual void rms_scale(const Tensor& x, float eps, const Tensor& scale) = 0;

  // out[t] = x[t] - mean(x[t])                     x [T, n] -> out [T, n]. LayerNorm is this, then the two of RMSNorm
  virtual void center(const Tensor& x, const Tensor& out) = 0;

  // out[t] = (x[t] * (1 / scale[t])) * gain        x [T, n] -> out [T, n]; out may be x
  virtual void normalize(const Tensor& x, const Norm& norm, const Tensor& out) = 0;

  // out = x * factor                               x [T, n] -> out [T, n]; out may be x
  virtual void scale(const Tensor& x, float factor, const Tensor& out) = 0;

  // outs[i] = norm(x) . weights[i]^T               x [T, cols], weights[i] [rows_i, cols] -> outs[i] [T, rows_i]
  virtual void matmul(std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs,
                      const Norm& norm = {}) = 0;

  // Turns each pair of each head by its position's angles, in place; where there are fewer angles than pairs, the first
  // numbers of the head as if they were all.       x [T, heads * head_dim], cos and sin [T, up to head_dim / 2]
  virtual void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, std::int64_t head_dim, RopeStyle style) = 0;

  // Writes k and v of each span's rows to its cache.   k, v [T, n_kv_heads * head_dim]
  virtual void store_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans) = 0;

  // Each row looks at its own sequence's positions up to its own, within the window.  q [T, n_heads * head_dim] -> z, the same shape.
  // Runs the stages first..last: what an earlier call left in the spans' scores or pattern is taken from there.
  virtual void attention(const Tensor& q, std::span<const AttentionSpan> spans, const Tensor& z,
                         AttentionStage first = AttentionStage::scores,
                         AttentionStage last = AttentionStage::values) = 0;

  // out = activation(gate) * up                    all [T, n]; out may be gate or up
  // Of clamped_swiglu: what it makes of both.
  virtual void gated(Activation activation, const Tensor& gate, const Tensor& up, const Tensor& out) = 0;

  // out = activation(x)                            x [T, n] -> out [T, n]; out may be x. Not of clamped_swiglu
  virtual void activate(Activation activation, const Tensor& x, const Tensor& out) = 0;

  // out = cap * tanh(x / cap)                      x [T, n] -> out [T, n], within -cap and cap; out may be x
  virtual void soft_cap(const Tensor& x, float cap, const Tensor& out) = 0;

  // out = a + b                                    all [T, n]; out may be a or b
  virtual void add(const Tensor& a, const Tensor& b, const Tensor& out) = 0;

  // x[t] = x[t] + bias                             x [T, n] in place, bias [n]
  virtual void add_bias(const Tensor& x, const Tensor& bias) = 0;

  // Which experts each token goes to, and with which weights (experts.h): those of the k largest scores, of equal ones the
  // lower. NaN is above all numbers.               scores [T, E] -> experts [T, k] i32, ascending; weights [T, k]
  virtual void route(const Tensor& scores, const Routing& routing, const Tensor& experts, const Tensor& weights) = 0;

  // outs[i][p] = norm(x[p]) . w^T for each place p = t * k + j, where w is weights[i][experts[t, j]]. Each expert's weights
  // are read once. x may have a row for each token, which all its places take: then x[t] stands for x[p].
  //                           x [T, cols] or [T * k, cols], experts [T, k] i32 -> outs[i] [T * k, rows_i]
  virtual void matmul_experts(std::span<const ExpertWeights> weights, const Tensor& x, const Tensor& experts,
                              std::span<const Tensor> outs, const Norm& norm = {}) = 0;

  // x[p] = x[p] + biases[expert of p]              x [T * k, n] in place, biases [E, n], experts [T, k] i32
  virtual void add_expert_bias(const Tensor& x, const Tensor& biases, const Tensor& experts) = 0;

  // out[t] = sum over j, in order, of weights[t, j] * x[t * k + j]         x [T * k, n], weights [T, k] -> out [T, n]
  virtual void mix_experts(const Tensor& x, const Tensor& weights, const Tensor& out) = 0;

  // Calls work(begin, end) for parts of [0, count), on all threads where the `bytes` that are moved are worth it. For what
  // is no op: copies of activations.
  virtual void parallel_for(std::int64_t count, std::int64_t bytes,
                            FunctionRef<void(std::int64_t, std::int64_t)> work) = 0;

  // float32 to float16, to nearest even, by the calling thread. For what is no op: copies of activations.
  virtual void narrow(const float* x, std::uint16_t* out, std::int64_t n) const;

  // Returns when all ops so far have been done and their results can be read.
  virtual void sync() = 0;
};

// kind: "cpu" or "metal". threads: 0 for default_threads(). The environment variable LLAMA2CPP_ISA, where it
// is set, names the CPU kernels: reference, scalar, avx2, avx512, neon or a variant of one (isa/select.cpp has the list).
std::shared_ptr<Backend> make_backend(std::string_view kind, int threads, Arithmetic arithmetic = Arithmetic::contract);

// Metal's device on this machine.
struct MetalStatus {
  std::string device;  // "Apple M2"; empty: there is none that can be used
  std::string reason;  // why not
};
MetalStatus metal_status();
// Whether "auto" may take it where it is there: not the software device, which is for tests.
bool metal_by_itself();

}  // namespace llama2cpp
