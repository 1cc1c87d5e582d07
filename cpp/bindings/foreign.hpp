// Arrays of other libraries, and NumPy's scalars: what is only read may be one of these. Steps see
// them through NumPy, without a copy where their library can.
#pragma once

#include "arrays.hpp"

namespace onepass::bindings {

// An array that is only read: NumPy's own, or one that NumPy can read. Runs Python code.
py::array check_readable(py::handle object, const Label& label);

// The same of a gradient; beside a parameter of shape () it may be a number.
py::array check_readable_grad(py::handle object, const Label& label, const py::array& param);

// Raises where an array that is written, or read in later steps too, is another library's: NumPy
// may see a copy of it.
void check_is_not_foreign(py::handle object, const Label& label);

}  // namespace onepass::bindings
