// The ops, each as its checks and its dispatches; who may use the GPU when; and what is refused.
#include "backend/metal/metal_backend.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/metal/attention.h"
#include "backend/metal/kernels/args.h"
#include "backend/metal/products.h"
#include "backend/metal/self_test.h"
#include "backend/metal/tools.h"
#include "backend/op_checks.h"
#include "core/check.h"
#include "core/wait_lock.h"

namespace llama2cpp {
namespace metal {
namespace {

class MetalBackend final : public Backend {
 public:
  MetalBackend() : isa_(cat("apple", tools_.device.limits().family)) {}

  std::string_view name() const override { return "metal"; }
  std::string_view isa() const override { return isa_; }
  int threads() const override { return 1; }
  std::string_view device() const { return tools_.device.limits().device; }

  void acquire(FunctionRef<void()> poll) override {
    tools_.device.check_process();
    lease_.lock(poll);
    poll_ = poll;
    pool_.emplace();
    tools_.memory.want_resident();
  }

  void release() override {
    if (!lease_.mine()) return;
    if (!tools_.device.forked()) {
      tools_.pass.drop();
      tools_.memory.purge();
    }
    pool_.reset();
    lease_.unlock();
  }

  FunctionRef<void()> poll() const override { return *poll_; }
  bool has_warning() const override { return false; }
  std::string take_warning() override { return {}; }

  Buffer alloc(std::size_t bytes) override { return tools_.memory.alloc(bytes); }
  std::size_t memory_left() const override { return tools_.memory.left(); }
  std::size_t largest_piece() const override { return tools_.device.limits().buffer; }
  bool packs() const override { return false; }
  bool multiplies_integers() const override { return false; }
  using Backend::pack;
  void pack(std::span<Weight* const>) override {}
  std::size_t packed_bytes(const Weight&) const override { return 0; }

  // Kernels that this system's compiler does not take are found here, when a backend is chosen: not in the first pass.
  std::string refuses(const Weight& weight) const override {
    std::string reason = refused(weight);
    return reason.empty() ? tools_.device.problem_of(library_of(weight)) : reason;
  }

  bool routes_experts() const override { return false; }
  bool takes_adapters() const override { return false; }

  void embed(const Weight& table, std::span<const std::int32_t> tokens, const Tensor& out) override {
    op_checks::embed(table, tokens, out);
    metal::embed(tools_, table, tokens, out);
  }

  void take_rows(const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) override {
    op_checks::take_rows(x, rows, out);
    constexpr std::size_t kAtOnce = kMostValues / sizeof(std::uint32_t);
    std::vector<std::uint32_t> taken;
    for (std::size_t begin = 0; begin < rows.size(); begin += kAtOnce) {
      const auto part = rows.subspan(begin, std::min(kAtOnce, rows.size() - begin));
      taken.clear();
      for (const std::int64_t row : part) taken.push_back(size32(row, "take_rows"));
      const Tensor to = out.slice(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(part.size()));
      run("take_rows", x, x, to,
          {tools_.reads(x, "take_rows", "x"), Operand::copied(taken.data(), taken.size() * sizeof(std::uint32_t)),
           tools_.writes(to, "take_rows", "out")});
    }
  }

  void rms_scale(const Tensor& x, float eps, const Tensor& scale) override {
    constexpr const char* op = "rms_scale";
    op_checks::rms_scale(x, scale);
    const NormArgs args{.columns = size32(x.columns(), op),
                        .x_stride = size32(x.row_stride, op),
                        .scale_stride = size32(scale.row_stride, op),
                        .out_stride = 0,
                        .eps = eps};
    tools_.pass.dispatch(tools_.device.kernel("norm", "rms_scale"),
                         {tools_.reads(x, op, "x"), tools_.writes(scale, op, "scale")}, args, by_rows(x, op),
                         cost(x, 1));
  }

  void center(const Tensor& x, const Tensor& out) override {
    constexpr const char* op = "center";
    op_checks::center(x, out);
    const NormArgs args{.columns = size32(x.columns(), op),
                        .x_stride = size32(x.row_stride, op),
                        .scale_stride = 0,
                        .out_stride = size32(out.row_stride, op),
                        .eps = 0.0F};
    tools_.pass.dispatch(tools_.device.kernel("norm", "center"),
                         {tools_.reads(x, op, "x"), tools_.writes(out, op, "out")}, args, by_rows(x, op), cost(x, 3));
  }

  void normalize(const Tensor& x, const Norm& norm, const Tensor& out) override {
    op_checks::normalize(x, norm, out);
    encode_normalize(tools_, x, norm, out, "normalize");
  }

