#include "updates.hpp"

#include <exception>

namespace onepass::bindings {

Updates::Updates(py::handle pairs) {
  if (pairs.is_none()) return;
  for (py::handle item : py::reinterpret_borrow<py::sequence>(pairs)) {
    const auto pair = py::cast<py::tuple>(item);
    const auto target = py::cast<py::dict>(pair[0]), changes = py::cast<py::dict>(pair[1]);
    for (const auto& [key, value] : changes) {
      if (!target.contains(key)) throw py::key_error(py::str(key));
    }
    pairs_.append(pair);
  }
}

void Updates::apply() const noexcept {
  for (py::handle item : pairs_) {
    PyObject* const target = PyTuple_GET_ITEM(item.ptr(), 0);
    if (PyDict_Update(target, PyTuple_GET_ITEM(item.ptr(), 1)) != 0) std::terminate();
  }
}

}  // namespace onepass::bindings
