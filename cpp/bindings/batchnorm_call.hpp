// One call of a function of batch normalisation: its arrays, checked, and how the loops are run
// with them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <type_traits>
#include <utility>

#include "batchnorm.hpp"
#include "channels.hpp"
#include "gil.hpp"
#include "inference.hpp"
#include "kernels_in_use.hpp"

namespace onepass::bindings {

// What all functions are given.
struct Common {
  PyObject *x, *weight, *bias, *axis, *relu, *residual, *out, *num_threads;
};

// The settings that all functions have.
struct How {
  explicit How(const Common& given);
  int num_threads;
  py::ssize_t axis;
  bool relu;
};

// What the functions have in common. From when `arguments` is there no Python code may run, unless
// that holds the arrays; so settings are read, and tuples made, before.
class Call {
 public:
  // `arrays`: all that the function is given. `calls_back`: it will call a function of Python's.
  Call(const Common& given, std::initializer_list<PyObject*> arrays, bool calls_back = false);

  ChannelVector statistic(PyObject* given, const char* name) {
    return {given, Argument{name}, x, true, arguments};
  }
  ChannelVector variance(PyObject* given);

  // Sets where the result goes: it may lie where x, residual and, in `backward`, dy lie. This is
  // the last check: nothing may overlap. Returns what the caller gets.
  py::object set_out(PyObject* given, bool may_be_x);

  // The gradient of a value per channel, in x's dtype: what is given, or a new array.
  std::pair<py::object, ChannelVector> vector_out(PyObject* given, const char* name);

  // Calls body(batch_norm), which cannot fail; not for an array without elements.
  template <class Body>
  void run(Operation operation, const Body& body) {
    with_batch_norm(operation, [&](auto& batch_norm) {
      without_gil(x.size(), [&]() noexcept { body(batch_norm); });
    });
  }
  // Calls first(batch_norm), which cannot fail, then between(), and then last(batch_norm), which
  // cannot fail either. An array without elements has only the one in the middle.
  template <class First, class Between, class Last>
  void run_in_two(Operation operation, const First& first, const Between& between,
                  const Last& last) {
    if (x.size() == 0) return between();
    with_batch_norm(operation, [&](auto& batch_norm) {
      without_gil(x.size(), [&]() noexcept { first(batch_norm); });
      between();
      without_gil(x.size(), [&]() noexcept { last(batch_norm); });
    });
  }

  void infer(const PerChannel& mean, const PerChannel& var, double eps);

  // A number per channel: what a source has, or 0.
  double* load(const PerChannel& source) {
    double* const values = workspace_.take<double>(x.channels);
    source.load(values, x.channels);
    return values;
  }
  std::span<double> zeros() {
    const std::span<double> values(workspace_.take<double>(x.channels), x.channels);
    std::ranges::fill(values, 0.0);
    return values;
  }

 private:
  PerChannel affine(PyObject* given, const char* name, double absent) {
    if (given == Py_None) return {nullptr, 0, false, absent};
    return ChannelVector(given, Argument{name}, x, false, arguments).source();
  }

  Layout layout() const { return {x.outer, x.channels, x.inner}; }

  template <class Use>
  void with_batch_norm(Operation operation, const Use& use) {
    const Affine affine{load(weight_), load(bias_)};
    with_arrays([&](const auto& arrays, const auto& table) {
      using T = std::remove_pointer_t<decltype(arrays.out)>;
      BatchNorm<T> batch_norm(table, layout(), how_.num_threads, arrays, affine, operation,
                              how_.relu);
      use(batch_norm);
    });
  }

  template <class Body>
  void with_arrays(const Body& body) {
    if (x.size() == 0) return;
    const auto run_on = [&]<class T>(T) {
      body(arrays<T>(), batch_norm_table<T>(*kernels_in_use));
    };
    if (x.view.format == Format::bf16) return run_on(StoredBFloat16{});
    if (x.view.format == Format::f16) return run_on(StoredFloat16{});
    if (x.view.dtype == Dtype::f32) return run_on(float{});
    run_on(double{});
  }

  template <class T>
  Arrays<T> arrays() const {
    const auto data = [](void* array) { return static_cast<T*>(array); };
    return {data(x.view.data), data(residual), data(dy), data(out), data(dresidual), false};
  }

  How how_;

 public:
  void *residual = nullptr, *dy = nullptr, *out = nullptr, *dresidual = nullptr;
  Arguments arguments;
  ChannelArray x;

 private:
  PerChannel weight_, bias_;
  Workspace workspace_;
};

}  // namespace onepass::bindings
