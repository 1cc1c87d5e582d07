// One step over any number of tensors: their tiles, shared out over the threads of one region.
#pragma once

#include <cstddef>
#include <span>

#include "kernels.hpp"

namespace onepass {

struct Tensor {
  void* param;
  const void* grad;
  void* state[max_states];
  std::size_t size;
  Kernel kernel;
  const double* scalars;
};

std::size_t total_elements(std::span<const Tensor> tensors) noexcept;

// The arrays must not overlap where one of them is written. Cannot fail.
void step(std::span<const Tensor> tensors, int max_threads) noexcept;

}  // namespace onepass
