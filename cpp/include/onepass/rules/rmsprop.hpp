// RMSProp (Tieleman and Hinton, 2012), centred as in Graves (2013), with PyTorch's momentum.
// The same algorithm in NumPy: python/onepass/optim/rmsprop.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool with_momentum, bool centered>
struct RMSprop {
  static constexpr State states[] = {
      {"square_avg", true, false}, {"momentum_buffer", with_momentum}, {"grad_avg", centered}};

  struct Hyper {
    double lr = 1e-2, alpha = 0.99, eps = 1e-8, momentum = 0, eps_root = 0;
  };
  static constexpr const char* hyper[] = {"lr", "alpha", "eps", "momentum", "eps_root"};

  static RMSprop at(double, const Hyper& h) noexcept {
    return {.alpha = T(h.alpha),
            .one_minus_alpha = T(1 - h.alpha),
            .momentum = T(h.momentum),
            .lr = T(h.lr),
            .eps = T(h.eps),
            .eps_root = T(h.eps_root)};
  }

  static constexpr const char* scalars[] = {"alpha", "one_minus_alpha", "momentum", "lr",
                                            "eps",   "eps_root"};
  T alpha, one_minus_alpha, momentum, lr, eps, eps_root;

  void operator()(T& param, T grad, T& square_avg, [[maybe_unused]] T& momentum_buffer,
                  [[maybe_unused]] T& grad_avg) const noexcept {
    square_avg = alpha * square_avg + one_minus_alpha * grad * grad;
    T variance = square_avg;
    if constexpr (centered) {
      grad_avg = alpha * grad_avg + one_minus_alpha * grad;
      variance = square_avg - grad_avg * grad_avg;
      variance = variance < 0 ? T(0) : variance;  // rounding; written so that a NaN stays one
    }
    const T denominator = std::sqrt(variance + eps_root) + eps;
    if constexpr (with_momentum) {
      momentum_buffer = momentum * momentum_buffer + grad / denominator;
      param -= lr * momentum_buffer;
    } else {
      param -= lr * grad / denominator;
    }
  }
};

}  // namespace onepass::inline ONEPASS_ISA
