// llama2cpp_ops: the ops of any backend on NumPy arrays, for tests. The arrays that ops take are views of memory that the
// backend made (Backend.array), cut as NumPy cuts them: so a test misaligns them, leaves gaps between rows, or puts
// several into one piece of memory. Nothing of it is installed.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "core/buffer.h"
#include "core/check.h"
#include "core/tensor.h"
#include "format/format.h"
#ifdef LLAMA2CPP_SOFT_METAL
#include "ops_soft_device.h"
#endif

namespace py = pybind11;
using namespace llama2cpp;  // NOLINT: a module of tests

namespace {

// An array as a tensor, where it lies. None: the empty tensor.
Tensor tensor_of(const std::optional<py::array>& given) {
  if (!given) return {};
  const py::array& array = *given;
  Tensor t;
  t.dtype = array.dtype().kind() == 'i' ? DType::i32 : array.itemsize() == 2 ? DType::f16 : DType::f32;
  const bool known =
      array.dtype().kind() == 'i' ? array.itemsize() == 4 : array.dtype().kind() == 'f' && array.itemsize() <= 4;
  LLAMA2CPP_CHECK(known && array.ndim() >= 1 && array.ndim() <= 4, "an operand has ", array.ndim(),
                  " dimensions of dtype ", std::string(py::str(array.dtype())),
                  ", expected 1 to 4 of float32, float16 or int32");
  t.rank = static_cast<int>(array.ndim());
  for (int i = 0; i < t.rank; ++i) t.shape[static_cast<std::size_t>(i)] = array.shape(i);
  const py::ssize_t size = array.itemsize();
  LLAMA2CPP_CHECK(array.shape(t.rank - 1) <= 1 || array.strides(t.rank - 1) == size,
                  "the last axis of an operand has gaps");
  t.row_stride = t.rank == 1 ? t.shape[0] : array.strides(t.rank - 2) / size;
  for (int i = 0; i + 2 < t.rank; ++i) {
    LLAMA2CPP_CHECK(array.shape(i) <= 1 || array.strides(i) == array.shape(i + 1) * array.strides(i + 1),
                    "only the rows of an operand may lie apart");
  }
  t.data = const_cast<void*>(array.data());
  return t;
}

struct Span {
  AttentionSpan span;
  std::vector<py::object> arrays;  // kept alive
};

// Why there is no Metal backend here; empty where there is.
std::string metal_problem() {
  try {
    make_backend("metal", 1);
    return {};
  } catch (const std::exception& e) {
    return e.what();
  }
}

// A Python object that lives as long as this does, wherever it goes.
std::shared_ptr<const void> hold(const py::object& object) {
  return {new py::object(object), [](const void* held) {
            const py::gil_scoped_acquire gil;
            delete static_cast<const py::object*>(held);
          }};
}

struct FileMemory {
  Buffer memory;
};

// Bytes of an array, or (FileMemory, offset, bytes) of a file; and from one row to the next.
Plane plane_of(const py::object& source, std::int64_t row_bytes) {
  Plane plane;
  plane.row_bytes = row_bytes;
  if (py::isinstance<py::tuple>(source)) {
    const auto [file, offset, bytes] = source.cast<std::tuple<FileMemory, std::size_t, std::size_t>>();
    if (offset + bytes > file.memory.size()) throw std::invalid_argument("a plane reaches beyond its file");
    plane.data = file.memory.data() + offset;
    plane.bytes = bytes;
    plane.owner = file.memory;
    return plane;
  }
  const auto array = source.cast<py::array>();
  if ((array.flags() & py::array::c_style) == 0) throw std::invalid_argument("a plane has gaps");
  plane.data = static_cast<const std::byte*>(array.data());
  plane.bytes = static_cast<std::size_t>(array.nbytes());
  plane.owner = Buffer::wrap(array.data(), plane.bytes, hold(array));
  return plane;
}

std::unique_ptr<Weight> make_weight(const std::string& format, std::int64_t rows, std::int64_t cols,
                                    const std::vector<std::pair<py::object, std::int64_t>>& planes, std::int64_t group,
                                    const std::optional<py::array>& order, bool int8_input) {
  auto weight = std::make_unique<Weight>();
  weight->name = "w";
  weight->format = &find_format(format);
  weight->rows = rows;
  weight->cols = cols;
  weight->group = group;
  weight->int8_input = int8_input;
  for (std::size_t i = 0; i < planes.size(); ++i) weight->planes.at(i) = plane_of(planes[i].first, planes[i].second);
  if (order) weight->order = plane_of(*order, 0).owner;
  return weight;
}

py::array_t<float> decode(const Weight& weight) {
  py::array_t<float> out({weight.rows, weight.cols});
  for (std::int64_t row = 0; row < weight.rows; ++row) weight.decode_row(row, out.mutable_data(row, 0));
  return out;
}

// A backend, and the passes that a test runs on it. Outside of a pass each op is one of its own, done when it returns.
class Runner {
 public:
  Runner(const std::string& kind, int threads) : backend_(make_backend(kind, threads)) {}

