// Mask: which ids may be drawn, from whatever NumPy array a user passes.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bind/integer.h"
#include "core/check.h"

namespace llama2cpp::bind {

// The bits as a sampler reads them: those of an array that lives as long as this, or packed here.
class Mask {
 public:
  Mask() = default;
  explicit Mask(py::array array) : array_(std::move(array)) {}
  explicit Mask(std::vector<std::uint32_t> packed) : packed_(std::move(packed)) {}

  // Empty: every id may be drawn.
  std::span<const std::uint32_t> words() const {
    if (array_.size() == 0) return packed_;
    return {static_cast<const std::uint32_t*>(array_.data()), static_cast<std::size_t>(array_.size())};
  }

 private:
  py::array array_;
  std::vector<std::uint32_t> packed_;
};

// bool [vocab_size], or uint32 or int32 [at least ceil(vocab_size / 32)]; None for no mask.
inline Mask to_mask(const py::object& given, std::int64_t vocab_size) {
  if (given.is_none()) return {};
  if (!py::isinstance<py::array>(given)) {
    throw py::type_error(cat("mask is ", shown(given), ", expected a NumPy array of bool or uint32, or None"));
  }
  const py::array array = py::reinterpret_borrow<py::array>(given);
  const char kind = array.dtype().kind();
  const bool packed = (kind == 'u' || kind == 'i') && array.itemsize() == 4;
  const std::int64_t least = packed ? (vocab_size + 31) / 32 : vocab_size;
  const bool right_size = array.ndim() == 1 && (packed ? array.size() >= least : array.size() == least);
  LLAMA2CPP_CHECK((packed || kind == 'b') && right_size, "mask is an array of ", std::string(py::str(array.dtype())),
                  " and shape ", std::string(py::str(array.attr("shape"))), ", expected bool [", vocab_size,
                  "] or uint32 [", (vocab_size + 31) / 32, "]");
  if (packed) return Mask(py::array_t<std::uint32_t, py::array::c_style | py::array::forcecast>::ensure(array));
  const auto flags = py::array_t<bool, py::array::c_style | py::array::forcecast>::ensure(array);
  std::vector<std::uint32_t> words(static_cast<std::size_t>((vocab_size + 31) / 32));
  for (py::ssize_t i = 0; i < flags.size(); ++i) {
    if (flags.data()[i]) words[static_cast<std::size_t>(i / 32)] |= std::uint32_t{1} << (i % 32);
  }
  return Mask(std::move(words));
}

}  // namespace llama2cpp::bind
