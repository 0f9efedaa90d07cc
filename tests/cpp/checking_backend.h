// A CPU backend that checks what another device would need: that everything its ops read and write, but for weights, lies
// in memory that it made. It can be told to lack what a backend may lack.
#pragma once

#include <doctest/doctest.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <string>

#include "backend/cpu/cpu_backend.h"

namespace tiny {

class CheckingBackend final : public llama2cpp::Backend {
 public:
  using Buffer = llama2cpp::Buffer;
  using Tensor = llama2cpp::Tensor;
  using Weight = llama2cpp::Weight;
  using Spans = std::span<const llama2cpp::AttentionSpan>;

  explicit CheckingBackend(int threads = 1) : cpu_(threads, *llama2cpp::scalar_kernels()) {}

  // What it lacks, and what it has seen.
  bool can_pack = true;
  bool can_multiply_integers = true;
  std::size_t left = std::size_t{1} << 40;
  std::map<std::string, int> calls;  // of each op
  int syncs = 0;
  std::size_t reserved = 0;  // bytes

  std::string_view name() const override { return "checking"; }
  std::string_view isa() const override { return cpu_.isa(); }
  int threads() const override { return cpu_.threads(); }
  void acquire(llama2cpp::FunctionRef<void()> poll) override { cpu_.acquire(poll); }
  void release() override { cpu_.release(); }
  llama2cpp::FunctionRef<void()> poll() const override { return cpu_.poll(); }
  bool has_warning() const override { return cpu_.has_warning(); }
  std::string take_warning() override { return cpu_.take_warning(); }

  Buffer alloc(std::size_t bytes) override { return keep(Buffer::heap(bytes), bytes); }
  Buffer reserve(std::size_t bytes) override {
    reserved += bytes;
    return alloc(bytes);
  }
  bool reserves() const override { return true; }
  std::size_t memory_left() const override { return left; }
  bool packs() const override { return can_pack; }
  bool multiplies_integers() const override { return can_multiply_integers; }

  using Backend::pack;
  void pack(std::span<Weight* const> weights) override {
    CHECK(can_pack);
    cpu_.pack(weights);
  }
  std::size_t packed_bytes(const Weight& weight) const override { return cpu_.packed_bytes(weight); }

