// From what a user gives as gradients to the addresses that a step reads.
#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "engine.hpp"
#include "foreign.hpp"

namespace onepass::bindings {
namespace {

// Whether a tree is a group: gradients may stand in groups, as their parameters do.
bool is_group(const py::object& tree) {
  static const py::str* const name = new py::str("params");  // never destroyed
  const int found = PyDict_CheckExact(tree.ptr()) ? PyDict_Contains(tree.ptr(), name->ptr()) : 0;
  if (found < 0) throw py::error_already_set();
  return found != 0;
}

bool copy_is_still(const OwnedArrays& arrays) {
  return !arrays.copy_seen || arrays.copy_seen->still();
}

}  // namespace

void Engine::note_written(const Arrangement& arrangement) {
  written_.clear();
  for (std::size_t i = 0; i < arrangement.params.size(); ++i) {
    for (const py::object& array :
         {py::object(arrangement.params[i].array), arrangement.arrays[i].copy}) {
      if (array.is_none()) continue;
      const Extent extent = extent_of(py::reinterpret_borrow<py::array>(array));
      if (extent.begin != extent.end) written_.push_back(extent);
    }
  }
  if (!state_alloc_.is_none()) {
    for (const auto& [array, label] : allocated(arrangement)) {
      const Extent extent = extent_of(array);
      if (extent.begin != extent.end) written_.push_back(extent);
    }
  }
  sort_by_begin(written_);
}

bool Engine::overlaps_written(PyObject* object, std::size_t item_size) const {
  const auto* array = py::detail::array_proxy(object);
  const auto [begin, end] = extent_of(array->data, static_cast<py::ssize_t>(item_size), array->nd,
                                      array->dimensions, array->strides);
  const auto after = std::upper_bound(
      written_.begin(), written_.end(), begin,
      [](std::uintptr_t address, const Extent& range) { return address < range.end; });
  return begin != end && after != written_.end() && after->begin < end;
}

// Appends the gradients to `given_`, in the parameters' order. Returns false where a container is
// not one of Python's own, or does not fit: then Python code has a closer look. Looking up a name
// may run the code of another key, which may change any container, so each is kept alive.
bool Engine::walk(py::handle shape, py::object grads) {
  PyObject *const node = shape.ptr(), *const tree = grads.ptr();
  if (node == Py_None) {
    given_.push_back(std::move(grads));
    return true;
  }
  const auto own = [](PyObject* child) { return py::reinterpret_borrow<py::object>(child); };
  if (PyDict_CheckExact(node)) {
    if (!PyDict_CheckExact(tree) || PyDict_GET_SIZE(tree) != PyDict_GET_SIZE(node)) return false;
    PyObject *name = nullptr, *child = nullptr;
    Py_ssize_t at = 0;
    while (PyDict_Next(node, &at, &name, &child)) {
      PyObject* const found = PyDict_GetItemWithError(tree, name);
      if (!found && PyErr_Occurred()) throw py::error_already_set();
      if (!found || !walk(child, own(found))) return false;
    }
    return true;
  }
  if (!is_list_or_tuple(tree)) return false;
  const Py_ssize_t n = PyList_GET_SIZE(node);
  for (Py_ssize_t i = 0; i < n && PySequence_Fast_GET_SIZE(tree) == n; ++i) {
    if (!walk(PyList_GET_ITEM(node, i), own(PySequence_Fast_GET_ITEM(tree, i)))) return false;
  }
  return PySequence_Fast_GET_SIZE(tree) == n;
}

void Engine::collect(py::handle grads) {
  PyObject* const tree = grads.ptr();
  const bool is_flat = flat_ && is_list_or_tuple(tree) &&
                       static_cast<std::size_t>(PySequence_Fast_GET_SIZE(tree)) == size();
  if (!is_flat) return collect_tree(grads);
  PyObject* const* const items = PySequence_Fast_ITEMS(tree);
  given_.resize(size());
  for (std::size_t i = 0; i < given_.size(); ++i) {
    given_[i] = py::reinterpret_borrow<py::object>(items[i]);
  }
}

void Engine::collect_tree(py::handle grads) {
  PyObject* const tree = grads.ptr();
  const bool in_groups =
      grouped_ && is_list_or_tuple(tree) && PySequence_Fast_GET_SIZE(tree) > 0 &&
      is_group(py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(tree, 0)));
  if (!in_groups && walk(shape_, py::reinterpret_borrow<py::object>(grads))) return;
  take_leaves(py::list(callbacks->mirror(shape_, grouped_, grads)));
}

