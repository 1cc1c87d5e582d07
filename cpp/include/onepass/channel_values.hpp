// Computes the values that the loops of batch normalisation read of each channel from its
// statistics. This is done once per channel and not per element, but on small arrays it takes as
// long as the loops.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include "onepass/formats.hpp"
#include "onepass/panels.hpp"
#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

// Clamps a value to [-most, most]; a NaN stays one. With two comparisons of the value itself,
// compilers make three times as much code of the loops below.
template <class T>
T clamp(T value, T most) noexcept {
  const T size = std::abs(value);
  return std::copysign(size > most ? most : size, value);
}

// Clamps a value to T's range: for a constant channel, 0 times infinity would be a NaN.
template <class T>
double within(double value) noexcept {
  return clamp(value, static_cast<double>(std::numeric_limits<T>::max()));
}
// The same, rounded to T.
template <class T>
T narrow(double value) noexcept {
  return clamp(static_cast<T>(value), std::numeric_limits<T>::max());
}

// Splits the mean, made smaller as x is, into `high`, a T, and `low`. If the mean is finite, `high`
// is so small that x - high is finite. If `high` is subnormal, `low` is dropped: x loses the same
// bits as `high`, and an x that equals the mean must stay equal to it.
template <class T>
struct Split {
  explicit Split(double mean) noexcept : low(0) {
    const double whole = mean * downscale;
    high = static_cast<T>(whole);
    if constexpr (sizeof(T) < sizeof(double)) {  // else it is no larger than that
      high = clamp(high, std::numeric_limits<T>::max() / 2);
    }
    const bool normal = std::abs(high) >= std::numeric_limits<T>::min();
    // mean - mean is a NaN if the mean is infinite, so that the result shows it; else it is 0.
    if (normal) low = (whole - static_cast<double>(high)) + (mean - mean);
  }
  T high;
  double low;
};

// Returns the power of two that x is multiplied with before it is summed. Floats need none.
template <class T>
inline double unit_of(const Channels<T>& channels, std::size_t c) noexcept {
  if constexpr (sizeof(T) == sizeof(double)) return channels.magnitude[c];
  return 1;
}

// Adds n terms up in halves, so that the sum of equal terms is exactly n times one of them.
template <std::size_t n, class Term>
inline double pairwise_sum(const Term& term, std::size_t first = 0) noexcept {
  if constexpr (n == 1) {
    return term(first);
  } else {
    return pairwise_sum<n / 2>(term, first) + pairwise_sum<n / 2>(term, first + n / 2);
  }
}

// Sets the center of n channels to the mean of a few samples of each, which is near enough to the
// channel's mean for the squares of the differences to lose nothing. x points to the first channel.
template <class T, std::size_t count = Samples::most>
void set_first_means(const T* x, const Samples& samples, std::size_t n,
                     const Channels<Value<T>>& channels) noexcept {
  if constexpr (count > 1) {
    if (samples.count < count) return set_first_means<T, count / 2>(x, samples, n, channels);
  }
  const T* at[count];
  for (std::size_t i = 0; i < count; ++i) at[i] = x + samples.offsets[i];
  const auto mean = [=, values = channels](std::size_t c, std::size_t apart) {
    const auto sample = [&](std::size_t i) {
      return static_cast<double>(value_of(at[i][c * apart])) * unit_of(values, c);
    };
    return pairwise_sum<count>(sample) / count;
  };
  double* const center = channels.center;
  if constexpr (sizeof(T) >= sizeof(float)) {  // of 16 bits Clang makes no vectors here
    if (samples.channels_apart == 1) {
#pragma omp simd
      for (std::size_t c = 0; c < n; ++c) center[c] = mean(c, 1);
      return;
    }
  }
  for (std::size_t c = 0; c < n; ++c) center[c] = mean(c, samples.channels_apart);
}

