// What the drivers share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <type_traits>

#include "dispatch.hpp"

// Whether ThreadSanitizer watches. What one thread does alone is left out then: it has no races.
#ifdef __SANITIZE_THREAD__
inline constexpr bool only_races = true;
#else
inline constexpr bool only_races = false;
#endif

inline int failures = 0;
inline int checks = 0;

inline void check(bool holds, const std::string& what) {
  ++checks;
  if (!holds) {
    ++failures;
    std::printf("FAILED: %s\n", what.c_str());
  }
}

// n elements, `offset` elements past a cache line; nothing after the last one.
template <class T>
class Block {
 public:
  Block(std::size_t n, std::size_t offset, std::uint32_t seed) : n_(n) {
    const std::size_t bytes = (n + offset) * sizeof(T);
    memory_ = static_cast<char*>(::operator new(bytes, std::align_val_t(64)));
    data_ = reinterpret_cast<T*>(memory_) + offset;
    for (std::size_t i = 0; i < n; ++i) {
      seed = seed * 1664525u + 1013904223u;
      const auto below_1 = static_cast<std::uint16_t>(0x3800 + (seed >> 8) % 0x400);
      if constexpr (std::is_integral_v<T>) {
        data_[i] = static_cast<T>(below_1);  // as either float of 16
      } else if constexpr (std::is_class_v<T>) {
        data_[i] = {below_1};
      } else {
        data_[i] = static_cast<T>(seed >> 8) / T(1 << 22) + T(0.25);  // positive: some are squares
      }
    }
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { ::operator delete(memory_, std::align_val_t(64)); }

  T* data() const { return data_; }
  std::size_t size() const { return n_; }
  bool operator==(const Block& other) const {
    return n_ == 0 || std::memcmp(data_, other.data_, n_ * sizeof(T)) == 0;
  }

 private:
  std::size_t n_;
  char* memory_;
  T* data_;
};

// Calls body(kernels, " on <name>") for every build that runs here.
template <class Body>
inline void for_each_isa(const Body& body) {
  for (const onepass::Isa& isa : onepass::compiled_isas()) {
    if (isa.supported) body(*isa.kernels, std::string(" on ") + isa.name);
  }
}

// What main() returns.
inline int report() {
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
