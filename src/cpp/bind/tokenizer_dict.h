// A tokenizer's settings as a dict: Tokenizer.to_dict and from_dict, and what pickles hold.
#pragma once

#include <pybind11/pybind11.h>

#include "core/vocabulary.h"

namespace llama2cpp::bind {

namespace py = pybind11;

// Every setting by its name, and "kind". Enums are their names; what may be no UTF-8 is bytes.
py::dict dict_of(const Vocabulary& vocabulary);

// The opposite, of any object. Throws TypeError for what is no dict, and FormatError, which names the setting, for one that
// is missing, unknown, of another type or out of range.
Vocabulary vocabulary_of(const py::object& settings);

// {"byte_bpe": ("pieces", ...), ...}: the names of the settings of each kind.
py::dict settings_of_kinds();

}  // namespace llama2cpp::bind
