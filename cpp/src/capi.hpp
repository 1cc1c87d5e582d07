// What the files of the C interface (onepass/capi.h) share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "optimizer.hpp"
#include "parallel.hpp"

// The module and the library export these functions and nothing else.
#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility push(default)
#endif
#include "onepass/capi.h"
#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility pop
#endif

namespace onepass {
extern const onepass_api c_api;  // all of them; what the capsule of the Python module points to
}

namespace onepass::capi {

// Null where the environment names an instruction set that does not run here.
const KernelTable* kernels() noexcept;
const RuleRow* find_rule(std::int32_t rule) noexcept;

// Whether these are bits of options that the rule has.
inline bool are_options(const RuleRow& rule, std::int32_t options) noexcept {
  return options >= 0 && static_cast<std::size_t>(options) >> rule.options.size() == 0;
}
// The kernels of these options, for a parameter of so many axes.
inline const Variant& find_variant(const RuleRow& rule, std::int32_t options,
                                   std::int32_t ndim) noexcept {
  const std::size_t factored = rule.factored && ndim > 1;
  return rule.variants[static_cast<std::size_t>(options) | factored << rule.options.size()];
}
std::int32_t traits(const RuleRow& rule, const Variant& variant) noexcept;

// The elements of an array of these axes; SIZE_MAX where they cannot be counted.
std::size_t product(const std::int64_t* sizes, std::int32_t ndim) noexcept;
// The elements of a state of this shape, of a parameter with two or more axes.
std::size_t elements_of(Shape shape, const std::int64_t* sizes, std::int32_t ndim) noexcept;

// A group of the rule, which exists, with these options; settings as onepass_defaults fills them,
// or null.
Group make_group(std::int32_t rule, std::int32_t options, const double* settings) noexcept;

inline bool is_aligned(const void* array, std::size_t item_size) noexcept {
  return reinterpret_cast<std::uintptr_t>(array) % item_size == 0;
}

// Elements of an array whose bytes can be counted, whatever its format; and steps, which are
// counted in double.
inline constexpr std::size_t most_elements = PTRDIFF_MAX / (2 * sizeof(double));
inline constexpr std::int64_t most_steps = std::int64_t{1} << 53;
inline bool is_size(std::size_t n) noexcept {
  return n <= most_elements;
}

inline bool is_threads(std::int32_t threads) noexcept {
  return threads >= 0;
}
inline int resolve_threads(std::int32_t threads) noexcept {
  return threads == 0 ? onepass_threads() : std::min<std::int32_t>(threads, max_threads);
}

// Reads a struct of the caller's, who may know fewer of its members: those are 0. Returns whether
// all is known here that the caller asks for with more of them.
template <class Struct>
bool read_struct(const void* from, std::size_t size, Struct& to) noexcept {
  to = {};
  std::memcpy(&to, from, std::min(size, sizeof to));
  const auto* const bytes = static_cast<const unsigned char*>(from);
  return size <= sizeof to ||
         std::all_of(bytes + sizeof to, bytes + size, [](unsigned char byte) { return byte == 0; });
}

// Calls body(), which returns a code, and catches what it throws.
template <class Body>
std::int32_t guarded(const Body& body) noexcept {
  try {
    return body();
  } catch (...) {  // std::bad_alloc, or a vector's std::length_error
    return ONEPASS_NO_MEMORY;
  }
}

}  // namespace onepass::capi
