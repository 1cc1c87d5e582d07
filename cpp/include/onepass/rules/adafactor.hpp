// Adafactor (Shazeer and Stern, 2018), as PyTorch has it: a second moment of rows and columns, and
// a step whose length is that of the weights. The same algorithm in NumPy:
// python/onepass/optim/adafactor.py
#pragma once

#include <algorithm>
#include <limits>

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool with_momentum, bool factored>
struct Adafactor {
  static constexpr State states[] = {{.name = "row_var",
                                      .used = factored,
                                      .has_sign = false,
                                      .in_full = true,
                                      .shape = factored ? Shape::rows : Shape::param},
                                     {.name = "col_var",
                                      .used = factored,
                                      .has_sign = false,
                                      .in_full = true,
                                      .shape = factored ? Shape::columns : Shape::param},
                                     {.name = "variance", .used = !factored, .has_sign = false},
                                     {.name = "exp_avg", .used = with_momentum}};

  struct Hyper {
    double lr = 1e-2, beta2_decay = -0.8;
    double eps1 = std::numeric_limits<double>::quiet_NaN();  // NaN: that of T
    double eps2 = 1e-3, d = 1, weight_decay = 0;
    double beta1 = std::numeric_limits<double>::quiet_NaN();     // NaN: no momentum
    double relative_step = 1, scale_parameter = 1, add_eps = 0;  // flags
  };
  static constexpr const char* hyper[] = {"lr",
                                          "beta2_decay",
                                          "eps1",
                                          "eps2",
                                          "d",
                                          "weight_decay",
                                          "beta1",
                                          "relative_step",
                                          "scale_parameter",
                                          "add_eps"};

  static Adafactor at(double step, const Hyper& h) noexcept {
    const double weight = std::pow(step, h.beta2_decay);
    const double beta1 = h.beta1 == h.beta1 ? h.beta1 : 0;
    return {.weight = T(weight),
            .rest = T(1 - weight),
            .eps1 = T(h.eps1),
            .adds_eps = T(h.add_eps),
            .eps2 = T(h.eps2),
            .d = T(h.d),
            .scales = T(h.scale_parameter),
            .rate = T(h.relative_step != 0 ? std::min(h.lr, 1 / std::sqrt(step)) : h.lr),
            .shrink = T(1 - h.lr * h.weight_decay),
            .beta1 = T(beta1),
            .one_minus_beta1 = T(1 - beta1),
            .step_size = T(0)};
  }

  static constexpr const char* scalars[] = {
      "weight", "rest",   "eps1",  "adds_eps",        "eps2",     "d", "scales",
      "rate",   "shrink", "beta1", "one_minus_beta1", "step_size"};
  T weight, rest, eps1, adds_eps, eps2, d, scales, rate, shrink, beta1, one_minus_beta1, step_size;

  T epsilon() const noexcept { return eps1 == eps1 ? eps1 : std::numeric_limits<T>::epsilon(); }
  T added() const noexcept { return adds_eps > 0 ? epsilon() : T(0); }
  // The roots that gradients are divided by are no less.
  T least() const noexcept { return adds_eps > 0 ? T(0) : epsilon(); }

  T moved(T number, double mean) const noexcept {
    return T(static_cast<double>(rest) * static_cast<double>(number) +
             static_cast<double>(weight) * (mean + static_cast<double>(added())));
  }
  // What a gradient is divided by is the product of two roots. Their inverses are taken here, once
  // for each row and column.
  T opened_row(T row, double mean_of_rows) const noexcept {
    const double share =
        static_cast<double>(row) / maximum(mean_of_rows, static_cast<double>(least()));
    return T(1 / std::sqrt(share));
  }
  T opened_column(T column) const noexcept { return T(1 / std::sqrt(static_cast<double>(column))); }

  T update(T grad, T row, T column, T& variance) const noexcept {
    if constexpr (factored) {
      return grad * minimum(row * column, 1 / least());
    } else {
      variance = rest * variance + weight * (grad * grad + added());
      return grad / std::sqrt(maximum(variance, least() * least()));
    }
  }

  // The squares of the parameter and of its update.
  static constexpr std::size_t n_sums = 2;
  void measure(T param, T grad, T row, T column, T variance, T, double& param_sq,
               double& update_sq) const noexcept {
    param_sq += square(param);
    update_sq += square(update(grad, row, column, variance));
  }
  void weigh(const double* sums, double size) noexcept {
    const double count = std::max(size, 1.0);
    const double scale = scales > 0 ? maximum<double>(eps2, std::sqrt(sums[0] / count)) : 1;
    step_size = scale * rate / maximum<double>(1, std::sqrt(sums[1] / count) / d);
  }

  void operator()(T& param, T grad, T row, T column, T& variance,
                  [[maybe_unused]] T& exp_avg) const noexcept {
    T step = step_size * update(grad, row, column, variance);
    if constexpr (with_momentum) {
      exp_avg = beta1 * exp_avg + one_minus_beta1 * step;
      step = exp_avg;
    }
    param = shrink * param - step;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
