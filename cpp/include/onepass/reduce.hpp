// Sums over all elements of an array.
#pragma once

#include <algorithm>
#include <cstddef>

#include "onepass/panels.hpp"
#include "onepass/update.hpp"

namespace onepass::inline ONEPASS_ISA {

// What will be summed soon is asked for early: the hardware's own prefetching ends at every page.
// So many bytes on; in a panel of short rows, the next row or four. It may lie beyond the end:
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
double sum_of_squares(const Stored& array, std::size_t begin, std::size_t end,
                      double unit) noexcept {
  constexpr std::size_t rows = 4 * lanes;
  const std::size_t size = item_size<T>(array);
  alignas(cache_line) double sums[lanes] = {};
  alignas(cache_line) T opened[rows];
  const auto square = [=](T x) {
    const double value = static_cast<double>(x) * unit;
    return value * value;
  };
  std::size_t i = begin;
  for (; i + rows <= end; i += rows) {
    for (std::size_t k = 0; k < rows * size; k += cache_line) {
      prefetch_into_l2(static_cast<const char*>(array.data) + i * size + k + sums_prefetch_bytes);
    }
    const T* x = open(array, i, rows, opened);
#pragma omp simd
    for (std::size_t j = 0; j < lanes; ++j) {
      sums[j] += (square(x[j]) + square(x[j + lanes])) +
                 (square(x[j + 2 * lanes]) + square(x[j + 3 * lanes]));
    }
  }
  for (; i < end; i += lanes) {
    const std::size_t rest = std::min(lanes, end - i);
    const T* x = open(array, i, rest, opened);
#pragma omp simd
    for (std::size_t j = 0; j < rest; ++j) sums[j] += square(x[j]);
  }
  return fold_lanes(sums);
}

}  // namespace onepass::inline ONEPASS_ISA
