#include "step.hpp"

#include <algorithm>
#include <cstdint>

#include "parallel.hpp"

namespace onepass {
namespace {

// Elements that a thread takes at a time, and how many a thread must get to be worth waking. Both
// measured: bench/NOTES.md.
constexpr std::size_t piece_size = 16384;
constexpr std::size_t min_elements_per_thread = 16384;

constexpr std::size_t cache_line = 64;

// Pieces begin on cache lines of the parameter; so the first is short by what lies before.
std::size_t lead(const Tensor& tensor) noexcept {
  return reinterpret_cast<std::uintptr_t>(tensor.param) % cache_line / tensor.item_size;
}

void run_piece(std::span<const Tensor> tensors, std::size_t index) noexcept {
  const auto after =
      std::upper_bound(tensors.begin(), tensors.end(), index,
                       [](std::size_t i, const Tensor& tensor) { return i < tensor.first_piece; });
  const Tensor& tensor = *(after - 1);
  const std::size_t piece = index - tensor.first_piece, skip = lead(tensor);
  const std::size_t begin = piece == 0 ? 0 : piece * piece_size - skip;
  const std::size_t end = std::min((piece + 1) * piece_size - skip, tensor.size);
  tensor.kernel(tensor.param, tensor.grad, tensor.state, begin, end, tensor.scalars);
}

}  // namespace

std::size_t total_elements(std::span<const Tensor> tensors) noexcept {
  std::size_t total = 0;
  for (const Tensor& tensor : tensors) total += tensor.size;
  return total;
}

void step(std::span<Tensor> tensors, int threads) noexcept {
  const std::size_t useful = total_elements(tensors) / min_elements_per_thread;
  if (useful <= 1 || threads <= 1) {
    for (const Tensor& t : tensors) t.kernel(t.param, t.grad, t.state, 0, t.size, t.scalars);
    return;
  }
  std::size_t pieces = 0;
  for (Tensor& tensor : tensors) {
    tensor.first_piece = pieces;
    pieces += tensor.size ? (tensor.size + lead(tensor) + piece_size - 1) / piece_size : 0;
  }
  threads = static_cast<int>(std::min(static_cast<std::size_t>(threads), useful));
  parallel_for(pieces, threads, [&](std::size_t index) noexcept { run_piece(tensors, index); });
}

}  // namespace onepass
