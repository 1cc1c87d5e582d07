// Averaged SGD (Polyak and Juditsky, 1992), as PyTorch has it.
// The same algorithm in NumPy: python/onepass/optim/asgd.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct ASGD {
  static constexpr State states[] = {{.name = "ax", .in_full = true, .has_weights = true}};

  struct Hyper {
    double lr = 1e-2, lambd = 1e-4, alpha = 0.75, t0 = 1e6;
  };
  static constexpr const char* hyper[] = {"lr", "lambd", "alpha", "t0"};

  static ASGD at(double step, const Hyper& h) noexcept {
    const double eta = h.lr / std::pow(1 + h.lambd * h.lr * (step - 1), h.alpha);
    const double averaged = step - 1 - h.t0;
    return {
        .shrink = T(1 - h.lambd * eta), .eta = T(eta), .mu = T(averaged > 1 ? 1 / averaged : 1)};
  }

  static constexpr const char* scalars[] = {"shrink", "eta", "mu"};
  T shrink, eta, mu;

  void operator()(T& param, T grad, T& ax) const noexcept {
    param = shrink * param - eta * grad;
    ax = mu == 1 ? param : ax + mu * (param - ax);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
