// How numbers are stored. The format of a parameter, a gradient or a copy is known only at run
// time: open() gives a tile of such an array in the type that the rule computes with, and close()
// stores the tile again.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "onepass/panels.hpp"
#include "onepass/random.hpp"
#include "onepass/rule.hpp"
#include "onepass/stored.hpp"

namespace onepass::inline ONEPASS_ISA {

template <class T>
std::size_t item_size(const Stored& array) noexcept {
  return array.codec ? array.codec->item_size : sizeof(T);
}

// Returns a tile in the type that the rule computes with: the array's own elements if they have
// that type, else `scratch`, filled from them.
template <class T>
T* open(const Stored& array, std::size_t begin, std::size_t n, T* scratch) noexcept {
  if (array.codec) {
    if constexpr (std::is_same_v<T, float>) {
      array.codec->open(array, begin, n, scratch);
    } else {
      array.codec->open_f64(array, begin, n, scratch);
    }
    return scratch;
  }
  return static_cast<T*>(array.data) + begin;
}

// Stores a tile that open() returned. The array's own elements need no storing.
template <class T>
void close(const T* values, std::size_t n, const Stored& array, std::size_t begin,
           BlockBits random) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    if (array.codec) array.codec->close(values, n, array, begin, random);
  }
}

// The formats of state are template parameters, so that the rule's loop decodes elements inline:
// with a Reader that begins at element `begin`, and takes a row of a block and an element in it.
// In all formats but 8-bit numbers, row 0 may go on beyond its end. A format that is not `in_place`
// is encoded block by block after the rule.
template <class T>
struct Plain {
  using Value = T;
  using Item = T;
  static constexpr bool in_place = true;
  struct Reader {
    const T* values;
    T operator()(std::size_t row, std::size_t column) const noexcept {
      return values[row * row_size + column];
    }
  };
  static Reader reader(const Stored& stored, std::size_t begin) noexcept {
    return {static_cast<const T*>(stored.data) + begin};
  }
};

struct NotThere {
  static constexpr bool in_place = true;
  struct Reader {
    int operator()(std::size_t, std::size_t) const noexcept { return 0; }
  };
  static Reader reader(const Stored&, std::size_t) noexcept { return {}; }
};

// A gradient of the other of the two types, float and double: widened exactly, or rounded to
// nearest, where a number that is too large becomes infinite.
template <class From, class To>
void open_other(const Stored& stored, std::size_t begin, std::size_t n, To* values) noexcept {
  const From* const given = static_cast<const From*>(stored.data) + begin;
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<To>(given[i]);
}

// A format of 16 bits. `Format` widens without rounding, and narrows to nearest, or at random if
// `stochastic`.
template <class Format, bool stochastic>
struct Halved {
  using Value = float;
  using Item = std::uint16_t;
  static constexpr bool in_place = false;
  struct Reader {
    const std::uint16_t* halves;
    float operator()(std::size_t row, std::size_t column) const noexcept {
      return Format::widen(halves[row * row_size + column]);
    }
  };
  static Reader reader(const Stored& stored, std::size_t begin) noexcept {
    return {at(stored, begin)};
  }

  static const std::uint16_t* at(const Stored& stored, std::size_t begin) noexcept {
    return static_cast<const std::uint16_t*>(stored.data) + begin;
  }
  template <class T>
  static void open(const Stored& stored, std::size_t begin, std::size_t n, T* values) noexcept {
    const Reader read = reader(stored, begin);
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) values[i] = static_cast<T>(read(0, i));
  }
  static void measure(const float*, const Stored&, std::size_t) noexcept {}
  static void close(const float* values, std::size_t n, const Stored& stored, std::size_t begin,
                    [[maybe_unused]] BlockBits random) noexcept {
    std::uint16_t* halves = static_cast<std::uint16_t*>(stored.data) + begin;
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) {
      if constexpr (stochastic) {
        halves[i] = Format::narrow(values[i], bits_of(random, i));
      } else {
        halves[i] = Format::narrow(values[i]);
      }
    }
  }
  static void follow(const Stored& stored, std::size_t begin, std::size_t n,
                     float* values) noexcept {
    const std::uint16_t* halves = at(stored, begin);
    std::uint16_t differs = 0;  // mostly none differs, and this loop takes half the time
    for (std::size_t i = 0; i < n; ++i) {
      differs = static_cast<std::uint16_t>(differs | (Format::narrow(values[i]) ^ halves[i]));
    }
    if (!differs) return;
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) {
      const float changed = Format::widen(halves[i]);
      values[i] = Format::narrow(values[i]) == halves[i] ? values[i] : changed;
    }
  }
};

