// NovoGrad (Ginsburg et al., 2019): momentum over gradients that are divided by the average of
// their norm, one number for each tensor. The same algorithm in NumPy:
// python/onepass/optim/novograd.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct NovoGrad {
  static constexpr State states[] = {{"exp_avg"}};

  struct Memory {
    double exp_avg_sq = 0;  // of the gradient's norm
  };
  static constexpr const char* memory[] = {"exp_avg_sq"};

  struct Hyper {
    double lr = 1e-3, beta1 = 0.95, beta2 = 0.98, eps = 1e-8, weight_decay = 0;
    double grad_averaging = 0;  // flag
  };
  static constexpr const char* hyper[] = {"lr",  "beta1",        "beta2",
                                          "eps", "weight_decay", "grad_averaging"};

  static NovoGrad at(double step, const Hyper& h, Memory&) noexcept {
    return {.beta1 = T(h.beta1),
            .gain = T(h.grad_averaging != 0 ? 1 - h.beta1 : 1),
            .beta2 = T(h.beta2),
            .is_first = T(step == 1),
            .eps = T(h.eps),
            .weight_decay = T(h.weight_decay),
            .lr = T(h.lr),
            .inv_root = T(1)};
  }

  static constexpr const char* scalars[] = {"beta1", "gain",         "beta2", "is_first",
                                            "eps",   "weight_decay", "lr",    "inv_root"};
  T beta1, gain, beta2, is_first, eps, weight_decay, lr, inv_root;

  static constexpr std::size_t n_sums = 1;
  void measure(T, T grad, T, double& grad_sq) const noexcept { grad_sq += square(grad); }
  void weigh(const double* sums, double, Memory& average) noexcept {
    double& norm_sq = average.exp_avg_sq;
    norm_sq = is_first > 0 ? sums[0] : beta2 * norm_sq + (1 - beta2) * sums[0];
    inv_root = 1 / (std::sqrt(norm_sq) + eps);
  }

  void operator()(T& param, T grad, T& exp_avg) const noexcept {
    exp_avg = beta1 * exp_avg + gain * (grad * inv_root + weight_decay * param);
    param -= lr * exp_avg;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
