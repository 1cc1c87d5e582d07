// LAMB (You et al., 2020): Adam whose step is scaled by the ratio of two norms, for each tensor.
// The same algorithm in NumPy: python/onepass/optim/lamb.py
#pragma once

#include <algorithm>
#include <limits>

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct LAMB {
  static constexpr State states[] = {{"exp_avg"}, {"exp_avg_sq", true, false}};

  struct Hyper {
    double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-6, weight_decay = 0.01;
    double trust_clip = 0;  // flag
  };
  static constexpr const char* hyper[] = {"lr",  "beta1",        "beta2",
                                          "eps", "weight_decay", "trust_clip"};

  static LAMB at(double step, const Hyper& h) noexcept {
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .beta2 = T(h.beta2),
            .one_minus_beta2 = T(1 - h.beta2),
            .inv_bias1 = T(1 / (1 - std::pow(h.beta1, step))),
            .inv_bias2 = T(1 / (1 - std::pow(h.beta2, step))),
            .eps = T(h.eps),
            .weight_decay = T(h.weight_decay),
            .max_ratio = h.trust_clip != 0 ? T(1) : std::numeric_limits<T>::infinity(),
            .step_size = T(h.lr)};
  }

  static constexpr const char* scalars[] = {
      "beta1", "one_minus_beta1", "beta2",     "one_minus_beta2", "inv_bias1", "inv_bias2",
      "eps",   "weight_decay",    "max_ratio", "step_size"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, inv_bias1, inv_bias2, eps, weight_decay;
  T max_ratio, step_size;

  T update(T param, T grad, T& exp_avg, T& exp_avg_sq) const noexcept {
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad;
    return exp_avg * inv_bias1 / (std::sqrt(exp_avg_sq * inv_bias2) + eps) + weight_decay * param;
  }

  // The squares of the parameter and of its update.
  static constexpr std::size_t n_sums = 2;
  void measure(T param, T grad, T exp_avg, T exp_avg_sq, double& param_sq,
               double& update_sq) const noexcept {
    param_sq += square(param);
    update_sq += square(update(param, grad, exp_avg, exp_avg_sq));
  }
  // A parameter of zeros would never move, so its ratio is 1.
  void weigh(const double* sums, double) noexcept {
    const bool is_zero = !(sums[0] > 0 && sums[1] > 0);
    const double ratio = is_zero ? 1 : std::sqrt(sums[0]) / std::sqrt(sums[1]);
    step_size *= std::min(ratio, max_ratio);
  }

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq) const noexcept {
    param -= step_size * update(param, grad, exp_avg, exp_avg_sq);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
