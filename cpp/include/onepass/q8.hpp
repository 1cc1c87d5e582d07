// 8 bits a number, in blocks of 256 with a scale of their own: small floats of 3 bits of mantissa,
// whose exponents count down from that of the block's largest number. Numbers are rounded up as
// often as what is rounded off is large: on average nothing is lost, however little a step changes
// them.
//
// Only integer operations on the bits of floats, and one addition of floats; NumPy does the same in
// python/onepass/formats.py.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "onepass/random.hpp"
#include "onepass/rule.hpp"
#include "onepass/stored.hpp"

namespace onepass::inline ONEPASS_ISA {

// The exponent of a block's largest number once it has `headroom` added to its bits, 255 where that
// is not finite.
inline std::uint32_t top_exponent(const float* values, std::size_t n,
                                  std::uint32_t headroom) noexcept {
  constexpr std::size_t lanes = 64;
  const auto magnitude = [=](std::size_t i) {
    return std::bit_cast<std::int32_t>(values[i]) & 0x7fffffff;
  };
  std::int32_t largest[lanes] = {};
  std::size_t i = 0;
  for (; i + lanes <= n; i += lanes) {
#pragma omp simd
    for (std::size_t j = 0; j < lanes; ++j) largest[j] = std::max(largest[j], magnitude(i + j));
  }
  for (; i < n; ++i) largest[0] = std::max(largest[0], magnitude(i));
  std::int32_t found = 0;
  for (std::size_t j = 0; j < lanes; ++j) found = std::max(found, largest[j]);
  return std::min((static_cast<std::uint32_t>(found) + headroom) >> 23, 255u);
}

struct Q8Block {
  std::uint8_t* codes;
  std::uint8_t scale;
};

// Writes a block's scale; and its codes, where it is not finite.
template <class Format>
inline Q8Block begin_block(const float* values, std::size_t n, const Stored& stored,
                           std::size_t begin) noexcept {
  std::uint8_t* codes = static_cast<std::uint8_t*>(stored.data) + begin;
  std::uint8_t& scale = stored.scales[begin / block_size];
  const std::uint32_t top = top_exponent(values, n, Format::headroom);
  if (top == 255) {
    scale = Format::not_finite;
    std::memset(codes, Format::code_of_nan, n);
  } else {
    scale = static_cast<std::uint8_t>(std::max(top, Format::lowest) - Format::lowest);
  }
  return {codes, scale};
}

// With a sign: 7 bits are a float's from 2^-15 of the largest number's power of two on, less that
// number; so they begin at 0, evenly spaced, and grow exponentially further up.
struct Q8Signed {
  using Value = float;
  using Item = std::uint8_t;
  static constexpr bool in_place = false;
  static constexpr std::uint32_t lowest = 19;          // exponents: no subnormal float is met
  static constexpr std::uint32_t headroom = 1u << 21;  // for what is added, and for rounding up
  static constexpr std::uint8_t not_finite = 251;      // the scale that makes `start` infinite
  static constexpr std::uint8_t code_of_nan = 0;       // infinity less infinity

  static constexpr std::uint32_t start(std::uint8_t scale) noexcept {
    return (scale + lowest - 15u) << 23;
  }

  struct Reader {
    const std::uint8_t* codes;
    std::uint32_t bits;
    float begin;
    float operator()(std::size_t i) const noexcept {
      const std::uint32_t code = codes[i];
      const float number = std::bit_cast<float>(((code & 0x7fu) << 20) + bits) - begin;
      return std::bit_cast<float>(std::bit_cast<std::uint32_t>(number) | (code & 0x80u) << 24);
    }
  };
  static Reader reader(const Stored& stored, std::size_t begin) noexcept {
    const std::uint32_t bits = start(stored.scales[begin / block_size]);
    return {static_cast<const std::uint8_t*>(stored.data) + begin, bits,
            std::bit_cast<float>(bits)};
  }

  static void close(const float* values, std::size_t n, const Stored& stored, std::size_t begin,
                    BlockBits random) noexcept {
    const auto [codes, scale] = begin_block<Q8Signed>(values, n, stored, begin);
    if (scale == not_finite) return;
    const std::uint32_t first = start(scale);
    const float offset = std::bit_cast<float>(first);
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(values[i]);
      const float shifted = std::bit_cast<float>(bits & 0x7fffffffu) + offset;
      const std::uint32_t code = std::bit_cast<std::uint32_t>(shifted) + bits_of(random, i);
      codes[i] = static_cast<std::uint8_t>(((code >> 20) - (first >> 20)) | (bits >> 24 & 0x80u));
    }
  }
};

// Never negative, as a mean of squares: 8 bits are a float's from 2^-31 of the largest number's
// power of two on, and what is smaller becomes that. Zeros would leave a gradient to be divided by
// eps alone; only a block of nothing else has them.
struct Q8Unsigned {
  using Value = float;
  using Item = std::uint8_t;
  static constexpr bool in_place = false;
  static constexpr std::uint32_t lowest = 31;
  static constexpr std::uint32_t headroom = (1u << 20) - 1;  // for rounding up
  static constexpr std::uint8_t not_finite = 255;
  static constexpr std::uint8_t code_of_nan = 1;  // then, the bits of one

  struct Reader {
    const std::uint8_t* codes;
    std::uint32_t bits;
    float operator()(std::size_t i) const noexcept {
      return std::bit_cast<float>((std::uint32_t{codes[i]} << 20) + bits);
    }
  };
  static Reader reader(const Stored& stored, std::size_t begin) noexcept {
    const std::uint32_t scale = stored.scales[begin / block_size];
    return {static_cast<const std::uint8_t*>(stored.data) + begin, scale << 23};
  }

  static void close(const float* values, std::size_t n, const Stored& stored, std::size_t begin,
                    BlockBits random) noexcept {
    const auto [codes, scale] = begin_block<Q8Unsigned>(values, n, stored, begin);
    if (scale == not_finite) return;
    const std::int32_t first = scale << 23;
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) {
      const std::int32_t bits = std::max(std::bit_cast<std::int32_t>(values[i]), first) - first;
      const std::uint32_t code = static_cast<std::uint32_t>(bits) + bits_of(random, i);
      codes[i] = static_cast<std::uint8_t>(code >> 20);
    }
  }
};

template <bool has_sign>
using Q8State = std::conditional_t<has_sign, Q8Signed, Q8Unsigned>;

}  // namespace onepass::inline ONEPASS_ISA
