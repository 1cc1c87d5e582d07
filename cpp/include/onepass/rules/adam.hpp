// Adam (Kingma and Ba, 2015), AMSGrad (Reddi, Kale and Kumar, 2018) in both forms: the largest
// average as it is, or corrected; they differ in the place of the correction. With the
// decoupled weight decay, which is a stage, it is AdamW (Loshchilov and Hutter, 2019). The option
// `cautious` leaves elements whose average and gradient disagree where they are (Liang et al.,
// 2024). Every form of the bias correction is a choice of step_size and inv_bias2 (1 where there is
// none). The same algorithm in NumPy: python/onepass/optim/adam.py
#pragma once

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool amsgrad = false, bool cautious = false>
struct Adam {
  static constexpr State states[] = {
      {"exp_avg"}, {"exp_avg_sq", true, false}, {"max_exp_avg_sq", amsgrad, false}};

  struct Hyper {
    double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, eps_root = 0;
    double bias_correction = 1, eps_hat = 0, amsgrad_corrected = 0;  // flags
  };
  static constexpr const char* hyper[] = {
      "lr", "beta1", "beta2", "eps", "eps_root", "bias_correction", "eps_hat", "amsgrad_corrected"};

  static Adam at(double step, const Hyper& h) noexcept {
    double bias1 = 1, bias2 = 1;
    if (h.bias_correction != 0) {
      bias1 = 1 - std::pow(h.beta1, step);
      bias2 = 1 - std::pow(h.beta2, step);
    }
    const bool hat = h.eps_hat != 0;
    const double inv_bias2 = hat ? 1 : 1 / bias2;
    const bool early = h.amsgrad_corrected != 0;
    return {.beta1 = T(h.beta1),
            .one_minus_beta1 = T(1 - h.beta1),
            .beta2 = T(h.beta2),
            .one_minus_beta2 = T(1 - h.beta2),
            .step_size = T(hat ? h.lr * std::sqrt(bias2) / bias1 : h.lr / bias1),
            .early_inv_bias2 = T(early ? inv_bias2 : 1),
            .inv_bias2 = T(early ? 1 : inv_bias2),
            .eps = T(h.eps),
            .eps_root = T(h.eps_root),
            .mask = T(1)};
  }

  static constexpr const char* scalars[] = {
      "beta1",           "one_minus_beta1", "beta2", "one_minus_beta2", "step_size",
      "early_inv_bias2", "inv_bias2",       "eps",   "eps_root",        "mask"};
  T beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, early_inv_bias2, inv_bias2;
  T eps, eps_root, mask;

  static constexpr std::size_t n_sums = cautious ? 1 : 0;
  void measure(T, T grad, T exp_avg, T, T, double& agreeing) const noexcept {
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    agreeing += agree(exp_avg, grad);
  }
  void weigh(const double* sums, double size) noexcept { mask = cautious_scale(sums[0], size); }

  void operator()(T& param, T grad, T& exp_avg, T& exp_avg_sq,
                  [[maybe_unused]] T& max_exp_avg_sq) const noexcept {
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * grad * grad;
    T second_moment = exp_avg_sq;
    if constexpr (amsgrad) {
      second_moment = max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq * early_inv_bias2);
    }
    T average = exp_avg;
    if constexpr (cautious) average *= mask * agree(exp_avg, grad);
    param -= step_size * average / (std::sqrt(second_moment * inv_bias2 + eps_root) + eps);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
