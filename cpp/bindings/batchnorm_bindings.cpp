// Batch normalisation for Python: every argument is checked and all memory is there before anything
// is written.
#include "batchnorm_bindings.hpp"

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "batchnorm_call.hpp"
#include "batchnorm_settings.hpp"
#include "function.hpp"

namespace onepass::bindings {
namespace {

// The running statistics and the number of batches they have seen. They change last, together.
class Running {
 public:
  // `momentum`: NaN if every batch counts alike.
  Running(Call& call, PyObject* mean, PyObject* var, PyObject* batches, double momentum,
          bool skip_nonfinite)
      : momentum_(momentum), skip_nonfinite_(skip_nonfinite) {
    if ((mean == Py_None) != (var == Py_None)) {
      const char* missing = mean == Py_None ? "running_mean" : "running_var";
      const char* given = mean == Py_None ? "running_var" : "running_mean";
      throw py::type_error(std::string(missing) + ": expected an array, as " + given +
                           " is one, got None");
    }
    if (mean == Py_None) return;
    values_ = call.zeros();
    mean_.emplace(mean, Argument{"running_mean", Role::output}, call.x, true, call.arguments);
    var_.emplace(var, Argument{"running_var", Role::output}, call.x, true, call.arguments);
    if (batches != Py_None) {
      const Argument label{"num_batches_tracked", Role::output};
      batches_ = check_counter(batches, label, call.arguments);
    }
    if (momentum != momentum && !batches_) {
      throw py::type_error("momentum: expected a number, as nothing counts the batches, got None");
    }
  }

  // `correction`: of the biased variance. With the GIL, so that no other thread's update is lost. A
  // batch may be skipped as a whole: its channels share the count.
  void update(double correction, std::span<const double> mean,
              std::span<const double> var) noexcept {
    if (!mean_) return;
    if (skip_nonfinite_ && !(mean_->can_hold(mean, 1.0) && var_->can_hold(var, correction))) return;
    if (batches_) ++*batches_;
    const double m = momentum_ == momentum_ ? momentum_ : 1 / static_cast<double>(*batches_);
    update(*mean_, mean, 1.0, m);
    update(*var_, var, correction, m);
  }

 private:
  void update(ChannelVector& running, std::span<const double> batch, double correction,
              double momentum) noexcept {
    running.load(values_.data());
    onepass::update_running(values_, batch, correction, momentum);
    running.write(values_);
  }

