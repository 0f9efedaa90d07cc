// Weight formats for Python: encoding and decoding rows.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/function_ref.h"
#include "core/thread_pool.h"
#include "format/format.h"
#include "format/int8_group.h"
#include "format/llm_int8.h"

namespace llama2cpp::bind {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;

constexpr float kLargest = 65504.0F;             // of f16, which scales are
constexpr std::int64_t kWorthAThread = 1 << 16;  // weights; below it, starting one takes longer than it saves

constexpr const char* kEncodeDoc = R"doc(Rows of numbers as a weight format stores them.

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
    If the format cannot be written or the array cannot be its. Quantised formats take magnitudes up to 65,504.

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

constexpr const char* kDecodeDoc = R"doc(The opposite of `encode`: stored rows as numbers.

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

const Format& find_row_format(const std::string& name) {
  const Format& format = find_format(name);
  LLAMA2CPP_CHECK(format.group != 0, "format '", name, "' has no rows of its own");
  return format;
}

std::int64_t row_bytes(const Format& format, std::int64_t columns) {
  LLAMA2CPP_CHECK(columns >= 0 && columns % format.group == 0, "rows have ", columns, " columns, which ", format.name,
                  "'s group of ", format.group, " does not divide");
  return columns / format.group * format.group_bytes;
}

// Rows, columns and the shape of a result whose rows have another length.
struct Rows {
  std::int64_t count;
  std::int64_t columns;

  std::vector<py::ssize_t> shape(int rank, std::int64_t last) const {
    return rank == 1 ? std::vector<py::ssize_t>{last} : std::vector<py::ssize_t>{count, last};
  }
};

Rows rows_of(const py::array& array) {
  LLAMA2CPP_CHECK(array.ndim() == 1 || array.ndim() == 2, "the array has shape ",
                  std::string(py::str(array.attr("shape"))), ", expected one or two dimensions");
  return {array.ndim() == 2 ? array.shape(0) : 1, array.shape(array.ndim() - 1)};
}

// Throws for the first number that is not in [least, most]; NaN is in no range.
void check_range(const float* x, std::int64_t count, float least, float most, const char* what) {
  const float* const bad = std::find_if(x, x + count, [&](float v) { return !(v >= least && v <= most); });
  LLAMA2CPP_CHECK(bad == x + count, what, " ", bad - x, " is ", *bad, ", expected a number from ", least, " to ", most);
}

// Calls work(begin, end) for shares of the rows, on threads where that pays.
void share_rows(Rows rows, std::optional<int> threads, FunctionRef<void(std::int64_t, std::int64_t)> work) {
  const std::int64_t most = std::max<std::int64_t>(1, rows.count * rows.columns / kWorthAThread);
  const std::int64_t wanted = std::min<std::int64_t>({threads.value_or(default_threads()), most, rows.count});
  const int n = static_cast<int>(std::max<std::int64_t>(1, wanted));
  if (n == 1) return work(0, rows.count);
  ThreadPool pool(n);
  pool.run([&](int w, int workers) {
    const Range range = share(rows.count, w, workers);
    work(range.begin, range.end);
  });
  warn_of(pool);
}

py::array encode(const std::string& name, const FloatArray& array, const std::optional<FloatArray>& importance,
                 std::optional<Int<"encode", "threads", int>> threads) {
  const Format& format = find_row_format(name);
  LLAMA2CPP_CHECK(format.encode != nullptr, "format '", name, "' can be read and not be written");
  LLAMA2CPP_CHECK(!threads || (*threads >= 1 && *threads <= 1024), "threads is ", *threads + 0,
                  ", expected 1 to 1024, or None");
  const Rows rows = rows_of(array);
  const std::int64_t bytes = row_bytes(format, rows.columns);
  if (importance) {
    LLAMA2CPP_CHECK(importance->ndim() == 1 && importance->shape(0) == rows.columns, "importance has shape ",
                    std::string(py::str(importance->attr("shape"))), ", expected (", rows.columns, ",)");
  }
  ByteArray result =
      new_array<std::uint8_t>(rows.shape(static_cast<int>(array.ndim()), bytes), "an array of encoded rows");
  const float* const from = array.data();
  const float* const weights = importance ? importance->data() : nullptr;
  auto* const to = reinterpret_cast<std::byte*>(result.mutable_data());
  const ReleasedGil released;
  if (format.quantised) check_range(from, rows.count * rows.columns, -kLargest, kLargest, "number");
  if (weights != nullptr) check_range(weights, rows.columns, 0.0F, 1e12F, "importance");
  share_rows(rows, threads, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      format.encode(from + r * rows.columns, weights, rows.columns, to + r * bytes);
  });
  return result;
}

