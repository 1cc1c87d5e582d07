// Compiled once per instruction set, each into its own namespace: rules.def becomes one table.
#include "kernels.hpp"

#include <algorithm>
#include <array>
#include <cfloat>
#include <type_traits>
#include <utility>

#include "onepass/batchnorm.hpp"
#include "onepass/channel_values.hpp"
#include "onepass/q8.hpp"
#include "onepass/reduce.hpp"
#include "onepass/rules.def"
#include "onepass/update.hpp"

static_assert(FLT_EVAL_METHOD == 0, "x87 computes wider than it stores: other bits");

namespace onepass::inline ONEPASS_ISA {
namespace {

// The rule's scalars, rounded from double to the type it computes in, as NumPy rounds them.
template <class Rule, class T, std::size_t... I>
Rule make_rule(const double* scalars, std::index_sequence<I...>) noexcept {
  static_assert(sizeof...(I) == 0 || sizeof(Rule) == sizeof...(I) * sizeof(T),
                "every member is a named scalar");
  return Rule{static_cast<T>(scalars[I])...};
}

template <class Rule, class T, bool decay, template <bool> class State>
void run(const Streams& streams, std::size_t begin, std::size_t end,
         const double* scalars) noexcept {
  const Stages<T> stages{static_cast<T>(scalars[grad_scale]),
                         static_cast<T>(scalars[weight_decay]),
                         static_cast<T>(scalars[max_grad_value]),
                         scalars[average_weight],
                         1 - scalars[average_weight],
                         static_cast<std::uint64_t>(scalars[step_number]) % flush_every == 0};
  const auto rule = make_rule<Rule, T>(scalars + shared_scalars,
                                       std::make_index_sequence<std::size(Rule::scalars)>{});
  update<decay, State>(streams, begin, end, rule, stages);
}

template <template <class> class Rule, bool decay>
constexpr Variant make_variant() {
  static_assert(std::size(Rule<float>::states) <= max_states);
  static_assert(shared_scalars + std::size(Rule<float>::scalars) <= max_scalars);
  using R = Rule<float>;
  Variant variant{{run<R, float, decay, FloatState>, run<R, float, decay, BFloat16State>,
                   run<R, float, decay, Q8State>},
                  run<Rule<double>, double, decay, DoubleState>,
                  {}};
  for (std::size_t k = 0; k < std::size(Rule<float>::states); ++k) {
    variant.uses_state[k] = Rule<float>::states[k].used;
  }
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
      make_variant<Bound<Rule, (mask >> 1), std::make_index_sequence<n_options>>::template Type,
                   (mask & 1) != 0>()...};
}

template <template <class, bool...> class Rule, std::size_t n_options>
struct Expanded {
  using AllOff = typename Bound<Rule, 0, std::make_index_sequence<n_options>>::template Type<float>;
  static constexpr auto variants =
      make_variants<Rule, n_options>(std::make_index_sequence<(2u << n_options)>{});
  static constexpr auto states = [] {
    std::array<const char*, std::size(AllOff::states)> names{};
    for (std::size_t k = 0; k < names.size(); ++k) names[k] = AllOff::states[k].name;
    return names;
  }();
  static constexpr auto has_sign = [] {
    std::array<bool, std::size(AllOff::states)> found{};
    for (std::size_t k = 0; k < found.size(); ++k) found[k] = AllOff::states[k].has_sign;
    return found;
  }();
};

template <template <class, bool...> class Rule, std::size_t n_options>
constexpr RuleRow make_row(const char* name, const char* const* options) {
  using R = Expanded<Rule, n_options>;
  return {name,        R::states,  R::AllOff::scalars, std::span(options, n_options),
          R::has_sign, R::variants};
}

// The traffic of a rule that keeps the chosen arrays, and one addition for each: the ruler that the
// benchmarks hold every rule against.
template <class T, bool first, bool second, bool third>
struct CopyLimit {
  static constexpr State states[] = {{"first", first}, {"second", second}, {"third", third}};
  static_assert(std::size(states) == max_states);
  static constexpr std::array<const char*, 0> scalars{};

  template <class... S>
  void operator()(T& param, T grad, S&... state) const noexcept {
    param += grad;
    ((state += grad), ...);
  }
};
constexpr const char* copy_limit_options[] = {"first", "second", "third"};

// A leading empty name, because a rule without options would make an empty array.
#define RULE(name, Rule, ...) \
  constexpr const char* name##_options[] = {"" __VA_OPT__(, ) __VA_ARGS__};
#include "onepass/rules.def"

constexpr RuleRow rows[] = {
#define RULE(name, Rule, ...) \
  make_row<Rule, std::size(name##_options) - 1>(#name, name##_options + 1),
#include "onepass/rules.def"
};

template <template <class> class Each, bool relu, bool residual, class T>
constexpr BatchNormLoops<T> make_loops() {
  typename BatchNormLoops<T>::Sum small = nullptr;
  if constexpr (std::is_same_v<T, double>) small = small_gradient_sums<Each, relu, residual, T>;
  return {set_first_means<T>,
          set_statistics<T>,
          set_forward<T>,
          set_input_gradient<T>,
          moments<Each, T>,
          gradient_sums<Each, relu, residual, T>,
          small,
          normalize<Each, relu, residual, T>,
          input_gradient<Each, relu, residual, false, T>,
          input_gradient<Each, relu, residual, true, T>};
}

template <class T>
constexpr BatchNormTable<T> batch_norm{
    make_loops<PerColumn, false, false, T>(), make_loops<ForAll, false, false, T>(),
    make_loops<PerColumn, true, false, T>(),  make_loops<ForAll, true, false, T>(),
    make_loops<PerColumn, false, true, T>(),  make_loops<ForAll, false, true, T>(),
    make_loops<PerColumn, true, true, T>(),   make_loops<ForAll, true, true, T>()};

template <class Format, bool random>
constexpr Codec halved{sizeof(std::uint16_t), Halved<Format, random>::open,
                       Halved<Format, random>::close, Halved<Format, random>::follow};

constexpr KernelTable table{rows,
                            make_row<CopyLimit, 3>("copy_limit", copy_limit_options),
                            sum_of_squares<float>,
                            sum_of_squares<double>,
                            {{{},
                              halved<BFloat16, false>,
                              halved<Float16, false>,
                              halved<BFloat16, true>,
                              halved<Float16, true>}},
                            batch_norm<float>,
                            batch_norm<double>,
                            invert_deviation};

}  // namespace

const KernelTable& kernel_table() noexcept;
const KernelTable& kernel_table() noexcept {
  return table;
}

}  // namespace onepass::inline ONEPASS_ISA
