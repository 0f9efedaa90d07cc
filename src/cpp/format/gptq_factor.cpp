// H = R R^T with an upper R is a Cholesky decomposition that begins with the last row; then H^-1 = R^-T R^-1, so U is R's
// inverse, and H's own is never made. R is stored as its transpose T, so that inner loops run along rows: lanes are columns,
// and no sum crosses them.
#include "format/gptq_factor.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "core/check.h"

namespace llama2cpp {
namespace {

constexpr std::int64_t kTile = 16;   // columns that are in registers at a time
constexpr std::int64_t kBlock = 64;  // rows that are taken from all others together

// row[m] -= sum over k, from the last to the first, of rows[k][i] * rows[k][m], for m < count.
void subtract(double* row, std::int64_t count, const double* rows, std::int64_t n_rows, std::int64_t i,
              std::int64_t stride) {
  std::int64_t m = 0;
  for (; m + kTile <= count; m += kTile) {
    double sum[kTile];
    std::copy_n(row + m, kTile, sum);
    for (std::int64_t k = n_rows - 1; k >= 0; --k) {
      const double factor = rows[k * stride + i];
      const double* const other = rows + k * stride + m;
      for (std::int64_t lane = 0; lane < kTile; ++lane) sum[lane] -= factor * other[lane];
    }
    std::copy_n(sum, kTile, row + m);
  }
  for (; m < count; ++m) {
    for (std::int64_t k = n_rows - 1; k >= 0; --k) row[m] -= rows[k * stride + i] * rows[k * stride + m];
  }
}

// The lower triangle of `a` becomes T, where a = T^T T.
bool decompose(double* a, std::int64_t n, ThreadPool& pool) {
  for (std::int64_t end = n; end > 0; end -= std::min(end, kBlock)) {
    const std::int64_t begin = std::max<std::int64_t>(0, end - kBlock);
    for (std::int64_t k = end - 1; k >= begin; --k) {
      double* const row = a + k * n;
      if (!(row[k] > 0.0) || !std::isfinite(row[k])) return false;
      const double root = std::sqrt(row[k]);
      for (std::int64_t m = 0; m < k; ++m) row[m] /= root;
      row[k] = root;
      for (std::int64_t i = begin; i < k; ++i) subtract(a + i * n, i + 1, row, 1, i, n);
    }
    pool.run([&](int w, int workers) {  // rows are of all lengths: every worker gets some of each
      for (std::int64_t i = w; i < begin; i += workers) {
        subtract(a + i * n, i + 1, a + begin * n, end - begin, i, n);
      }
    });
  }
  return true;
}

// Columns [first, first + kTile) of the inverse of R, the upper triangle of `r`, from the last row up. `tile` [n, kTile].
void invert_columns(const double* r, std::int64_t n, std::int64_t first, double* tile) {
  const std::int64_t end = std::min(n, first + kTile);
  std::fill_n(tile, n * kTile, 0.0);
  for (std::int64_t i = end - 1; i >= 0; --i) {
    double sum[kTile] = {};
    if (i >= first) sum[i - first] = 1.0;
    for (std::int64_t k = i + 1; k < end; ++k) {
      const double factor = r[i * n + k];
      const double* const other = tile + k * kTile;
      for (std::int64_t lane = 0; lane < kTile; ++lane) sum[lane] -= factor * other[lane];
    }
    const double root = r[i * n + i];
    for (std::int64_t lane = 0; lane < kTile; ++lane) tile[i * kTile + lane] = sum[lane] / root;
  }
}

}  // namespace

bool gptq_factor(std::span<double> h, std::span<double> u, std::int64_t n, ThreadPool& pool) {
  double* const a = h.data();
  if (!decompose(a, n, pool)) return false;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t k = i + 1; k < n; ++k) a[i * n + k] = a[k * n + i];
  }
  pool.run([&](int w, int workers) {
    std::vector<double> tile(static_cast<std::size_t>(n * kTile));
    for (std::int64_t first = w * kTile; first < n; first += workers * kTile) {
      invert_columns(a, n, first, tile.data());
      for (std::int64_t i = 0; i < n; ++i) {
        std::copy_n(tile.data() + i * kTile, std::min(kTile, n - first), u.data() + i * n + first);
      }
    }
  });
  return std::all_of(u.begin(), u.end(), [](double value) { return std::isfinite(value); });
}

double gptq_damped_factor(std::span<const double> h, double damp, std::span<double> u, std::int64_t n,
                          ThreadPool& pool) {
  LLAMA2CPP_CHECK(damp > 0.0 && std::isfinite(damp), "damp is ", damp, ", expected a positive number");
  LLAMA2CPP_CHECK(std::all_of(h.begin(), h.end(), [](double v) { return std::isfinite(v); }),
                  "the Hessian has numbers that are not finite");
  double mean = 0.0;
  for (std::int64_t k = 0; k < n; ++k) mean += h[static_cast<std::size_t>(k * n + k)];
  mean /= static_cast<double>(n);
  if (!(mean > 0.0)) mean = 1.0;  // inputs that were always 0: nothing is made up for
  std::vector<double> damped(h.size());
  for (;; damp *= 10.0) {
    // With a diagonal of some 1e6 means any symmetric matrix is positive definite whose entries are not far beyond it.
    LLAMA2CPP_CHECK(damp < 1e12, "the Hessian is not positive definite with any damping");
    std::copy(h.begin(), h.end(), damped.begin());
    for (std::int64_t k = 0; k < n; ++k) damped[static_cast<std::size_t>(k * n + k)] += damp * mean;
    if (gptq_factor(damped, u, n, pool)) return damp;
  }
}

}  // namespace llama2cpp
