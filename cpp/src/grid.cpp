#include "grid.hpp"

#include "onepass/reduce.hpp"

namespace onepass {
namespace {

// Measured: bench/NOTES.md. The first five decide the order of a sum, and so its bits.
constexpr std::size_t max_blocks = 64;
constexpr std::size_t min_block_elements = 8192;  // of one channel
constexpr std::size_t min_block_rows = 64;        // that channels share
constexpr std::size_t min_row_width = 256;
constexpr std::size_t min_rows_of_columns = 32;
constexpr std::size_t min_tile_width = 64;
constexpr std::size_t min_written = 1024;        // elements of a block, where nothing is summed
constexpr std::size_t min_tile_elements = 8192;  // of long channels, where nothing is summed

constexpr std::size_t divide_up(std::size_t a, std::size_t b) noexcept {
  return (a + b - 1) / b;
}

// Short channels are summed side by side, which needs no lanes for each and streams whole lines, if
// there are enough rows to pay for the copies of their values.
constexpr std::size_t longest_short_channel(std::size_t rows, Grid::Pass pass) noexcept {
  if (pass == Grid::Pass::writes) return 16;
  return rows < 8 ? 16 : rows < 32 ? 64 : 256;
}

// Keeps four sums, because in a single one each addition would wait for the one before.
double sum(const double* values, std::size_t n) noexcept {
  double sums[4] = {};
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (std::size_t k = 0; k < 4; ++k) sums[k] += values[i + k];
  }
  for (; i < n; ++i) sums[0] += values[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

Grid::Grid(const Layout& layout, int threads, Pass pass) noexcept : layout_(layout) {
  const bool summed = pass == Pass::sums;
  if (layout.channels == 1) layout_ = {1, 1, layout.per_channel()};
  one_channel_ = layout_.inner > longest_short_channel(layout_.outer, pass);
  row_width_ = layout_.channels * layout_.inner;
  if (one_channel_) {
    cut_long_channels(summed);
  } else {
    cut_rows(threads, summed);
  }
}

void Grid::cut_long_channels(bool summed) noexcept {
  const std::size_t width = layout_.inner;
  if (!summed) tile_channels_ = std::max<std::size_t>(min_tile_elements / width, 1);
  tiles_ = divide_up(layout_.channels, tile_channels_);
  rows_ = layout_.outer;
  pieces_ = std::min(divide_up(width, 2 * min_block_elements), divide_up(max_blocks, rows_));
  piece_width_ = divide_up(divide_up(width, pieces_), lanes) * lanes;
  pieces_ = divide_up(width, piece_width_);
  block_rows_ = 1;
  if (summed && pieces_ == 1) {
    block_rows_ = std::max({divide_up(rows_, max_blocks), min_block_elements / width, block_rows_});
  }
  blocks_ = divide_up(rows_, block_rows_) * pieces_;
}

void Grid::cut_rows(int threads, bool summed) noexcept {
  // A wide row costs a copy of the values per column, which pays over many rows.
  const std::size_t most = layout_.outer / min_rows_of_columns;
  while (row_width_ * repeat_ < min_row_width && 2 * repeat_ <= most) repeat_ *= 2;
  rows_ = layout_.outer / repeat_;
  tail_ = layout_.outer % repeat_ * row_width_;
  const std::size_t least = summed ? min_block_rows : divide_up(min_written, row_width_ * repeat_);
  block_rows_ = std::max(divide_up(rows_, max_blocks), least);
  blocks_ = divide_up(rows_, block_rows_);
  tile_channels_ = layout_.channels;
  if (summed && repeat_ == 1) {
    const bool few_blocks = blocks_ < static_cast<std::size_t>(threads);
    const std::size_t share = row_width_ / static_cast<std::size_t>(threads);
    const std::size_t width = few_blocks ? std::max(share, min_tile_width) : max_tile_width;
    tile_channels_ = std::max<std::size_t>(std::min(width, max_tile_width) / layout_.inner, 1);
  }
  tiles_ = divide_up(layout_.channels, tile_channels_);
  row_width_ *= repeat_;
}

void Grid::fold(std::size_t tile, double* columns, double* channels) const noexcept {
  if (one_channel_) {
    channels[0] = fold_lanes(columns);
    return;
  }
  const std::size_t n = first_channel(tile + 1) - first_channel(tile);
  if (layout_.inner == 1) {
    std::copy_n(columns, n, channels);
    for (std::size_t r = 1; r < repeat_; ++r) {
      for (std::size_t c = 0; c < n; ++c) channels[c] += columns[r * layout_.channels + c];
    }
    return;
  }
  for (std::size_t c = 0; c < n; ++c) channels[c] = sum(columns + c * layout_.inner, layout_.inner);
  for (std::size_t r = 1; r < repeat_; ++r) {
    const double* row = columns + r * layout_.channels * layout_.inner;
    for (std::size_t c = 0; c < n; ++c) channels[c] += sum(row + c * layout_.inner, layout_.inner);
  }
}

template <class T>
void Grid::spread(std::size_t tile, const T* channels, T* columns) const noexcept {
  const std::size_t begin = first_channel(tile), end = first_channel(tile + 1);
  for (std::size_t r = 0; r < repeat_; ++r) {
    if (layout_.inner == 1) {
      std::copy_n(channels + begin, end - begin, columns + r * layout_.channels + begin);
      continue;
    }
    for (std::size_t c = begin; c < end; ++c) {
      const T value = channels[c];
      T* const first = columns + (r * layout_.channels + c) * layout_.inner;
#pragma omp simd
      for (std::size_t i = 0; i < layout_.inner; ++i) first[i] = value;
    }
  }
}

template void Grid::spread(std::size_t, const float*, float*) const noexcept;
template void Grid::spread(std::size_t, const double*, double*) const noexcept;

}  // namespace onepass
