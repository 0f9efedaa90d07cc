// A query, its key and its value go through the ops once, and every step is compared with double arithmetic.
#include "backend/metal/self_test.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string_view>
#include <vector>

#include "backend/metal/device.h"
#include "core/check.h"
#include "core/config.h"
#include "format/f32.h"

namespace llama2cpp::metal {
namespace {

constexpr std::int64_t kWidth = 48;    // of x: a simdgroup and a half
constexpr std::int64_t kHeadDim = 16;  //
constexpr std::int64_t kRows = 3;
constexpr std::int64_t kVocab = 5;
constexpr double kTolerance = 1e-5;  // of numbers of about 1: a wrong kernel is far outside

// Numbers between -1 and 1 that differ from place to place.
double value_at(std::int64_t i) { return std::sin(0.7 * static_cast<double>(i) + 0.3); }

using Numbers = std::vector<double>;

class Test {
 public:
  explicit Test(Backend& backend) : backend_(backend) {}

  void run() {
    const Backend::Lease lease(backend_, [] {});
    const Tensor x = embedded();
    const Numbers x0 = numbers(x);
    const Tensor scale = tensor({kRows, 1});
    backend_.rms_scale(x, 1e-5F, scale);
    Numbers expected;
    for (std::int64_t t = 0; t < kRows; ++t) {
      double sum = 0;
      for (std::int64_t i = 0; i < kWidth; ++i) sum += square(at(x0, t, i));
      expected.push_back(std::sqrt(sum / kWidth + 1e-5));
    }
    expect("rms_scale", scale, expected);
    const Tensor product = normalized_product(x, x0, scale, expected);
    const Tensor turned = rope(product);
    attention(turned);
    elementwise(x);
  }

 private:
  static double square(double x) { return x * x; }
  static double at(const Numbers& x, std::int64_t row, std::int64_t column) {
    return x[static_cast<std::size_t>(row * kWidth + column)];
  }

  Tensor tensor(std::initializer_list<std::int64_t> shape) {
    std::int64_t count = 1;
    for (const std::int64_t size : shape) count *= size;
    memory_.push_back(backend_.alloc(static_cast<std::size_t>(count) * sizeof(float)));
    return {reinterpret_cast<float*>(memory_.back().data()), shape};
  }

  static Numbers numbers(const Tensor& tensor) {
    const float* const first = tensor.row(0);
    return {first, first + tensor.rows() * tensor.columns()};
  }

  // [rows, kWidth] of floats in host memory, as a file's are.
  static Weight weight(std::int64_t rows, std::int64_t first) {
    Buffer memory = Buffer::heap(static_cast<std::size_t>(rows * kWidth) * sizeof(float));
    auto* const values = reinterpret_cast<float*>(memory.data());
    for (std::int64_t i = 0; i < rows * kWidth; ++i) values[i] = static_cast<float>(value_at(first + i));
    Weight made;
    made.name = "self-test";
    made.format = &kF32;
    made.rows = rows;
    made.cols = kWidth;
    made.planes[0] = {memory.data(), memory.size(), kWidth * static_cast<std::int64_t>(sizeof(float)), memory};
    return made;
  }

  static double weight_at(const Weight& weight, std::int64_t row, std::int64_t column) {
    float value = 0;
    std::memcpy(&value, weight.planes[0].data + (row * kWidth + column) * std::int64_t{sizeof(float)}, sizeof(float));
    return value;
  }

  void expect(std::string_view op, const Tensor& found, const Numbers& expected) {
    backend_.sync();
    const Numbers values = numbers(found);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (std::abs(values[i] - expected[i]) <= kTolerance * (1 + std::abs(expected[i]))) continue;
      throw Unavailable(cat("the self-test of the GPU failed: number ", i, " of ", op, " is ", values[i], ", expected ",
                            expected[i]));
    }
  }

  Tensor embedded() {
    table_ = weight(kVocab, 0);
    const std::array<std::int32_t, kRows> tokens{4, 0, 2};
    const Tensor x = tensor({kRows, kWidth});
    backend_.embed(table_, tokens, x);
    Numbers expected;
    for (const std::int32_t token : tokens) {
      for (std::int64_t i = 0; i < kWidth; ++i) expected.push_back(weight_at(table_, token, i));
    }
    expect("embed", x, expected);
    return x;
  }

  // matrix . (x / scale)
  Tensor normalized_product(const Tensor& x, const Numbers& x0, const Tensor& scale, const Numbers& scales) {
    matrix_ = weight(kWidth, 1000);
    const Tensor out = tensor({kRows, kWidth});
    const Weight* const weights[] = {&matrix_};
    backend_.matmul(weights, x, {&out, 1}, {scale, {}});
    Numbers expected;
    for (std::int64_t t = 0; t < kRows; ++t) {
      for (std::int64_t r = 0; r < kWidth; ++r) {
        double sum = 0;
        for (std::int64_t i = 0; i < kWidth; ++i) sum += weight_at(matrix_, r, i) * at(x0, t, i);
        expected.push_back(sum / scales[static_cast<std::size_t>(t)]);
      }
    }
    expect("matmul", out, expected);
    return out;
  }