  Backend& backend() { return *backend_; }

  py::array array(const std::vector<py::ssize_t>& shape, const std::string& dtype, bool reserved) {
    const py::dtype type(dtype);
    py::ssize_t bytes = type.itemsize();
    for (const py::ssize_t n : shape) bytes *= n;
    const auto size = static_cast<std::size_t>(bytes);
    auto held = std::make_unique<Buffer>(reserved ? backend_->reserve(size) : backend_->alloc(size));
    const py::capsule owner(held.get(), [](void* p) { delete static_cast<Buffer*>(p); });
    const void* const data = held.release()->data();
    return py::array(type, shape, data, owner);
  }

  void begin() {
    backend_->acquire(poll_);
    in_pass_ = true;
  }
  void end(bool done) {
    in_pass_ = false;
    struct Release {
      Backend& backend;
      ~Release() { backend.release(); }
    } const release{*backend_};
    if (done) backend_->sync();
  }

  template <class Op>
  void run(Op op) {
    if (in_pass_) {
      op(*backend_);
      return;
    }
    const Backend::Lease lease(*backend_, poll_);
    op(*backend_);
    backend_->sync();
  }

 private:
  // Ctrl-C ends a test that waits for a pass which another never ended.
  struct Poll {
    void operator()() const {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
  };

