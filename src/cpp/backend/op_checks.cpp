// Shapes, and which operands may be the same memory.
#include "backend/op_checks.h"

#include <cmath>
#include <stdexcept>
#include <utility>

#include "core/check.h"

namespace llama2cpp::op_checks {
namespace {

// An operand with its name in the op's signature.
struct Operand {
  const char* name;
  const Tensor& tensor;
};

// The bytes from a tensor's first element to its last.
struct Extent {
  const std::byte* begin = nullptr;
  const std::byte* end = nullptr;

  explicit Extent(const Tensor& t) {
    if (!t) return;
    const std::int64_t rows = t.rows();
    if (rows == 0 || t.columns() == 0) return;
    begin = static_cast<const std::byte*>(t.data);
    end = begin + (rows - 1) * t.row_stride * size_of(t.dtype) + bytes_of(t.dtype, t.columns());
  }
};

// Whether two tensors whose bytes lie among each other share none: each is some columns of a wider matrix.
bool are_columns_apart(const Tensor& x, const Tensor& y) {
  if (x.row_stride != y.row_stride || size_of(x.dtype) != size_of(y.dtype)) return false;
  const auto* const a = static_cast<const std::byte*>(x.data);
  const auto* const b = static_cast<const std::byte*>(y.data);
  const std::int64_t size = size_of(x.dtype);
  const std::int64_t offset = (a <= b ? b - a : a - b) % (x.row_stride * size);
  const auto [first, second] = a <= b ? std::pair(x.columns(), y.columns()) : std::pair(y.columns(), x.columns());
  return offset >= first * size && offset + second * size <= x.row_stride * size;
}

// Whether two tensors of equal sizes are the same memory.
inline bool same(const Tensor& a, const Tensor& b) {
  return a.data == b.data && (a.row_stride == b.row_stride || a.rows() <= 1);
}

// Apart from the checks, which are made for every op of every step: those stay short.
[[noreturn]] void throw_overlap(const char* op, const Operand& out, const Operand& other, const char* expected) {
  throw std::invalid_argument(cat("[", op, "] ", out.name, " ", shape_text(out.tensor), " overlaps ", other.name, " ",
                                  shape_text(other.tensor), ", expected ", expected));
}

inline void need_apart(const char* op, const Operand& out, const Extent& out_bytes, const Operand& other,
                       const Extent& bytes) {
  if (out_bytes.end <= bytes.begin || bytes.end <= out_bytes.begin) [[likely]]
    return;
  if (!are_columns_apart(out.tensor, other.tensor)) throw_overlap(op, out, other, "memory of its own");
}

inline void need_apart(const char* op, const Operand& out, const Operand& other) {
  need_apart(op, out, Extent(out.tensor), other, Extent(other.tensor));
}

inline void need_same_or_apart(const char* op, const Operand& out, const Operand& in) {
  if (same(out.tensor, in.tensor)) return;
  const Extent x(out.tensor);
  const Extent y(in.tensor);
  if (x.end <= y.begin || y.end <= x.begin) [[likely]]
    return;
  if (!are_columns_apart(out.tensor, in.tensor)) throw_overlap(op, out, in, "the same tensor or memory of its own");
}

// What all elementwise ops expect: [T, n] views with the same T and n.
void need_same_shape(const char* op, const Operand& a, const Operand& b) {
  LLAMA2CPP_CHECK(a.tensor.rows() == b.tensor.rows() && a.tensor.columns() == b.tensor.columns(), "[", op, "] ", a.name,
                  " is ", shape_text(a.tensor), " but ", b.name, " is ", shape_text(b.tensor));
}

// A number for each row of x: [T, 1].
void need_scale(const char* op, const Tensor& x, const Operand& scale) {
  LLAMA2CPP_CHECK(scale.tensor.rows() == x.rows() && scale.tensor.columns() == 1, "[", op, "] x is ", shape_text(x),
                  " but ", scale.name, " is ", shape_text(scale.tensor));
}

// A number for each column of x: [n].
void need_vector(const char* op, const Tensor& x, const Operand& vector) {
  LLAMA2CPP_CHECK(vector.tensor.rank == 1 && vector.tensor.dim(0) == x.columns(), "[", op, "] x is ", shape_text(x),
                  " but ", vector.name, " is ", shape_text(vector.tensor), ", expected [", x.columns(), "]");
}

void need_spans(const char* op, std::span<const AttentionSpan> spans, std::int64_t rows) {
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

// Scores or pattern of a span: [n_heads, count, position + count].
void need_pattern(const Tensor& q, const AttentionSpan& span, const Operand& pattern, bool needed) {
  const Tensor& t = pattern.tensor;
  LLAMA2CPP_CHECK(t || !needed, "[attention] a stage alone needs a place for ", pattern.name);
  const std::int64_t heads = q.columns() / span.keys.columns();
  const std::int64_t keys = span.position + span.count;
  LLAMA2CPP_CHECK(!t || (t.rank == 3 && t.dim(0) == heads && t.dim(1) == span.count && t.dim(2) == keys),
                  "[attention] ", pattern.name, " is ", shape_text(t), ", expected [", heads, ", ", span.count, ", ",
                  keys, "]");
}

// [rows, n] of numbers, one row for each place of the experts.
void need_places(const char* op, const Operand& x, std::int64_t places) {
  LLAMA2CPP_CHECK(x.tensor.rows() == places, "[", op, "] ", x.name, " is ", shape_text(x.tensor), ", expected ", places,
                  " rows");
}

}  // namespace

void need_experts(const char* op, const Tensor& experts, std::int64_t n_experts) {
  LLAMA2CPP_CHECK(experts.rank == 2 && experts.dtype == DType::i32 && experts.columns() >= 1, "[", op, "] experts are ",
                  shape_text(experts), ", expected [T, k] of type i32");
  for (std::int64_t t = 0; t < experts.rows(); ++t) {
    const std::int32_t* const row = experts.integers(t);
    for (std::int64_t j = 0; j < experts.columns(); ++j) {
      LLAMA2CPP_CHECK(row[j] >= (j == 0 ? 0 : row[j - 1] + 1) && row[j] < n_experts, "[", op, "] expert ", j,
                      " of token ", t, " is ", row[j], ", expected numbers of ", n_experts, " experts, ascending");
    }
  }
}

void embed(const Weight& table, std::span<const std::int32_t> tokens, const Tensor& out) {
  const auto rows = static_cast<std::int64_t>(tokens.size());
  LLAMA2CPP_CHECK(out.rows() == rows && out.columns() == table.cols, "[embed] table is ", shape_text(table), " and ",
                  rows, " tokens were given, but out is ", shape_text(out));
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    LLAMA2CPP_CHECK(tokens[t] >= 0 && tokens[t] < table.rows, "[embed] token ", t, " is ", tokens[t],
                    ", expected 0 to ", table.rows - 1);
  }
}

void take_rows(const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) {
  const auto count = static_cast<std::int64_t>(rows.size());
  LLAMA2CPP_CHECK(out.rows() == count && out.columns() == x.columns(), "[take_rows] x is ", shape_text(x), " and ",
                  count, " rows were named, but out is ", shape_text(out));
  for (const std::int64_t row : rows) {
    LLAMA2CPP_CHECK(row >= 0 && row < x.rows(), "[take_rows] x is ", shape_text(x), ", but row ", row, " was named");
  }
  need_apart("take_rows", {"out", out}, {"x", x});
}

void rms_scale(const Tensor& x, const Tensor& scale) {
  need_scale("rms_scale", x, {"scale", scale});
  need_apart("rms_scale", {"scale", scale}, {"x", x});
}

void center(const Tensor& x, const Tensor& out) {
  need_same_shape("center", {"x", x}, {"out", out});
  need_apart("center", {"out", out}, {"x", x});
}

void normalize(const Tensor& x, const Norm& norm, const Tensor& out) {
  need_same_shape("normalize", {"x", x}, {"out", out});
  LLAMA2CPP_CHECK(norm.scale, "[normalize] x is ", shape_text(x), " but there is no norm.scale");
  need_scale("normalize", x, {"norm.scale", norm.scale});
  if (norm.gain) need_vector("normalize", x, {"norm.gain", norm.gain});
  need_same_or_apart("normalize", {"out", out}, {"x", x});
  need_apart("normalize", {"out", out}, {"norm.scale", norm.scale});
  need_apart("normalize", {"out", out}, {"norm.gain", norm.gain});
}

void scale(const Tensor& x, float factor, const Tensor& out) {
  LLAMA2CPP_CHECK(std::isfinite(factor), "[scale] the factor is ", factor, ", expected a finite number");
  need_same_shape("scale", {"x", x}, {"out", out});
  need_same_or_apart("scale", {"out", out}, {"x", x});
}

void matmul(std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs, const Norm& norm) {
  LLAMA2CPP_CHECK(weights.size() == outs.size() && !weights.empty(), "[matmul] ", weights.size(), " weights but ",
                  outs.size(), " outs");
  const Operand input{"x", x};
  const Operand scale{"norm.scale", norm.scale};
  const Operand gain{"norm.gain", norm.gain};
  const Extent input_bytes(x);
  const Extent scale_bytes(norm.scale);
  const Extent gain_bytes(norm.gain);
  if (norm.scale) need_scale("matmul", x, scale);
  if (norm.gain) need_vector("matmul", x, gain);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Weight& w = *weights[i];
    LLAMA2CPP_CHECK(w.cols == x.columns(), "[matmul] w is ", shape_text(w), " but x is ", shape_text(x));
    LLAMA2CPP_CHECK(outs[i].rows() == x.rows() && outs[i].columns() == w.rows, "[matmul] w is ", shape_text(w),
                    " and x is ", shape_text(x), " but out is ", shape_text(outs[i]));
    LLAMA2CPP_CHECK(w.format->group <= 1 || w.cols % w.format->group == 0, "[matmul] w is ", shape_text(w),
                    ", and groups of ", w.format->group, " (", w.format->name, ") do not fill its rows");
    const Operand out{"out", outs[i]};
    const Extent bytes(outs[i]);
    need_apart("matmul", out, bytes, input, input_bytes);
    need_apart("matmul", out, bytes, scale, scale_bytes);
    need_apart("matmul", out, bytes, gain, gain_bytes);
    for (std::size_t other = 0; other < i; ++other) need_apart("matmul", out, {"another out", outs[other]});
  }
}

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, std::int64_t head_dim) {
  need_same_shape("rope", {"cos", cos}, {"sin", sin});
  LLAMA2CPP_CHECK(head_dim > 0 && head_dim % 2 == 0 && x.columns() % head_dim == 0, "[rope] x is ", shape_text(x),
                  ", which heads of ", head_dim, " do not fill");
  LLAMA2CPP_CHECK(cos.rows() == x.rows() && cos.columns() >= 1 && cos.columns() <= head_dim / 2, "[rope] x is ",
                  shape_text(x), " in heads of ", head_dim, " but cos is ", shape_text(cos));
  need_apart("rope", {"x", x}, {"cos", cos});
  need_apart("rope", {"x", x}, {"sin", sin});
}

