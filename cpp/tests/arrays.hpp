// The arrays of a tensor in whichever formats, each in heap blocks of its exact size.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "checks.hpp"
#include "dispatch.hpp"
#include "onepass/random.hpp"
#include "step.hpp"

inline std::size_t count_blocks(std::size_t n) {
  return (n + onepass::block_size - 1) / onepass::block_size;
}

// One array, of which one of the first four blocks holds the elements: in 8 bits there are scales.
template <class T>
struct StoredBlock {
  using Other = std::conditional_t<std::is_same_v<T, float>, double, float>;
  std::size_t bits;
  Block<T> numbers;
  Block<Other> others;
  Block<std::uint16_t> halves;
  Block<std::uint8_t> codes, scales;

  StoredBlock(std::size_t bits_each, std::size_t n, std::size_t offset, std::uint32_t seed)
      : bits(bits_each),
        numbers(bits == 8 * sizeof(T) ? n : 0, offset, seed),
        others(bits == 8 * sizeof(Other) ? n : 0, offset, seed),
        halves(bits == 16 ? n : 0, offset, seed),
        codes(bits == 8 ? count_blocks(n) * onepass::block_size : 0, offset, seed),
        scales(bits == 8 ? count_blocks(n) : 0, 0, seed) {
    // One block of three is at the lower end; the others' largest number is about 1.
    for (std::size_t i = 0; i < scales.size(); ++i) {
      std::uint8_t& scale = scales.data()[i];
      scale = i % 3 == 1 ? std::uint8_t{0} : static_cast<std::uint8_t>(96 + scale % 16);
    }
  }

  onepass::Stored stored(const onepass::Codec* codec = nullptr) const {
    if (bits == 8) return {codes.data(), scales.data()};
    if (bits == 16) return {halves.data(), codec};
    if (bits == 8 * sizeof(Other)) return {others.data(), codec};
    return {numbers.data()};
  }
  // Here and there; positive, as some are squares.
  void add_subnormals() const {
    for (std::size_t i = 0; i < numbers.size(); i += 5) {
      numbers.data()[i] = std::numeric_limits<T>::denorm_min() * static_cast<T>(1 + i % 3);
    }
    for (std::size_t i = 0; i < halves.size(); i += 5) {
      halves.data()[i] = static_cast<std::uint16_t>(1 + i % 3);
    }
  }
  bool operator==(const StoredBlock& other) const {
    return numbers == other.numbers && others == other.others && halves == other.halves &&
           codes == other.codes && scales == other.scales;
  }
};

// How a tensor is kept.
struct Formats {
  onepass::Format param = onepass::plain, grad = onepass::plain;
  onepass::StateFormat state = onepass::plain_state;
  onepass::Format copy = onepass::plain;  // plain: there is none
  bool follows = false;

  bool rounds() const { return param != onepass::plain || state != onepass::plain_state; }
};

// Scalars that suit any rule: all in (0, 1), none round in binary. Before them the stages': the
// weights decay in all ways, the gradient is clipped, the average is near the new weights, and
// subnormal numbers are flushed.
using Scalars = std::array<double, onepass::max_scalars>;
inline constexpr Scalars decaying = {-1.0, 0.1,  0.95, 0.97, 0.02, 0.7, 0.6, 0.0, 0.0,
                                     0.0,  64.0, 0.9,  0.05, 0.3,  0.7, 0.2, 0.6, 1e-3,
                                     1e-4, 0.4,  0.8,  0.9,  0.5,  0.3, 0.7, 0.1, 0.6};
// The same but for some of the decay.
constexpr Scalars scalars_with(double weight_decay, double shrink) {
  Scalars scalars = decaying;
  scalars[onepass::weight_decay] = weight_decay;
  scalars[onepass::shrink] = shrink;
  scalars[onepass::late_shrink] = 1;
  scalars[onepass::cautious] = 0;
  return scalars;
}
inline constexpr Scalars coupled = scalars_with(0.1, 1.0), decoupled = scalars_with(0.0, 0.95),
                         undecayed = scalars_with(0.0, 1.0);

inline const onepass::StepBits step_bits = [] {
  onepass::StepBits bits;
  onepass::draw(bits, 1, 1);
  return bits;
}();

// How many variants a rule has for state that is like its parameter: all, unless it is factored.
inline std::size_t count_variants(const onepass::RuleRow& rule) {
  return rule.variants.size() >> rule.factored;
}

