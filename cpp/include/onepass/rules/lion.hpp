// Lion (Chen et al., 2023). The option `cautious` leaves elements whose step the gradient disagrees
// with where they are (Liang et al., 2024). The same algorithm in NumPy:
// python/onepass/optim/lion.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool cautious = false>
struct Lion {
  static constexpr State states[] = {{"exp_avg"}};

  struct Hyper {
    double lr = 1e-4, beta1 = 0.9, beta2 = 0.99;
  };
  static constexpr const char* hyper[] = {"lr", "beta1", "beta2"};

  static Lion at(double, const Hyper& h) noexcept {
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .beta2 = T(h.beta2),
            .one_minus_beta2 = T(1 - h.beta2),
            .lr = T(h.lr),
            .mask = T(1)};
  }

  static constexpr const char* scalars[] = {
      "beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "lr", "mask"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, lr, mask;

  static constexpr std::size_t n_sums = cautious ? 1 : 0;
  void measure(T, T grad, T exp_avg, double& agreeing) const noexcept {
    agreeing += agree(beta1 * exp_avg + one_minus_beta1 * grad, grad);
  }
  void weigh(const double* sums, double size) noexcept { mask = cautious_scale(sums[0], size); }

  void operator()(T& param, T grad, T& exp_avg) const noexcept {
    const T average = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg = beta2 * exp_avg + one_minus_beta2 * grad;
    T direction = sign(average);
    if constexpr (cautious) direction *= mask * agree(average, grad);
    param -= lr * direction;
  }
};

}  // namespace onepass::inline ONEPASS_ISA
