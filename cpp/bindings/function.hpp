// Functions that Python calls by its own fast protocol. pybind11's dispatcher would touch as many
// cold cache lines as the whole step of a small array.
//
// Such a function is declared in Python, where its documentation, types and defaults stand, with an
// empty body; `_core.native` puts an implementation in the place of the body:
//
//   @_core.native
//   def batch_norm_infer(x: Array, *, mean: Array, ..., num_threads: int | None = None) -> Array:
//       """..."""
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "gil.hpp"

namespace onepass::bindings {

namespace py = pybind11;

// What a function does with a call as Python hands it over (see vectorcall in Python's manual).
class Body {
 public:
  Body() = default;
  Body(const Body&) = delete;
  Body& operator=(const Body&) = delete;
  virtual ~Body() = default;
  // Returns a new reference, or null where the call does not fit the declaration. May throw.
  virtual PyObject* call(PyObject* const* args, Py_ssize_t n_positional, PyObject* keywords) = 0;
};

// A function whose parameters are known by name.
struct Implementation {
  const char* name;                     // the declaration's, with its class: "Optimizer.step"
  std::vector<const char*> parameters;  // the declaration's, in order: checked at import
  // `values`: borrowed, one a parameter, defaults included. Returns a new reference. May throw.
  PyObject* (*call)(PyObject* const* values);
};
void implement(Implementation implementation);

// The n values of an implementation, to be named by a structured binding.
template <std::size_t n>
using Values = PyObject* const (&)[n];
template <std::size_t n>
Values<n> take(PyObject* const* values) {
  return reinterpret_cast<Values<n>>(*values);
}

// A function with this declaration (a Python function) and body.
py::object make_function(py::handle declaration, std::unique_ptr<Body> body);

// Whether two names are the same; mostly both are interned, and the same object.
inline bool is_name(PyObject* name, PyObject* other) {
  return name == other || (PyUnicode_Check(other) && PyUnicode_Compare(name, other) == 0);
}

// Calls `work`, which returns a new reference, and makes Python's errors of C++ exceptions.
template <class Work>
PyObject* guarded(const Work& work) noexcept {
  try {
    const InCall call;
    return work();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

void bind_function(py::module_& m);

}  // namespace onepass::bindings
