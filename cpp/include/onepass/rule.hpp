// What every update rule is made of. A rule is an aggregate of scalars and one inline function:
//
//   template <class T, bool... options>
//   struct Rule {
//     static constexpr State states[];        // the arrays it keeps per parameter
//     static constexpr const char* scalars[]; // its members, in order: computed once per step
//     T ...;
//     void operator()(T& param, T grad, T&... state) const noexcept;
//   };
//
// Only + - * / and sqrt, in the order the NumPy reference writes them: that is what makes the
// results the same bits on every instruction set and in NumPy. Compile with -ffp-contract=off, or
// the compiler makes other bits of them; and with -fopenmp-simd -fno-math-errno, or they are slow.
#pragma once

#include <cmath>
#include <cstddef>

// Each instruction set compiles these headers into a namespace of its own, so that the linker can
// never hand one set's code to another (a weak symbol shared by two builds would crash old CPUs).
#ifndef ONEPASS_ISA
#define ONEPASS_ISA baseline
#endif

namespace onepass::inline ONEPASS_ISA {

struct State {
  const char* name;
  bool used = true;      // false where an option of the rule leaves the array out
  bool has_sign = true;  // false for what is never negative
};

// NumPy's maximum: a NaN on either side wins, so that it is never hidden.
template <class T>
inline T maximum(T a, T b) noexcept {
  return (a >= b || a != a) ? a : b;
}

}  // namespace onepass::inline ONEPASS_ISA
