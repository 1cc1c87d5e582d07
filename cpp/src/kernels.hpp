// The table that every instruction set's build of the kernels fills.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "onepass/panels.hpp"
#include "onepass/row_panels.hpp"
#include "onepass/stored.hpp"

namespace onepass {

// Updates elements [begin, end) of one tensor; where it is rounded, `begin` is that of a block.
// `scalars`: those that all rules share, then the rule's own in its order.
using Kernel = void (*)(const Streams&, std::size_t begin, std::size_t end,
                        const double* scalars) noexcept;

enum SharedScalar : std::size_t {
  grad_scale,
  weight_decay,    // coupled
  shrink,          // 1 - lr * decay of the decoupled one, 1 without
  late_shrink,     // 1 / (1 + lr * decay) of the proximal one, 1 without
  cautious,        // lr * decay of the cautious one, 0 without
  max_grad_value,  // infinite: none
  average_weight,  // of the new weights in their average
  begins_slow,     // 1 where a round of Lookahead begins: the slow weights become the weights
  slow_weight,     // of the new weights in the slow ones where a round ends, else 0
  random_seed,     // of stochastic rounding
  step_number,     // from 1; decides about random bits, and when subnormal numbers become zero
  shared_scalars
};
inline constexpr std::size_t max_scalars = 32;  // those included, and the memory behind them
inline constexpr std::size_t max_hyper = 16;    // hyperparameters of a rule
inline constexpr std::size_t max_memory = 3;    // numbers that a rule remembers
inline constexpr std::size_t max_sums = 2;      // that a rule measures

// Writes the sums that a rule measures over elements [begin, end) of one tensor; `begin` is that of
// a block.
using Measure = void (*)(const Streams&, std::size_t begin, std::size_t end, const double* scalars,
                         double* sums) noexcept;
// Changes a rule's own scalars, and the memory behind them, by the sums over a tensor of `size`.
using Weigh = void (*)(double* scalars, const double* sums, double size) noexcept;

// What a rule whose state has other shapes does besides (factored.hpp), of one tensor with the
// numbers of its step.
struct Shaping {
  // Sums the squared gradients over some tiles of a Matrix.
  void (*sum)(const Streams&, std::size_t first, std::size_t last,
              const double* scalars) noexcept = nullptr;
  // Then, before the step: moves the numbers of rows and columns.
  void (*move)(const Streams&, const double* scalars) noexcept = nullptr;
  // After the step.
  void (*close)(const Streams&, const double* scalars) noexcept = nullptr;
};

// The sum of the squares of x * unit (reduce.hpp).
using SumOfSquares = double (*)(const Stored& x, std::size_t begin, std::size_t end, double unit,
                                bool prefetch_ahead) noexcept;

// Formats of parameters, gradients and copies; plain: in the type that the rule computes with. The
// last two are of gradients alone, each beside the other one's parameters.
enum Format : std::uint8_t {
  plain,
  bf16,
  f16,
  bf16_random,
  f16_random,
  f32_beside_f64,
  f64_beside_f32,
  formats
};
// Formats of state; rounded at random where not plain.
enum StateFormat : std::uint8_t { plain_state, bf16_state, q8_state, state_formats };

// The kernels of one choice of a rule's options. Every kernel does both weight decays, to the same
// bits; f32_decay is the fastest one for float32 weights with plain state that have either of them.
struct Variant {
  std::array<Kernel, state_formats> f32;
  Kernel f32_decay;  // with plain state
  Kernel f64;
  Weigh weigh = nullptr;
  Measure direct_f64 = nullptr;  // writes the direction, and measures one sum
  bool uses_state[max_states];
  std::array<Measure, state_formats> measure_f32{};  // null where the rule measures nothing
  Measure measure_f64 = nullptr;
  std::size_t n_sums = 0;                           // that it measures of each tensor
  std::array<Measure, state_formats> direct_f32{};  // null where the rule is not directed
  Shaping shaping_f32{}, shaping_f64{};
};

// The kernel of a parameter; `decays`: by either weight decay.
inline Kernel find_kernel(const Variant& variant, bool is_double, StateFormat format,
                          bool decays) noexcept {
  if (is_double) return variant.f64;
  return decays && format == plain_state ? variant.f32_decay : variant.f32[format];
}

inline Measure find_measure(const Variant& variant, bool is_double, StateFormat format) noexcept {
  return is_double ? variant.measure_f64 : variant.measure_f32[format];
}

inline Measure find_direct(const Variant& variant, bool is_double, StateFormat format) noexcept {
  return is_double ? variant.direct_f64 : variant.direct_f32[format];
}

inline const Shaping& find_shaping(const Variant& variant, bool is_double) noexcept {
  return is_double ? variant.shaping_f64 : variant.shaping_f32;
}

// A row of rules.def, and what the rule's header says.
struct RuleRow {
  // What every step reads stands first, in one cache line.
  //
  // The numbers of a step (from 1): the rule's own scalars, not those that all rules share, and
  // behind them what its memory becomes.
  void (*at)(double step, const double* hyper, const double* memory,
             double* scalars) noexcept = nullptr;
  std::span<const char* const> options{};
  std::span<const Variant>
      variants{};              // index: bit k option k, behind these whether it is factored
  bool factored = false;       // whether parameters of two or more axes have variants of their own
  bool sums_over_all = false;  // and not of each tensor; its memory is one for all, too
  bool keeps_weights = false;  // in its state, where the first step puts them
  bool full_weights = false;   // rounded ones would drift apart from others that the rule keeps
  const char* name;
  std::span<const char* const> states{}, scalars{}, hyper{};
  std::span<const double> defaults{};  // of each hyperparameter
  std::span<const bool> has_sign{};    // of each state
  std::span<const bool> in_full{};     // of each state: kept as it is computed, in any format
  std::span<const Shape> shape{};      // of each state, where the parameter has two or more axes
  std::span<const int> start{};        // of each state: the hyperparameter it starts from, -1: zero
  std::span<const char* const> memory{};
  std::span<const double> memory_start{};
};

// The loops of batch normalisation (batchnorm.hpp, channel_values.hpp) for one choice of what an
// index means, on arrays of T.
template <class T>
struct BatchNormLoops {
  using Values = Channels<Value<T>>;
  using Sum = void (*)(const Arrays<T>&, const Panel&, const Values&, double* first,
                       double* second) noexcept;
  using Write = void (*)(const Arrays<T>&, const Panel&, const Values&) noexcept;
  void (*set_first_means)(const T* x, const Samples&, std::size_t n, const Values&) noexcept;
  void (*set_statistics)(const Sums&, const Values&, double count, double eps, std::size_t n,
                         const Statistics&) noexcept;
  void (*set_forward)(const Affine&, const Statistics&, std::size_t n, const Values&) noexcept;
  void (*set_input_gradient)(const Affine&, const Statistics&, const Gradients* through,
                             double count, std::size_t n, const Values&) noexcept;
  Sum moments, gradient_sums, small_gradient_sums;  // the last one for double only
  Write normalize, input_gradient, frozen_gradient;
};

// Index: bit 0 a panel has one channel, bit 1 ReLU, bit 2 a residual.
template <class T>
using BatchNormTable = std::array<BatchNormLoops<T>, 8>;

// The loops of row_norm.hpp. Index: whether each element of a row has a weight of its own.
template <class T>
struct RowNormLoops {
  using Sum = void (*)(const RowArrays<T>&, const RowLayout&, const RowBlock&, const Channels<T>&,
                       const Sums& to) noexcept;
  using Write = void (*)(const RowArrays<T>&, const RowLayout&, const RowBlock&,
                         const Channels<T>&) noexcept;
  Sum moments, run_sums;
  void (*row_and_column_sums)(const RowArrays<T>&, const RowLayout&, const RowBlock&,
                              const Channels<T>&, const Sums& rows,
                              const Gradients& columns) noexcept;
  std::array<Write, 2> normalize, input_gradient;
};
struct RowNormTable {
  RowNormLoops<float> f32;
  RowNormLoops<double> f64;
};

struct KernelTable {
  std::span<const RuleRow* const> rules;
  // They add a gradient, in any format, to a sum in the parameter's place; there is no state.
  Kernel add_f32, add_f64;
  // The benchmarks' ruler, which is no rule: variants[k] moves what a rule with k states moves.
  const RuleRow* copy_limit;
  SumOfSquares squares_f32, squares_f64;
  std::array<Codec, formats> codecs;
  BatchNormTable<float> batch_norm_f32;
  BatchNormTable<double> batch_norm_f64;
  BatchNormTable<StoredBFloat16> batch_norm_bf16;
  BatchNormTable<StoredFloat16> batch_norm_f16;
  void (*invert_deviation)(double* variance, std::size_t n, double eps) noexcept;
  const RowNormTable* row_norm;
};

template <class T>
const BatchNormTable<T>& batch_norm_table(const KernelTable& kernels) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return kernels.batch_norm_f32;
  } else if constexpr (std::is_same_v<T, double>) {
    return kernels.batch_norm_f64;
  } else if constexpr (std::is_same_v<T, StoredBFloat16>) {
    return kernels.batch_norm_bf16;
  } else {
    return kernels.batch_norm_f16;
  }
}

}  // namespace onepass
