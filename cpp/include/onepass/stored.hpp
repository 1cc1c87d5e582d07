// How an array of a step lies in memory. Plain data, the same for every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onepass {

// Elements that 8-bit numbers share a scale for, and that random bits are counted by.
inline constexpr std::size_t block_size = 256;
// A quarter of them: their codes stand four in a word (q8.hpp).
inline constexpr std::size_t row_size = block_size / 4;

// The random bits of one step, 20 for a number (random.hpp).
struct StepBits {
  std::uint64_t key;
  alignas(64) std::uint32_t columns[block_size];  // a cache line that is cut in two takes twice
};

// Those of one block of an array. Pass them by value: a store of bytes might be one to them, and
// the loop would not become vectors.
struct BlockBits {
  const std::uint32_t* columns;
  std::uint32_t row;
};

struct Codec;

struct Stored {
  void* data = nullptr;
  std::uint8_t* scales = nullptr;  // of 8-bit numbers, one a block
  const Codec* codec = nullptr;    // null: in the type that the rule computes with
};

// Reads and writes float32 numbers in another format: n of them, from `begin` on.
struct Codec {
  std::size_t item_size;
  void (*open)(const Stored&, std::size_t begin, std::size_t n, float* values) noexcept;
  void (*close)(const float* values, std::size_t n, const Stored&, std::size_t begin,
                BlockBits) noexcept;
  // Where `values`, rounded, are not what is stored, they become that: somebody has changed it.
  void (*follow)(const Stored&, std::size_t begin, std::size_t n, float* values) noexcept;
};

inline constexpr std::size_t max_states = 4;

// One tensor's arrays. What is not there is null.
struct Streams {
  Stored param, grad, state[max_states];
  double* average = nullptr;    // of the weights
  Stored copy;                  // of the parameter, in fewer bits
  bool zero_grad = false;       // afterwards
  bool follows = false;         // the copy, where somebody has changed it
  bool prefetch_ahead = false;  // what the loop comes to soon, which is far away
  const StepBits* random = {};  // where parameter or state is rounded, else null
  std::uint64_t tensor = 0;     // its number, which its random bits depend on
};

}  // namespace onepass
