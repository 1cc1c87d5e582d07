// Batch normalisation for Python: every argument is checked and all memory is there before anything
// is written.
#include "batchnorm_bindings.hpp"

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "batchnorm_call.hpp"
#include "batchnorm_pieces.hpp"
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

constexpr const char* moment_names[] = {"moments.count", "moments.center", "moments.sum",
                                        "moments.square"};
constexpr const char* sum_names[] = {"sums.count", "sums.product", "sums.sum"};

double* ones(Call& call) {
  const std::span<double> values = call.zeros();
  std::ranges::fill(values, 1.0);
  return values.data();
}

// The statistics of a batch from the moments of all its pieces.
void set_statistics(Call& call, const PieceSums& moments, double eps, const Statistics& batch) {
  Channels<double> channels{};
  channels.center = moments.whole(0);
  channels.magnitude = ones(call);
  kernels_in_use->batch_norm_f64[0].set_statistics({moments.whole(1), moments.whole(2)}, channels,
                                                   moments.count(), eps, call.x.channels, batch);
}

// Normalises a piece of a batch with the statistics of all of it, and returns the batch's count.
double train_piece(Call& call, PieceSums& moments, double eps, const Statistics& batch) {
  call.run_in_two(
      Operation::train,
      [&](auto& batch_norm) noexcept {
        if (moments.are_given()) return;
        batch_norm.measure(batch, {moments.own(0), moments.own(1), moments.own(2)});
      },
      [&] {
        moments.exchange(call);
        if (moments.count() <= 1 && call.x.channels > 0) {
          fail_value(Argument{moment_names[0]},
                     "more than one value per channel in all pieces together",
                     std::to_string(static_cast<std::int64_t>(moments.count())));
        }
        set_statistics(call, moments, eps, batch);
      },
      [&](auto& batch_norm) noexcept { batch_norm.normalize(batch); });
  return moments.count();
}

