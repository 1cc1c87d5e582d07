// AdaGrad (Duchi, Hazan and Singer, 2011).
// The same algorithm in NumPy: python/onepass/optim/adagrad.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct Adagrad {
  static constexpr State states[] = {{"sum", true, false, "initial_accumulator_value"}};

  struct Hyper {
    double lr = 1e-2, lr_decay = 0, initial_accumulator_value = 0, eps = 1e-10, eps_root = 0;
  };
  static constexpr const char* hyper[] = {"lr", "lr_decay", "initial_accumulator_value", "eps",
                                          "eps_root"};

  static Adagrad at(double step, const Hyper& h) noexcept {
    return {.step_size = T(h.lr / (1 + (step - 1) * h.lr_decay)),
            .eps = T(h.eps),
            .eps_root = T(h.eps_root)};
  }

  static constexpr const char* scalars[] = {"step_size", "eps", "eps_root"};
  T step_size, eps, eps_root;

  void operator()(T& param, T grad, T& sum) const noexcept {
    sum += grad * grad;
    param -= step_size * grad / (std::sqrt(sum + eps_root) + eps);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
