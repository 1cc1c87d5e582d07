// Batch normalisation for Python: every argument is checked and all memory is there before anything
// is written.
#include "batchnorm_bindings.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "batchnorm.hpp"
#include "channels.hpp"
#include "gil.hpp"
#include "inference.hpp"
#include "threads.hpp"

namespace onepass::bindings {
namespace {

const KernelTable* batch_norm_kernels = nullptr;  // set once, at import

using Vector64 = py::array_t<double>;

// What the four operations have in common: the arrays, checked, and whatever they are run with.
class Call {
 public:
  Call(py::handle x_given, py::handle weight_given, py::handle bias_given, py::ssize_t axis,
       bool relu, py::handle residual_given)
      : x(check_channels(x_given, Label("x", Role::input), axis, arguments)),
        weight_(affine(weight_given, "weight", 1.0)),
        bias_(affine(bias_given, "bias", 0.0)),
        relu_(relu) {
    if (residual_given.is_none()) return;
    residual = check_like_channels(residual_given, Label("residual", Role::input), x, arguments);
  }

  ChannelVector statistic(py::handle given, const char* name) {
    return {given, Label(name, Role::input), x, true, arguments};
  }

  ChannelVector variance(py::handle given) {
    ChannelVector found = statistic(given, "var");
    found.check_not_negative(Label("var", Role::input));
    return found;
  }

  // Where the result goes; `same` may be overwritten by it. The last check: nothing may overlap.
  // Returns what the caller gets.
  py::object set_out(py::handle given, std::vector<py::array> same) {
    if (residual) same.push_back(*residual);
    const Label label("out", Role::output);
    out = given.is_none() ? new_like(x) : check_out(given, label, x, same, arguments);
    arguments.memory.check_overlap();
    return given.is_none() ? py::object(out) : py::reinterpret_borrow<py::object>(given);
  }

  // Calls body(batch_norm), which cannot fail; not for an array without elements.
  template <class Body>
  void run(Operation operation, int num_threads, const Body& body) {
    const std::vector<double> weights = loaded(weight_), biases = loaded(bias_);
    with_arrays([&](const auto& arrays, const auto& table) {
      using T = std::remove_pointer_t<decltype(arrays.out)>;
      BatchNorm<T> batch_norm(table, layout(), num_threads, arrays, {weights.data(), biases.data()},
                              operation, relu_);
      without_gil([&]() noexcept { body(batch_norm); });
    });
  }

  void infer(const PerChannel& mean, const PerChannel& var, double eps, int num_threads) {
    with_arrays([&](const auto& arrays, const auto&) {
      using T = std::remove_pointer_t<decltype(arrays.out)>;
      Inference<T> inference(*batch_norm_kernels, layout(), num_threads, arrays,
                             {mean, var, weight_, bias_, eps}, relu_);
      without_gil([&]() noexcept { inference.run(); });
    });
  }

  // A value per channel, in x's dtype: what is given, or a new array.
  py::object vector_out(py::handle given) const {
    if (!given.is_none()) return py::reinterpret_borrow<py::object>(given);
    return py::array(x.array.dtype(),
                     py::array::ShapeContainer{static_cast<py::ssize_t>(x.channels)});
  }

  Arguments arguments;
  ChannelArray x;
  std::optional<py::array> residual, dy, dresidual;
  py::array out;

 private:
  PerChannel affine(py::handle given, const char* name, double absent) {
    if (given.is_none()) return {nullptr, 0, false, absent};
    kept_.push_back({given, Label(name, Role::input), x, false, arguments});
    return kept_.back().source();
  }

  std::vector<double> loaded(const PerChannel& source) const {
    std::vector<double> values(x.channels);
    source.load(values.data(), values.size());
    return values;
  }

  Layout layout() const { return {x.outer, x.channels, x.inner}; }

  template <class Body>
  void with_arrays(const Body& body) {
    if (x.size() == 0) return;
    if (x.dtype == Dtype::f32) {
      body(arrays<float>(), batch_norm_kernels->batch_norm_f32);
    } else {
      body(arrays<double>(), batch_norm_kernels->batch_norm_f64);
    }
  }

