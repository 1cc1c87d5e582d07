// The values of channels and of columns that the loops of batch normalisation read, and the
// decisions that BatchNorm and Inference share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>

#include "dispatch.hpp"
#include "grid.hpp"
#include "onepass/panels.hpp"
#include "parallel.hpp"

namespace onepass {

// Memory for what an operation knows of its channels, not zeroed. A small operation's lies within,
// so that it touches few cache lines and allocates nothing.
class Workspace {
 public:
  Workspace() noexcept {}  // leaves `within_` as it is
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (last_) free_blocks();
  }

  // n elements, the first of them `past` bytes past the start of a cache line. Throws bad_alloc.
  template <class T>
  T* take(std::size_t n, std::size_t past = 0) {
    static_assert(std::is_trivially_destructible_v<T>);
    return static_cast<T*>(take_bytes(past + n * sizeof(T), past));
  }

 private:
  static constexpr std::size_t line = 64, most_within = 16384, min_block = 32768;
  // The start of an allocated block.
  struct alignas(line) Block {
    Block* before;
  };

  void* take_bytes(std::size_t bytes, std::size_t past);
  void free_blocks() noexcept;

  std::byte* next_ = within_;
  std::size_t left_ = most_within;
  Block* last_ = nullptr;
  alignas(line) std::byte within_[most_within];
};

// Where what is read along with a row begins, past the start of a cache line: where the row does,
// because a SIMD vector that straddles two lines costs two loads. Values of 32 bits along with a
// row of 16 bits are twice as far.
template <class T>
std::size_t beside_row(const T* row) noexcept {
  return reinterpret_cast<std::uintptr_t>(row) * (sizeof(Value<T>) / sizeof(T)) % 64;
}

// One number per channel, float or double, where the caller has it; or `value` for all of them.
struct PerChannel {
  const void* data = nullptr;
  std::ptrdiff_t stride = 0;  // bytes
  bool is_float = false;
  double value = 0;

  // Writes the numbers of channels [begin, begin + n).
  void load(double* to, std::size_t n, std::size_t begin = 0) const noexcept;
};

// If the square of the distance between the first samples' mean and the channel's mean is larger
// than so many variances, sums about the first samples' mean lose digits. functional.py says under
// batch_norm_train what error is left.
inline constexpr double max_off_center = 49;
inline constexpr int max_tries = 3;  // with x as it is, in small units, about a better center
// If the squares of doubles would be infinite, x is summed in units of 2^600; if the products of x
// and dy would be, dy is too.
inline constexpr double small_magnitude = 0x1p-600;
inline constexpr double min_ordinary_invstd = 0x1p-500;
// Centers are clamped to this, so that the product with a float dy stays finite. The mean of
// floats is smaller; a larger one is the caller's own.
inline constexpr double max_center = 0x1p800;

enum class Operation { train, infer, backward };

template <class P>
P advance(P pointer, std::size_t n) noexcept {
  return pointer ? pointer + n : nullptr;
}

template <class T>
Arrays<T> at(const Arrays<T>& a, std::size_t i) noexcept {
  return {advance(a.x, i),   advance(a.residual, i),  advance(a.dy, i),
          advance(a.out, i), advance(a.dresidual, i), a.stream,
          a.prefetch_ahead};
}

inline Affine at(const Affine& a, std::size_t c) noexcept {
  return {a.weight + c, a.bias + c};
}
inline Statistics at(const Statistics& s, std::size_t c) noexcept {
  return {s.mean + c, s.invstd + c, advance(s.variance, c)};
}
inline Gradients at(const Gradients& g, std::size_t c) noexcept {
  return {g.weight + c, g.bias + c};
}

template <class T>
Channels<T> at(const Channels<T>& c, std::size_t i) noexcept {
  return {advance(c.center, i), advance(c.magnitude, i), advance(c.mean, i),   advance(c.scale, i),
          advance(c.shift, i),  advance(c.slope, i),     advance(c.offset, i), advance(c.gain, i)};
}

// Memory for what the loops are told of n channels or columns, as far as an operation needs it.
// `in_units`: with the magnitudes, 1 at first.
template <class T>
Channels<T> take_values(Workspace& workspace, std::size_t n, std::size_t past, Operation operation,
                        bool in_units) {
  Channels<T> values{};
  for (auto* value : {&values.mean, &values.scale, &values.shift}) {
    *value = workspace.take<T>(n, past);
  }
  values.center = workspace.take<double>(n);
  if (in_units) {
    values.magnitude = workspace.take<double>(n);
    std::fill_n(values.magnitude, n, 1.0);
  }
  if (operation == Operation::train) return values;
  for (auto* value : {&values.slope, &values.offset, &values.gain}) {
    *value = workspace.take<T>(n, past);
  }
  return values;
}

// Returns how many threads an array is worth. Measured: bench/NOTES.md.
inline int useful_threads(const Layout& layout, int threads) noexcept {
  constexpr std::size_t min_elements_per_thread = 16384;
  const auto useful =
      static_cast<int>(std::min<std::size_t>(layout.size() / min_elements_per_thread, max_threads));
  return std::max(std::min(threads, useful), 1);
}

// Returns whether the output bypasses the caches, as it does if it would be evicted before anybody
// reads it. Measured: bench/NOTES.md.
template <class T>
bool streams(const Arrays<T>& arrays, const Layout& layout, Operation operation) noexcept {
  constexpr std::size_t min_streamed_bytes = 8 << 20;
  constexpr std::size_t most_of_a_cache = 128 << 20;  // that others use as well
  // x and y; x, x and y; dy, x, dy, x and dx.
  const std::size_t passes = operation == Operation::infer   ? 2
                             : operation == Operation::train ? 3
                                                             : 5;
  const std::size_t bytes = layout.size() * sizeof(T);
  const bool in_place = arrays.out == arrays.x || arrays.out == arrays.dy;
  if (in_place || bytes < min_streamed_bytes) return false;
  static const std::size_t cache = std::min(last_level_cache(), most_of_a_cache);
  return passes * bytes >= cache + cache / 2;
}

}  // namespace onepass
