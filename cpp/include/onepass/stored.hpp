// How an array of a step lies in memory. Plain data, the same for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onepass {

// Elements of a block, which share the scale of 8-bit numbers and a word of random bits.
inline constexpr std::size_t block_size = 256;
// Elements of a row, a quarter of a block: the codes of four rows share words (q8.hpp).
inline constexpr std::size_t row_size = block_size / 4;

// The random bits of one step, 20 for a number (random.hpp).
struct StepBits {
  std::uint64_t key;
  alignas(64) std::uint32_t columns[block_size];  // a 64-byte load that is not touches two lines
};

// The random bits of one block of an array. Pass them by value: behind a pointer, any store of
// bytes might change them, and the compiler would not vectorise the loop.
struct BlockBits {
  const std::uint32_t* columns;
  std::uint32_t row;
};

struct Codec;

struct Stored {
  constexpr Stored() noexcept = default;
  constexpr Stored(void* array, const Codec* by = nullptr) noexcept : data(array), codec(by) {}
  constexpr Stored(void* codes, std::uint8_t* own) noexcept : data(codes), scales(own) {}

  void* data = nullptr;
  union {
    const Codec* codec = nullptr;  // null: in the type that the rule computes with
    std::uint8_t* scales;          // of 8-bit state: one per block
  };
};

// Reads and writes float32 numbers in another format: n of them, from `begin` on.
struct Codec {
  std::size_t item_size;
  void (*open)(const Stored&, std::size_t begin, std::size_t n, float* values) noexcept;
  void (*close)(const float* values, std::size_t n, const Stored&, std::size_t begin,
                BlockBits) noexcept;
  // Overwrites values[i] with the stored number where the user has changed that, so that it is no
  // longer values[i] rounded.
  void (*follow)(const Stored&, std::size_t begin, std::size_t n, float* values) noexcept;
};

inline constexpr std::size_t max_states = 4;
// The place among the states in which a directed rule (rule.hpp) finds its direction.
inline constexpr std::size_t direction_place = max_states - 1;

// One tensor's arrays. What is not there is null. What every step reads stands first: for a small
// tensor that is not in the caches, each cache line counts.
struct Streams {
  Stored param, grad;
  bool zero_grad = false;       // whether the loop zeroes the gradient after reading it
  bool follows = false;         // whether `param` takes over what the user has changed in `copy`
  bool prefetch_ahead = false;  // whether the loop prefetches, because the data is far away
  std::uint32_t tensor = 0;     // the tensor's number, which its random bits depend on
  const StepBits* random = {};  // where parameter or state is rounded, else null
  double* average = nullptr;    // of the weights
  Stored copy;                  // of the parameter, in fewer bits
  Stored state[max_states];     // few rules have more than two
  void* slow = nullptr;         // Lookahead's weights, in the type that the rule computes with
};

}  // namespace onepass
