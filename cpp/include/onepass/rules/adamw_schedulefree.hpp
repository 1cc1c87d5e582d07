// Schedule-free AdamW (Defazio et al., 2024), as its authors' package has it; rectified as RAdam
// is, it is their RAdamScheduleFree. The decay is part of the step, and taken at the weights y. The
// same algorithm in NumPy: python/onepass/optim/adamw_schedulefree.py
#pragma once

#include "onepass/rectification.hpp"
#include "onepass/rule.hpp"
#include "onepass/schedulefree.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct AdamWScheduleFree {
  static constexpr bool full_weights = true;
  static constexpr State states[] = {{.name = "z", .in_full = true, .has_weights = true},
                                     {.name = "exp_avg_sq", .has_sign = false}};

  using Memory = ScheduleFreeMemory;
  static constexpr auto& memory = schedule_free_memory;

  struct Hyper {
    double lr = 2.5e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
    double warmup_steps = 0, r = 0, weight_lr_power = 2;
    double rectify = 0, silent_sgd_phase = 1;  // flags
  };
  static constexpr const char* hyper[] = {
      "lr",           "beta1", "beta2",           "eps",     "weight_decay",
      "warmup_steps", "r",     "weight_lr_power", "rectify", "silent_sgd_phase"};

  static AdamWScheduleFree at(double step, const Hyper& h, Memory& past) noexcept {
    double lr = step < h.warmup_steps ? h.lr * (step / h.warmup_steps) : h.lr;
    bool divides = true;
    if (h.rectify != 0) {
      const Rectification found = rectification(h.beta2, step);
      divides = found.length > 4;
      lr *= divides ? found.factor : h.silent_sgd_phase != 0 ? 0 : 1;
    }
    const double share = share_in_average(step, lr, h.r, h.weight_lr_power, past);
    return {.beta2 = T(h.beta2),
            .one_minus_beta2 = T(1 - h.beta2),
            .inv_bias2 = T(1 / (1 - std::pow(h.beta2, step))),
            .divides = T(divides),
            .eps = T(h.eps),
            .weight_decay = T(h.weight_decay),
            .move = ScheduleFreeStep<T>::at(step, lr, h.beta1, share)};
  }

  static constexpr const char* scalars[] = {
      "beta2",    "one_minus_beta2", "inv_bias2", "divides", "eps",     "weight_decay",
      "is_first", "share",           "rest",      "lr",      "param_lr"};
  T beta2, one_minus_beta2, inv_bias2, divides, eps, weight_decay;
  ScheduleFreeStep<T> move;

  void operator()(T& param, T grad, T& z, T& exp_avg_sq) const noexcept {
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad;
    const T normed = grad / (divides > 0 ? std::sqrt(exp_avg_sq * inv_bias2) + eps : T(1));
    move(param, z, normed + weight_decay * param);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
