// From the rows that a user gives to what a step of them reads.
#include <algorithm>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "rows.hpp"

namespace onepass::bindings {

// A gradient by its parameter's key: rows, or a whole one.
struct Engine::Named {
  std::size_t param;
  std::string name;
  py::object index, grad;  // no index: a whole one
};

namespace {

// A pair's items are taken at once, because Python code that runs later may change a list.
template <class Named>
Named named(std::size_t param, const std::string& name, py::handle given) {
  PyObject* const pair = given.ptr();
  if (!is_list_or_tuple(pair)) {
    return {param, name, {}, py::reinterpret_borrow<py::object>(given)};
  }
  if (PySequence_Fast_GET_SIZE(pair) != 2) {
    fail_value(Label(name.c_str(), Role::input), "rows as a pair (index, values)",
               "a sequence of " + std::to_string(PySequence_Fast_GET_SIZE(pair)));
  }
  const auto item = [&](Py_ssize_t i) {
    return py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(pair, i));
  };
  return {param, name, item(0), item(1)};
}

py::dict places_of(const py::list& keys) {
  py::dict places;
  for (std::size_t i = 0; i < keys.size(); ++i) places[keys[i]] = i;
  return places;
}

// What a mapping says of each parameter; null where it does not name it.
std::vector<py::object> find_named(const py::list& keys, py::handle places, py::handle grads) {
  const py::object mapping = py::module_::import("collections.abc").attr("Mapping");
  if (!py::isinstance(grads, mapping)) {
    const Label label("grads", Role::input);
    fail_type(label, "a mapping of parameters' keys to (index, values)",
              Py_TYPE(grads.ptr())->tp_name);
  }
  std::vector<std::pair<py::object, py::object>> items;
  for (const auto& [key, value] : py::dict(py::reinterpret_borrow<py::object>(grads))) {
    items.emplace_back(py::reinterpret_borrow<py::object>(key),
                       py::reinterpret_borrow<py::object>(value));
  }
  std::vector<py::object> given(keys.size());
  for (const auto& [key, value] : items) {
    PyObject* const place = place_of(key, places);
    if (!place) {
      fail_value(Label("grads", Role::input), "keys among " + py::repr(keys).cast<std::string>(),
                 py::repr(key).cast<std::string>());
    }
    py::object& of_one = given[py::handle(place).cast<std::size_t>()];
    if (of_one) {
      fail_value(Label("grads", Role::input), "each parameter once",
                 py::repr(key).cast<std::string>() + " again");
    }
    of_one = value;
  }
  return given;
}

}  // namespace

PyObject* place_of(py::handle key, py::handle places) {
  PyObject* place = PyDict_GetItemWithError(places.ptr(), key.ptr());
  if (!place && !PyErr_Occurred() && PyLong_CheckExact(key.ptr())) {
    place = PyDict_GetItemWithError(places.ptr(), py::str(key).ptr());
  }
  if (!place && PyErr_Occurred()) throw py::error_already_set();
  return place;
}

// The place of each key.
const py::object& Engine::places() {
  if (!places_) places_ = places_of(keys_);
  return places_;
}

// What is named, in the parameters' order. A deque, as messages point to the names in it.
std::deque<Engine::Named> Engine::named_rows(py::handle grads) {
  std::deque<Named> all;
  if (shape_.is_none() && !grouped_ && is_list_or_tuple(grads.ptr())) {
    all.push_back(named<Named>(0, "grads", grads));
    return all;
  }
  const std::vector<py::object> found = find_named(keys_, places(), grads);
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!found[i] || found[i].is_none()) continue;
    const std::string key = py::repr(keys_[i]).cast<std::string>();
    all.push_back(named<Named>(i, "grads[" + key + "]", found[i]));
  }
  return all;
}

// Notes where the gradients of a step lie, and which rows these are for; or raises.
std::vector<Rows> Engine::take_rows(Arrangement& arrangement, py::handle grads) {
  if (gathered_ + left_out_ > 0) {
    throw py::value_error("grads: expected none after accumulate, got some");
  }
  check_keeps_gradients(clears());
  const std::deque<Named> all = named_rows(grads);
  Optimizer& optimizer = arrangement.optimizer;
  std::vector<std::optional<GivenRows>> given(all.size());
  Memory memory;
  for (std::size_t k = 0; k < all.size(); ++k) {
    const Named& each = all[k];
    const std::size_t i = each.param;
    const Label label(labels_, i, Role::param), grad_label(each.name.c_str(), Role::input);
    Param param = check_param(arrangement.params[i].array, label);
    memory.add(param.array, label);
    if (each.index) {
      const Group& group = optimizer.groups[optimizer.params[i].group];
      check_has_rows(param, label);
      check_moves_rows(group, grad_label);
      check_rounds_rows(param, static_cast<int>(group.settings.rounding) == round_stochastic,
                        "'master' or 'nearest'");
      given[k].emplace(each.index, each.grad,
                       GivenRows::Names{each.name + "[0]", each.name + "[1]"}, param, memory);
      given_.push_back(given[k]->values());
    } else {
      given_.push_back(check_grad(each.grad, grad_label, param, memory).array);
    }
    renew(arrangement, i, std::move(param), memory);
  }
  if (!state_alloc_.is_none()) add_allocated(arrangement, memory);
  memory.check_overlap();
  note_written(arrangement);
  // From here on no Python code runs.
  for (Tensor& tensor : optimizer.tensors) tensor.streams.grad = {};
  bool have_rows = false;
  std::vector<Rows> rows(size());
  for (std::size_t k = 0; k < all.size(); ++k) {
    const std::size_t i = all[k].param;
    const Param& param = arrangement.params[i];
    Tensor& tensor = optimizer.tensors[i];
    if (!is_still(arrangement, i)) fail_changed();
    tensor.streams.zero_grad = false;
    if (given[k]) {
      rows[i] = given[k]->read(param, tensor);
      have_rows = true;
    } else {
      Format format = plain;
      PyObject* const grad = given_[k].ptr();
      if (!lies_like(grad, param, format)) fail_changed();
      tensor.streams.grad = stored(py::detail::array_proxy(grad)->data, format);
    }
  }
  if (!have_rows) rows.clear();
  return rows;
}

bool Engine::step_rows_in(Arrangement& arrangement, const Call& call, const py::object& info) {
  std::vector<Rows> rows = take_rows(arrangement, call.grads);
  StepOptions options = call.options;
  options.rows = rows;
  std::vector<Unchanged> seen;
  for (const py::object& grad : given_) seen.emplace_back(py::reinterpret_borrow<py::array>(grad));
  const auto check = [&] {
    bool still = std::ranges::all_of(seen, [](const Unchanged& grad) { return grad.still(); });
    for (std::size_t i = 0; i < size(); ++i) {
      const bool steps = arrangement.optimizer.tensors[i].streams.grad.data;
      still = still && (!steps || is_still(arrangement, i));
    }
    if (!still) fail_changed();
  };
  return run(arrangement, options, check, info);
}

}  // namespace onepass::bindings
