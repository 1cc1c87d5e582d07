// Chooses the kernel table by the features of the CPU. No other file knows about CPUs.
#include "dispatch.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace onepass {

namespace baseline {
const KernelTable& kernel_table() noexcept;
const WatchTable& watch_table() noexcept;
}  // namespace baseline
#ifdef ONEPASS_X86_64_LEVELS
namespace x86_64_v3 {
const KernelTable& kernel_table() noexcept;
const WatchTable& watch_table() noexcept;
}  // namespace x86_64_v3
namespace x86_64_v4 {
const KernelTable& kernel_table() noexcept;
const WatchTable& watch_table() noexcept;
}  // namespace x86_64_v4

// These are the features that every version of GCC and Clang can ask for; a CPU that has them has
// the rest of the level too. __builtin_cpu_supports also checks whether the operating system saves
// the wide registers.
static bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
static bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

std::span<const Isa> compiled_isas() {
  static const Isa isas[] = {
      {"baseline", true, &baseline::kernel_table(), &baseline::watch_table()},
#ifdef ONEPASS_X86_64_LEVELS
      {"x86-64-v3", has_v3(), &x86_64_v3::kernel_table(), &x86_64_v3::watch_table()},
      {"x86-64-v4", has_v4(), &x86_64_v4::kernel_table(), &x86_64_v4::watch_table()},
#endif
  };
  return isas;
}

const Isa& choose_isa(const char* forced) {
  const auto isas = compiled_isas();
  std::string choices;
  const Isa* best = nullptr;
  for (const Isa& isa : isas) {
    if (!isa.supported) continue;
    if (forced && forced == std::string(isa.name)) return isa;
    choices += std::string(choices.empty() ? "" : ", ") + "'" + isa.name + "'";
    best = &isa;
  }
  if (forced && *forced) {
    throw std::invalid_argument("ONEPASS_ISA: expected one of " + choices +
                                " (what this machine runs), got '" + forced + "'");
  }
  return *best;
}

const Isa& isa_in_use() {
  static const Isa& chosen = choose_isa(std::getenv("ONEPASS_ISA"));
  return chosen;
}

// Linux's file is read first: on AMD, glibc's sysconf adds up all L3 caches of the socket, and a
// core has only that of its own complex.
std::size_t last_level_cache() noexcept {
  std::size_t kib = 0;
  if (std::FILE* size = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(size, "%zuK", &kib) != 1) kib = 0;
    std::fclose(size);
  }
  if (kib > 0) return kib << 10;
#ifdef _SC_LEVEL3_CACHE_SIZE
  return static_cast<std::size_t>(std::max(sysconf(_SC_LEVEL3_CACHE_SIZE), 0L));
#else
  return 0;
#endif
}

// On Zen, a core hides the latency of the last cache; a prefetch from there only uses up a load's
// slot.
std::size_t far_for_updates() noexcept {
#ifdef ONEPASS_X86_64_LEVELS
  if (__builtin_cpu_is("amd")) return std::max(far_for_sums, last_level_cache());
#endif
  return far_for_sums;
}

}  // namespace onepass
