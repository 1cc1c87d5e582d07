// THE loop: one pass over a parameter, its gradient, its state and its average. It knows no rule.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

#include "onepass/formats.hpp"
#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

// Elements per tile, and how far ahead of it memory is asked for. Both measured: bench/NOTES.md.
inline constexpr std::size_t tile_size = 64;
inline constexpr std::size_t prefetch_bytes = 1024;
inline constexpr std::size_t min_elements_to_align = 4096;
inline constexpr std::size_t cache_line = 64;

// What surrounds the rule in a step, whichever it is, in this order: the gradient is scaled and
// clipped, the weights decay, the rule; then the average of the weights moves.
template <class T>
struct Stages {
  T scale;            // of the gradient: 1 / loss scale, the norm's clipping, -1 to maximize
  T weight_decay{0};  // coupled: grad += weight_decay * param
  T max_value = std::numeric_limits<T>::infinity();  // of the gradient's elements
  T average_weight{0}, average_rest{1};              // which add up to 1
};

// The number of elements before `p` reaches a cache line, at most n.
template <class T>
inline std::size_t elements_to_alignment(const T* p, std::size_t n) noexcept {
  const std::size_t past = reinterpret_cast<std::uintptr_t>(p) % cache_line;
  return past ? std::min(n, (cache_line - past) / sizeof(T)) : 0;
}

// The square root and the division keep the core so busy that too few loads are under way to fill
// the memory's time; asking early does. It may ask beyond the end: a prefetch never faults.
template <class T>
inline void prefetch_tile(const T* p) noexcept {
#if defined(__GNUC__)
  const char* ahead = reinterpret_cast<const char*>(p) + prefetch_bytes;
  for (std::size_t i = 0; i < tile_size * sizeof(T); i += cache_line) __builtin_prefetch(ahead + i);
#else
  (void)p;
#endif
}

// NaN stays NaN.
template <class T>
inline void clip_tile(T* clipped, const T* grad, std::size_t n, T scale, T max_value) noexcept {
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) {
    const T g = scale * grad[i];
    clipped[i] = g > max_value ? max_value : g < -max_value ? -max_value : g;
  }
}

template <bool decay, class Rule, class T, std::size_t... K>
inline void update_tile(T* param, const T* grad, [[maybe_unused]] T* const* state, std::size_t n,
                        const Rule rule, const T scale, const T weight_decay,
                        std::index_sequence<K...>) noexcept {
  // The caller has proved that no two arrays overlap.
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) {
    T g = scale * grad[i];
    if constexpr (decay) g += weight_decay * param[i];
    [[maybe_unused]] T unused{};
    rule(param[i], g, (Rule::states[K].used ? state[K][i] : unused)...);
  }
}

// Interpolates from the end that is nearer. Where nothing of the old average stays, not even a NaN.
template <class T>
inline void average_tile(T* average, const T* param, std::size_t n, T weight, T rest) noexcept {
  if (rest == T(0)) {
    std::copy_n(param, n, average);
    return;
  }
  const bool near_average = weight < rest;
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) {
    const T way = param[i] - average[i];
    average[i] = near_average ? average[i] + weight * way : param[i] - rest * way;
  }
}

// What a step reads and writes. What is not there is null.
template <class T, class Grad>
struct StepArrays {
  T* param;
  Grad grad;
  T* const* state;
  T* average = nullptr;                     // of the weights
  typename Grad::Stored* zeroed = nullptr;  // the gradient itself, to be zero afterwards
  std::uint16_t* copy = nullptr;            // of the parameter, in fewer bits, written by `narrow`
  void (*narrow)(const T* values, std::size_t n, std::uint16_t* stored) noexcept = nullptr;
};

// An average in which the weights have no weight stays as it is.
template <bool decay, class T, class Grad, class Rule>
void update(const StepArrays<T, Grad>& arrays, std::size_t n, const Rule& rule,
            const std::type_identity_t<Stages<T>>& stages) noexcept {
  const auto& [param, grad, state, all_average, zeroed, copy, narrow] = arrays;
  constexpr std::size_t n_states = std::size(Rule::states);
  alignas(cache_line) T opened[tile_size];
  alignas(cache_line) T clipped[tile_size];
  T* average = stages.average_weight == T(0) ? nullptr : all_average;
  const bool clips = stages.max_value < std::numeric_limits<T>::infinity();

  // A short first tile brings every later one onto cache lines: state lies at the parameter's own
  // offset, so all streams align at once.
  std::size_t size = n >= min_elements_to_align ? elements_to_alignment(param, n) : 0;
  if (size == 0) size = std::min(n, tile_size);

  for (std::size_t begin = 0; begin < n; begin += size, size = std::min(n - begin, tile_size)) {
    prefetch_tile(param + begin);
    prefetch_tile(grad.ahead(begin));
    T* s[n_states];
    for (std::size_t k = 0; k < n_states; ++k) {
      s[k] = Rule::states[k].used ? state[k] + begin : nullptr;
      if (Rule::states[k].used) prefetch_tile(s[k]);
    }
    if (average) prefetch_tile(average + begin);
    T* p = param + begin;
    const T* g = grad.open(begin, size, opened);
    if (clips) clip_tile(clipped, g, size, stages.scale, stages.max_value);
    update_tile<decay>(p, clips ? clipped : g, s, size, rule, clips ? T{1} : stages.scale,
                       stages.weight_decay, std::make_index_sequence<n_states>{});
    if (average) {
      average_tile(average + begin, p, size, stages.average_weight, stages.average_rest);
    }
    if (copy) narrow(p, size, copy + begin);
    if (zeroed) std::fill_n(zeroed + begin, size, typename Grad::Stored{});
  }
}

}  // namespace onepass::inline ONEPASS_ISA
