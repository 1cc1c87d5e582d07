// Adam (Kingma and Ba, 2015), AMSGrad (Reddi, Kale and Kumar, 2018) as PyTorch has it.
// Every form of the bias correction is a choice of step_size and inv_bias2 (1 where there is none).
// The same algorithm in NumPy: python/onepass/optim/adam.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool amsgrad>
struct Adam {
  static constexpr State states[] = {
      {"exp_avg"}, {"exp_avg_sq", true, false}, {"max_exp_avg_sq", amsgrad, false}};
  static constexpr const char* scalars[] = {
      "beta1",     "one_minus_beta1", "beta2", "one_minus_beta2",
      "step_size", "inv_bias2",       "eps",   "eps_root"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inv_bias2, eps, eps_root;

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq,
                  [[maybe_unused]] T& max_exp_avg_sq) const noexcept {
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad;
    T second_moment = exp_avg_sq;
    if constexpr (amsgrad) {
      second_moment = max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq);
    }
    param -= step_size * exp_avg / (std::sqrt(second_moment * inv_bias2 + eps_root) + eps);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
