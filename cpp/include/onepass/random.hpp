// The random bits that numbers are rounded by: a function of seed, step, array and element alone,
// so that they are the same for any number of threads. SplitMix64 (Steele, Lea and Flood, 2014),
// twice: for the 256 columns of a block and for its row. Bits of any two elements are independent
// of each other, as good as a generator call for each, and cost one XOR.
#pragma once

#include <cstddef>
#include <cstdint>

#include "onepass/rule.hpp"
#include "onepass/stored.hpp"

namespace onepass::inline ONEPASS_ISA {

// Returns the number that the generator with this first state draws `index`-th, counted from 0.
constexpr std::uint64_t split_mix(std::uint64_t state, std::uint64_t index) noexcept {
  std::uint64_t z = state + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

// Draws 20 bits, as many as are rounded off where 3 of the 23 bits of a float's mantissa stay.
constexpr std::uint32_t draw_bits(std::uint64_t state, std::uint64_t index) noexcept {
  return static_cast<std::uint32_t>(split_mix(state, index) >> 44);
}

inline void draw(StepBits& bits, std::uint64_t seed, std::uint64_t step) noexcept {
  bits.key = split_mix(split_mix(seed, 0), step);
  for (std::size_t i = 0; i < block_size; ++i) {
    bits.columns[i] = draw_bits(bits.key, i);
  }
}

// `array`: the array's number among all that the step rounds.
inline std::uint64_t array_key(const StepBits& bits, std::uint64_t array) noexcept {
  return split_mix(~bits.key, array);
}
inline BlockBits block_bits(const StepBits& bits, std::uint64_t key, std::size_t block) noexcept {
  return {bits.columns, draw_bits(key, block)};
}

inline std::uint32_t bits_of(BlockBits bits, std::size_t i) noexcept {
  return bits.columns[i] ^ bits.row;
}

}  // namespace onepass::inline ONEPASS_ISA
