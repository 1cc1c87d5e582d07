// Sums over a piece of a batch, and what the sums of all pieces together are.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <span>

#include "batchnorm_call.hpp"

namespace onepass::bindings {

namespace py = pybind11;

// Sums over a piece: the number of values of a channel, and some numbers of each channel. Those of
// all pieces together are given at first, or a function of Python's makes them of this piece's.
class PieceSums {
 public:
  static constexpr std::size_t most = 3;

  // `whole`: of all pieces together, first their count; all None where `exchange` is a function,
  // which takes this piece's and returns those. Reads the count, which may run code of Python's.
  PieceSums(std::span<const char* const> names, std::span<PyObject* const> whole,
            PyObject* exchange);
  // This piece's alone.
  explicit PieceSums(std::span<const char* const> names) : names_(names) {}
  bool are_given() const { return exchange_ == Py_None; }
  double count() const { return count_; }

  // Reads what is given, and makes room for the piece's own.
  void prepare(Call& call);
  // This piece's, one number a channel: zeros at first, for the loops to fill.
  double* own(std::size_t k) const;
  // Those of all pieces, after exchange().
  double* whole(std::size_t k) const { return whole_[k]; }
  // Calls the function, unless all is given.
  void exchange(Call& call);
  // (count, an array for each of the numbers): what a function of Python's returns.
  py::tuple own_tuple(const Call& call) const;

 private:
  void read(Call& call, std::size_t k, PyObject* array);

  std::span<const char* const> names_;  // the first is the count's
  std::span<PyObject* const> given_;
  PyObject* exchange_ = nullptr;
  double count_ = 0;
  py::object own_[most];
  double* whole_[most] = {};
};

}  // namespace onepass::bindings