  std::shared_ptr<Backend> backend_;
  Poll poll_;
  bool in_pass_ = false;
};

using Array = std::optional<py::array>;
using Spans = std::vector<const Span*>;

std::vector<AttentionSpan> spans_of(const Spans& spans) {
  std::vector<AttentionSpan> list;
  for (const Span* span : spans) list.push_back(span->span);
  return list;
}

}  // namespace

PYBIND11_MODULE(llama2cpp_ops, module, py::mod_gil_not_used()) {
  using py::arg;
  const py::kw_only kw;
  using local = py::module_local;

  module.attr("formats") = [] {
    py::list names;
    for (const Format* format : all_formats()) names.append(std::string(format->name));
    return py::tuple(names);
  }();
  module.attr("metal_problem") = metal_problem();
  module.attr("has_soft_device") =
#ifdef LLAMA2CPP_SOFT_METAL
      true;
  add_soft_device(module);
#else
      false;
#endif

  py::enum_<Activation>(module, "Activation", local())
      .value("silu", Activation::silu)
      .value("gelu_tanh", Activation::gelu_tanh)
      .value("relu_squared", Activation::relu_squared)
      .value("clamped_swiglu", Activation::clamped_swiglu);

  py::enum_<AttentionStage>(module, "Stage", local())
      .value("scores", AttentionStage::scores)
      .value("pattern", AttentionStage::pattern)
      .value("values", AttentionStage::values);

  py::class_<FileMemory>(module, "File", local(), "A whole file, mapped or read.")
      .def(py::init([](const std::string& path, bool mapped) { return FileMemory{Buffer::file(path, mapped)}; }),
           arg("path"), arg("mapped") = true)
      .def_property_readonly("size", [](const FileMemory& file) { return file.memory.size(); });

  py::class_<Weight>(module, "Weight", local(), "planes: (array, or (File, offset, bytes); bytes from row to row).")
      .def(py::init(&make_weight), arg("format"), arg("rows"), arg("cols"), arg("planes"), kw, arg("group") = 1,
           arg("order") = py::none(), arg("int8_input") = false)
      .def("decode", &decode, "The weight as this project decodes it: for failures' messages, never for a reference.");

  py::class_<Span>(module, "Span", local())
      .def(py::init([](std::int64_t row, std::int64_t count, std::int64_t position, const py::array& keys,
                       const py::array& values, std::int64_t window, float divisor, float score_cap, const Array& sinks,
                       const Array& scores, const Array& pattern) {
             Span span;
             span.span = {.row = row,
                          .count = count,
                          .position = position,
                          .window = window,
                          .divisor = divisor,
                          .score_cap = score_cap,
                          .keys = tensor_of(keys),
                          .values = tensor_of(values),
                          .sinks = tensor_of(sinks),
                          .scores = tensor_of(scores),
                          .pattern = tensor_of(pattern)};
             span.arrays = {keys, values};
             if (sinks) span.arrays.push_back(*sinks);
             if (scores) span.arrays.push_back(*scores);
             if (pattern) span.arrays.push_back(*pattern);
             return span;
           }),
           kw, arg("row"), arg("count"), arg("position"), arg("keys"), arg("values"), arg("window") = 0,
           arg("divisor") = 1.0F, arg("score_cap") = 0.0F, arg("sinks") = py::none(), arg("scores") = py::none(),
           arg("pattern") = py::none());

  py::class_<Runner>(module, "Backend", local())
      .def(py::init<const std::string&, int>(), arg("kind"), arg("threads") = 1)
      .def_property_readonly("name", [](Runner& r) { return std::string(r.backend().name()); })
      .def_property_readonly("isa", [](Runner& r) { return std::string(r.backend().isa()); })
      .def_property_readonly("packs", [](Runner& r) { return r.backend().packs(); })
      .def_property_readonly("multiplies_integers", [](Runner& r) { return r.backend().multiplies_integers(); })
      .def_property_readonly("memory_left", [](Runner& r) { return r.backend().memory_left(); })
      .def("array", &Runner::array, arg("shape"), arg("dtype") = "f4", kw, arg("reserved") = false,
           "Zeros in memory of the backend's. Views of them are operands.")
      .def("begin", &Runner::begin, "Begins a pass: until its end, ops need not be done when they return.")
      .def("end", &Runner::end, arg("done") = true, "Ends it; without `done` as forward does when something throws.")
      .def("sync", [](Runner& r) { r.backend().sync(); })
      .def("pack", [](Runner& r, Weight& weight) { r.run([&](Backend& be) { be.pack(weight); }); })
      .def("packed_bytes", [](Runner& r, const Weight& weight) { return r.backend().packed_bytes(weight); })
      .def("embed", [](Runner& r, const Weight& table, const std::vector<std::int32_t>& tokens,
                       const py::array& out) { r.run([&](Backend& be) { be.embed(table, tokens, tensor_of(out)); }); })
      .def("take_rows",
           [](Runner& r, const py::array& x, const std::vector<std::int64_t>& rows, const py::array& out) {
             r.run([&](Backend& be) { be.take_rows(tensor_of(x), rows, tensor_of(out)); });
           })
      .def("rms_scale",
           [](Runner& r, const py::array& x, float eps, const py::array& scale) {
             r.run([&](Backend& be) { be.rms_scale(tensor_of(x), eps, tensor_of(scale)); });
           })
      .def("center", [](Runner& r, const py::array& x,
                        const py::array& out) { r.run([&](Backend& be) { be.center(tensor_of(x), tensor_of(out)); }); })
      .def(
          "normalize",
          [](Runner& r, const py::array& x, const py::array& scale, const py::array& out, const Array& gain) {
            r.run([&](Backend& be) {
              be.normalize(tensor_of(x), {tensor_of(scale), tensor_of(gain)}, tensor_of(out));
            });
          },
          arg("x"), arg("scale"), arg("out"), kw, arg("gain") = py::none())
      .def("scale",
           [](Runner& r, const py::array& x, float factor, const py::array& out) {
             r.run([&](Backend& be) { be.scale(tensor_of(x), factor, tensor_of(out)); });
           })
      .def(
          "matmul",
          [](Runner& r, const std::vector<const Weight*>& weights, const py::array& x,
             const std::vector<py::array>& outs, const Array& scale, const Array& gain) {
            std::vector<Tensor> places;
            for (const py::array& out : outs) places.push_back(tensor_of(out));
            r.run([&](Backend& be) { be.matmul(weights, tensor_of(x), places, {tensor_of(scale), tensor_of(gain)}); });
          },
          arg("weights"), arg("x"), arg("outs"), kw, arg("scale") = py::none(), arg("gain") = py::none())
      .def("rope",
           [](Runner& r, const py::array& x, const py::array& cos, const py::array& sin, std::int64_t head_dim,
              bool half_split) {
             const RopeStyle style = half_split ? RopeStyle::half_split : RopeStyle::interleaved;
             r.run([&](Backend& be) { be.rope(tensor_of(x), tensor_of(cos), tensor_of(sin), head_dim, style); });
           })
      .def("store_kv",
           [](Runner& r, const py::array& k, const py::array& v, const Spans& spans) {
             r.run([&](Backend& be) { be.store_kv(tensor_of(k), tensor_of(v), spans_of(spans)); });
           })
      .def(
          "attention",
          [](Runner& r, const py::array& q, const Spans& spans, const py::array& z, AttentionStage first,
             AttentionStage last) {
            r.run([&](Backend& be) { be.attention(tensor_of(q), spans_of(spans), tensor_of(z), first, last); });
          },
          arg("q"), arg("spans"), arg("z"), arg("first") = AttentionStage::scores, arg("last") = AttentionStage::values)
      .def("gated",
           [](Runner& r, Activation activation, const py::array& gate, const py::array& up, const py::array& out) {
             r.run([&](Backend& be) { be.gated(activation, tensor_of(gate), tensor_of(up), tensor_of(out)); });
           })
      .def("activate",
           [](Runner& r, Activation activation, const py::array& x, const py::array& out) {
             r.run([&](Backend& be) { be.activate(activation, tensor_of(x), tensor_of(out)); });
           })
      .def("soft_cap",
           [](Runner& r, const py::array& x, float cap, const py::array& out) {
             r.run([&](Backend& be) { be.soft_cap(tensor_of(x), cap, tensor_of(out)); });
           })
      .def("add",
           [](Runner& r, const py::array& a, const py::array& b, const py::array& out) {
             r.run([&](Backend& be) { be.add(tensor_of(a), tensor_of(b), tensor_of(out)); });
           })
      .def("add_bias", [](Runner& r, const py::array& x, const py::array& bias) {
        r.run([&](Backend& be) { be.add_bias(tensor_of(x), tensor_of(bias)); });
      });
}
