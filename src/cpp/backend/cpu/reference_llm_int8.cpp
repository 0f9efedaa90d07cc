// LLM.int8() as plain loops: the law for its kernels. For each output, an exact integer sum over all columns, scaled; then
// the columns that are multiplied in float, in order:
//
//   p = fma(round(w_scale * x_scale), float(isum), 0)
//   p = fma(w, x, p) for each outlier, where w is the weight's f16, or round(q * w_scale)
#include "backend/cpu/reference_llm_int8.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/half.h"

namespace llama2cpp {
namespace {

// One row of a panel.
struct PanelRow {
  const std::uint8_t* panel;
  std::int64_t quads;
  std::int64_t row;

  int q(std::int64_t k) const { return int{panel[(k / 4 * kPanelRows + row) * 4 + k % 4]} - 128; }
  float scale() const {
    float value = 0.0F;
    std::memcpy(&value, panel + quads * 4 * kPanelRows + row * 4, sizeof(value));
    return value;
  }
  float fixed(std::int64_t i) const {
    std::uint16_t half = 0;
    std::memcpy(&half, panel + (quads + 1) * 4 * kPanelRows + (i * kPanelRows + row) * 2, sizeof(half));
    return half_to_float(half);
  }
};

float output(const LlmInt8Call& c, const PanelRow& w, std::int64_t t) {
  std::int32_t sum = 0;
  for (std::int64_t k = 0; k < c.quads * 4; ++k) sum += w.q(k) * int{c.x[(k / 4 * c.n_tokens + t) * 4 + k % 4]};
  float p = std::fma(w.scale() * c.x_scales[t], static_cast<float>(sum), 0.0F);
  for (std::int64_t i = 0; i < c.fixed; ++i) p = std::fma(w.fixed(i), c.x_fixed[i * c.n_tokens + t], p);
  if (c.counts == nullptr) return p;
  for (std::int64_t i = t * c.outlier_stride; i < t * c.outlier_stride + c.counts[t]; ++i) {
    const float weight = static_cast<float>(w.q(c.columns[i])) * w.scale();
    p = std::fma(weight, c.x_outliers[i], p);
  }
  return p;
}

}  // namespace

void reference_matmul_llm_int8(const LlmInt8Call& c) {
  for (std::int64_t t = 0; t < c.n_tokens; ++t) {
    for (std::int64_t panel = 0; panel < c.n_panels; ++panel) {
      const std::int64_t rows = panel + 1 == c.n_panels ? c.last_rows : kPanelRows;
      for (std::int64_t row = 0; row < rows; ++row) {
        const PanelRow w{c.panels + panel * c.panel_stride, c.quads, row};
        c.out[t * c.out_stride + panel * kPanelRows + row] = output(c, w, t);
      }
    }
  }
}

// A NaN, and an infinity that is no outlier, makes zeros with the scale NaN, so that the output shows it.
std::int64_t reference_quantize_row(const LlmInt8Row& r) {
  const auto is_outlier = [&](float x) { return std::fabs(x) > r.limit; };
  std::int64_t count = 0;
  float largest = 0.0F;
  bool finite = true;
  for (std::int64_t k = 0; k < r.n; ++k) {
    if (is_outlier(r.x[k])) {
      r.columns[count] = static_cast<std::int32_t>(k);
      r.outliers[count++] = r.x[k];
      continue;
    }
    if (!std::isfinite(r.x[k])) finite = false;
    if (std::fabs(r.x[k]) > largest) largest = std::fabs(r.x[k]);
  }
  const float scale = largest / 127.0F;
  *r.scale = finite ? scale : std::numeric_limits<float>::quiet_NaN();
  for (std::int64_t k = 0; k < r.n; ++k) {
    if (!finite || scale == 0.0F || is_outlier(r.x[k])) {
      r.q[k] = 0;
      continue;
    }
    // A scale that is a denormal is coarse: then the quotient can pass 127.
    const float rounded = std::nearbyint(r.x[k] / scale);
    r.q[k] = static_cast<std::int8_t>(rounded > 127.0F ? 127.0F : rounded < -127.0F ? -127.0F : rounded);
  }
  return count;
}

}  // namespace llama2cpp
