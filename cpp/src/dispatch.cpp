// Chooses the kernel table by the features of the CPU. No other file knows about CPUs.
#include "dispatch.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#ifdef ONEPASS_X86_64_LEVELS
#include <cpuid.h>
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

// What the CPU has, and what its system saves when it switches threads. Asked here and not of the
// compiler's run-time library, since not all of them answer: zig's says no to every question.
struct Cpuid {
  unsigned a = 0, b = 0, c = 0, d = 0;
  explicit Cpuid(unsigned leaf) noexcept { __get_cpuid_count(leaf, 0, &a, &b, &c, &d); }
};
static constexpr bool has_bits(unsigned word, std::initializer_list<int> bits) noexcept {
  return std::ranges::all_of(bits, [word](int bit) { return (word >> bit & 1) != 0; });
}

// The registers that the system saves; without OSXSAVE, XGETBV is no instruction.
[[gnu::cold]] static unsigned saved_registers() noexcept {
  if (!has_bits(Cpuid(1).c, {27})) return 0;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// The levels as the psABI defines them: all features of each.
[[gnu::cold]] static bool has_v3() noexcept {
  const Cpuid one(1), seven(7), extended(0x80000001);
  const bool v2 = has_bits(one.c, {0, 9, 13, 19, 20, 23})  // SSE3 SSSE3 CMPXCHG16B SSE4.1 .2 POPCNT
                  && has_bits(extended.c, {0});            // LAHF
  return v2 && has_bits(one.c, {12, 22, 27, 28, 29})       // FMA MOVBE OSXSAVE AVX F16C
         && has_bits(seven.b, {3, 5, 8})                   // BMI1 AVX2 BMI2
         && has_bits(extended.c, {5})                      // LZCNT
         && has_bits(saved_registers(), {1, 2});           // XMM YMM
}
// macOS saves the wide registers of a thread only once it has used them, and says so: there it is
// v3.
[[gnu::cold]] static bool has_v4() noexcept {
  return has_v3() && has_bits(Cpuid(7).b, {16, 17, 28, 30, 31})  // AVX-512 F DQ CD BW VL
         && has_bits(saved_registers(), {5, 6, 7});              // masks, upper halves, ZMM16-31
}
static bool is_amd() noexcept {
  const Cpuid vendor(0);
  return vendor.b == 0x68747541 && vendor.d == 0x69746e65 &&
         vendor.c == 0x444d4163;  // AuthenticAMD
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

// On Zen, prefetches made updates slower, wherever their arrays were.
std::size_t far_for_updates() noexcept {
#ifdef ONEPASS_X86_64_LEVELS
  if (is_amd()) return std::numeric_limits<std::size_t>::max();
#endif
  return far_for_sums;
}

}  // namespace onepass
