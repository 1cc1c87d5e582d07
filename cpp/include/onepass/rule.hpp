// What every update rule is made of. A rule is an aggregate of the numbers of one step, how these
// follow from the hyperparameters, and one inline function:
//
//   template <class T, bool... options>
//   struct Rule {
//     static constexpr State states[];        // the arrays it keeps per parameter
//     struct Hyper { double ...; };           // its hyperparameters, with PyTorch's defaults
//     static constexpr const char* hyper[];   // their names, in order
//     static Rule at(double step, const Hyper&) noexcept;  // the numbers of a step, from 1
//     static constexpr const char* scalars[]; // the names of its own members, in order
//     T ...;
//     void operator()(T& param, T grad, T&... state) const noexcept;
//   };
//
// A rule whose numbers depend on more of the past than how many steps there were has also
//
//     struct Memory { double ...; };          // of each parameter, with what it starts from
//     static constexpr const char* memory[];  // the names of its members, in order
//     static Rule at(double step, const Hyper&, Memory&) noexcept;  // moves the memory
//
// One whose numbers depend on the whole tensor has a pass before, which adds up what it makes of
// each element:
//
//     static constexpr std::size_t n_sums;  // 0 where its options need none
//     void measure(T param, T grad, T... state, double&... sums) const noexcept;  // adds to them
//     void weigh(const double* sums, double size[, Memory&]) noexcept;  // T is double
//
// `weigh` changes the members; `size` is the tensor's. With `static constexpr bool sums_over_all =
// true` the sums and the size are those of all tensors of an optimizer together, whose memory is
// one then, the same for all. Where the weights count in the sums, such a rule does its weight
// decay itself, as `weight_decay` among `hyper`.
//
// One that steps along a direction that is made of the whole tensor (Muon's, by products of
// matrices) has a pass before, whose results somebody else, in Python, changes before the step:
//
//     static constexpr bool is_directed;  // false where its options need none
//     T direct(T grad, T... state) const noexcept;  // what the direction is made of
//     void operator()(T& param, T grad, T direction, T&... state) const noexcept;
//
// Its decay is decoupled. And a rule that keeps other weights beside the parameter, from which these
// must not drift apart,
//
//     static constexpr bool full_weights = true;  // no rounding of them between steps
//
// Where the last of its options is called `factored`, that is no setting: it is on for parameters
// of two or more axes, and state may have another shape there. Numbers for rows and columns are
// moved before the step, by the means of the squared gradients over each of them, and the rule
// reads what it has made of them:
//
//     T moved(T number, double mean) const noexcept;
//     T opened_row(T row, double mean_of_rows) const noexcept;
//     T opened_column(T column) const noexcept;
//
// Where a number stands for each place along every axis, the rule is given the smallest of those of
// an element, and the largest number that it makes of an element stays at each place.
//
// `at` computes in double, in the order of the Python class's `scalars`, and rounds to T at the
// end. A flag is 0 or 1, one of several names the number of its place among them. The learning rate
// is `lr`. Weight decay and the direction (`maximize`) are no part of a rule: Stages has them
// (update.hpp). An option that adds state or work is a template parameter instead of a member of
// Hyper; rules.def names it.
//
// Only + - * / and sqrt, in the order the NumPy reference writes them: that is what makes the
// results the same bits on every instruction set and in NumPy. It takes the compiler's flags that
// flags.hpp asks for.
#pragma once

#include <cmath>
#include <cstddef>

#include "onepass/flags.hpp"
#include "onepass/stored.hpp"

// Each instruction set compiles these headers into a namespace of its own, so that the linker can
// never hand one set's code to another (a weak symbol shared by two builds would crash old CPUs).
#ifndef ONEPASS_ISA
#define ONEPASS_ISA baseline
#endif

namespace onepass::inline ONEPASS_ISA {

struct State {
  const char* name;
  bool used = true;             // false where an option of the rule leaves the array out
  bool has_sign = true;         // false for what is never negative
  const char* start = nullptr;  // the member of Hyper that its elements start from; null: zero
  bool in_full = false;      // true for what loses its meaning in fewer bits: weights, differences
  bool has_weights = false;  // true for what the first step makes of all weights, whatever it was
  Shape shape = Shape::param;  // another one only in a rule that is `factored`
};

inline double square(double x) noexcept {
  return x * x;
}

// NumPy's minimum and maximum: a NaN on either side wins, so that it is never hidden.
template <class T>
inline T minimum(T a, T b) noexcept {
  return (a <= b || a != a) ? a : b;
}
template <class T>
inline T maximum(T a, T b) noexcept {
  return (a >= b || a != a) ? a : b;
}

// NumPy's sign: 0 of either zero, and a NaN stays one.
template <class T>
inline T sign(T x) noexcept {
  return x > 0 ? T(1) : x < 0 ? T(-1) : x == 0 ? T(0) : x;
}

// 1 where a step and its gradient have the same sign, else 0. The product is what the authors take:
// it may underflow to 0.
template <class T>
inline T agree(T step, T grad) noexcept {
  return step * grad > 0 ? T(1) : T(0);
}
// What the elements that agree are multiplied by, so that the step stays as long as it was.
inline double cautious_scale(double agreeing, double size) noexcept {
  const double mean = agreeing / size;
  return 1 / (mean > 1e-3 ? mean : 1e-3);
}

}  // namespace onepass::inline ONEPASS_ISA
