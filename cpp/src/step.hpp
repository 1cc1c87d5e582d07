// One step over any number of tensors: cut into pieces, shared out over the threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels.hpp"
#include "shapes.hpp"

namespace onepass {

// What a small step with two states reads lies in two cache lines, and the rest in a third one.
struct alignas(64) Tensor {
  std::size_t size;
  Kernel kernel;
  const double* scalars;
  Streams streams;
  std::uint32_t item_size;        // of the numbers that the rule computes with
  std::uint32_t first_piece = 0;  // its number among all tensors' pieces; each pass sets it
  SumOfSquares squares;
};
static_assert(sizeof(Tensor) == 3 * 64);

std::size_t total_elements(std::span<const Tensor> tensors) noexcept;

// The arrays must not overlap where one of them is written. Cannot fail.
void step(std::span<Tensor> tensors, int threads) noexcept;

// Rows of a tensor, each once.
struct RowIndex {
  std::span<const std::int64_t> rows;
  std::size_t width;  // elements of a row
};
// Steps these rows where they stand. Their gradients lie side by side, and the tensor's size is
// that of these.
void step_rows(Tensor& tensor, const RowIndex& rows, int threads) noexcept;

// The same, but of some tensors some rows alone (rows.hpp), whose gradients lie side by side; such
// a tensor's size is that of its gradient. `rows`: of each tensor, or none.
struct Rows;
void step(std::span<Tensor> tensors, std::span<const Rows> rows, int threads) noexcept;

// How a tensor is measured before its step, and the numbers of the step that depend on it. Of one
// that is not, all are null.
struct Measuring {
  Measure measure = nullptr;
  Weigh weigh = nullptr;
  double* scalars = nullptr;  // the rule's own
};
// Fills `sums` block by block, max_sums side by side. `how`: of each tensor.
void measure(std::span<Tensor> tensors, const Measuring* how, std::span<double> sums,
             int threads) noexcept;

// The same of some blocks of one tensor, from `first` on, as many as `sums` has room for.
void measure_blocks(const Tensor& tensor, const Measuring& how, std::size_t first,
                    std::span<double> sums, int threads) noexcept;

// The sums of squared gradients over the tiles of rows and columns; `shaped`: of each tensor.
void sum_tiles(std::span<Tensor> tensors, const ShapedState* shaped, int threads) noexcept;

// Zeroes the gradients that are to be zeroed, which is all that a skipped step does.
void zero_gradients(std::span<Tensor> tensors, int threads) noexcept;

// The Euclidean norm of all gradients together. Its sums are of squares in units of 1 / unit.
struct Norm {
  double value, unit;
  const Tensor* nonfinite;  // the first one with an infinity or a NaN in its gradient, or null
  bool is_finite;           // not, too, where another process has such a one
};
// In how many blocks the tensors are summed, by norm() and by measure().
std::size_t count_blocks(const Tensor& tensor) noexcept;
std::size_t total_blocks(std::span<const Tensor> tensors) noexcept;
// The same bits for any number of threads.
Norm norm(std::span<Tensor> tensors, std::span<double> sums, int threads) noexcept;

// What puts the sums of all processes in the place of this one's: it is given the sums of squares
// of the blocks here, and returns those of all blocks, in order. It may throw.
using Exchange = std::function<std::vector<double>(std::span<const double>)>;
// The norm of the gradients of all processes together. Where it is out of range or not finite, the
// sums are exchanged again, in other units: all processes see the same ones, and do so together.
[[gnu::cold]] Norm norm(std::span<Tensor> tensors, std::span<double> sums, int threads,
                        const Exchange& exchange);

}  // namespace onepass
