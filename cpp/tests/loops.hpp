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
#include "onepass/q8.hpp"
#include "onepass/rules.def"
#include "onepass/update.hpp"

// What the numbers of a step follow from. The memory moves.
struct Given {
  double step;
  const double* hyper;
  double* memory;
};

// One choice of a rule's options.
template <class T>
using Loop = void (*)(const onepass::Streams&, std::size_t n, const Given&, onepass::StateFormat,
                      const onepass::Stages<T>&);
struct Loops {
  Loop<float> f32;
  Loop<double> f64;
};

template <class Rule, class T>
inline void run_loop(const onepass::Streams& streams, std::size_t n, const Given& given,
                     onepass::StateFormat state, const onepass::Stages<T>& stages) {
  std::array<double, std::size(Rule::hyper)> hyper;
  std::copy_n(given.hyper, hyper.size(), hyper.begin());
  const Rule rule = [&] {
    const auto named = std::bit_cast<typename Rule::Hyper>(hyper);
    if constexpr (requires { typename Rule::Memory; }) {
      return Rule::at(given.step, named, *reinterpret_cast<typename Rule::Memory*>(given.memory));
    } else {
      return Rule::at(given.step, named);
    }
  }();
  if constexpr (std::is_same_v<T, double>) {
    onepass::update<onepass::DoubleState>(streams, 0, n, rule, stages);
  } else if (state == onepass::q8_state) {
    onepass::update<onepass::Q8State>(streams, 0, n, rule, stages);
  } else if (state == onepass::bf16_state) {
    onepass::update<onepass::BFloat16State>(streams, 0, n, rule, stages);
  } else {
    onepass::update<onepass::FloatState>(streams, 0, n, rule, stages);
  }
}

template <template <class, bool...> class Rule, std::size_t mask, std::size_t... k>
inline Loops loops_of_mask(std::index_sequence<k...>) {
  return {run_loop<Rule<float, (mask >> k & 1)...>, float>,
          run_loop<Rule<double, (mask >> k & 1)...>, double>};
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
