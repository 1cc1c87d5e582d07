// What the loops of batch normalisation are given. Plain data, the same for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onepass {

// Elements of 16 bits as they are stored; formats.hpp reads and writes them.
struct StoredBFloat16 {
  std::uint16_t bits;
};
struct StoredFloat16 {
  std::uint16_t bits;
};

// What the loops compute an array's elements in: 16 bits are widened to float.
template <class T>
struct ValueOf {
  using Type = T;
};
template <>
struct ValueOf<StoredBFloat16> {
  using Type = float;
};
template <>
struct ValueOf<StoredFloat16> {
  using Type = float;
};
template <class T>
using Value = typename ValueOf<T>::Type;
template <class T>
inline constexpr bool is_narrow = sizeof(T) < sizeof(Value<T>);

// `rows` runs of `width` contiguous elements, which begin `stride` elements apart. `channel_step`
// is 1 if each run belongs to the channel after that of the run before, and 0 if all have the same.
struct Panel {
  std::size_t rows, width, stride;
  std::size_t channel_step = 0;
};

// One value per channel.
struct Affine {
  const double *weight, *bias;
};
struct Statistics {
  double *mean, *invstd;
  double* variance = nullptr;  // the biased one; null if it is not wanted
};
struct Gradients {
  double *weight, *bias;
};
struct Sums {
  double *first, *second;  // as batchnorm.hpp has them
};

// Where some elements of a channel are: `count` of them, a power of two, at the same offsets in
// every channel.
struct Samples {
  static constexpr std::size_t most = 16;
  std::size_t count, channels_apart, offsets[most];
};

// What the loops know of a channel; pointers to one value per column of a panel, or to the one that
// all of its elements share. As
//
//   y  = ((x * downscale - mean) * scale + shift) [+ residual] [relu]
//   dx = ((dy [where y > 0]) - ((x * downscale - mean) * slope + offset)) * gain
//
// where mean is the high part of the true one, and `shift` and `offset` account for the low part:
// a mean rounded to float would spoil the result where it is far larger than the deviation.
template <class T>
struct Channels {
  double* center;     // what the sums are taken about: the first samples' mean, or the mean
  double* magnitude;  // a power of two; double's range would not hold the squares of all x
  T *mean, *scale, *shift;
  T *slope, *offset, *gain;
};

// Where the elements are. What an operation does not use is null.
template <class T>
struct Arrays {
  const T *x, *residual, *dy;
  T* out;  // y or dx
  T* dresidual;
  bool stream;                  // whether `out` goes past the caches
  bool prefetch_ahead = false;  // whether what is summed is far away
};

// Before the mean is taken off, x is made smaller by a power of two, or the difference of two
// finite numbers might not be one. That rounds only what is subnormal, or becomes so.
inline constexpr double downscale = 0.0625;

// Accumulators of a panel whose elements all belong to one channel.
inline constexpr std::size_t lanes = 64;

}  // namespace onepass