  void embed(const Weight& table, std::span<const std::int32_t> tokens, const Tensor& out) override {
    expect("embed", {out});
    cpu_.embed(table, tokens, out);
  }
  void take_rows(const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) override {
    expect("take_rows", {x, out});
    cpu_.take_rows(x, rows, out);
  }
  void rms_scale(const Tensor& x, float eps, const Tensor& scale) override {
    expect("rms_scale", {x, scale});
    cpu_.rms_scale(x, eps, scale);
  }
  void center(const Tensor& x, const Tensor& out) override {
    expect("center", {x, out});
    cpu_.center(x, out);
  }
  void normalize(const Tensor& x, const llama2cpp::Norm& norm, const Tensor& out) override {
    expect("normalize", {x, norm.scale, norm.gain, out});
    cpu_.normalize(x, norm, out);
  }
  void scale(const Tensor& x, float factor, const Tensor& out) override {
    expect("scale", {x, out});
    cpu_.scale(x, factor, out);
  }
  void matmul(std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs,
              const llama2cpp::Norm& norm) override {
    expect("matmul", {x, norm.scale, norm.gain});
    for (const Tensor& out : outs) expect("matmul", {out});
    for (const Weight* weight : weights) CHECK((can_multiply_integers || !weight->int8_input));
    cpu_.matmul(weights, x, outs, norm);
  }
  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, std::int64_t head_dim,
            llama2cpp::RopeStyle style) override {
    expect("rope", {x, cos, sin});
    cpu_.rope(x, cos, sin, head_dim, style);
  }
  void store_kv(const Tensor& k, const Tensor& v, Spans spans) override {
    expect("store_kv", {k, v});
    for (const auto& span : spans) expect("store_kv", {span.keys, span.values});
    cpu_.store_kv(k, v, spans);
  }
  void attention(const Tensor& q, Spans spans, const Tensor& z, llama2cpp::AttentionStage first,
                 llama2cpp::AttentionStage last) override {
    expect("attention", {q, z});
    for (const auto& span : spans) expect("attention", {span.keys, span.values, span.sinks, span.scores, span.pattern});
    cpu_.attention(q, spans, z, first, last);
  }
  void gated(llama2cpp::Activation activation, const Tensor& gate, const Tensor& up, const Tensor& out) override {
    expect("gated", {gate, up, out});
    cpu_.gated(activation, gate, up, out);
  }
  void activate(llama2cpp::Activation activation, const Tensor& x, const Tensor& out) override {
    expect("activate", {x, out});
    cpu_.activate(activation, x, out);
  }
  void soft_cap(const Tensor& x, float cap, const Tensor& out) override {
    expect("soft_cap", {x, out});
    cpu_.soft_cap(x, cap, out);
  }
  void add(const Tensor& a, const Tensor& b, const Tensor& out) override {
    expect("add", {a, b, out});
    cpu_.add(a, b, out);
  }
  void add_bias(const Tensor& x, const Tensor& bias) override {
    expect("add_bias", {x, bias});
    cpu_.add_bias(x, bias);
  }
  void route(const Tensor& scores, const llama2cpp::Routing& routing, const Tensor& experts,
             const Tensor& weights) override {
    expect("route", {scores, experts, weights});
    cpu_.route(scores, routing, experts, weights);
  }
  void matmul_experts(std::span<const llama2cpp::ExpertWeights> weights, const Tensor& x, const Tensor& experts,
                      std::span<const Tensor> outs, const llama2cpp::Norm& norm) override {
    expect("matmul_experts", {x, experts, norm.scale, norm.gain});
    for (const Tensor& out : outs) expect("matmul_experts", {out});
    cpu_.matmul_experts(weights, x, experts, outs, norm);
  }
  void add_expert_bias(const Tensor& x, const Tensor& biases, const Tensor& experts) override {
    expect("add_expert_bias", {x, biases, experts});
    cpu_.add_expert_bias(x, biases, experts);
  }
  void mix_experts(const Tensor& x, const Tensor& weights, const Tensor& out) override {
    expect("mix_experts", {x, weights, out});
    cpu_.mix_experts(x, weights, out);
  }
  void parallel_for(std::int64_t count, std::int64_t bytes,
                    llama2cpp::FunctionRef<void(std::int64_t, std::int64_t)> work) override {
    cpu_.parallel_for(count, bytes, work);
  }
  void sync() override { ++syncs; }

 private:
  // The memory leaves the list when the last handle on it goes.
  Buffer keep(Buffer memory, std::size_t bytes) {
    const std::byte* const begin = memory.data();
    {
      const std::lock_guard lock(*lock_);
      (*made_)[begin] = bytes;
    }
    const auto owner = std::shared_ptr<const void>(begin, [memory, made = made_, lock = lock_](const void* place) {
      const std::lock_guard locked(*lock);
      made->erase(static_cast<const std::byte*>(place));
    });
    return Buffer::wrap(begin, bytes, owner);
  }

  // Whether all that is there is in memory of this backend's.
  void expect(const char* op, std::initializer_list<Tensor> operands) {
    ++calls[op];
    int place = 0;
    for (const Tensor& t : operands) {
      ++place;
      if (!t || t.rows() * t.columns() == 0) continue;
      CAPTURE(op);
      CAPTURE(place);
      const auto* const begin = static_cast<const std::byte*>(t.data);
      const std::byte* const end = begin + (t.rows() - 1) * t.row_stride * llama2cpp::size_of(t.dtype) +
                                   llama2cpp::bytes_of(t.dtype, t.columns());
      const std::lock_guard lock(*lock_);
      const auto after = made_->upper_bound(begin);
      const bool inside = after != made_->begin() && end <= std::prev(after)->first + std::prev(after)->second;
      CHECK(inside);
    }
  }

  llama2cpp::CpuBackend cpu_;
  std::shared_ptr<std::map<const std::byte*, std::size_t>> made_ =
      std::make_shared<std::map<const std::byte*, std::size_t>>();
  std::shared_ptr<std::mutex> lock_ = std::make_shared<std::mutex>();
};

}  // namespace tiny
