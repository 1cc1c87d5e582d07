// RAdam (Liu et al., 2020), with PyTorch's threshold and epsilon.
// The same algorithm in NumPy: python/onepass/optim/radam.py
#pragma once

#include "onepass/rectification.hpp"
#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct RAdam {
  static constexpr State states[] = {{"exp_avg"}, {"exp_avg_sq", true, false}};

  struct Hyper {
    double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  };
  static constexpr const char* hyper[] = {"lr", "beta1", "beta2", "eps"};

  static RAdam at(double step, const Hyper& h) noexcept {
    const double bias1 = 1 - std::pow(h.beta1, step), bias2 = 1 - std::pow(h.beta2, step);
    const Rectification found = rectification(h.beta2, step);
    const bool rectified = found.length > 5;
    const double factor = rectified ? found.factor * std::sqrt(bias2) : 1;
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .beta2 = T(h.beta2),
            .one_minus_beta2 = T(1 - h.beta2),
            .step_size = T(h.lr * factor / bias1),
            .rectified = T(rectified),
            .eps = T(h.eps)};
  }

  static constexpr const char* scalars[] = {
      "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "step_size", "rectified", "eps"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, rectified, eps;

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq) const noexcept {
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad;
    param -= step_size * exp_avg / (rectified > 0 ? std::sqrt(exp_avg_sq) + eps : T(1));
  }
};

}  // namespace onepass::inline ONEPASS_ISA
