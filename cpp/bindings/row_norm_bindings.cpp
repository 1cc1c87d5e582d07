// LayerNorm, RMSNorm, GroupNorm and InstanceNorm for Python: every argument is checked and all
// memory is there before anything is written.
#include "row_norm_bindings.hpp"

#include <initializer_list>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "batchnorm_settings.hpp"
#include "channels.hpp"
#include "function.hpp"
#include "gil.hpp"
#include "kernels_in_use.hpp"
#include "row_norm.hpp"
#include "threads.hpp"

namespace onepass::bindings {
namespace {

using Sizes = std::vector<py::ssize_t>;

std::string text(const Sizes& shape) {
  std::string all;
  for (const py::ssize_t size : shape) all += (all.empty() ? "" : ", ") + std::to_string(size);
  return "(" + all + (shape.size() == 1 ? ",)" : ")");
}

std::size_t product(const Sizes& shape) {
  std::size_t n = 1;
  for (const py::ssize_t size : shape) n *= static_cast<std::size_t>(size);
  return n;
}

// What all functions are given. functional.py has checked the numbers: `shape` is a tuple of what
// is normalised, or None if that is a share of the channels; these make up `groups` groups, or with
// None one each.
struct RowGiven {
  PyObject *x, *shape, *groups, *centered, *weight, *bias, *out, *num_threads;
};

// Which rows an array has. Its own length, or that of its channels, is not known yet.
struct RowKind {
  explicit RowKind(const RowGiven& given)
      : centered(given.centered == Py_True),
        by_channel(given.shape == Py_None),
        groups(given.groups == Py_None ? 0 : PyLong_AsSsize_t(given.groups)) {
    if (!by_channel) normalized = py::cast<Sizes>(given.shape);
  }
  bool centered, by_channel;
  py::ssize_t groups;
  Sizes normalized;
};

class RowCall {
 public:
  RowCall(const RowGiven& given, std::initializer_list<PyObject*> arrays)
      : num_threads_(resolve_num_threads(given.num_threads)),
        kind_(given),
        arguments(arrays),
        x(given.x, Argument{"x"}, arguments) {
    if (kind_.by_channel) {
      find_channels();
    } else {
      find_normalized();
    }
    weight_ = weights(given.weight, Argument{"weight"});
    bias_ = weights(given.bias, Argument{"bias"});
  }

  bool centered() const { return kind_.centered; }
  std::size_t n_weights() const { return rows_.channels; }

  // Where the result goes: it may lie where one of `same` lies. The last check: nothing overlaps.
  py::object set_out(PyObject* given, std::initializer_list<const void*> same) {
    py::object result;
    if (given == Py_None) {
      result = new_like(x);
      out_ = data_of(result);
    } else {
      result = py::reinterpret_borrow<py::object>(given);
      out_ = check_out(given, {"out", Role::output}, x, same, arguments);
    }
    arguments.check_overlap();
    return result;
  }

  void* set_dy(PyObject* given) {
    return dy_ = check_like_channels(given, Argument{"dy"}, x, arguments);
  }

  double* zero_statistic() { return zeros(rows_.rows); }
  py::array_t<double> new_statistic() const { return py::array_t<double>(of_rows_); }

  // A number per row, as doubles.
  double* statistic(PyObject* given, const char* name) {
    const Argument argument{name};
    const View view(given, argument, View::Small::refused);
    check_shape(view, argument, of_rows_);
    char* const data = in_c_order(view, argument);
    if (view.dtype == Dtype::f64) return reinterpret_cast<double*>(data);
    double* const values = workspace_.take<double>(rows_.rows);
    PerChannel{data, view.item_size(), true}.load(values, rows_.rows);
    return values;
  }

  double* zeros(std::size_t n) {
    double* const values = workspace_.take<double>(n);
    std::fill_n(values, n, 0.0);
    return values;
  }

