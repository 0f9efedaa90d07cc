// Weight formats for Python: encoding and decoding rows.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "format/encode_rows.h"

namespace llama2cpp::bind {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;

constexpr const char* kEncodeRowsDoc = R"doc(Rows of numbers as a weight format stores them.

Parameters
----------
format : str
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k" or "q6_k".
array : numpy.ndarray
    float32 [columns] or [rows, columns], C-contiguous; the format's group divides the columns.
importance : numpy.ndarray, optional
    float32 [columns], 0 or more: how much the squared error of each column counts. Formats of 2 to 6 bits search for
    the scales that lose least by it; others pass over it.
threads : int, optional
    How many threads share the rows; all that this process may use if not given. The bytes do not depend on it.

Returns
-------
numpy.ndarray
    uint8 [rows, bytes of a row], or [bytes of a row].

Raises
------
ValueError
    If the format cannot be written or the array cannot be its. Quantized formats take magnitudes up to 65,504.

Notes
-----
Without an importance, formats that ggml rounds to nearest are those of its reference, byte for byte. K-quants are our own
search for the least sum of squared errors.

Examples
--------
>>> import numpy as np
>>> from llama2cpp import _core
>>> _core.encode("bf16", np.array([1.0, -2.0], dtype=np.float32)).tobytes().hex()
'803f00c0'
)doc";

constexpr const char* kDecodeRowsDoc = R"doc(The opposite of `encode`: stored rows as numbers.

Parameters
----------
format : str
    As in `encode`.
data : numpy.ndarray
    uint8 [bytes of a row] or [rows, bytes of a row], C-contiguous.

Returns
-------
numpy.ndarray
    float32 [columns] or [rows, columns].

Raises
------
ValueError
    If the format has no rows of its own, or the bytes are no whole groups.

Examples
--------
>>> import numpy as np
>>> from llama2cpp import _core
>>> _core.decode("bf16", _core.encode("bf16", np.array([1.0, -2.0], dtype=np.float32)))
array([ 1., -2.], dtype=float32)
)doc";

constexpr const char* kInt8GroupDoc = R"doc(Numbers as llama2.c's version 2 stores them, rounded as its export does.

Parameters
----------
array : numpy.ndarray
    float32 [rows, columns], C-contiguous, finite.
group : int
    How many neighbours share a scale; it divides the columns, and is at most 65,536.

Returns
-------
(numpy.ndarray, numpy.ndarray)
    int8 [rows, columns] and float32 [rows, columns / group]: each number is near int8 * scale.

Raises
------
ValueError
    If the group does not divide the columns or is too large, or a number is not finite.

Examples
--------
>>> import numpy as np
>>> from llama2cpp import _core
>>> values, scales = _core.encode_int8_group(np.array([[127.0, 63.4, 0.0, 0.0]], dtype=np.float32), 2)
>>> values.tolist(), scales.tolist()
([[127, 63, 0, 0]], [[1.0, 0.0]])
)doc";

constexpr const char* kLlmInt8Doc = R"doc(Numbers as LLM.int8() stores them, rounded as bitsandbytes rounds.

Parameters
----------
array : numpy.ndarray
    float32 [rows, columns], C-contiguous, magnitudes up to 65,504: the numbers are taken to float16 first.

Returns
-------
(numpy.ndarray, numpy.ndarray)
    int8 [rows, columns], and float32 [rows], the largest magnitude of each row: each number is near
    int8 * largest / 127.

Raises
------
ValueError
    If a number is not finite or too large.

Notes
-----
Dettmers and others, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022. bitsandbytes calls the
second array SCB.

Examples
--------
>>> import numpy as np
>>> from llama2cpp import _core
>>> values, largest = _core.encode_llm_int8(np.array([[2.0, -1.0, 0.25, 0.0]], dtype=np.float32))
>>> values.tolist(), largest.tolist()
([[127, -64, 16, 0]], [2.0])
)doc";

constexpr const char* kRowBytesDoc = R"doc(How many bytes a row takes in a format.

Parameters
----------
format : str
    As in `encode`.
columns : int
    Numbers in a row.

Returns
-------
int

Raises
------
ValueError
    If the format has no rows of its own, or its group does not divide the columns.

Examples
--------
>>> from llama2cpp import _core
>>> _core.row_bytes("q4_k", 512)
288
)doc";

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

// Rows and columns of an array of one or two dimensions, and the shape of a result whose rows have another length.
struct Rows {
  explicit Rows(const py::array& array) : rank(array.ndim()) {
    LLAMA2CPP_CHECK(rank == 1 || rank == 2, "the array has shape ", shape_of(array),
                    ", expected one or two dimensions");
    count = rank == 2 ? array.shape(0) : 1;
    columns = array.shape(rank - 1);
  }

