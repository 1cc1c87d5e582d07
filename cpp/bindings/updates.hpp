// Attributes that change together with arrays, in one native call: no interrupt comes between.
#pragma once

#include <pybind11/pybind11.h>

namespace onepass::bindings {

namespace py = pybind11;

// Dictionaries, and what becomes of some of their keys; optimizers, and their new engines. In
// Python a sequence of pairs, or None.
class Updates {
 public:
  explicit Updates(py::handle pairs);
  // Gives new keys their places, so that `apply` allocates nothing. Where memory is short it
  // raises, and no key is new.
  void make_room() const;
  // Cannot fail where no key is new.
  void apply() const noexcept;

 private:
  py::list pairs_;
};

}  // namespace onepass::bindings
