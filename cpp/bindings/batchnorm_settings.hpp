// The settings of the functions of batch normalisation, as Python gives them.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "checks.hpp"

namespace onepass::bindings {

namespace py = pybind11;

// One setting. A value that the call before had too, as the declared default mostly is, is known by
// its address: checking it would take a dozen cold cache lines.
class Setting {
 public:
  // `check`: one of functional.py's.
  Setting(const char* name, const py::dict& checks);
  // Returns the value as a number, or raises an error that names the setting.
  double read(PyObject* value) { return value == last_.ptr() ? number_ : check(value); }
  bool is_on(PyObject* value) { return read(value) != 0; }

 private:
  double check(PyObject* value);
  py::object last_;  // of a type whose values do not change
  double number_ = 0;
  const char* name_;
  py::object check_;
  std::unique_ptr<Check> quick_;  // null for the axis, whose check is a function
};

struct BatchNormSettings {
  explicit BatchNormSettings(const py::dict& checks)
      : eps("eps", checks),
        axis("axis", checks),
        relu("relu", checks),
        momentum("momentum", checks),
        unbiased_running_var("unbiased_running_var", checks),
        nonfinite("nonfinite", checks) {}
  Setting eps, axis, relu, momentum, unbiased_running_var, nonfinite;
};
extern BatchNormSettings* batch_norm_settings;  // set once, at import; never deleted

void bind_batch_norm_settings(py::module_& m);

}  // namespace onepass::bindings
