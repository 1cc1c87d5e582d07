// What happens to state of another shape than its parameter before and after the loop of the rule.
#pragma once

#include <algorithm>
#include <cstddef>

#include "onepass/reduce.hpp"
#include "onepass/shaped.hpp"
#include "onepass/update.hpp"

namespace onepass::inline ONEPASS_ISA {

// Sums side by side, so that additions need not wait for each other. The bits depend on it.
inline constexpr std::size_t sums_at_once = 16;

// Adds them up in halves, overwriting them.
inline double fold_sums(double* sums) noexcept {
  for (std::size_t half = sums_at_once / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

// Adds the squares of a part of a line to the sums across the lines, and to those along it.
template <class T>
inline void add_squares(const T* grad, T scale, std::size_t n, double* across,
                        double* sums_before) noexcept {
  double sums[sums_at_once];  // in registers
  std::copy_n(sums_before, sums_at_once, sums);
  std::size_t i = 0;
  for (; i + sums_at_once <= n; i += sums_at_once) {
#pragma omp simd
    for (std::size_t j = 0; j < sums_at_once; ++j) {
      const double found = square(static_cast<double>(scale * grad[i + j]));
      across[i + j] += found;
      sums[j] += found;
    }
  }
#pragma omp simd
  for (std::size_t j = 0; j < n - i; ++j) {
    const double found = square(static_cast<double>(scale * grad[i + j]));
    across[i + j] += found;
    sums[j] += found;
  }
  std::copy_n(sums, sums_at_once, sums_before);
}

// The sums of a tile's squared gradients, along and across the lines (Matrix in stored.hpp). The
// layout alone decides about their order.
template <class T>
void sum_tile(const Streams& streams, const Matrix& m, std::size_t tile,
              const Stages<T>& stages) noexcept {
  const std::size_t line_size = m.length * m.width;
  const std::size_t segment = tile % m.n_segments, strip = tile / m.n_segments % m.n_strips,
                    group = tile / m.n_segments / m.n_strips;
  const std::size_t first = segment * m.segment * m.width;
  const std::size_t n = std::min(m.segment * m.width, line_size - first);
  const std::size_t line = strip * m.strip, end = std::min(line + m.strip, m.lines);
  double* const across = m.across + (strip * m.groups + group) * line_size + first;
  std::fill_n(across, n, 0.0);
  const bool prepares = must_prepare<Decay::none>(stages);
  const T scale = prepares ? T{1} : stages.scale;
  alignas(cache_line) T opened[block_size], prepared[block_size];
  for (std::size_t i = group * m.lines + line; i < group * m.lines + end; ++i) {
    double* const along = m.along + (segment * m.groups * m.lines + i) * m.width;
    alignas(cache_line) double sums[sums_at_once] = {};
    if (m.width > 1) std::fill_n(along, m.width, 0.0);
    for (std::size_t place = 0, count = 0; place < n; place += count) {
      count = std::min(n - place, block_size);
      if (streams.prefetch_ahead) {
        // What comes after this part of a line is the next line's part.
        const std::size_t ahead = place + sums_prefetch_bytes / sizeof(T);
        const std::size_t skip = ahead < n ? 0 : line_size - n;
        prefetch_sums<T>(streams.grad, i * line_size + first + ahead + skip, count);
      }
      const T* grad = open(streams.grad, i * line_size + first + place, count, opened);
      if (prepares) {
        prepare_tile<Decay::none>(prepared, grad, static_cast<T*>(nullptr), count, stages);
        grad = prepared;
      }
      if (m.width == 1) {
        add_squares(grad, scale, count, across + place, sums);
      } else {
        std::size_t column = place % m.width;
        for (std::size_t j = 0; j < count; ++j) {
          const double found = square(static_cast<double>(scale * grad[j]));
          across[place + j] += found;
          along[column] += found;
          column = column + 1 < m.width ? column + 1 : 0;
        }
      }
    }
    if (m.width == 1) *along = fold_sums(sums);
  }
}

// Adds up the sums of strips or segments, in their order, in the first one's place.
inline void add_parts(double* sums, std::size_t n, std::size_t parts) noexcept {
  for (std::size_t part = 1; part < parts; ++part) {
    const double* const more = sums + part * n;
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) sums[i] += more[i];
  }
}

template <class T, class Rule>
void move_numbers(T* numbers, const double* sums, std::size_t n, double count,
                  const Rule rule) noexcept {
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) numbers[i] = rule.moved(numbers[i], sums[i] / count);
}

// Writes what the loop of the rule reads in the place of `count` rows, which stand `apart`.
template <class T, class Rule>
void open_rows(const T* rows, T* opened, std::size_t count, std::size_t apart,
               const Rule rule) noexcept {
  double mean = 0;
  if (apart == 1) {
    alignas(cache_line) double sums[sums_at_once] = {};
    for (std::size_t i = 0; i < count; i += sums_at_once) {
      const std::size_t n = std::min(sums_at_once, count - i);
#pragma omp simd
      for (std::size_t j = 0; j < n; ++j) sums[j] += static_cast<double>(rows[i + j]);
    }
    mean = fold_sums(sums);
  } else {
    for (std::size_t i = 0; i < count; ++i) mean += static_cast<double>(rows[i * apart]);
  }
  mean /= static_cast<double>(count);
#pragma omp simd
  for (std::size_t i = 0; i < count; ++i) {
    opened[i * apart] = rule.opened_row(rows[i * apart], mean);
  }
}

template <class T, class Rule>
void open_columns(const T* columns, T* opened, std::size_t n, const Rule rule) noexcept {
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) opened[i] = rule.opened_column(columns[i]);
}

