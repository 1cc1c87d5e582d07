// Makes a rule's header into its row of kernels, for the instruction set that is compiled for.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cstdint>
#include <iterator>
#include <string_view>
#include <type_traits>
#include <utility>

#include "kernels.hpp"
#include "onepass/factored.hpp"
#include "onepass/measure.hpp"
#include "onepass/q8.hpp"
#include "onepass/update.hpp"

static_assert(FLT_EVAL_METHOD == 0, "x87 computes wider than it stores: other bits");

namespace onepass::inline ONEPASS_ISA {
namespace {

// A structure of numbers from an array of doubles, each rounded as NumPy rounds it; and back.
template <class Numbers, class T = double>
Numbers from_array(const double* values) noexcept {
  return [&]<std::size_t... i>(std::index_sequence<i...>) {
    return Numbers{static_cast<T>(values[i])...};
  }(std::make_index_sequence<sizeof(Numbers) / sizeof(T)>{});
}
template <class Numbers>
constexpr auto to_array(const Numbers& numbers) {
  return std::bit_cast<std::array<double, sizeof(Numbers) / sizeof(double)>>(numbers);
}

template <class T>
Stages<T> make_stages(const double* scalars) noexcept {
  return {static_cast<T>(scalars[grad_scale]),
          scalars[weight_decay],
          static_cast<T>(scalars[shrink]),
          static_cast<T>(scalars[max_grad_value]),
          scalars[average_weight],
          1 - scalars[average_weight],
          static_cast<std::uint64_t>(scalars[step_number]) % flush_every == 0,
          static_cast<T>(scalars[late_shrink]),
          static_cast<T>(scalars[cautious]),
          scalars[begins_slow] != 0,
          static_cast<T>(scalars[slow_weight])};
}

template <class Rule, class T, template <bool> class State>
void run_measure(const Streams& streams, std::size_t begin, std::size_t end, const double* scalars,
                 double* sums) noexcept {
  const auto rule = from_array<Rule, T>(scalars + shared_scalars);
  measure<State>(streams, begin, end, rule, make_stages<T>(scalars), sums);
}

template <class Rule, class T, template <bool> class State>
void run_direct(const Streams& streams, std::size_t begin, std::size_t end, const double* scalars,
                double* sum) noexcept {
  const auto rule = from_array<Rule, T>(scalars + shared_scalars);
  *sum = direct<State>(streams, begin, end, rule, make_stages<T>(scalars));
}

template <class Rule, class T>
struct ShapingOf {
  static constexpr std::size_t rows = place_of<Rule>(Shape::rows),
                               columns = place_of<Rule>(Shape::columns),
                               axes = place_of<Rule>(Shape::axes);

  static void sum(const Streams& streams, std::size_t first, std::size_t last,
                  const double* scalars) noexcept {
    const auto stages = make_stages<T>(scalars);
    for (; first < last; ++first) {
      sum_tile(streams, *streams.state[rows].matrix, first, stages);
    }
  }
  static void move(const Streams& streams, const double* scalars) noexcept {
    const auto rule = from_array<Rule, T>(scalars + shared_scalars);
    move_matrix<T>(streams.state[rows], streams.state[columns], rule);
  }
  static void close_matrix(const Streams& streams, const double* scalars) noexcept {
    if (!make_stages<T>(scalars).flushes) return;
    const Matrix& m = *streams.state[rows].matrix;
    const std::size_t along = m.groups * m.lines * m.width, across = m.groups * m.length * m.width;
    flush(static_cast<T*>(streams.state[rows].data), m.rows_along ? along : across);
    flush(static_cast<T*>(streams.state[columns].data), m.rows_along ? across : along);
  }
  static void close(const Streams& streams, const double* scalars) noexcept {
    close_axes<T>(streams.state[axes], make_stages<T>(scalars).flushes);
  }

