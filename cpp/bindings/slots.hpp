// Casts to what Python's tables of a type's functions take.
#pragma once

#include <pybind11/pybind11.h>

namespace onepass::bindings {

template <class Function>
void* slot(Function* function) {
  return reinterpret_cast<void*>(function);
}
template <class Function>
PyCFunction method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace onepass::bindings
