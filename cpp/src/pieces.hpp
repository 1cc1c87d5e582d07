// How the passes over many tensors cut them into pieces, and share these out over the threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "parallel.hpp"
#include "step.hpp"

namespace onepass {

// Elements without which a thread is not worth waking. Measured: bench/NOTES.md.
inline constexpr std::size_t min_elements_per_thread = 16384;
// Elements that the norm sums at a time. Its bits depend on this number.
inline constexpr std::size_t norm_block = 16384;

// Where the squares of doubles are infinite or vanish, they are summed in units of 2^600 or 2^-600.
inline constexpr double large_unit = 0x1p-600, small_unit = 0x1p600;
inline constexpr double smallest_sum = 0x1p-900;

constexpr std::size_t divide_up(std::size_t a, std::size_t b) noexcept {
  return (a + b - 1) / b;
}

struct Range {
  std::size_t begin, end;
};
inline Range block(const Tensor& tensor, std::size_t index) noexcept {
  return {index * norm_block, std::min((index + 1) * norm_block, tensor.size)};
}

// The tensor that contains a piece.
inline const Tensor& tensor_of(std::span<const Tensor> tensors, std::size_t piece) noexcept {
  const auto after =
      std::upper_bound(tensors.begin(), tensors.end(), piece,
                       [](std::size_t i, const Tensor& tensor) { return i < tensor.first_piece; });
  return *(after - 1);
}

// Calls body(tensor, index of the piece among the tensor's own, and among all) for each of
// count(tensor) pieces of every tensor.
template <class Count, class Body>
void for_each_piece(std::span<Tensor> tensors, int threads, const Count& count,
                    const Body& body) noexcept {
  std::size_t pieces = 0;
  for (Tensor& tensor : tensors) {
    tensor.first_piece = static_cast<std::uint32_t>(pieces);
    pieces += count(tensor);
  }
  const std::size_t useful = total_elements(tensors) / min_elements_per_thread;
  threads = static_cast<int>(std::clamp<std::size_t>(useful, 1, static_cast<std::size_t>(threads)));
  if (threads == 1) {  // finding a piece's tensor takes longer than stepping a small one
    for (const Tensor& tensor : tensors) {
      const std::size_t first = tensor.first_piece, n = count(tensor);
      for (std::size_t i = 0; i < n; ++i) body(tensor, i, first + i);
    }
    return;
  }
  parallel_for(pieces, threads, [&](std::size_t index) noexcept {
    const Tensor& tensor = tensor_of(tensors, index);
    body(tensor, index - tensor.first_piece, index);
  });
}

// Lets a pass over these tensors prefetch if what a step of them reads is far away.
void prefetch_if_far(std::span<Tensor> tensors) noexcept;

}  // namespace onepass
