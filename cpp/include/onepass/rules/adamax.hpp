// AdaMax (Kingma and Ba, 2015, section 7.1), with PyTorch's epsilon, which is inside the maximum.
// The same algorithm in NumPy: python/onepass/optim/adamax.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct Adamax {
  static constexpr State states[] = {{"exp_avg"}, {"exp_inf", true, false}};

  struct Hyper {
    double lr = 2e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  };
  static constexpr const char* hyper[] = {"lr", "beta1", "beta2", "eps"};

  static Adamax at(double step, const Hyper& h) noexcept {
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .beta2 = T(h.beta2),
            .step_size = T(h.lr / (1 - std::pow(h.beta1, step))),
            .eps = T(h.eps)};
  }

  static constexpr const char* scalars[] = {"beta1", "one_minus_beta1", "beta2", "step_size",
                                            "eps"};
  T beta1, one_minus_beta1, beta2, step_size, eps;

  void operator()(T& param, T grad, T& exp_avg, T& exp_inf) const noexcept {
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_inf = maximum(beta2 * exp_inf, std::fabs(grad) + eps);
    param -= step_size * exp_avg / exp_inf;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
