#include "row_norm.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "parallel.hpp"

namespace onepass {
namespace {

// Those marked * decide the order of a sum, and so its bits.
constexpr std::size_t most_of_piece = 16384;    // * elements of a row that are summed at once
constexpr std::size_t elements_at_once = 8192;  // that stay in a core's cache until written
constexpr std::size_t most_rows_at_once = 64;   //
constexpr std::size_t short_run = 16;           // * below this, weights are spread over columns
constexpr std::size_t most_columns = 8192;      // * of a row, for blocks
constexpr std::size_t min_block_rows = 64;      // * whose columns' sums are taken on their own
constexpr std::size_t min_block_elements = 1 << 14;     // *
constexpr std::size_t max_blocks = 64, min_blocks = 8;  // *
constexpr std::size_t few_elements = 1 << 18;  // * of an array that fewer blocks are enough for
constexpr std::size_t min_tile_width = 256, max_tile_width = 2048, min_tiles = 8;  // *
constexpr std::size_t weights_together = 512;  // whose sums a thread adds up
constexpr std::size_t shares_per_thread = 16, min_share_elements = 32768;
// Longer rows the processor itself fetches ahead, and sooner if nobody else does.
constexpr std::size_t max_prefetched_bytes = 1 << 15;

constexpr std::size_t divide_up(std::size_t a, std::size_t b) noexcept {
  return (a + b - 1) / b;
}

template <class T>
const auto& choose(const auto& f32, const auto& f64) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return f32;
  } else {
    return f64;
  }
}

}  // namespace

template <class T>
RowNorm<T>::RowNorm(const KernelTable& kernels, const RowChannels& channels, int threads,
                    const RowArrays<T>& arrays, bool centered)
    : threads_(useful_threads({1, channels.rows, channels.size() / channels.rows}, threads)),
      values_of_(choose<T>(kernels.batch_norm_f32, kernels.batch_norm_f64)[0]),
      loops_(choose<T>(kernels.row_norm->f32, kernels.row_norm->f64)),
      arrays_(arrays),
      centered_(centered) {
  lay_out(channels);
  arrays_.weight = take_weights(arrays.weight, 1);
  arrays_.bias = take_weights(arrays.bias, 0);
  // What is read once has gone through the caches once, however often it is used there.
  const Arrays<T> moved{arrays.x, nullptr, arrays.dy, arrays.out, nullptr, false};
  arrays_.stream = streams(moved, {1, layout_.rows, layout_.length()},
                           arrays.dy ? Operation::backward : Operation::train);
  const bool by_columns = arrays.dy && layout_.weight_each;
  arrays_.prefetch_ahead = channels.size() * sizeof(T) > far_for_sums &&
                           (by_columns || layout_.length() * sizeof(T) <= max_prefetched_bytes);

  const std::size_t samples = layout_.rows / layout_.groups;
  const auto n = static_cast<std::size_t>(threads_);
  const std::size_t chunks = divide_up(layout_.rows, rows_at_once_);
  const bool balanced = n == 1 || chunks >= 4 * n || chunks % n == 0;
  if (!arrays.dy) {
    by_chunks_ = pieces_ == 1 || balanced;
    if (!by_chunks_) take_sums(layout_.rows * pieces_);
  } else if (layout_.weight_each) {
    const std::size_t columns = layout_.weights();
    block_samples_ = std::max(
        {min_block_rows, divide_up(min_block_elements, columns), divide_up(samples, max_blocks)});
    blocks_ = divide_up(samples, block_samples_);
    by_chunks_ = layout_.length() <= most_columns &&
                 (blocks_ >= min_blocks || channels.size() <= few_elements);
    if (!by_chunks_) {
      const std::size_t share = divide_up(divide_up(layout_.length(), min_tiles), lanes) * lanes;
      tile_width_ = std::clamp(share, min_tile_width, max_tile_width);
      blocks_ = 1;
      take_sums(layout_.rows * divide_up(layout_.length(), tile_width_));
    }
    if (blocks_ > 1 || per_weight_ > 1) {
      columns_ = workspace_.template take<double>(2 * blocks_ * columns);
    }
  } else {
    by_chunks_ = parts_ == 1 || balanced;
    take_sums(layout_.rows * layout_.segments * parts_);
  }

  const std::size_t rows = by_chunks_ ? std::min(rows_at_once_, layout_.rows) : layout_.rows;
  double* const ones = workspace_.template take<double>(2 * rows);
  std::fill_n(ones, rows, 1.0);
  std::fill_n(ones + rows, rows, 0.0);
  affine_ = {ones, ones + rows};
  own_ = {workspace_.template take<Values>(by_chunks_ ? n : 1), by_chunks_ ? n : 1};
  for (Values& v : own_) {
    v.rows = take_values<T>(workspace_, rows, 0, Operation::backward, true);
    for (double** sums : {&v.sums.first, &v.sums.second, &v.variance}) {
      *sums = workspace_.template take<double>(rows);
    }
  }
}

