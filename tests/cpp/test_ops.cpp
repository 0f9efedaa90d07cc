// The ops at their door: what they refuse, in which words; which outputs may be inputs, with the same bits; and take_rows
// and parallel_for, which no other test computes by hand.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "kernel_outputs.h"
#include "tiny_model.h"

using llama2cpp::Activation;
using llama2cpp::AttentionSpan;
using llama2cpp::AttentionStage;
using llama2cpp::Backend;
using llama2cpp::Norm;
using llama2cpp::RopeStyle;
using llama2cpp::Tensor;
using llama2cpp::Vector;
using llama2cpp::Weight;

namespace {

constexpr std::int64_t kRows = 3;
constexpr std::int64_t kColumns = 8;

// Operands that fit together: kRows rows of kColumns, in two heads of 4 that share one head of keys and values.
class Operands {
  std::vector<std::vector<float>> memory_;  // of the tensors below

 public:
  explicit Operands(int threads = 1) : cpu_(threads, *llama2cpp::scalar_kernels()), lease_(cpu_, llama2cpp::kNoPoll) {
    span.count = kRows;
    span.keys = tensor({1, 5, 4});
    span.values = tensor({1, 5, 4});
    span.divisor = 2.0F;
  }

  Backend& backend() { return cpu_; }

  // Fresh memory with numbers.
  Tensor tensor(std::initializer_list<std::int64_t> sizes) {
    Tensor shape(nullptr, llama2cpp::DType::f32, sizes);
    const auto n = static_cast<std::size_t>(std::max(shape.rows() * shape.columns(), std::int64_t{1}));
    memory_.push_back(kernel_outputs::make(n, kernel_outputs::Kind::ordinary, memory_.size()));
    shape.data = memory_.back().data();
    return shape;
  }
  Weight weight(std::int64_t rows, std::int64_t cols) {
    std::vector<float> values(static_cast<std::size_t>(rows * cols), 0.5F);
    return tiny::weight("w", rows, cols, values);
  }

  Tensor x = tensor({kRows, kColumns});
  Tensor y = tensor({kRows, kColumns});
  Tensor out = tensor({kRows, kColumns});
  Tensor column = tensor({kRows, 1});  // a number for each row
  Tensor vector = tensor({kColumns});  // a number for each column
  Tensor angles = tensor({kRows, 2});
  Tensor half = tensor({kRows, 4});  // one head
  Tensor half2 = tensor({kRows, 4});
  Weight w = weight(kColumns, kColumns);
  AttentionSpan span;

