// One step over any number of tensors: cut into pieces, shared out over the threads.
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
  std::size_t item_size;
  Kernel kernel;
  const double* scalars;
  std::size_t first_piece = 0;  // among those of all tensors; step() fills it in
};

std::size_t total_elements(std::span<const Tensor> tensors) noexcept;

// The arrays must not overlap where one of them is written. Cannot fail.
void step(std::span<Tensor> tensors, int threads) noexcept;

}  // namespace onepass
