#include "batchnorm_settings.hpp"

namespace onepass::bindings {
namespace {

// Whether this is the axis of an array, as a plain integer.
bool read_axis(PyObject* value, double* to) {
  constexpr long most = 64;  // NumPy's limit
  if (!PyLong_CheckExact(value)) return false;
  int overflow = 0;
  const long axis = PyLong_AsLongAndOverflow(value, &overflow);
  *to = static_cast<double>(axis);
  return overflow == 0 && -most <= axis && axis <= most;
}

}  // namespace

BatchNormSettings* batch_norm_settings = nullptr;

Setting::Setting(const char* name, const py::dict& checks) : name_(name), check_(checks[name]) {
  if (!PyFunction_Check(check_.ptr())) quick_ = std::make_unique<Check>(check_);
}

double Setting::check(PyObject* value) {
  double number = 0;
  if (quick_ ? quick_->quick(value, &number) : read_axis(value, &number)) {
    last_ = py::reinterpret_borrow<py::object>(value);
    number_ = number;
  } else if (quick_) {
    quick_->convert(py::str(name_), value, &number);
  } else {
    number = check_(name_, py::handle(value)).cast<double>();
  }
  return number;
}

void bind_batch_norm_settings(py::module_& m) {
  m.def(
      "check_batch_norm",
      [](const py::dict& checks) { batch_norm_settings = new BatchNormSettings(checks); },
      py::arg("checks"), "Set the checks of the settings, by name; before any function is called.");
}

}  // namespace onepass::bindings
