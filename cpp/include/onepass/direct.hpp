// The pass before a step of a directed rule: what the direction is made of, and the sum of its
// squares. It knows no rule.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "onepass/reduce.hpp"
#include "onepass/update.hpp"

namespace onepass::inline ONEPASS_ISA {

// Writes elements [begin, end) of the direction in place of the one that the step will take, and
// returns the sum of their squares, taken as measure.hpp does; `begin` is that of a block. Reads
// the gradient and the state, and writes nothing else. A decoupled decay is still to come.
template <template <bool> class State, class T, class Rule, std::size_t... K>
double direct(const Streams& streams, std::size_t begin, std::size_t end, const Rule& rule,
              const Stages<T>& stages, std::index_sequence<K...>) noexcept {
  static_assert(row_size == lanes);
  alignas(cache_line) double sums[lanes] = {};
  alignas(cache_line) T opened[block_size], prepared[block_size];
  const bool prepares = must_prepare<Decay::decoupled>(stages);
  auto* const directions = static_cast<T*>(streams.state[direction_place].data);
  for (; begin < end; begin += block_size) {
    const std::size_t n = std::min(end - begin, block_size);
    const T* grad = open(streams.grad, begin, n, opened);
    if (prepares)
      prepare_tile<Decay::decoupled>(prepared, grad, static_cast<T*>(nullptr), n, stages);
    const T* const given = prepares ? prepared : grad;
    const T scale = prepares ? T{1} : stages.scale;
    [&](const auto... readers) {
      for (std::size_t row = 0; row * row_size < n; ++row) {
        const std::size_t columns = std::min(row_size, n - row * row_size);
#pragma omp simd
        for (std::size_t j = 0; j < columns; ++j) {
          const std::size_t i = row * row_size + j;
          const T direction = rule.direct(scale * given[i], T(readers(row, j))...);
          directions[begin + i] = direction;
          sums[j] += square(direction);
        }
      }
    }(Kept<Rule, State, K>::reader(streams.state[K], begin)...);
  }
  return fold_lanes(sums);
}

template <template <bool> class State, class Rule>
double direct(const Streams& streams, std::size_t begin, std::size_t end, const Rule& rule,
              const Stages<typename State<true>::Value>& stages) noexcept {
  return direct<State>(streams, begin, end, rule, stages,
                       std::make_index_sequence<std::size(Rule::states)>{});
}

}  // namespace onepass::inline ONEPASS_ISA
