// What the loops of batch normalisation are told of each channel, from its statistics: once per
// channel and not per element, but for small arrays that is as much again.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "onepass/panels.hpp"
#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

// As T, within its range: 0 times infinity would make a NaN of a constant channel.
template <class T>
double within(double value) noexcept {
  constexpr double most = static_cast<double>(std::numeric_limits<T>::max());
  return value > most ? most : value < -most ? -most : value;
}
template <class T>
T narrow(double value) noexcept {
  return static_cast<T>(within<T>(value));
}

// mean = high + low, both made smaller as x is. Where that makes them subnormal, x is rounded just
// as high is, and a low part would set apart what is equal.
template <class T>
struct Split {
  explicit Split(double mean) noexcept : high(static_cast<T>(mean * shrink)), low(0) {
    const bool normal = std::abs(high) >= std::numeric_limits<T>::min();
    if (normal) low = mean * shrink - static_cast<double>(high);
  }
  T high;
  double low;
};

// 1 / the standard deviation, in the place of the variance.
inline void invert_deviation(double* variance, std::size_t n, double eps) noexcept {
#pragma omp simd
  for (std::size_t c = 0; c < n; ++c) variance[c] = 1 / std::sqrt(variance[c] + eps);
}

// Sets mean, scale and shift of the channels [begin, end).
template <class T>
void set_forward(const Affine& affine, const Statistics& statistics, std::size_t begin,
                 std::size_t end, const Channels<T>& channels) noexcept {
  // Copies, because the compiler would fetch the pointers again for every channel.
  const double *const weight = affine.weight, *const bias = affine.bias;
  const double *const mean = statistics.mean, *const invstd = statistics.invstd;
  T *const high = channels.mean, *const scales = channels.scale, *const shifts = channels.shift;
#pragma omp simd
  for (std::size_t c = begin; c < end; ++c) {
    const Split<T> split(mean[c]);
    const double scale = within<T>(weight[c] * (invstd[c] / shrink));
    high[c] = split.high;
    scales[c] = static_cast<T>(scale);
    shifts[c] = narrow<T>(bias[c] - split.low * scale);
  }
}

}  // namespace onepass::inline ONEPASS_ISA
