// RAdam's rectification (Liu et al., 2020): how much of Adam's step the variance of the average
// square allows. The same in NumPy: python/onepass/optim/_rectification.py
#pragma once

#include <cmath>

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

struct Rectification {
  double length;  // of the simple moving average that the average square is like
  double factor;  // of the step; 0 where the variance is infinite, at lengths up to 4
};

inline Rectification rectification(double beta2, double step) noexcept {
  const double power = std::pow(beta2, step);
  const double longest = 2 / (1 - beta2) - 1;
  const double length = longest - 2 * step * power / (1 - power);
  if (!(length > 4)) return {length, 0};
  const double ratio =
      (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length);
  return {length, std::sqrt(ratio)};
}

}  // namespace onepass::inline ONEPASS_ISA
