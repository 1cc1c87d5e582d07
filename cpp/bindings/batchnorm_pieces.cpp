#include "batchnorm_pieces.hpp"

#include <algorithm>
#include <cstdint>
#include <string>

namespace onepass::bindings {
namespace {

constexpr std::int64_t most_values = std::int64_t{1} << 53;  // a double holds each count up to it

double read_count(py::handle value, const char* name) {
  const auto whole = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!whole || PyBool_Check(value.ptr())) {
    PyErr_Clear();
    fail_type(Argument{name}, "an integer", py::repr(value).cast<std::string>());
  }
  int overflow = 0;
  const long long count = PyLong_AsLongLongAndOverflow(whole.ptr(), &overflow);
  if (overflow || count < 0 || count >= most_values) {
    fail_value(Argument{name}, "a number of values in [0, 2**53)",
               py::repr(whole).cast<std::string>());
  }
  return static_cast<double>(count);
}

}  // namespace

PieceSums::PieceSums(std::span<const char* const> names, std::span<PyObject* const> whole,
                     PyObject* exchange)
    : names_(names), given_(whole), exchange_(exchange) {
  if (are_given()) count_ = read_count(given_[0], names_[0]);
}

void PieceSums::read(Call& call, std::size_t k, PyObject* array) {
  whole_[k] = call.load(call.statistic(array, names_[k + 1]).source());
}

void PieceSums::prepare(Call& call) {
  for (std::size_t k = 0; k + 1 < names_.size(); ++k) {
    if (are_given()) {
      read(call, k, given_[k + 1]);
    } else {
      own_[k] = new_vector(call.x.channels, Dtype::f64);
      std::fill_n(own(k), call.x.channels, 0.0);
    }
  }
}

double* PieceSums::own(std::size_t k) const {
  return static_cast<double*>(data_of(own_[k]));
}

py::tuple PieceSums::own_tuple(const Call& call) const {
  py::tuple sums(names_.size());
  sums[0] = py::int_(call.x.outer * call.x.inner);
  for (std::size_t k = 0; k + 1 < names_.size(); ++k) sums[k + 1] = own_[k];
  return sums;
}

void PieceSums::exchange(Call& call) {
  if (are_given()) return;
  const py::object found = py::handle(exchange_)(*own_tuple(call));
  if (!PyTuple_Check(found.ptr()) ||
      PyTuple_GET_SIZE(found.ptr()) != static_cast<Py_ssize_t>(names_.size())) {
    fail_type(Argument{"exchange"}, "a function that returns what it takes",
              py::repr(found).cast<std::string>());
  }
  count_ = read_count(PyTuple_GET_ITEM(found.ptr(), 0), names_[0]);
  for (std::size_t k = 0; k + 1 < names_.size(); ++k) {
    read(call, k, PyTuple_GET_ITEM(found.ptr(), static_cast<Py_ssize_t>(k) + 1));
  }
}

}  // namespace onepass::bindings
