// LARS (You, Gitman and Ginsburg, 2017), as timm has it: SGD whose gradient is scaled by the ratio
// of two norms, for each tensor. The same algorithm in NumPy: python/onepass/optim/lars.py
#pragma once

#include <algorithm>

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool with_momentum>
struct LARS {
  static constexpr State states[] = {{"momentum_buffer", with_momentum}};

  struct Hyper {
    double lr = 1, momentum = 0, dampening = 0, weight_decay = 0;
    double nesterov = 0;        // flag
    double trust_coeff = 1e-3;  // NaN: the group is left to SGD
    double eps = 1e-8;
    double trust_clip = 0, always_adapt = 0;  // flags
  };
  static constexpr const char* hyper[] = {"lr",           "momentum",   "dampening",
                                          "weight_decay", "nesterov",   "trust_coeff",
                                          "eps",          "trust_clip", "always_adapt"};

  static LARS at(double step, const Hyper& h) noexcept {
    const bool has_coeff = h.trust_coeff == h.trust_coeff;
    return {.momentum = T(h.momentum),
            .gain = T(step == 1 || h.momentum == 0 ? 1 : 1 - h.dampening),
            .nesterov = T(h.nesterov),
            .weight_decay = T(h.weight_decay),
            .trust_coeff = T(has_coeff ? h.trust_coeff : 0),
            .eps = T(h.eps),
            .adapts = T(has_coeff && (h.weight_decay != 0 || h.always_adapt != 0)),
            .clips = T(h.trust_clip),
            .lr = T(h.lr),
            .ratio = T(1)};
  }

  static constexpr const char* scalars[] = {"momentum",    "gain", "nesterov", "weight_decay",
                                            "trust_coeff", "eps",  "adapts",   "clips",
                                            "lr",          "ratio"};
  T momentum, gain, nesterov, weight_decay, trust_coeff, eps, adapts, clips, lr, ratio;

  // The squares of the parameter and of the gradient.
  static constexpr std::size_t n_sums = 2;
  void measure(T param, T grad, T, double& param_sq, double& grad_sq) const noexcept {
    param_sq += square(param);
    grad_sq += square(grad);
  }
  void weigh(const double* sums, double) noexcept {
    if (adapts == 0) return;
    const double param_norm = std::sqrt(sums[0]), grad_norm = std::sqrt(sums[1]);
    ratio = param_norm > 0 && grad_norm > 0
                ? trust_coeff * param_norm / (grad_norm + param_norm * weight_decay + eps)
                : 1;
    if (clips > 0) ratio = lr > 0 ? std::min<T>(ratio / lr, 1) : 1;
  }

  void operator()(T& param, T grad, [[maybe_unused]] T& momentum_buffer) const noexcept {
    const T scaled = ratio * (grad + weight_decay * param);
    T direction = scaled;
    if constexpr (with_momentum) {
      momentum_buffer = momentum * momentum_buffer + gain * scaled;
      direction = nesterov > 0 ? scaled + momentum * momentum_buffer : momentum_buffer;
    }
    param -= lr * direction;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