template <class T>
void RowNorm<T>::lay_out(const RowChannels& of) {
  const std::size_t groups = of.channels / of.channels_of_row;
  // Where runs are short, and a row has several, they are one run with a weight for each element.
  const bool spread = of.channels_of_row > 1 && of.per_channel < short_run;
  layout_ = {of.rows, groups, of.channels_of_row, of.per_channel, spread};
  if (spread) {
    per_weight_ = of.per_channel;
    layout_.segments = 1;
    layout_.segment = of.channels_of_row * of.per_channel;
  }
  const std::size_t length = layout_.length(), segment = layout_.segment;
  if (segment > most_of_piece) {
    piece_width_ = divide_up(divide_up(segment, divide_up(segment, most_of_piece)), lanes) * lanes;
    parts_ = divide_up(segment, piece_width_);
    pieces_ = layout_.segments * parts_;
  } else {
    piece_width_ = most_of_piece / segment * segment;
    parts_ = 1;
    pieces_ = divide_up(length, piece_width_);
  }
  rows_at_once_ = std::clamp<std::size_t>(elements_at_once / length, 1, most_rows_at_once);
}

template <class T>
void RowNorm<T>::take_sums(std::size_t n) {
  sums_ = {workspace_.template take<double>(n), workspace_.template take<double>(n)};
}

template <class T>
const T* RowNorm<T>::take_weights(const T* given, T absent) {
  if (given && per_weight_ == 1) return given;
  const std::size_t n = layout_.weights();
  T* const weights = workspace_.template take<T>(n, beside_row(arrays_.out));
  if (!given) {
    std::fill_n(weights, n, absent);
  } else {
    for (std::size_t i = 0; i < n; ++i) weights[i] = given[i / per_weight_];
  }
  return weights;
}

template <class T>
RowBlock RowNorm<T>::piece(std::size_t row, std::size_t number) const noexcept {
  if (parts_ == 1) {
    const std::size_t begin = number * piece_width_;
    return {row, 1, begin, std::min(piece_width_, layout_.length() - begin)};
  }
  const std::size_t from = number % parts_ * piece_width_;
  return {row, 1, number / parts_ * layout_.segment + from,
          std::min(piece_width_, layout_.segment - from)};
}

template <class T>
template <class Body>
void RowNorm<T>::for_each_chunk(std::size_t begin, std::size_t end, const Body& body) noexcept {
  for (std::size_t row = begin; row < end; row += rows_at_once_) {
    body(row, std::min(rows_at_once_, end - row));
  }
}

template <class T>
template <class Body>
void RowNorm<T>::share_rows(const Body& body) noexcept {
  const std::size_t chunks = divide_up(layout_.rows, rows_at_once_);
  const auto n = static_cast<std::size_t>(threads_);
  const std::size_t useful = std::max(layout_.rows * layout_.length() / min_share_elements, n);
  const std::size_t shares = std::min({chunks, useful, n * shares_per_thread});
  parallel_for(shares, threads_, [&](std::size_t share, std::size_t rank) noexcept {
    const std::size_t begin = chunks * share / shares * rows_at_once_;
    const std::size_t end = chunks * (share + 1) / shares * rows_at_once_;
    for_each_chunk(begin, std::min(end, layout_.rows),
                   [&](std::size_t row, std::size_t rows) { body(own_[rank], row, rows); });
  });
}

// Forward

// Sums of floats begin about 0, where the square of each is exact and no pass is spent on a center.
// Those of doubles begin about the row's first element.
template <class T>
void RowNorm<T>::set_first_center(const Values& v, std::size_t row) noexcept {
  v.rows.center[0] = 0;
  if constexpr (in_units) {
    if (centered_) v.rows.center[0] = arrays_.x[row * layout_.length()] * v.rows.magnitude[0];
  }
}

template <class T>
void RowNorm<T>::start(const Values& v, std::size_t row, std::size_t n) noexcept {
  std::fill_n(v.rows.magnitude, n, 1.0);
  for (std::size_t k = 0; k < n; ++k) set_first_center(at(v, k), row + k);
}

