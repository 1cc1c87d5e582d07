// What every step of another library's tensors asks, without a Python call for each attribute of
// each: what they look like, and what has been replaced. And the step itself, of the C interface.
#pragma once

#include <pybind11/pybind11.h>

namespace onepass::bindings {

void bind_looks(pybind11::module_& m);

}  // namespace onepass::bindings
