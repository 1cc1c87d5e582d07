#include "watch.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "dispatch.hpp"
#include "pieces.hpp"

namespace onepass {
namespace {

// The number of elements that step between two looks at the weights. These elements, and copies of
// their old weights, fit in the core's nearest cache. The sums' bits depend on this number.
constexpr std::size_t watched_size = 1024;

// Returns sum(unit) with a unit in which the sum neither overflows nor vanishes. `value` is sum(1).
template <class Sum>
SquareSum in_a_fitting_unit(double value, const Sum& sum) noexcept {
  if (smallest_sum <= value && std::isfinite(value)) return {value, 1};
  const double unit = value < smallest_sum ? small_unit : large_unit;
  return {sum(unit), unit};
}

// Steps one block, or only looks at it if it does not move, and sums what is reported of it.
template <class T>
void step_and_watch(const Tensor& tensor, const Range& range, const WatchLoops& loops, bool moves,
                    bool prefetch_ahead, Watched& watched) noexcept {
  constexpr std::size_t tile = watched_size;
  const Streams& streams = tensor.streams;
  const auto grad = [&](double unit) {
    return tensor.squares(streams.grad, range.begin, range.end, unit, prefetch_ahead);
  };
  watched = {};
  watched.grad = in_a_fitting_unit(grad(1), grad);
  for (std::size_t begin = range.begin; begin < range.end; begin += tile) {
    const std::size_t n = std::min(tile, range.end - begin);
    T before[tile], opened[tile];
    const T* after = before;
    watched.zeros += loops.count_zeros(streams.grad, begin, n);
    loops.copy_weights(streams, begin, n, before);
    if (moves) {
      tensor.kernel(streams, begin, begin + n, tensor.scalars);
      after = static_cast<const T*>(streams.param.data) + begin;
      if (streams.param.codec) {
        loops.copy_weights(streams, begin, n, opened);
        after = opened;
      }
    }
    const auto sums = [&](double unit) {
      std::pair<double, double> both;
      loops.squares(before, after, n, unit, &both.first, &both.second);
      return both;
    };
    const auto [update, param] = sums(1);
    watched.update.add(in_a_fitting_unit(update, [&](double unit) { return sums(unit).first; }));
    watched.param.add(in_a_fitting_unit(param, [&](double unit) { return sums(unit).second; }));
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
  const WatchTable& table = *isa_in_use().watching;
  for_each_piece(tensors, threads, count_blocks,
                 [&](const Tensor& tensor, std::size_t index, std::size_t among_all) noexcept {
                   const bool is_double = tensor.item_size == sizeof(double);
                   (is_double ? step_and_watch<double>
                              : step_and_watch<float>)(tensor, block(tensor, index),
                                                       is_double ? table.f64 : table.f32, moves,
                                                       prefetch_ahead, watched[among_all]);
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
