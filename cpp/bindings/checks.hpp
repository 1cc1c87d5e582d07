// What values a setting may take, as `_hyperparameters.py` says it. The usual values are checked
// here; any other value is for the Python check, which converts it or raises.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <limits>
#include <vector>

#include "optimizer.hpp"

namespace onepass::bindings {

namespace py = pybind11;

// The check of one setting, which makes up to three doubles of its value: a number, two or three of
// them, a flag (0 or 1), one of several names (its place among them), or None.
class Check {
 public:
  explicit Check(py::object check);

  static constexpr std::size_t most = 3;
  std::size_t size() const { return kind_ == Kind::several ? n_bounds_ : 1; }
  // Whether a schedule may give number `i`.
  bool schedulable(std::size_t i) const { return bounds_[i].schedulable; }

  // Writes `size()` numbers to `to` if the value is a usual one.
  bool quick(PyObject* value, double* to) const noexcept;
  // Writes them, or raises an error that names the setting. Returns the value in its plain type.
  py::object convert(py::handle name, py::handle value, double* to) const;
  // The same where nobody asks for the value itself, which is quicker.
  void read(py::handle name, PyObject* value, double* to) const {
    if (!quick(value, to)) convert(name, value, to);
  }
  // Reads number `i` of several.
  void read_one(py::handle name, std::size_t i, PyObject* value, double* to) const;

 private:
  enum class Kind { number, whole, several, flag, choice };
  static constexpr double infinity = std::numeric_limits<double>::infinity();
  struct Bounds {
    double low = 0, above = -infinity, high = infinity, below = infinity;
    bool infinite = false, or_none = false, schedulable = false;
    bool contain(double value) const noexcept {
      return low <= value && value <= high && above < value &&
             (value < below || below == infinity) && (value < infinity || infinite);
    }
  };
  static Bounds bounds_of(const py::object& number);
  bool quick_one(std::size_t i, PyObject* value, double* to) const noexcept;

  py::object check_, only_;  // `only_`: the one value of a flag that is fixed
  Kind kind_ = Kind::number;
  bool may_be_none_ = false;
  std::size_t n_bounds_ = 0;
  std::array<Bounds, most> bounds_;  // of each number; no memory apart, to touch few cache lines
  std::vector<py::object> names_;    // of a choice
};

}  // namespace onepass::bindings
