// THE loop: one pass over a parameter, its gradient, its state and its average. It knows no rule.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

#include "onepass/formats.hpp"
#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

// Elements per tile, and how far ahead of it memory is asked for. Both measured: bench/NOTES.md.
// Where something is rounded, a tile is a block.
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
inline void prefetch(const char* p, std::size_t bytes) noexcept {
#if defined(__GNUC__)
  for (std::size_t i = 0; i < bytes; i += cache_line) __builtin_prefetch(p + prefetch_bytes + i);
#else
  (void)p;
  (void)bytes;
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

// How the k-th state of a rule is kept, or that it is not there.
template <class Rule, template <bool> class State, std::size_t k>
using Kept = std::conditional_t<Rule::states[k].used, State<Rule::states[k].has_sign>, NotThere>;

// Reads state by `readers`, and writes it to `state`.
template <bool decay, class Rule, class T, std::size_t... K, class... Reader>
inline void update_tile(T* param, const T* grad, [[maybe_unused]] T* const* state, std::size_t n,
                        const Rule rule, const T scale, const T weight_decay,
                        std::index_sequence<K...>, const Reader... readers) noexcept {
  const auto write = [&]<std::size_t k>([[maybe_unused]] std::size_t i, [[maybe_unused]] T value) {
    if constexpr (Rule::states[k].used) state[k][i] = value;
  };
  // The caller has proved that no two arrays overlap.
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) {
    T g = scale * grad[i];
    if constexpr (decay) g += weight_decay * param[i];
    [&](auto... values) {
      rule(param[i], g, values...);
      (write.template operator()<K>(i, values), ...);
    }(T(readers(i))...);
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

// What a step reads and writes, in whichever formats. What is not there is left out.
template <class T, std::size_t n_states>
struct StepArrays {
  Array<T> param, grad;
  std::array<Stored, n_states> state;
  Array<T> average = {}, copy = {};
  bool zero_grad = false;
  bool follows = false;              // param, where somebody has changed the copy
  const StepBits* random = nullptr;  // where parameter or state is rounded
  std::uint64_t tensor = 0;          // its number, which its random bits depend on
};

// Writes a block of what is rounded, the state and perhaps the parameter, each by bits of its own.
template <class Rule, template <bool> class State, class T, std::size_t n_states, std::size_t... K>
inline void close_block(const StepArrays<T, n_states>& arrays, std::size_t begin, std::size_t n,
                        const T (*values)[block_size], std::index_sequence<K...>) noexcept {
  const auto bits = [&](std::size_t k) {
    const std::uint64_t number = arrays.tensor * (n_states + 1) + k;
    return block_bits(*arrays.random, number, begin / block_size);
  };
  const auto close = [&]<std::size_t k>() {
    using Codec = Kept<Rule, State, k>;
    if constexpr (!Codec::in_place) Codec::close(values[k], n, arrays.state[k], begin, bits(k));
  };
  (close.template operator()<K>(), ...);
  arrays.param.close(values[n_states], n, begin, bits(n_states));
}

template <bool decay, template <bool> class State, class T, std::size_t n_states, class Rule,
          std::size_t... K>
void update(const StepArrays<T, n_states>& arrays, std::size_t begin, std::size_t end,
            const Rule& rule, const Stages<T>& stages, std::index_sequence<K...> all) noexcept {
  alignas(cache_line) T scratch[n_states + 1][block_size];
  alignas(cache_line) T opened[block_size], clipped[block_size];
  const bool averages = arrays.average.exists() && stages.average_weight != T(0);
  const bool clips = stages.max_value < std::numeric_limits<T>::infinity();

  // A short first tile brings every later one onto cache lines: state lies at the parameter's own
  // offset, so all streams align at once.
  std::size_t n = !arrays.random && end - begin >= min_elements_to_align
                      ? elements_to_alignment(arrays.param.open(begin, 0, nullptr), end - begin)
                      : 0;
  const std::size_t tile = arrays.random ? block_size : tile_size;
  if (n == 0) n = std::min(end - begin, tile);

  for (; begin < end; begin += n, n = std::min(end - begin, tile)) {
    const auto open = [=](const Array<T>& array, T* room) {
      prefetch(array.at(begin), array.bytes(n));
      return array.open(begin, n, room);
    };
    const auto open_state = [&]<std::size_t k>() -> T* {
      using Codec = Kept<Rule, State, k>;
      if constexpr (!Rule::states[k].used) {
        return nullptr;
      } else {
        auto* items = static_cast<typename Codec::Item*>(arrays.state[k].data) + begin;
        prefetch(reinterpret_cast<const char*>(items), n * sizeof *items);
        if constexpr (Codec::in_place) return items;
        return scratch[k];
      }
    };
    T* const state[] = {open_state.template operator()<K>()...};
    T* param = open(arrays.param, scratch[n_states]);
    if (arrays.follows) arrays.copy.follow(begin, n, param);
    const T* grad = open(arrays.grad, opened);
    if (clips) clip_tile(clipped, grad, n, stages.scale, stages.max_value);
    update_tile<decay>(param, clips ? clipped : grad, state, n, rule, clips ? T{1} : stages.scale,
                       stages.weight_decay, all,
                       Kept<Rule, State, K>::reader(arrays.state[K], begin)...);
    if (averages) {
      T* average = open(arrays.average, nullptr);
      average_tile(average, param, n, stages.average_weight, stages.average_rest);
    }
    if (arrays.copy.exists()) arrays.copy.close(param, n, begin, {});
    if (arrays.zero_grad) std::memset(arrays.grad.at(begin), 0, arrays.grad.bytes(n));
    if (arrays.random) close_block<Rule, State>(arrays, begin, n, scratch, all);
  }
}

// Elements [begin, end). An average in which the weights have no weight stays as it is.
template <bool decay, template <bool> class State, class T, std::size_t n_states, class Rule>
void update(const StepArrays<T, n_states>& arrays, std::size_t begin, std::size_t end,
            const Rule& rule, const std::type_identity_t<Stages<T>>& stages) noexcept {
  static_assert(n_states == std::size(Rule::states));
  update<decay, State>(arrays, begin, end, rule, stages, std::make_index_sequence<n_states>{});
}

}  // namespace onepass::inline ONEPASS_ISA
