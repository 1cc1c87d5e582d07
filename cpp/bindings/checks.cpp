#include "checks.hpp"

#include <string>
#include <utility>

namespace onepass::bindings {
namespace {

[[noreturn]] void fail_type() {
  throw py::value_error("check: a value of another type than expected");
}

}  // namespace

Check::Bounds Check::bounds_of(const py::object& number) {
  const auto bound = [&](const char* name) { return number.attr(name).cast<double>(); };
  return {bound("low"),
          bound("above"),
          bound("high"),
          bound("below"),
          number.attr("infinite").cast<bool>(),
          false,
          number.attr("schedulable").cast<bool>()};
}

Check::Check(py::object check) : check_(std::move(check)) {
  const auto name_of = [](const py::object& object) {
    return py::type::of(object).attr("__name__").cast<std::string>();
  };
  py::object own = check_;
  may_be_none_ = name_of(own) == "Maybe";
  if (may_be_none_) own = own.attr("kind");
  std::string kind = name_of(own);
  if (kind == "Fixed") {
    only_ = own.attr("value");
    own = own.attr("kind");
    kind = name_of(own);
  }
  if (kind == "Number") {
    bounds_[n_bounds_++] = bounds_of(own);
  } else if (kind == "Several") {
    kind_ = Kind::several;
    for (py::handle each : own.attr("kinds")) {
      if (n_bounds_ == most) throw py::type_error("check: expected at most three numbers");
      auto number = py::reinterpret_borrow<py::object>(each);
      const bool may_be_none = name_of(number) == "Maybe";
      if (may_be_none) number = number.attr("kind");
      bounds_[n_bounds_] = bounds_of(number);
      bounds_[n_bounds_++].or_none = may_be_none;
    }
  } else if (kind == "Whole") {
    kind_ = Kind::whole;
    bounds_[n_bounds_++] = {own.attr("low").cast<double>(),
                            -infinity,
                            infinity,
                            own.attr("below").cast<double>(),
                            false,
                            false,
                            false};
  } else if (kind == "Choice") {
    kind_ = Kind::choice;
    for (py::handle name : own.attr("names")) {
      names_.push_back(py::reinterpret_steal<py::object>(
          PyUnicode_InternFromString(name.cast<std::string>().c_str())));
    }
  } else if (kind == "Flag") {
    kind_ = Kind::flag;
  } else {
    throw py::type_error("check: expected one of _hyperparameters.py, got " + kind);
  }
}

bool Check::quick(PyObject* value, double* to) const noexcept {
  if (value == Py_None) {
    to[0] = none;
    return may_be_none_;
  }
  switch (kind_) {
    case Kind::number:
      to[0] = PyFloat_CheckExact(value) ? PyFloat_AS_DOUBLE(value) : none;
      return bounds_[0].contain(to[0]);
    case Kind::whole: {
      if (!PyLong_CheckExact(value)) return false;
      int overflow = 0;
      const long long whole = PyLong_AsLongLongAndOverflow(value, &overflow);
      to[0] = static_cast<double>(whole);
      return overflow == 0 && bounds_[0].contain(to[0]);
    }
    case Kind::several: {
      const auto n = static_cast<Py_ssize_t>(n_bounds_);
      if (!PyTuple_CheckExact(value) || PyTuple_GET_SIZE(value) != n) return false;
      bool contained = true;
      for (Py_ssize_t i = 0; i < n; ++i) {
        PyObject* item = PyTuple_GET_ITEM(value, i);
        contained = contained && quick_one(static_cast<std::size_t>(i), item, to + i);
      }
      return contained;
    }
    case Kind::flag:
      to[0] = value == Py_True;
      return only_ ? value == only_.ptr() : value == Py_True || value == Py_False;
    case Kind::choice:
      for (std::size_t i = 0; i < names_.size(); ++i) {
        to[0] = static_cast<double>(i);
        if (names_[i].ptr() == value) return true;
      }
      return false;
  }
  return false;
}

inline bool Check::quick_one(std::size_t i, PyObject* value, double* to) const noexcept {
  *to = PyFloat_CheckExact(value) ? PyFloat_AS_DOUBLE(value) : none;
  return bounds_[i].contain(*to) || (value == Py_None && bounds_[i].or_none);
}

void Check::read_one(py::handle name, std::size_t i, PyObject* value, double* to) const {
  double found;
  if (!quick_one(i, value, &found)) {
    const py::object plain = check_.attr("kinds")[py::int_(i)](name, py::handle(value));
    if (!quick_one(i, plain.ptr(), &found)) fail_type();
  }
  *to = found;
}

py::object Check::convert(py::handle name, py::handle value, double* to) const {
  py::object plain = check_(name, value);
  if (kind_ == Kind::choice && !plain.is_none()) {  // the very string that is compared with
    PyObject* interned = plain.release().ptr();
    PyUnicode_InternInPlace(&interned);
    plain = py::reinterpret_steal<py::object>(interned);
  }
  if (!quick(plain.ptr(), to)) fail_type();
  return plain;
}

}  // namespace onepass::bindings