  std::vector<py::ssize_t> shape(std::int64_t last) const {
    return rank == 1 ? std::vector<py::ssize_t>{last} : std::vector<py::ssize_t>{count, last};
  }
  ThreadPool pool(std::optional<int> threads = {}) const {
    return ThreadPool(threads_for_rows(count, count * columns, threads));
  }

  py::ssize_t rank;
  std::int64_t count;
  std::int64_t columns;
};

Rows matrix(const py::array& array) {
  LLAMA2CPP_CHECK(array.ndim() == 2, "the array has shape ", shape_of(array), ", expected two dimensions");
  return Rows(array);
}

std::span<const float> values_of(const FloatArray& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

py::array encode_array(const std::string& name, const FloatArray& array, const std::optional<FloatArray>& importance,
                       std::optional<Int<"encode", "threads", int>> threads) {
  const Format& format = find_row_format(name);
  const Rows rows(array);
  const std::int64_t bytes = checked_row_bytes(format, rows.columns);
  if (importance) {
    LLAMA2CPP_CHECK(importance->ndim() == 1 && importance->shape(0) == rows.columns, "importance has shape ",
                    shape_of(*importance), ", expected (", rows.columns, ",)");
  }
  ByteArray result = new_array<std::uint8_t>(rows.shape(bytes), "an array of encoded rows");
  const auto from = values_of(array);
  const auto weights = importance ? values_of(*importance) : std::span<const float>();
  auto* const to = reinterpret_cast<std::byte*>(result.mutable_data());
  const ReleasedGil released;
  ThreadPool pool = rows.pool(threads);
  encode_rows(format, from, rows.columns, weights, to, pool);
  warn_of(pool);
  return result;
}

py::array decode_array(const std::string& name, const ByteArray& data) {
  const Format& format = find_row_format(name);
  const Rows stored(data);
  const std::int64_t columns = checked_row_columns(format, stored.columns);
  FloatArray result = new_array<float>(stored.shape(columns), "an array of decoded rows");
  const auto* const from = reinterpret_cast<const std::byte*>(data.data());
  float* const to = result.mutable_data();
  const ReleasedGil released;
  ThreadPool pool(threads_for_rows(stored.count, stored.count * columns));
  decode_rows(format, {from, static_cast<std::size_t>(data.nbytes())}, columns, to, pool);
  warn_of(pool);
  return result;
}

py::tuple encode_groups(const FloatArray& array, Int<"encode_int8_group", "group"> group) {
  const Rows rows = matrix(array);
  LLAMA2CPP_CHECK(group >= 1, "group is ", group.value, ", expected a divisor of ", rows.columns);
  auto values = new_array<std::int8_t>({rows.count, rows.columns}, "an array of encoded rows");
  py::array_t<float> scales(std::vector<py::ssize_t>{rows.count, rows.columns / group});
  std::int8_t* const q = values.mutable_data();
  float* const s = scales.mutable_data();
  {
    const ReleasedGil released;
    ThreadPool pool = rows.pool();
    encode_int8_groups(values_of(array), rows.columns, group, q, s, pool);
    warn_of(pool);
  }
  return py::make_tuple(std::move(values), std::move(scales));
}

py::tuple encode_llm_int8(const FloatArray& array) {
  const Rows rows = matrix(array);
  auto values = new_array<std::int8_t>({rows.count, rows.columns}, "an array of encoded rows");
  py::array_t<float> largest(rows.count);
  std::int8_t* const q = values.mutable_data();
  float* const most = largest.mutable_data();
  {
    const ReleasedGil released;
    ThreadPool pool = rows.pool();
    encode_llm_int8_rows(values_of(array), rows.columns, q, most, pool);
    warn_of(pool);
  }
  return py::make_tuple(std::move(values), std::move(largest));
}

}  // namespace

void register_format(py::module_& module) {
  module.def("encode", &encode_array, py::arg("format"), py::arg("array").noconvert(),
             py::arg("importance") = py::none(), py::arg("threads") = py::none(), kEncodeRowsDoc);
  module.def("decode", &decode_array, py::arg("format"), py::arg("data").noconvert(), kDecodeRowsDoc);
  module.def("encode_int8_group", &encode_groups, py::arg("array").noconvert(), py::arg("group"), kInt8GroupDoc);
  module.def("encode_llm_int8", &encode_llm_int8, py::arg("array").noconvert(), kLlmInt8Doc);
  module.def(
      "row_bytes",
      [](const std::string& format, Int<"row_bytes", "columns"> columns) {
        return checked_row_bytes(find_row_format(format), columns);
      },
      py::arg("format"), py::arg("columns"), kRowBytesDoc);
}

}  // namespace llama2cpp::bind
