// Other values in the parameters while a `with` block runs.
#include "shown.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "gil.hpp"
#include "updates.hpp"

namespace onepass::bindings {
namespace {

// The block's context manager. It is native, so that no interrupt can come between the end of the
// block and the restoration, which is a plain copy and cannot fail. `restored`: attributes that the
// end of the block sets back too.
class Shown {
 public:
  Shown(py::list names, const py::list& params, const py::list& values, py::handle restored)
      : names_(std::move(names)), restored_(restored) {
    for (std::size_t i = 0; i < params.size(); ++i) {
      const Label label(names_, i, Role::param);
      const Param param = check_param(params[i], label);
      const Param value = check_param(values[i], label);
      check_same_shape(value.array, label, param.array, "the parameter's");
      if (!are_in_one_order(param, value) || param.dtype != value.dtype ||
          param.format != value.format) {
        throw py::value_error(label.str() + ": expected values like the parameter's");
      }
      items_.push_back({param.array, value.array, Unchanged(param.array), Unchanged(value.array),
                        param.data, std::vector<char>(nbytes(param.array))});
    }
  }

  // A block can be entered once, because the values to show were computed when it was made.
  void enter() {
    if (state_ != State::open) {
      throw py::value_error("block: expected a new one, got one that was used or outdated");
    }
    for (std::size_t i = 0; i < items_.size(); ++i) {
      if (!items_[i].param_as_it_was.still() || !items_[i].value_as_it_was.still()) fail(i);
    }
    for (Item& item : items_) {
      std::memcpy(item.saved.data(), item.param.data(), item.saved.size());
      std::memmove(item.data, item.value.data(), item.saved.size());
    }
    state_ = State::active;
  }

  // A block that was not entered, or was left before, has nothing to restore.
  void exit() {
    if (state_ != State::active) return;
    state_ = State::used;
    std::size_t changed = items_.size();
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      if (item.is_where_it_was()) {
        std::memcpy(item.data, item.saved.data(), item.saved.size());
      } else {
        changed = std::min(changed, i);
      }
    }
    restored_.apply();
    if (changed < items_.size()) warn(changed);
  }

  void outdate() {
    if (state_ == State::open) state_ = State::used;
  }
  bool active() const { return state_ == State::active; }

  // The i-th parameter as it was before the block, in a copy.
  py::array saved(std::size_t i) const {
    const Item& item = items_.at(i);
    if (!active() || !item.is_where_it_was()) fail(i);
    const auto ndim = item.param.ndim();
    const std::vector<py::ssize_t> shape(item.param.shape(), item.param.shape() + ndim);
    const std::vector<py::ssize_t> strides(item.param.strides(), item.param.strides() + ndim);
    py::array copy(item.param.dtype(), shape, strides);  // plain, without the hooks of a subclass
    std::memcpy(copy.mutable_data(), item.saved.data(), item.saved.size());
    return copy;
  }

 private:
  enum class State { open, active, used };
  static std::size_t nbytes(const py::array& array) {
    return static_cast<std::size_t>(array.nbytes());
  }
  struct Item {
    py::array param, value;
    Unchanged param_as_it_was, value_as_it_was;
    void* data;
    std::vector<char> saved;
    // Whether the parameter has the same memory as before; it may be read-only by now.
    bool is_where_it_was() const { return param.data() == data && nbytes(param) == saved.size(); }
  };

  [[noreturn]] void fail(std::size_t i) const {
    fail_value(Label(names_, i, Role::param), "the array that the block was made for",
               "one that has been resized, or given another dtype, since");
  }
  // Not an error, which would hide the one that the block may have ended by.
  void warn(std::size_t i) const {
    const std::string message = Label(names_, i, Role::param).str() +
                                ": was resized inside the block, so its values are not put back";
    if (PyErr_WarnEx(PyExc_RuntimeWarning, message.c_str(), 1) != 0) throw py::error_already_set();
  }

  py::list names_;
  Updates restored_;
  std::vector<Item> items_;
  State state_ = State::open;
};

}  // namespace

void bind_shown(py::module_& m) {
  py::class_<Shown>(m, "Shown", "Other values in the parameters while a with block runs.")
      .def(py::init<py::list, const py::list&, const py::list&, py::handle>(), py::arg("names"),
           py::arg("params"), py::arg("values"), py::arg("restored") = py::none(),
           py::call_guard<InCall>())
      .def_property_readonly("active", &Shown::active)
      .def("outdate", &Shown::outdate, "What it would show no longer holds.")
      .def("saved", &Shown::saved, py::arg("index"), py::call_guard<InCall>(),
           "A parameter as it was before the block.")
      .def("__enter__", &Shown::enter, py::call_guard<InCall>())
      .def(
          "__exit__", [](Shown& shown, const py::args&) { shown.exit(); },
          py::call_guard<InCall>());
}

}  // namespace onepass::bindings
