// Attributes that change together with arrays, in one native call: no interrupt comes between.
#pragma once

#include <pybind11/pybind11.h>

namespace onepass::bindings {

namespace py = pybind11;

// Dictionaries, and what becomes of keys that they have; in Python a sequence of pairs, or None.
class Updates {
 public:
  explicit Updates(py::handle pairs);
  // No key is new, so no dictionary grows and nothing is allocated: it cannot fail.
  void apply() const noexcept;

 private:
  py::list pairs_;
};

}  // namespace onepass::bindings