 private:
  llama2cpp::CpuBackend cpu_;
  Backend::Lease lease_;
};

// x moved on by some numbers: it overlaps x, and is not x.
Tensor shifted(Tensor x, std::int64_t numbers = 1) {
  x.data = x.row(0) + numbers;
  return x;
}

struct Refused {
  std::string message;  // a part of it
  std::function<void(Backend&, Operands&)> call;
};

void matmul(Backend& be, const Weight& w, const Tensor& x, const Tensor& out, const Norm& norm = {}) {
  const Weight* const weights[] = {&w};
  be.matmul(weights, x, {&out, 1}, norm);
}

void attend(Backend& be, const Tensor& q, const AttentionSpan& span, const Tensor& z,
            AttentionStage first = AttentionStage::scores, AttentionStage last = AttentionStage::values) {
  be.attention(q, {&span, 1}, z, first, last);
}

using Ints = std::vector<std::int32_t>;
using Rows = std::vector<std::int64_t>;

// Each line breaks one thing of a call that works.
const Refused kRefused[] = {
    {"[embed] table is [8, 8] and 2 tokens were given, but out is [3, 8]",
     [](Backend& be, Operands& o) {
       be.embed(o.w, Ints{0, 1}, o.out);
     }},
    {"[embed] table is [8, 8] and 3 tokens were given, but out is [3, 4]",
     [](Backend& be, Operands& o) {
       be.embed(o.w, Ints{0, 1, 2}, o.half);
     }},
    {"[embed] token 1 is 8, expected 0 to 7",
     [](Backend& be, Operands& o) {
       be.embed(o.w, Ints{0, 8, 2}, o.out);
     }},
    {"[embed] token 2 is -1, expected 0 to 7",
     [](Backend& be, Operands& o) {
       be.embed(o.w, Ints{0, 1, -1}, o.out);
     }},

    {"[take_rows] x is [3, 8] and 2 rows were named, but out is [3, 8]",
     [](Backend& be, Operands& o) {
       be.take_rows(o.x, Rows{0, 1}, o.out);
     }},
    {"[take_rows] x is [3, 8] and 3 rows were named, but out is [3, 4]",
     [](Backend& be, Operands& o) {
       be.take_rows(o.x, Rows{0, 1, 2}, o.half);
     }},
    {"[take_rows] x is [3, 8], but row 3 was named",
     [](Backend& be, Operands& o) {
       be.take_rows(o.x, Rows{0, 3, 1}, o.out);
     }},
    {"[take_rows] x is [3, 8], but row -1 was named",
     [](Backend& be, Operands& o) {
       be.take_rows(o.x, Rows{-1, 0, 1}, o.out);
     }},
    {"[take_rows] out [3, 8] overlaps x [3, 8], expected memory of its own",
     [](Backend& be, Operands& o) {
       be.take_rows(o.x, Rows{0, 1, 2}, o.x);
     }},

    {"[rms_scale] x is [3, 8] but scale is [3, 2]",
     [](Backend& be, Operands& o) { be.rms_scale(o.x, 1e-5F, o.angles); }},
    {"[rms_scale] x is [3, 8] but scale is [2, 1]",
     [](Backend& be, Operands& o) { be.rms_scale(o.x, 1e-5F, o.column.slice(0, 2)); }},
    {"[rms_scale] scale [3, 1] overlaps x [3, 8]",
     [](Backend& be, Operands& o) {
       be.rms_scale(o.x, 1e-5F, Tensor(o.x.row(0), {3, 1}));
     }},

    {"[center] x is [3, 8] but out is [3, 4]", [](Backend& be, Operands& o) { be.center(o.x, o.half); }},
    {"[center] x is [3, 8] but out is [2, 8]", [](Backend& be, Operands& o) { be.center(o.x, o.out.slice(0, 2)); }},
    {"[center] out [3, 8] overlaps x [3, 8], expected memory of its own",
     [](Backend& be, Operands& o) { be.center(o.x, o.x); }},

    {"[normalize] x is [3, 8] but out is [3, 4]",
     [](Backend& be, Operands& o) {
       be.normalize(o.x, {o.column, {}}, o.half);
     }},
    {"[normalize] x is [3, 8] but norm.scale is [3, 2]",
     [](Backend& be, Operands& o) {
       be.normalize(o.x, {o.angles, {}}, o.out);
     }},
    {"[normalize] x is [3, 8] but there is no norm.scale",
     [](Backend& be, Operands& o) { be.normalize(o.x, {}, o.out); }},
    {"[normalize] x is [3, 4] but norm.gain is [8], expected [4]",
     [](Backend& be, Operands& o) {
       be.normalize(o.half, {o.column, o.vector}, o.half2);
     }},
    {"[normalize] out [2, 8] overlaps x [2, 8], expected the same tensor or memory of its own",
     [](Backend& be, Operands& o) {
       be.normalize(o.x.slice(0, 2), {o.column.slice(0, 2), {}}, shifted(o.x).slice(0, 2));
     }},
    {"[normalize] out [3, 8] overlaps norm.scale [3, 1]",
     [](Backend& be, Operands& o) {
       be.normalize(o.x, {Tensor(o.out.row(1), {3, 1}), {}}, o.out);
     }},
    {"[normalize] out [3, 8] overlaps norm.gain [8]",
     [](Backend& be, Operands& o) {
       be.normalize(o.x, {o.column, Tensor(o.out.row(1), {kColumns})}, o.out);
     }},

    {"[scale] x is [3, 8] but out is [3, 4]", [](Backend& be, Operands& o) { be.scale(o.x, 2.0F, o.half); }},
    {"[scale] the factor is nan, expected a finite number",
     [](Backend& be, Operands& o) { be.scale(o.x, std::numeric_limits<float>::quiet_NaN(), o.x); }},
    {"[scale] the factor is inf, expected a finite number",
     [](Backend& be, Operands& o) { be.scale(o.x, std::numeric_limits<float>::infinity(), o.x); }},
    {"[scale] out [2, 8] overlaps x [2, 8], expected the same tensor or memory of its own",
     [](Backend& be, Operands& o) { be.scale(o.x.slice(0, 2), 2.0F, shifted(o.x).slice(0, 2)); }},

    {"[matmul] 2 weights but 1 outs",
     [](Backend& be, Operands& o) {
       const Weight* const two[] = {&o.w, &o.w};
       be.matmul(two, o.x, {&o.out, 1});
     }},
    {"[matmul] 0 weights but 0 outs", [](Backend& be, Operands& o) { be.matmul({}, o.x, {}); }},
    {"[matmul] w is [8, 8] but x is [3, 4]", [](Backend& be, Operands& o) { matmul(be, o.w, o.half, o.out); }},
    {"[matmul] w is [8, 8] and x is [3, 8] but out is [3, 4]",
     [](Backend& be, Operands& o) { matmul(be, o.w, o.x, o.half); }},
    {"[matmul] w is [8, 8] and x is [3, 8] but out is [2, 8]",
     [](Backend& be, Operands& o) { matmul(be, o.w, o.x, o.out.slice(0, 2)); }},
    {"[matmul] x is [3, 8] but norm.scale is [3, 2]",
     [](Backend& be, Operands& o) {
       matmul(be, o.w, o.x, o.out, {o.angles, {}});
     }},
    {"[matmul] x is [3, 8] but norm.gain is [3, 8], expected [8]",
     [](Backend& be, Operands& o) {
       matmul(be, o.w, o.x, o.out, {o.column, o.y});
     }},
    {"[matmul] x is [3, 8] but norm.gain is [7], expected [8]",
     [](Backend& be, Operands& o) {
       matmul(be, o.w, o.x, o.out, {{}, Tensor(o.vector.row(0), {7})});
     }},
    {"[matmul] out [3, 8] overlaps x [3, 8]", [](Backend& be, Operands& o) { matmul(be, o.w, o.x, o.x); }},
    {"[matmul] out [3, 8] overlaps norm.scale [3, 1]",
     [](Backend& be, Operands& o) {
       matmul(be, o.w, o.x, o.out, {Tensor(o.out.row(2), {3, 1}), {}});
     }},
    {"[matmul] out [3, 8] overlaps norm.gain [8]",
     [](Backend& be, Operands& o) {
       matmul(be, o.w, o.x, o.out, {{}, Tensor(o.out.row(2), {8})});
     }},
    {"[matmul] out [3, 8] overlaps another out [3, 8]",
     [](Backend& be, Operands& o) {
       const Weight* const two[] = {&o.w, &o.w};
       const Tensor outs[] = {o.out, o.out};
       be.matmul(two, o.x, outs);
     }},

    {"[rope] cos is [3, 2] but sin is [3, 1]",
     [](Backend& be, Operands& o) { be.rope(o.x, o.angles, o.column, 4, RopeStyle::interleaved); }},
    {"[rope] x is [3, 8], which heads of 3 do not fill",
     [](Backend& be, Operands& o) { be.rope(o.x, o.angles, o.angles, 3, RopeStyle::interleaved); }},
    {"[rope] x is [3, 8], which heads of 0 do not fill",
     [](Backend& be, Operands& o) { be.rope(o.x, o.angles, o.angles, 0, RopeStyle::interleaved); }},
    {"[rope] x is [3, 8] in heads of 2 but cos is [3, 2]",
     [](Backend& be, Operands& o) { be.rope(o.x, o.angles, o.angles, 2, RopeStyle::half_split); }},
    {"[rope] x [3, 8] overlaps cos [3, 2]",
     [](Backend& be, Operands& o) {
       be.rope(o.x, Tensor(o.x.row(1), {3, 2}), o.angles, 4, RopeStyle::half_split);
     }},
    {"[rope] x [3, 8] overlaps sin [3, 2]",
     [](Backend& be, Operands& o) {
       be.rope(o.x, o.angles, Tensor(o.x.row(1), {3, 2}), 4, RopeStyle::half_split);
     }},

    {"[store_kv] k is [3, 4] but v is [3, 8]",
     [](Backend& be, Operands& o) {
       be.store_kv(o.half, o.x, {&o.span, 1});
     }},
    {"[store_kv] k is [3, 8] but keys are [1, 5, 4]",
     [](Backend& be, Operands& o) {
       be.store_kv(o.x, o.y, {&o.span, 1});
     }},
    {"[store_kv] the spans have 0 rows, expected 3",
     [](Backend& be, Operands& o) { be.store_kv(o.half, o.half2, {}); }},
    {"[store_kv] positions 4 to 6 do not fit into keys of [1, 5, 4]",
     [](Backend& be, Operands& o) {
       o.span.position = 4;
       be.store_kv(o.half, o.half2, {&o.span, 1});
     }},
    {"[store_kv] keys are [1, 5, 4] but values are [3, 8]",
     [](Backend& be, Operands& o) {
       o.span.values = o.x;
       be.store_kv(o.half, o.half2, {&o.span, 1});
     }},
    {"[store_kv] keys [1, 5, 4] overlaps values [1, 5, 4]",
     [](Backend& be, Operands& o) {
       o.span.values = o.span.keys;
       be.store_kv(o.half, o.half2, {&o.span, 1});
     }},
    {"[store_kv] keys [1, 5, 4] overlaps k [3, 4]",
     [](Backend& be, Operands& o) {
       be.store_kv(Tensor(o.span.keys.row(1), {3, 4}), o.half2, {&o.span, 1});
     }},
    {"[store_kv] values [1, 5, 4] overlaps v [3, 4]",
     [](Backend& be, Operands& o) {
       be.store_kv(o.half, Tensor(o.span.values.row(1), {3, 4}), {&o.span, 1});
     }},

    {"[attention] q is [3, 8] but z is [3, 4]", [](Backend& be, Operands& o) { attend(be, o.x, o.span, o.half); }},
    {"[attention] q is [3, 1], which keys of [1, 5, 4] do not divide",
     [](Backend& be, Operands& o) {
       attend(be, o.column, o.span, o.tensor({3, 1}));
     }},
    {"[attention] the window is -1, expected 0 or more",
     [](Backend& be, Operands& o) {
       o.span.window = -1;
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] the divisor is 0, expected a finite number above 0",
     [](Backend& be, Operands& o) {
       o.span.divisor = 0.0F;
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] the divisor is nan, expected a finite number above 0",
     [](Backend& be, Operands& o) {
       o.span.divisor = std::numeric_limits<float>::quiet_NaN();
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] the scores' cap is -1, expected a finite number of 0 or more",
     [](Backend& be, Operands& o) {
       o.span.score_cap = -1.0F;
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] the scores' cap is inf, expected a finite number of 0 or more",
     [](Backend& be, Operands& o) {
       o.span.score_cap = std::numeric_limits<float>::infinity();
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] sinks are [8], expected [2]",
     [](Backend& be, Operands& o) {
       o.span.sinks = o.vector;
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] sinks are [1, 2], expected [2]",
     [](Backend& be, Operands& o) {
       o.span.sinks = o.tensor({1, 2});
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] z [3, 8] overlaps sinks [2]",
     [](Backend& be, Operands& o) {
       o.span.sinks = Tensor(o.out.row(1), {2});
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] pattern [2, 3, 3] overlaps sinks [2]",
     [](Backend& be, Operands& o) {
       o.span.pattern = o.tensor({2, 3, 3});
       o.span.sinks = Tensor(o.span.pattern.row(2), {2});
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] a stage alone needs a place for scores",
     [](Backend& be, Operands& o) { attend(be, o.x, o.span, o.out, AttentionStage::scores, AttentionStage::scores); }},
    {"[attention] a stage alone needs a place for pattern",
     [](Backend& be, Operands& o) { attend(be, o.x, o.span, o.out, AttentionStage::values, AttentionStage::values); }},
    {"[attention] scores is [2, 3, 4], expected [2, 3, 3]",
     [](Backend& be, Operands& o) {
       o.span.scores = o.tensor({2, 3, 4});
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] scores [2, 3, 3] overlaps pattern [2, 3, 3]",
     [](Backend& be, Operands& o) {
       o.span.scores = o.span.pattern = o.tensor({2, 3, 3});
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] pattern [2, 3, 3] overlaps q [3, 8]",
     [](Backend& be, Operands& o) {
       o.span.pattern = Tensor(o.x.row(0), {2, 3, 3});
       attend(be, o.x, o.span, o.out);
     }},
    {"[attention] z [3, 8] overlaps q [3, 8]", [](Backend& be, Operands& o) { attend(be, o.x, o.span, o.x); }},
    {"[attention] z [3, 8] overlaps keys [1, 5, 4]",
     [](Backend& be, Operands& o) { attend(be, o.x, o.span, Tensor(o.span.keys.row(0), {3, 8})); }},

    {"[gated] gate is [3, 8] but up is [3, 4]",
     [](Backend& be, Operands& o) { be.gated(Activation::silu, o.x, o.half, o.out); }},
    {"[gated] gate is [3, 8] but out is [3, 4]",
     [](Backend& be, Operands& o) { be.gated(Activation::silu, o.x, o.y, o.half); }},
    {"[gated] out [2, 8] overlaps gate [2, 8], expected the same tensor or memory of its own",
     [](Backend& be, Operands& o) { be.gated(Activation::silu, o.x.slice(0, 2), o.y.slice(0, 2), o.x.slice(1, 2)); }},
    {"[gated] out [2, 8] overlaps up [2, 8]",
     [](Backend& be, Operands& o) { be.gated(Activation::silu, o.x.slice(0, 2), o.y.slice(0, 2), o.y.slice(1, 2)); }},

    {"[activate] x is [3, 8] but out is [3, 4]",
     [](Backend& be, Operands& o) { be.activate(Activation::relu_squared, o.x, o.half); }},
    {"[activate] x is [3, 8] but out is [2, 8]",
     [](Backend& be, Operands& o) { be.activate(Activation::relu_squared, o.x, o.out.slice(0, 2)); }},
    {"[activate] the activation is clamped_swiglu, expected one of x alone",
     [](Backend& be, Operands& o) { be.activate(Activation::clamped_swiglu, o.x, o.out); }},
    {"[activate] out [2, 8] overlaps x [2, 8], expected the same tensor or memory of its own",
     [](Backend& be, Operands& o) { be.activate(Activation::gelu_tanh, o.x.slice(0, 2), shifted(o.x).slice(0, 2)); }},

    {"[soft_cap] x is [3, 8] but out is [3, 4]", [](Backend& be, Operands& o) { be.soft_cap(o.x, 30.0F, o.half); }},
    {"[soft_cap] the cap is 0, expected a finite number above 0",
     [](Backend& be, Operands& o) { be.soft_cap(o.x, 0.0F, o.x); }},
    {"[soft_cap] the cap is nan, expected a finite number above 0",
     [](Backend& be, Operands& o) { be.soft_cap(o.x, std::numeric_limits<float>::quiet_NaN(), o.x); }},
    {"[soft_cap] out [2, 8] overlaps x [2, 8], expected the same tensor or memory of its own",
     [](Backend& be, Operands& o) { be.soft_cap(o.x.slice(0, 2), 30.0F, shifted(o.x).slice(0, 2)); }},

    {"[add] a is [3, 8] but b is [3, 4]", [](Backend& be, Operands& o) { be.add(o.x, o.half, o.out); }},
    {"[add] a is [3, 8] but out is [3, 4]", [](Backend& be, Operands& o) { be.add(o.x, o.y, o.half); }},
    {"[add] out [2, 8] overlaps a [2, 8], expected the same tensor or memory of its own",
     [](Backend& be, Operands& o) { be.add(o.x.slice(0, 2), o.y.slice(0, 2), shifted(o.x).slice(0, 2)); }},
    {"[add] out [2, 8] overlaps b [2, 8]",
     [](Backend& be, Operands& o) { be.add(o.x.slice(0, 2), o.y.slice(0, 2), shifted(o.y).slice(0, 2)); }},

    {"[add_bias] x is [3, 8] but bias is [3, 8], expected [8]",
     [](Backend& be, Operands& o) { be.add_bias(o.x, o.y); }},
    {"[add_bias] x is [3, 8] but bias is [7], expected [8]",
     [](Backend& be, Operands& o) { be.add_bias(o.x, Tensor(o.vector.row(0), {7})); }},
    {"[add_bias] x [3, 8] overlaps bias [8]",
     [](Backend& be, Operands& o) { be.add_bias(o.x, Tensor(o.x.row(1), {8})); }},
};

std::vector<float> values_of(const Tensor& t) {
  std::vector<float> values;
  for (std::int64_t r = 0; r < t.rows(); ++r) values.insert(values.end(), t.row(r), t.row(r) + t.columns());
  return values;
}

}  // namespace

