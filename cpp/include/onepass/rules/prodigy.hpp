// Prodigy (Mishchenko and Defazio, 2024): Adam whose rate is an estimate, `d`, of how far the
// weights have to go. The same algorithm in NumPy: python/onepass/optim/prodigy.py
#pragma once

#include <algorithm>
#include <limits>

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
struct Prodigy {
  static constexpr bool full_weights = true;
  static constexpr State states[] = {
      {"s"}, {.name = "p0", .in_full = true}, {"exp_avg"}, {"exp_avg_sq", true, false}};

  // 0: not begun, which is d0.
  struct Memory {
    double d = 0, d_max = 0, d_numerator = 0;
  };
  static constexpr const char* memory[] = {"d", "d_max", "d_numerator"};

  struct Hyper {
    double lr = 1, beta1 = 0.9, beta2 = 0.999;
    double beta3 = std::numeric_limits<double>::quiet_NaN();  // NaN: the root of beta2
    double eps = 1e-8, weight_decay = 0, decouple = 1;
    double use_bias_correction = 0, safeguard_warmup = 0;  // flags, as is the one before
    double d0 = 1e-6, d_coef = 1, growth_rate = std::numeric_limits<double>::infinity();
  };
  static constexpr const char* hyper[] = {"lr",
                                          "beta1",
                                          "beta2",
                                          "beta3",
                                          "eps",
                                          "weight_decay",
                                          "decouple",
                                          "use_bias_correction",
                                          "safeguard_warmup",
                                          "d0",
                                          "d_coef",
                                          "growth_rate"};

  static Prodigy at(double step, const Hyper& h, Memory& known) noexcept {
    if (known.d == 0) known.d = known.d_max = h.d0;
    const double d = known.d;
    double rate = d * h.lr;
    if (h.use_bias_correction != 0) {
      rate *= std::sqrt(1 - std::pow(h.beta2, step)) / (1 - std::pow(h.beta1, step));
    }
    const bool decouples = h.decouple != 0;
    return {.is_first = T(step == 1),
            .weight_decay = T(decouples ? 0 : h.weight_decay),
            .beta1 = T(h.beta1),
            .gain = T(d * (1 - h.beta1)),
            .beta2 = T(h.beta2),
            .square_gain = T(d * d * (1 - h.beta2)),
            .beta3 = T(h.beta3 == h.beta3 ? h.beta3 : std::sqrt(h.beta2)),
            .s_gain = T(d / h.d0 * (h.safeguard_warmup != 0 ? d : rate)),
            .way_gain = T(d / h.d0 * rate),
            .shrink = T(decouples ? 1 - h.weight_decay * rate : 1),
            .rate = T(rate),
            .eps = T(d * h.eps),
            .own_eps = T(h.eps),
            .d0 = T(h.d0),
            .d_coef = T(h.d_coef),
            .growth_rate = T(h.growth_rate)};
  }

  static constexpr const char* scalars[] = {"is_first", "weight_decay", "beta1",  "gain",
                                            "beta2",    "square_gain",  "beta3",  "s_gain",
                                            "way_gain", "shrink",       "rate",   "eps",
                                            "own_eps",  "d0",           "d_coef", "growth_rate"};
  T is_first, weight_decay, beta1, gain, beta2, square_gain, beta3, s_gain, way_gain, shrink, rate;
  T eps, own_eps, d0, d_coef, growth_rate;

  // How far the weights have come along the gradients, and the size of the gradients' sum.
  static constexpr std::size_t n_sums = 2;
  static constexpr bool sums_over_all = true;
  void measure(T param, T grad, T s, T p0, T, T, double& way, double& size) const noexcept {
    const T decayed = grad + weight_decay * param;
    const T come = (is_first > 0 ? param : p0) - param;
    way +=
        static_cast<double>(way_gain) * (static_cast<double>(decayed) * static_cast<double>(come));
    size += static_cast<double>(std::abs(beta3 * s + s_gain * decayed));
  }
  // Where all gradients so far were 0, nothing moves.
  void weigh(const double* sums, double, Memory& known) noexcept {
    if (sums[1] == 0) {
      shrink = 1;
      return;
    }
    known.d_numerator = beta3 * known.d_numerator + sums[0];
    const double found = d_coef * known.d_numerator / sums[1];
    if (known.d == d0) known.d = std::max(known.d, found);
    known.d_max = std::max(known.d_max, found);
    known.d = std::min(known.d_max, known.d * growth_rate);
    eps = known.d * own_eps;
  }

  void operator()(T& param, T grad, T& s, T& p0, T& exp_avg, T& exp_avg_sq) const noexcept {
    const T decayed = grad + weight_decay * param;
    p0 = is_first > 0 ? param : p0;
    s = beta3 * s + s_gain * decayed;
    exp_avg = beta1 * exp_avg + gain * decayed;
    exp_avg_sq = beta2 * exp_avg_sq + square_gain * decayed * decayed;
    param = shrink * param - rate * exp_avg / (std::sqrt(exp_avg_sq) + eps);
  }
};

}  // namespace onepass::inline ONEPASS_ISA