// Returns the mean of `count` values whose sum about a center is given, rounded once: a sum that is
// exact gives the same bits about any center. (For up to 2^26 values, `high * count` is exact.)
inline double mean_about(double center, double sum, double count) noexcept {
  constexpr double splitter = 0x1p27 + 1;
  const double delta = sum / count, mean = center + delta, moved = mean - center;
  const double high = splitter * delta - (splitter * delta - delta);
  const double of_division = ((sum - high * count) - (delta - high) * count) / count;
  const double of_addition = (center - (mean - moved)) + (delta - moved);
  const double lost = of_addition + of_division;
  return lost == lost ? mean + lost : mean;
}

// Sets the statistics of n channels from the moments about their centers. The variance, too, has
// the same bits about any center that the sums are exact about.
template <class T>
void set_statistics(const Sums& sums, const Channels<T>& channels, double count, double eps,
                    std::size_t n, const Statistics& batch) noexcept {
  const double *const first = sums.first, *const second = sums.second;
  double *const mean = batch.mean, *const invstd = batch.invstd, *const variance = batch.variance;
  const Channels<T> values = channels;
#pragma omp simd
  for (std::size_t c = 0; c < n; ++c) {
    const double unit = unit_of(values, c);
    const double square = (count * second[c] - first[c] * first[c]) / (count * count);
    const double scaled = square < 0 ? 0 : square;
    const double var = scaled / unit / unit;
    mean[c] = mean_about(values.center[c], first[c], count) / unit;
    variance[c] = var;
    invstd[c] = unit == 1 || var <= std::numeric_limits<double>::max() ? 1 / std::sqrt(var + eps)
                                                                       : unit / std::sqrt(scaled);
  }
}

// Overwrites variances with 1 / the standard deviation.
inline void invert_deviation(double* variance, std::size_t n, double eps) noexcept {
#pragma omp simd
  for (std::size_t c = 0; c < n; ++c) variance[c] = 1 / std::sqrt(variance[c] + eps);
}

// Sets mean, scale and shift of n channels.
template <class T>
void set_forward(const Affine& affine, const Statistics& statistics, std::size_t n,
                 const Channels<T>& channels) noexcept {
  // The pointers are copied, because the compiler would load them again for every channel.
  const double *const weight = affine.weight, *const bias = affine.bias;
  const double *const mean = statistics.mean, *const invstd = statistics.invstd;
  T *const high = channels.mean, *const scales = channels.scale, *const shifts = channels.shift;
#pragma omp simd
  for (std::size_t c = 0; c < n; ++c) {
    const Split<T> split(mean[c]);
    const double scale = weight[c] * invstd[c] / downscale;
    high[c] = split.high;
    scales[c] = narrow<T>(scale);
    shifts[c] = narrow<T>(bias[c] - split.low * within<T>(scale));
  }
}

// Sets gain, slope and offset of n channels. If dx goes through the statistics, which are those of
// `count` elements, `through` has the gradients of weight and bias; else it is null.
template <class T>
void set_input_gradient(const Affine& affine, const Statistics& statistics,
                        const Gradients* through, double count, std::size_t n,
                        const Channels<T>& channels) noexcept {
  const double *const weight = affine.weight, *const invstd = statistics.invstd;
  T* const gain = channels.gain;
#pragma omp simd
  for (std::size_t c = 0; c < n; ++c) gain[c] = narrow<T>(weight[c] * invstd[c]);
  if (!through) return;
  const double* const mean = statistics.mean;
  const double *const dweight = through->weight, *const dbias = through->bias;
  T *const slopes = channels.slope, *const offsets = channels.offset;
  // Where the gain is 0, dx is 0: slope and offset are 0 too, because 0 times infinity would be a
  // NaN. A slope or an offset that is a NaN stays one.
#pragma omp simd
  for (std::size_t c = 0; c < n; ++c) {
    const double counts = gain[c] == 0 ? 0 : 1;
    const double slope = within<T>(invstd[c] * (dweight[c] / count) / downscale);
    const double offset = within<T>(dbias[c] / count - Split<T>(mean[c]).low * slope);
    slopes[c] = static_cast<T>(slope * counts);
    offsets[c] = static_cast<T>(offset * counts);
  }
}

}  // namespace onepass::inline ONEPASS_ISA
