#pragma once

#include <pybind11/pybind11.h>

namespace onepass::bindings {

void bind_fold(pybind11::module_& m);

}  // namespace onepass::bindings
