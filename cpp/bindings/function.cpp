#include "function.hpp"

#include <structmember.h>

#include <array>
#include <cstddef>
#include <map>
#include <string>
#include <utility>

#include "slots.hpp"

namespace onepass::bindings {
namespace {

constexpr std::size_t max_parameters = 32;

std::map<std::string, Implementation>& implementations() {
  static std::map<std::string, Implementation> all;
  return all;
}

// Finds the value of each parameter, and calls an implementation with these.
class Named final : public Body {
 public:
  Named(py::handle declaration, const Implementation& implementation) : call_(implementation.call) {
    const py::object code = declaration.attr("__code__");
    const auto count = [&](const char* name) { return code.attr(name).cast<std::size_t>(); };
    positional_ = count("co_argcount");
    only_positional_ = count("co_posonlyargcount");
    n_ = positional_ + count("co_kwonlyargcount");
    const auto names = code.attr("co_varnames").cast<py::tuple>();
    check_names(implementation, names);
    for (std::size_t i = 0; i < n_; ++i) parameters_[i].name = names[i];
    const py::object positional = declaration.attr("__defaults__");
    const py::object keywords = declaration.attr("__kwdefaults__");
    if (!positional.is_none()) {
      const auto values = positional.cast<py::tuple>();
      for (std::size_t i = 0; i < values.size(); ++i) {
        parameters_[positional_ - values.size() + i].value = values[i];
      }
    }
    for (std::size_t i = positional_; i < n_ && !keywords.is_none(); ++i) {
      if (keywords.contains(names[i])) parameters_[i].value = keywords[names[i]];
    }
  }

  PyObject* call(PyObject* const* args, Py_ssize_t n_positional, PyObject* keywords) override {
    const auto given = static_cast<std::size_t>(n_positional);
    if (given > positional_) return nullptr;
    std::array<PyObject*, max_parameters> values;
    for (std::size_t i = 0; i < n_; ++i) values[i] = i < given ? args[i] : nullptr;
    const Py_ssize_t n_keywords = keywords ? PyTuple_GET_SIZE(keywords) : 0;
    for (Py_ssize_t k = 0; k < n_keywords; ++k) {
      const std::size_t i = find(PyTuple_GET_ITEM(keywords, k));
      if (i == n_ || values[i]) return nullptr;
      values[i] = args[n_positional + k];
    }
    for (std::size_t i = given; i < n_; ++i) {
      if (!values[i]) values[i] = parameters_[i].value.ptr();
      if (!values[i]) return nullptr;
    }
    return call_(values.data());
  }

 private:
  struct Parameter {
    py::object name, value;  // the default; null where there is none
  };

  void check_names(const Implementation& implementation, const py::tuple& names) const {
    bool same = n_ == implementation.parameters.size() && n_ <= max_parameters;
    for (std::size_t i = 0; same && i < n_; ++i) {
      same = names[i].cast<std::string>() == implementation.parameters[i];
    }
    if (!same) {
      throw py::import_error(std::string(implementation.name) +
                             ": declared with other parameters than it is implemented with");
    }
  }

  std::size_t find(PyObject* name) const {
    // First by identity, which touches no string: mostly both names are interned.
    for (std::size_t i = only_positional_; i < n_; ++i) {
      if (parameters_[i].name.ptr() == name) return i;
    }
    return find_equal(name);
  }
  [[gnu::noinline]] std::size_t find_equal(PyObject* name) const {
    std::size_t i = only_positional_;
    while (i < n_ && !is_name(parameters_[i].name.ptr(), name)) ++i;
    return i;
  }

