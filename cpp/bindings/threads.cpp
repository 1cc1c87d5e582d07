#include "threads.hpp"

#include <algorithm>
#include <string>

#include "parallel.hpp"

namespace onepass::bindings {
namespace {

namespace py = pybind11;

// An integer of Python's or NumPy's, but no bool.
int check_num_threads(py::handle value) {
  const auto expected = [&] {
    return "num_threads: expected an integer >= 1, got " + py::repr(value).cast<std::string>();
  };
  const bool is_whole = PyLong_CheckExact(value.ptr()) ||
                        (!PyBool_Check(value.ptr()) &&
                         (PyLong_Check(value.ptr()) ||
                          py::isinstance(value, py::module_::import("numpy").attr("integer"))));
  if (!is_whole) throw py::type_error(expected());
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long threads = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow > 0) return max_threads;
  if (overflow < 0 || threads < 1) throw py::value_error(expected());
  return static_cast<int>(std::min<long long>(threads, max_threads));
}

}  // namespace

int resolve_num_threads(PyObject* num_threads) {
  return num_threads == Py_None ? default_threads() : check_num_threads(num_threads);
}

void bind_threads(py::module_& m) {
  m.attr("max_threads") = max_threads;
  m.def("in_forked_child", &in_forked_child, "Whether steps run serial because of a fork.");
  m.def("check_num_threads", &check_num_threads, py::arg("num_threads"),
        "Return the number, or raise what is wrong with it.");
  m.def("use_threads", &set_default_threads, py::arg("num_threads"),
        "Set how many threads a call uses that is not told a number.");
}

}  // namespace onepass::bindings
