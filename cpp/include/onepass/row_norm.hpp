// Normalising rows: the loops of LayerNorm, RMSNorm, GroupNorm and InstanceNorm. A row has the part
// that a channel has in batch normalisation, whose values (channel_values.hpp) it shares. With
// n = (x - mean) * invstd:
//
//   row_moments          sums of x - center and of its square                (forward)
//   normalize_rows       y = n * weight + bias
//   row_and_column_sums  sums of dy * weight and dy * weight * n of a row,   (backward)
//                        of dy and dy * n of the columns, which have a weight each
//   run_sums             sums of dy and dy * n, or dy * x, of a run, which has one weight
//   row_input_gradient   dx
//
// All sums are taken in double, and in an order that the layout alone decides.
#pragma once

#include "onepass/batchnorm.hpp"
#include "onepass/row_panels.hpp"

namespace onepass::inline ONEPASS_ISA {

// Returns sum + a * b. A double holds the product of two floats, so that it makes no difference
// whether that is rounded before it is added.
template <bool floats>
inline double add_product(double sum, double a, double b) noexcept {
#if defined(__FMA__) || defined(__aarch64__)
  if constexpr (floats) return __builtin_fma(a, b, sum);
#endif
  return sum + a * b;
}

// What is summed of an element: `a`, and its product with `b`.
struct Factors {
  double a, b;
};

// Adds `count` lanes up in halves, as vectors.
template <std::size_t count>
inline double fold(const double (&sums)[count]) noexcept {
  if constexpr (count == 2) {
    return sums[0] + sums[1];
  } else {
    double halves[count / 2];
#pragma omp simd
    for (std::size_t j = 0; j < count / 2; ++j) halves[j] = sums[j] + sums[j + count / 2];
    return fold(halves);
  }
}

// Returns both sums over n elements in a row: in `count` lanes, which stay in registers, and of
// those that fill no lanes.
template <std::size_t count, class T, class Terms>
inline void sum_lanes(std::size_t n, double& first, double& second, const Terms terms) noexcept {
  constexpr std::size_t line = cache_line / sizeof(T);
  double a[count] = {}, b[count] = {}, rest_a = 0, rest_b = 0;
  const auto add = [&](std::size_t i, double& to_a, double& to_b) {
    const Factors of = terms(i);
    to_a += of.a;
    to_b = add_product<Terms::of_floats>(to_b, of.a, of.b);
  };
  std::size_t i = 0;
  for (; i + count <= n; i += count) {
    if (i % line == 0) {
      for (std::size_t j = 0; j < count; j += line) terms.prefetch(i + j);
    }
#pragma omp simd
    for (std::size_t j = 0; j < count; ++j) add(i + j, a[j], b[j]);
  }
  for (; i < n; ++i) add(i, rest_a, rest_b);
  first = fold(a) + rest_a;
  second = fold(b) + rest_b;
}

// The same. Short runs get fewer lanes, which take less to fold.
template <class T, class Terms>
inline void sum_run(std::size_t n, double& first, double& second, const Terms& terms) noexcept {
  constexpr std::size_t longest_short_run = 128;
  if (n <= longest_short_run) return sum_lanes<8, T>(n, first, second, terms);
  sum_lanes<16, T>(n, first, second, terms);
}

// How many elements ahead sums prefetch.
template <class T>
inline constexpr std::size_t sums_ahead = sums_prefetch_bytes / sizeof(T);

template <class T, bool centered>
struct RowMoments {
  static constexpr bool is_double = sizeof(T) == sizeof(double);
  static constexpr bool of_floats = !is_double && !centered;
  Factors operator()(std::size_t i) const noexcept {
    double value = static_cast<double>(x[i]);
    if constexpr (is_double) value *= unit;
    if constexpr (centered) value -= center;
    return {value, value};
  }
  [[gnu::always_inline]] void prefetch(std::size_t i) const noexcept {
    if (prefetch_ahead) prefetch_into_l2(x + i + sums_ahead<T>);
  }
  const T* x;
  double center, unit;
  bool prefetch_ahead;
};

// Writes the sums of each row of a block.
template <class T>
void row_moments(const RowArrays<T>& arrays, const RowLayout& layout, const RowBlock& block,
                 const Channels<T>& rows, const Sums& to) noexcept {
  for (std::size_t k = 0; k < block.rows; ++k) {
    const T* const x = arrays.x + (block.first + k) * layout.length() + block.begin;
    const double center = rows.center[k], unit = rows.magnitude[k];
    const auto sum = [&](const auto& terms) {
      sum_run<T>(block.width, to.first[k], to.second[k], terms);
    };
    if (center == 0) {
      sum(RowMoments<T, false>{x, 0, unit, arrays.prefetch_ahead});
    } else {
      sum(RowMoments<T, true>{x, center, unit, arrays.prefetch_ahead});
    }
  }
}

// Computes (x - mean) * invstd for row k.
template <class T>
struct Normalized {
  Normalized(const Channels<T>& rows, std::size_t k) noexcept
      : mean(rows.mean[k]), scale(rows.scale[k]), shift(rows.shift[k]) {}
  T operator()(T x) const noexcept {
    return (x * static_cast<T>(downscale) - mean) * scale + shift;
  }
  T mean, scale, shift;
};

// Sums about 0 are those of dy and dy * x, which take fewer operations.
template <class T, bool centered>
struct RunTerms {
  static constexpr bool of_floats = sizeof(T) < sizeof(double);
  Factors operator()(std::size_t i) const noexcept {
    return {static_cast<double>(dy[i]), static_cast<double>(centered ? normalized(x[i]) : x[i])};
  }
  [[gnu::always_inline]] void prefetch(std::size_t i) const noexcept {
    if (!prefetch_ahead) return;
    prefetch_into_l2(x + i + sums_ahead<T>);
    prefetch_into_l2(dy + i + sums_ahead<T>);
  }
  const T *x, *dy;
  bool prefetch_ahead;
  Normalized<T> normalized;
};

// Writes the sums of each run of a block. Doubles have none about 0, where products might be
// infinite.
template <class T>
void run_sums(const RowArrays<T>& arrays, const RowLayout& layout, const RowBlock& block,
              const Channels<T>& rows, const Sums& to) noexcept {
  const std::size_t runs = std::max<std::size_t>(block.width / layout.segment, 1);
  const std::size_t width = std::min(block.width, layout.segment);
  const auto sum_row = [&](auto centered, std::size_t k) {
    const std::size_t begin = (block.first + k) * layout.length() + block.begin;
    const Normalized<T> normalized(rows, k);
    for (std::size_t s = 0; s < runs; ++s) {
      const std::size_t at = begin + s * width, run = k * runs + s;
      const RunTerms<T, centered> terms{arrays.x + at, arrays.dy + at, arrays.prefetch_ahead,
                                        normalized};
      sum_run<T>(width, to.first[run], to.second[run], terms);
    }
  };
  for (std::size_t k = 0; k < block.rows; ++k) {
    if (sizeof(T) < sizeof(double) && rows.center[k] == 0) {
      sum_row(std::false_type{}, k);
    } else {
      sum_row(std::true_type{}, k);
    }
  }
}

// Adds each element to the sums of its column, too.
template <class T>
struct WeightedTerms {
  static constexpr bool of_floats = sizeof(T) < sizeof(double);
  Factors operator()(std::size_t i) const noexcept {
    const double up = static_cast<double>(dy[i]), value = static_cast<double>(normalized(x[i]));
    dbias[i] += up;
    dweight[i] = add_product<of_floats>(dweight[i], up, value);
    return {static_cast<double>(dy[i] * weight[i]), value};
  }
  [[gnu::always_inline]] void prefetch(std::size_t i) const noexcept {
    if (ahead == 0) return;
    prefetch_into_l2(x + i + ahead);
    prefetch_into_l2(dy + i + ahead);
  }
  const T *x, *dy, *weight;
  std::size_t ahead;
  double *dweight, *dbias;
  Normalized<T> normalized;
};

// Writes the sums of each row of a block, and adds to those of all columns of the layout. Every
// element of a row has a weight.
template <class T>
void row_and_column_sums(const RowArrays<T>& arrays, const RowLayout& layout, const RowBlock& block,
                         const Channels<T>& rows, const Sums& to,
                         const Gradients& columns) noexcept {
  const std::size_t length = layout.length();
  // Whole rows are read in the order of memory; of others, the same columns come next.
  const std::size_t next = block.width == length ? sums_ahead<T> : length;
  const std::size_t ahead = arrays.prefetch_ahead ? next : 0;
  for (std::size_t k = 0; k < block.rows; ++k) {
    const std::size_t row = block.first + k, begin = row * length + block.begin;
    const std::size_t column = row % layout.groups * length + block.begin;
    const WeightedTerms<T> terms{
        arrays.x + begin,        arrays.dy + begin,     arrays.weight + column, ahead,
        columns.weight + column, columns.bias + column, Normalized<T>(rows, k)};
    sum_lanes<8, T>(block.width, to.first[k], to.second[k], terms);
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
  const Panel panel{block.rows * runs, width, layout.segment, 1};
  write_rows(out, panel, stream, [=](std::size_t run) {
    const std::size_t k = runs == 1 ? run : run / runs, s = runs == 1 ? 0 : run % runs;
    const std::size_t row = block.first + k;
    const std::size_t group = layout.groups == 1 ? 0 : row % layout.groups;
    return element_of(k, group * layout.weights_of_row() + in_row + s);
  });
}

template <template <class> class Each, class T>
void normalize_rows(const RowArrays<T>& arrays, const RowLayout& layout, const RowBlock& block,
                    const Channels<T>& rows) noexcept {
  const std::size_t begin = block.first * layout.length() + block.begin;
  const T *x = arrays.x + begin, *weights = arrays.weight, *biases = arrays.bias;
  write_block(arrays.out + begin, layout, block, arrays.stream, [=](std::size_t k, std::size_t w) {
    return [=, normalized = Normalized<T>(rows, k), weight = Each<T>(weights + w),
            bias = Each<T>(biases + w)](std::size_t i, std::size_t j) {
      return normalized(x[i]) * weight[j] + bias[j];
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

}  // namespace onepass::inline ONEPASS_ISA
