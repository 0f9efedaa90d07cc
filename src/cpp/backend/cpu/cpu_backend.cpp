// The CPU backend's small ops, its threads and its memory. Matmul and attention have files of their own.
#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <utility>

#include "backend/cpu/isa/select.h"
#include "backend/op_checks.h"
#include "core/available_memory.h"
#include "format/weight_rows.h"

namespace llama2cpp {
namespace {

// A region costs a few hundred nanoseconds where threads still spin and ten times that where they sleep. Below this
// much work one thread is faster.
constexpr std::int64_t kWorthWaking = 4000;

}  // namespace

std::shared_ptr<Backend> make_cpu_backend(int threads, Arithmetic arithmetic) {
  const char* isa = std::getenv("LLAMA2CPP_ISA");
  const KernelTable& kernels = select_kernels(isa == nullptr ? "" : isa, arithmetic);
  return std::make_shared<CpuBackend>(threads == 0 ? default_threads() : threads, kernels);
}

CpuBackend::CpuBackend(int threads, const KernelTable& kernels, ThreadPool::StartThread start)
    : kernels_(kernels), pool_(threads, std::move(start)), scratch_(static_cast<std::size_t>(threads)) {}

void CpuBackend::acquire(FunctionRef<void()> poll) {
  lease_.lock(poll);
  if (lease_.inherited()) {  // half written, perhaps: left alone
    std::construct_at(&scratch_, static_cast<std::size_t>(threads()));
    std::construct_at(&tiles_);
    std::construct_at(&expert_calls_);
  }
  poll_ = poll;
  std::fegetenv(&callers_float_mode_);
  std::fesetenv(FE_DFL_ENV);
}

void CpuBackend::release() {
  if (!lease_.mine()) return;
  std::fesetenv(&callers_float_mode_);
  lease_.unlock();
}

std::string CpuBackend::take_warning() {
  const std::lock_guard lock(warning_lock_);
  has_warning_.store(false, std::memory_order_relaxed);
  return std::exchange(warning_, {});
}

std::size_t CpuBackend::memory_left() const { return available_memory(); }

void CpuBackend::region(std::int64_t cost, FunctionRef<void(int, int)> work) {
  if (threads() == 1 || cost < kWorthWaking) return work(0, 1);
  pool_.run(work, cost);
  if (!pool_.has_warning()) [[likely]]
    return;
  const std::lock_guard lock(warning_lock_);
  warning_ = pool_.take_warning();
  has_warning_.store(true, std::memory_order_relaxed);
}

void CpuBackend::each_row(std::int64_t rows, std::int64_t cost_of_row, FunctionRef<void(std::int64_t)> row) {
  region(rows > 1 ? rows * cost_of_row : 0, [&](int w, int n) {
    const Range mine = share(rows, w, n);
    for (std::int64_t t = mine.begin; t < mine.end; ++t) row(t);
  });
}

void CpuBackend::each_piece(std::int64_t rows, std::int64_t columns,
                            FunctionRef<void(std::int64_t, std::int64_t, std::int64_t)> piece) {
  constexpr std::int64_t kPiece = 1024;
  const std::int64_t pieces = (columns + kPiece - 1) / kPiece;
  region(rows * columns, [&](int w, int workers) {
    const Range mine = share(rows * pieces, w, workers);
    for (std::int64_t i = mine.begin; i < mine.end; ++i) {
      const std::int64_t begin = i % pieces * kPiece;
      piece(i / pieces, begin, std::min(kPiece, columns - begin));
    }
  });
}

void CpuBackend::parallel_for(std::int64_t count, std::int64_t bytes,
                              FunctionRef<void(std::int64_t, std::int64_t)> work) {
  region(count > 1 ? bytes / 8 : 0, [&](int w, int n) {
    const Range mine = share(count, w, n);
    if (mine.begin < mine.end) work(mine.begin, mine.end);
  });
}

void CpuBackend::reserve_scratch(std::int64_t bytes) {
  const auto needed = static_cast<std::size_t>(bytes);
  for (Buffer& memory : scratch_) {
    if (memory.size() < needed) memory = Buffer::heap(needed + needed / 2);
  }
}

void CpuBackend::embed(const Weight& table, std::span<const std::int32_t> tokens, const Tensor& out) {
  op_checks::embed(table, tokens, out);
  const auto rows = static_cast<std::int64_t>(tokens.size());
  if (!has_file_rows(table)) {
    return each_row(rows, table.cols / 4,
                    [&](std::int64_t t) { table.decode_row(tokens[static_cast<std::size_t>(t)], out.row(t)); });
  }
  reserve_scratch(static_cast<std::int64_t>(rows_memory(table, 1)));
  region(rows > 1 ? rows * table.cols / 4 : 0, [&](int w, int n) {
    const Range mine = share(rows, w, n);
    for (std::int64_t t = mine.begin; t < mine.end; ++t) {
      read_rows(table, tokens[static_cast<std::size_t>(t)], 1, scratch(w)).decode_row(0, out.row(t));
    }
  });
}

void CpuBackend::take_rows(const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) {
  op_checks::take_rows(x, rows, out);
  const std::int64_t n = x.columns();
  each_row(out.rows(), n / 8,
           [&](std::int64_t r) { std::copy_n(x.row(rows[static_cast<std::size_t>(r)]), n, out.row(r)); });
}

void CpuBackend::rms_scale(const Tensor& x, float eps, const Tensor& scale) {
  op_checks::rms_scale(x, scale);
  const std::int64_t n = x.columns();
  each_row(x.rows(), n / 8, [&](std::int64_t t) {
    const float mean = kernels_.sum_squares(x.row(t), n) / static_cast<float>(n);
    *scale.row(t) = std::sqrt(mean + eps);
  });
}

void CpuBackend::center(const Tensor& x, const Tensor& out) {
  op_checks::center(x, out);
  const std::int64_t n = x.columns();
  each_row(x.rows(), n / 8, [&](std::int64_t t) { kernels_.center(x.row(t), out.row(t), n); });
}

void CpuBackend::normalize(const Tensor& x, const Norm& norm, const Tensor& out) {
  op_checks::normalize(x, norm, out);
  const std::int64_t n = x.columns();
  const float* const gain = norm.gain ? norm.gain.row(0) : nullptr;
  each_row(x.rows(), n / 8,
           [&](std::int64_t t) { kernels_.scale(x.row(t), 1.0F / *norm.scale.row(t), gain, out.row(t), n); });
}

void CpuBackend::scale(const Tensor& x, float factor, const Tensor& out) {
  op_checks::scale(x, factor, out);
  const std::int64_t n = x.columns();
  each_row(x.rows(), n / 8, [&](std::int64_t t) { kernels_.scale(x.row(t), factor, nullptr, out.row(t), n); });
}

void CpuBackend::rope(const Tensor& x, const Tensor& cos, const Tensor& sin, std::int64_t head_dim, RopeStyle style) {
  op_checks::rope(x, cos, sin, head_dim);
  const auto turn = style == RopeStyle::interleaved ? kernels_.rope_interleaved : kernels_.rope_half_split;
  each_row(x.rows(), x.columns() / 4, [&](std::int64_t t) {
    const std::int64_t turned = 2 * cos.columns();
    for (std::int64_t i = 0; i < x.columns(); i += head_dim) turn(x.row(t) + i, cos.row(t), sin.row(t), turned);
  });
}

void CpuBackend::gated(Activation activation, const Tensor& gate, const Tensor& up, const Tensor& out) {
  op_checks::gated(gate, up, out);
  apply(activation, gate, up, out);
}

void CpuBackend::activate(Activation activation, const Tensor& x, const Tensor& out) {
  op_checks::activate(activation, x, out);
  apply(activation, x, {}, out);
}

void CpuBackend::apply(Activation activation, const Tensor& x, const Tensor& up, const Tensor& out) {
  each_piece(x.rows(), x.columns(), [&](std::int64_t t, std::int64_t begin, std::int64_t n) {
    kernels_.gated(activation, x.row(t) + begin, up ? up.row(t) + begin : nullptr, out.row(t) + begin, n);
  });
}

void CpuBackend::soft_cap(const Tensor& x, float cap, const Tensor& out) {
  op_checks::soft_cap(x, cap, out);
  each_piece(x.rows(), x.columns(), [&](std::int64_t t, std::int64_t begin, std::int64_t n) {
    kernels_.soft_cap(x.row(t) + begin, cap, out.row(t) + begin, n);
  });
}

void CpuBackend::add(const Tensor& a, const Tensor& b, const Tensor& out) {
  op_checks::add(a, b, out);
  const std::int64_t n = a.columns();
  each_row(a.rows(), n / 8, [&](std::int64_t t) { kernels_.add(a.row(t), b.row(t), out.row(t), n); });
}

void CpuBackend::add_bias(const Tensor& x, const Tensor& bias) {
  op_checks::add_bias(x, bias);
  const std::int64_t n = x.columns();
  each_row(x.rows(), n / 8, [&](std::int64_t t) { kernels_.add(x.row(t), bias.row(0), x.row(t), n); });
}

}  // namespace llama2cpp
