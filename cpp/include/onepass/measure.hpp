// The passes before a step that read the tensor as the step will: sums of what a rule makes of each
// element, and the direction of a rule that steps along one. They know no rule.
#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "onepass/reduce.hpp"
#include "onepass/update.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class Rule>
concept Measures = requires { Rule::n_sums; } && (Rule::n_sums > 0);

// Calls element(i, lane, param, grad, state...) for elements [begin, end), where `begin` is that of
// a block and a lane is a place in a row: the number of elements alone decides which share one. A
// decoupled decay is still to come.
template <class Rule, template <bool> class State, class T, class Element, std::size_t... K>
[[gnu::always_inline]] inline void for_each_read(const Streams& streams, std::size_t begin,
                                                 std::size_t end, const Stages<T>& stages,
                                                 const Element& element,
                                                 std::index_sequence<K...>) noexcept {
  static_assert(row_size == lanes);
  alignas(cache_line) T scratch[block_size], opened[block_size], prepared[block_size];
  const bool prepares = must_prepare<Decay::decoupled>(stages);
  [[maybe_unused]] Shaped<Rule, T> shaped(streams, begin);
  for (; begin < end; begin += block_size) {
    const std::size_t n = std::min(end - begin, block_size);
    T* param = open(streams.param, begin, n, scratch);
    if constexpr (std::is_same_v<T, float>) {
      if (streams.follows) {  // the step itself will write the master
        param = std::copy_n(param, n, scratch) - n;
        streams.copy.codec->follow(streams.copy, begin, n, param);
      }
    }
    const T* grad = open(streams.grad, begin, n, opened);
    if (prepares) prepare_tile<Decay::decoupled>(prepared, grad, param, n, stages);
    const T* const given = prepares ? prepared : grad;
    const T scale = prepares ? T{1} : stages.scale;
    shaped.open(n);
    [&](const auto... readers) {
      for (std::size_t first = 0; first < n; first += row_size) {
        const std::size_t columns = std::min(row_size, n - first);
#pragma omp simd
        for (std::size_t j = 0; j < columns; ++j) {
          const std::size_t i = first + j;
          element(begin + i, j, param[i], scale * given[i], T(readers(first / row_size, j))...);
        }
      }
    }(reader_of<Rule, State, K>(streams, begin, shaped)...);
  }
}

// Writes the sums of elements [begin, end) to `sums`. They are taken in double, in lanes that are
// then added up in halves.
template <template <bool> class State, class Rule>
void measure(const Streams& streams, std::size_t begin, std::size_t end, const Rule& rule,
             const Stages<typename State<true>::Value>& stages, double* sums) noexcept {
  constexpr auto all_states = std::make_index_sequence<std::size(Rule::states)>{};
  alignas(cache_line) double sums_of_lanes[Rule::n_sums][lanes] = {};
  [&]<std::size_t... k>(std::index_sequence<k...>) {
    const auto add = [&](std::size_t, std::size_t lane, auto param, auto grad, auto... state)
        __attribute__((always_inline)) {
      rule.measure(param, grad, state..., sums_of_lanes[k][lane]...);
    };
    for_each_read<Rule, State>(streams, begin, end, stages, add, all_states);
  }
  (std::make_index_sequence<Rule::n_sums>{});
  for (std::size_t k = 0; k < Rule::n_sums; ++k) sums[k] = fold_lanes(sums_of_lanes[k]);
}

// Writes elements [begin, end) of the direction in place of the one that the step will take, and
// returns the sum of their squares, taken as above.
template <template <bool> class State, class Rule>
double direct(const Streams& streams, std::size_t begin, std::size_t end, const Rule& rule,
              const Stages<typename State<true>::Value>& stages) noexcept {
  using T = typename State<true>::Value;
  constexpr auto all_states = std::make_index_sequence<std::size(Rule::states)>{};
  alignas(cache_line) double sums[lanes] = {};
  auto* const directions = static_cast<T*>(streams.state[direction_place].data);
  const auto write = [&](std::size_t i, std::size_t lane, T, T grad, auto... state)
      __attribute__((always_inline)) {
    const T direction = rule.direct(grad, state...);
    directions[i] = direction;
    sums[lane] += square(direction);
  };
  for_each_read<Rule, State>(streams, begin, end, stages, write, all_states);
  return fold_lanes(sums);
}

}  // namespace onepass::inline ONEPASS_ISA
