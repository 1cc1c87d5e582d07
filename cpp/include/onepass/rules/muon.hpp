// Muon (Jordan, 2024): momentum whose matrix is made nearly orthogonal; and AdamW for the
// parameters that are no hidden layers' matrices, in groups with use_muon = false. The matrix
// products are Python's, between two passes. The same algorithm in NumPy:
// python/onepass/optim/muon.py
#pragma once

#include <limits>

#include "onepass/rule.hpp"
#include "onepass/rules/adam.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T, bool use_muon>
struct Muon {
  static constexpr State states[] = {
      {"momentum_buffer", use_muon}, {"exp_avg", !use_muon}, {"exp_avg_sq", !use_muon, false}};

  // Those of the iteration between the passes, from the coefficients to adjust_lr_fn, are Python's.
  struct Hyper {
    double lr = 1e-3, momentum = 0.95, nesterov = 1;  // a flag
    double ns_coefficient1 = 3.4445, ns_coefficient2 = -4.7750, ns_coefficient3 = 2.0315;
    double eps = 1e-7, ns_steps = 5;
    double adjust_lr_fn = std::numeric_limits<double>::quiet_NaN();  // None
    double adam_beta1 = 0.9, adam_beta2 = 0.999, adam_eps = 1e-8;
  };
  static constexpr const char* hyper[] = {
      "lr",  "momentum", "nesterov",     "ns_coefficient1", "ns_coefficient2", "ns_coefficient3",
      "eps", "ns_steps", "adjust_lr_fn", "adam_beta1",      "adam_beta2",      "adam_eps"};

  using AdamW = Adam<T>;

  static Muon at(double step, const Hyper& h) noexcept {
    return {
        .momentum = T(h.momentum),
        .one_minus_momentum = T(1 - h.momentum),
        .nesterov = T(h.nesterov),
        .lr = T(h.lr),
        .adamw = AdamW::at(
            step, {.lr = h.lr, .beta1 = h.adam_beta1, .beta2 = h.adam_beta2, .eps = h.adam_eps})};
  }

  static constexpr const char* scalars[] = {
      "momentum",        "one_minus_momentum", "nesterov",        "lr",        "beta1",
      "one_minus_beta1", "beta2",              "one_minus_beta2", "step_size", "early_inv_bias2",
      "inv_bias2",       "eps",                "eps_root",        "mask"};
  T momentum, one_minus_momentum, nesterov, lr;
  AdamW adamw;

  static constexpr bool is_directed = use_muon;

  // What the direction is made of: the momentum after the step, or what Nesterov's form looks at.
  T direct(T grad, T momentum_buffer, T, T) const noexcept {
    const T buffer = averaged(momentum_buffer, grad);
    return nesterov > 0 ? averaged(buffer, grad) : buffer;
  }
  T averaged(T buffer, T grad) const noexcept {
    return momentum * buffer + one_minus_momentum * grad;
  }

  void operator()(T& param, T grad, T direction, T& momentum_buffer, T&, T&) const noexcept
    requires use_muon
  {
    momentum_buffer = averaged(momentum_buffer, grad);
    param -= lr * direction;
  }
  void operator()(T& param, T grad, T&, T& exp_avg, T& exp_avg_sq) const noexcept
    requires(!use_muon)
  {
    T no_maximum{};
    adamw(param, grad, exp_avg, exp_avg_sq, no_maximum);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
