// Some rows at a time: they share U, and nothing else. A block of columns is finished before what it owes to the columns
// behind it is taken from them, for a tile of them at once; each number still sees the columns before it in their order.
#include "format/gptq_encode.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "core/half.h"

namespace llama2cpp {
namespace {

constexpr std::int64_t kRows = 32;    // that go together
constexpr std::int64_t kBlock = 128;  // the most columns of a block
constexpr std::int64_t kTile = 16;    // columns behind it that are in registers at a time
constexpr int kLanes = 8;
constexpr int kRanges = 80;                            // that a search tries, each a hundredth smaller
constexpr float kLeastScale = 5.9604644775390625e-8F;  // of f16
constexpr float kLargestScale = 65504.0F;

// To the nearest, ties to even, for |x| < 2^51.
inline double nearest(double x) {
  constexpr double kShift = 6'755'399'441'055'744.0;  // 1.5 * 2^52
  return (x + kShift) - kShift;
}

struct Step {
  double scale = 1.0;    // an f16
  double inverse = 1.0;  // of it
  double zero = 0.0;
  double most = 15.0;

  double code(double w) const { return nearest(std::min(std::max(w * inverse, -zero), most - zero)) + zero; }
  double value(double code) const { return scale * (code - zero); }
};

// The steps that cover [low, high], which holds 0.
Step step_of(double low, double high, const GptqGrid& grid) {
  Step step;
  step.most = static_cast<double>((1 << grid.bits) - 1);
  const double range = grid.symmetric ? 2.0 * std::max(-low, high) : high - low;
  const auto wanted = static_cast<float>(std::min<double>(range / step.most, kLargestScale));
  step.scale = half_to_float(float_to_half(std::max(wanted, kLeastScale)));
  step.inverse = 1.0 / step.scale;
  step.zero = grid.symmetric ? (step.most + 1.0) / 2.0 : std::min(nearest(-low * step.inverse), step.most);
  return step;
}

// Sum of (w - its value)^2 / u^2, where u [count] is U's diagonal: what rounding alone adds to the loss.
double error_of(const Step& step, const double* w, const double* inverse_u2, std::int64_t count) {
  std::array<double, kLanes> sums{};
  const auto add = [&](std::int64_t k, std::size_t lane) {
    const double error = w[k] - step.value(step.code(w[k]));
    sums[lane] += error * error * inverse_u2[k];
  };
  std::int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(k + lane, static_cast<std::size_t>(lane));
  }
  for (; k < count; ++k) add(k, 0);
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

Step choose_step(const double* w, const double* inverse_u2, std::int64_t count, const GptqGrid& grid) {
  const auto [least, most] = std::minmax_element(w, w + count);
  const double low = std::min(*least, 0.0);
  const double high = std::max(*most, 0.0);
  Step best = step_of(low, high, grid);
  if (!grid.search) return best;
  double best_error = error_of(best, w, inverse_u2, count);
  for (int i = 1; i < kRanges; ++i) {
    const double share = 1.0 - 0.01 * i;
    const Step step = step_of(low * share, high * share, grid);
    const double error = error_of(step, w, inverse_u2, count);
    if (error < best_error) {
      best = step;
      best_error = error;
    }
  }
  return best;
}

class Encoder {
 public:
  Encoder(std::span<const float> weight, std::int64_t cols, std::span<const std::int32_t> order,
          std::span<const double> u, const GptqGrid& grid, const GptqCodes& out)
      : weight_(weight), cols_(cols), order_(order), u_(u), grid_(grid), out_(out) {
    rows_ = static_cast<std::int64_t>(weight.size()) / cols;
    inverse_u2_.assign(static_cast<std::size_t>(cols), 1.0);
    for (std::int64_t k = 0; k < cols && !u.empty(); ++k) {
      const double root = u[static_cast<std::size_t>(k * cols + k)];
      inverse_u2_[static_cast<std::size_t>(k)] = 1.0 / (root * root);
    }
  }

  void rows(std::int64_t begin, std::int64_t end) const {
    std::vector<double> w(static_cast<std::size_t>(kRows * cols_));
    std::vector<double> errors(static_cast<std::size_t>(kRows * kBlock));
    for (std::int64_t first = begin; first < end; first += kRows) {
      const std::int64_t count = std::min(kRows, end - first);
      for (std::int64_t r = 0; r < count; ++r) {
        const float* const from = weight_.data() + (first + r) * cols_;
        for (std::int64_t place = 0; place < cols_; ++place) {
          w[static_cast<std::size_t>(r * cols_ + place)] = from[order_[static_cast<std::size_t>(place)]];
        }
      }
      encode(first, count, w.data(), errors.data());
    }
  }

 private:
  // A group's range is that of its columns as they are when its turn comes: all before it have been made up for, so a
  // group begins a block or lies within one.
  std::int64_t end_of_block(std::int64_t begin) const {
    if (grid_.group <= kBlock) return std::min(cols_, begin + kBlock / grid_.group * grid_.group);
    return std::min({cols_, begin + kBlock, begin / grid_.group * grid_.group + grid_.group});
  }