  // The gradient of weights: what is given, or a new array; and where its data is.
  std::pair<py::object, void*> gradient(PyObject* given, const char* name) {
    if (given != Py_None) {
      return {py::reinterpret_borrow<py::object>(given), weights(given, {name, Role::output})};
    }
    py::object made = x.view.dtype == Dtype::f32 ? py::object(py::array_t<float>(of_weights_))
                                                 : py::object(py::array_t<double>(of_weights_));
    void* const data = data_of(made);
    return {std::move(made), data};
  }
  void write(void* to, const double* values) const noexcept {
    if (x.view.dtype == Dtype::f32) {
      float* const floats = static_cast<float*>(to);
      for (std::size_t c = 0; c < n_weights(); ++c) floats[c] = static_cast<float>(values[c]);
    } else {
      std::copy_n(values, n_weights(), static_cast<double*>(to));
    }
  }

  // Calls body(row_norm), which cannot fail; not for an array without elements.
  template <class Body>
  void run(const Body& body) {
    if (x.view.size() == 0) return;
    if (x.view.dtype == Dtype::f32) {
      run_as<float>(body);
    } else {
      run_as<double>(body);
    }
  }

 private:
  template <class T, class Body>
  void run_as(const Body& body) {
    RowArrays<T> arrays{};
    arrays.x = reinterpret_cast<const T*>(x.view.data);
    arrays.dy = static_cast<const T*>(dy_);
    arrays.weight = static_cast<const T*>(weight_);
    arrays.bias = static_cast<const T*>(bias_);
    arrays.out = static_cast<T*>(out_);
    RowNorm<T> row_norm(*kernels_in_use, rows_, num_threads_, arrays, kind_.centered);
    without_gil(rows_.size(), [&]() noexcept { body(row_norm); });
  }

  void find_normalized() {
    const auto rank = x.view.rank, n = static_cast<py::ssize_t>(kind_.normalized.size());
    const py::ssize_t* const shape = x.view.shape();
    if (n > rank || !std::equal(shape + rank - n, shape + rank, kind_.normalized.begin())) {
      fail_value(Argument{"x"}, "a shape that ends with normalized_shape " + text(kind_.normalized),
                 "shape " + shape_name(x.view.array()));
    }
    of_weights_ = kind_.normalized;
    of_rows_.assign(shape, shape + rank - n);
    const std::size_t length = product(of_weights_);
    rows_ = {product(of_rows_), length, length, 1};
  }

  void find_channels() {
    const py::ssize_t rank = x.view.rank, *const shape = x.view.shape();
    if (rank < 2) {
      fail_value(Argument{"x"}, "at least 2 axes, the second one the channels",
                 "shape " + shape_name(x.view.array()));
    }
    const py::ssize_t channels = shape[1], groups = kind_.groups ? kind_.groups : channels;
    if (channels == 0 || channels % groups != 0) {
      fail_value(Argument{"x"},
                 "channels on axis 1 that make up " +
                     std::to_string(std::max<py::ssize_t>(groups, 1)) + " groups",
                 "shape " + shape_name(x.view.array()));
    }
    const std::size_t inner = product(Sizes(shape + 2, shape + rank));
    if (inner == 0) {
      fail_value(Argument{"x"}, "at least one value per channel, because none has no mean",
                 "shape " + shape_name(x.view.array()));
    }
    of_weights_ = {channels};
    of_rows_ = {shape[0], groups};
    const auto of_row = static_cast<std::size_t>(channels / groups);
    rows_ = {product(of_rows_), static_cast<std::size_t>(channels), of_row, inner};
  }

  void check_shape(const View& view, Argument argument, const Sizes& shape) const {
    const auto rank = static_cast<py::ssize_t>(shape.size());
    if (view.rank == rank && std::equal(shape.begin(), shape.end(), view.shape())) return;
    fail_value(argument, "shape " + text(shape), "shape " + shape_name(view.array()));
  }

  // The data, or a copy's where it is not in C order.
  char* in_c_order(const View& view, Argument argument) {
    arguments.add(view.extent(), argument);
    if (view.is_c_order() && view.is_aligned()) return view.data;
    py::object copy = copy_in_c_order(view);
    char* const data = static_cast<char*>(data_of(copy));
    arguments.keep(std::move(copy));
    return data;
  }

  void* weights(PyObject* given, Argument argument) {
    if (given == Py_None) return nullptr;
    const View view(given, argument, View::Small::refused);
    if (view.dtype != x.view.dtype) {
      fail_type(argument, "x's dtype " + dtype_name(x.view.array()), dtype_name(view.array()));
    }
    check_shape(view, argument, of_weights_);
    if (argument.written()) {
      check_written_in_place(view.array(), argument);
      if (!view.is_c_order()) {
        fail_value(argument, "C order", "strides " + strides_name(view.array()));
      }
    }
    return in_c_order(view, argument);
  }

