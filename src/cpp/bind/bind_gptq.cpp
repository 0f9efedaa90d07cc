// GPTQ for Python: products of activations with themselves, what follows from them, and the encoder.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "format/f32.h"
#include "format/gptq_encode.h"
#include "format/gptq_factor.h"

namespace llama2cpp::bind {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

constexpr const char* kGramDoc = R"doc(The products of all columns of an array with each other.

Parameters
----------
x : numpy.ndarray
    float32 [rows, columns], C-contiguous.
threads : int, optional
    How many threads share the work; all that this process may use if not given.

Returns
-------
numpy.ndarray
    float32 [columns, columns]: x.T @ x, symmetric.

Raises
------
ValueError
    If `x` is not two-dimensional, or is empty.

Notes
-----
Made by the engine's own matrix product, whose sums have one order: the bits do not depend on threads or processor.

Examples
--------
>>> import numpy as np
>>> from llama2cpp import _core
>>> _core.gram(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)).tolist()
[[10.0, 14.0], [14.0, 20.0]]
)doc";

constexpr const char* kFactorDoc =
    R"doc(What GPTQ needs of a Hessian: how one column's error is made up for in those after it.

Parameters
----------
hessian : numpy.ndarray
    float64 [n, n], C-contiguous, symmetric, finite.
damp : float
    This share of the diagonal's mean is added to the diagonal. Where the result is not positive definite, ten times
    as much, and again.
threads : int, optional
    As in `gram`. The bits do not depend on it.

Returns
-------
(numpy.ndarray, float)
    U, float64 [n, n]: the upper triangle for which U.T @ U is the inverse of the damped Hessian; and the share that was
    added.

Raises
------
ValueError
    If the array is not square or not finite, or the share is not positive and finite.

Examples
--------
>>> import numpy as np
>>> from llama2cpp import _core
>>> u, damp = _core.gptq_factor(np.array([[3.0, 0.0], [0.0, 15.0]]), damp=1 / 9)
>>> u.tolist(), round(damp, 4)
([[0.5, 0.0], [0.0, 0.25]], 0.1111)
)doc";

constexpr const char* kEncodeDoc = R"doc(A weight as GPTQ stores it.

Parameters
----------
weight : numpy.ndarray
    float32 [rows, columns], C-contiguous, magnitudes up to 65,504.
factor : numpy.ndarray or None
    U of `gptq_factor`, float64 [columns, columns], of the Hessian with its columns in `order`. None rounds every column
    to the nearest.
order : numpy.ndarray
    int32 [columns]: the column that is rounded at each place. `group` neighbours in it share a scale.
bits : int
    2, 3, 4 or 8.
group : int
    Columns that share a scale, or -1 for all.
symmetric : bool
    The zero is half of the range; else it follows each group.
search : bool
    Look for the range with the least error in each group; else it holds all of the group.
version : int
    1 stores zero - 1, 2 the zero itself.
threads : int, optional
    As in `gram`. The bytes do not depend on it.

Returns
-------
dict
    "qweight" int32 [columns * bits / 32, rows], "qzeros" int32 [groups, rows * bits / 32], "scales" float16
    [groups, rows], "g_idx" int32 [columns]; "weight" float32 [rows, columns], what they stand for; and "loss", the sum
    over rows of e H e^T, where e is what a row has lost and H the damped Hessian.

Raises
------
ValueError
    If shapes do not fit each other, a number is too large, or rows or columns fill no whole words of 32 bits.

Examples
--------
>>> import numpy as np
>>> from llama2cpp import _core
>>> weight = np.tile(np.arange(-8, 8, dtype=np.float32), (8, 1))
>>> stored = _core.gptq_encode(weight, None, np.arange(16, dtype=np.int32), search=False, symmetric=False)
>>> bool((stored["weight"] == weight).all()), hex(stored["qweight"][0, 0]), stored["loss"]
(True, '0x76543210', 0.0)
)doc";

ThreadPool pool_of(std::optional<int> threads) {
  LLAMA2CPP_CHECK(!threads || (*threads >= 1 && *threads <= 1024), "threads is ", threads.value_or(0),
                  ", expected 1 to 1024, or None");
  return ThreadPool(threads.value_or(default_threads()));
}

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

