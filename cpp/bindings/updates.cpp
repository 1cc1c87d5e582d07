#include "updates.hpp"

#include <exception>
#include <utility>
#include <vector>

#include "engine.hpp"

namespace onepass::bindings {

Updates::Updates(py::handle pairs) {
  if (pairs.is_none()) return;
  for (py::handle item : py::reinterpret_borrow<py::sequence>(pairs)) {
    const auto pair = py::cast<py::tuple>(item);
    if (!is_optimizer(pair[0])) {
      py::cast<py::dict>(pair[0]);
      py::cast<py::dict>(pair[1]);
    }
    pairs_.append(pair);
  }
}

void Updates::make_room() const {
  std::vector<std::pair<py::dict, py::object>> made;
  for (py::handle item : pairs_) {
    const auto pair = py::reinterpret_borrow<py::tuple>(item);
    if (is_optimizer(pair[0])) continue;
    const auto target = py::cast<py::dict>(pair[0]);
    for (const auto& [key, value] : py::cast<py::dict>(pair[1])) {
      if (target.contains(key)) continue;
      made.emplace_back(target, py::reinterpret_borrow<py::object>(key));
      if (PyDict_SetItem(target.ptr(), key.ptr(), Py_None) == 0) continue;
      made.pop_back();
      py::error_already_set error;
      for (const auto& [dict, name] : made) PyDict_DelItem(dict.ptr(), name.ptr());
      throw error;
    }
  }
}

void Updates::apply() const noexcept {
  for (py::handle item : pairs_) {
    PyObject* const target = PyTuple_GET_ITEM(item.ptr(), 0);
    PyObject* const value = PyTuple_GET_ITEM(item.ptr(), 1);
    if (is_optimizer(target)) {
      set_engine(target, value);
    } else if (PyDict_Update(target, value) != 0) {
      std::terminate();
    }
  }
}

}  // namespace onepass::bindings
