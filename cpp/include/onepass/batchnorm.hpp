// Batch normalisation: the loops that a forward and a backward pass are made of. Each runs
// over a panel; which panels there are, and in which order, is the caller's business.
//
//   moments          sums of x - shift and of its square      (forward, training)
//   normalize        y = (x - mean) * invstd * weight + bias
//   gradient_sums    sums of dy and of dy * (x - mean)        (backward)
//   small_gradient_sums   the same, with dy in units of 2^600, if those overflow
//   input_gradient   dx
//
// All sums are taken in double, and in an order that the panel alone decides.
#pragma once

#include "onepass/panels.hpp"
#include "onepass/reduce.hpp"
#include "onepass/streaming.hpp"

namespace onepass::inline ONEPASS_ISA {

// One value per column (PerColumn), or one for all columns (ForAll).
template <class T>
struct PerColumn {
  static constexpr bool one_channel = false;
  explicit PerColumn(const T* first) noexcept : values(first) {}
  T operator[](std::size_t column) const noexcept { return values[column]; }
  const T* values;
};
template <class T>
struct ForAll {
  static constexpr bool one_channel = true;
  explicit ForAll(const T* only) noexcept : value(*only) {}
  T operator[](std::size_t) const noexcept { return value; }
  T value;
};

// Both functions add terms to the two sums of each column in [begin, end): those of four rows, or
// of one. `terms` is passed by value, so that no store can change it. The functions are inlined, or
// their loops would not know what is constant.
template <class Terms>
[[gnu::always_inline]] inline void add_four_rows(std::size_t row, std::size_t stride,
                                                 std::size_t begin, std::size_t end, double* first,
                                                 double* second, const Terms terms) noexcept {
#pragma omp simd
  for (std::size_t j = begin; j < end; ++j) {
    double a[4], b[4];
    for (std::size_t k = 0; k < 4; ++k) terms(row + k * stride + j, j, a[k], b[k]);
    first[j] += (a[0] + a[1]) + (a[2] + a[3]);
    second[j] += (b[0] + b[1]) + (b[2] + b[3]);
  }
}
template <class Terms>
[[gnu::always_inline]] inline void add_row(std::size_t row, std::size_t width, double* first,
                                           double* second, const Terms terms) noexcept {
#pragma omp simd
  for (std::size_t j = 0; j < width; ++j) {
    double a, b;
    terms(row + j, j, a, b);
    first[j] += a;
    second[j] += b;
  }
}

// A tile of each array of 16 bits, widened, in memory that stays in L1: the loops of float run over
// these. It has `lanes` elements of four rows, or a part of that. What is written takes the place
// of what is read.
struct Tile {
  static constexpr std::size_t size = 4 * lanes;
  alignas(cache_line) float x[size], dy[size], residual[size];
  Arrays<float> arrays() noexcept { return {x, residual, dy, x, residual, false}; }
};

// `Loop`, which reads floats, on arrays of 16 bits. The first column is number `first`.
template <class Loop, class T>
struct Widened {
  static constexpr std::size_t line = cache_line / sizeof(T);
  static constexpr std::size_t at_once = Loop::reads_dy ? line : 2 * line;  // bench/NOTES.md

  Arrays<T> arrays;
  Channels<float> channels;
  std::size_t first = 0;

  // Opens n columns of some rows. The first is column j, its first element number i.
  template <std::size_t rows>
  [[gnu::always_inline]] Loop open(Tile& tile, std::size_t i, std::size_t stride, std::size_t j,
                                   std::size_t n) const noexcept {
    for (std::size_t r = 0; r < rows; ++r) {
      const std::size_t from = i + r * stride, to = r * lanes;
      widen(arrays.x + from, n, tile.x + to);
      if constexpr (Loop::reads_dy) widen(arrays.dy + from, n, tile.dy + to);
      if constexpr (Loop::reads_residual) widen(arrays.residual + from, n, tile.residual + to);
    }
    return Loop(tile.arrays(), channels, first + (Loop::one_channel ? 0 : j));
  }

  [[gnu::always_inline]] void prefetch(std::size_t i) const noexcept {
    if (!arrays.prefetch_ahead) return;
    prefetch_into_l2(arrays.x + i);
    if constexpr (at_once > line) prefetch_into_l2(arrays.x + i + line);
    if constexpr (Loop::reads_dy) prefetch_into_l2(arrays.dy + i);
  }