void store_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans) {
  need_same_shape("store_kv", {"k", k}, {"v", v});
  need_spans("store_kv", spans, k.rows());
  for (const AttentionSpan& span : spans) {
    LLAMA2CPP_CHECK(k.columns() == span.keys.dim(0) * span.keys.columns(), "[store_kv] k is ", shape_text(k),
                    " but keys are ", shape_text(span.keys));
    for (const Operand& cache : {Operand{"keys", span.keys}, Operand{"values", span.values}}) {
      need_apart("store_kv", cache, {"k", k});
      need_apart("store_kv", cache, {"v", v});
    }
    need_apart("store_kv", {"keys", span.keys}, {"values", span.values});
  }
}

void attention(const Tensor& q, std::span<const AttentionSpan> spans, const Tensor& z, AttentionStage first,
               AttentionStage last) {
  need_same_shape("attention", {"q", q}, {"z", z});
  need_spans("attention", spans, q.rows());
  need_apart("attention", {"z", z}, {"q", q});
  for (const AttentionSpan& span : spans) {
    const std::int64_t kv_dim = span.keys.dim(0) * span.keys.columns();
    LLAMA2CPP_CHECK(q.columns() % kv_dim == 0, "[attention] q is ", shape_text(q), ", which keys of ",
                    shape_text(span.keys), " do not divide");
    LLAMA2CPP_CHECK(span.window >= 0, "[attention] the window is ", span.window, ", expected 0 or more");
    LLAMA2CPP_CHECK(span.divisor > 0.0F && std::isfinite(span.divisor), "[attention] the divisor is ", span.divisor,
                    ", expected a finite number above 0");
    LLAMA2CPP_CHECK(span.score_cap >= 0.0F && std::isfinite(span.score_cap), "[attention] the scores' cap is ",
                    span.score_cap, ", expected a finite number of 0 or more");
    need_apart("attention", {"z", z}, {"keys", span.keys});
    need_apart("attention", {"z", z}, {"values", span.values});
    const std::int64_t heads = q.columns() / span.keys.columns();
    const Operand sinks{"sinks", span.sinks};
    LLAMA2CPP_CHECK(!span.sinks || (span.sinks.rank == 1 && span.sinks.dim(0) == heads), "[attention] sinks are ",
                    shape_text(span.sinks), ", expected [", heads, "]");
    need_apart("attention", {"z", z}, sinks);
    const Operand scores{"scores", span.scores};
    const Operand pattern{"pattern", span.pattern};
    need_pattern(q, span, scores, first == AttentionStage::pattern || last == AttentionStage::scores);
    need_pattern(q, span, pattern, first == AttentionStage::values || last == AttentionStage::pattern);
    for (const Operand& out : {scores, pattern}) {
      if (!out.tensor) continue;
      need_apart("attention", out, {"q", q});
      need_apart("attention", out, {"z", z});
      need_apart("attention", out, sinks);
    }
    need_apart("attention", scores, pattern);
  }
}