// Moves the numbers of rows and columns once the tiles' sums are there, and opens them.
template <class T, class Rule>
void move_matrix(const Stored& row_state, const Stored& column_state, const Rule& rule) noexcept {
  const Matrix& m = *row_state.matrix;
  T *const rows = static_cast<T*>(row_state.data), *const columns =
                                                       static_cast<T*>(column_state.data);
  const std::size_t n_along = m.groups * m.lines * m.width;
  const std::size_t n_across = m.groups * m.length * m.width;
  add_parts(m.along, n_along, m.n_segments);
  add_parts(m.across, n_across, m.n_strips);
  move_numbers(m.rows_along ? rows : columns, m.along, n_along, static_cast<double>(m.length),
               rule);
  move_numbers(m.rows_along ? columns : rows, m.across, n_across, static_cast<double>(m.lines),
               rule);
  const std::size_t count = m.rows_along ? m.lines : m.length;  // of the rows of a matrix
  for (std::size_t group = 0; group < m.groups; ++group) {
    for (std::size_t column = 0; column < m.width; ++column) {
      const std::size_t first = group * count * m.width + column;
      open_rows(rows + first, static_cast<T*>(m.opened_rows) + first, count, m.width, rule);
    }
  }
  open_columns(columns, static_cast<T*>(m.opened_columns), m.rows_along ? n_across : n_along, rule);
}

// Ends a step: what the pieces of it have made of the numbers becomes these.
template <class T>
void close_axes(const Stored& state, bool flushes) noexcept {
  const Axes& axes = *state.axes;
  T* const numbers = static_cast<T*>(state.data);
  bool is_first = true;
  for (Axes::Copy* copy = axes.copies; copy->is_used; ++copy) {
    const T* const found = static_cast<const T*>(copy->numbers);
    copy->is_used = false;
    if (is_first) {
      std::copy_n(found, axes.total, numbers);
    } else {
#pragma omp simd
      for (std::size_t i = 0; i < axes.total; ++i) numbers[i] = maximum(numbers[i], found[i]);
    }
    is_first = false;
  }
  if (flushes) flush(numbers, axes.total);
}

}  // namespace onepass::inline ONEPASS_ISA