  PyObject* (*call_)(PyObject* const* values);
  std::size_t n_ = 0, positional_ = 0, only_positional_ = 0;
  std::array<Parameter, max_parameters> parameters_;  // the first n
};

struct Function {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject* declaration;
  Body* body;
  PyObject* weak_references;
};

Function* function(PyObject* self) {
  return reinterpret_cast<Function*>(self);
}

PyObject* call_function(PyObject* self, PyObject* const* args, std::size_t flagged,
                        PyObject* keywords) {
  return guarded([&]() -> PyObject* {
    PyObject* found = function(self)->body->call(args, PyVectorcall_NARGS(flagged), keywords);
    if (found || PyErr_Occurred()) return found;
    // The call does not fit: the declaration raises Python's own error.
    found = PyObject_Vectorcall(function(self)->declaration, args, flagged, keywords);
    if (!found) return nullptr;
    Py_DECREF(found);
    throw py::type_error("expected arguments as they are declared");
  });
}

int traverse_function(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(function(self)->declaration);
  return 0;
}

int clear_function(PyObject* self) {
  Py_CLEAR(function(self)->declaration);
  return 0;
}

void dealloc_function(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  if (function(self)->weak_references) PyObject_ClearWeakRefs(self);
  clear_function(self);
  delete function(self)->body;
  type->tp_free(self);
  Py_DECREF(type);
}

// In a class it is a method.
PyObject* get_method(PyObject* self, PyObject* instance, PyObject*) {
  if (!instance || instance == Py_None) return Py_NewRef(self);
  return PyMethod_New(self, instance);
}

// An attribute that this type does not have is the declaration's.
PyObject* get_attribute(PyObject* self, PyObject* name) {
  PyObject* found = PyObject_GenericGetAttr(self, name);
  if (found || !PyErr_ExceptionMatches(PyExc_AttributeError)) return found;
  PyErr_Clear();
  return PyObject_GetAttr(function(self)->declaration, name);
}

PyObject* repr_function(PyObject* self) {
  PyObject* declaration = function(self)->declaration;
  PyObject* name = PyObject_GetAttrString(declaration, "__qualname__");
  if (!name) return nullptr;
  PyObject* text = PyUnicode_FromFormat("<native function %U>", name);
  Py_DECREF(name);
  return text;
}

PyObject* get_declared(PyObject* self, void* name) {
  return PyObject_GetAttrString(function(self)->declaration, static_cast<const char*>(name));
}
PyObject* get_declaration(PyObject* self, void*) {
  return Py_NewRef(function(self)->declaration);
}
// Pickled and copied by name, as Python's own functions are.
PyObject* reduce_function(PyObject* self, PyObject*) {
  return PyObject_GetAttrString(function(self)->declaration, "__qualname__");
}

char doc_name[] = "__doc__", module_name[] = "__module__";
PyGetSetDef function_attributes[] = {{"__doc__", get_declared, nullptr, nullptr, doc_name},
                                     {"__module__", get_declared, nullptr, nullptr, module_name},
                                     {"__wrapped__", get_declaration, nullptr, nullptr, nullptr},
                                     {}};
PyMethodDef function_methods[] = {{"__reduce__", reduce_function, METH_NOARGS, nullptr}, {}};
PyMemberDef function_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Function, vectorcall), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Function, weak_references), READONLY, nullptr},
    {}};

PyObject* make_function_type() {
  PyType_Slot slots[] = {{Py_tp_dealloc, slot(dealloc_function)},
                         {Py_tp_traverse, slot(traverse_function)},
                         {Py_tp_clear, slot(clear_function)},
                         {Py_tp_call, slot(PyVectorcall_Call)},
                         {Py_tp_descr_get, slot(get_method)},
                         {Py_tp_getattro, slot(get_attribute)},
                         {Py_tp_repr, slot(repr_function)},
                         {Py_tp_getset, function_attributes},
                         {Py_tp_methods, function_methods},
                         {Py_tp_members, function_members},
                         {0, nullptr}};
  // Immutable, because Python's interpreter speeds up the look-up of no other type's methods.
  constexpr unsigned flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                             Py_TPFLAGS_METHOD_DESCRIPTOR | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                             Py_TPFLAGS_IMMUTABLETYPE;
  PyType_Spec spec{"onepass._core.Function", sizeof(Function), 0, flags, slots};
  return PyType_FromSpec(&spec);
}

PyTypeObject* function_type = nullptr;  // set once, at import

}  // namespace

void implement(Implementation implementation) {
  implementations()[implementation.name] = std::move(implementation);
}

py::object make_function(py::handle declaration, std::unique_ptr<Body> body) {
  auto* made = PyObject_GC_New(Function, function_type);
  if (!made) throw py::error_already_set();
  made->vectorcall = call_function;
  made->declaration = Py_NewRef(declaration.ptr());
  made->body = body.release();
  made->weak_references = nullptr;
  PyObject_GC_Track(made);
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(made));
}

void bind_function(py::module_& m) {
  const auto type = py::reinterpret_steal<py::object>(make_function_type());
  if (!type) throw py::error_already_set();
  m.attr("Function") = type;
  function_type = reinterpret_cast<PyTypeObject*>(type.ptr());  // the module keeps it alive
  m.def(
      "native",
      [](const py::function& declaration) {
        const auto name = declaration.attr("__qualname__").cast<std::string>();
        const auto found = implementations().find(name);
        if (found == implementations().end()) throw py::import_error(name + ": not implemented");
        return make_function(declaration, std::make_unique<Named>(declaration, found->second));
      },
      py::arg("declaration"), "Put the implementation of that name in the place of a body.");
}

}  // namespace onepass::bindings
