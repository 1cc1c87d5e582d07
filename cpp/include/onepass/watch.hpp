// The loops of a step that says how far it has gone: the weights before it, squares of what it has
// added to them, and how many elements of the gradient are zero.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "onepass/reduce.hpp"
#include "onepass/update.hpp"

namespace onepass::inline ONEPASS_ISA {

// Copies n weights as the step will read them. Those of a master have what the user has changed in
// the parameter since the last step.
template <class T>
void copy_weights(const Streams& streams, std::size_t begin, std::size_t n, T* weights) noexcept {
  for (std::size_t i = 0; i < n; i += block_size) {
    const std::size_t part = std::min(block_size, n - i);
    if (streams.prefetch_ahead) prefetch<T>(streams.param, begin + i, part);
    const T* const values = open(streams.param, begin + i, part, weights + i);
    if (values != weights + i) std::copy_n(values, part, weights + i);
  }
  if constexpr (std::is_same_v<T, float>) {
    if (streams.follows) streams.copy.codec->follow(streams.copy, begin, n, weights);
  }
}

// Counts the numbers that are 0, with either sign. The count must fit in a Bits.
template <class Bits>
std::size_t count_zeros(const Bits* numbers, std::size_t n) noexcept {
  Bits zeros = 0;  // as wide as the numbers, so that no lane is converted
#pragma omp simd reduction(+ : zeros)
  for (std::size_t i = 0; i < n; ++i) {
    zeros = static_cast<Bits>(zeros + (static_cast<Bits>(numbers[i] << 1) == 0));
  }
  return zeros;
}
template <class T>
std::size_t count_zeros(const Stored& array, std::size_t begin, std::size_t n) noexcept {
  switch (item_size<T>(array)) {
    case 2:
      return count_zeros(static_cast<const std::uint16_t*>(array.data) + begin, n);
    case 4:
      return count_zeros(static_cast<const std::uint32_t*>(array.data) + begin, n);
    default:
      return count_zeros(static_cast<const std::uint64_t*>(array.data) + begin, n);
  }
}

// Sums the squares of (after - before) * unit and of after * unit, in double and in the order of
// sum_of_squares.
template <class T>
void watched_squares(const T* before, const T* after, std::size_t n, double unit, double* of_update,
                     double* of_weights) noexcept {
  constexpr std::size_t rows = 4 * lanes;
  alignas(cache_line) double update[lanes] = {}, weights[lanes] = {};
  const auto moved = [=](std::size_t i) {
    const double by = (static_cast<double>(after[i]) - static_cast<double>(before[i])) * unit;
    return by * by;
  };
  const auto weight = [=](std::size_t i) {
    const double is = static_cast<double>(after[i]) * unit;
    return is * is;
  };
  std::size_t i = 0;
  for (; i + rows <= n; i += rows) {
#pragma omp simd
    for (std::size_t j = 0; j < lanes; ++j) {
      const std::size_t a = i + j, b = a + lanes, c = b + lanes, d = c + lanes;
      update[j] += (moved(a) + moved(b)) + (moved(c) + moved(d));
      weights[j] += (weight(a) + weight(b)) + (weight(c) + weight(d));
    }
  }
  for (; i < n; i += lanes) {
    const std::size_t rest = std::min(lanes, n - i);
#pragma omp simd
    for (std::size_t j = 0; j < rest; ++j) {
      update[j] += moved(i + j);
      weights[j] += weight(i + j);
    }
  }
  *of_update = fold_lanes(update);
  *of_weights = fold_lanes(weights);
}

}  // namespace onepass::inline ONEPASS_ISA