// bfloat16: the upper half of a float.
struct BFloat16 {
  static float widen(std::uint16_t stored) noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(stored) << 16);
  }
  // Rounds to nearest, ties to even. The upper half of a NaN that arithmetic makes is a NaN.
  static std::uint16_t narrow(float value) noexcept {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return static_cast<std::uint16_t>((value != value ? bits : rounded) >> 16);
  }
  // Rounds up with a probability that grows with the part that is rounded off: adds as many random
  // bits as that part has.
  static std::uint16_t narrow(float value, std::uint32_t random) noexcept {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<std::uint16_t>((bits + (value != value ? 0 : random & 0xffffu)) >> 16);
  }
};

// IEEE's binary16: 5 bits of exponent, 10 of mantissa.
struct Float16 {
  static float widen(std::uint16_t stored) noexcept {
    const std::uint32_t bits = stored;
    const std::uint32_t magnitude = (bits & 0x7fffu) << 13;  // at a float's places
    const std::uint32_t normal = magnitude + (112u << 23);   // from a bias of 15 to one of 127
    // A subnormal number has no leading 1: one is added and then subtracted. (Multiplying by 2^112
    // would do for normal numbers too, but its factors are subnormal floats, which take a hundred
    // cycles each.)
    constexpr std::uint32_t one = 113u << 23;
    const float shifted = std::bit_cast<float>(magnitude + one) - std::bit_cast<float>(one);
    const std::uint32_t small =
        magnitude < 1u << 23 ? std::bit_cast<std::uint32_t>(shifted) : normal;
    const std::uint32_t found = magnitude >= 31u << 23 ? magnitude | 0x7f800000u : small;
    return std::bit_cast<float>(found | (bits & 0x8000u) << 16);
  }
  // Rounds to nearest, ties to even; a number that is too large becomes infinite.
  static std::uint16_t narrow(float value) noexcept {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Where the result is subnormal, adding 0.5 shifts it to the last 10 bits, and rounds it.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u;
    // Else the exponent's bias goes from 127 to 15, and 13 bits of the mantissa are rounded off.
    const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t small = magnitude < 113u << 23 ? subnormal : normal;
    const std::uint32_t found = magnitude >= 143u << 23 ? special : small;
    return static_cast<std::uint16_t>(found | (bits >> 16 & 0x8000u));
  }
  // Rounds up with a probability that grows with the part that is rounded off: adds as many random
  // bits as that part has.
  static std::uint16_t narrow(float value, std::uint32_t random) noexcept {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Where the result is subnormal, adding 2^-14 puts its last bit where a normal number has it.
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p-14f;
    const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(shifted) - (113u << 23);
    const std::uint32_t normal = magnitude - (112u << 23);
    const std::uint32_t exact = magnitude < 113u << 23 ? subnormal : normal;
    const std::uint32_t rounded = (exact + (random & 0x1fffu)) >> 13;
    const std::uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const std::uint32_t found = magnitude >= 143u << 23 ? special : rounded;
    return static_cast<std::uint16_t>(found | (bits >> 16 & 0x8000u));
  }
};

// Reads an element, exactly, and writes one, to nearest.
inline float value_of(float stored) noexcept {
  return stored;
}
inline double value_of(double stored) noexcept {
  return stored;
}
inline float value_of(StoredBFloat16 stored) noexcept {
  return BFloat16::widen(stored.bits);
}
inline float value_of(StoredFloat16 stored) noexcept {
  return Float16::widen(stored.bits);
}
template <class T>
T stored_as(Value<T> value) noexcept {
  if constexpr (std::is_same_v<T, StoredBFloat16>) {
    return {BFloat16::narrow(value)};
  } else if constexpr (std::is_same_v<T, StoredFloat16>) {
    return {Float16::narrow(value)};
  } else {
    return value;
  }
}

// The formats of state, by whether the state has a sign.
template <bool>
using FloatState = Plain<float>;
template <bool>
using DoubleState = Plain<double>;
template <bool>
using BFloat16State = Halved<BFloat16, true>;

}  // namespace onepass::inline ONEPASS_ISA