  Tensor rope(const Tensor& x) {
    const Numbers before = numbers(x);
    const Tensor cos = tensor({kRows, kHeadDim / 2});
    const Tensor sin = tensor({kRows, kHeadDim / 2});
    Numbers expected(before.size());
    for (std::int64_t t = 0; t < kRows; ++t) {
      for (std::int64_t j = 0; j < kHeadDim / 2; ++j) {
        const double angle = 0.4 * static_cast<double>(t + j);
        cos.row(t)[j] = static_cast<float>(std::cos(angle));
        sin.row(t)[j] = static_cast<float>(std::sin(angle));
        for (std::int64_t head = 0; head < kWidth; head += kHeadDim) {
          const std::int64_t first = head + 2 * j;
          const auto to = static_cast<std::size_t>(t * kWidth + first);
          const double a = at(before, t, first);
          const double b = at(before, t, first + 1);
          expected[to] = a * std::cos(angle) - b * std::sin(angle);
          expected[to + 1] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
    }
    backend_.rope(x, cos, sin, kHeadDim, RopeStyle::interleaved);
    expect("rope", x, expected);
    return x;
  }

  // Three query heads over one head of keys, which are x's first columns, and so are the values.
  void attention(const Tensor& x) {
    const Numbers q = numbers(x);
    Tensor keys = x;
    keys.shape[1] = kHeadDim;
    AttentionSpan span;
    span.count = kRows;
    span.divisor = 64.0F;
    span.keys = tensor({1, 8, kHeadDim});
    span.values = tensor({1, 8, kHeadDim});
    const Tensor z = tensor({kRows, kWidth});
    backend_.store_kv(keys, keys, {&span, 1});
    backend_.attention(x, {&span, 1}, z);
    Numbers expected(q.size());
    for (std::int64_t t = 0; t < kRows; ++t) {
      for (std::int64_t head = 0; head < kWidth; head += kHeadDim) {
        double sum = 0;
        for (std::int64_t key = 0; key <= t; ++key) {
          double score = 0;
          for (std::int64_t d = 0; d < kHeadDim; ++d) score += at(q, t, head + d) * at(q, key, d) / 64.0;
          const double e = std::exp(score);
          sum += e;
          for (std::int64_t d = 0; d < kHeadDim; ++d) {
            expected[static_cast<std::size_t>(t * kWidth + head + d)] += e * at(q, key, d);
          }
        }
        for (std::int64_t d = 0; d < kHeadDim; ++d) expected[static_cast<std::size_t>(t * kWidth + head + d)] /= sum;
      }
    }
    expect("attention", z, expected);
  }

  static double gated(Activation activation, double gate, double up) {
    const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
    switch (activation) {
      case Activation::silu:
        return gate * sigmoid(gate) * up;
      case Activation::gelu_tanh:
        return gate * sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)) * up;  // 2 sqrt(2 / pi)
      case Activation::relu_squared:
        return square(std::max(gate, 0.0)) * up;
      case Activation::clamped_swiglu:
        break;
    }
    const double most = std::min(gate, 7.0);
    return (std::clamp(up, -7.0, 7.0) + 1) * most * sigmoid(1.702 * most);
  }

  // Every activation, of numbers beyond clamped_swiglu's clamps too.
  void elementwise(const Tensor& x) {
    const Tensor gate = tensor({kRows, kWidth});
    const Tensor up = tensor({kRows, kWidth});
    const Tensor out = tensor({kRows, kWidth});
    for (std::int64_t i = 0; i < kRows * kWidth; ++i) {
      gate.row(0)[i] = static_cast<float>(10 * value_at(i));
      up.row(0)[i] = static_cast<float>(10 * value_at(i + 500));
    }
    const Numbers a = numbers(gate);
    const Numbers b = numbers(up);
    for (const Activation activation : kValues<Activation>) {
      backend_.gated(activation, gate, up, out);
      Numbers expected;
      for (std::size_t i = 0; i < a.size(); ++i) expected.push_back(gated(activation, a[i], b[i]));
      expect(cat("gated by ", to_string(activation)), out, expected);
    }
    const Numbers c = numbers(x);
    Numbers expected = numbers(out);
    for (std::size_t i = 0; i < c.size(); ++i) expected[i] += c[i];
    backend_.add(out, x, out);
    expect("add", out, expected);
  }

  Backend& backend_;
  std::vector<Buffer> memory_;
  Weight table_, matrix_;
};

}  // namespace

void self_test(Backend& backend) { Test(backend).run(); }

}  // namespace llama2cpp::metal
