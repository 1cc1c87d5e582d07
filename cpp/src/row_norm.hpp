// LayerNorm, RMSNorm, GroupNorm and InstanceNorm: the loops of onepass/row_norm.hpp, shared out
// over threads.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "kernels.hpp"
#include "values.hpp"

namespace onepass {

// An array in C order as rows with statistics of their own. A weight belongs to a channel: to
// `per_channel` neighbours of a row. A row has `channels_of_row` of them, and the next row has
// those that follow, until all `channels` had their turn.
struct RowChannels {
  std::size_t rows, channels, channels_of_row, per_channel;
  std::size_t size() const noexcept { return rows * channels_of_row * per_channel; }
};

template <class T>
class RowNorm {
 public:
  // Allocates what the operation needs; nothing after it can fail. The array has elements. `weight`
  // and `bias` in `arrays` have an element per channel, or are null: 1 and 0. `centered`: with a
  // mean; without, the mean is 0.
  RowNorm(const KernelTable& kernels, const RowChannels& channels, int threads,
          const RowArrays<T>& arrays, bool centered);

  // Computes y, and mean and invstd of each row.
  void forward(double eps, const Statistics& of) noexcept;
  // Computes dx, and the gradients of each channel's weight and bias.
  void backward(const Statistics& of, const Gradients& gradients) noexcept;

 private:
  static constexpr bool in_units = std::is_same_v<T, double>;

  // What a thread knows of some rows.
  struct Values {
    Channels<T> rows;
    Sums sums;
    double* variance;
  };
  static Values at(const Values& v, std::size_t k) noexcept {
    return {onepass::at(v.rows, k), {v.sums.first + k, v.sums.second + k}, v.variance + k};
  }
  static Channels<T> at(const Channels<T>& c, std::size_t k) noexcept { return onepass::at(c, k); }
  static Statistics at(const Statistics& s, std::size_t k) noexcept { return onepass::at(s, k); }

  void lay_out(const RowChannels& of);
  void take_sums(std::size_t n);
  const T* take_weights(const T* given, T absent);

  // A piece of a row, in the order of memory: some runs, or one of the parts of a run.
  RowBlock piece(std::size_t row, std::size_t number) const noexcept;
  // Calls body(row, n) for rows that are worked on at once.
  template <class Body>
  void for_each_chunk(std::size_t begin, std::size_t end, const Body& body) noexcept;
  // Shares out all rows, as body(values, row, n), and all weights, as body(begin, end).
  template <class Body>
  void share_rows(const Body& body) noexcept;
  template <class Body>
  void share_weights(std::size_t terms, const Body& body) noexcept;

  void set_first_center(const Values& v, std::size_t row) noexcept;
  // Each of these is for n rows, from `row` on, whose values are v.
  void start(const Values& v, std::size_t row, std::size_t n) noexcept;
  void sum(const Values& v, std::size_t row, std::size_t n) noexcept;
  bool finish(const Values& v, std::size_t row, std::size_t n, double eps,
              const Statistics& of) noexcept;
  void start_runs(const Values& v, std::size_t n, const Statistics& of) noexcept;
  void sum_runs_of_piece(const Values& v, std::size_t row, std::size_t number) noexcept;
  void sum_runs(const Values& v, std::size_t row, std::size_t n) noexcept;
  void merge_runs(const Values& v, std::size_t row, std::size_t n, const Statistics& of) noexcept;
  void finish_backward(const Values& v, std::size_t row, std::size_t n,
                       const Statistics& of) noexcept;

  void backward_runs(const Statistics& of, const Gradients& gradients) noexcept;
  void backward_blocks(const Statistics& of, const Gradients& gradients) noexcept;
  void backward_tiles(const Statistics& of, const Gradients& gradients) noexcept;
  Gradients columns_of(std::size_t b, const Gradients& gradients) const noexcept;
  void fold_runs(const Gradients& gradients) noexcept;
  void fold_columns(const Gradients& gradients) noexcept;

  RowLayout layout_;
  std::size_t per_weight_ = 1;  // columns that a channel's weight is spread over
  int threads_;
  const BatchNormLoops<T>& values_of_;
  const RowNormLoops<T>& loops_;
  RowArrays<T> arrays_;
  bool centered_;
  bool by_chunks_;  // a thread sums rows and writes them; or threads share rows
  std::size_t rows_at_once_, pieces_, parts_, piece_width_;
  std::size_t block_samples_ = 0, blocks_ = 0, tile_width_ = 0;
  Affine affine_;              // 1 and 0 for each row: the weights are those of columns
  Sums sums_{};                // of pieces, of parts of runs, or of rows' tiles
  double* columns_ = nullptr;  // sums of the columns of each block
  std::span<Values> own_;      // a thread's
  Workspace workspace_;
};

extern template class RowNorm<float>;
extern template class RowNorm<double>;

}  // namespace onepass
