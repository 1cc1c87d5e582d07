// Sums over all elements of an array.
#pragma once

#include <algorithm>
#include <cstddef>

#include "onepass/panels.hpp"
#include "onepass/update.hpp"

namespace onepass::inline ONEPASS_ISA {

// What will be summed soon is asked for early: the hardware's own prefetching ends at every page.
// So many bytes on; where channels lie side by side, the next four rows. It may lie beyond the end:
// a prefetch never faults. Measured: bench/NOTES.md.
inline constexpr std::size_t sums_prefetch_bytes = 4096;
template <class T>
inline void prefetch_into_l2(const T* p) noexcept {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 1);
#else
  (void)p;
#endif
}

// The sum of `lanes` sums, in halves; they are used up.
inline double fold_lanes(double* sums) noexcept {
  for (std::size_t half = lanes / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

// The sum of the squares of x * unit, in double and in an order that n alone decides: `lanes` sums
// side by side, four rows of elements at a time, folded in halves.
template <class T>
double sum_of_squares(const T* x, std::size_t n, double unit) noexcept {
  alignas(cache_line) double sums[lanes] = {};
  const auto square = [=](std::size_t i) {
    const double value = static_cast<double>(x[i]) * unit;
    return value * value;
  };
  std::size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (std::size_t k = 0; k < 4 * lanes; k += cache_line / sizeof(T)) {
      prefetch_into_l2(x + i + k + sums_prefetch_bytes / sizeof(T));
    }
#pragma omp simd
    for (std::size_t j = 0; j < lanes; ++j) {
      const std::size_t at = i + j;
      sums[j] +=
          (square(at) + square(at + lanes)) + (square(at + 2 * lanes) + square(at + 3 * lanes));
    }
  }
  for (; i < n; i += lanes) {
    const std::size_t rest = std::min(lanes, n - i);
#pragma omp simd
    for (std::size_t j = 0; j < rest; ++j) sums[j] += square(i + j);
  }
  return fold_lanes(sums);
}

}  // namespace onepass::inline ONEPASS_ISA