void gated(const Tensor& gate, const Tensor& up, const Tensor& out) {
  need_same_shape("gated", {"gate", gate}, {"up", up});
  need_same_shape("gated", {"gate", gate}, {"out", out});
  need_same_or_apart("gated", {"out", out}, {"gate", gate});
  need_same_or_apart("gated", {"out", out}, {"up", up});
}

void activate(Activation activation, const Tensor& x, const Tensor& out) {
  LLAMA2CPP_CHECK(!needs_gate(activation), "[activate] the activation is ", to_string(activation),
                  ", expected one of x alone: this one is of a gate and what it is multiplied with");
  need_same_shape("activate", {"x", x}, {"out", out});
  need_same_or_apart("activate", {"out", out}, {"x", x});
}

void soft_cap(const Tensor& x, float cap, const Tensor& out) {
  LLAMA2CPP_CHECK(cap > 0.0F && std::isfinite(cap), "[soft_cap] the cap is ", cap,
                  ", expected a finite number above 0");
  need_same_shape("soft_cap", {"x", x}, {"out", out});
  need_same_or_apart("soft_cap", {"out", out}, {"x", x});
}

void add(const Tensor& a, const Tensor& b, const Tensor& out) {
  need_same_shape("add", {"a", a}, {"b", b});
  need_same_shape("add", {"a", a}, {"out", out});
  need_same_or_apart("add", {"out", out}, {"a", a});
  need_same_or_apart("add", {"out", out}, {"b", b});
}

