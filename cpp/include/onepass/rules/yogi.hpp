// Yogi (Zaheer et al., 2018), with both states begun at one number, as in optax.
// The same algorithm in NumPy: python/onepass/optim/yogi.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct Yogi {
  static constexpr State states[] = {{"exp_avg", true, true, "initial_accumulator_value"},
                                     {"exp_avg_sq", true, false, "initial_accumulator_value"}};

  struct Hyper {
    double lr = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-3, initial_accumulator_value = 1e-6;
  };
  static constexpr const char* hyper[] = {"lr", "beta1", "beta2", "eps",
                                          "initial_accumulator_value"};

  static Yogi at(double step, const Hyper& h) noexcept {
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .one_minus_beta2 = T(1 - h.beta2),
            .step_size = T(h.lr / (1 - std::pow(h.beta1, step))),
            .inv_bias2 = T(1 / (1 - std::pow(h.beta2, step))),
            .eps = T(h.eps)};
  }

  static constexpr const char* scalars[] = {"beta1",     "one_minus_beta1", "one_minus_beta2",
                                            "step_size", "inv_bias2",       "eps"};
  T beta1, one_minus_beta1, one_minus_beta2, step_size, inv_bias2, eps;

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq) const noexcept {
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    const T square = grad * grad;
    exp_avg_sq -= one_minus_beta2 * sign(exp_avg_sq - square) * square;
    param -= step_size * exp_avg / (std::sqrt(exp_avg_sq * inv_bias2) + eps);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
