// AdEMAMix (Pagliardini et al., 2024): Adam with a second, slow average, which is not corrected.
// The same algorithm in NumPy: python/onepass/optim/ademamix.py
#pragma once

#include <cmath>

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct AdEMAMix {
  static constexpr State states[] = {
      {"exp_avg_fast"}, {"exp_avg_slow"}, {"exp_avg_sq", true, false}};

  struct Hyper {
    double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, beta3 = 0.9999, alpha = 2, eps = 1e-8;
    double alpha_warmup = 0, beta3_warmup = 0;  // in steps
  };
  static constexpr const char* hyper[] = {"lr",    "beta1", "beta2",        "beta3",
                                          "alpha", "eps",   "alpha_warmup", "beta3_warmup"};

  static AdEMAMix at(double step, const Hyper& h) noexcept {
    const double alpha = step < h.alpha_warmup ? h.alpha * step / h.alpha_warmup : h.alpha;
    const double beta3 =
        step < h.beta3_warmup ? between(h.beta1, h.beta3, step / h.beta3_warmup) : h.beta3;
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .beta2 = T(h.beta2),
            .one_minus_beta2 = T(1 - h.beta2),
            .beta3 = T(beta3),
            .one_minus_beta3 = T(1 - beta3),
            .fast_size = T(h.lr / (1 - std::pow(h.beta1, step))),
            .slow_size = T(h.lr * alpha),
            .inv_bias2 = T(1 / (1 - std::pow(h.beta2, step))),
            .eps = T(h.eps)};
  }

  // The decay whose half-life is that much of the way from one decay's to another's.
  static double between(double beta, double final, double progress) noexcept {
    const double rate = (1 - progress) * inverse_log(beta) + progress * inverse_log(final);
    return rate == 0 ? 0 : std::exp(1 / rate);
  }
  static double inverse_log(double beta) noexcept { return beta == 0 ? 0 : 1 / std::log(beta); }

  static constexpr const char* scalars[] = {
      "beta1",           "one_minus_beta1", "beta2",     "one_minus_beta2", "beta3",
      "one_minus_beta3", "fast_size",       "slow_size", "inv_bias2",       "eps"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3;
  T fast_size, slow_size, inv_bias2, eps;

  void operator()(T& param, T grad, T& exp_avg_fast, T& exp_avg_slow,
                  T& exp_avg_sq) const noexcept {
    exp_avg_fast = beta1 * exp_avg_fast + one_minus_beta1 * grad;
    exp_avg_slow = beta3 * exp_avg_slow + one_minus_beta3 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad;
    param -= (fast_size * exp_avg_fast + slow_size * exp_avg_slow) /
             (std::sqrt(exp_avg_sq * inv_bias2) + eps);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