template <class T>
void RowNorm<T>::sum(const Values& v, std::size_t row, std::size_t n) noexcept {
  if (pieces_ == 1) {
    const RowBlock block{row, n, 0, layout_.length()};
    return loops_.moments(arrays_, layout_, block, v.rows, v.sums);
  }
  for (std::size_t k = 0; k < n; ++k) {
    v.sums.first[k] = v.sums.second[k] = 0;
    for (std::size_t i = 0; i < pieces_; ++i) {
      double first, second;
      loops_.moments(arrays_, layout_, piece(row + k, i), at(v.rows, k), {&first, &second});
      v.sums.first[k] += first;
      v.sums.second[k] += second;
    }
  }
}

// Returns false if some rows must be summed again, about a better center or in other units.
template <class T>
bool RowNorm<T>::finish(const Values& v, std::size_t row, std::size_t n, double eps,
                        const Statistics& of) noexcept {
  if (!centered_) std::fill_n(v.sums.first, n, 0.0);
  double* const variance = v.variance;
  const Statistics here{of.mean + row, of.invstd + row, variance};
  values_of_.set_statistics(v.sums, v.rows, static_cast<double>(layout_.length()), eps, n, here);
  bool good = true;
  for (std::size_t k = 0; k < n; ++k) {
    double &unit = v.rows.magnitude[k], &center = v.rows.center[k];
    const double mean = here.mean[k] * unit;
    if (in_units && unit == 1 && !(variance[k] <= std::numeric_limits<double>::max())) {
      unit = small_magnitude;
      set_first_center(at(v, k), row + k);
      good = false;
    } else if ((mean - center) * (mean - center) > max_off_center * (variance[k] * unit * unit)) {
      center = mean;
      good = false;
    }
  }
  if (good) values_of_.set_forward(affine_, here, n, v.rows);
  return good;
}

template <class T>
void RowNorm<T>::forward(double eps, const Statistics& of) noexcept {
  const auto normalize = loops_.normalize[layout_.weight_each];
  if (by_chunks_) {
    return share_rows([&](const Values& v, std::size_t row, std::size_t n) noexcept {
      start(v, row, n);
      for (int tries = max_tries; tries > 0; --tries) {
        sum(v, row, n);
        if (finish(v, row, n, eps, of)) break;
      }
      normalize(arrays_, layout_, {row, n, 0, layout_.length()}, v.rows);
    });
  }
  const Values& v = own_[0];
  const std::size_t rows = layout_.rows, all = rows * pieces_;
  start(v, 0, rows);
  for (int tries = max_tries; tries > 0; --tries) {
    parallel_for(all, threads_, [&](std::size_t i) noexcept {
      const std::size_t row = i / pieces_;
      loops_.moments(arrays_, layout_, piece(row, i % pieces_), at(v.rows, row),
                     {sums_.first + i, sums_.second + i});
    });
    for (std::size_t row = 0; row < rows; ++row) {
      v.sums.first[row] = v.sums.second[row] = 0;
      for (std::size_t i = row * pieces_; i < (row + 1) * pieces_; ++i) {
        v.sums.first[row] += sums_.first[i];
        v.sums.second[row] += sums_.second[i];
      }
    }
    if (finish(v, 0, rows, eps, of)) break;
  }
  parallel_for(all, threads_, [&](std::size_t i) noexcept {
    const std::size_t row = i / pieces_;
    normalize(arrays_, layout_, piece(row, i % pieces_), at(v.rows, row));
  });
}

// Backward

// Sums of floats are taken about 0 where the mean is near enough to it, as in the forward pass. The
// loops only ask whether the center is 0.
template <class T>
void RowNorm<T>::start_runs(const Values& v, std::size_t n, const Statistics& of) noexcept {
  values_of_.set_forward(affine_, of, n, v.rows);
  for (std::size_t k = 0; k < n; ++k) {
    const double off = of.mean[k] * of.invstd[k];
    v.rows.center[k] = !in_units && off * off <= max_off_center ? 0 : 1;
  }
}

// Sums a piece of a row, whose values are v.
template <class T>
void RowNorm<T>::sum_runs_of_piece(const Values& v, std::size_t row, std::size_t number) noexcept {
  const RowBlock block = piece(row, number);
  const std::size_t to =
      parts_ > 1 ? row * pieces_ + number : row * layout_.segments + block.begin / layout_.segment;
  loops_.run_sums(arrays_, layout_, block, v.rows, {sums_.first + to, sums_.second + to});
}

