// How numbers are stored. An array lends a tile in the type that the rule computes with (open);
// `scratch` holds one tile for the formats that must be converted.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

// In the type that the rule computes with: the array is its own tile.
template <class T>
struct Plain {
  using Stored = T;
  const T* data;
  const T* open(std::size_t begin, std::size_t, T*) const noexcept { return data + begin; }
  const T* ahead(std::size_t begin) const noexcept { return data + begin; }
};

// A format of 16 bits that widens to float without rounding.
template <class Format>
struct Widened {
  using Stored = std::uint16_t;
  const Stored* data;
  const float* open(std::size_t begin, std::size_t n, float* scratch) const noexcept {
    const Stored* stored = data + begin;
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) scratch[i] = Format::widen(stored[i]);
    return scratch;
  }
  const Stored* ahead(std::size_t begin) const noexcept {
    return data + begin;
  }
};

template <class Format>
void narrow(const float* values, std::size_t n, std::uint16_t* stored) noexcept {
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) stored[i] = Format::narrow(values[i]);
}

// bfloat16: the upper half of a float.
struct BFloat16 {
  static float widen(std::uint16_t stored) noexcept {
    return std::bit_cast<float>(static_cast<std::uint32_t>(stored) << 16);
  }
  // To nearest, ties to even; a NaN keeps a bit that makes it one.
  static std::uint16_t narrow(float value) noexcept {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<std::uint16_t>((is_nan ? bits | 0x400000u : rounded) >> 16);
  }
};

// IEEE's binary16: 5 bits of exponent, 10 of mantissa.
struct Float16 {
  static float widen(std::uint16_t stored) noexcept {
    const std::uint32_t bits = stored;
    const std::uint32_t magnitude = (bits & 0x7fffu) << 13;  // at a float's places
    const std::uint32_t normal = magnitude + (112u << 23);   // from a bias of 15 to one of 127
    // A subnormal number has no leading 1: it is given one that is then taken off. (Multiplying by
    // 2^112 would do for both, but on subnormal floats, which take a hundred cycles each.)
    constexpr std::uint32_t one = 113u << 23;
    const float shifted = std::bit_cast<float>(magnitude + one) - std::bit_cast<float>(one);
    const std::uint32_t small =
        magnitude < 1u << 23 ? std::bit_cast<std::uint32_t>(shifted) : normal;
    const std::uint32_t found = magnitude >= 31u << 23 ? magnitude | 0x7f800000u : small;
    return std::bit_cast<float>(found | (bits & 0x8000u) << 16);
  }
  // To nearest, ties to even; what is too large becomes infinite.
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
};

}  // namespace onepass::inline ONEPASS_ISA
