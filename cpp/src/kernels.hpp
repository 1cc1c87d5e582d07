// The table that every instruction set's build of kernels.cpp fills.
#pragma once

#include <cstddef>
#include <span>

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

struct KernelTable {
  std::span<const RuleRow> rules;
  RuleRow copy_limit;  // not a rule: the benchmarks' ruler
};

}  // namespace onepass