  // Writes n elements of a row, as write_run does. NumPy's arrays begin 16 bytes past a line, so
  // that the ends of runs are mostly 8 elements or a multiple of these.
  [[gnu::always_inline]] void write(T* to, std::size_t i, std::size_t j,
                                    std::size_t n) const noexcept {
    std::size_t k = 0;
    for (; k + 128 <= n; k += 128) write_tile(to + k, i + k, j + k, 128);
    for (; k + 32 <= n; k += 32) write_tile(to + k, i + k, j + k, 32);
    for (; k + 8 <= n; k += 8) write_tile(to + k, i + k, j + k, 8);
    if (k < n) write_rest(to + k, i + k, j + k, n - k);
  }
  [[gnu::noinline]] void write_rest(T* to, std::size_t i, std::size_t j,
                                    std::size_t n) const noexcept {
    write_tile(to, i, j, n);
  }
  // Writes short rows that lie behind one another, as many at once as fill a tile.
  void write_short_rows(T* out, const Panel& panel) const noexcept {
    const std::size_t most = Tile::size / panel.width;
    for (std::size_t r = 0; r < panel.rows; r += most) {
      const std::size_t rows = std::min(most, panel.rows - r);
      const std::size_t i = r * panel.width, n = rows * panel.width;
      Tile tile;
      open<1>(tile, i, 0, 0, n);
      for (std::size_t k = 0; k < rows; ++k) {
        const Loop element(tile.arrays(), channels, first + (r + k) * panel.channel_step);
        const std::size_t row = k * panel.width;
#pragma omp simd
        for (std::size_t j = 0; j < panel.width; ++j) tile.x[row + j] = element(row + j, j);
      }
      store(tile, out + i, i, n);
    }
  }
  [[gnu::always_inline]] void write_tile(T* to, std::size_t i, std::size_t j,
                                         std::size_t n) const noexcept {
    Tile tile;
    const Loop element = open<1>(tile, i, 0, j, n);
#pragma omp simd
    for (std::size_t k = 0; k < n; ++k) tile.x[k] = element(k, k);
    store(tile, to, i, n);
  }
  [[gnu::always_inline]] void store(const Tile& tile, T* to, std::size_t i,
                                    std::size_t n) const noexcept {
    narrow(tile.x, n, to);
    if constexpr (Loop::writes_residual) narrow(tile.residual, n, arrays.dresidual + i);
  }
};

// A loop on arrays of T.
template <class Loop, class T>
using On = std::conditional_t<is_narrow<T>, Widened<Loop, T>, Loop>;

template <class Loop, class T>
[[gnu::always_inline]] inline void add_four_rows(std::size_t row, std::size_t stride,
                                                 std::size_t begin, std::size_t end, double* first,
                                                 double* second,
                                                 const Widened<Loop, T> terms) noexcept {
  for (std::size_t j = begin; j < end; j += lanes) {
    const std::size_t n = std::min(lanes, end - j);
    Tile tile;
    const Loop opened = terms.template open<4>(tile, row + j, stride, j, n);
    add_four_rows(0, lanes, 0, n, first + j, second + j, opened);
  }
}
template <class Loop, class T>
[[gnu::always_inline]] inline void add_row(std::size_t row, std::size_t width, double* first,
                                           double* second, const Widened<Loop, T> terms) noexcept {
  for (std::size_t j = 0; j < width; j += lanes) {
    const std::size_t n = std::min(lanes, width - j);
    Tile tile;
    const Loop opened = terms.template open<1>(tile, row + j, 0, j, n);
    add_row(0, n, first + j, second + j, opened);
  }
}

// Adds up a panel whose columns are channels, or parts of one. `terms` says how many columns of
// four rows are summed and prefetched at once.
template <class Terms>
inline void add_columns(const Panel& panel, double* first, double* second,
                        const Terms terms) noexcept {
  constexpr std::size_t at_once = Terms::at_once;
  const std::size_t width = panel.width, ahead = 4 * panel.stride;
  std::size_t r = 0;
  for (; r + 4 <= panel.rows; r += 4) {
    const std::size_t row = r * panel.stride;
    std::size_t j = 0;
    for (; j + at_once <= width; j += at_once) {
      for (std::size_t k = 0; k < 4; ++k) terms.prefetch(row + k * panel.stride + j + ahead);
      add_four_rows(row, panel.stride, j, j + at_once, first, second, terms);
    }
    if (j < width) add_four_rows(row, panel.stride, j, width, first, second, terms);
  }
  for (; r < panel.rows; ++r) {
    const std::size_t row = r * panel.stride;
    for (std::size_t j = 0; j < width; j += at_once) terms.prefetch(row + j + ahead);
    add_row(row, width, first, second, terms);
  }
}

// Adds up n elements of one channel: an element's column is its place modulo `lanes`.
template <class Terms>
inline void add_lanes(std::size_t begin, std::size_t n, std::size_t ahead, double* first,
                      double* second, const Terms terms) noexcept {
  constexpr std::size_t at_once = Terms::at_once, rows = 4 * lanes;
  std::size_t i = begin;
  const std::size_t end = begin + n;
  for (; i + rows <= end; i += rows) {
    for (std::size_t j = 0; j < lanes; j += at_once) {  // prefetches in the order of memory
      for (std::size_t k = 0; k < 4; ++k) terms.prefetch(i + 4 * j + k * at_once + ahead);
      add_four_rows(i, lanes, j, j + at_once, first, second, terms);
    }
  }
  for (; i < end; i += lanes) {
    const std::size_t rest = std::min(lanes, end - i);
    for (std::size_t j = 0; j < rest; j += at_once) terms.prefetch(i + j + ahead);
    add_row(i, rest, first, second, terms);
  }
}

template <template <class> class Each, class T, class Terms>
inline void add_up(const Panel& panel, double* first, double* second, const Terms& terms) noexcept {
  if constexpr (Each<T>::one_channel) {
    // Behind a row lies another channel. If the channel's next row comes soon, that is prefetched.
    constexpr std::size_t soon = 4 * sums_prefetch_bytes / sizeof(T);
    const bool next_row = panel.rows > 1 && panel.width <= soon;
    const std::size_t ahead = next_row ? panel.stride : sums_prefetch_bytes / sizeof(T);
    for (std::size_t r = 0; r < panel.rows; ++r) {
      add_lanes(r * panel.stride, panel.width, ahead, first, second, terms);
    }
  } else {
    add_columns(panel, first, second, terms);
  }
}

// Computes x - center in double.
template <template <class> class Each, class T>
struct About {
  explicit About(const Channels<T>& channels, std::size_t first = 0) noexcept
      : center(channels.center + first), magnitude(channels.magnitude + first) {}
  double operator()(T x, std::size_t column) const noexcept {
    double value = static_cast<double>(x);
    if constexpr (sizeof(T) == sizeof(double)) value *= magnitude[column];
    return value - center[column];
  }
  Each<double> center, magnitude;
};

template <template <class> class Each, class T>
struct Moments {
  static constexpr std::size_t at_once = cache_line / sizeof(T);
  static constexpr bool one_channel = Each<T>::one_channel;
  static constexpr bool reads_dy = false, reads_residual = false;
  Moments(const Arrays<T>& arrays, const Channels<T>& channels, std::size_t first = 0) noexcept
      : x(arrays.x), prefetch_ahead(arrays.prefetch_ahead), about(channels, first) {}
  void operator()(std::size_t i, std::size_t j, double& a, double& b) const noexcept {
    a = about(x[i], j);
    b = a * a;
  }
  [[gnu::always_inline]] void prefetch(std::size_t i) const noexcept {
    if (prefetch_ahead) prefetch_into_l2(x + i);
  }
  const T* x;
  bool prefetch_ahead;
  About<Each, T> about;
};

template <template <class> class Each, class T>
void moments(const Arrays<T>& arrays, const Panel& panel, const Channels<Value<T>>& channels,
             double* sum, double* square) noexcept {
  add_up<Each, T>(panel, sum, square, On<Moments<Each, Value<T>>, T>{arrays, channels});
}

// The forward's arithmetic, which the backward repeats to find where ReLU was at work.
template <bool relu, bool residual, class T>
inline T normalized(T centered, T scale, T shift, const T* z, std::size_t i) noexcept {
  T y = centered * scale + shift;
  if constexpr (residual) y += z[i];
  if constexpr (relu) y = y <= T(0) ? T(0) : y;  // a NaN stays one
  return y;
}

template <template <class> class Each, bool relu, bool residual, class T>
struct Normalize {
  static constexpr bool one_channel = Each<T>::one_channel;
  static constexpr bool reads_dy = false, reads_residual = residual, writes_residual = false;
  Normalize(const Arrays<T>& arrays, const Channels<T>& channels, std::size_t first) noexcept
      : x(arrays.x),
        z(arrays.residual),
        mean(channels.mean + first),
        scale(channels.scale + first),
        shift(channels.shift + first) {}
  T operator()(std::size_t i, std::size_t j) const noexcept {
    const T centered = x[i] * static_cast<T>(downscale) - mean[j];
    return normalized<relu, residual>(centered, scale[j], shift[j], z, i);
  }
  const T *x, *z;
  Each<T> mean, scale, shift;
};

template <template <class> class Each, bool relu, bool residual, class T>
void normalize(const Arrays<T>& arrays, const Panel& panel,
               const Channels<Value<T>>& channels) noexcept {
  using Element = On<Normalize<Each, relu, residual, Value<T>>, T>;
  write_rows(arrays.out, panel, arrays.stream, [=](std::size_t c) {
    return Element{arrays, channels, c};
  });
}

// Returns dy, or 0 where ReLU has cut off y.
template <bool relu, bool residual, class T>
inline T passed(T dy, T centered, T scale, T shift, const T* z, std::size_t i) noexcept {
  if constexpr (!relu) return dy;
  return normalized<false, residual>(centered, scale, shift, z, i) <= T(0) ? T(0) : dy;
}

// The factor of dy if `small`: a power of two that leaves no product of two finite numbers
// infinite.
inline constexpr double small_dy = 0x1p-600;

template <template <class> class Each, bool relu, bool residual, bool small, class T>
struct GradientTerms {
  static constexpr std::size_t at_once = cache_line / sizeof(T);
  static constexpr bool one_channel = Each<T>::one_channel;
  static constexpr bool reads_dy = true, reads_residual = relu && residual;
  GradientTerms(const Arrays<T>& arrays, const Channels<T>& channels,
                std::size_t first = 0) noexcept
      : x(arrays.x),
        dy(arrays.dy),
        z(arrays.residual),
        prefetch_ahead(arrays.prefetch_ahead),
        about(channels, first),
        mean(channels.mean + first),
        scale(channels.scale + first),
        shift(channels.shift + first) {}
  void operator()(std::size_t i, std::size_t j, double& a, double& b) const noexcept {
    T g = dy[i];
    if constexpr (relu) {
      const T centered = x[i] * static_cast<T>(downscale) - mean[j];
      g = passed<relu, residual>(g, centered, scale[j], shift[j], z, i);
    }
    a = static_cast<double>(g);
    if constexpr (small) a *= small_dy;
    b = a * about(x[i], j);
  }
  [[gnu::always_inline]] void prefetch(std::size_t i) const noexcept {
    if (!prefetch_ahead) return;
    prefetch_into_l2(x + i);
    prefetch_into_l2(dy + i);
  }
  const T *x, *dy, *z;
  bool prefetch_ahead;
  About<Each, T> about;
  Each<T> mean, scale, shift;
};

template <template <class> class Each, bool relu, bool residual, class T>
void gradient_sums(const Arrays<T>& arrays, const Panel& panel, const Channels<Value<T>>& channels,
                   double* sum, double* product) noexcept {
  using Terms = On<GradientTerms<Each, relu, residual, false, Value<T>>, T>;
  add_up<Each, T>(panel, sum, product, Terms{arrays, channels});
}

template <template <class> class Each, bool relu, bool residual, class T>
void small_gradient_sums(const Arrays<T>& arrays, const Panel& panel, const Channels<T>& channels,
                         double* sum, double* product) noexcept {
  const GradientTerms<Each, relu, residual, true, T> terms(arrays, channels);
  add_up<Each, T>(panel, sum, product, terms);
}

// `frozen`: the statistics do not depend on x.
template <template <class> class Each, bool relu, bool residual, bool frozen, class T>
struct InputGradient {
  static constexpr bool one_channel = Each<T>::one_channel;
  static constexpr bool reads_dy = true, reads_residual = relu && residual;
  static constexpr bool writes_residual = residual;
  InputGradient(const Arrays<T>& arrays, const Channels<T>& channels, std::size_t first) noexcept
      : x(arrays.x),
        dy(arrays.dy),
        z(arrays.residual),
        dz(arrays.dresidual),
        mean(channels.mean + first),
        scale(channels.scale + first),
        shift(channels.shift + first),
        slope(channels.slope + first),
        offset(channels.offset + first),
        gain(channels.gain + first) {}
  T operator()(std::size_t i, std::size_t j) const noexcept {
    const T centered = x[i] * static_cast<T>(downscale) - mean[j];
    const T g = passed<relu, residual>(dy[i], centered, scale[j], shift[j], z, i);
    if constexpr (residual) dz[i] = g;
    T through = g;
    if constexpr (!frozen) through -= centered * slope[j] + offset[j];
    return through * gain[j];
  }
  const T *x, *dy, *z;
  T* dz;
  Each<T> mean, scale, shift, slope, offset, gain;
};

template <template <class> class Each, bool relu, bool residual, bool frozen, class T>
void input_gradient(const Arrays<T>& arrays, const Panel& panel,
                    const Channels<Value<T>>& channels) noexcept {
  using Element = On<InputGradient<Each, relu, residual, frozen, Value<T>>, T>;
  write_rows(arrays.out, panel, arrays.stream, [=](std::size_t c) {
    return Element{arrays, channels, c};
  });
}

}  // namespace onepass::inline ONEPASS_ISA
