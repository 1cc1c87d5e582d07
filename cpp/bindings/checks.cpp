#include "checks.hpp"

#include <string>
#include <utility>

namespace onepass::bindings {

Check::Check(py::object check) : check_(std::move(check)) {
  const auto name_of = [](const py::object& object) {
    return py::type::of(object).attr("__name__").cast<std::string>();
  };
  const auto bound = [](const py::object& of, const char* name) {
    return of.attr(name).cast<double>();
  };
  schedulable_ = check_.attr("schedulable").cast<bool>();
  py::object own = check_;
  may_be_none_ = name_of(own) == "Maybe";
  if (may_be_none_) own = own.attr("kind");
  std::string kind = name_of(own);
  if (kind == "Fixed") {
    only_ = own.attr("value");
    own = own.attr("kind");
    kind = name_of(own);
  }
  if (kind == "Pair") {
    kind_ = Kind::pair;
    own = own.attr("kind");
    kind = name_of(own);
  }
  if (kind == "Number") {
    low_ = bound(own, "low");
    above_ = bound(own, "above");
    high_ = bound(own, "high");
    below_ = bound(own, "below");
    infinite_ = own.attr("infinite").cast<bool>();
  } else if (kind == "Whole") {
    kind_ = Kind::whole;
    low_ = bound(own, "low");
    below_ = bound(own, "below");
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
      return contains(to[0]);
    case Kind::whole: {
      if (!PyLong_CheckExact(value)) return false;
      int overflow = 0;
      const long long whole = PyLong_AsLongLongAndOverflow(value, &overflow);
      to[0] = static_cast<double>(whole);
      return overflow == 0 && contains(to[0]);
    }
    case Kind::pair:
      if (!PyTuple_CheckExact(value) || PyTuple_GET_SIZE(value) != 2) return false;
      for (Py_ssize_t i = 0; i < 2; ++i) {
        PyObject* item = PyTuple_GET_ITEM(value, i);
        to[i] = PyFloat_CheckExact(item) ? PyFloat_AS_DOUBLE(item) : none;
      }
      return contains(to[0]) && contains(to[1]);
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

py::object Check::convert(py::handle name, py::handle value, double* to) const {
  py::object plain = check_(name, value);
  if (kind_ == Kind::choice && !plain.is_none()) {  // the very string that is compared with
    PyObject* interned = plain.release().ptr();
    PyUnicode_InternInPlace(&interned);
    plain = py::reinterpret_steal<py::object>(interned);
  }
  if (!quick(plain.ptr(), to))
    throw py::value_error("check: a value of another type than expected");
  return plain;
}

}  // namespace onepass::bindings
