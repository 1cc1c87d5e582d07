// Reads other libraries' tensors without a Python call for each attribute of each.
#pragma once

#include <pybind11/pybind11.h>

namespace onepass::bindings {

void bind_looks(pybind11::module_& m);

}  // namespace onepass::bindings