  std::span<double> values_;
  std::optional<ChannelVector> mean_, var_;
  double momentum_;
  bool skip_nonfinite_;
  std::int64_t* batches_ = nullptr;
};

void fill(const py::tuple& tuple, std::initializer_list<py::object*> items) {
  py::ssize_t i = 0;
  for (py::object* item : items) PyTuple_SET_ITEM(tuple.ptr(), i++, item->release().ptr());
}

struct Train : Common {
  PyObject *running_mean, *running_var, *num_batches_tracked;
  double momentum;
  PyObject *eps, *unbiased_running_var, *nonfinite;
};

PyObject* train(const Train& given) {
  const double eps = batch_norm_settings->eps.read(given.eps);
  const bool unbiased = batch_norm_settings->unbiased_running_var.is_on(given.unbiased_running_var);
  const bool skip_nonfinite = batch_norm_settings->nonfinite.is_on(given.nonfinite);
  py::tuple result(3);
  Call call(given, {given.x, given.weight, given.bias, given.running_mean, given.running_var,
                    given.num_batches_tracked, given.residual, given.out});
  Running running(call, given.running_mean, given.running_var, given.num_batches_tracked,
                  given.momentum, skip_nonfinite);
  check_has_variance(call.x, Argument{"x"});
  const Argument out_label{"out", Role::output};
  check_not_in_place(given.out, out_label, call.x, call.x.view.data, "x");
  if (call.residual) check_not_in_place(given.out, out_label, call.x, call.residual, "residual");
  py::object y = call.set_out(given.out, false);
  py::object mean = new_vector(call.x.channels, Dtype::f64);
  py::object invstd = new_vector(call.x.channels, Dtype::f64);
  const std::span<double> var = call.zeros();
  const auto n = static_cast<double>(call.x.outer * call.x.inner);
  const Statistics batch{static_cast<double*>(data_of(mean)), static_cast<double*>(data_of(invstd)),
                         var.data()};
  call.run(Operation::train, [&](auto& batch_norm) noexcept { batch_norm.train(eps, batch); });
  running.update(unbiased ? n / (n - 1) : 1.0, {batch.mean, var.size()}, var);
  fill(result, {&y, &mean, &invstd});
  return result.release().ptr();
}

PyObject* infer(const Common& given, PyObject* mean, PyObject* var, double eps) {
  Call call(given, {given.x, mean, var, given.weight, given.bias, given.residual, given.out});
  const ChannelVector means = call.statistic(mean, "mean"), vars = call.variance(var);
  py::object y = call.set_out(given.out, true);
  call.infer(means.source(), vars.source(), eps);
  return y.release().ptr();
}

struct Backward : Common {
  PyObject *dy, *mean, *scale;
  std::optional<double>
      eps;  // then `scale` is a variance, else 1 / standard deviation of the batch
  PyObject *weight_grad, *bias_grad;
};

PyObject* backward(const Backward& given) {
  py::tuple result(given.residual == Py_None ? 3 : 4);
  Call call(given, {given.dy, given.x, given.mean, given.scale, given.weight, given.bias,
                    given.residual, given.out, given.weight_grad, given.bias_grad});
  call.dy = check_like_channels(given.dy, Argument{"dy"}, call.x, call.arguments);
  const bool frozen = given.eps.has_value();
  const ChannelVector means = call.statistic(given.mean, frozen ? "mean" : "saved_mean");
  const ChannelVector scales =
      frozen ? call.variance(given.scale) : call.statistic(given.scale, "saved_invstd");
  double* const mean = call.load(means.source());
  double* const invstd = call.load(scales.source());
  if (frozen) kernels_in_use->invert_deviation(invstd, call.x.channels, *given.eps);
  auto [dweight, dweights] = call.vector_out(given.weight_grad, "weight_grad");
  auto [dbias, dbiases] = call.vector_out(given.bias_grad, "bias_grad");
  py::object dx = call.set_out(given.out, true), dresidual;
  if (call.residual) {
    dresidual = new_like(call.x);
    call.dresidual = data_of(dresidual);
  }
  const std::span<double> weight_grad = call.zeros(), bias_grad = call.zeros();
  call.run(Operation::backward, [&](auto& batch_norm) noexcept {
    const Statistics statistics{mean, invstd};
    const Gradients gradients{weight_grad.data(), bias_grad.data()};
    if (frozen) {
      batch_norm.infer_backward(statistics, gradients);
    } else {
      batch_norm.backward(statistics, gradients);
    }
  });
  dweights.write(weight_grad);
  dbiases.write(bias_grad);
  fill(result, {&dx, &dweight, &dbias});
  if (dresidual) PyTuple_SET_ITEM(result.ptr(), 3, dresidual.release().ptr());
  return result.release().ptr();
}

// The functions as functional.py and _passes.py declare them; the values in the order of the names.

PyObject* batch_norm_train(PyObject* const* values) {
  const auto& [x, weight, bias, running_mean, running_var, momentum, eps, axis,
               unbiased_running_var, nonfinite, relu, residual, out, num_threads] =
      take<14>(values);
  return train({{x, weight, bias, axis, relu, residual, out, num_threads},
                running_mean,
                running_var,
                Py_None,
                batch_norm_settings->momentum.read(momentum),
                eps,
                unbiased_running_var,
                nonfinite});
}

PyObject* batch_norm_infer(PyObject* const* values) {
  const auto& [x, mean, var, weight, bias, eps, axis, relu, residual, out, num_threads] =
      take<11>(values);
  return infer({x, weight, bias, axis, relu, residual, out, num_threads}, mean, var,
               batch_norm_settings->eps.read(eps));
}

PyObject* batch_norm_backward(PyObject* const* values) {
  const auto& [dy, x, saved_mean, saved_invstd, weight, bias, axis, relu, residual, out,
               num_threads] = take<11>(values);
  return backward({{x, weight, bias, axis, relu, residual, out, num_threads},
                   dy,
                   saved_mean,
                   saved_invstd,
                   std::nullopt,
                   Py_None,
                   Py_None});
}

PyObject* batch_norm_infer_backward(PyObject* const* values) {
  const auto& [dy, x, mean, var, weight, bias, eps, axis, relu, residual, out, num_threads] =
      take<12>(values);
  return backward({{x, weight, bias, axis, relu, residual, out, num_threads},
                   dy,
                   mean,
                   var,
                   batch_norm_settings->eps.read(eps),
                   Py_None,
                   Py_None});
}

PyObject* layer_train(PyObject* const* values) {
  const auto& [x, weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, axis,
               unbiased_running_var, nonfinite, relu, residual, out, num_threads] =
      take<15>(values);
  return train({{x, weight, bias, axis, relu, residual, out, num_threads},
                running_mean,
                running_var,
                num_batches_tracked,
                momentum == Py_None ? none : batch_norm_settings->momentum.read(momentum),
                eps,
                unbiased_running_var,
                nonfinite});
}

PyObject* layer_backward(PyObject* const* values) {
  const auto& [dy, x, mean, scale, weight, bias, eps, axis, relu, residual, out, weight_grad,
               bias_grad, num_threads] = take<14>(values);
  std::optional<double> given_eps;
  if (eps != Py_None) given_eps = batch_norm_settings->eps.read(eps);
  return backward({{x, weight, bias, axis, relu, residual, out, num_threads},
                   dy,
                   mean,
                   scale,
                   given_eps,
                   weight_grad,
                   bias_grad});
}

}  // namespace

void bind_batch_norm(py::module_& m) {
  bind_batch_norm_settings(m);
  implement({"batch_norm_train",
             {"x", "weight", "bias", "running_mean", "running_var", "momentum", "eps", "axis",
              "unbiased_running_var", "nonfinite", "relu", "residual", "out", "num_threads"},
             batch_norm_train});
  implement({"batch_norm_infer",
             {"x", "mean", "var", "weight", "bias", "eps", "axis", "relu", "residual", "out",
              "num_threads"},
             batch_norm_infer});
  implement({"batch_norm_backward",
             {"dy", "x", "saved_mean", "saved_invstd", "weight", "bias", "axis", "relu", "residual",
              "out", "num_threads"},
             batch_norm_backward});
  implement({"batch_norm_infer_backward",
             {"dy", "x", "mean", "var", "weight", "bias", "eps", "axis", "relu", "residual", "out",
              "num_threads"},
             batch_norm_infer_backward});
  implement({"layer_train",
             {"x", "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
              "momentum", "eps", "axis", "unbiased_running_var", "nonfinite", "relu", "residual",
              "out", "num_threads"},
             layer_train});
  implement({"layer_backward",
             {"dy", "x", "mean", "scale", "weight", "bias", "eps", "axis", "relu", "residual",
              "out", "weight_grad", "bias_grad", "num_threads"},
             layer_backward});
}

}  // namespace onepass::bindings
