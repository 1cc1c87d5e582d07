// AdaDelta (Zeiler, 2012). The same algorithm in NumPy: python/onepass/optim/adadelta.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct Adadelta {
  static constexpr State states[] = {{"square_avg", true, false}, {"acc_delta", true, false}};

  struct Hyper {
    double lr = 1, rho = 0.9, eps = 1e-6;
  };
  static constexpr const char* hyper[] = {"lr", "rho", "eps"};

  static Adadelta at(double, const Hyper& h) noexcept {
    return {.rho = T(h.rho), .one_minus_rho = T(1 - h.rho), .lr = T(h.lr), .eps = T(h.eps)};
  }

  static constexpr const char* scalars[] = {"rho", "one_minus_rho", "lr", "eps"};
  T rho, one_minus_rho, lr, eps;

  void operator()(T& param, T grad, T& square_avg, T& acc_delta) const noexcept {
    square_avg = rho * square_avg + one_minus_rho * grad * grad;
    const T delta = std::sqrt(acc_delta + eps) / std::sqrt(square_avg + eps) * grad;
    acc_delta = rho * acc_delta + one_minus_rho * delta * delta;
    param -= lr * delta;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
