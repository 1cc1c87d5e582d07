// How numbers are stored. A format lends a tile in the type the rule computes with (open) and
// takes it back (close); `scratch` holds one tile for the formats that must convert.
#pragma once

#include <cstddef>

#include "onepass/rule.hpp"

namespace onepass::inline ONEPASS_ISA {

// float and double are their own tile: nothing is moved.
template <class T>
struct Plain {
  using Stored = T;
  static constexpr bool converts = false;
  static T* open(T* stored, T*, std::size_t) noexcept { return stored; }
  static const T* open(const T* stored, T*, std::size_t) noexcept { return stored; }
  static void close(T*, const T*, std::size_t) noexcept {}
};

}  // namespace onepass::inline ONEPASS_ISA