template <typename T>
std::span<const T> values_of(const Array<T>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <typename T>
std::span<T> places_of(Array<T>& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

Array<float> gram(const Array<float>& x, std::optional<Int<"gram", "threads", int>> given) {
  const std::optional<int> threads = given;
  LLAMA2CPP_CHECK(x.ndim() == 2 && x.size() > 0, "x has shape ", shape_of(x), ", expected rows and columns");
  LLAMA2CPP_CHECK(!threads || (*threads >= 1 && *threads <= 1024), "threads is ", threads.value_or(0),
                  ", expected 1 to 1024, or None");
  const std::int64_t rows = x.shape(0);
  const std::int64_t cols = x.shape(1);
  Array<float> result = new_array<float>({cols, cols}, "the sum of a matrix's inputs' products");
  const float* const from = x.data();
  float* const to = result.mutable_data();
  const ReleasedGil released;
  std::vector<float> turned(static_cast<std::size_t>(rows * cols));  // [cols, rows]
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) turned[static_cast<std::size_t>(c * rows + r)] = from[r * cols + c];
  }
  Weight weight;
  weight.name = "x";
  weight.format = &kF32;
  weight.rows = cols;
  weight.cols = rows;
  weight.planes[0].data = reinterpret_cast<const std::byte*>(turned.data());
  weight.planes[0].bytes = turned.size() * sizeof(float);
  weight.planes[0].row_bytes = rows * static_cast<std::int64_t>(sizeof(float));
  const auto backend = make_backend("cpu", threads.value_or(0));
  const Poll poll(*backend);
  const Backend::Lease lease(*backend, poll);
  backend->pack(weight);
  const Weight* const weights[] = {&weight};
  constexpr std::int64_t kAtOnce = 128;  // as many as a forward pass has tokens: the kernels are made for that
  for (std::int64_t first = 0; first < cols; first += kAtOnce) {
    const std::int64_t count = std::min(kAtOnce, cols - first);
    const Tensor outs[] = {Tensor(to + first * cols, {count, cols})};
    backend->matmul(weights, Tensor(turned.data() + first * rows, {count, rows}), outs);
  }
  backend->sync();
  warn_of(*backend);
  return result;
}

py::tuple factor(const Array<double>& hessian, double damp, std::optional<Int<"gptq_factor", "threads", int>> threads) {
  LLAMA2CPP_CHECK(hessian.ndim() == 2 && hessian.shape(0) == hessian.shape(1) && hessian.size() > 0,
                  "the Hessian has shape ", shape_of(hessian), ", expected a square");
  LLAMA2CPP_CHECK(damp > 0.0 && std::isfinite(damp), "damp is ", damp, ", expected a positive number");
  const std::int64_t n = hessian.shape(0);
  Array<double> u = new_array<double>({n, n}, "the factor of a Hessian");
  const auto given = values_of(hessian);
  const auto inverse = places_of(u);
  {
    const ReleasedGil released;
    LLAMA2CPP_CHECK(std::all_of(given.begin(), given.end(), [](double v) { return std::isfinite(v); }),
                    "the Hessian has numbers that are not finite");
    ThreadPool pool = pool_of(threads);
    double mean = 0.0;
    for (std::int64_t k = 0; k < n; ++k) mean += given[static_cast<std::size_t>(k * n + k)];
    mean /= static_cast<double>(n);
    if (!(mean > 0.0)) mean = 1.0;  // inputs that were always 0: nothing is made up for
    std::vector<double> damped(given.size());
    for (;; damp *= 10.0) {
      // With a diagonal of some 1e6 means any symmetric matrix is positive definite whose entries are not far beyond it.
      LLAMA2CPP_CHECK(damp < 1e12, "the Hessian is not positive definite with any damping");
      std::copy(given.begin(), given.end(), damped.begin());
      for (std::int64_t k = 0; k < n; ++k) damped[static_cast<std::size_t>(k * n + k)] += damp * mean;
      if (gptq_factor(damped, inverse, n, pool)) break;
    }
    warn_of(pool);
  }
  return py::make_tuple(std::move(u), damp);
}

// Throws unless the shapes fit and every number may be stored.
void check_weight(const Array<float>& weight, const std::optional<Array<double>>& factor,
                  const Array<std::int32_t>& order, int bits) {
  LLAMA2CPP_CHECK(bits == 2 || bits == 3 || bits == 4 || bits == 8, "bits is ", bits, ", expected 2, 3, 4 or 8");
  LLAMA2CPP_CHECK(weight.ndim() == 2 && weight.size() > 0, "the weight has shape ", shape_of(weight),
                  ", expected rows and columns");
  const py::ssize_t cols = weight.shape(1);
  for (const py::ssize_t size : {weight.shape(0), cols}) {
    LLAMA2CPP_CHECK(size * bits % 32 == 0, "the weight is [", weight.shape(0), ", ", cols, "], and ", size,
                    " values of ", bits, " bits fill no whole 32-bit words");
  }
  LLAMA2CPP_CHECK(!factor || (factor->ndim() == 2 && factor->shape(0) == cols && factor->shape(1) == cols),
                  "factor has shape ", factor ? shape_of(*factor) : "", ", expected (", cols, ", ", cols, ")");
  LLAMA2CPP_CHECK(order.ndim() == 1 && order.shape(0) == cols, "order has shape ", shape_of(order), ", expected (",
                  cols, ",)");
  std::vector<bool> seen(static_cast<std::size_t>(cols));
  for (const std::int32_t column : values_of(order)) {
    LLAMA2CPP_CHECK(column >= 0 && column < cols && !seen[static_cast<std::size_t>(column)], "order has ", column,
                    ", expected each of 0 to ", cols - 1, " once");
    seen[static_cast<std::size_t>(column)] = true;
  }
  constexpr float kLargest = 65504.0F;  // of f16, which scales are
  for (const float value : values_of(weight)) {
    LLAMA2CPP_CHECK(std::fabs(value) <= kLargest, "a number is ", value, ", expected a magnitude of up to ", kLargest);
  }
}