py::array decode(const std::string& name, const ByteArray& data) {
  const Format& format = find_row_format(name);
  const Rows stored = rows_of(data);
  LLAMA2CPP_CHECK(stored.columns % format.group_bytes == 0, "rows have ", stored.columns,
                  " bytes, expected whole groups of ", format.group_bytes);
  const Rows rows{stored.count, stored.columns / format.group_bytes * format.group};
  Weight weight;
  weight.format = &format;
  weight.rows = rows.count;
  weight.cols = rows.columns;
  weight.group = format.group;
  weight.planes[0].data = reinterpret_cast<const std::byte*>(data.data());
  weight.planes[0].bytes = static_cast<std::size_t>(data.nbytes());
  weight.planes[0].row_bytes = stored.columns;
  FloatArray result =
      new_array<float>(rows.shape(static_cast<int>(data.ndim()), rows.columns), "an array of decoded rows");
  float* const to = result.mutable_data();
  const ReleasedGil released;
  share_rows(rows, std::nullopt, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) weight.decode_row(r, to + r * rows.columns);
  });
  return result;
}

py::tuple encode_groups(const FloatArray& array, Int<"encode_int8_group", "group"> given) {
  const std::int64_t group = given;
  LLAMA2CPP_CHECK(array.ndim() == 2, "the array has shape ", std::string(py::str(array.attr("shape"))),
                  ", expected two dimensions");
  const Rows rows = rows_of(array);
  LLAMA2CPP_CHECK(group >= 1 && rows.columns % group == 0, "group is ", group, ", expected a divisor of ",
                  rows.columns);
  LLAMA2CPP_CHECK(group <= kMostInt8Group, "group is ", group, ", expected at most ", kMostInt8Group);
  auto values = new_array<std::int8_t>({rows.count, rows.columns}, "an array of encoded rows");
  py::array_t<float> scales(std::vector<py::ssize_t>{rows.count, rows.columns / group});
  const float* const from = array.data();
  std::int8_t* const q = values.mutable_data();
  float* const s = scales.mutable_data();
  {
    const ReleasedGil released;
    constexpr float kMost = std::numeric_limits<float>::max();
    check_range(from, rows.count * rows.columns, -kMost, kMost, "number");
    share_rows(rows, std::nullopt, [&](std::int64_t begin, std::int64_t end) {
      encode_int8_group(from + begin * rows.columns, (end - begin) * rows.columns, group, q + begin * rows.columns,
                        s + begin * (rows.columns / group));
    });
  }
  return py::make_tuple(std::move(values), std::move(scales));
}

py::tuple encode_rows(const FloatArray& array) {
  LLAMA2CPP_CHECK(array.ndim() == 2, "the array has shape ", std::string(py::str(array.attr("shape"))),
                  ", expected two dimensions");
  const Rows rows = rows_of(array);
  auto values = new_array<std::int8_t>({rows.count, rows.columns}, "an array of encoded rows");
  py::array_t<float> largest(rows.count);
  const float* const from = array.data();
  std::int8_t* const q = values.mutable_data();
  float* const most = largest.mutable_data();
  {
    const ReleasedGil released;
    check_range(from, rows.count * rows.columns, -kLargest, kLargest, "number");
    share_rows(rows, std::nullopt, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        most[r] = encode_llm_int8(from + r * rows.columns, rows.columns, q + r * rows.columns);
      }
    });
  }
  return py::make_tuple(std::move(values), std::move(largest));
}

}  // namespace

void register_format(py::module_& module) {
  module.def("encode", &encode, py::arg("format"), py::arg("array").noconvert(), py::arg("importance") = py::none(),
             py::arg("threads") = py::none(), kEncodeDoc);
  module.def("decode", &decode, py::arg("format"), py::arg("data").noconvert(), kDecodeDoc);
  module.def("encode_int8_group", &encode_groups, py::arg("array").noconvert(), py::arg("group"), kInt8GroupDoc);
  module.def("encode_llm_int8", &encode_rows, py::arg("array").noconvert(), kLlmInt8Doc);
  module.def(
      "row_bytes",
      [](const std::string& format, Int<"row_bytes", "columns"> columns) {
        return row_bytes(find_row_format(format), columns);
      },
      py::arg("format"), py::arg("columns"), kRowBytesDoc);
}

}  // namespace llama2cpp::bind
