#include "foreign.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace onepass::bindings {
namespace {

// The methods by which an object that is no array of NumPy's lets NumPy read it.
struct Protocols {
  py::str array = "__array__", dlpack = "__dlpack__";
};
const Protocols& protocols() {
  static const auto* const names = new Protocols;  // never destroyed
  return *names;
}

// The first of these that an object has; null without one.
const py::str* protocol_of(py::handle object) {
  const py::handle type(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())));
  const Protocols& known = protocols();
  return py::hasattr(type, known.array)    ? &known.array
         : py::hasattr(type, known.dlpack) ? &known.dlpack
                                           : nullptr;
}

// JAX's buffers take a fifth of the time of its __array__, and PyTorch's __array__ alone takes half
// of what NumPy takes, which looks for other ways first.
py::object read_by(const py::str& protocol, py::handle object) {
  const bool by_array = &protocol == &protocols().array;
  if (by_array && !PyObject_CheckBuffer(object.ptr())) return object.attr(protocol)();
  return py::module_::import("numpy").attr(by_array ? "asanyarray" : "from_dlpack")(object);
}

// Whether an error is one of those in which a library says that an array of its own cannot be read:
// that it is on a GPU, say.
bool is_refusal(const py::error_already_set& error) {
  const PyObject* const kinds[] = {PyExc_TypeError, PyExc_ValueError, PyExc_RuntimeError,
                                   PyExc_BufferError, PyExc_AttributeError};
  return std::ranges::any_of(
      kinds, [&](const PyObject* kind) { return error.matches(const_cast<PyObject*>(kind)); });
}

// Whether an object is a number of Python's, or an integer of NumPy's, which has no dtype that a
// gradient may have.
bool is_number(py::handle object) {
  PyObject* const found = object.ptr();
  if (PyFloat_Check(found) || (PyLong_Check(found) && !PyBool_Check(found))) return true;
  return PyIndex_Check(found) &&
         py::isinstance(object, py::module_::import("numpy").attr("integer"));
}

py::array array_of(py::handle number, const Label& label) {
  const double value = PyFloat_AsDouble(number.ptr());
  if (value == -1 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_OverflowError)) throw py::error_already_set();
    PyErr_Clear();
    fail_value(label, "a number within float64's range", "a larger integer");
  }
  return py::array(py::dtype::of<double>(), std::vector<py::ssize_t>(), &value);
}

// Raises what a library says, in one line, under the name of the argument.
[[noreturn, gnu::cold]] void fail_refused(py::error_already_set& error, py::handle object,
                                          const Label& label) {
  const std::string said = py::str(error.value()).cast<std::string>();
  std::string text = label.str() + ": expected an array that NumPy can read, got ";
  text += Py_TYPE(object.ptr())->tp_name;
  if (!said.empty()) text += ", which says: " + said.substr(0, said.find('\n'));
  py::raise_from(error, PyExc_TypeError, text.c_str());
  throw py::error_already_set();
}

}  // namespace

py::array check_readable(py::handle object, const Label& label) {
  const bool is_array = py::isinstance<py::array>(object);
  const py::str* const protocol = is_array ? nullptr : protocol_of(object);
  if (!protocol) return check_array(object, label);
  py::object read;
  try {
    read = read_by(*protocol, object);
  } catch (py::error_already_set& error) {
    if (!is_refusal(error)) throw;
    fail_refused(error, object, label);
  }
  if (!py::isinstance<py::array>(read)) {
    fail_type(label, "an array that NumPy can read",
              std::string(Py_TYPE(object.ptr())->tp_name) + ", whose __array__ returns " +
                  Py_TYPE(read.ptr())->tp_name);
  }
  return check_array(read, label);  // a subclass may have a mask
}

py::array check_readable_grad(py::handle object, const Label& label, const py::array& param) {
  const bool takes_number = param.ndim() == 0;
  return takes_number && is_number(object) ? array_of(object, label)
                                           : check_readable(object, label);
}

void check_is_not_foreign(py::handle object, const Label& label) {
  if (py::isinstance<py::array>(object)) return;
  if (!protocol_of(object) && !is_number(object)) return;
  fail_type(label,
            label.written() ? "a NumPy array, as clear_grads=True writes it"
                            : "a NumPy array, as later steps read it again",
            Py_TYPE(object.ptr())->tp_name);
}

}  // namespace onepass::bindings
