// How numbers are stored. The format of a parameter, a gradient or a copy is known only at run
// time: open() gives a tile of such an array in the type that the rule computes with, and close()
// stores the tile again.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "onepass/panels.hpp"
#include "onepass/random.hpp"
#include "onepass/rule.hpp"
#include "onepass/stored.hpp"

#ifdef __F16C__  // and so wherever there is AVX-512
#include <immintrin.h>
#endif

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
    const std::uint16_t* const halves = at(stored, begin);
    if constexpr (std::is_same_v<T, float>) {
      Format::widen(halves, n, values);
    } else {
      for (std::size_t i = 0; i < n; i += row_size) {
        const std::size_t columns = std::min(row_size, n - i);
        float row[row_size];
        Format::widen(halves + i, columns, row);
#pragma omp simd
        for (std::size_t k = 0; k < columns; ++k) values[i + k] = static_cast<T>(row[k]);
      }
    }
  }
  static void measure(const float*, const Stored&, std::size_t) noexcept {}
  static void close(const float* values, std::size_t n, const Stored& stored, std::size_t begin,
                    [[maybe_unused]] BlockBits random) noexcept {
    std::uint16_t* halves = static_cast<std::uint16_t*>(stored.data) + begin;
    if constexpr (stochastic) {
#pragma omp simd
      for (std::size_t i = 0; i < n; ++i) halves[i] = Format::narrow(values[i], bits_of(random, i));
    } else {
      Format::narrow(values, n, halves);
    }
  }
  static void follow(const Stored& stored, std::size_t begin, std::size_t n,
                     float* values) noexcept {
    for (std::size_t i = 0; i < n; i += row_size) {
      const std::size_t columns = std::min(row_size, n - i);
      const std::uint16_t* const halves = at(stored, begin + i);
      std::uint16_t rounded[row_size], differs = 0;  // mostly none differs
      Format::narrow(values + i, columns, rounded);
      for (std::size_t k = 0; k < columns; ++k) {
        differs = static_cast<std::uint16_t>(differs | (rounded[k] ^ halves[k]));
      }
      if (!differs) continue;
      float changed[row_size];
      Format::widen(halves, columns, changed);
#pragma omp simd
      for (std::size_t k = 0; k < columns; ++k) {
        values[i + k] = rounded[k] == halves[k] ? values[i + k] : changed[k];
      }
    }
  }
};

// Both go over n numbers one by one.
template <class Format>
inline void widen_each(const std::uint16_t* stored, std::size_t n, float* values) noexcept {
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) values[i] = Format::widen(stored[i]);
}
template <class Format>
inline void narrow_each(const float* values, std::size_t n, std::uint16_t* stored) noexcept {
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) stored[i] = Format::narrow(values[i]);
}

// bfloat16: the upper half of a float.
struct BFloat16 {
#ifdef __AVX512BW__
  static constexpr __mmask16 all = 0xffff;  // without a mask, GCC 12 warns of its own header
#endif
  static float widen(std::uint16_t stored) noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(stored) << 16);
  }
  // Rounds to nearest, ties to even. The upper half of a NaN that arithmetic makes is a NaN.
  static std::uint16_t narrow(float value) noexcept {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t added = 0x7fffu + (bits >> 16 & 1u);
    return static_cast<std::uint16_t>((bits + (value != value ? 0 : added)) >> 16);
  }
  // Rounds up with a probability that grows with the part that is rounded off: adds as many random
  // bits as that part has.
  static std::uint16_t narrow(float value, std::uint32_t random) noexcept {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<std::uint16_t>((bits + (value != value ? 0 : random & 0xffffu)) >> 16);
  }
  // With AVX-512, GCC's own vectors take more shuffles.
  static void widen(const std::uint16_t* stored, std::size_t n, float* values) noexcept {
    std::size_t i = 0;
#ifdef __AVX512BW__
    for (; i + 16 <= n; i += 16) {
      const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored + i));
      _mm512_storeu_si512(
          values + i, _mm512_maskz_slli_epi32(all, _mm512_maskz_cvtepu16_epi32(all, halves), 16));
    }