  template <class T>
  Arrays<T> arrays() const {
    const auto data = [](const std::optional<py::array>& array) {
      return array ? static_cast<T*>(const_cast<void*>(array->data())) : nullptr;
    };
    return {data(x.array), data(residual), data(dy), data(out), data(dresidual), false};
  }

  template <class Work>
  void without_gil(const Work& work) const {
    std::optional<WithoutGil> release;
    if (x.size() >= min_elements_without_gil) release.emplace();
    work();
  }

  std::vector<ChannelVector> kept_;  // what weight and bias point into
  PerChannel weight_, bias_;
  bool relu_;
};

// The running statistics and the number of batches they have seen. They change last, together.
class Running {
 public:
  Running(Call& call, py::handle mean, py::handle var, py::handle batches,
          std::optional<double> momentum, bool skip_nonfinite)
      : momentum_(momentum), skip_nonfinite_(skip_nonfinite) {
    if (mean.is_none() != var.is_none()) {
      const char* missing = mean.is_none() ? "running_mean" : "running_var";
      const char* given = mean.is_none() ? "running_var" : "running_mean";
      throw py::type_error(std::string(missing) + ": expected an array, as " + given +
                           " is one, got None");
    }
    if (mean.is_none()) return;
    values_.resize(call.x.channels);
    mean_.emplace(mean, Label("running_mean", Role::output), call.x, true, call.arguments);
    var_.emplace(var, Label("running_var", Role::output), call.x, true, call.arguments);
    if (!batches.is_none()) {
      const Label label("num_batches_tracked", Role::output);
      batches_ = check_counter(batches, label, call.arguments);
    }
    if (!momentum && !batches_) {
      throw py::type_error("momentum: expected a number, as nothing counts the batches, got None");
    }
  }

  // Without a momentum every batch counts alike. `correction`: of the biased variance. With the
  // GIL, so that no other thread's update is lost. A batch may be skipped as a whole: its channels
  // share the count.
  void update(double correction, std::span<const double> mean,
              std::span<const double> var) noexcept {
    if (!mean_) return;
    if (skip_nonfinite_ && !(mean_->can_hold(mean, 1.0) && var_->can_hold(var, correction))) return;
    if (batches_) ++*batches_;
    const double m = momentum_ ? *momentum_ : 1 / static_cast<double>(*batches_);
    update(*mean_, mean, 1.0, m);
    update(*var_, var, correction, m);
  }

 private:
  void update(ChannelVector& running, std::span<const double> batch, double correction,
              double momentum) noexcept {
    running.source().load(values_.data(), values_.size());
    onepass::update_running(values_, batch, correction, momentum);
    running.write(values_);
  }

