// The only files that know threads: this and parallel.cpp.
#pragma once

#include <cstddef>

namespace onepass {

inline constexpr int max_threads = 256;

// Calls body(i) once for each i < count, on up to `threads` threads, and returns when all have
// been.
//
// Whoever calls does not wait for helpers to wake up: it takes the work itself until none is left,
// and waits only for what a helper has begun. So a step is never slower than on one thread for
// long, also where the other cores are busy with something else (bench/NOTES.md has what the
// barrier of an OpenMP region costs then). A caller that finds the helpers at work for another
// thread, and a forked child, which has none, does everything itself.
template <class Body>
void parallel_for(std::size_t count, int threads, const Body& body) noexcept;

// Whether this process came from a fork and therefore runs serial.
bool in_forked_child() noexcept;

namespace detail {

struct Task {
  void (*call)(const void* body, std::size_t index) noexcept;
  const void* body;
};
void run(std::size_t count, int threads, Task task) noexcept;

}  // namespace detail

template <class Body>
void parallel_for(std::size_t count, int threads, const Body& body) noexcept {
  static_assert(noexcept(body(count)), "nothing may escape from a helper");
  detail::run(
      count, threads,
      {[](const void* b, std::size_t i) noexcept { (*static_cast<const Body*>(b))(i); }, &body});
}

}  // namespace onepass
