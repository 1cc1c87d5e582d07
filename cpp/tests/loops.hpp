// Every rule's loop as the headers alone have it: update.hpp with the rule's own `at`.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <initializer_list>
#include <iterator>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels.hpp"
#include "onepass/measure.hpp"
#include "onepass/q8.hpp"
#include "onepass/rules.def"
#include "onepass/update.hpp"

// What a rule measures: of one tensor, or of all.
struct Totals {
  double sums[onepass::max_sums] = {};
  double size = 0;
};

// What the numbers of a step follow from. The memory moves.
struct Given {
  double step;
  const double* hyper;
  double* memory;
  Totals* found = nullptr;         // if given, the tensor is measured only, and added to it
  const Totals* of_all = nullptr;  // what was measured of all tensors, where that counts
};

// One choice of a rule's options.
template <class T>
using Loop = void (*)(const onepass::Streams&, std::size_t n, const Given&, onepass::StateFormat,
                      const onepass::Stages<T>&);
struct Loops {
  Loop<float> f32;
  Loop<double> f64;
};

// The rule's numbers, in double.
template <class Wide>
inline Wide numbers_of(const Given& given) {
  std::array<double, std::size(Wide::hyper)> hyper;
  std::copy_n(given.hyper, hyper.size(), hyper.begin());
  const auto named = std::bit_cast<typename Wide::Hyper>(hyper);
  if constexpr (requires { typename Wide::Memory; }) {
    return Wide::at(given.step, named, *reinterpret_cast<typename Wide::Memory*>(given.memory));
  } else {
    return Wide::at(given.step, named);
  }
}

// Measures, where the rule does, block after block.
template <template <bool> class State, class Rule, class Stages>
inline void measure(const Rule& rule, const onepass::Streams& streams, std::size_t n,
                    const Stages& stages, Totals& totals) {
  if constexpr (onepass::Measures<Rule>) {
    constexpr std::size_t block = 16384;
    double sums[Rule::n_sums];
    for (std::size_t begin = 0; begin < n; begin += block) {
      onepass::measure<State>(streams, begin, std::min(n, begin + block), rule, stages, sums);
      for (std::size_t k = 0; k < Rule::n_sums; ++k) totals.sums[k] += sums[k];
    }
    totals.size += static_cast<double>(n);
  }
}

template <class Wide>
inline void weigh(Wide& wide, const Given& given, const Totals& totals) {
  if constexpr (onepass::Measures<Wide>) {
    if constexpr (requires { typename Wide::Memory; }) {
      wide.weigh(totals.sums, totals.size, *reinterpret_cast<typename Wide::Memory*>(given.memory));
    } else {
      wide.weigh(totals.sums, totals.size);
    }
  }
}

template <template <bool> class State, class Rule, class Wide, class T>
inline void run_in(const onepass::Streams& streams, std::size_t n, const Given& given,
                   const onepass::Stages<T>& stages) {
  constexpr auto all = std::make_index_sequence<std::size(Wide::scalars)>{};
  const auto round = [&]<std::size_t... i>(const Wide& wide, std::index_sequence<i...>) {
    const auto values = std::bit_cast<std::array<double, sizeof...(i)>>(wide);
    return Rule{static_cast<T>(values[i])...};
  };
  Wide wide = numbers_of<Wide>(given);
  Totals own;
  measure<State>(round(wide, all), streams, n, stages, given.found ? *given.found : own);
  if (given.found) return;
  weigh(wide, given, given.of_all ? *given.of_all : own);
  onepass::update<State>(streams, 0, n, round(wide, all), stages);
}

template <class Rule, class Wide, class T>
inline void run_loop(const onepass::Streams& streams, std::size_t n, const Given& given,
                     [[maybe_unused]] onepass::StateFormat state,
                     const onepass::Stages<T>& stages) {
  if constexpr (std::is_same_v<T, double>) {
    run_in<onepass::DoubleState, Rule, Wide>(streams, n, given, stages);
  } else if (state == onepass::q8_state) {
    run_in<onepass::Q8State, Rule, Wide>(streams, n, given, stages);
  } else if (state == onepass::bf16_state) {
    run_in<onepass::BFloat16State, Rule, Wide>(streams, n, given, stages);
  } else {
    run_in<onepass::FloatState, Rule, Wide>(streams, n, given, stages);
  }
}

template <template <class, bool...> class Rule, std::size_t mask, std::size_t... k>
inline Loops loops_of_mask(std::index_sequence<k...>) {
  using Wide = Rule<double, (mask >> k & 1)...>;
  return {run_loop<Rule<float, (mask >> k & 1)...>, Wide, float>, run_loop<Wide, Wide, double>};
}
template <template <class, bool...> class Rule, std::size_t n_options, std::size_t... mask>
inline std::vector<Loops> loops_of_rule(std::index_sequence<mask...>) {
  return {loops_of_mask<Rule, mask>(std::make_index_sequence<n_options>{})...};
}
template <template <class, bool...> class Rule, std::size_t n_options>
inline std::vector<Loops> loops_of_rule() {
  return loops_of_rule<Rule, n_options>(std::make_index_sequence<(1u << n_options)>{});
}
constexpr std::size_t count_names(std::initializer_list<const char*> names) {
  return names.size();
}
inline const std::vector<std::vector<Loops>>& all_loops() {
  static const std::vector<std::vector<Loops>> all = {
#define RULE(name, Rule, ...) loops_of_rule<onepass::Rule, count_names({__VA_ARGS__})>(),
#include "onepass/rules.def"
  };
  return all;
}
