#include "batchnorm_call.hpp"

#include "batchnorm_settings.hpp"
#include "threads.hpp"

namespace onepass::bindings {

How::How(const Common& given)
    : num_threads(resolve_num_threads(given.num_threads)),
      axis(static_cast<py::ssize_t>(batch_norm_settings->axis.read(given.axis))),
      relu(batch_norm_settings->relu.is_on(given.relu)) {}

Call::Call(const Common& given, std::initializer_list<PyObject*> arrays, bool calls_back)
    : how_(given),
      arguments(arrays, calls_back),
      x(given.x, Argument{"x"}, how_.axis, arguments),
      weight_(affine(given.weight, "weight", 1.0)),
      bias_(affine(given.bias, "bias", 0.0)) {
  if (given.residual == Py_None) return;
  residual = check_like_channels(given.residual, Argument{"residual"}, x, arguments);
}

ChannelVector Call::variance(PyObject* given) {
  const ChannelVector found = statistic(given, "var");
  found.check_not_negative(Argument{"var"});
  return found;
}

py::object Call::set_out(PyObject* given, bool may_be_x) {
  py::object result;
  if (given == Py_None) {
    result = new_like(x);
    out = data_of(result);
  } else {
    result = py::reinterpret_borrow<py::object>(given);
    const void* over_x = may_be_x ? x.view.data : nullptr;
    out = check_out(given, {"out", Role::output}, x, {over_x, dy, residual}, arguments);
  }
  arguments.check_overlap();
  return result;
}

std::pair<py::object, ChannelVector> Call::vector_out(PyObject* given, const char* name) {
  if (given == Py_None) {
    py::object made = new_vector(x.channels, x.view.dtype);
    const ChannelVector vector(made, x.channels, x.view.dtype);
    return {std::move(made), vector};
  }
  return {py::reinterpret_borrow<py::object>(given),
          ChannelVector(given, {name, Role::output}, x, false, arguments)};
}

void Call::infer(const PerChannel& mean, const PerChannel& var, double eps) {
  with_arrays([&](const auto& arrays, const auto&) {
    using T = std::remove_pointer_t<decltype(arrays.out)>;
    const typename Inference<T>::Given given{mean, var, weight_, bias_, eps};
    Inference<T> inference(*kernels_in_use, layout(), how_.num_threads, arrays, how_.relu);
    without_gil(x.size(), [&]() noexcept { inference.run(given); });
  });
}

}  // namespace onepass::bindings