#endif
    widen_each<BFloat16>(stored + i, n - i, values + i);
  }
  static void narrow(const float* values, std::size_t n, std::uint16_t* stored) noexcept {
    std::size_t i = 0;
#ifdef __AVX512BW__
    const auto rounded = [](const float* from) {
      const __m512 value = _mm512_loadu_ps(from);
      const __m512i bits = _mm512_castps_si512(value);
      const __m512i odd =
          _mm512_and_si512(_mm512_maskz_srli_epi32(all, bits, 16), _mm512_set1_epi32(1));
      const __m512i added = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
      const __mmask16 is_number = _mm512_cmp_ps_mask(value, value, _CMP_ORD_Q);
      return _mm512_mask_add_epi32(bits, is_number, bits, added);
    };
    const __m512i upper =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    for (; i + 32 <= n; i += 32) {
      const __m512i low = rounded(values + i), high = rounded(values + i + 16);
      _mm512_storeu_si512(stored + i, _mm512_permutex2var_epi16(low, upper, high));
    }
#endif
    narrow_each<BFloat16>(values + i, n - i, stored + i);
  }
};

// IEEE's binary16: 5 bits of exponent, 10 of mantissa. x86-64-v3 and AArch64 have instructions for
// it, which give a NaN another payload than the arithmetic here.
struct Float16 {
  static float widen(std::uint16_t stored) noexcept {
#if defined(__F16C__)
    return _cvtsh_ss(stored);
#elif defined(__aarch64__)
    return static_cast<float>(__builtin_bit_cast(__fp16, stored));
#else
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
#endif
  }
  // Rounds to nearest, ties to even; a number that is too large becomes infinite.
  static std::uint16_t narrow(float value) noexcept {
#if defined(__F16C__)
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    return __builtin_bit_cast(std::uint16_t, static_cast<__fp16>(value));
#else
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
#endif
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

  // Without F16C: not inlined, because BatchNorm has so many loops.
  [[gnu::noinline]] static void widen_in_turn(const std::uint16_t* stored, std::size_t n,
                                              float* values) noexcept {
    widen_each<Float16>(stored, n, values);
  }
  [[gnu::noinline]] static void narrow_in_turn(const float* values, std::size_t n,
                                               std::uint16_t* stored) noexcept {
    narrow_each<Float16>(values, n, stored);
  }
  // In a loop, compilers make no vectors of F16C's instructions.
  static void widen(const std::uint16_t* stored, std::size_t n, float* values) noexcept {
#ifdef __F16C__
    const std::size_t rest = n % 8, whole = n - rest;
    for (std::size_t i = 0; i < whole; i += 8) {
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(stored + i));
      _mm256_storeu_ps(values + i, _mm256_cvtph_ps(halves));
    }
    for (std::size_t i = 0; i < rest; ++i) values[whole + i] = widen(stored[whole + i]);
#else
    widen_in_turn(stored, n, values);
#endif
  }
  static void narrow(const float* values, std::size_t n, std::uint16_t* stored) noexcept {
#ifdef __F16C__
    const std::size_t rest = n % 8, whole = n - rest;
    for (std::size_t i = 0; i < whole; i += 8) {
      const __m256 eight = _mm256_loadu_ps(values + i);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(stored + i),
                       _mm256_cvtps_ph(eight, _MM_FROUND_TO_NEAREST_INT));
    }
    for (std::size_t i = 0; i < rest; ++i) stored[whole + i] = narrow(values[whole + i]);
#else
    narrow_in_turn(values, n, stored);
#endif
  }
};

// Elements of BatchNorm's arrays, one by one or n of them: read exactly, and written to nearest.
template <class T>
struct FormatOf;
template <>
struct FormatOf<StoredBFloat16> {
  using Type = BFloat16;
};
template <>
struct FormatOf<StoredFloat16> {
  using Type = Float16;
};
template <class T>
inline Value<T> value_of(T stored) noexcept {
  if constexpr (is_narrow<T>) {
    return FormatOf<T>::Type::widen(stored.bits);
  } else {
    return stored;
  }
}
template <class T>
inline void widen(const T* stored, std::size_t n, float* values) noexcept {
  FormatOf<T>::Type::widen(&stored->bits, n, values);
}
template <class T>
inline void narrow(const float* values, std::size_t n, T* stored) noexcept {
  FormatOf<T>::Type::narrow(values, n, &stored->bits);
}

// The formats of state, by whether the state has a sign.
template <bool>
using FloatState = Plain<float>;
template <bool>
using DoubleState = Plain<double>;
template <bool>
using BFloat16State = Halved<BFloat16, true>;

}  // namespace onepass::inline ONEPASS_ISA