  void scale(const Tensor& x, float factor, const Tensor& out) override {
    op_checks::scale(x, factor, out);
    with_number("scale", x, factor, out);
  }

  void matmul(std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs,
              const Norm& norm) override {
    op_checks::matmul(weights, x, outs, norm);
    metal::matmul(tools_, weights, x, outs, norm);
  }

  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, std::int64_t head_dim, RopeStyle style) override {
    constexpr const char* op = "rope";
    op_checks::rope(x, cos, sin, head_dim);
    const std::int64_t pairs = x.columns() / head_dim * cos.columns();
    const RopeArgs args{.pairs = size32(pairs, op),
                        .x_stride = size32(x.row_stride, op),
                        .cos_stride = size32(cos.row_stride, op),
                        .sin_stride = size32(sin.row_stride, op)};
    const Kernel& kernel = tools_.device.kernel(
        "rope", "rope",
        {{0, size32(cos.columns(), op)}, {1, style == RopeStyle::half_split ? 1U : 0U}, {2, size32(head_dim, op)}});
    tools_.pass.dispatch(
        kernel,
        {tools_.operand(x, Access::read_write, op, "x"), tools_.reads(cos, op, "cos"), tools_.reads(sin, op, "sin")},
        args, by_pieces(x.rows(), pairs, kPairPiece, op), cost(x, 2));
  }

  void store_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans) override {
    op_checks::store_kv(k, v, spans);
    metal::store_kv(tools_, k, v, spans);
  }

  void attention(const Tensor& q, std::span<const AttentionSpan> spans, const Tensor& z, AttentionStage first,
                 AttentionStage last) override {
    op_checks::attention(q, spans, z, first, last);
    metal::attention(tools_, q, spans, z, first, last);
  }

  void gated(Activation activation, const Tensor& gate, const Tensor& up, const Tensor& out) override {
    constexpr const char* op = "gated";
    op_checks::gated(gate, up, out);
    const Constant constants[] = {{0, static_cast<std::uint32_t>(activation)}};
    const bool in_gate = same(out, gate);
    const bool in_up = same(out, up);
    if (in_gate && in_up) {
      run("gated_in_both", gate, up, out, {changes(gate, op, "gate")}, constants);
    } else if (in_gate) {
      run("gated_in_gate", gate, up, out, {changes(gate, op, "gate"), tools_.reads(up, op, "up")}, constants);
    } else if (in_up) {
      run("gated_in_up", gate, up, out, {tools_.reads(gate, op, "gate"), changes(up, op, "up")}, constants);
    } else {
      run("gated", gate, up, out,
          {tools_.reads(gate, op, "gate"), tools_.reads(up, op, "up"), tools_.writes(out, op, "out")}, constants);
    }
  }

  void activate(Activation activation, const Tensor& x, const Tensor& out) override {
    constexpr const char* op = "activate";
    op_checks::activate(activation, x, out);
    const Constant constants[] = {{0, static_cast<std::uint32_t>(activation)}};
    if (same(out, x)) {
      run("activate_in_place", x, x, out, {changes(x, op, "x")}, constants);
    } else {
      run("activate", x, x, out, {tools_.reads(x, op, "x"), tools_.writes(out, op, "out")}, constants);
    }
  }

  void soft_cap(const Tensor& x, float cap, const Tensor& out) override {
    op_checks::soft_cap(x, cap, out);
    with_number("soft_cap", x, cap, out);
  }

  void add(const Tensor& a, const Tensor& b, const Tensor& out) override {
    op_checks::add(a, b, out);
    const bool in_a = same(out, a);
    const bool in_b = same(out, b);
    if (in_a && in_b) {
      run("double_in_place", a, b, out, {changes(a, "add", "a")});
    } else if (in_a) {
      run("add_in_place", a, b, out, {changes(a, "add", "a"), tools_.reads(b, "add", "b")});
    } else if (in_b) {
      run("add_in_place", b, a, out, {changes(b, "add", "b"), tools_.reads(a, "add", "a")});
    } else {
      run("add", a, b, out,
          {tools_.reads(a, "add", "a"), tools_.reads(b, "add", "b"), tools_.writes(out, "add", "out")});
    }
  }

  void add_bias(const Tensor& x, const Tensor& bias) override {
    op_checks::add_bias(x, bias);
    run("add_bias", x, bias, x, {changes(x, "add_bias", "x"), tools_.reads(bias, "add_bias", "bias")});
  }

