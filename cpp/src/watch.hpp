// What a step can say of each tensor: norms of its gradient, its update and its new weights.
#pragma once

#include <cstddef>
#include <span>

#include "step.hpp"

namespace onepass {

// The loops (onepass/watch.hpp) for one type that a rule computes with.
struct WatchLoops {
  void (*copy_weights)(const Streams&, std::size_t begin, std::size_t n, void* weights) noexcept;
  std::size_t (*count_zeros)(const Stored& grad, std::size_t begin, std::size_t n) noexcept;
  void (*squares)(const void* before, const void* after, std::size_t n, double unit,
                  double* of_update, double* of_weights) noexcept;
};
struct WatchTable {
  WatchLoops f32, f64;
};

// A sum of squares of x * unit.
struct SquareSum {
  double value = 0, unit = 1;
  void add(SquareSum other) noexcept;
};

// Sums over a block of a tensor.
struct Watched {
  SquareSum grad, update, param;
  std::size_t zeros = 0;  // elements of the gradient
};

struct TensorStats {
  double grad_norm, grad_zero_fraction, update_norm, param_norm, update_ratio;
};

// Steps as `step` does, to the same bits, and fills `watched`, which has an element for each block.
// Without `moves` it fills `watched` and steps nothing. The sums do not depend on the number of
// threads.
void step_and_watch(std::span<Tensor> tensors, std::span<Watched> watched, int threads,
                    bool moves) noexcept;

// Computes what is reported of a tensor from the sums over its `blocks`.
TensorStats stats_of(const Tensor& tensor, std::span<const Watched> blocks,
                     double grad_scale) noexcept;

}  // namespace onepass