  std::vector<double> values_;
  std::optional<ChannelVector> mean_, var_;
  std::optional<double> momentum_;
  bool skip_nonfinite_;
  std::int64_t* batches_ = nullptr;
};

py::tuple train(py::handle x, py::handle weight, py::handle bias, py::handle running_mean,
                py::handle running_var, py::handle num_batches_tracked,
                std::optional<double> momentum, double eps, py::ssize_t axis,
                bool unbiased_running_var, bool skip_nonfinite, bool relu, py::handle residual,
                py::handle out, py::handle num_threads) {
  const int threads = resolve_num_threads(num_threads.ptr());
  Call call(x, weight, bias, axis, relu, residual);
  Running running(call, running_mean, running_var, num_batches_tracked, momentum, skip_nonfinite);
  check_has_variance(call.x, Label("x", Role::input));
  const Label out_label("out", Role::output);
  check_not_in_place(out, out_label, call.x.array, "x");
  if (call.residual) check_not_in_place(out, out_label, *call.residual, "residual");
  const py::object y = call.set_out(out, {});
  const auto channels = static_cast<py::ssize_t>(call.x.channels);
  Vector64 mean(channels), invstd(channels);
  std::vector<double> var(call.x.channels);
  const py::tuple result = py::make_tuple(y, mean, invstd);
  const auto n = static_cast<double>(call.x.outer * call.x.inner);
  const Statistics batch{mean.mutable_data(), invstd.mutable_data(), var.data()};
  call.run(Operation::train, threads,
           [&](auto& batch_norm) noexcept { batch_norm.train(eps, batch); });
  running.update(unbiased_running_var ? n / (n - 1) : 1.0, {batch.mean, var.size()}, var);
  return result;
}

py::object infer(py::handle x, py::handle mean, py::handle var, py::handle weight, py::handle bias,
                 double eps, py::ssize_t axis, bool relu, py::handle residual, py::handle out,
                 py::handle num_threads) {
  const int threads = resolve_num_threads(num_threads.ptr());
  Call call(x, weight, bias, axis, relu, residual);
  const ChannelVector means = call.statistic(mean, "mean"), vars = call.variance(var);
  py::object y = call.set_out(out, {call.x.array});
  call.infer(means.source(), vars.source(), eps, threads);
  return y;
}

// `eps`: `scale` is a variance; without it, 1 / standard deviation of the batch.
py::tuple backward(py::handle dy, py::handle x, py::handle mean, py::handle scale,
                   py::handle weight, py::handle bias, std::optional<double> eps, py::ssize_t axis,
                   bool relu, py::handle residual, py::handle out, py::handle weight_grad,
                   py::handle bias_grad, py::handle num_threads) {
  const int threads = resolve_num_threads(num_threads.ptr());
  Call call(x, weight, bias, axis, relu, residual);
  call.dy = check_like_channels(dy, Label("dy", Role::input), call.x, call.arguments);
  std::vector<double> means = call.statistic(mean, eps ? "mean" : "saved_mean").values();
  std::vector<double> invstds =
      (eps ? call.variance(scale) : call.statistic(scale, "saved_invstd")).values();
  if (eps) batch_norm_kernels->invert_deviation(invstds.data(), invstds.size(), *eps);
  const py::object weight_result = call.vector_out(weight_grad);
  const py::object bias_result = call.vector_out(bias_grad);
  ChannelVector dweights(weight_result, Label("weight_grad", Role::output), call.x, false,
                         call.arguments);
  ChannelVector dbiases(bias_result, Label("bias_grad", Role::output), call.x, false,
                        call.arguments);
  py::list results;
  results.append(call.set_out(out, {call.x.array, *call.dy}));
  results.append(weight_result);
  results.append(bias_result);
  if (call.residual) {
    call.dresidual = new_like(call.x);
    results.append(*call.dresidual);
  }
  const py::tuple result(results);
  std::vector<double> dweight(call.x.channels), dbias(call.x.channels);
  call.run(Operation::backward, threads, [&](auto& batch_norm) noexcept {
    const Statistics statistics{means.data(), invstds.data()};
    const Gradients gradients{dweight.data(), dbias.data()};
    if (eps) {
      batch_norm.infer_backward(statistics, gradients);
    } else {
      batch_norm.backward(statistics, gradients);
    }
  });
  dweights.write(dweight);
  dbiases.write(dbias);
  return result;
}

}  // namespace

void bind_batch_norm(py::module_& m, const KernelTable& kernels) {
  batch_norm_kernels = &kernels;
  m.def("batch_norm_train", &train, py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("running_mean"), py::arg("running_var"), py::arg("num_batches_tracked"),
        py::arg("momentum"), py::arg("eps"), py::arg("axis"), py::arg("unbiased_running_var"),
        py::arg("skip_nonfinite"), py::arg("relu"), py::arg("residual"), py::arg("out"),
        py::arg("num_threads"), py::call_guard<InCall>(),
        "Normalise with the batch's own statistics; return y, mean and 1 / standard deviation.");
  m.def("batch_norm_infer", &infer, py::arg("x"), py::arg("mean"), py::arg("var"),
        py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("axis"), py::arg("relu"),
        py::arg("residual"), py::arg("out"), py::arg("num_threads"), py::call_guard<InCall>(),
        "Normalise with given statistics; return y.");
  m.def("batch_norm_backward", &backward, py::arg("dy"), py::arg("x"), py::arg("mean"),
        py::arg("scale"), py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("axis"),
        py::arg("relu"), py::arg("residual"), py::arg("out"), py::arg("weight_grad"),
        py::arg("bias_grad"), py::arg("num_threads"), py::call_guard<InCall>(),
        "Return dx, dweight, dbias and, with a residual, its gradient.");
}

}  // namespace onepass::bindings
