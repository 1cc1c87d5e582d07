// The table of kernels, and the kernels that belong to no rule. Compiled once per instruction set,
// each time into a namespace of its own.
#include "kernels.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <type_traits>
#include <utility>

#include "make_row.hpp"
#include "onepass/batchnorm.hpp"
#include "onepass/channel_values.hpp"
#include "onepass/formats.hpp"
#include "onepass/reduce.hpp"
#include "onepass/watch.hpp"
#include "watch.hpp"

namespace onepass::inline ONEPASS_ISA {

// Each from a unit of its own (rule_kernels.cpp).
#define RULE(name, Rule, ...) extern const RuleRow name##_row;
#include "onepass/rules.def"
extern const RowNormTable row_norm_table;

namespace {

constexpr const RuleRow* rows[] = {
#define RULE(name, Rule, ...) &name##_row,
#include "onepass/rules.def"
};

// Adds the gradient to the parameter and to the first n_states arrays of state; measured, it sums
// all of them.
template <class T, std::size_t n_states>
struct Add {
  static constexpr State states[] = {{"first", n_states > 0},
                                     {"second", n_states > 1},
                                     {"third", n_states > 2},
                                     {"fourth", n_states > 3}};
  static_assert(std::size(states) == max_states);
  static constexpr std::array<const char*, 0> scalars{};

  // Takes n_states of the states, and the sum last.
  static constexpr std::size_t n_sums = 1;
  void measure(T param, T grad, T first, T second, T third, T fourth, double& sum) const noexcept {
    const T kept[] = {first, second, third, fourth};
    for (std::size_t k = 0; k < n_states; ++k) grad += kept[k];
    sum += static_cast<double>(param + grad);
  }

  template <class... S>
  void operator()(T& param, T grad, S&... state) const noexcept {
    param += grad;
    ((state += grad), ...);
  }
};
template <std::size_t n_states>
constexpr Kernel add_f32 = run_kernel<Add<float, n_states>, float, FloatState, Decay::none>;
template <std::size_t n_states>
constexpr Kernel add_f64 = run_kernel<Add<double, n_states>, double, DoubleState, Decay::none>;

template <std::size_t n_states>
constexpr Variant make_copy_limit() {
  Variant variant{};
  variant.f32[plain_state] = add_f32<n_states>;
  variant.f64 = add_f64<n_states>;
  variant.measure_f32[plain_state] = run_measure<Add<float, n_states>, float, FloatState>;
  variant.measure_f64 = run_measure<Add<double, n_states>, double, DoubleState>;
  std::ranges::copy(uses_state<Add<float, n_states>>(), variant.uses_state);
  return variant;
}
template <std::size_t... n>
constexpr auto make_copy_limits(std::index_sequence<n...>) {
  return std::array<Variant, sizeof...(n)>{make_copy_limit<n>()...};
}
constexpr auto copy_limits = make_copy_limits(std::make_index_sequence<max_states + 1>{});
constexpr auto copy_limit_states = state_names<Add<float, 0>>();
constexpr RuleRow copy_limit{
    .variants = copy_limits, .name = "copy_limit", .states = copy_limit_states};

template <template <class> class Each, bool relu, bool residual, class T>
constexpr BatchNormLoops<T> make_loops() {
  typename BatchNormLoops<T>::Sum small = nullptr;
  if constexpr (std::is_same_v<T, double>) small = small_gradient_sums<Each, relu, residual, T>;
  using V = Value<T>;
  return {set_first_means<T>,
          set_statistics<V>,
          set_forward<V>,
          set_input_gradient<V>,
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
                       Halved<Format, random>::close, Halved<Format, random>::follow,
                       Halved<Format, random>::open};
constexpr Codec single{sizeof(float), nullptr, nullptr, nullptr, open_other<float, double>};
constexpr Codec wide{sizeof(double), open_other<double, float>, nullptr, nullptr, nullptr};

constexpr KernelTable table{rows,
                            add_f32<0>,
                            add_f64<0>,
                            &copy_limit,
                            sum_of_squares<float>,
                            sum_of_squares<double>,
                            {{{},
                              halved<BFloat16, false>,
                              halved<Float16, false>,
                              halved<BFloat16, true>,
                              halved<Float16, true>,
                              single,
                              wide}},
                            batch_norm<float>,
                            batch_norm<double>,
                            batch_norm<StoredBFloat16>,
                            batch_norm<StoredFloat16>,
                            invert_deviation,
                            &row_norm_table};

template <class T>
constexpr WatchLoops watching{
    [](const Streams& streams, std::size_t begin, std::size_t n, void* weights) noexcept {
      copy_weights(streams, begin, n, static_cast<T*>(weights));
    },
    count_zeros<T>,
    [](const void* before, const void* after, std::size_t n, double unit, double* of_update,
       double* of_weights) noexcept {
      watched_squares(static_cast<const T*>(before), static_cast<const T*>(after), n, unit,
                      of_update, of_weights);
    }};

constexpr WatchTable watches{watching<float>, watching<double>};

}  // namespace

const WatchTable& watch_table() noexcept;
const WatchTable& watch_table() noexcept {
  return watches;
}

const KernelTable& kernel_table() noexcept;
const KernelTable& kernel_table() noexcept {
  return table;
}

}  // namespace onepass::inline ONEPASS_ISA
