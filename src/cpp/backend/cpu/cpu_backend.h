// The CPU backend: ops cut into work for the pool's threads, each piece done by the kernels of one ISA. Work is cut
// along outputs and never along a sum, so the bits do not depend on the number of threads.
#pragma once

#include <atomic>
#include <cfenv>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernel_table.h"
#include "backend/gradient_ops.h"
#include "core/function_ref.h"
#include "core/thread_pool.h"
#include "core/wait_lock.h"

namespace llama2cpp {

struct ExpertCalls;

class CpuBackend final : public Backend, public GradientOps {
 public:
  CpuBackend(int threads, const KernelTable& kernels, ThreadPool::StartThread start = {});

  std::string_view name() const override { return "cpu"; }
  std::string_view isa() const override { return kernels_.name; }
  int threads() const override { return pool_.threads(); }

  void acquire(FunctionRef<void()> poll) override;
  void release() override;
  FunctionRef<void()> poll() const override { return *poll_; }
  bool has_warning() const override { return has_warning_.load(std::memory_order_relaxed); }
  std::string take_warning() override;
  Buffer alloc(std::size_t bytes) override { return Buffer::heap(bytes); }
  Buffer reserve(std::size_t bytes) override { return Buffer::reserve(bytes); }
  bool reserves() const override { return true; }
  std::size_t memory_left() const override;
  bool packs() const override { return true; }
  bool multiplies_integers() const override { return true; }
  bool multiplies_bf16() const override { return true; }
  using Backend::pack;
  void pack(std::span<Weight* const> weights) override;
  std::size_t packed_bytes(const Weight& weight) const override;
  void embed(const Weight& table, std::span<const std::int32_t> tokens, const Tensor& out) override;
  void take_rows(const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) override;
  void rms_scale(const Tensor& x, float eps, const Tensor& scale) override;
  void center(const Tensor& x, const Tensor& out) override;
  void normalize(const Tensor& x, const Norm& norm, const Tensor& out) override;
  void scale(const Tensor& x, float factor, const Tensor& out) override;
  void matmul(std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs,
              const Norm& norm) override;
  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, std::int64_t head_dim, RopeStyle style) override;
  void store_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans) override;
  void attention(const Tensor& q, std::span<const AttentionSpan> spans, const Tensor& z, AttentionStage first,
                 AttentionStage last) override;
  void gated(Activation activation, const Tensor& gate, const Tensor& up, const Tensor& out) override;
  void activate(Activation activation, const Tensor& x, const Tensor& out) override;
  void soft_cap(const Tensor& x, float cap, const Tensor& out) override;
  void add(const Tensor& a, const Tensor& b, const Tensor& out) override;
  void add_bias(const Tensor& x, const Tensor& bias) override;
  void route(const Tensor& scores, const Routing& routing, const Tensor& experts, const Tensor& weights) override;
  void matmul_experts(std::span<const ExpertWeights> weights, const Tensor& x, const Tensor& experts,
                      std::span<const Tensor> outs, const Norm& norm) override;
  void add_expert_bias(const Tensor& x, const Tensor& biases, const Tensor& experts) override;
  void mix_experts(const Tensor& x, const Tensor& weights, const Tensor& out) override;
  void narrow(const float* x, std::uint16_t* out, std::int64_t n) const override { kernels_.narrow(x, out, n); }
  void parallel_for(std::int64_t count, std::int64_t bytes,
                    FunctionRef<void(std::int64_t, std::int64_t)> work) override;
  void sync() override {}

  GradientOps* gradient_ops() override { return this; }
  void matmul_transposed(std::span<const Weight* const> weights, std::span<const Tensor> dys,
                         const Tensor& out) override;
  void matmul_experts_transposed(std::span<const ExpertWeights> weights, std::span<const Tensor> dys,
                                 const Tensor& experts, const Tensor& out) override;
  void mix_experts_gradient(const Tensor& d, const Tensor& x, const Tensor& weights, const Tensor& dx,
                            const Tensor& dweights) override;
  void route_gradient(const Tensor& scores, const Routing& routing, const Tensor& experts, const Tensor& dweights,
                      const Tensor& dscores) override;
  void norm_scale_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale,
                           const Tensor& dscale) override;
  void norm_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale, const Tensor& dscale) override;
  void gated_gradient(Activation activation, const Tensor& gate, const Tensor& up, const Tensor& d,
                      const Tensor& dup) override;
  void activate_gradient(Activation activation, const Tensor& x, const Tensor& d) override;
  void soft_cap_gradient(const Tensor& y, float cap, const Tensor& d) override;
  void attention_gradient(const Tensor& q, const AttentionSpan& span, const AttentionGradients& gradients) override;

 private:
  // Calls work(worker, workers) for each worker: on all threads where `cost` (about a nanosecond a unit on one thread) is
  // worth waking them, else here alone. One thread may be several workers, so they must not wait for each other.
  void region(std::int64_t cost, FunctionRef<void(int, int)> work);

  // A weight of a mapped file, all of it in memory.
  Weight read_planes(const Weight& weight);

  // gated, or without `up` activate.
  void apply(Activation activation, const Tensor& x, const Tensor& up, const Tensor& out);

  // Calls piece(row, column, count) for pieces of all rows of [rows, columns], shared out. For what takes about a nanosecond a
  // number: a row of a large model is worth sharing out by itself.
  void each_piece(std::int64_t rows, std::int64_t columns,
                  FunctionRef<void(std::int64_t, std::int64_t, std::int64_t)> piece);

  // a . b, as a query with a key.
  float dot(const float* a, const float* b, std::int64_t n) const;

  // Calls row(t) for each t in [0, rows), shared out.
  void each_row(std::int64_t rows, std::int64_t cost_of_row, FunctionRef<void(std::int64_t)> row);

  // Each worker's own memory. It is made before the region; it grows and is kept.
  void reserve_scratch(std::int64_t bytes);
  std::byte* scratch(int worker) { return scratch_[static_cast<std::size_t>(worker)].data(); }

  const KernelTable& kernels_;
  ThreadPool pool_;
  WaitLock lease_;
  std::optional<FunctionRef<void()>> poll_;  // of whoever has the lease, and so is the next
  std::fenv_t callers_float_mode_{};
  std::atomic<bool> has_warning_{false};
  WaitLock warning_lock_;
  std::string warning_;
  std::vector<Buffer> scratch_;  // [threads]
  Buffer tiles_;                 // a matmul's input in each form that its weights want: see matmul_input.h
  std::shared_ptr<ExpertCalls> expert_calls_;  // null until an op on experts has been asked for
};

// d becomes d * (1 - (y / cap)^2), of y = cap * tanh(x / cap).
void back_through_cap(const float* y, float cap, float* d, std::int64_t n);

std::shared_ptr<Backend> make_cpu_backend(int threads, Arithmetic arithmetic);

}  // namespace llama2cpp
