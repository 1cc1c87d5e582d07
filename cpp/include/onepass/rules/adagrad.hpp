// AdaGrad (Duchi, Hazan and Singer, 2011).
// The same algorithm in NumPy: python/onepass/optim/adagrad.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct Adagrad {
  static constexpr State states[] = {{"sum", true, false}};
  static constexpr const char* scalars[] = {"step_size", "eps", "eps_root"};
  T step_size, eps, eps_root;

  void operator()(T& param, T grad, T& sum) const noexcept {
    sum += grad * grad;
    param -= step_size * grad / (std::sqrt(sum + eps_root) + eps);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
