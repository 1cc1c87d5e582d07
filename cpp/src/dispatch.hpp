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

// Whether a loop that computes much asks for memory early, because else the CPU would too late.
bool prefetching_pays() noexcept;

// Bytes of the last cache before memory, shared by all cores; 0 if the system does not say.
std::size_t last_level_cache() noexcept;

}  // namespace onepass
