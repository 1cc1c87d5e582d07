// The table that every instruction set's build of kernels.cpp fills.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "onepass/panels.hpp"

namespace onepass {

inline constexpr std::size_t max_states = 3;

// Updates elements [begin, end) of one tensor. `scalars`: the gradient's scale, the coupled weight
// decay, then the rule's own in its order.
using Kernel = void (*)(void* param, const void* grad, void* const* state, std::size_t begin,
                        std::size_t end, const double* scalars) noexcept;

inline constexpr std::size_t shared_scalars = 2;
inline constexpr std::size_t max_scalars = 16;  // those included

// One choice of a rule's options.
struct Variant {
  Kernel f32, f64;
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
  BatchNormTable<float> batch_norm_f32;
  BatchNormTable<double> batch_norm_f64;
  void (*invert_deviation)(double* variance, std::size_t n, double eps) noexcept;
};

}  // namespace onepass
