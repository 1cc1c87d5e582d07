#include "inference.hpp"

#include <type_traits>

namespace onepass {
namespace {

// Measured: bench/NOTES.md.
constexpr std::size_t shares_per_thread = 16;
constexpr std::size_t min_share_elements = 32768;   // waiting for fewer is quicker
constexpr std::size_t channels_at_once = 256;       // are prepared together, on the stack
constexpr std::size_t min_values_per_channel = 16;  // and thread, or one thread prepares for all

}  // namespace

template <class T>
Inference<T>::Inference(const KernelTable& kernels, const Layout& layout, int threads,
                        const Arrays<T>& arrays, bool relu)
    : kernels_(kernels),
      layout_(layout),
      threads_(useful_threads(layout, threads)),
      grid_(layout, threads_,
            streams(arrays, layout, Operation::infer) ? Grid::Pass::streams : Grid::Pass::writes),
      loops_(batch_norm_table<T>(
          kernels)[grid_.one_channel() * 1u + relu * 2u + (arrays.residual != nullptr) * 4u]),
      arrays_(arrays) {
  arrays_.stream = streams(arrays, layout, Operation::infer);
  const auto threads_own = static_cast<std::size_t>(threads_);
  const bool shared = layout.per_channel() < min_values_per_channel * threads_own;
  const std::size_t n = shared ? 1 : threads_own;
  own_ = {workspace_.take<Own>(n), n};
  for (Own& own : own_) {
    V* const channels = take(layout.channels);
    own = {channels, grid_.columns_are_channels() ? channels : take(grid_.columns()), false};
  }
}

template <class T>
Value<T>* Inference<T>::take(std::size_t n) {
  return workspace_.take<V>(3 * apart(n), beside_row(arrays_.out));
}

template <class T>
void Inference<T>::prepare(const Given& given, Own& own) const noexcept {
  alignas(64) double mean[channels_at_once], invstd[channels_at_once];
  alignas(64) double weight[channels_at_once], bias[channels_at_once];
  for (std::size_t c = 0; c < layout_.channels; c += channels_at_once) {
    const std::size_t n = std::min(channels_at_once, layout_.channels - c);
    given.mean.load(mean, n, c);
    given.var.load(invstd, n, c);
    given.weight.load(weight, n, c);
    given.bias.load(bias, n, c);
    kernels_.invert_deviation(invstd, n, given.eps);
    loops_.set_forward({weight, bias}, {mean, invstd}, n,
                       values(own.channels, layout_.channels, c));
  }
  if (!grid_.columns_are_channels()) {
    const Channels<V> channels = values(own.channels, layout_.channels, 0);
    const Channels<V> columns = values(own.columns, grid_.columns(), 0);
    for (auto value : {&Channels<V>::mean, &Channels<V>::scale, &Channels<V>::shift}) {
      for (std::size_t tile = 0; tile < grid_.tiles(); ++tile) {
        grid_.spread(tile, channels.*value, columns.*value);
      }
    }
  }
  own.ready = true;
}

template <class T>
void Inference<T>::run(const Given& given) noexcept {
  // A share is several pieces, which are small, in the order of memory.
  const std::size_t tiles = grid_.tiles(), pieces = tiles * grid_.blocks();
  const auto n = static_cast<std::size_t>(threads_);
  const std::size_t useful = std::max(layout_.size() / min_share_elements, n);
  const std::size_t shares = std::min({pieces, useful, n * shares_per_thread});
  if (own_.size() == 1) prepare(given, own_[0]);
  parallel_for(shares, threads_, [&](std::size_t share, std::size_t rank) noexcept {
    Own& own = own_[own_.size() == 1 ? 0 : rank];
    if (!own.ready) prepare(given, own);
    for (std::size_t i = pieces * share / shares; i < pieces * (share + 1) / shares; ++i) {
      grid_.for_each_panel(
          i % tiles, i / tiles,
          [&](std::size_t offset, std::size_t column, const Panel& panel) noexcept {
            loops_.normalize(at(arrays_, offset), panel,
                             values(own.columns, grid_.columns(), column));
          });
    }
  });
}

template class Inference<float>;
template class Inference<double>;
template class Inference<StoredBFloat16>;
template class Inference<StoredFloat16>;

}  // namespace onepass