TEST_CASE("ops refuse operands that do not fit, and say what they expected") {
  for (const Refused& refused : kRefused) {
    CAPTURE(refused.message);
    Operands operands;
    CHECK_THROWS_WITH_AS(refused.call(operands.backend(), operands), doctest::Contains(refused.message.c_str()),
                         std::invalid_argument);
  }
}

TEST_CASE("every op has lines among the refused") {
  for (const char* op : {"embed", "take_rows", "rms_scale", "center", "normalize", "scale", "matmul", "rope",
                         "store_kv", "attention", "gated", "activate", "soft_cap", "add", "add_bias"}) {
    CAPTURE(op);
    const std::string begin = llama2cpp::cat("[", op, "]");
    CHECK(std::count_if(std::begin(kRefused), std::end(kRefused),
                        [&](const Refused& r) { return r.message.rfind(begin, 0) == 0; }) >= 3);
  }
}

TEST_CASE("what fits is computed, in place too, with the same bits") {
  for (const int threads : {1, 3}) {
    Operands o(threads);
    Backend& be = o.backend();
    be.normalize(o.x, {o.column, {}}, o.out);
    Operands in_place(threads);
    in_place.backend().normalize(in_place.x, {in_place.column, {}}, in_place.x);
    CHECK(values_of(o.out) == values_of(in_place.x));

    const auto both = [&](auto op) {  // op(backend, a, b, out), out may be a or b
      Operands apart(threads);
      Operands first(threads);
      Operands second(threads);
      op(apart.backend(), apart.x, apart.y, apart.out);
      op(first.backend(), first.x, first.y, first.x);
      op(second.backend(), second.x, second.y, second.y);
      CHECK(values_of(apart.out) == values_of(first.x));
      CHECK(values_of(apart.out) == values_of(second.y));
    };
    both([](Backend& b, const Tensor& x, const Tensor& y, const Tensor& out) { b.add(x, y, out); });
    for (const Activation activation :
         {Activation::silu, Activation::gelu_tanh, Activation::relu_squared, Activation::clamped_swiglu}) {
      both([&](Backend& b, const Tensor& x, const Tensor& y, const Tensor& out) { b.gated(activation, x, y, out); });
      if (needs_gate(activation)) continue;
      Operands one(threads);
      one.backend().activate(activation, one.x, one.out);
      one.backend().activate(activation, one.x, one.x);
      CHECK(values_of(one.out) == values_of(one.x));
    }
  }
}