py::dict encode(const Array<float>& weight, const std::optional<Array<double>>& factor,
                const Array<std::int32_t>& order, Int<"gptq_encode", "bits", int> given_bits,
                Int<"gptq_encode", "group"> given_group, bool symmetric, bool search,
                Int<"gptq_encode", "version", int> given_version,
                std::optional<Int<"gptq_encode", "threads", int>> threads) {
  const int bits = given_bits;
  const int version = given_version;
  std::int64_t group = given_group;
  check_weight(weight, factor, order, bits);
  LLAMA2CPP_CHECK(group == -1 || group >= 1, "group is ", group, ", expected 1 or more, or -1 for all columns");
  LLAMA2CPP_CHECK(version == 1 || version == 2, "version is ", version, ", expected 1 or 2");
  const std::int64_t rows = weight.shape(0);
  const std::int64_t cols = weight.shape(1);
  group = group == -1 ? cols : std::min(group, cols);
  const std::int64_t groups = gptq_groups(cols, group);
  Array<std::int32_t> qweight(std::vector<py::ssize_t>{cols * bits / 32, rows});
  Array<std::int32_t> qzeros(std::vector<py::ssize_t>{groups, rows * bits / 32});
  Array<std::int32_t> g_idx(std::vector<py::ssize_t>{cols});
  Array<std::uint16_t> scales(std::vector<py::ssize_t>{groups, rows});
  Array<float> values = new_array<float>({rows, cols}, "an array of a GPTQ matrix's values");
  auto* const words = reinterpret_cast<std::uint32_t*>(qweight.mutable_data());
  auto* const zero_words = reinterpret_cast<std::uint32_t*>(qzeros.mutable_data());
  const auto group_of = places_of(g_idx);
  double loss = 0.0;
  {
    std::vector<std::uint8_t> q(static_cast<std::size_t>(rows * cols));
    std::vector<std::uint8_t> zeros(static_cast<std::size_t>(groups * rows));
    std::vector<double> losses(static_cast<std::size_t>(rows));
    const GptqCodes out{q, places_of(scales), zeros, places_of(values), losses};
    const auto from = values_of(weight);
    const auto u = factor ? values_of(*factor) : std::span<const double>();
    const auto places = values_of(order);
    const ReleasedGil released;
    ThreadPool pool = pool_of(threads);
    gptq_encode(from, cols, places, u, {bits, group, symmetric, search}, out, pool);
    warn_of(pool);
    for (const double of_row : losses) loss += of_row;
    for (std::int64_t place = 0; place < cols; ++place) {
      group_of[static_cast<std::size_t>(places[static_cast<std::size_t>(place)])] =
          static_cast<std::int32_t>(place / group);
    }
    std::fill_n(words, cols * bits / 32 * rows, 0U);
    std::fill_n(zero_words, groups * rows * bits / 32, 0U);
    for (std::int64_t r = 0; r < rows; ++r) gptq_pack(q.data() + r * cols, cols, 1, bits, words + r, rows);
    const int stored_less = version == 1 ? 1 : 0;
    for (std::uint8_t& zero : zeros) zero = static_cast<std::uint8_t>((zero - stored_less) & ((1 << bits) - 1));
    for (std::int64_t g = 0; g < groups; ++g) {
      gptq_pack(zeros.data() + g * rows, rows, 1, bits, zero_words + g * (rows * bits / 32), 1);
    }
  }
  py::dict result;
  result["qweight"] = std::move(qweight);
  result["qzeros"] = std::move(qzeros);
  result["scales"] = scales.attr("view")("float16");
  result["g_idx"] = std::move(g_idx);
  result["weight"] = std::move(values);
  result["loss"] = loss;
  return result;
}

}  // namespace

void register_gptq(py::module_& module) {
  module.def("gram", &gram, py::arg("x").noconvert(), py::arg("threads") = py::none(), kGramDoc);
  module.def("gptq_factor", &factor, py::arg("hessian").noconvert(), py::arg("damp") = 0.01,
             py::arg("threads") = py::none(), kFactorDoc);
  module.def("gptq_encode", &encode, py::arg("weight").noconvert(), py::arg("factor").noconvert(),
             py::arg("order").noconvert(), py::arg("bits") = 4, py::arg("group") = 128, py::arg("symmetric") = true,
             py::arg("search") = true, py::arg("version") = 1, py::arg("threads") = py::none(), kEncodeDoc);
}

}  // namespace llama2cpp::bind
