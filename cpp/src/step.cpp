#include "step.hpp"

#include <algorithm>

#include "parallel.hpp"

namespace onepass {
namespace {

// A share of the work is a whole number of these: few enough to count quickly, and large enough
// that two threads seldom meet in a cache line.
constexpr std::size_t grain = 4096;

// Below this many elements a second thread costs more than it brings. See bench/NOTES.md.
constexpr std::size_t min_elements_per_thread = 8192;

std::size_t grains(const Tensor& tensor) noexcept { return (tensor.size + grain - 1) / grain; }

// Updates the grains [first, last) of the tensors laid end to end.
void run_share(std::span<const Tensor> tensors, std::size_t first, std::size_t last) noexcept {
  std::size_t offset = 0;  // of the tensor's own first grain
  for (const Tensor& tensor : tensors) {
    const std::size_t count = grains(tensor);
    const std::size_t from = std::max(first, offset), to = std::min(last, offset + count);
    if (from < to) {
      tensor.kernel(tensor.param, tensor.grad, tensor.state, (from - offset) * grain,
                    std::min((to - offset) * grain, tensor.size), tensor.scalars);
    }
    offset += count;
  }
}

}  // namespace

std::size_t total_elements(std::span<const Tensor> tensors) noexcept {
  std::size_t total = 0;
  for (const Tensor& tensor : tensors) total += tensor.size;
  return total;
}

void step(std::span<const Tensor> tensors, int max_threads) noexcept {
  std::size_t total = 0;
  for (const Tensor& tensor : tensors) total += grains(tensor);
  const std::size_t useful = total_elements(tensors) / min_elements_per_thread;
  const int threads = static_cast<int>(std::min(static_cast<std::size_t>(max_threads), useful));
  parallel(threads, [&](int rank, int team) {
    const auto r = static_cast<std::size_t>(rank), t = static_cast<std::size_t>(team);
    run_share(tensors, total * r / t, total * (r + 1) / t);
  });
}

}  // namespace onepass