TEST_CASE("scale multiplies by a number, in place too") {
  for (const int threads : {1, 3}) {
    Operands o(threads);
    const Tensor x = o.tensor({9, 1100});
    const Tensor out = o.tensor({9, 1100});
    std::vector<float> expected;
    for (std::int64_t r = 0; r < 9; ++r) {
      for (std::int64_t j = 0; j < 1100; ++j) expected.push_back(x.row(r)[j] * 0.22F);
    }
    o.backend().scale(x, 0.22F, out);
    CHECK(values_of(out) == expected);
    o.backend().scale(x, 0.22F, x);
    CHECK(values_of(x) == expected);
  }
}

TEST_CASE("soft_cap shares rows out, and may write over them") {
  for (const int threads : {1, 3}) {
    Operands o(threads);
    const Tensor x = o.tensor({2, 3000});
    const Tensor out = o.tensor({2, 3000});
    o.backend().soft_cap(x, 0.25F, out);
    for (std::int64_t r = 0; r < 2; ++r) {
      for (std::int64_t j = 0; j < 3000; ++j) {
        CHECK(std::abs(double{out.row(r)[j]} - 0.25 * std::tanh(double{x.row(r)[j]} / 0.25)) < 1e-7);
      }
    }
    o.backend().soft_cap(x, 0.25F, x);
    CHECK(values_of(x) == values_of(out));
  }
}

