// The table that every instruction set's build of kernels.cpp fills.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "onepass/panels.hpp"

namespace onepass {

inline constexpr std::size_t max_states = 3;

// Writes numbers in fewer bits, rounded to nearest, ties to even.
using Narrow = void (*)(const float* values, std::size_t n, std::uint16_t* stored) noexcept;

// One tensor's arrays. What is not there is null.
struct Streams {
  void* param;
  const void* grad;
  void* state[max_states];
  void* average;  // of the weights
  void* zeroed;   // the gradient, where it is to be zero afterwards
  void* copy;     // of the parameter, in fewer bits
  Narrow narrow;  // into the copy
};

// Updates elements [begin, end) of one tensor. `scalars`: those that all rules share, then the
// rule's own in its order.
using Kernel = void (*)(const Streams&, std::size_t begin, std::size_t end,
                        const double* scalars) noexcept;

enum SharedScalar : std::size_t {
  grad_scale,
  weight_decay,    // coupled
  max_grad_value,  // infinite: none
  average_weight,  // of the new weights in their average
  shared_scalars
};
inline constexpr std::size_t max_scalars = 16;  // those included

// The sum of the squares of x * unit (reduce.hpp).
using SumOfSquares = double (*)(const void* x, std::size_t begin, std::size_t end,
                                double unit) noexcept;

// How a gradient or a copy is stored: as its parameter, or beside a float one in fewer bits.
enum Format : std::size_t { as_param, bf16, f16, formats };

// One choice of a rule's options.
struct Variant {
  std::array<Kernel, formats> f32;
  Kernel f64;
  bool uses_state[max_states];
};

struct RuleRow {
  const char* name;
  std::span<const char*const> states, scalars, options;
  std::span<const Variant> variants;  // index: bit 0 coupled weight decay, bit 1 + k option k
};

// The loops of batch normalisation (batchnorm.hpp, channel_values.hpp) for one choice of what an
// index means.
template <class T>
struct BatchNormLoops {
  using Sum = void (*)(const Arrays<T>&, const Panel&, const Channels<T>&, double* first,
                       double* second) noexcept;
  using Write = void (*)(const Arrays<T>&, const Panel&, const Channels<T>&) noexcept;
  void (*set_forward)(const Affine&, const Statistics&, std::size_t begin, std::size_t end,
                      const Channels<T>&) noexcept;
  Sum moments, gradient_sums;
  Write normalize, input_gradient, frozen_gradient;
};

// Index: bit 0 a panel has one channel, bit 1 ReLU, bit 2 a residual.
template <class T>
using BatchNormTable = std::array<BatchNormLoops<T>, 8>;

struct KernelTable {
  std::span<const RuleRow> rules;
  RuleRow copy_limit;  // not a rule: the benchmarks' ruler
  std::array<SumOfSquares, formats> squares_f32;
  SumOfSquares squares_f64;
  std::array<Narrow, formats> narrow;  // none for as_param
  BatchNormTable<float> batch_norm_f32;
  BatchNormTable<double> batch_norm_f64;
  void (*invert_deviation)(double* variance, std::size_t n, double eps) noexcept;
};

}  // namespace onepass
