// Which build of the kernels runs.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "kernels.hpp"
#include "watch.hpp"

namespace onepass {

struct Isa {
  const char* name;
  bool supported;  // by this CPU and its operating system
  const KernelTable* kernels;
  const WatchTable* watching;
};

// All builds of the kernels in this library, the one that needs the fewest CPU features first.
std::span<const Isa> compiled_isas();

// Returns the best build that runs here, or the one that `forced` names. Throws
// std::invalid_argument, whose message lists the choices, if the named build is unknown or does not
// run here.
const Isa& choose_isa(const char* forced);

// The build that this process uses: chosen when it is first asked for, by the environment's
// ONEPASS_ISA. Throws as above, and then every time.
const Isa& isa_in_use();

// Returns the bytes of the last cache before memory, which neighbouring cores share; 0 if the
// system does not tell.
std::size_t last_level_cache() noexcept;

// A loop over more bytes than this prefetches them. For sums this is a core's own cache (L2); for
// updates, what the core reads without waiting. Measured: bench/NOTES.md.
inline constexpr std::size_t far_for_sums = 2 << 20;
std::size_t far_for_updates() noexcept;

}  // namespace onepass
