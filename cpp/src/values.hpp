// The values of channels and of columns that the loops of batch normalisation read, and the
// decisions that BatchNorm and Inference share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "dispatch.hpp"
#include "grid.hpp"
#include "onepass/panels.hpp"
#include "parallel.hpp"

namespace onepass {

// Allocates uninitialised storage that begins `past` bytes after the start of a cache line, because
// a SIMD vector that straddles two lines costs two loads.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t line{64};
  std::size_t past = 0;
  T* allocate(std::size_t n) {
    auto* begin = static_cast<char*>(::operator new(past + n * sizeof(T), line));
    return reinterpret_cast<T*>(begin + past);
  }
  void deallocate(T* p, std::size_t) noexcept {
    ::operator delete(reinterpret_cast<char*>(p) - past, line);
  }
  void construct(T* p) noexcept { ::new (static_cast<void*>(p)) T; }
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>& other) noexcept : past(other.past) {}
  bool operator==(const LineAllocator&) const = default;
};

// Returns an allocator for what is read along with a row: it lies as `row` does in its cache line.
template <class T>
LineAllocator<T> like_row(const T* row) noexcept {
  LineAllocator<T> allocator;
  allocator.past = reinterpret_cast<std::uintptr_t>(row) % 64;
  return allocator;
}

template <class T>
using Vector = std::vector<T, LineAllocator<T>>;

// One number per channel, float or double, in the caller's array; without one, `value` for all.
struct PerChannel {
  const void* data = nullptr;
  std::ptrdiff_t stride = 0;  // bytes
  bool is_float = false;
  double value = 0;

  // Writes the numbers of channels [begin, begin + n), as doubles.
  void load(double* to, std::size_t n, std::size_t begin = 0) const noexcept {
    if (!data) {
      std::fill_n(to, n, value);
    } else if (is_float) {
      load_as<float>(to, n, begin);
    } else {
      load_as<double>(to, n, begin);
    }
  }

 private:
  template <class T>
  void load_as(double* to, std::size_t n, std::size_t begin) const noexcept {
    const char* first =
        static_cast<const char*>(data) + static_cast<std::ptrdiff_t>(begin) * stride;
    if (stride == sizeof(T)) {  // the usual case, and many times as fast
      std::copy_n(reinterpret_cast<const T*>(first), n, to);
      return;
    }
    for (std::size_t c = 0; c < n; ++c) {
      const char* at = first + static_cast<std::ptrdiff_t>(c) * stride;
      to[c] = static_cast<double>(*reinterpret_cast<const T*>(at));
    }
  }
};

enum class Operation { train, infer, backward };

// The storage that a Channels points into.
template <class T>
struct Values {
  explicit Values(const LineAllocator<T>& a) noexcept
      : mean(a), scale(a), shift(a), slope(a), offset(a), gain(a) {}
  void resize(std::size_t n, Operation operation);
  Channels<T> at(std::size_t i) noexcept;

  Vector<double> center, magnitude;
  Vector<T> mean, scale, shift, slope, offset, gain;
};

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
void Values<T>::resize(std::size_t n, Operation operation) {
  for (auto* values : {&mean, &scale, &shift}) values->resize(n);
  if (operation == Operation::infer) return;
  for (auto* values : {&center, &magnitude}) values->resize(n);
  std::fill(magnitude.begin(), magnitude.end(), 1.0);
  if (operation == Operation::train) return;
  for (auto* values : {&slope, &offset, &gain}) values->resize(n);
}

template <class T>
Channels<T> Values<T>::at(std::size_t i) noexcept {
  const auto from = [&](auto& values) noexcept { return advance(values.data(), i); };
  return {from(center), from(magnitude), from(mean),   from(scale),
          from(shift),  from(slope),     from(offset), from(gain)};
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
  constexpr std::size_t most_of_a_cache = 128 << 20;  // a larger one is shared with others
  static const std::size_t cache = std::min(last_level_cache(), most_of_a_cache);
  // Inference goes through x and y, training through x, x and y, backward through dy, x, dy, x and
  // dx.
  const std::size_t passes = operation == Operation::infer   ? 2
                             : operation == Operation::train ? 3
                                                             : 5;
  const std::size_t bytes = layout.size() * sizeof(T);
  const bool in_place = arrays.out == arrays.x || arrays.out == arrays.dy;
  return !in_place && bytes >= min_streamed_bytes && passes * bytes >= cache + cache / 2;
}

}  // namespace onepass
