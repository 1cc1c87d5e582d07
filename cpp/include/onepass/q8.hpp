// 8 bits a number, in blocks of 256 with a scale of their own: small floats of 3 bits of mantissa,
// whose exponents count down from that of the block's largest number. A number is rounded up with a
// probability that grows with the part that is rounded off: on average nothing is lost, however
// little a step changes it.
//
// A block is four rows of 64, and its codes stand in 64 words, byte k of word i being element i of
// row k: vectors of numbers become vectors of words by shifts, and no byte has to change its lane.
// The last block is filled up with zeros.
//
// Only integer operations on the bits of floats, and one addition of floats; NumPy does the same in
// python/onepass/formats.py.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "onepass/random.hpp"
#include "onepass/rule.hpp"
#include "onepass/stored.hpp"

namespace onepass::inline ONEPASS_ISA {

inline const std::uint8_t* block_codes(const Stored& stored, std::size_t begin) noexcept {
  return static_cast<const std::uint8_t*>(stored.data) + begin / block_size * block_size;
}

// The code of element `i` of a row, in the highest byte.
inline std::uint32_t code_at(const std::uint8_t* codes, std::size_t row, std::size_t i) noexcept {
  std::uint32_t word;
  std::memcpy(&word, codes + i * sizeof word, sizeof word);
  return word << (24 - 8 * row);
}

// The exponent of a block's largest number once it has the format's headroom added to its bits, 255
// where that is not finite.
template <class Format>
std::uint32_t top_exponent(const float* values) noexcept {
  constexpr std::uint32_t infinity = 255u << 23;
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < block_size; ++i) {
    largest = std::max(largest, Format::magnitude(std::bit_cast<std::uint32_t>(values[i])));
  }
  return (std::min(largest, infinity) + Format::headroom) >> 23;
}

// What the two formats share: a block of 256 values is measured, and then written.
template <class Format>
struct Q8 {
  using Value = float;
  using Item = std::uint8_t;
  static constexpr bool in_place = false;

  // Writes the block's scale.
  static void measure(const float* values, const Stored& stored, std::size_t begin) noexcept {
    const std::uint32_t top = top_exponent<Format>(values);
    const std::uint32_t scale = std::max(top, Format::lowest) - Format::lowest;
    stored.scales[begin / block_size] =
        top == 255 ? Format::not_finite : static_cast<std::uint8_t>(scale);
  }

  static void close(const float* values, std::size_t, const Stored& stored, std::size_t begin,
                    BlockBits random) noexcept {
    std::uint8_t* codes = static_cast<std::uint8_t*>(stored.data) + begin;
    const std::uint8_t scale = stored.scales[begin / block_size];
    if (scale == Format::not_finite) {
      std::memset(codes, Format::code_of_nan, block_size);
      return;
    }
    const std::uint32_t first = Format::first(scale);
    const std::uint32_t firsts = first >> 16 | first;  // of two upper halves
#pragma omp simd
    for (std::size_t i = 0; i < row_size; ++i) {
      const std::uint32_t rounded[] = {
          Format::round(values[i], first, bits_of(random, i)),
          Format::round(values[i + row_size], first, bits_of(random, i + row_size)),
          Format::round(values[i + 2 * row_size], first, bits_of(random, i + 2 * row_size)),
          Format::round(values[i + 3 * row_size], first, bits_of(random, i + 3 * row_size))};
      const std::uint32_t even = (rounded[0] >> 16 | (rounded[2] & 0xffff0000u)) - firsts;
      const std::uint32_t odd = (rounded[1] >> 16 | (rounded[3] & 0xffff0000u)) - firsts;
      const std::uint32_t word = Format::word(even, odd);
      std::memcpy(codes + i * sizeof word, &word, sizeof word);
    }
  }
};