  // w [count, cols], errors [count, kBlock].
  void encode(std::int64_t first, std::int64_t count, double* w, double* errors) const {
    std::array<Step, kRows> steps;
    std::array<double, kRows> losses{};
    for (std::int64_t begin = 0, end = 0; begin < cols_; begin = end) {
      end = end_of_block(begin);
      for (std::int64_t r = 0; r < count; ++r) {
        const auto i = static_cast<std::size_t>(r);
        block(first + r, begin, end, w + r * cols_, errors + r * kBlock, steps[i], losses[i]);
      }
      if (!u_.empty()) make_up(begin, end, count, w, errors);
    }
    for (std::int64_t r = 0; r < count; ++r) {
      out_.losses[static_cast<std::size_t>(first + r)] = losses[static_cast<std::size_t>(r)];
    }
  }

  // Columns [begin, end) of one row. w [cols], errors [kBlock].
  void block(std::int64_t row, std::int64_t begin, std::int64_t end, double* w, double* errors, Step& step,
             double& loss) const {
    const std::int64_t n_rows = rows_;
    for (std::int64_t k = begin; k < end; ++k) {
      if (k % grid_.group == 0) {
        step = choose_step(w + k, inverse_u2_.data() + k, std::min(grid_.group, cols_ - k), grid_);
        const auto at = static_cast<std::size_t>(k / grid_.group * n_rows + row);
        out_.scales[at] = float_to_half(static_cast<float>(step.scale));
        out_.zeros[at] = static_cast<std::uint8_t>(step.zero);
      }
      const double code = step.code(w[k]);
      const double value = step.value(code);
      const auto at = static_cast<std::size_t>(row * cols_ + order_[static_cast<std::size_t>(k)]);
      out_.q[at] = static_cast<std::uint8_t>(code);
      out_.values[at] = static_cast<float>(value);
      const double* const u = u_.empty() ? nullptr : u_.data() + k * cols_;
      const double error = (w[k] - value) / (u == nullptr ? 1.0 : u[k]);
      loss += error * error;
      errors[k - begin] = error;
      for (std::int64_t j = k + 1; u != nullptr && j < end; ++j) w[j] -= error * u[j];
    }
  }

  // What the errors of columns [begin, end) owe to those from `end` on.
  void make_up(std::int64_t begin, std::int64_t end, std::int64_t count, double* w, const double* errors) const {
    std::array<double, kBlock * kTile> tile;  // of u, side by side
    for (std::int64_t j = end; j < cols_; j += kTile) {
      const std::int64_t width = std::min(kTile, cols_ - j);
      for (std::int64_t k = begin; k < end; ++k) {
        double* const to = tile.data() + (k - begin) * kTile;
        std::fill_n(std::copy_n(u_.data() + k * cols_ + j, width, to), kTile - width, 0.0);
      }
      for (std::int64_t r = 0; r < count; ++r) {
        double sum[kTile] = {};
        std::copy_n(w + r * cols_ + j, width, sum);
        for (std::int64_t k = 0; k < end - begin; ++k) {
          const double error = errors[r * kBlock + k];
          const double* const u = tile.data() + k * kTile;
          for (std::int64_t lane = 0; lane < kTile; ++lane) sum[lane] -= error * u[lane];
        }
        std::copy_n(sum, width, w + r * cols_ + j);
      }
    }
  }

  std::span<const float> weight_;
  std::int64_t rows_;
  std::int64_t cols_;
  std::span<const std::int32_t> order_;
  std::span<const double> u_;
  GptqGrid grid_;
  GptqCodes out_;
  std::vector<double> inverse_u2_;  // [cols]
};

}  // namespace

void gptq_encode(std::span<const float> weight, std::int64_t cols, std::span<const std::int32_t> order,
                 std::span<const double> u, const GptqGrid& grid, const GptqCodes& out, ThreadPool& pool) {
  const Encoder encoder(weight, cols, order, u, grid, out);
  const std::int64_t rows = static_cast<std::int64_t>(weight.size()) / cols;
  pool.run([&](int w, int workers) {
    const Range mine = share(rows, w, workers);
    encoder.rows(mine.begin, mine.end);
  });
}

void gptq_pack(const std::uint8_t* values, std::int64_t count, std::int64_t from_stride, int bits, std::uint32_t* words,
               std::int64_t to_stride) {
  for (std::int64_t k = 0; k < count; ++k) {
    const std::uint32_t value = values[k * from_stride];
    const std::int64_t bit = k * bits;
    const auto shift = static_cast<int>(bit % 32);
    words[bit / 32 * to_stride] |= value << shift;
    if (shift + bits > 32) words[(bit / 32 + 1) * to_stride] |= value >> (32 - shift);
  }
}

}  // namespace llama2cpp
