// NAdam (Dozat, 2016), as PyTorch has it; Keras's, optax's and AlgoPerf's are settings of it.
// The same algorithm in NumPy: python/onepass/optim/nadam.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct NAdam {
  static constexpr State states[] = {{"exp_avg"}, {"exp_avg_sq", true, false}};

  struct Memory {
    double mu_product = 1;  // of the momenta of all steps
  };
  static constexpr const char* memory[] = {"mu_product"};

  struct Hyper {
    double lr = 2e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, momentum_decay = 4e-3;
    double correct_ahead = 1;  // flag
  };
  static constexpr const char* hyper[] = {"lr",  "beta1",          "beta2",
                                          "eps", "momentum_decay", "correct_ahead"};

  static NAdam at(double step, const Hyper& h, Memory& past) noexcept {
    const auto momentum = [&](double t) {
      return h.beta1 * (1 - 0.5 * std::pow(0.96, t * h.momentum_decay));
    };
    const double now = momentum(step), next = momentum(step + 1);
    const double product = past.mu_product *= now;
    const double ahead = 1 - (h.correct_ahead != 0 ? product * next : product);
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .beta2 = T(h.beta2),
            .one_minus_beta2 = T(1 - h.beta2),
            .grad_rate = T(h.lr * (1 - now) / (1 - product)),
            .momentum_rate = T(h.lr * next / ahead),
            .inv_bias2 = T(1 / (1 - std::pow(h.beta2, step))),
            .eps = T(h.eps)};
  }

  static constexpr const char* scalars[] = {
      "beta1",     "one_minus_beta1", "beta2",     "one_minus_beta2",
      "grad_rate", "momentum_rate",   "inv_bias2", "eps"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, grad_rate, momentum_rate, inv_bias2, eps;

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq) const noexcept {
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad;
    const T update = grad_rate * grad + momentum_rate * exp_avg;
    param -= update / (std::sqrt(exp_avg_sq * inv_bias2) + eps);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
