// AdamW (Loshchilov and Hutter, 2019): the parameter shrinks by 1 - lr * weight_decay, then Adam
// steps, in PyTorch's order. The same algorithm in NumPy: python/onepass/optim/adamw.py
#pragma once

#include "onepass/rules/adam.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool amsgrad>
struct AdamW {
  static constexpr const auto& states = Adam<T, amsgrad>::states;
  static constexpr const char* scalars[] = {
      "beta1",     "one_minus_beta1", "beta2",    "one_minus_beta2", "step_size",
      "inv_bias2", "eps",             "eps_root", "shrink"};
  Adam<T, amsgrad> adam;
  T shrink;

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq, T& max_exp_avg_sq) const noexcept {
    param *= shrink;
    adam(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
