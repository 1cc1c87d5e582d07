// The formats by hand: what codes stand for, how numbers are rounded to them, and by which bits.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "arrays.hpp"
#include "checks.hpp"
#include "dispatch.hpp"
#include "onepass/q8.hpp"
#include "onepass/random.hpp"

namespace {

constexpr std::size_t block_size = onepass::block_size;
constexpr std::uint32_t most_bits = (1u << 20) - 1;

// The same random bits for every element.
onepass::BlockBits all(std::uint32_t bits) {
  static constexpr std::uint32_t columns[block_size] = {};
  return {columns, bits};
}

// What Rosetta Code lists for this seed (Pseudo-random numbers/Splitmix64).
void check_random() {
  constexpr std::uint64_t published[] = {6457827717110365317u, 3203168211198807973u,
                                         9817491932198370423u};
  onepass::StepBits bits, later;
  for (std::uint64_t i = 0; i < 3; ++i) {
    check(onepass::split_mix(1234567, i) == published[i], "SplitMix64");
  }
  onepass::draw(bits, 3, 1);
  onepass::draw(later, 3, 2);
  const auto most = *std::max_element(bits.columns, bits.columns + block_size);
  check(most <= most_bits && most > most_bits / 2, "20 bits");
  check(std::memcmp(bits.columns, later.columns, sizeof bits.columns) != 0,
        "every step has its own");
  const auto row = [&](std::uint64_t array, std::size_t block) {
    return onepass::block_bits(bits, onepass::array_key(bits, array), block).row;
  };
  check(row(0, 0) != row(1, 0), "every array has its own");
  check(row(0, 0) != row(0, 1), "every block has its own");
}

// What IEEE 754 says of 16 bits.
double value_of(std::uint16_t half, int mantissa_bits) {
  const int exponent_bits = 15 - mantissa_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int mantissa = half & ((1 << mantissa_bits) - 1);
  const int exponent = (half & 0x7fff) >> mantissa_bits;
  double value = std::ldexp(exponent ? mantissa + (1 << mantissa_bits) : mantissa,
                            std::max(exponent, 1) - bias - mantissa_bits);
  if (exponent == (1 << exponent_bits) - 1) value = mantissa ? std::nan("") : HUGE_VAL;
  return half & 0x8000 ? -value : value;
}

bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// A gradient of the other of the two types: C++'s conversions, which are the standard's.
void check_other_types() {
  using namespace onepass;
  constexpr std::size_t n = 1001;
  Block<double> wide(n, 0, 1), widened(n, 0, 2);
  Block<float> narrow(n, 0, 3), rounded(n, 0, 4);
  for (std::size_t i = 0; i < n; ++i) {
    const double sign = i % 2 ? -1 : 1, between = 1 + std::ldexp(static_cast<double>(i), -26);
    const int exponent = static_cast<int>(i % 310) - 160;  // too small for a float, and too large
    wide.data()[i] = sign * std::ldexp(between, exponent);
    narrow.data()[i] = static_cast<float>(sign * std::ldexp(between, exponent % 126));
  }
  wide.data()[7] = narrow.data()[7] = static_cast<float>(std::nan(""));
  for_each_isa([&](const KernelTable& kernels, const std::string& where) {
    kernels.codecs[f64_beside_f32].open({wide.data()}, 0, n, rounded.data());
    kernels.codecs[f32_beside_f64].open_f64({narrow.data()}, 0, n, widened.data());
    for (std::size_t i = 0; i < n; ++i) {
      const double right = static_cast<double>(static_cast<float>(wide.data()[i]));
      check(same(rounded.data()[i], right), "a double as a float" + where);
      check(same(widened.data()[i], static_cast<double>(narrow.data()[i])),
            "a float as a double" + where);
    }
  });
}

// All that there are: read as the standard says, and the same again when they are written.
void check_all_halves() {
  using namespace onepass;
  constexpr std::size_t n = 1 << 16;
  Block<std::uint16_t> halves(n, 0, 1), again(n, 0, 2);
  Block<float> values(n, 0, 3);
  Block<double> wide(n, 0, 4);
  for (std::size_t i = 0; i < n; ++i) halves.data()[i] = static_cast<std::uint16_t>(i);
  for_each_isa([&](const KernelTable& kernels, const std::string& where) {
    for (const Format format : {bf16, f16, bf16_random, f16_random}) {
      const int mantissa_bits = format == bf16 || format == bf16_random ? 7 : 10;
      kernels.codecs[format].open({halves.data()}, 0, n, values.data());
      kernels.codecs[format].open_f64({halves.data()}, 0, n, wide.data());
      for (std::size_t i = 0; i < n; i += block_size) {
        kernels.codecs[format].close(values.data() + i, block_size, {again.data()}, i,
                                     all(most_bits));
      }
      std::size_t wrong = n;
      for (std::size_t i = 0; i < n; ++i) {
        const double expected = value_of(halves.data()[i], mantissa_bits);
        const bool right = same(values.data()[i], expected) && same(wide.data()[i], expected) &&
                           same(value_of(again.data()[i], mantissa_bits), expected);
        if (!right) wrong = i;
      }
      check(wrong == n, "16 bits, " + std::to_string(wrong) + where);
    }
  });
}

// Half way between two neighbours (1 + 2^-8 in bfloat16, 1 + 2^-11 and 1.5 * 2^-24 in float16), and
// what is exact already.
constexpr std::size_t n_halves = 5;
struct Halves {
  onepass::Format nearest, random;
  std::uint32_t rounded_off;  // the bits that are
  float values[n_halves];
  std::uint16_t to_nearest[n_halves], down[n_halves], up[n_halves];  // ties to even
};
constexpr Halves halfway[] = {{onepass::bf16,
                               onepass::bf16_random,
                               0xffff,
                               {0x1.01p0f, -0x1.01p0f, 0x1.03p0f, 1.5f, 0.0f},
                               {0x3f80, 0xbf80, 0x3f82, 0x3fc0, 0},
                               {0x3f80, 0xbf80, 0x3f81, 0x3fc0, 0},
                               {0x3f81, 0xbf81, 0x3f82, 0x3fc0, 0}},
                              {onepass::f16,
                               onepass::f16_random,
                               0x1fff,
                               {0x1.002p0f, -0x1.002p0f, 0x1.8p-24f, 1.5f, 0.0f},
                               {0x3c00, 0xbc00, 0x0002, 0x3e00, 0},
                               {0x3c00, 0xbc00, 0x0001, 0x3e00, 0},
                               {0x3c01, 0xbc01, 0x0002, 0x3e00, 0}}};

void check_narrowing() {
  for_each_isa([](const onepass::KernelTable& kernels, const std::string& where) {
    for (const Halves& each : halfway) {
      const auto becomes = [&](onepass::Format format, std::uint32_t random,
                               const std::uint16_t* expected) {
        Block<std::uint16_t> found(n_halves, 0, 1);
        kernels.codecs[format].close(each.values, n_halves, {found.data()}, 0, all(random));
        check(std::equal(expected, expected + n_halves, found.data()),
              "half way, format " + std::to_string(format) + ", bits " + std::to_string(random) +
                  where);
      };
      becomes(each.nearest, 0, each.to_nearest);
      const std::uint32_t half = each.rounded_off / 2;
      for (const std::uint32_t random : {0u, half, most_bits - each.rounded_off}) {
        becomes(each.random, random, each.down);
      }
      for (const std::uint32_t random : {half + 1, each.rounded_off, most_bits}) {
        becomes(each.random, random, each.up);
      }
    }
  });
}

// A vector in 8 bits: its blocks, the last one filled up with zeros.
template <class Q8>
struct InEightBits {
  std::size_t n, blocks = count_blocks(n);
  Block<std::uint8_t> codes{blocks * block_size, 0, 1}, scales{blocks, 0, 2};
  onepass::Stored stored{codes.data(), scales.data()};

