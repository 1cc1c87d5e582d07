// State of another shape than its parameter, as the loop of the rule reads and writes it: opened
// tile by tile, so that the rule sees a number for each element.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <type_traits>

#include "onepass/rule.hpp"
#include "onepass/stored.hpp"

namespace onepass::inline ONEPASS_ISA {

// The place of a rule's first state of a shape; behind the last one where it has none.
template <class Rule>
constexpr std::size_t place_of(Shape shape) {
  std::size_t k = 0;
  while (k < std::size(Rule::states) && !(Rule::states[k].used && Rule::states[k].shape == shape)) {
    ++k;
  }
  return k;
}
template <class Rule>
constexpr bool has_shape(Shape shape) {
  return place_of<Rule>(shape) < std::size(Rule::states);
}

// Numbers for rows and columns (Matrix in stored.hpp). They are only read.
template <class T>
class MatrixTiles {
 public:
  MatrixTiles(const Stored& rows, std::size_t begin) noexcept : MatrixTiles(*rows.matrix, begin) {}
  MatrixTiles(const Matrix& matrix, std::size_t begin) noexcept
      : rows_along_(matrix.rows_along),
        lines_(matrix.lines),
        width_(matrix.width),
        line_size_(matrix.length * width_) {
    const T* const of_rows = static_cast<const T*>(matrix.opened_rows);
    const T* const of_columns = static_cast<const T*>(matrix.opened_columns);
    const std::size_t line = begin / line_size_;
    in_group_ = line % lines_;
    place_ = begin % line_size_;
    along_ = (rows_along_ ? of_rows : of_columns) + line * width_;
    across_ = (rows_along_ ? of_columns : of_rows) + line / lines_ * line_size_;
  }

  // Opens the next n elements, at most a block.
  void open(std::size_t n) noexcept {
    if (width_ == 1 && n <= line_size_ - place_) {  // mostly a tile lies within a line
      std::fill_n(along_tile_, n, *along_);
      opened_across_ = across_ + place_;
      pass(n);
      return;
    }
    for (std::size_t i = 0, run = 0; i < n; i += run) {
      const std::size_t column = width_ == 1 ? 0 : place_ % width_;
      run = std::min(n - i, width_ == 1 ? line_size_ - place_ : width_ - column);
      std::copy_n(across_ + place_, run, across_tile_ + i);
      if (width_ == 1) {
        std::fill_n(along_tile_ + i, run, *along_);
      } else {
        std::copy_n(along_ + column, run, along_tile_ + i);
      }
      pass(run);
    }
    opened_across_ = across_tile_;
  }
  const T* rows() const noexcept { return rows_along_ ? along_tile_ : opened_across_; }
  const T* columns() const noexcept { return rows_along_ ? opened_across_ : along_tile_; }

 private:
  void pass(std::size_t n) noexcept {
    place_ += n;
    if (place_ < line_size_) return;
    place_ = 0;
    along_ += width_;
    if (++in_group_ < lines_) return;
    in_group_ = 0;
    across_ += line_size_;
  }

  const bool rows_along_;
  const std::size_t lines_, width_, line_size_;
  std::size_t in_group_, place_;      // the line in its group, the element in its line
  const T *along_, *across_;          // of the line, and of the group
  const T* opened_across_ = nullptr;  // of the tile
  alignas(64) T along_tile_[block_size];
  alignas(64) T across_tile_[block_size];
};

// Numbers for the places along every axis (Axes in stored.hpp).
template <class T>
class AxesTiles {
 public:
  AxesTiles(const Stored& state, std::size_t begin) noexcept
      : axes_(*state.axes),
        last_(axes_.rank - 1),
        numbers_(static_cast<const T*>(state.data)),
        copy_(take(axes_)),
        largest_(static_cast<T*>(copy_.numbers)) {
    for (std::size_t axis = axes_.rank; axis-- > 0;) {
      at_[axis] = begin % axes_.sizes[axis];
      begin /= axes_.sizes[axis];
    }
    std::copy_n(at_, axes_.rank, opened_at_);
  }
  AxesTiles(const AxesTiles&) = delete;
  AxesTiles& operator=(const AxesTiles&) = delete;
  ~AxesTiles() {
    if (opened_at_[last_] != 0) end_line(opened_at_);  // in the midst of one
    copy_.is_taken.store(false, std::memory_order_release);
  }

  // Opens the next n elements, at most a block: the smallest of the numbers of each.
  void open(std::size_t n) noexcept {
    std::copy_n(at_, axes_.rank, opened_at_);
    for_each_run(at_, n, [this](const std::size_t* at, std::size_t i, std::size_t run) {
      T smallest = std::numeric_limits<T>::infinity();
      for (std::size_t axis = 0; axis < last_; ++axis) {
        smallest = minimum(smallest, numbers_[axes_.places[axis] + at[axis]]);
      }
      const T* const along = numbers_ + axes_.places[last_] + at[last_];
      T* const to = tile_ + i;
#pragma omp simd
      for (std::size_t j = 0; j < run; ++j) to[j] = minimum(smallest, along[j]);
    });
  }
  const T* values() const noexcept { return tile_; }

