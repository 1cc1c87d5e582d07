// Gradient descent with the three momentum forms, which differ only in two scalars:
//   heavy_ball  gain = 1 - dampening  step_size = lr (no dampening in the first step)
//   ema         gain = 1 - momentum   step_size = lr
//   sutskever   gain = lr             step_size = 1
// The same algorithm in NumPy: python/onepass/optim/sgd.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool with_momentum, bool nesterov>
struct SGD {
  static constexpr State states[] = {{"momentum_buffer", with_momentum}};

  enum Form { heavy_ball, sutskever, ema };  // of the momentum
  struct Hyper {
    double lr = 1e-3, momentum = 0, dampening = 0, form = heavy_ball;
  };
  static constexpr const char* hyper[] = {"lr", "momentum", "dampening", "form"};

  static SGD at(double step, const Hyper& h) noexcept {
    const int form = static_cast<int>(h.form);
    double gain = step == 1 || h.momentum == 0 ? 1 : 1 - h.dampening, step_size = h.lr;
    if (form == sutskever) {
      gain = h.lr;
      step_size = 1;
    } else if (form == ema) {
      gain = 1 - h.momentum;
    }
    return {.momentum = T(h.momentum), .gain = T(gain), .step_size = T(step_size)};
  }

  static constexpr const char* scalars[] = {"momentum", "gain", "step_size"};
  T momentum, gain, step_size;

  void operator()(T& param, T grad, [[maybe_unused]] T& momentum_buffer) const noexcept {
    const T update = gain * grad;
    T direction = update;
    if constexpr (with_momentum) {
      momentum_buffer = momentum * momentum_buffer + update;
      direction = nesterov ? momentum * momentum_buffer + update : momentum_buffer;
    }
    param -= step_size * direction;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