  void write(const float* values, std::uint32_t random) {
    for (std::size_t begin = 0; begin < n; begin += block_size) {
      float block[block_size] = {};
      std::copy(values + begin, values + std::min(begin + block_size, n), block);
      Q8::measure(block, stored, begin);
      Q8::close(block, block_size, stored, begin, all(random));
    }
  }
  float read(std::size_t i) const { return Q8::reader(stored, i)(i % block_size / 64, i % 64); }
};

// What numbers in a block become with no random bits and with all of them: one in each byte of a
// word.
constexpr std::size_t n_codes = 4;
struct Codes {
  float values[n_codes];
  std::uint8_t scale, down[n_codes], up[n_codes];
  float stood_for[n_codes];  // by `down`
};

// 1, 0.3 and 0.001 are 1 * 2^0, 1.2 * 2^-2 and 1.024 * 2^-10: 0, 1.6 and 0.2 eighths above a power
// of two. With a sign their exponents are 15, 13 and 5, and a code stands for 2^-15 less than that;
// so even the 1 lies between two codes.
constexpr Codes with_sign{{1.0f, -0.3f, 0.001f, 0.0f},
                          127 - 19,
                          {15 << 3, 0x80 | 13 << 3 | 1, 5 << 3, 0},
                          {15 << 3 | 1, 0x80 | 13 << 3 | 2, 5 << 3 | 1, 0},
                          {1.0f - 0x1p-15f, 0x1p-15f - 0x1.2p-2f, 0x1p-10f - 0x1p-15f, 0.0f}};
// Without one they are 31, 29 and 21, and nothing is less than 2^-31.
constexpr Codes without_sign{{1.0f, 0.3f, 0.001f, 0x1p-40f},
                             127 - 31,
                             {31 << 3, 29 << 3 | 1, 21 << 3, 0},
                             {31 << 3, 29 << 3 | 2, 21 << 3 | 1, 0},
                             {1.0f, 0x1.2p-2f, 0x1p-10f, 0x1p-31f}};

template <class Q8>
void check_codes(const Codes& expected, const std::string& name) {
  constexpr std::size_t word = 5;  // whichever
  InEightBits<Q8> coded{block_size};
  Block<float> values(block_size, 0, 3);
  std::fill_n(values.data(), block_size, 0.0f);
  for (std::size_t k = 0; k < n_codes; ++k) values.data()[64 * k + word] = expected.values[k];
  coded.write(values.data(), most_bits);
  check(std::memcmp(coded.codes.data() + 4 * word, expected.up, n_codes) == 0,
        name + ": rounded up");
  coded.write(values.data(), 0);
  check(std::memcmp(coded.codes.data() + 4 * word, expected.down, n_codes) == 0,
        name + ": rounded down");
  check(coded.scales.data()[0] == expected.scale, name + ": the scale");
  for (std::size_t k = 0; k < n_codes; ++k) {
    check(coded.read(64 * k + word) == expected.stood_for[k], name + ": what a code stands for");
  }
}

// Rounding up leads to no code too many, whatever a block's largest number is.
template <class Q8>
void check_largest(const std::string& name) {
  InEightBits<Q8> coded{1};
  for (float next = 1.0f; next < 2.0f; next += 0x1p-10f) {
    for (const float value : {next, std::nextafter(next, 2.0f), std::nextafter(next, 0.0f)}) {
      coded.write(&value, most_bits);
      const float found = coded.read(0);
      check(found >= value - 0x1p-14f && found <= 1.125f * value,
            name + ": the largest is " + std::to_string(value));
    }
  }
}

// Blocks of zeros, with something that is not finite, and with a 1 at the end.
template <class Q8>
void check_blocks(const std::string& name) {
  constexpr std::size_t n = 2 * block_size + 3;
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {nan, -nan, std::numeric_limits<float>::infinity(), 0x1.fp127f}) {
    Block<float> values(n, 0, 1);
    std::fill_n(values.data(), n, 0.0f);
    values.data()[block_size + 7] = bad;
    values.data()[n - 1] = 1.0f;
    InEightBits<Q8> coded{n};
    coded.write(values.data(), most_bits);
    for (std::size_t i = 0; i < n; ++i) {
      const float value = coded.read(i);
      check(i < block_size       ? value == 0.0f
            : i < 2 * block_size ? std::isnan(value)
                                 : value >= 0.0f && value <= 1.125f,
            name + ", element " + std::to_string(i));
    }
  }
}

}  // namespace

int main() {
  check_random();
  check_all_halves();
  check_other_types();
  check_narrowing();
  check_codes<onepass::Q8Signed>(with_sign, "with a sign");
  check_codes<onepass::Q8Unsigned>(without_sign, "without a sign");
  check_largest<onepass::Q8Signed>("with a sign");
  check_largest<onepass::Q8Unsigned>("without a sign");
  check_blocks<onepass::Q8Signed>("with a sign");
  check_blocks<onepass::Q8Unsigned>("without a sign");
  return report();
}
