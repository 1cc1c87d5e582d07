// Adan (Xie et al., 2022). Its decay after the step is a stage (update.hpp).
// The same algorithm in NumPy: python/onepass/optim/adan.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct Adan {
  static constexpr State states[] = {{"exp_avg"},
                                     {"exp_avg_diff"},
                                     {"exp_avg_sq", true, false},
                                     {.name = "neg_pre_grad", .in_full = true}};

  struct Hyper {
    double lr = 1e-3, beta1 = 0.98, beta2 = 0.92, beta3 = 0.99, eps = 1e-8;
  };
  static constexpr const char* hyper[] = {"lr", "beta1", "beta2", "beta3", "eps"};

  static Adan at(double step, const Hyper& h) noexcept {
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .beta2 = T(h.beta2),
            .one_minus_beta2 = T(1 - h.beta2),
            .beta3 = T(h.beta3),
            .one_minus_beta3 = T(1 - h.beta3),
            .avg_size = T(h.lr / (1 - std::pow(h.beta1, step))),
            .diff_size = T(h.lr * h.beta2 / (1 - std::pow(h.beta2, step))),
            .inv_bias3 = T(1 / (1 - std::pow(h.beta3, step))),
            .eps = T(h.eps),
            .differs = T(step > 1)};
  }

  static constexpr const char* scalars[] = {
      "beta1",           "one_minus_beta1", "beta2",     "one_minus_beta2", "beta3",
      "one_minus_beta3", "avg_size",        "diff_size", "inv_bias3",       "eps",
      "differs"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3;
  T avg_size, diff_size, inv_bias3, eps, differs;

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_diff, T& exp_avg_sq,
                  T& neg_pre_grad) const noexcept {
    const T diff = differs > 0 ? grad + neg_pre_grad : T(0);
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg_diff = beta2 * exp_avg_diff + one_minus_beta2 * diff;
    const T ahead = grad + beta2 * diff;
    exp_avg_sq = beta3 * exp_avg_sq + one_minus_beta3 * ahead * ahead;
    neg_pre_grad = -grad;
    param -=
        (avg_size * exp_avg + diff_size * exp_avg_diff) / (std::sqrt(exp_avg_sq * inv_bias3) + eps);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