void add_bias(const Tensor& x, const Tensor& bias) {
  need_vector("add_bias", x, {"bias", bias});
  need_apart("add_bias", {"x", x}, {"bias", bias});
}

void route(const Tensor& scores, const Tensor& experts, const Tensor& weights) {
  LLAMA2CPP_CHECK(experts.rank == 2 && experts.dtype == DType::i32 && experts.rows() == scores.rows() &&
                      experts.columns() >= 1 && experts.columns() <= scores.columns(),
                  "[route] scores are ", shape_text(scores), " but experts are ", shape_text(experts),
                  ", expected [T, k] of type i32 with k from 1 to ", scores.columns());
  need_same_shape("route", {"experts", experts}, {"weights", weights});
  need_apart("route", {"experts", experts}, {"scores", scores});
  need_apart("route", {"weights", weights}, {"scores", scores});
  need_apart("route", {"weights", weights}, {"experts", experts});
}

void matmul_experts(std::span<const ExpertWeights> weights, const Tensor& x, const Tensor& experts,
                    std::span<const Tensor> outs, const Norm& norm) {
  constexpr const char* op = "matmul_experts";
  LLAMA2CPP_CHECK(weights.size() == outs.size() && !weights.empty() && !weights[0].empty(), "[", op, "] ",
                  weights.size(), " weights of experts but ", outs.size(), " outs");
  const auto n_experts = static_cast<std::int64_t>(weights[0].size());
  need_experts(op, experts, n_experts);
  const std::int64_t tokens = experts.rows();
  const std::int64_t places = tokens * experts.columns();
  LLAMA2CPP_CHECK(x.rows() == tokens || x.rows() == places, "[", op, "] x is ", shape_text(x), " but experts are ",
                  shape_text(experts), ", expected ", tokens, " or ", places, " rows");
  if (norm.scale) need_scale(op, x, {"norm.scale", norm.scale});
  if (norm.gain) need_vector(op, x, {"norm.gain", norm.gain});
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Operand out{"out", outs[i]};
    LLAMA2CPP_CHECK(static_cast<std::int64_t>(weights[i].size()) == n_experts, "[", op, "] there are ",
                    weights[i].size(), " experts of weight ", i, ", expected ", n_experts);
    need_places(op, out, places);
    for (const Operand& in :
         {Operand{"x", x}, {"norm.scale", norm.scale}, {"norm.gain", norm.gain}, {"experts", experts}}) {
      need_apart(op, out, in);
    }
    for (std::size_t other = 0; other < i; ++other) need_apart(op, out, {"another out", outs[other]});
  }
}