// One variant of one rule, in the build for one instruction set, and the numbers of a step.
struct Choice {
  const onepass::KernelTable* kernels;
  std::size_t row, variant;
  const Scalars* scalars = &decaying;

  bool decays() const {
    return (*scalars)[onepass::weight_decay] != 0 || (*scalars)[onepass::shrink] != 1;
  }
};

template <class T>
struct Arrays {
  std::size_t size;
  Formats formats;
  StoredBlock<T> param, grad, state[onepass::max_states];
  StoredBlock<T> full[onepass::max_states];  // for a rule's states that are kept in full
  Block<double> average;
  StoredBlock<T> copy;

  Arrays(std::size_t n, std::size_t offset, const Formats& f = {})
      : size(n),
        formats(f),
        param(bits(f.param), n, offset, 1),
        grad(bits(f.grad), n, offset, 2),
        state{{state_bits(f), n, offset, 3},
              {state_bits(f), n, offset, 4},
              {state_bits(f), n, offset, 5},
              {state_bits(f), n, offset, 6}},
        full{{8 * sizeof(T), n, offset, 3},
             {8 * sizeof(T), n, offset, 4},
             {8 * sizeof(T), n, offset, 5},
             {8 * sizeof(T), n, offset, 6}},
        average(n, offset, 7),
        copy(bits(f.copy), n, offset, 8) {
    for (StoredBlock<T>& each : state) each.add_subnormals();
    for (StoredBlock<T>& each : full) each.add_subnormals();
  }

  static std::size_t bits(onepass::Format format) {
    if (format == onepass::f32_beside_f64) return 32;
    if (format == onepass::f64_beside_f32) return 64;
    return format == onepass::plain ? 8 * sizeof(T) : 16;
  }
  static std::size_t state_bits(const Formats& f) {
    return f.state == onepass::q8_state ? 8 : f.state == onepass::bf16_state ? 16 : 8 * sizeof(T);
  }

  // `number`: the tensor's among all.
  onepass::Tensor tensor(const Choice& choice, std::uint64_t number = 0) const {
    const onepass::KernelTable& kernels = *choice.kernels;
    const onepass::RuleRow& rule = *kernels.rules[choice.row];
    const onepass::Variant& variant = rule.variants[choice.variant];
    constexpr bool is_float = sizeof(T) == sizeof(float);
    const auto codec = [&](onepass::Format format) {
      return format == onepass::plain ? nullptr : &kernels.codecs[format];
    };
    const auto kept = [&](std::size_t k) {
      const bool is_direction = k == onepass::direction_place && variant.direct_f64;
      const bool in_full = is_direction || (k < rule.in_full.size() && rule.in_full[k]);
      return in_full ? full[k].stored() : state[k].stored();
    };
    const onepass::Streams streams{
        .param = param.stored(codec(formats.param)),
        .grad = grad.stored(codec(formats.grad)),
        .zero_grad = true,
        .follows = formats.follows,
        .tensor = static_cast<std::uint32_t>(number),
        .random = formats.rounds() ? &step_bits : nullptr,
        .average = average.data(),
        .copy = codec(formats.copy) ? copy.stored(codec(formats.copy)) : onepass::Stored{},
        .state = {kept(0), kept(1), kept(2), kept(3)},
    };
    return {.size = size,
            .kernel = onepass::find_kernel(variant, !is_float, formats.state, choice.decays()),
            .scalars = choice.scalars->data(),
            .streams = streams,
            .item_size = sizeof(T),
            .squares = is_float ? kernels.squares_f32 : kernels.squares_f64};
  }

  // The last element of the gradient.
  void make_infinite() const {
    if (formats.grad == onepass::plain) {
      grad.numbers.data()[size - 1] = static_cast<T>(HUGE_VAL);
    } else if (formats.grad == onepass::f32_beside_f64) {
      grad.others.data()[size - 1] = HUGE_VALF;
    } else if (formats.grad == onepass::f64_beside_f32) {
      grad.others.data()[size - 1] =
          static_cast<typename StoredBlock<T>::Other>(1e39);  // too large
    } else {
      grad.halves.data()[size - 1] = formats.grad == onepass::bf16 ? 0x7f80 : 0x7c00;
    }
  }

  bool operator==(const Arrays& other) const {
    return param == other.param && grad == other.grad && std::ranges::equal(state, other.state) &&
           std::ranges::equal(full, other.full) && average == other.average && copy == other.copy;
  }
};
