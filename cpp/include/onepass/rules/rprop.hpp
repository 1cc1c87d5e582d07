// Rprop (Riedmiller and Braun, 1993), the form that on a change of sign forgets the gradient, as
// PyTorch has it. The same algorithm in NumPy: python/onepass/optim/rprop.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct Rprop {
  static constexpr State states[] = {
      {.name = "prev", .in_full = true},
      {.name = "step_size", .has_sign = false, .start = "lr", .in_full = true}};

  struct Hyper {
    double lr = 1e-2, eta1 = 0.5, eta2 = 1.2, step_size1 = 1e-6, step_size2 = 50;
  };
  static constexpr const char* hyper[] = {"lr", "eta1", "eta2", "step_size1", "step_size2"};

  static Rprop at(double, const Hyper& h) noexcept {
    return {.shrink = T(h.eta1),
            .grow = T(h.eta2),
            .smallest = T(h.step_size1),
            .largest = T(h.step_size2)};
  }

  static constexpr const char* scalars[] = {"shrink", "grow", "smallest", "largest"};
  T shrink, grow, smallest, largest;

  void operator()(T& param, T grad, T& prev, T& step_size) const noexcept {
    const T product = grad * prev;
    const T size = step_size * (product > 0 ? grow : product < 0 ? shrink : T(1));
    step_size = size < smallest ? smallest : size > largest ? largest : size;
    prev = product < 0 ? T(0) : grad;
    param -= step_size * sign(prev);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
