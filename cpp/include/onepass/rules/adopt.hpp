// ADOPT (Taniguchi et al., 2024), with the clipping of its authors' code.
// The first step only begins the average square; it is the same formula with other numbers.
// The same algorithm in NumPy: python/onepass/optim/adopt.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct ADOPT {
  static constexpr State states[] = {{"exp_avg"}, {"exp_avg_sq", true, false}};

  struct Hyper {
    double lr = 1e-3, beta1 = 0.9, beta2 = 0.9999, eps = 1e-6, clip_exponent = 0.25;
  };
  static constexpr const char* hyper[] = {"lr", "beta1", "beta2", "eps", "clip_exponent"};

  static ADOPT at(double step, const Hyper& h) noexcept {
    const bool first = step == 1;
    return {.beta1 = T(first ? 1 : h.beta1),
            .one_minus_beta1 = T(first ? 0 : 1 - h.beta1),
            .beta2 = T(first ? 0 : h.beta2),
            .one_minus_beta2 = T(first ? 1 : 1 - h.beta2),
            .lr = T(h.lr),
            .eps = T(h.eps),
            .limit = T(first ? 0 : std::pow(step - 1, h.clip_exponent))};
  }

  static constexpr const char* scalars[] = {
      "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "lr", "eps", "limit"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, lr, eps, limit;

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq) const noexcept {
    const T normed = grad / maximum(std::sqrt(exp_avg_sq), eps);  // the square before this gradient
    const T clipped = normed > limit ? limit : normed < -limit ? -limit : normed;
    exp_avg = beta1 * exp_avg + one_minus_beta1 * clipped;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad;
    param -= lr * exp_avg;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