  int num_threads_;
  RowKind kind_;

 public:
  Arguments arguments;
  ChannelArray x;

 private:
  RowChannels rows_{};
  Sizes of_rows_, of_weights_;  // shapes
  void *weight_ = nullptr, *bias_ = nullptr, *dy_ = nullptr, *out_ = nullptr;
  Workspace workspace_;
};

double default_eps(const ChannelArray& x) {
  return x.view.dtype == Dtype::f32 ? static_cast<double>(std::numeric_limits<float>::epsilon())
                                    : std::numeric_limits<double>::epsilon();
}

PyObject* row_norm(PyObject* const* values) {
  const auto& [x, shape, groups, centered, weight, bias, eps, out, num_threads] = take<9>(values);
  const bool by_dtype = eps == Py_None && centered == Py_False;
  const double given_eps = by_dtype ? 0 : batch_norm_settings->eps.read(eps);
  py::tuple result(centered == Py_True ? 3 : 2);
  RowCall call({x, shape, groups, centered, weight, bias, out, num_threads},
               {x, weight, bias, out});
  check_not_in_place(out, {"out", Role::output}, call.x, call.x.view.data, "x");
  py::object y = call.set_out(out, {});
  py::array_t<double> invstd = call.new_statistic(), mean;
  double* means = nullptr;
  if (call.centered()) {
    mean = call.new_statistic();
    means = mean.mutable_data();
  } else {
    means = call.zero_statistic();
  }
  const Statistics of{means, invstd.mutable_data()};
  const double used_eps = by_dtype ? default_eps(call.x) : given_eps;
  call.run([&](auto& norm) noexcept { norm.forward(used_eps, of); });
  PyTuple_SET_ITEM(result.ptr(), 0, y.release().ptr());
  if (call.centered()) PyTuple_SET_ITEM(result.ptr(), 1, mean.release().ptr());
  PyTuple_SET_ITEM(result.ptr(), call.centered() ? 2 : 1, invstd.release().ptr());
  return result.release().ptr();
}

PyObject* row_norm_backward(PyObject* const* values) {
  const auto& [dy, x, shape, groups, centered, saved_mean, saved_invstd, weight, out, weight_grad,
               bias_grad, num_threads] = take<12>(values);
  py::tuple result(centered == Py_True ? 3 : 2);
  RowCall call({x, shape, groups, centered, weight, Py_None, out, num_threads},
               {dy, x, saved_mean, saved_invstd, weight, out, weight_grad, bias_grad});
  void* const dy_data = call.set_dy(dy);
  const Statistics of{
      call.centered() ? call.statistic(saved_mean, "saved_mean") : call.zero_statistic(),
      call.statistic(saved_invstd, call.centered() ? "saved_invstd" : "saved_invrms")};
  auto [dweight, weight_to] = call.gradient(weight_grad, "weight_grad");
  auto [dbias, bias_to] = call.gradient(bias_grad, "bias_grad");
  py::object dx = call.set_out(out, {call.x.view.data, dy_data});
  const Gradients gradients{call.zeros(call.n_weights()), call.zeros(call.n_weights())};
  call.run([&](auto& norm) noexcept { norm.backward(of, gradients); });
  call.write(weight_to, gradients.weight);
  call.write(bias_to, gradients.bias);
  PyTuple_SET_ITEM(result.ptr(), 0, dx.release().ptr());
  PyTuple_SET_ITEM(result.ptr(), 1, dweight.release().ptr());
  if (call.centered()) PyTuple_SET_ITEM(result.ptr(), 2, dbias.release().ptr());
  return result.release().ptr();
}

}  // namespace

void bind_row_norm() {
  implement({"row_norm",
             {"x", "normalized_shape", "num_groups", "centered", "weight", "bias", "eps", "out",
              "num_threads"},
             row_norm});
  implement({"row_norm_backward",
             {"dy", "x", "normalized_shape", "num_groups", "centered", "saved_mean", "saved_invstd",
              "weight", "out", "weight_grad", "bias_grad", "num_threads"},
             row_norm_backward});
}

}  // namespace onepass::bindings