template <class T>
void RowNorm<T>::sum_runs(const Values& v, std::size_t row, std::size_t n) noexcept {
  if (parts_ == 1) {
    const std::size_t to = row * layout_.segments;
    return loops_.run_sums(arrays_, layout_, {row, n, 0, layout_.length()}, v.rows,
                           {sums_.first + to, sums_.second + to});
  }
  for (std::size_t k = 0; k < n; ++k) {
    for (std::size_t i = 0; i < pieces_; ++i) sum_runs_of_piece(at(v, k), row + k, i);
  }
}

// Adds up the sums of parts to those of runs, which become those of dy and dy * n, and these to
// those of rows.
template <class T>
void RowNorm<T>::merge_runs(const Values& v, std::size_t row, std::size_t n,
                            const Statistics& of) noexcept {
  const std::size_t runs = layout_.segments;
  std::size_t group = row % layout_.groups;
  for (std::size_t k = 0; k < n; ++k) {
    const T* const weight = arrays_.weight + group * runs;
    const bool about_zero = v.rows.center[k] == 0;
    double first = 0, second = 0;
    for (std::size_t s = 0; s < runs; ++s) {
      const std::size_t from = ((row + k) * runs + s) * parts_;
      double &a = sums_.first[from], &b = sums_.second[from];
      for (std::size_t part = 1; part < parts_; ++part) {
        a += sums_.first[from + part];
        b += sums_.second[from + part];
      }
      if (about_zero) b = (b - of.mean[k] * a) * of.invstd[k];
      const auto w = static_cast<double>(weight[s]);
      first += w * a;
      second += w * b;
    }
    v.sums.first[k] = first;
    v.sums.second[k] = second;
    if (++group == layout_.groups) group = 0;
  }
}

template <class T>
void RowNorm<T>::finish_backward(const Values& v, std::size_t row, std::size_t n,
                                 const Statistics& of) noexcept {
  if (!centered_) std::fill_n(v.sums.first, n, 0.0);
  const Gradients through{v.sums.second, v.sums.first};
  values_of_.set_input_gradient(affine_, at(of, row), &through,
                                static_cast<double>(layout_.length()), n, v.rows);
}

// Adds up the sums of runs to the gradients of their weights.
template <class T>
void RowNorm<T>::fold_runs(const Gradients& gradients) noexcept {
  const std::size_t weights = layout_.weights(), samples = layout_.rows / layout_.groups;
  share_weights(samples, [&](std::size_t begin, std::size_t end) noexcept {
    std::fill(gradients.weight + begin, gradients.weight + end, 0.0);
    std::fill(gradients.bias + begin, gradients.bias + end, 0.0);
    for (std::size_t s = 0; s < samples; ++s) {
      const double* const first = sums_.first + s * weights * parts_;
      const double* const second = sums_.second + s * weights * parts_;
      for (std::size_t c = begin; c < end; ++c) gradients.weight[c] += second[c * parts_];
      for (std::size_t c = begin; c < end; ++c) gradients.bias[c] += first[c * parts_];
    }
  });
}

template <class T>
void RowNorm<T>::backward_runs(const Statistics& of, const Gradients& gradients) noexcept {
  const auto input_gradient = loops_.input_gradient[false];
  if (by_chunks_) {
    share_rows([&](const Values& v, std::size_t row, std::size_t n) noexcept {
      start_runs(v, n, at(of, row));
      sum_runs(v, row, n);
      merge_runs(v, row, n, at(of, row));
      finish_backward(v, row, n, of);
      input_gradient(arrays_, layout_, {row, n, 0, layout_.length()}, v.rows);
    });
  } else {
    const Values& v = own_[0];
    const std::size_t all = layout_.rows * pieces_;
    start_runs(v, layout_.rows, of);
    parallel_for(all, threads_, [&](std::size_t i) noexcept {
      sum_runs_of_piece(at(v, i / pieces_), i / pieces_, i % pieces_);
    });
    merge_runs(v, 0, layout_.rows, of);
    finish_backward(v, 0, layout_.rows, of);
    parallel_for(all, threads_, [&](std::size_t i) noexcept {
      input_gradient(arrays_, layout_, piece(i / pieces_, i % pieces_), at(v.rows, i / pieces_));
    });
  }
  fold_runs(gradients);
}

// Where block b sums its columns: the first one in the gradients themselves, unless weights are
// spread.
template <class T>
Gradients RowNorm<T>::columns_of(std::size_t b, const Gradients& gradients) const noexcept {
  if (b == 0 && per_weight_ == 1) return gradients;
  double* const sums = columns_ + 2 * b * layout_.weights();
  return {sums, sums + layout_.weights()};
}

