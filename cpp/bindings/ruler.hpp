#pragma once

#include <pybind11/pybind11.h>

namespace onepass::bindings {

void bind_ruler(pybind11::module_& m);

}  // namespace onepass::bindings