TEST_CASE("center, rms_scale, normalize and add_bias are LayerNorm") {
  constexpr std::int64_t kWide = 70;
  constexpr double kEps = 1e-5;
  for (const int threads : {1, 3}) {
    Operands o(threads);
    Backend& be = o.backend();
    const Tensor x = o.tensor({5, kWide});
    for (std::int64_t r = 0; r < x.rows(); ++r) {
      for (std::int64_t j = 0; j < kWide; ++j) x.row(r)[j] += static_cast<float>(r * 3);  // a mean to take away
    }
    const Tensor out = o.tensor({5, kWide});
    const Tensor scale = o.tensor({5, 1});
    const Tensor gain = o.tensor({kWide});
    const Tensor bias = o.tensor({kWide});
    be.center(x, out);
    be.rms_scale(out, static_cast<float>(kEps), scale);
    be.normalize(out, {scale, gain}, out);
    be.add_bias(out, bias);
    for (std::int64_t r = 0; r < x.rows(); ++r) {
      double mean = 0.0;
      for (std::int64_t j = 0; j < kWide; ++j) mean += double{x.row(r)[j]} / kWide;
      double variance = 0.0;
      for (std::int64_t j = 0; j < kWide; ++j) variance += std::pow(double{x.row(r)[j]} - mean, 2) / kWide;
      for (std::int64_t j = 0; j < kWide; ++j) {
        const double exact =
            (double{x.row(r)[j]} - mean) / std::sqrt(variance + kEps) * double{gain.row(0)[j]} + double{bias.row(0)[j]};
        CHECK(std::abs(double{out.row(r)[j]} - exact) < 4e-6);
      }
    }
  }
}

