#include "watch.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "dispatch.hpp"
#include "pieces.hpp"

namespace onepass {
namespace {

// Elements that step between two looks at the weights. They, and the weights as they were, stay in
// the core's nearest cache.
constexpr std::size_t tile = 2048;

// sum(unit), in the unit in which it neither overflows nor vanishes.
template <class Sum>
SquareSum in_a_fitting_unit(const Sum& sum) noexcept {
  const double value = sum(1.0);
  if (smallest_sum <= value && std::isfinite(value)) return {value, 1};
  const double unit = value < smallest_sum ? small_unit : large_unit;
  return {sum(unit), unit};
}

template <class Item>
std::size_t count_zeros(const void* array, std::size_t begin, std::size_t end) noexcept {
  const Item* const items = static_cast<const Item*>(array);
  std::size_t zeros = 0;
  for (std::size_t i = begin; i < end; ++i) {
    zeros += static_cast<Item>(items[i] << 1) == 0;  // without the sign
  }
  return zeros;
}

std::size_t count_zeros(const Tensor& tensor, const Range& range) noexcept {
  const Stored& grad = tensor.streams.grad;
  if (grad.codec) return count_zeros<std::uint16_t>(grad.data, range.begin, range.end);
  return tensor.item_size == sizeof(float)
             ? count_zeros<std::uint32_t>(grad.data, range.begin, range.end)
             : count_zeros<std::uint64_t>(grad.data, range.begin, range.end);
}

// The weights of n elements, as the step reads them: of a master, with what the user has changed in
// the parameter meanwhile.
void read_weights(const Tensor& tensor, std::size_t begin, std::size_t n,
                  double* weights) noexcept {
  const Streams& streams = tensor.streams;
  if (tensor.item_size == sizeof(double)) {
    std::copy_n(static_cast<const double*>(streams.param.data) + begin, n, weights);
    return;
  }
  float values[tile];
  if (streams.param.codec) {
    streams.param.codec->open(streams.param, begin, n, values);
  } else {
    std::copy_n(static_cast<const float*>(streams.param.data) + begin, n, values);
  }
  if (streams.follows) streams.copy.codec->follow(streams.copy, begin, n, values);
  std::copy_n(values, n, weights);
}

// Steps one block.
void step_and_watch(const Tensor& tensor, const Range& range, Watched& watched, bool moves,
                    bool prefetch_ahead) noexcept {
  const SumOfSquares squares_f64 = isa_in_use().kernels->squares_f64;
  watched = {};
  watched.grad = in_a_fitting_unit([&](double unit) {
    return tensor.squares(tensor.streams.grad, range.begin, range.end, unit, prefetch_ahead);
  });
  watched.zeros = count_zeros(tensor, range);
  for (std::size_t begin = range.begin; begin < range.end; begin += tile) {
    const std::size_t n = std::min(tile, range.end - begin);
    double before[tile], after[tile];
    const auto sum_of = [&](double* numbers) {
      return in_a_fitting_unit(
          [&](double unit) { return squares_f64({numbers}, 0, n, unit, false); });
    };
    if (moves) {
      read_weights(tensor, begin, n, before);
      tensor.kernel(tensor.streams, begin, begin + n, tensor.scalars);
    }
    read_weights(tensor, begin, n, after);
    watched.param.add(sum_of(after));
    if (!moves) continue;
    for (std::size_t i = 0; i < n; ++i) after[i] -= before[i];
    watched.update.add(sum_of(after));
  }
}

}  // namespace

void SquareSum::add(SquareSum other) noexcept {
  if (other.value == 0) return;
  if (value == 0) unit = other.unit;
  const auto bring = [](SquareSum& sum, double to) {
    sum.value = sum.value * (to / sum.unit) * (to / sum.unit);
    sum.unit = to;
  };
  const double total = value + other.value;
  const bool overflows = std::isinf(total) && std::isfinite(value) && std::isfinite(other.value);
  const double common = overflows ? large_unit : std::min(unit, other.unit);
  bring(*this, common);
  bring(other, common);
  value += other.value;
}

void step_and_watch(std::span<Tensor> tensors, std::span<Watched> watched, int threads,
                    bool moves) noexcept {
  prefetch_if_far(tensors);
  const bool prefetch_ahead = total_elements(tensors) * sizeof(float) > far_for_sums;
  for_each_piece(tensors, threads, count_blocks,
                 [&](const Tensor& tensor, std::size_t index, std::size_t among_all) noexcept {
                   step_and_watch(tensor, block(tensor, index), watched[among_all], moves,
                                  prefetch_ahead);
                 });
}

TensorStats stats_of(const Tensor& tensor, std::span<const Watched> blocks,
                     double grad_scale) noexcept {
  Watched all;
  for (const Watched& block : blocks) {
    all.grad.add(block.grad);
    all.update.add(block.update);
    all.param.add(block.param);
    all.zeros += block.zeros;
  }
  const auto norm = [](const SquareSum& sum) { return std::sqrt(sum.value) / sum.unit; };
  const double update_norm = norm(all.update), param_norm = norm(all.param);
  const auto size = static_cast<double>(tensor.size);
  return {norm(all.grad) / grad_scale, tensor.size ? static_cast<double>(all.zeros) / size : 0,
          update_norm, param_norm, update_norm == 0 ? 0 : update_norm / param_norm};
}

}  // namespace onepass
