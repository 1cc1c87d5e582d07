// What the loops of LayerNorm, RMSNorm, GroupNorm and InstanceNorm are given. Plain data, the same
// for every instruction set.
#pragma once

#include <cstddef>

#include "onepass/panels.hpp"

namespace onepass {

// An array in C order as rows, each with statistics of its own. A row is `segments` runs of
// `segment` elements. A weight belongs to each run, or if `weight_each` to each element of the
// row's only run; the weights are those of `groups` rows, one after the other, and then repeat.
struct RowLayout {
  std::size_t rows, groups, segments, segment;
  bool weight_each;
  std::size_t length() const noexcept { return segments * segment; }
  std::size_t weights_of_row() const noexcept { return weight_each ? segment : segments; }
  std::size_t weights() const noexcept { return groups * weights_of_row(); }
};

// The columns [begin, begin + width) of some rows, from `first` on. They are whole rows, or some
// runs of one row, or part of one run; if `weight_each`, any columns.
struct RowBlock {
  std::size_t first, rows, begin, width;
};

// Where the elements are, and the weights. What an operation does not use is null.
template <class T>
struct RowArrays {
  const T *x, *dy, *weight, *bias;
  T* out;  // y or dx
  bool stream = false, prefetch_ahead = false;
};

}  // namespace onepass