  static constexpr Shaping make() {
    if constexpr (has_shape<Rule>(Shape::rows)) {
      return {.sum = sum, .move = move, .close = close_matrix};
    } else if constexpr (has_shape<Rule>(Shape::axes)) {
      return {.close = close};
    } else {
      return {};
    }
  }
};

// A kernel has a loop for weights with one kind of decay, and a loop for all others; where `rest`
// is `decay`, these are the same loop.
template <class Rule, class T, template <bool> class State, Decay decay, Decay rest = decay>
void run_kernel(const Streams& streams, std::size_t begin, std::size_t end,
                const double* scalars) noexcept {
  const auto stages = make_stages<T>(scalars);
  const auto rule = from_array<Rule, T>(scalars + shared_scalars);
  const Decay found = stages.shrink != 1         ? Decay::decoupled
                      : stages.weight_decay != 0 ? Decay::coupled
                                                 : Decay::none;
  if (decay == rest || decay == found) {
    update<State, decay>(streams, begin, end, rule, stages);
  } else {
    update<State, rest>(streams, begin, end, rule, stages);
  }
}

template <class Rule>
constexpr auto uses_state() {
  std::array<bool, std::size(Rule::states)> used{};
  for (std::size_t k = 0; k < used.size(); ++k) used[k] = Rule::states[k].used;
  return used;
}

// Whether a format of state makes a difference.
template <class Rule>
constexpr bool keeps_in_fewer_bits() {
  return std::ranges::any_of(Rule::states, [](const State& s) { return s.used && !s.in_full; });
}

template <class Rule>
constexpr auto state_names() {
  std::array<const char*, std::size(Rule::states)> names{};
  for (std::size_t k = 0; k < names.size(); ++k) names[k] = Rule::states[k].name;
  return names;
}

template <class Rule>
concept Remembers = requires { typename Rule::Memory; };

template <class Rule>
void weigh(double* scalars, const double* sums, double size) noexcept {
  auto rule = from_array<Rule>(scalars);
  if constexpr (Remembers<Rule>) {
    double* const memory = scalars + std::size(Rule::scalars);
    auto moved = from_array<typename Rule::Memory>(memory);
    rule.weigh(sums, size, moved);
    std::ranges::copy(to_array(moved), memory);
  } else {
    rule.weigh(sums, size);
  }
  std::ranges::copy(to_array(rule), scalars);
}

// Whether the stages let the weights decay, and not the rule itself.
template <class Rule>
constexpr bool decays_by_stages() {
  const auto is_decay = [](std::string_view name) { return name == "weight_decay"; };
  return std::ranges::none_of(Rule::hyper, is_decay);
}

// Measured in bench/NOTES.md: which loops are worth the time that they take to compile.
template <template <class> class Rule>
constexpr Variant make_variant() {
  using R = Rule<float>;
  constexpr auto used = uses_state<R>();
  Variant variant{};
  variant.f32.fill(run_kernel<R, float, FloatState, Decay::none>);
  if constexpr (keeps_in_fewer_bits<R>()) {
    variant.f32[bf16_state] = run_kernel<R, float, BFloat16State, Decay::decoupled>;
    variant.f32[q8_state] = run_kernel<R, float, Q8State, Decay::decoupled>;
  }
  if constexpr (decays_by_stages<R>()) {
    variant.f32_decay = run_kernel<R, float, FloatState, Decay::coupled, Decay::decoupled>;
    variant.f64 = run_kernel<Rule<double>, double, DoubleState, Decay::none, Decay::decoupled>;
  } else {
    variant.f32_decay = variant.f32[plain_state];
    variant.f64 = run_kernel<Rule<double>, double, DoubleState, Decay::none>;
  }
  std::ranges::copy(used, variant.uses_state);
  if constexpr (Measures<R>) {
    variant.measure_f32.fill(run_measure<R, float, FloatState>);
    if constexpr (keeps_in_fewer_bits<R>()) {
      variant.measure_f32[bf16_state] = run_measure<R, float, BFloat16State>;
      variant.measure_f32[q8_state] = run_measure<R, float, Q8State>;
    }
    variant.measure_f64 = run_measure<Rule<double>, double, DoubleState>;
    static_assert(R::n_sums <= max_sums);
    variant.n_sums = R::n_sums;
    variant.weigh = weigh<Rule<double>>;
  }
  if constexpr (Directed<R>) {
    variant.direct_f32.fill(run_direct<R, float, FloatState>);
    if constexpr (keeps_in_fewer_bits<R>()) {
      variant.direct_f32[bf16_state] = run_direct<R, float, BFloat16State>;
      variant.direct_f32[q8_state] = run_direct<R, float, Q8State>;
    }
    variant.direct_f64 = run_direct<Rule<double>, double, DoubleState>;
  }
  variant.shaping_f32 = ShapingOf<R, float>::make();
  variant.shaping_f64 = ShapingOf<Rule<double>, double>::make();
  return variant;
}

template <template <class, bool...> class Rule, unsigned mask, class Options>
struct Bound;
template <template <class, bool...> class Rule, unsigned mask, std::size_t... I>
struct Bound<Rule, mask, std::index_sequence<I...>> {
  template <class T>
  using Type = Rule<T, (mask >> I & 1u)...>;
};

template <template <class, bool...> class Rule, std::size_t n_options, std::size_t... mask>
constexpr auto make_variants(std::index_sequence<mask...>) {
  return std::array<Variant, sizeof...(mask)>{
      make_variant<Bound<Rule, mask, std::make_index_sequence<n_options>>::template Type>()...};
}

// What a rule's header says, in arrays.
template <class Rule>
struct Said {
  static constexpr std::size_t n_states = std::size(Rule::states);
  static constexpr std::size_t n_hyper = std::size(Rule::hyper);
  static_assert(n_states <= max_states);
  static_assert(n_hyper <= max_hyper);
  static_assert(sizeof(Rule) == std::size(Rule::scalars) * sizeof(double), "name every scalar");
  static_assert(sizeof(typename Rule::Hyper) == n_hyper * sizeof(double), "name every member");

