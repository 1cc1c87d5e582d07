#pragma once

#include <pybind11/pybind11.h>

namespace onepass::bindings {

void bind_kernel_functions(pybind11::module_& m);

}  // namespace onepass::bindings
