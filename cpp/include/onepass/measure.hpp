// The pass before a step of a rule that measures: sums over a tensor of what the rule makes of each
// element. It knows no rule.
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

// Writes the sums of elements [begin, end) to `sums`; `begin` is that of a block. They are taken in
// double, a lane for each place in a row, and the lanes then added up in halves: the number of
// elements alone decides about the order. A decoupled decay is still to come.
template <template <bool> class State, class T, class Rule, std::size_t... K>
void measure(const Streams& streams, std::size_t begin, std::size_t end, const Rule& rule,
             const Stages<T>& stages, double* sums, std::index_sequence<K...>) noexcept {
  static_assert(row_size == lanes);
  alignas(cache_line) double sums_of_lanes[Rule::n_sums][lanes] = {};
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
    [&]<std::size_t... k>(std::index_sequence<k...>, const auto... readers) {
      for (std::size_t row = 0; row * row_size < n; ++row) {
        const std::size_t columns = std::min(row_size, n - row * row_size);
#pragma omp simd
        for (std::size_t j = 0; j < columns; ++j) {
          const std::size_t i = row * row_size + j;
          rule.measure(param[i], scale * given[i], T(readers(row, j))..., sums_of_lanes[k][j]...);
        }
      }
    }
    (std::make_index_sequence<Rule::n_sums>{},
     reader_of<Rule, State, K>(streams, begin, shaped)...);
  }
  for (std::size_t k = 0; k < Rule::n_sums; ++k) sums[k] = fold_lanes(sums_of_lanes[k]);
}

template <template <bool> class State, class Rule>
void measure(const Streams& streams, std::size_t begin, std::size_t end, const Rule& rule,
             const Stages<typename State<true>::Value>& stages, double* sums) noexcept {
  measure<State>(streams, begin, end, rule, stages, sums,
                 std::make_index_sequence<std::size(Rule::states)>{});
}

}  // namespace onepass::inline ONEPASS_ISA