  static constexpr auto states = state_names<Rule>();
  static constexpr auto has_sign = [] {
    std::array<bool, n_states> found{};
    for (std::size_t k = 0; k < n_states; ++k) found[k] = Rule::states[k].has_sign;
    return found;
  }();
  static constexpr auto in_full = [] {
    std::array<bool, n_states> found{};
    for (std::size_t k = 0; k < n_states; ++k) found[k] = Rule::states[k].in_full;
    return found;
  }();
  static constexpr auto start = [] {
    std::array<int, n_states> found{};
    for (std::size_t k = 0; k < n_states; ++k) {
      const char* name = Rule::states[k].start;
      const auto* place = std::ranges::find(Rule::hyper, std::string_view(name ? name : ""));
      if (name && place == std::end(Rule::hyper)) throw "start: no such hyperparameter";
      found[k] = name ? static_cast<int>(place - Rule::hyper) : -1;
    }
    return found;
  }();
  static constexpr auto defaults = to_array(typename Rule::Hyper{});
  static constexpr auto memory_start = [] {
    if constexpr (Remembers<Rule>) {
      static_assert(sizeof(typename Rule::Memory) == std::size(Rule::memory) * sizeof(double));
      return to_array(typename Rule::Memory{});
    } else {
      return std::array<double, 0>{};
    }
  }();
  static_assert(memory_start.size() <= max_memory);
  static_assert(shared_scalars + std::size(Rule::scalars) + memory_start.size() <= max_scalars);
  static constexpr auto memory = []() -> std::span<const char* const> {
    if constexpr (Remembers<Rule>) return Rule::memory;
    return {};
  }();

  static void at(double step, const double* hyper, [[maybe_unused]] const double* before,
                 double* scalars) noexcept {
    const auto named = from_array<typename Rule::Hyper>(hyper);
    if constexpr (Remembers<Rule>) {
      auto moved = from_array<typename Rule::Memory>(before);
      const Rule rule = Rule::at(step, named, moved);
      scalars = std::ranges::copy(to_array(rule), scalars).out;
      std::ranges::copy(to_array(moved), scalars);
    } else {
      std::ranges::copy(to_array(Rule::at(step, named)), scalars);
    }
  }
};

// The shape of each state where every option is on.
template <class Rule>
constexpr auto shapes = [] {
  std::array<Shape, std::size(Rule::states)> found{};
  for (std::size_t k = 0; k < found.size(); ++k) found[k] = Rule::states[k].shape;
  return found;
}();

template <template <class, bool...> class Rule, std::size_t n_options>
constexpr auto variants =
    make_variants<Rule, n_options>(std::make_index_sequence<(1u << n_options)>{});

template <template <class, bool...> class Rule, std::size_t n_options>
constexpr RuleRow make_row(const char* name, const char* const* options) {
  // Names and numbers are the same for every choice of options; this takes the first one.
  using Options = std::make_index_sequence<n_options>;
  using R = typename Bound<Rule, 0, Options>::template Type<double>;
  using Whole = typename Bound<Rule, (1u << n_options) - 1, Options>::template Type<double>;
  const bool factored = n_options > 0 && std::string_view(options[n_options - 1]) == "factored";
  return {.at = Said<R>::at,
          .options = std::span(options, n_options - factored),
          .variants = variants<Rule, n_options>,
          .factored = factored,
          .sums_over_all = requires { R::sums_over_all; },
          .keeps_weights = std::ranges::any_of(R::states, &State::has_weights),
          .full_weights = requires { R::full_weights; },
          .name = name,
          .states = Said<R>::states,
          .scalars = R::scalars,
          .hyper = R::hyper,
          .defaults = Said<R>::defaults,
          .has_sign = Said<R>::has_sign,
          .in_full = Said<R>::in_full,
          .shape = shapes<Whole>,
          .start = Said<R>::start,
          .memory = Said<R>::memory,
          .memory_start = Said<R>::memory_start};
}

}  // namespace
}  // namespace onepass::inline ONEPASS_ISA
