// Schedule-free SGD (Defazio et al., 2024), as its authors' package has it.
// The same algorithm in NumPy: python/onepass/optim/sgd_schedulefree.py
#pragma once

#include "onepass/rule.hpp"
#include "onepass/schedulefree.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct SGDScheduleFree {
  static constexpr bool full_weights = true;
  static constexpr State states[] = {{.name = "z", .in_full = true, .has_weights = true}};

  using Memory = ScheduleFreeMemory;
  static constexpr auto& memory = schedule_free_memory;

  struct Hyper {
    double lr = 1, momentum = 0.9, warmup_steps = 0, r = 0, weight_lr_power = 2;
  };
  static constexpr const char* hyper[] = {"lr", "momentum", "warmup_steps", "r", "weight_lr_power"};

  static SGDScheduleFree at(double step, const Hyper& h, Memory& past) noexcept {
    const double lr = step < h.warmup_steps ? h.lr * (step / h.warmup_steps) : h.lr;
    const double share = share_in_average(step, lr, h.r, h.weight_lr_power, past);
    return {.move = ScheduleFreeStep<T>::at(step, lr, h.momentum, share)};
  }

  static constexpr const char* scalars[] = {"is_first", "share", "rest", "lr", "param_lr"};
  ScheduleFreeStep<T> move;

  void operator()(T& param, T grad, T& z) const noexcept { move(param, z, grad); }
};

}  // namespace onepass::inline ONEPASS_ISA
