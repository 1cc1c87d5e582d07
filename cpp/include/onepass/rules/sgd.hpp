// Gradient descent with the three momentum forms, which differ only in two scalars:
//   heavy_ball  gain = 1 - dampening  step_size = lr
//   ema         gain = 1 - momentum   step_size = lr
//   sutskever   gain = lr             step_size = 1
// The same algorithm in NumPy: python/onepass/optim/sgd.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool with_momentum, bool nesterov>
struct SGD {
  static constexpr State states[] = {{"momentum_buffer", with_momentum}};
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
