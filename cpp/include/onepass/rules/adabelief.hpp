// AdaBelief (Zhuang et al., 2020), with the epsilon that accumulates in the state, as its authors'
// code has it. The same algorithm in NumPy: python/onepass/optim/adabelief.py
#pragma once

#include "onepass/rectification.hpp"
#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct AdaBelief {
  static constexpr State states[] = {{"exp_avg"}, {"exp_avg_var", true, false}};

  struct Hyper {
    double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-16, eps_root = 1e-16;
    double rectify = 1;  // a flag
  };
  static constexpr const char* hyper[] = {"lr", "beta1", "beta2", "eps", "eps_root", "rectify"};

  static AdaBelief at(double step, const Hyper& h) noexcept {
    const double bias1 = 1 - std::pow(h.beta1, step), bias2 = 1 - std::pow(h.beta2, step);
    double factor = 1, inv_bias2 = 1 / bias2;
    bool divides = true;
    if (h.rectify != 0) {
      const Rectification found = rectification(h.beta2, step);
      divides = found.length >= 5;
      factor = divides ? found.factor * std::sqrt(bias2) : 1;
      inv_bias2 = 1;
    }
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .beta2 = T(h.beta2),
            .one_minus_beta2 = T(1 - h.beta2),
            .step_size = T(h.lr * factor / bias1),
            .inv_bias2 = T(inv_bias2),
            .divides = T(divides),
            .eps = T(h.eps),
            .eps_root = T(h.eps_root)};
  }

  static constexpr const char* scalars[] = {
      "beta1",     "one_minus_beta1", "beta2", "one_minus_beta2", "step_size",
      "inv_bias2", "divides",         "eps",   "eps_root"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inv_bias2, divides, eps, eps_root;

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_var) const noexcept {
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    const T surprise = grad - exp_avg;
    exp_avg_var = beta2 * exp_avg_var + one_minus_beta2 * surprise * surprise + eps_root;
    param -= step_size * exp_avg / (divides > 0 ? std::sqrt(exp_avg_var * inv_bias2) + eps : T(1));
  }
};

}  // namespace onepass::inline ONEPASS_ISA