// `moments`: null where x is the whole batch; `sums`: their arrays, where the caller gives them.
PyObject* train(const Train& given, PieceSums* moments = nullptr,
                std::array<PyObject*, 3> sums = {Py_None, Py_None, Py_None}) {
  const double eps = batch_norm_settings->eps.read(given.eps);
  const bool unbiased = batch_norm_settings->unbiased_running_var.is_on(given.unbiased_running_var);
  const bool skip_nonfinite = batch_norm_settings->nonfinite.is_on(given.nonfinite);
  py::tuple result(3);
  Call call(given,
            {given.x, sums[0], sums[1], sums[2], given.weight, given.bias, given.running_mean,
             given.running_var, given.num_batches_tracked, given.residual, given.out},
            moments != nullptr);
  Running running(call, given.running_mean, given.running_var, given.num_batches_tracked,
                  given.momentum, skip_nonfinite);
  if (moments) {
    moments->prepare(call);
  } else {
    check_has_variance(call.x, Argument{"x"});
  }
  const Argument out_label{"out", Role::output};
  check_not_in_place(given.out, out_label, call.x, call.x.view.data, "x");
  if (call.residual) check_not_in_place(given.out, out_label, call.x, call.residual, "residual");
  py::object y = call.set_out(given.out, false);
  py::object mean = new_vector(call.x.channels, Dtype::f64);
  py::object invstd = new_vector(call.x.channels, Dtype::f64);
  const std::span<double> var = call.zeros();
  auto n = static_cast<double>(call.x.outer * call.x.inner);
  const Statistics batch{static_cast<double*>(data_of(mean)), static_cast<double*>(data_of(invstd)),
                         var.data()};
  if (moments) {
    n = train_piece(call, *moments, eps, batch);
  } else {
    call.run(Operation::train, [&](auto& batch_norm) noexcept { batch_norm.train(eps, batch); });
  }
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

// The gradients of weight and bias from sums over a piece or a batch.
void set_gradients(const double* product, const double* sum, const Statistics& batch,
                   std::size_t channels, const Gradients& gradients) noexcept {
  for (std::size_t c = 0; c < channels; ++c) gradients.weight[c] = product[c] * batch.invstd[c];
  std::copy_n(sum, channels, gradients.bias);
}

// Goes back through the statistics of a batch that x is a piece of; `own`: of this piece.
void backward_piece(Call& call, PieceSums& sums, const Statistics& batch, const Gradients& own) {
  const std::span<double> weight = call.zeros(), bias = call.zeros();
  const Gradients all{weight.data(), bias.data()};
  const std::size_t n = call.x.channels;
  double* const unit = ones(call);
  call.run_in_two(
      Operation::backward,
      [&](auto& batch_norm) noexcept {
        if (sums.are_given()) return;
        batch_norm.sum_gradients(batch, unit, {sums.own(0), sums.own(1)});
        set_gradients(sums.own(0), sums.own(1), batch, n, own);
      },
      [&] {
        sums.exchange(call);
        set_gradients(sums.whole(0), sums.whole(1), batch, n, all);
      },
      [&](auto& batch_norm) noexcept { batch_norm.input_gradient(batch, all, sums.count()); });
}

// `sums`: null where x is the whole batch; `both`: their arrays, where the caller gives them.
PyObject* backward(const Backward& given, PieceSums* sums = nullptr,
                   std::array<PyObject*, 2> both = {Py_None, Py_None}) {
  py::tuple result(given.residual == Py_None ? 3 : 4);
  Call call(given,
            {given.dy, given.x, both[0], both[1], given.mean, given.scale, given.weight, given.bias,
             given.residual, given.out, given.weight_grad, given.bias_grad},
            sums != nullptr);
  call.dy = check_like_channels(given.dy, Argument{"dy"}, call.x, call.arguments);
  const bool frozen = given.eps.has_value();
  const ChannelVector means = call.statistic(given.mean, frozen ? "mean" : "saved_mean");
  const ChannelVector scales =
      frozen ? call.variance(given.scale) : call.statistic(given.scale, "saved_invstd");
  double* const mean = call.load(means.source());
  double* const invstd = call.load(scales.source());
  if (frozen) kernels_in_use->invert_deviation(invstd, call.x.channels, *given.eps);
  if (sums) sums->prepare(call);
  auto [dweight, dweights] = call.vector_out(given.weight_grad, "weight_grad");
  auto [dbias, dbiases] = call.vector_out(given.bias_grad, "bias_grad");
  py::object dx = call.set_out(given.out, true), dresidual;
  if (call.residual) {
    dresidual = new_like(call.x);
    call.dresidual = data_of(dresidual);
  }
  const std::span<double> weight_grad = call.zeros(), bias_grad = call.zeros();
  const Statistics statistics{mean, invstd};
  const Gradients gradients{weight_grad.data(), bias_grad.data()};
  if (sums) {
    backward_piece(call, *sums, statistics, gradients);
  } else {
    call.run(Operation::backward, [&](auto& batch_norm) noexcept {
      if (frozen) {
        batch_norm.infer_backward(statistics, gradients);
      } else {
        batch_norm.backward(statistics, gradients);
      }
    });
  }
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

// What a layer's training is given; `rest` follows x, or a piece's moments.
Train of_layer(PyObject* x, PyObject* const* rest) {
  const auto& [weight, bias, running_mean, running_var, num_batches_tracked, momentum, eps, axis,
               unbiased_running_var, nonfinite, relu, residual, out, num_threads] = take<14>(rest);
  return {{x, weight, bias, axis, relu, residual, out, num_threads},
          running_mean,
          running_var,
          num_batches_tracked,
          momentum == Py_None ? none : batch_norm_settings->momentum.read(momentum),
          eps,
          unbiased_running_var,
          nonfinite};
}

PyObject* layer_train(PyObject* const* values) {
  return train(of_layer(values[0], values + 1));
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

PyObject* piece_moments(PyObject* const* values) {
  const auto& [x, axis, num_threads] = take<3>(values);
  PyObject* const no = Py_None;
  Call call({x, no, no, axis, Py_False, no, no, num_threads}, {x});
  PieceSums moments(moment_names);
  moments.prepare(call);
  const Statistics scratch{call.zeros().data(), call.zeros().data(), call.zeros().data()};
  call.run(Operation::train, [&](auto& batch_norm) noexcept {
    batch_norm.measure(scratch, {moments.own(0), moments.own(1), moments.own(2)});
  });
  return moments.own_tuple(call).release().ptr();
}

PyObject* piece_train(PyObject* const* values) {
  const auto& [x, count, center, sum, square, exchange] = take<6>(values);
  PyObject* const whole[] = {count, center, sum, square};
  PieceSums moments(moment_names, whole, exchange);
  return train(of_layer(x, values + 6), &moments, {center, sum, square});
}

PyObject* piece_gradient_sums(PyObject* const* values) {
  const auto& [dy, x, saved_mean, saved_invstd, weight, bias, axis, relu, residual, num_threads] =
      take<10>(values);
  PyObject* const no = Py_None;
  Call call({x, weight, bias, axis, relu, residual, no, num_threads},
            {dy, x, saved_mean, saved_invstd, weight, bias, residual});
  call.dy = check_like_channels(dy, Argument{"dy"}, call.x, call.arguments);
  const Statistics batch{call.load(call.statistic(saved_mean, "saved_mean").source()),
                         call.load(call.statistic(saved_invstd, "saved_invstd").source())};
  PieceSums sums(sum_names);
  sums.prepare(call);
  double* const unit = ones(call);
  call.run(Operation::backward, [&](auto& batch_norm) noexcept {
    batch_norm.sum_gradients(batch, unit, {sums.own(0), sums.own(1)});
  });
  return sums.own_tuple(call).release().ptr();
}

PyObject* piece_backward(PyObject* const* values) {
  const auto& [dy, x, count, product, sum, exchange, saved_mean, saved_invstd, weight, bias, axis,
               relu, residual, out, weight_grad, bias_grad, num_threads] = take<17>(values);
  PyObject* const whole[] = {count, product, sum};
  PieceSums sums(sum_names, whole, exchange);
  return backward({{x, weight, bias, axis, relu, residual, out, num_threads},
                   dy,
                   saved_mean,
                   saved_invstd,
                   std::nullopt,
                   weight_grad,
                   bias_grad},
                  &sums, {product, sum});
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
  implement({"piece_moments", {"x", "axis", "num_threads"}, piece_moments});
  implement({"piece_train",
             {"x",
              "count",
              "center",
              "total",
              "square",
              "exchange",
              "weight",
              "bias",
              "running_mean",
              "running_var",
              "num_batches_tracked",
              "momentum",
              "eps",
              "axis",
              "unbiased_running_var",
              "nonfinite",
              "relu",
              "residual",
              "out",
              "num_threads"},
             piece_train});
  implement({"piece_gradient_sums",
             {"dy", "x", "saved_mean", "saved_invstd", "weight", "bias", "axis", "relu", "residual",
              "num_threads"},
             piece_gradient_sums});
  implement(
      {"piece_backward",
       {"dy", "x", "count", "product", "total", "exchange", "saved_mean", "saved_invstd", "weight",
        "bias", "axis", "relu", "residual", "out", "weight_grad", "bias_grad", "num_threads"},
       piece_backward});
}

}  // namespace onepass::bindings