// A sequence of a user's own may have another length than it says.
void Engine::take_leaves(const py::list& grads) {
  given_.clear();
  for (py::handle grad : grads) given_.push_back(py::reinterpret_borrow<py::object>(grad));
  if (given_.size() == size()) return;
  throw py::value_error("grads: expected " + std::to_string(size()) + " arrays, got " +
                        std::to_string(given_.size()));
}

// Whether a parameter and its copy lie where they did when they were checked.
bool Engine::is_still(const Arrangement& arrangement, std::size_t index) const {
  const Param& param = arrangement.params[index];
  return param.still() && !(has_copies_ && !copy_is_still(arrangement.arrays[index])) &&
         (param.order != Order::other || strides_are_still(arrangement, index));
}

// What C and F order are told by, an array's flags, does not tell the others.
bool Engine::strides_are_still(const Arrangement& arrangement, std::size_t index) const {
  const auto* array = py::detail::array_proxy(arrangement.params[index].object);
  return std::ranges::equal(arrangement.arrays[index].strides,
                            std::span(array->strides, static_cast<std::size_t>(array->nd)));
}

// Whether a gradient and its parameter can be used as they lie. Then the gradient's address is
// noted. `checked`: check_slowly has looked at them. Runs no Python code.
bool Engine::is_ready(Arrangement& arrangement, std::size_t index, Source source,
                      bool checked) const {
  const Param& param = arrangement.params[index];
  Streams& streams = arrangement.optimizer.tensors[index].streams;
  PyObject* const grad = given_[index].ptr();
  streams.grad = {};
  if (grad == Py_None) return true;
  Format format = plain;
  if (!is_still(arrangement, index) || !(checked || is_plain_array(grad)) ||
      !lies_like(grad, param, format)) {
    return false;
  }
  const auto* array = py::detail::array_proxy(grad);
  const bool zeroed = source == Source::sums || clears();
  if (zeroed && !(array->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) return false;
  if (source == Source::bound && array->data != bound_[index].data) return false;
  if (source == Source::given && !checked && overlaps_written(grad, item_size(format, param))) {
    return false;
  }
  streams.grad = stored(array->data, format);
  streams.zero_grad = zeroed;
  return true;
}

bool Engine::all_ready(Arrangement& arrangement, Source source, bool checked) const {
  for (std::size_t i = 0; i < size(); ++i) {
    if (!is_ready(arrangement, i, source, checked)) return false;
  }
  return true;
}

// Sees the gradients that are other libraries' through NumPy. Returns whether there were any.
bool Engine::read_foreign() {
  bool found = false;
  for (std::size_t i = 0; i < size(); ++i) {
    if (given_[i].is_none() || py::isinstance<py::array>(given_[i])) continue;
    const py::array& param = now_.params[i].array;
    given_[i] = check_readable_grad(given_[i], Label(labels_, i, Role::grad), param);
    found = true;
  }
  return found;
}

// What a look at the addresses does not tell: subclasses, copies of what lies otherwise, overlaps,
// and every error. May run Python code.
void Engine::check_slowly(Arrangement& arrangement, Source source) {
  const bool zeroed = clears() || source == Source::sums;
  const bool in_place = zeroed || source == Source::bound;
  Memory memory;
  for (std::size_t i = 0; i < size(); ++i) {
    if (given_[i].is_none()) continue;
    const Label label(labels_, i, Role::param);
    const Label grad_label(labels_, i, zeroed ? Role::zeroed_grad : Role::grad);
    Param param = check_param(arrangement.params[i].array, label);
    memory.add(param.array, label);
    const Checked grad = in_place ? check_grad_in_place(given_[i], grad_label, param, memory)
                                  : check_grad(given_[i], grad_label, param, memory);
    renew(arrangement, i, std::move(param), memory);
    given_[i] = grad.array;
  }
  if (!state_alloc_.is_none() && source != Source::sums) add_allocated(arrangement, memory);
  memory.check_overlap();
  note_written(arrangement);
}

// Checks a parameter's copy, and lays out anew what has changed. `param`: as it is now.
void Engine::renew(Arrangement& arrangement, std::size_t index, Param param, Memory& memory) const {
  const OwnedArrays& arrays = arrangement.arrays[index];
  std::optional<Unchanged> copy_seen;
  if (!arrays.copy.is_none()) {
    const Label copy_label(labels_, index, Role::copy);
    copy_seen.emplace(check_copy(arrays.copy, copy_label, param, memory).array);
  }
  if (!param.still()) fail_changed();
  if (!is_still(arrangement, index)) {
    lay_out_anew(arrangement, index, std::move(param), std::move(copy_seen));
  }
}

// Where its state does not fit a parameter that has changed, that raises, and all is as it was.
void Engine::lay_out_anew(Arrangement& arrangement, std::size_t index, Param param,
                          std::optional<Unchanged> copy_seen) const {
  OwnedArrays& arrays = arrangement.arrays[index];
  const Param param_before = std::exchange(arrangement.params[index], std::move(param));
  const std::optional<Unchanged> copy_seen_before = arrays.copy_seen;
  const std::vector<py::ssize_t> strides_before =
      std::exchange(arrays.strides, strides_of(arrangement.params[index]));
  const Parameter known_before = arrangement.optimizer.params[index];
  const Tensor tensor_before = arrangement.optimizer.tensors[index];
  arrays.copy_seen = std::move(copy_seen);
  if (!arrangement.needs[0]) return;  // the first step does it
  try {
    lay_out(arrangement, index);
  } catch (...) {
    arrangement.params[index] = param_before;
    arrays.copy_seen = copy_seen_before;
    arrays.strides = strides_before;
    arrangement.optimizer.params[index] = known_before;
    arrangement.optimizer.tensors[index] = tensor_before;
    throw;
  }
}

// State that has another shape than its parameter would not fit one that was reshaped in place.
void Engine::check_axes(const Arrangement& arrangement) const {
  const auto& axes = arrangement.optimizer.axes;
  for (std::size_t i = 0; i < axes.size(); ++i) {
    PyObject* const param = arrangement.params[i].object;
    if (given_[i].is_none() || !arrangement.optimizer.params[i].is_factored) continue;
    if (sizes_of(param) == axes[i].sizes) continue;
    fail_value(Label(labels_, i, Role::param),
               "shape " + py::str(py::tuple(py::cast(axes[i].sizes))).cast<std::string>() +
                   ", as its state has",
               shape_name(arrangement.params[i].array));
  }
}

// Notes the addresses of the gradients in `given_`, or raises.
void Engine::check_gradients(Arrangement& arrangement, Source source) {
  check_axes(arrangement);
  // Whether gradients that are zeroed overlap each other is seen by a slow look only.
  const bool looked_at =
      source == Source::sums || !clears() || (source == Source::bound && bound_to_be_zeroed_);
  if (looked_at && all_ready(arrangement, source, false)) return;
  if (looked_at && source == Source::given && read_foreign() &&
      all_ready(arrangement, source, false)) {
    return;
  }
  check_slowly(arrangement, source);
  if (source == Source::bound) note_bound();
  if (!all_ready(arrangement, source, true)) fail_changed();
}

// Takes the gradients in `given_`, which were checked.
void Engine::note_bound() {
  for (std::size_t i = 0; i < size(); ++i) {
    const bool has = !given_[i].is_none();
    bound_[i] = {given_[i], has ? py::detail::array_proxy(given_[i].ptr())->data : nullptr};
  }
  bound_to_be_zeroed_ = clears();
}

void Engine::bind(py::handle grads) {
  const OneAtATime guard(busy_, "bind");
  if (grads.is_none()) {
    bound_.assign(size(), {});
    has_bound_ = false;
    return;
  }
  read_own_settings();
  const Cleared cleared(given_);
  collect(grads);
  bind_given();
}

void Engine::bind_leaves(const py::list& grads) {
  const Cleared cleared(given_);
  take_leaves(grads);
  bind_given();
}

void Engine::bind_given() {
  check_slowly(now_, Source::bound);
  note_bound();
  has_bound_ = true;
}

}  // namespace onepass::bindings
