// Which build of the kernels runs.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "kernels.hpp"

namespace onepass {

struct Isa {
  const char* name;
  bool supported;  // by this CPU and its operating system
  const KernelTable* kernels;
};

// Every build in this library, least first.
std::span<const Isa> compiled_isas();

// The best one that runs here, or the one that `forced` names. Throws std::invalid_argument, which
// lists the choices, when that one is unknown or does not run here.
const Isa& choose_isa(const char* forced);

// Bytes of the last cache before memory, which neighbouring cores share; 0 if nobody says.
std::size_t last_level_cache() noexcept;

// Who touches more bytes than these asks for them early: sums more than a core's own cache holds,
// an update, which computes much and so asks late by itself, what is far on this CPU. Measured:
// bench/NOTES.md.
inline constexpr std::size_t far_for_sums = 2 << 20;
std::size_t far_for_updates() noexcept;

}  // namespace onepass