// Numbers with a sign. Let `first` be 2^-15 times the largest number's power of two. The 7 bits of
// a magnitude are the upper bits of the float first + magnitude, counted from those of `first`. So
// the magnitudes that there are begin at 0, evenly spaced, and grow exponentially further up.
struct Q8Signed : Q8<Q8Signed> {
  static constexpr std::uint32_t lowest = 19;          // exponents: no subnormal float is met
  static constexpr std::uint32_t headroom = 1u << 21;  // for what is added, and for rounding up
  static constexpr std::uint8_t not_finite = 251;      // the scale that makes `first` infinite
  static constexpr std::uint8_t code_of_nan = 0;       // infinity less infinity

  static constexpr std::uint32_t first(std::uint8_t scale) noexcept {
    return (scale + lowest - 15u) << 23;
  }

  struct Reader {
    static constexpr bool in_words = true;
    const std::uint8_t* codes;
    std::uint32_t first;
    float operator()(std::size_t row, std::size_t i) const noexcept {
      const std::uint32_t code = code_at(codes, row, i);
      const float number =
          std::bit_cast<float>((code >> 4 & 0x7f00000u) + first) - std::bit_cast<float>(first);
      return std::bit_cast<float>(std::bit_cast<std::uint32_t>(number) | (code & 0x80000000u));
    }
  };
  static Reader reader(const Stored& stored, std::size_t begin) noexcept {
    return {block_codes(stored, begin), first(stored.scales[begin / block_size])};
  }

  static constexpr std::uint32_t magnitude(std::uint32_t bits) noexcept {
    return bits & 0x7fffffffu;
  }
  static std::uint32_t round(float value, std::uint32_t first, std::uint32_t random) noexcept {
    const float shifted = value + std::copysign(std::bit_cast<float>(first), value);
    return std::bit_cast<std::uint32_t>(shifted) + random;
  }
  static constexpr std::uint32_t word(std::uint32_t even, std::uint32_t odd) noexcept {
    return (even >> 4 & 0x7f007fu) | (odd << 4 & 0x7f007f00u) | (even >> 8 & 0x800080u) |
           (odd & 0x80008000u);
  }
};

// Numbers that are never negative, such as means of squares. Let `first` be 2^-31 times the largest
// number's power of two. The 8 bits are the upper bits of the number as a float, counted from those
// of `first`; a smaller number becomes `first`. A zero would leave a gradient to be divided by eps
// alone; only a block of zeros has any.
struct Q8Unsigned : Q8<Q8Unsigned> {
  static constexpr std::uint32_t lowest = 31;
  static constexpr std::uint32_t headroom = (1u << 20) - 1;  // for rounding up
  static constexpr std::uint8_t not_finite = 255;
  static constexpr std::uint8_t code_of_nan = 1;  // infinity's bits and 1 are those of a NaN

  static constexpr std::uint32_t first(std::uint8_t scale) noexcept {
    return std::uint32_t{scale} << 23;
  }

  struct Reader {
    static constexpr bool in_words = true;
    const std::uint8_t* codes;
    std::uint32_t first;
    float operator()(std::size_t row, std::size_t i) const noexcept {
      return std::bit_cast<float>((code_at(codes, row, i) >> 4 & 0xff00000u) + first);
    }
  };
  static Reader reader(const Stored& stored, std::size_t begin) noexcept {
    return {block_codes(stored, begin), first(stored.scales[begin / block_size])};
  }

  // Only a NaN may have a sign, and is beyond infinity with and without it.
  static constexpr std::uint32_t magnitude(std::uint32_t bits) noexcept { return bits; }
  static std::uint32_t round(float value, std::uint32_t first, std::uint32_t random) noexcept {
    const auto bits =
        std::max(std::bit_cast<std::int32_t>(value), static_cast<std::int32_t>(first));
    return static_cast<std::uint32_t>(bits) + random;
  }
  static constexpr std::uint32_t word(std::uint32_t even, std::uint32_t odd) noexcept {
    return (even >> 4 & 0xff00ffu) | (odd << 4 & 0xff00ff00u);
  }
};

template <bool has_sign>
using Q8State = std::conditional_t<has_sign, Q8Signed, Q8Unsigned>;

}  // namespace onepass::inline ONEPASS_ISA