TEST_CASE("normalize multiplies by a gain, which each head of a row may share") {
  constexpr std::int64_t kHeadDim = 20;  // neither a multiple of the lanes nor one long
  for (const int threads : {1, 3}) {
    Operands o(threads);
    const Tensor x = o.tensor({7, 3 * kHeadDim});
    const Tensor heads(x.row(0), {7 * 3, kHeadDim});  // rows that lie behind each other
    const Tensor scale = o.tensor({7 * 3, 1});
    const Tensor gain = o.tensor({kHeadDim});
    const Tensor out = o.tensor({7 * 3, kHeadDim});
    o.backend().rms_scale(heads, 1e-6F, scale);
    o.backend().normalize(heads, {scale, gain}, out);
    std::vector<float> expected;
    for (std::int64_t r = 0; r < heads.rows(); ++r) {
      const float factor = 1.0F / *scale.row(r);
      for (std::int64_t j = 0; j < kHeadDim; ++j) {
        const float product = heads.row(r)[j] * factor;
        expected.push_back(product * gain.row(0)[j]);
      }
    }
    CHECK(values_of(out) == expected);
    o.backend().normalize(heads, {scale, gain}, heads);
    CHECK(values_of(heads) == expected);
  }
}

TEST_CASE("columns of one wider matrix are apart") {
  Operands o;
  const Tensor wide = o.tensor({kRows, 2 * kColumns});
  Tensor left(wide.row(0), {kRows, kColumns});
  Tensor right(wide.row(0) + kColumns, {kRows, kColumns});
  left.row_stride = right.row_stride = 2 * kColumns;
  const Weight* const two[] = {&o.w, &o.w};
  const Tensor outs[] = {left, right};
  o.backend().matmul(two, o.x, outs);
  CHECK(values_of(left) == values_of(right));
  Tensor across = left;
  across.data = left.row(0) + 1;
  const Tensor overlapping[] = {across, right};
  CHECK_THROWS_AS(o.backend().matmul(two, o.x, overlapping), std::invalid_argument);
  const Tensor swapped[] = {right, across};
  CHECK_THROWS_AS(o.backend().matmul(two, o.x, swapped), std::invalid_argument);
}

