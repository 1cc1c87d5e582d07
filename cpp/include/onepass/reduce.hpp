// Sums over all elements of an array.
#pragma once

#include <algorithm>
#include <cstddef>

#include "onepass/panels.hpp"
#include "onepass/update.hpp"

namespace onepass::inline ONEPASS_ISA {

// How many bytes ahead a sum prefetches, because the hardware's own prefetching ends at every page.
// In a panel of short rows, a sum prefetches the next row, or the next four, instead. The address
// may lie beyond the end: a prefetch never faults. Measured: bench/NOTES.md.
inline constexpr std::size_t sums_prefetch_bytes = 4096;
template <class T>
[[gnu::always_inline]] inline void prefetch_into_l2(const T* p) noexcept {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 1);
#else
  (void)p;
#endif
}
template <class T>
[[gnu::always_inline]] inline void prefetch_sums(const Stored& array, std::size_t begin,
                                                 std::size_t n) noexcept {
  const std::size_t size = item_size<T>(array);
  const char* const p = static_cast<const char*>(array.data) + begin * size;
  for (std::size_t i = 0; i < n * size; i += cache_line) prefetch_into_l2(p + i);
}

// Adds n sums up in halves, overwriting them, and returns the total.
template <std::size_t n = lanes>
inline double fold_lanes(double* sums) noexcept {
  if constexpr (n > 1) {
    for (std::size_t j = 0; j < n / 2; ++j) sums[j] += sums[j + n / 2];
    return fold_lanes<n / 2>(sums);
  }
  return sums[0];
}

// Returns the sum of the squares of x * unit. It is taken in double, and in an order that the
// number of elements alone decides: `lanes` sums side by side, four rows of elements at a time, and
// then added up in halves.
template <class T>
double sum_of_squares(const Stored& array, std::size_t begin, std::size_t end, double unit,
                      bool prefetch_ahead) noexcept {
  constexpr std::size_t rows = 4 * lanes;
  const std::size_t size = item_size<T>(array);
  alignas(cache_line) double sums[lanes] = {};
  alignas(cache_line) T opened[rows];
  constexpr bool one_by_one = sizeof(T) == sizeof(double);  // a float's square fits a double
  const auto square = [=](T x) {
    const double value = one_by_one ? static_cast<double>(x) * unit : static_cast<double>(x);
    return value * value;
  };
  std::size_t i = begin;
  for (; i + rows <= end; i += rows) {
    if (prefetch_ahead) prefetch_sums<T>(array, i + sums_prefetch_bytes / size, rows);
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
  return one_by_one ? fold_lanes(sums) : fold_lanes(sums) * unit * unit;
}

}  // namespace onepass::inline ONEPASS_ISA
