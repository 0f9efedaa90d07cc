// In place of MLX's file of this name, which tells address spaces apart: here all are one.
#pragma once

#include "third_party.h"

namespace metal {

template <class T>
struct pointer_element;
template <class T>
struct pointer_element<T*> {
  using type = remove_cv_t<T>;
};
template <class T>
using pointer_element_t = typename pointer_element<remove_cv_t<T>>::type;

}  // namespace metal