void expert_weight(const Weight& w, const Tensor& x, const Tensor& out) {
  LLAMA2CPP_CHECK(w.cols == x.columns(), "[matmul_experts] w is ", shape_text(w), " but x is ", shape_text(x));
  LLAMA2CPP_CHECK(out.columns() == w.rows, "[matmul_experts] w is ", shape_text(w), " but out is ", shape_text(out));
  LLAMA2CPP_CHECK(w.format->group <= 1 || w.cols % w.format->group == 0, "[matmul_experts] w is ", shape_text(w),
                  ", and groups of ", w.format->group, " (", w.format->name, ") do not fill its rows");
}

void add_expert_bias(const Tensor& x, const Tensor& biases, const Tensor& experts) {
  constexpr const char* op = "add_expert_bias";
  LLAMA2CPP_CHECK(biases.rank == 2 && biases.columns() == x.columns(), "[", op, "] x is ", shape_text(x),
                  " but biases are ", shape_text(biases), ", expected [E, ", x.columns(), "]");
  need_experts(op, experts, biases.rows());
  need_places(op, {"x", x}, experts.rows() * experts.columns());
  need_apart(op, {"x", x}, {"biases", biases});
  need_apart(op, {"x", x}, {"experts", experts});
}

void mix_experts(const Tensor& x, const Tensor& weights, const Tensor& out) {
  constexpr const char* op = "mix_experts";
  need_places(op, {"x", x}, weights.rows() * weights.columns());
  LLAMA2CPP_CHECK(out.rows() == weights.rows() && out.columns() == x.columns(), "[", op, "] x is ", shape_text(x),
                  " and weights are ", shape_text(weights), ", but out is ", shape_text(out));
  need_apart(op, {"out", out}, {"x", x});
  need_apart(op, {"out", out}, {"weights", weights});
}

}  // namespace llama2cpp::op_checks
