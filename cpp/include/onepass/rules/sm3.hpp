// SM3 (Anil et al., 2019), as optax has it: Adagrad whose sums of squares are bounded by a number
// for each place along every axis. The same algorithm in NumPy: python/onepass/optim/sm3.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool factored>
struct SM3 {
  static constexpr State states[] = {{.name = "accumulators",
                                      .has_sign = false,
                                      .in_full = true,
                                      .shape = factored ? Shape::axes : Shape::param},
                                     {.name = "exp_avg"}};

  struct Hyper {
    double lr = 0.1, momentum = 0.9, eps = 1e-8;
  };
  static constexpr const char* hyper[] = {"lr", "momentum", "eps"};

  static SM3 at(double, const Hyper& h) noexcept {
    return {.momentum = T(h.momentum),
            .one_minus_momentum = T(1 - h.momentum),
            .eps = T(h.eps),
            .lr = T(h.lr)};
  }

  static constexpr const char* scalars[] = {"momentum", "one_minus_momentum", "eps", "lr"};
  T momentum, one_minus_momentum, eps, lr;

  void operator()(T& param, T grad, T& bound, T& exp_avg) const noexcept {
    bound = grad * grad + bound;
    const T normed = grad / std::sqrt(bound + eps);
    // Nothing has moved yet where the bound is 0: with an epsilon of 0 that would be 0 / 0.
    const T update = bound == 0 ? T(0) : normed;
    exp_avg = momentum * exp_avg + one_minus_momentum * update;
    param -= lr * exp_avg;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
