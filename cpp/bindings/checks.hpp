// What values a setting may take, as `_hyperparameters.py` says it. The usual values are checked
// here; any other value is for the Python check, which converts it or raises.
#pragma once

#include <pybind11/pybind11.h>

#include <limits>
#include <vector>

#include "optimizer.hpp"

namespace onepass::bindings {

namespace py = pybind11;

// The check of one setting, which makes one or two doubles of its value: a number, two of them, a
// flag (0 or 1), one of several names (its place among them), or None.
class Check {
 public:
  explicit Check(py::object check);

  std::size_t size() const { return kind_ == Kind::pair ? 2 : 1; }
  bool schedulable() const { return schedulable_; }

  // Writes `size()` numbers to `to` if the value is a usual one.
  bool quick(PyObject* value, double* to) const noexcept;
  // Writes them, or raises an error that names the setting. Returns the value in its plain type.
  py::object convert(py::handle name, py::handle value, double* to) const;
  // The same where nobody asks for the value itself, which is quicker.
  void read(py::handle name, PyObject* value, double* to) const {
    if (!quick(value, to)) convert(name, value, to);
  }

 private:
  enum class Kind { number, whole, pair, flag, choice };
  bool contains(double value) const noexcept {
    return low_ <= value && value <= high_ && above_ < value &&
           (value < below_ || below_ == infinity) && (value < infinity || infinite_);
  }
  static constexpr double infinity = std::numeric_limits<double>::infinity();

  py::object check_, only_;  // `only_`: the one value of a flag that is fixed
  Kind kind_ = Kind::number;
  bool may_be_none_ = false, schedulable_ = false, infinite_ = false;
  double low_ = 0, above_ = -infinity, high_ = infinity, below_ = infinity;
  std::vector<py::object> names_;  // of a choice
};

}  // namespace onepass::bindings
