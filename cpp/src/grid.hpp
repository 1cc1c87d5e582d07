// How batch normalisation cuts an array.
#pragma once

#include <algorithm>
#include <cstddef>

#include "onepass/panels.hpp"

namespace onepass {

// An array in C order, of the shape (outer, channels, inner).
struct Layout {
  std::size_t outer, channels, inner;
  std::size_t per_channel() const noexcept { return outer * inner; }
  std::size_t size() const noexcept { return channels * per_channel(); }
};

// Cuts an array into tiles of whole channels in one direction, and into blocks of rows in the
// other. A channel is summed block by block, and the blocks depend on the layout alone: so the sums
// are the same bits for any number of threads.
//
// If `inner` is long, each channel is a tile of its own, and a row is one run of it. If `inner` is
// short, as in a channels-last array, channels lie side by side in a row, each `inner` columns
// wide; and if all channels together are narrow, a row has them all `repeat` times.
//
// Where nothing is summed, a tile is as wide as a row, and channels count as long from fewer elements
// on. Long channels share a tile, so that a panel has a channel in each of its rows.
class Grid {
 public:
  enum class Pass { sums, writes, streams };  // the last two sum nothing

  static constexpr std::size_t max_tile_width = 512;  // of channels that share a row and are summed

  Grid(const Layout& layout, int threads, Pass pass) noexcept;

  bool one_channel() const noexcept { return one_channel_; }  // whether each row has one alone
  std::size_t tiles() const noexcept { return tiles_; }
  std::size_t blocks() const noexcept { return blocks_; }
  std::size_t elements_per_tile() const noexcept { return layout_.size() / tiles_; }

  // A tile's channels begin with this one and end before the next tile's first.
  std::size_t first_channel(std::size_t tile) const noexcept {
    return std::min(tile * tile_channels_, layout_.channels);
  }
  // A column has the number of its channel, unless `inner` > 1 or rows are repeated.
  std::size_t columns() const noexcept { return one_channel_ ? layout_.channels : row_width_; }
  bool columns_are_channels() const noexcept { return columns() == layout_.channels; }

  // How many sums a panel of a tile has, before they are folded into those of its channels.
  std::size_t columns_of(std::size_t tile) const noexcept {
    if (one_channel_) return lanes;
    return (first_channel(tile + 1) - first_channel(tile)) * repeat_ * layout_.inner;
  }

  // Calls visit(offset of its first element, column of its first element, panel) for each panel.
  template <class Visit>
  void for_each_panel(std::size_t tile, std::size_t block, const Visit& visit) const noexcept;

  // Gives every column of a tile its channel's value. `channels` and `columns` are whole arrays.
  template <class T>
  void spread(std::size_t tile, const T* channels, T* columns) const noexcept;

  // Adds up the sums of a tile's columns to those of its channels. Both arrays are the tile's own;
  // `columns` is overwritten.
  void fold(std::size_t tile, double* columns, double* channels) const noexcept;

 private:
  void cut_long_channels(bool summed) noexcept;
  void cut_rows(int threads, bool summed) noexcept;

  Layout layout_;
  bool one_channel_;
  std::size_t tiles_, tile_channels_ = 1;
  std::size_t blocks_, block_rows_, rows_;
  std::size_t piece_width_, pieces_ = 1;           // of a long run, each in a block of its own
  std::size_t row_width_, repeat_ = 1, tail_ = 0;  // tail: columns of a last, narrower row
};

template <class Visit>
void Grid::for_each_panel(std::size_t tile, std::size_t block, const Visit& visit) const noexcept {
  const std::size_t begin = block / pieces_ * block_rows_;
  const std::size_t rows = std::min(begin + block_rows_, rows_) - begin;
  if (one_channel_) {
    const std::size_t from = block % pieces_ * piece_width_;
    const std::size_t width = std::min(from + piece_width_, layout_.inner) - from;
    const std::size_t c = first_channel(tile), channels = first_channel(tile + 1) - c;
    const std::size_t offset = begin * row_width_ + c * layout_.inner + from;
    if (channels > 1) {
      visit(offset, c, Panel{channels, width, layout_.inner, 1});
    } else {
      visit(offset, c, Panel{rows, width, row_width_});
    }
    return;
  }
  const std::size_t channel_width = repeat_ * layout_.inner;
  const std::size_t from = first_channel(tile) * channel_width;
  const std::size_t to = first_channel(tile + 1) * channel_width;
  visit(begin * row_width_ + from, from, Panel{rows, to - from, row_width_});
  if (block + 1 == blocks_ && tail_ > from) {
    visit(rows_ * row_width_ + from, from, Panel{1, std::min(to, tail_) - from, row_width_});
  }
}

}  // namespace onepass