  // Takes what the rule has made of these n elements.
  void close(const T* values, std::size_t n) noexcept {
    for_each_run(opened_at_, n, [=, this](const std::size_t* at, std::size_t i, std::size_t run) {
      keep_largest(largest_ + axes_.places[last_] + at[last_], values + i, run);
      if (at[last_] + run == axes_.sizes[last_]) end_line(at);
    });
  }

 private:
  static constexpr std::size_t lanes = 64 / sizeof(T);

  // Lets each of `along`, and the largest numbers of the line, be no less than the values.
  void keep_largest(T* along, const T* values, std::size_t n) noexcept {
    T largest[lanes];
    std::copy_n(of_line_, lanes, largest);
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes) {
#pragma omp simd
      for (std::size_t j = 0; j < lanes; ++j) {
        along[i + j] = maximum(along[i + j], values[i + j]);
        largest[j] = maximum(largest[j], values[i + j]);
      }
    }
#pragma omp simd
    for (std::size_t j = 0; j < n - i; ++j) {
      along[i + j] = maximum(along[i + j], values[i + j]);
      largest[j] = maximum(largest[j], values[i + j]);
    }
    std::copy_n(largest, lanes, of_line_);
  }

  // The other axes take the largest number of a line, or of the part of it that was seen.
  void end_line(const std::size_t* at) noexcept {
    T largest = of_line_[0];
    for (std::size_t j = 1; j < lanes; ++j) largest = maximum(largest, of_line_[j]);
    std::fill_n(of_line_, lanes, T(0));
    for (std::size_t axis = 0; axis < last_; ++axis) {
      T& own = largest_[axes_.places[axis] + at[axis]];
      own = maximum(own, largest);
    }
  }

  // Waits for no other thread: there are as many copies as threads.
  static Axes::Copy& take(const Axes& axes) noexcept {
    Axes::Copy* copy = axes.copies;
    while (copy->is_taken.exchange(true, std::memory_order_acquire)) ++copy;
    if (!copy->is_used) std::fill_n(static_cast<T*>(copy->numbers), axes.total, T(0));
    copy->is_used = true;
    return *copy;
  }

  // Calls body(at, i, run) for each run along the last axis of the next n elements.
  template <class Body>
  void for_each_run(std::size_t* at, std::size_t n, const Body& body) const noexcept {
    for (std::size_t i = 0, run = 0; i < n; i += run) {
      run = std::min(n - i, axes_.sizes[last_] - at[last_]);
      body(at, i, run);
      at[last_] += run;
      for (std::size_t axis = last_; at[axis] == axes_.sizes[axis] && axis > 0; --axis) {
        at[axis] = 0;
        ++at[axis - 1];
      }
    }
  }

  const Axes& axes_;
  const std::size_t last_;
  const T* const numbers_;
  Axes::Copy& copy_;
  T* const largest_;  // so far
  std::size_t at_[max_rank], opened_at_[max_rank];
  alignas(64) T of_line_[lanes] = {};  // the largest numbers, side by side
  alignas(64) T tile_[block_size];
};

struct NoTiles {
  explicit NoTiles(auto&&...) noexcept {}
};

// The states of a rule that have another shape, those that there are.
template <class Rule, class T>
class Shaped {
 public:
  static constexpr bool has_matrix = has_shape<Rule>(Shape::rows);
  static constexpr bool has_axes = has_shape<Rule>(Shape::axes);

  Shaped(const Streams& streams, std::size_t begin) noexcept
      : matrix_(streams.state[rows % max_states], begin),
        axes_(streams.state[axes % max_states], begin) {}

  void open(std::size_t n) noexcept {
    if constexpr (has_matrix) matrix_.open(n);
    if constexpr (has_axes) axes_.open(n);
  }
  // The values of the tile that was opened last.
  template <std::size_t k>
  const T* values() const noexcept {
    if constexpr (k == rows) return matrix_.rows();
    if constexpr (k == columns) return matrix_.columns();
    if constexpr (k == axes) return axes_.values();
  }
  // `values`: of each state, what the rule has made of that tile.
  template <class Values>
  void close(const Values& values, std::size_t n) noexcept {
    if constexpr (has_axes) axes_.close(values[axes], n);
  }

 private:
  static constexpr std::size_t rows = place_of<Rule>(Shape::rows),
                               columns = place_of<Rule>(Shape::columns),
                               axes = place_of<Rule>(Shape::axes);
  [[no_unique_address]] std::conditional_t<has_matrix, MatrixTiles<T>, NoTiles> matrix_;
  [[no_unique_address]] std::conditional_t<has_axes, AxesTiles<T>, NoTiles> axes_;
};

}  // namespace onepass::inline ONEPASS_ISA
