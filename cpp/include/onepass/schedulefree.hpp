// The average of schedule-free learning (Defazio et al., 2024), whichever step it averages. The
// same in NumPy: python/onepass/optim/_schedulefree.py
#pragma once

#include <algorithm>
#include <cmath>

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

struct ScheduleFreeMemory {
  double weight_sum = 0;  // of all steps' points in the average
  double lr_max = -1;     // the largest learning rate so far
};
inline constexpr const char* schedule_free_memory[] = {"weight_sum", "lr_max"};

// The share of a step's point in the average; none where all weights so far are 0.
inline double share_in_average(double step, double lr, double r, double weight_lr_power,
                               ScheduleFreeMemory& memory) noexcept {
  memory.lr_max = std::max(memory.lr_max, lr);
  const double weight = std::pow(step, r) * std::pow(memory.lr_max, weight_lr_power);
  memory.weight_sum += weight;
  return memory.weight_sum > 0 ? weight / memory.weight_sum : 0;
}

// The weights y, where gradients are taken, and z, which descends, after a step along `update`.
template <class T>
struct ScheduleFreeStep {
  T is_first;  // z begins as the weights of the first step
  T share, rest, lr, param_lr;

  static ScheduleFreeStep at(double step, double lr, double momentum, double share) noexcept {
    return {.is_first = T(step == 1),
            .share = T(share),
            .rest = T(1 - share),
            .lr = T(lr),
            .param_lr = T(lr * (1 - momentum * (1 - share)))};
  }
  void operator()(T& param, T& z, T update) const noexcept {
    const T before = is_first > 0 ? param : z;
    const T way = before - param;
    const T nearer = share < rest ? param + share * way : before - rest * way;
    param = nearer - param_lr * update;
    z = before - lr * update;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
