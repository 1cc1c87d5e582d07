// How an array of a step lies in memory. Plain data, the same for every instruction set.
#pragma once

#include <atomic>
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

// How a parameter of two or more axes falls into the rows and columns of its last two, for state
// that has a number for each of these. In the order of memory its elements are an array of shape
// (groups, lines, length, width), of which groups or width is 1. Of rows and columns, one kind has
// a number for each [group, line, width], which is `along` a line, and the other for each
// [group, length, width], `across` the lines.
struct Matrix {
  std::size_t groups = 1, lines = 1, length = 1, width = 1;
  bool rows_along = true;  // else the columns are
  // Sums are taken over tiles: a strip of lines, of which a segment of the length.
  std::size_t strip = 1, n_strips = 1, segment = 1, n_segments = 1;
  std::size_t n_tiles = 1, tiles_at_once = 1;
  double *along = nullptr, *across = nullptr;  // the tiles' sums, those of one strip side by side
  void *opened_rows = nullptr, *opened_columns = nullptr;  // what the loop reads instead
};

inline constexpr std::size_t max_rank = 64;  // axes of an array, NumPy's

// State that has a number for each place along every axis.
struct Axes {
  // What the pieces of a step make of the numbers, each in a copy of its own, since others still
  // read the old ones.
  struct Copy {
    std::atomic<bool> is_taken = false;
    bool is_used = false;  // else its numbers mean nothing
    void* numbers = nullptr;
  };
  std::size_t rank = 0;
  const std::size_t* sizes = nullptr;   // of each axis, that of the farthest elements first
  const std::size_t* places = nullptr;  // where the numbers of each axis begin
  std::size_t total = 0;                // of all axes
  Copy* copies = nullptr;               // as many as threads
};

// What a state has numbers for: like the parameter, for each element; or for each row or column of
// its last two axes, an array in which the other one of these has length 1; or for each place along
// every axis, those of the first axis first.
enum class Shape : unsigned char { param, rows, columns, axes };

struct Codec;

struct Stored {
  // They are inlined also where nothing is optimised: instruction sets must share no function.
  [[gnu::always_inline]] constexpr Stored() noexcept {}
  [[gnu::always_inline]] constexpr Stored(void* array, const Codec* by = nullptr) noexcept
      : data(array), codec(by) {}
  [[gnu::always_inline]] constexpr Stored(void* codes, std::uint8_t* own) noexcept
      : data(codes), scales(own) {}

  void* data = nullptr;
  union {
    const Codec* codec = nullptr;  // null: in the type that the rule computes with
    std::uint8_t* scales;          // of 8-bit state: one per block
    const Matrix* matrix;          // of state with a number for each row or column
    const Axes* axes;              // of state with a number for each place along an axis
  };
};

// Reads and writes numbers in another format than the one that a rule computes with: n of them,
// from `begin` on. What a format is not used for is null: of float64 parameters, the gradient alone
// may have another format.
struct Codec {
  std::size_t item_size;
  void (*open)(const Stored&, std::size_t begin, std::size_t n, float* values) noexcept;
  void (*close)(const float* values, std::size_t n, const Stored&, std::size_t begin,
                BlockBits) noexcept;
  // Overwrites values[i] with the stored number where the user has changed that, so that it is no
  // longer values[i] rounded.
  void (*follow)(const Stored&, std::size_t begin, std::size_t n, float* values) noexcept;
  void (*open_f64)(const Stored&, std::size_t begin, std::size_t n, double* values) noexcept;
};

inline constexpr std::size_t max_states = 4;
// The place among the states in which a directed rule (rule.hpp) finds its direction.
inline constexpr std::size_t direction_place = max_states - 1;

// One tensor's arrays. What is not there is null. What every step reads stands first: for a small
// tensor that is not in the caches, each cache line counts.
struct Streams {
  Stored param, grad;
  bool zero_grad = false;         // whether the loop zeroes the gradient after reading it
  bool follows = false;           // whether `param` takes over what the user has changed in `copy`
  bool prefetch_ahead = false;    // whether the loop prefetches, because the data is far away
  bool average_is_double = true;  // else it is in the type that the rule computes with
  std::uint32_t tensor = 0;       // the tensor's number, which its random bits depend on
  const StepBits* random = {};    // where parameter or state is rounded, else null
  void* average = nullptr;        // of the weights
  Stored copy = {};               // of the parameter, in fewer bits
  Stored state[max_states] = {};  // few rules have more than two
  void* slow = nullptr;           // Lookahead's weights, in the type that the rule computes with
  // The block of the whole tensor that this one begins with, where it is a part: its random bits
  // are those of its place in the whole.
  std::size_t first_block = 0;
};

}  // namespace onepass
