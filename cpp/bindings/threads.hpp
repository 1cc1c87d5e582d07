// How many threads a call uses.
#pragma once

#include <pybind11/pybind11.h>

namespace onepass::bindings {

// What a caller has said, checked; for None the process' number. Throws as Python does.
int resolve_num_threads(PyObject* num_threads);

void bind_threads(pybind11::module_& m);

}  // namespace onepass::bindings
