#pragma once

#include <pybind11/pybind11.h>

#include "kernels.hpp"

namespace onepass::bindings {

void bind_batch_norm(pybind11::module_& m);

}  // namespace onepass::bindings