  // A model with experts is refused when its backend is chosen.
  void route(const Tensor&, const Routing&, const Tensor&, const Tensor&) override { refuse("route"); }
  void matmul_experts(std::span<const ExpertWeights>, const Tensor&, const Tensor&, std::span<const Tensor>,
                      const Norm&) override {
    refuse("matmul_experts");
  }
  void add_expert_bias(const Tensor&, const Tensor&, const Tensor&) override { refuse("add_expert_bias"); }
  void mix_experts(const Tensor&, const Tensor&, const Tensor&) override { refuse("mix_experts"); }

  // Copies of the host's, in the memory that both have.
  void parallel_for(std::int64_t count, std::int64_t, FunctionRef<void(std::int64_t, std::int64_t)> work) override {
    if (count > 0) work(0, count);
  }

  void sync() override { tools_.pass.wait(); }

 private:
  [[noreturn]] static void refuse(const char* op) {
    throw FormatError(cat("[", op, "] there is no Metal kernel for experts; use backend='cpu'"));
  }

  Operand changes(const Tensor& tensor, const char* op, const char* name) const {
    return tools_.operand(tensor, Access::read_write, op, name);
  }

  // A group for each row, with a float for each of its simdgroups.
  static Grid by_rows(const Tensor& x, const char* op) {
    const std::int64_t threads = std::clamp<std::int64_t>((x.columns() + 31) / 32 * 32, 32, 256);
    return {.groups = {size32(x.rows(), op), 1, 1},
            .threads = {static_cast<std::uint32_t>(threads), 1, 1},
            .shared = static_cast<std::size_t>(threads / 32) * sizeof(float)};
  }

  // Of some passes over a tensor's numbers.
  static Cost cost(const Tensor& x, int times) {
    return {.bytes = 4.0 * times * static_cast<double>(x.rows() * x.columns())};
  }

  // A kernel of elementwise.metal.
  void run(const char* kernel, const Tensor& a, const Tensor& b, const Tensor& out,
           std::initializer_list<Operand> operands, std::span<const Constant> constants = {}) {
    const ElementwiseArgs args{.columns = size32(out.columns(), kernel),
                               .a_stride = size32(a.row_stride, kernel),
                               .b_stride = size32(b.row_stride, kernel),
                               .out_stride = size32(out.row_stride, kernel)};
    tools_.pass.dispatch(tools_.device.kernel("elementwise", kernel, constants), operands, args,
                         by_pieces(out.rows(), out.columns(), kColumnPiece, kernel), cost(out, 3));
  }

  // A kernel of elementwise.metal of each number of x and one of the host's, or its form in place.
  void with_number(const char* op, const Tensor& x, float number, const Tensor& out) {
    const NumberArgs args{.columns = size32(x.columns(), op),
                          .x_stride = size32(x.row_stride, op),
                          .out_stride = size32(out.row_stride, op),
                          .number = number};
    const Grid grid = by_pieces(x.rows(), x.columns(), kColumnPiece, op);
    if (same(out, x)) {
      tools_.pass.dispatch(tools_.device.kernel("elementwise", cat(op, "_in_place")), {changes(x, op, "x")}, args, grid,
                           cost(x, 2));
    } else {
      tools_.pass.dispatch(tools_.device.kernel("elementwise", op),
                           {tools_.reads(x, op, "x"), tools_.writes(out, op, "out")}, args, grid, cost(x, 2));
    }
  }

  mutable Tools tools_;  // refuses() compiles
  std::string isa_;
  WaitLock lease_;
  std::optional<FunctionRef<void()>> poll_;  // of whoever has the lease, and so are the next
  std::optional<Pool> pool_;
};

}  // namespace
}  // namespace metal

namespace {

std::shared_ptr<metal::MetalBackend> make_tested() {
  const metal::Pool pool;
  auto backend = std::make_shared<metal::MetalBackend>();
  metal::self_test(*backend);
  return backend;
}

}  // namespace

std::shared_ptr<Backend> make_metal_backend() {
  try {
    return make_tested();
  } catch (const metal::Unavailable& e) {
    throw std::invalid_argument(cat("backend is 'metal', but ", *e.reason, "; use 'cpu'"));
  }
}

MetalStatus metal_status() {
  try {
    return {std::string(make_tested()->device()), {}};
  } catch (const metal::Unavailable& e) {
    return {{}, *e.reason};
  } catch (const std::exception& e) {
    return {{}, e.what()};
  }
}

bool metal_by_itself() {
#ifdef LLAMA2CPP_SOFT_METAL
  return std::getenv("LLAMA2CPP_AUTO_METAL") != nullptr;
#else
  return true;
#endif
}

}  // namespace llama2cpp
