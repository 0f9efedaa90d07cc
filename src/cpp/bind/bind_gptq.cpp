// GPTQ for Python: products of activations with themselves, what follows from them, and the encoder.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "format/gptq_factor.h"
#include "format/gptq_store.h"
#include "model/gram.h"

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

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

template <typename T>
std::span<const T> values_of(const Array<T>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <typename T>
std::span<T> places_of(Array<T>& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

std::span<std::uint32_t> words_of(Array<std::int32_t>& array) {
  return {reinterpret_cast<std::uint32_t*>(array.mutable_data()), static_cast<std::size_t>(array.size())};
}

Array<float> gram_of(const Array<float>& x, std::optional<Int<"gram", "threads", int>> threads) {
  LLAMA2CPP_CHECK(x.ndim() == 2 && x.size() > 0, "x has shape ", shape_of(x), ", expected rows and columns");
  const std::int64_t cols = x.shape(1);
  Array<float> result = new_array<float>({cols, cols}, "the sum of a matrix's inputs' products");
  const auto from = values_of(x);
  const auto to = places_of(result);
  const ReleasedGil released;
  const auto backend = make_backend("cpu", checked_threads(threads));
  gram(from, cols, to, *backend, Poll(*backend));
  warn_of(*backend);
  return result;
}

py::tuple factor(const Array<double>& hessian, double damp, std::optional<Int<"gptq_factor", "threads", int>> threads) {
  LLAMA2CPP_CHECK(hessian.ndim() == 2 && hessian.shape(0) == hessian.shape(1) && hessian.size() > 0,
                  "the Hessian has shape ", shape_of(hessian), ", expected a square");
  const std::int64_t n = hessian.shape(0);
  Array<double> u = new_array<double>({n, n}, "the factor of a Hessian");
  const auto given = values_of(hessian);
  const auto inverse = places_of(u);
  {
    const ReleasedGil released;
    ThreadPool pool(checked_threads(threads));
    damp = gptq_damped_factor(given, damp, inverse, n, pool);
    warn_of(pool);
  }
  return py::make_tuple(std::move(u), damp);
}

void check_shapes(std::int64_t cols, const std::optional<Array<double>>& factor, const Array<std::int32_t>& order) {
  LLAMA2CPP_CHECK(!factor || (factor->ndim() == 2 && factor->shape(0) == cols && factor->shape(1) == cols),
                  "factor has shape ", factor ? shape_of(*factor) : "", ", expected (", cols, ", ", cols, ")");
  LLAMA2CPP_CHECK(order.ndim() == 1 && order.shape(0) == cols, "order has shape ", shape_of(order), ", expected (",
                  cols, ",)");
}

py::dict encode(const Array<float>& weight, const std::optional<Array<double>>& factor,
                const Array<std::int32_t>& order, Int<"gptq_encode", "bits", int> bits,
                Int<"gptq_encode", "group"> group, Flag<"gptq_encode", "symmetric"> symmetric,
                Flag<"gptq_encode", "search"> search, Int<"gptq_encode", "version", int> version,
                std::optional<Int<"gptq_encode", "threads", int>> threads) {
  LLAMA2CPP_CHECK(weight.ndim() == 2 && weight.size() > 0, "the weight has shape ", shape_of(weight),
                  ", expected rows and columns");
  const std::int64_t rows = weight.shape(0);
  const std::int64_t cols = weight.shape(1);
  const GptqSizes sizes = gptq_sizes(rows, cols, bits, group);
  check_shapes(cols, factor, order);
  Array<std::int32_t> qweight(std::vector<py::ssize_t>{sizes.weight_words, rows});
  Array<std::int32_t> qzeros(std::vector<py::ssize_t>{sizes.groups, sizes.zero_words});
  Array<std::int32_t> g_idx(std::vector<py::ssize_t>{cols});
  Array<std::uint16_t> scales(std::vector<py::ssize_t>{sizes.groups, rows});
  Array<float> values = new_array<float>({rows, cols}, "an array of a GPTQ matrix's values");
  const GptqPlanes planes{words_of(qweight), words_of(qzeros), places_of(scales), places_of(g_idx), places_of(values)};
  const auto u = factor ? values_of(*factor) : std::span<const double>();
  double loss = 0.0;
  {
    const ReleasedGil released;
    ThreadPool pool(checked_threads(threads));
    loss = gptq_store(values_of(weight), values_of(order), u, {bits, sizes.group, symmetric, search}, version, planes,
                      pool);
    warn_of(pool);
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
  module.def("gram", &gram_of, py::arg("x").noconvert(), py::arg("threads") = py::none(), kGramDoc);
  module.def("gptq_factor", &factor, py::arg("hessian").noconvert(), py::arg("damp") = 0.01,
             py::arg("threads") = py::none(), kFactorDoc);
  module.def("gptq_encode", &encode, py::arg("weight").noconvert(), py::arg("factor").noconvert(),
             py::arg("order").noconvert(), py::arg("bits") = 4, py::arg("group") = 128, py::arg("symmetric") = true,
             py::arg("search") = true, py::arg("version") = 1, py::arg("threads") = py::none(), kEncodeDoc);
}

}  // namespace llama2cpp::bind
