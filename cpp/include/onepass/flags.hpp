// Asks the compiler for the flags that the bits and the speed of the headers rest on. A forgotten
// one would change results, or make loops several times as slow, without a word.
//
//   -ffp-contract=off    a * b + c is not fused, which would give other bits
//   -fopenmp-simd        the loops are vectorised, and so with the next two
//   -fno-math-errno      a square root is one instruction
//   -fno-trapping-math   a comparison is a mask
//
// GCC cannot be asked about the first.
#pragma once

// Clang honours a pragma. It holds for what comes after it too, so for a rule of one's own.
#if defined(__clang__)
#pragma clang fp contract(off)
#endif

#if defined(__FAST_MATH__) || __FINITE_MATH_ONLY__ > 0 || defined(__ASSOCIATIVE_MATH__) || \
    defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "onepass: expected no -ffast-math, -Ofast or part of these, which change the results"
#endif

// The versions from which on the compilers say so.
#if defined(__clang__) ? __clang_major__ >= 14 : defined(__GNUC__) && __GNUC__ >= 12
#ifndef __NO_MATH_ERRNO__
#warning "onepass: expected -fno-math-errno, or loops with a square root are not vectorised"
#endif
#if !defined(__clang__) && !defined(__NO_TRAPPING_MATH__)  // Clang's default
#warning "onepass: expected -fno-trapping-math, or loops with a comparison are not vectorised"
#endif
// Both know the attribute where they read OpenMP's pragmas for loops.
#if !__has_cpp_attribute(omp::directive)
#warning "onepass: expected -fopenmp-simd, or the loops are not vectorised"
#endif
#endif
