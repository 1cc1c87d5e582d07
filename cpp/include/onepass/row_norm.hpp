// Normalising rows: the loops of LayerNorm, RMSNorm, GroupNorm and InstanceNorm. A row has the part
// that a channel has in batch normalisation, whose terms and values (batchnorm.hpp,
// channel_values.hpp) it shares:
//
//   row_moments         sums of x - center and of its square           (forward)
//   normalize_rows      y = (x - mean) * invstd * weight + bias
//   row_gradient_sums   sums of dy * weight and of dy * weight * (x - mean)   (backward)
//   column_sums         the gradients of weights that belong to one element of a row each
//   row_input_gradient  dx
//
// All sums are taken in double, and in an order that the layout alone decides.
#pragma once

#include "onepass/batchnorm.hpp"
#include "onepass/row_panels.hpp"

namespace onepass::inline ONEPASS_ISA {

// The values of the row that is `k` after the first.
template <class T>
inline Channels<T> values_of_row(const Channels<T>& of, std::size_t k) noexcept {
  return {of.center + k, of.magnitude + k, of.mean + k,   of.scale + k,
          of.shift + k,  of.slope + k,     of.offset + k, of.gain + k};
}

// Returns both sums over n elements in a row. Short runs get fewer lanes, which take less to fold.
template <class T, class Terms>
inline void sum_run(std::size_t n, double& first, double& second, const Terms& terms) noexcept {
  constexpr std::size_t few = 16, longest_short_run = 512;
  if (n <= longest_short_run) {
    alignas(cache_line) double a[few] = {}, b[few] = {};
    std::size_t i = 0;
    for (; i + few <= n; i += few) add_row(i, few, a, b, terms);
    add_row(i, n - i, a, b, terms);
    first = fold_lanes<few>(a);
    second = fold_lanes<few>(b);
    return;
  }
  alignas(cache_line) double a[lanes] = {}, b[lanes] = {};
  add_lanes<T>(0, n, sums_prefetch_bytes / sizeof(T), a, b, terms);
  first = fold_lanes(a);
  second = fold_lanes(b);
}

// Writes the sums of each row of a block.
template <class T>
void row_moments(const RowArrays<T>& arrays, const RowLayout& layout, const RowBlock& block,
                 const Channels<T>& rows, double* first, double* second) noexcept {
  Arrays<T> row{};
  row.prefetch_ahead = arrays.prefetch_ahead;
  for (std::size_t k = 0; k < block.rows; ++k) {
    row.x = arrays.x + (block.first + k * block.step) * layout.length() + block.begin;
    const Moments<ForAll, T> terms(row, values_of_row(rows, k * block.step));
    sum_run<T>(block.width, first[k], second[k], terms);
  }
}

template <template <class> class Each, class T>
struct RowGradientTerms {
  void operator()(std::size_t i, std::size_t, double& a, double& b) const noexcept {
    T g = dy[i];
    if constexpr (!Each<T>::one_channel) g *= weight[i];
    a = static_cast<double>(g);
    b = a * about(x[i], 0);
  }
  void prefetch(std::size_t i) const noexcept {
    if (!prefetch_ahead) return;
    prefetch_into_l2(x + i);
    prefetch_into_l2(dy + i);
  }
  const T *x, *dy, *weight;
  bool prefetch_ahead;
  About<ForAll, T> about;
};

// Writes the sums of each run of a block. Where a run has one weight, they are without it.
template <template <class> class Each, class T>
void row_gradient_sums(const RowArrays<T>& arrays, const RowLayout& layout, const RowBlock& block,
                       const Channels<T>& rows, double* first, double* second) noexcept {
  const std::size_t runs = std::max<std::size_t>(block.width / layout.segment, 1);
  const std::size_t width = std::min(block.width, layout.segment);
  for (std::size_t k = 0; k < block.rows; ++k) {
    const std::size_t row = block.first + k * block.step;
    const std::size_t begin = row * layout.length() + block.begin;
    const T* weight = arrays.weight + row % layout.groups * layout.weights_of_row() + block.begin;
    const About<ForAll, T> about(values_of_row(rows, k * block.step));
    for (std::size_t s = 0; s < runs; ++s) {
      const std::size_t at = begin + s * width;
      const RowGradientTerms<Each, T> terms{arrays.x + at, arrays.dy + at, weight,
                                            arrays.prefetch_ahead, about};
      sum_run<T>(width, first[k * runs + s], second[k * runs + s], terms);
    }
  }
}

// Writes a block of `out`: element_of(k, weight)(i, j) is its element i, in column j of row k of
// the block, whose first weight is number `weight`.
template <class T, class ElementOf>
inline void write_block(T* out, const RowLayout& layout, const RowBlock& block, bool stream,
                        const ElementOf& element_of) noexcept {
  const std::size_t runs = std::max<std::size_t>(block.width / layout.segment, 1);
  const std::size_t width = std::min(block.width, layout.segment);
  const std::size_t in_row = layout.weight_each ? block.begin : block.begin / layout.segment;
  const Panel panel{block.rows * runs, width, block.step * layout.segment, 1};
  write_rows(out, panel, stream, [=](std::size_t run) {
    const std::size_t k = runs == 1 ? run : run / runs, s = runs == 1 ? 0 : run % runs;
    const std::size_t row = block.first + k * block.step;
    const std::size_t group = layout.groups == 1 ? 0 : row % layout.groups;
    return element_of(k * block.step, group * layout.weights_of_row() + in_row + s);
  });
}

template <template <class> class Each, class T>
void normalize_rows(const RowArrays<T>& arrays, const RowLayout& layout, const RowBlock& block,
                    const Channels<T>& rows) noexcept {
  const std::size_t begin = block.first * layout.length() + block.begin;
  const T *x = arrays.x + begin, *weights = arrays.weight, *biases = arrays.bias;
  const T small = static_cast<T>(downscale);
  write_block(arrays.out + begin, layout, block, arrays.stream, [=](std::size_t k, std::size_t w) {
    return
        [=, mean = rows.mean[k], scale = rows.scale[k], shift = rows.shift[k],
         weight = Each<T>(weights + w), bias = Each<T>(biases + w)](std::size_t i, std::size_t j) {
          return ((x[i] * small - mean) * scale + shift) * weight[j] + bias[j];
        };
  });
}

template <template <class> class Each, class T>
void row_input_gradient(const RowArrays<T>& arrays, const RowLayout& layout, const RowBlock& block,
                        const Channels<T>& rows) noexcept {
  const std::size_t begin = block.first * layout.length() + block.begin;
  const T *x = arrays.x + begin, *dy = arrays.dy + begin, *weights = arrays.weight;
  const T small = static_cast<T>(downscale);
  write_block(arrays.out + begin, layout, block, arrays.stream, [=](std::size_t k, std::size_t w) {
    return [=, mean = rows.mean[k], slope = rows.slope[k], offset = rows.offset[k],
            gain = rows.gain[k], weight = Each<T>(weights + w)](std::size_t i, std::size_t j) {
      const T centered = x[i] * small - mean;
      return (dy[i] * weight[j] - (centered * slope + offset)) * gain;
    };
  });
}

// Adds n rows, 1 or 4, to the sums of the columns [0, width): those of dy, and of dy * (x - mean) *
// rate. The rows lie `stride` apart.
template <std::size_t n, class T>
inline void add_to_columns(const T* x, const T* dy, std::size_t stride, std::size_t width,
                           const About<ForAll, T> (&about)[n], const double (&rate)[n],
                           double* dweight, double* dbias) noexcept {
#pragma omp simd
  for (std::size_t j = 0; j < width; ++j) {
    double a[n], b[n];
    for (std::size_t k = 0; k < n; ++k) {
      a[k] = static_cast<double>(dy[k * stride + j]);
      b[k] = a[k] * (about[k](x[k * stride + j], 0) * rate[k]);
    }
    if constexpr (n == 4) {
      dbias[j] += (a[0] + a[1]) + (a[2] + a[3]);
      dweight[j] += (b[0] + b[1]) + (b[2] + b[3]);
    } else {
      dbias[j] += a[0];
      dweight[j] += b[0];
    }
  }
}

// Adds a block to the gradients of its columns' weights. `rates`: 1 / the standard deviation of
// each row, in the units that x is summed in.
template <class T>
void column_sums(const RowArrays<T>& arrays, const RowLayout& layout, const RowBlock& block,
                 const Channels<T>& rows, const double* rates, double* dweight,
                 double* dbias) noexcept {
  const std::size_t begin = block.first * layout.length() + block.begin;
  const T *x = arrays.x + begin, *dy = arrays.dy + begin;
  const std::size_t stride = block.step * layout.length(), step = block.step;
  const auto about = [&](std::size_t k) { return About<ForAll, T>(values_of_row(rows, k * step)); };
  std::size_t k = 0;
  for (; k + 4 <= block.rows; k += 4) {
    const About<ForAll, T> of[] = {about(k), about(k + 1), about(k + 2), about(k + 3)};
    const double rate[] = {rates[k * step], rates[(k + 1) * step], rates[(k + 2) * step],
                           rates[(k + 3) * step]};
    add_to_columns<4>(x + k * stride, dy + k * stride, stride, block.width, of, rate, dweight,
                      dbias);
  }
  for (; k < block.rows; ++k) {
    const About<ForAll, T> of[] = {about(k)};
    const double rate[] = {rates[k * step]};
    add_to_columns<1>(x + k * stride, dy + k * stride, stride, block.width, of, rate, dweight,
                      dbias);
  }
}

}  // namespace onepass::inline ONEPASS_ISA