TEST_CASE("take_rows copies rows, in any order, more than once, and of a wider matrix") {
  for (const int threads : {1, 3}) {
    Operands o(threads);
    const std::int64_t n = 700;
    const std::int64_t rows = 50;
    Tensor x = o.tensor({rows, n});
    x.shape[1] = n - 3;  // rows lie further apart than they are long
    Rows wanted;
    for (std::int64_t r = 0; r < 40; ++r) wanted.push_back(r * 17 % rows);
    wanted.push_back(wanted.front());
    const Tensor out = o.tensor({static_cast<std::int64_t>(wanted.size()), n - 3});
    o.backend().take_rows(x, wanted, out);
    std::vector<float> expected;
    for (const std::int64_t r : wanted) expected.insert(expected.end(), x.row(r), x.row(r) + n - 3);
    CHECK(values_of(out) == expected);
  }
  Operands o;
  o.backend().take_rows(o.x, {}, o.tensor({0, kColumns}));  // none
}

TEST_CASE("parallel_for covers a range once") {
  for (const int threads : {1, 2, 4}) {
    Operands o(threads);
    for (const std::int64_t count : {0, 1, 3, 1000}) {
      std::vector<int> times(static_cast<std::size_t>(count), 0);
      o.backend().parallel_for(count, std::int64_t{1} << 30, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++times[static_cast<std::size_t>(i)];
      });
      CHECK(std::all_of(times.begin(), times.end(), [](int n) { return n == 1; }));
    }
  }
}

TEST_CASE("a backend's memory is zeroed and aligned, and a vector is a row of it") {
  Operands o;
  Backend& be = o.backend();
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{100}, std::size_t{8} << 20}) {
    for (const llama2cpp::Buffer& memory : {be.alloc(bytes), be.reserve(bytes)}) {
      CHECK(memory.size() == bytes);
      CHECK(reinterpret_cast<std::uintptr_t>(memory.data()) % 64 == 0);
      CHECK(std::all_of(memory.data(), memory.data() + bytes, [](std::byte b) { return b == std::byte{0}; }));
    }
  }
  const Vector vector = be.make_vector(5);
  CHECK(vector.view.rank == 1);
  CHECK(values_of(vector.view) == std::vector<float>(5, 0.0F));
  CHECK(static_cast<bool>(vector));
  CHECK_FALSE(static_cast<bool>(Vector{}));
  CHECK(be.memory_left() > 0);
}