// Each element of a row has a weight. Rows are summed and written while they are in a cache, by
// blocks, whose columns have sums of their own.
template <class T>
void RowNorm<T>::backward_blocks(const Statistics& of, const Gradients& gradients) noexcept {
  const std::size_t rows = block_samples_ * layout_.groups, columns = layout_.weights();
  parallel_for(blocks_, threads_, [&](std::size_t b, std::size_t rank) noexcept {
    const Values& v = own_[rank];
    const Gradients sums = columns_of(b, gradients);
    std::fill_n(sums.weight, columns, 0.0);
    std::fill_n(sums.bias, columns, 0.0);
    const std::size_t end = std::min((b + 1) * rows, layout_.rows);
    for_each_chunk(b * rows, end, [&](std::size_t row, std::size_t n) {
      const RowBlock block{row, n, 0, layout_.length()};
      values_of_.set_forward(affine_, at(of, row), n, v.rows);
      loops_.row_and_column_sums(arrays_, layout_, block, v.rows, v.sums, sums);
      finish_backward(v, row, n, of);
      loops_.input_gradient[true](arrays_, layout_, block, v.rows);
    });
  });
}

// The same for rows that are long, or few: all of them are summed, in tiles of columns, and then
// written.
template <class T>
void RowNorm<T>::backward_tiles(const Statistics& of, const Gradients& gradients) noexcept {
  const std::size_t rows = layout_.rows, length = layout_.length();
  const std::size_t tiles = divide_up(length, tile_width_);
  const Values& v = own_[0];
  values_of_.set_forward(affine_, of, rows, v.rows);
  const Gradients columns = columns_of(0, gradients);
  std::fill_n(columns.weight, layout_.weights(), 0.0);
  std::fill_n(columns.bias, layout_.weights(), 0.0);
  parallel_for(tiles, threads_, [&](std::size_t i) noexcept {
    const std::size_t begin = i * tile_width_;
    loops_.row_and_column_sums(arrays_, layout_,
                               {0, rows, begin, std::min(tile_width_, length - begin)}, v.rows,
                               {sums_.first + i * rows, sums_.second + i * rows}, columns);
  });
  for (const auto& [sums, of_tiles] :
       {std::pair{v.sums.first, sums_.first}, std::pair{v.sums.second, sums_.second}}) {
    std::copy_n(of_tiles, rows, sums);
    for (std::size_t i = 1; i < tiles; ++i) {
      for (std::size_t row = 0; row < rows; ++row) sums[row] += of_tiles[i * rows + row];
    }
  }
  finish_backward(v, 0, rows, of);
  parallel_for(rows * pieces_, threads_, [&](std::size_t i) noexcept {
    loops_.input_gradient[true](arrays_, layout_, piece(i / pieces_, i % pieces_),
                                at(v.rows, i / pieces_));
  });
}

// Adds up the sums of columns to the gradients of their weights.
template <class T>
void RowNorm<T>::fold_columns(const Gradients& gradients) noexcept {
  const Gradients all = columns_of(0, gradients);
  share_weights(blocks_, [&](std::size_t begin, std::size_t end) noexcept {
    for (std::size_t b = 1; b < blocks_; ++b) {
      const Gradients more = columns_of(b, gradients);
      for (std::size_t c = begin; c < end; ++c) all.weight[c] += more.weight[c];
      for (std::size_t c = begin; c < end; ++c) all.bias[c] += more.bias[c];
    }
  });
  if (per_weight_ == 1) return;
  for (std::size_t c = 0; c < layout_.weights() / per_weight_; ++c) {
    gradients.weight[c] = gradients.bias[c] = 0;
    for (std::size_t i = c * per_weight_; i < (c + 1) * per_weight_; ++i) {
      gradients.weight[c] += all.weight[i];
      gradients.bias[c] += all.bias[i];
    }
  }
}

// Calls body(begin, end) for all weights, each of which has `terms` to add up.
template <class T>
template <class Body>
void RowNorm<T>::share_weights(std::size_t terms, const Body& body) noexcept {
  const std::size_t weights = layout_.weights();
  const int helpful = terms * weights < min_share_elements ? 1 : threads_;
  parallel_for(divide_up(weights, weights_together), helpful, [&](std::size_t i) noexcept {
    body(i * weights_together, std::min((i + 1) * weights_together, weights));
  });
}

template <class T>
void RowNorm<T>::backward(const Statistics& of, const Gradients& gradients) noexcept {
  if (!layout_.weight_each) return backward_runs(of, gradients);
  if (by_chunks_) {
    backward_blocks(of, gradients);
  } else {
    backward_tiles(of, gradients);
  }
  fold_columns(gradients);
}

template class RowNorm<float>;
template class RowNorm<double>;

}  // namespace onepass
