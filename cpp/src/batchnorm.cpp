#include "batchnorm.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "parallel.hpp"

namespace onepass {
namespace {

// Measured: bench/NOTES.md.
constexpr std::size_t max_tile_bytes = 1 << 20;  // that a core's cache holds until it is read again
constexpr std::size_t min_shared_channels = 4096;  // whose own work is worth a second thread
// Rows that are summed and written together, at least one, while they are in cache. Where channels
// share a panel it is a constant: the panel's width depends on the number of threads, and the order
// of a sum must not.
constexpr std::size_t elements_at_once = 4096;  // of one channel
constexpr std::size_t rows_at_once = 8;         // that channels share
// Rows whose sum is taken on its own and then added to that of the rows before: a long chain of
// additions would add up its roundings. It depends on the width of a channel alone, so that the
// order of a sum does not depend on the number of threads.
constexpr std::size_t rows_together = 1024;           // that channels share
constexpr std::size_t lane_rows_together = 256;       // of `lanes` elements of one channel
constexpr std::size_t elements_together = 256 * 256;  // in a row of one channel

std::size_t rows_of_part(const Panel& panel, bool one_channel) noexcept {
  if (!one_channel) return rows_together;
  return std::max<std::size_t>(lane_rows_together / ((panel.width + lanes - 1) / lanes), 1);
}

template <class T>
bool in_place(const Arrays<T>& arrays) noexcept {
  return arrays.out == arrays.x || arrays.out == arrays.dy || arrays.out == arrays.residual;
}

}  // namespace

void update_running(std::span<double> running, std::span<const double> batch, double correction,
                    double momentum) noexcept {
  for (std::size_t c = 0; c < running.size(); ++c) {
    const double now = batch[c] * correction;
    running[c] = momentum == 0   ? running[c]
                 : momentum == 1 ? now
                                 : (1 - momentum) * running[c] + momentum * now;
  }
}

template <class T>
BatchNorm<T>::BatchNorm(const BatchNormTable<T>& table, const Layout& layout, int threads,
                        const Arrays<T>& arrays, const Affine& affine, Operation operation,
                        bool relu)
    : layout_(layout),
      threads_(useful_threads(layout, threads)),
      grid_(layout, threads_, Grid::Pass::sums),
      loops_(table[grid_.one_channel() * 1u + relu * 2u + (arrays.residual != nullptr) * 4u]),
      arrays_(arrays),
      affine_(affine) {
  arrays_.stream = streams(arrays, layout, operation);
  arrays_.prefetch_ahead = layout.size() * sizeof(T) > far_for_sums;
  const auto n = static_cast<std::size_t>(threads_);
  const std::size_t tiles = grid_.tiles(), tile_bytes = grid_.elements_per_tile() * sizeof(T);
  const bool balanced = tiles >= 4 * n || tiles % n == 0;
  const bool cached = tile_bytes <= max_tile_bytes;
  // A tile's runs end where another core's begin, and the hardware's prefetcher goes on into those.
  const bool by_rows = layout.inner == 1 && grid_.blocks() >= n;
  if (n == 1 || (balanced && cached && !by_rows)) {
    tiles_at_once_ = 0;
  } else if (grid_.one_channel()) {
    tiles_at_once_ = std::clamp<std::size_t>(n * max_tile_bytes / tile_bytes, 1, tiles);
  } else {
    tiles_at_once_ = tiles;
  }
  const std::size_t past = beside_row(arrays.out);
  channels_ = take_values<Value<T>>(workspace_, layout.channels, past, operation, true);
  columns_ = grid_.columns_are_channels()
                 ? channels_
                 : take_values<Value<T>>(workspace_, grid_.columns(), past, operation, in_units);
  for (double** sums : {&first_, &second_}) *sums = workspace_.take<double>(layout.channels);
  if (tiles_at_once_) {
    partial_ = workspace_.take<double>(2 * layout.channels * grid_.blocks());
    finished_ = {workspace_.take<char>(tiles_at_once_), tiles_at_once_};
  }
}

template <class T>
template <class... Members>
void BatchNorm<T>::spread(std::size_t tile, Members... members) noexcept {
  if (grid_.columns_are_channels()) return;
  (grid_.spread(tile, channels_.*members, columns_.*members), ...);
}

template <class T>
void BatchNorm<T>::spread_center(std::size_t tile) noexcept {
  spread(tile, &Values::center);
  if constexpr (in_units) spread(tile, &Values::magnitude);
}

template <class T>
void BatchNorm<T>::set_forward(std::size_t tile, const Statistics& statistics) noexcept {
  const auto [c, n] = channels_of(tile);
  loops_.set_forward(at(affine_, c), at(statistics, c), n, at(channels_, c));
  spread(tile, &Values::mean, &Values::scale, &Values::shift);
}

template <class T>
void BatchNorm<T>::sum(Sum loop, Write write_at_once, std::size_t tile, std::size_t block,
                       double* first, double* second) noexcept {
  const bool one_channel = grid_.one_channel();
  alignas(64) double sums[2][Grid::max_tile_width], more[2][Grid::max_tile_width];
  for (auto& row : sums) std::fill_n(row, grid_.columns_of(tile), 0.0);
  const auto sum_part = [&](const Arrays<T>& arrays, const Panel& part, const Values& channels,
                            double* a, double* b) noexcept {
    if (!write_at_once) return loop(arrays, part, channels, a, b);
    const std::size_t rows =
        one_channel ? std::max<std::size_t>(elements_at_once / part.width, 1) : rows_at_once;
    for (std::size_t r = 0; r < part.rows; r += rows) {
      const Panel some{std::min(rows, part.rows - r), part.width, part.stride};
      const Arrays<T> arrays_here = at(arrays, r * part.stride);
      loop(arrays_here, some, channels, a, b);
      write_at_once(arrays_here, some, channels);
    }
  };
  bool begun = false;
  grid_.for_each_panel(
      tile, block, [&](std::size_t offset, std::size_t column, const Panel& panel) noexcept {
        const Values channels = at(columns_, column);
        const std::size_t rows = rows_of_part(panel, one_channel);
        const std::size_t width = one_channel ? elements_together : panel.width;
        const std::size_t n = one_channel ? lanes : panel.width;
        for (std::size_t r = 0; r < panel.rows; r += rows) {
          for (std::size_t j = 0; j < panel.width; j += width) {
            const Panel part{std::min(rows, panel.rows - r), std::min(width, panel.width - j),
                             panel.stride};
            const Arrays<T> arrays_here = at(arrays_, offset + r * panel.stride + j);
            if (!begun) {
              sum_part(arrays_here, part, channels, sums[0], sums[1]);
              begun = true;
              continue;
            }
            for (auto& row : more) std::fill_n(row, n, 0.0);
            sum_part(arrays_here, part, channels, more[0], more[1]);
            for (std::size_t k = 0; k < 2; ++k) {
              for (std::size_t c = 0; c < n; ++c) sums[k][c] += more[k][c];
            }
          }
        }
      });
  grid_.fold(tile, sums[0], first);
  grid_.fold(tile, sums[1], second);
}

template <class T>
void BatchNorm<T>::write(Write loop, std::size_t tile, std::size_t block) noexcept {
  grid_.for_each_panel(tile, block,
                       [&](std::size_t offset, std::size_t column, const Panel& panel) noexcept {
                         loop(at(arrays_, offset), panel, at(columns_, column));
                       });
}

template <class T>
void BatchNorm<T>::add(std::size_t tile, const double* a, const double* b, double* first,
                       double* second) const noexcept {
  const std::size_t width = channels_of(tile).second;
  for (std::size_t c = 0; c < width; ++c) first[c] += a[c];
  for (std::size_t c = 0; c < width; ++c) second[c] += b[c];
}

template <class T>
template <class Prepare, class Finish>
void BatchNorm<T>::run(Sum sum_loop, Write write_loop, bool write_at_once, const Prepare& prepare,
                       const Finish& finish) noexcept {
  const std::size_t blocks = grid_.blocks(), n = layout_.channels;
  const Write at_once = write_at_once ? write_loop : nullptr;
  const auto start = [&](std::size_t tile) noexcept {
    const auto [c, width] = channels_of(tile);
    for (double* sums : {first_, second_}) std::fill_n(sums + c, width, 0.0);
  };
  const auto add_to_tile = [&](std::size_t tile, const double* a, const double* b) noexcept {
    const std::size_t from = grid_.first_channel(tile);
    add(tile, a, b, first_ + from, second_ + from);
  };

  if (tiles_at_once_ == 0) {
    parallel_for(grid_.tiles(), threads_, [&](std::size_t tile) noexcept {
      double a[Grid::max_tile_width], b[Grid::max_tile_width];
      prepare(tile);
      for (int tries = sum_loop ? max_tries : 0; tries > 0; --tries) {
        start(tile);
        for (std::size_t block = 0; block < blocks; ++block) {
          sum(sum_loop, at_once, tile, block, a, b);
          add_to_tile(tile, a, b);
        }
        if (finish(tile)) break;
      }
      if (write_at_once || !write_loop) return;
      for (std::size_t block = 0; block < blocks; ++block) write(write_loop, tile, block);
    });
    return;
  }

  const int helpful = n < min_shared_channels ? 1 : threads_;
  for (std::size_t from = 0; from < grid_.tiles(); from += tiles_at_once_) {
    const std::size_t tiles = std::min(tiles_at_once_, grid_.tiles() - from);
    std::fill(finished_.begin(), finished_.end(), char{0});
    parallel_for(tiles, helpful, [&](std::size_t t) noexcept { prepare(from + t); });
    for (int tries = sum_loop ? max_tries : 0; tries > 0; --tries) {
      parallel_for(tiles * blocks, threads_, [&](std::size_t i) noexcept {
        const std::size_t t = i % tiles, tile = from + t, block = i / tiles;
        if (finished_[t]) return;
        double* a = partial_ + 2 * n * block + grid_.first_channel(tile);
        sum(sum_loop, at_once, tile, block, a, a + n);
      });
      parallel_for(tiles, helpful, [&](std::size_t t) noexcept {
        if (finished_[t]) return;
        start(from + t);
        for (std::size_t block = 0; block < blocks; ++block) {
          const double* a = partial_ + 2 * n * block + grid_.first_channel(from + t);
          add_to_tile(from + t, a, a + n);
        }
        finished_[t] = finish(from + t);
      });
      if (std::all_of(finished_.begin(), finished_.begin() + static_cast<std::ptrdiff_t>(tiles),
                      [](char finished) { return finished != 0; })) {
        break;
      }
    }
    if (write_at_once || !write_loop) continue;
    parallel_for(tiles * blocks, threads_,
                 [&](std::size_t i) noexcept { write(write_loop, from + i % tiles, i / tiles); });
  }
}

template <class T>
void BatchNorm<T>::train(double eps, const Statistics& batch) noexcept {
  train(eps, batch, nullptr, loops_.normalize);
}

template <class T>
void BatchNorm<T>::measure(const Statistics& batch, const Moments& moments) noexcept {
  train(1, batch, &moments, nullptr);
}

template <class T>
void BatchNorm<T>::normalize(const Statistics& batch) noexcept {
  run(
      nullptr, loops_.normalize, false,
      [&](std::size_t tile) noexcept { set_forward(tile, batch); },
      [](std::size_t) noexcept { return true; });
}

template <class T>
void BatchNorm<T>::train(double eps, const Statistics& batch, const Moments* moments,
                         Write write_loop) noexcept {
  const auto count = static_cast<double>(layout_.per_channel());
  const auto prepare = [&](std::size_t tile) noexcept {
    const auto [c, n] = channels_of(tile);
    set_first_means(c, n);
    spread_center(tile);
  };
  const auto finish = [&](std::size_t tile) noexcept {
    const auto [c, n] = channels_of(tile);
    const Sums sums{first_ + c, second_ + c};
    loops_.set_statistics(sums, at(channels_, c), count, eps, n, at(batch, c));
    set_forward(tile, batch);
    for (std::size_t i = c; moments && i < c + n; ++i) {
      const double unit = in_units ? channels_.magnitude[i] : 1;
      moments->center[i] = channels_.center[i] / unit;
      moments->sum[i] = first_[i] / unit;
      moments->square[i] = second_[i] / unit / unit;
    }
    if (!improve_centers(tile, batch)) return true;
    spread_center(tile);
    return false;
  };
  run(loops_.moments, write_loop, false, prepare, finish);
}

template <class T>
void BatchNorm<T>::set_first_means(std::size_t c, std::size_t n) noexcept {
  const std::size_t row = layout_.channels * layout_.inner;
  Samples samples{
      std::bit_floor(std::min(Samples::most, layout_.per_channel())), layout_.inner, {}};
  for (std::size_t i = 0; i < samples.count; ++i) {
    samples.offsets[i] = i / layout_.inner * row + i % layout_.inner;
  }
  loops_.set_first_means(arrays_.x + c * layout_.inner, samples, n, at(channels_, c));
}

template <class T>
bool BatchNorm<T>::improve_centers(std::size_t tile, const Statistics& batch) noexcept {
  bool improved = false;
  const auto [begin, n] = channels_of(tile);
  for (std::size_t c = begin; c < begin + n; ++c) {
    double &magnitude = channels_.magnitude[c], &center = channels_.center[c];
    const double mean = batch.mean[c] * magnitude;
    const double off = (mean - center) * (mean - center);
    if (in_units && magnitude == 1 && !(batch.variance[c] <= std::numeric_limits<double>::max())) {
      magnitude = small_magnitude;
      set_first_means(c, 1);
      improved = true;
    } else if (off > max_off_center * (batch.variance[c] * magnitude * magnitude)) {
      center = mean;
      improved = true;
    }
  }
  return improved;
}

template <class T>
void BatchNorm<T>::set_backward_sums(std::size_t tile, const Statistics& statistics) noexcept {
  set_forward(tile, statistics);
  const auto [begin, n] = channels_of(tile);
  for (std::size_t c = begin; c < begin + n; ++c) {
    if constexpr (in_units) {
      channels_.magnitude[c] = statistics.invstd[c] < min_ordinary_invstd ? small_magnitude : 1.0;
      channels_.center[c] = statistics.mean[c] * channels_.magnitude[c];
    } else {
      const double mean = statistics.mean[c];
      channels_.center[c] = std::isfinite(mean) ? std::clamp(mean, -max_center, max_center) : mean;
    }
  }
  spread_center(tile);
}

template <class T>
void BatchNorm<T>::finish_backward_sums(std::size_t tile, const Statistics& statistics,
                                        const Gradients& gradients, bool through) noexcept {
  const auto [begin, n] = channels_of(tile);
  bool finite = true;
  for (std::size_t c = begin; c < begin + n; ++c) {
    gradients.weight[c] = second_[c] * (statistics.invstd[c] / channels_.magnitude[c]);
    gradients.bias[c] = first_[c];
    finite = finite && std::isfinite(gradients.weight[c]) && std::isfinite(gradients.bias[c]);
  }
  if (through) {
    const auto count = static_cast<double>(layout_.per_channel());
    const Gradients of_tile = at(gradients, begin);
    loops_.set_input_gradient(at(affine_, begin), at(statistics, begin), &of_tile, count, n,
                              at(channels_, begin));
  }
  if constexpr (in_units) {
    if (!finite) sum_in_small_units(tile, statistics, gradients, through);
  }
  if (through) spread(tile, &Values::gain, &Values::slope, &Values::offset);
}

template <class T>
void BatchNorm<T>::sum_in_small_units(std::size_t tile, const Statistics& statistics,
                                      const Gradients& gradients, bool through) noexcept {
  const auto [begin, n] = channels_of(tile);
  for (std::size_t c = begin; c < begin + n; ++c) {
    channels_.magnitude[c] = small_magnitude;
    channels_.center[c] = statistics.mean[c] * small_magnitude;
  }
  spread_center(tile);
  double first[Grid::max_tile_width] = {}, second[Grid::max_tile_width] = {};
  double a[Grid::max_tile_width], b[Grid::max_tile_width];
  for (std::size_t block = 0; block < grid_.blocks(); ++block) {
    sum(loops_.small_gradient_sums, nullptr, tile, block, a, b);
    add(tile, a, b, first, second);
  }
  const auto count = static_cast<double>(layout_.per_channel());
  for (std::size_t c = begin; c < begin + n; ++c) {
    double &dweight = gradients.weight[c], &dbias = gradients.bias[c];
    if (std::isfinite(dweight) && std::isfinite(dbias)) continue;
    // The factors are in the order that leaves double's range last.
    const double invstd = statistics.invstd[c], product = second[c - begin];
    const double small_dweight = std::abs(invstd) < 1 ? product * (invstd / small_magnitude)
                                                      : product * invstd / small_magnitude;
    dweight = small_dweight / small_magnitude;
    dbias = first[c - begin] / small_magnitude;
    if (!through) continue;
    // The means of the gradients may be finite even if the gradients are not.
    double mean_dweight = small_dweight / count / small_magnitude;
    double mean_dbias = first[c - begin] / count / small_magnitude;
    const Gradients means{&mean_dweight, &mean_dbias};
    loops_.set_input_gradient(at(affine_, c), at(statistics, c), &means, 1, 1, at(channels_, c));
  }
}

template <class T>
void BatchNorm<T>::backward(const Statistics& batch, const Gradients& gradients) noexcept {
  run(
      loops_.gradient_sums, loops_.input_gradient, false,
      [&](std::size_t tile) noexcept { set_backward_sums(tile, batch); },
      [&](std::size_t tile) noexcept {
        finish_backward_sums(tile, batch, gradients, true);
        return true;
      });
}

template <class T>
void BatchNorm<T>::sum_gradients(const Statistics& batch, double* ones,
                                 const Gradients& sums) noexcept {
  run(
      loops_.gradient_sums, nullptr, false,
      [&](std::size_t tile) noexcept { set_backward_sums(tile, batch); },
      [&](std::size_t tile) noexcept {
        finish_backward_sums(tile, {batch.mean, ones}, sums, false);
        return true;
      });
}

template <class T>
void BatchNorm<T>::input_gradient(const Statistics& batch, const Gradients& gradients,
                                  double count) noexcept {
  run(
      nullptr, loops_.input_gradient, false,
      [&](std::size_t tile) noexcept {
        const auto [c, n] = channels_of(tile);
        const Gradients of_tile = at(gradients, c);
        set_forward(tile, batch);
        loops_.set_input_gradient(at(affine_, c), at(batch, c), &of_tile, count, n,
                                  at(channels_, c));
        spread(tile, &Values::gain, &Values::slope, &Values::offset);
      },
      [](std::size_t) noexcept { return true; });
}

template <class T>
void BatchNorm<T>::infer_backward(const Statistics& given, const Gradients& gradients) noexcept {
  // If dx is written at once over what is summed, a sum that overflows cannot be taken again.
  const bool write_at_once = !in_units || !in_place(arrays_);
  run(
      loops_.gradient_sums, loops_.frozen_gradient, write_at_once,
      [&](std::size_t tile) noexcept {
        set_backward_sums(tile, given);
        const auto [c, n] = channels_of(tile);
        loops_.set_input_gradient(at(affine_, c), at(given, c), nullptr, 1, n, at(channels_, c));
        spread(tile, &Values::gain);
      },
      [&](std::size_t tile) noexcept {
        finish_backward_sums(tile, given, gradients, false);
        return true;
      });
}

template class BatchNorm<float>;
template class BatchNorm<double>;
template class BatchNorm<StoredBFloat16>;
template class BatchNorm<StoredFloat16>;

}  // namespace onepass
