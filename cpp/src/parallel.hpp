// The only file that knows threads.
#pragma once

#include <atomic>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define ONEPASS_HAS_FORK 1
#endif

namespace onepass {

inline constexpr bool has_threads =
#ifdef _OPENMP
    true;
#else
    false;
#endif

namespace detail {
inline std::atomic<bool> forked{false};
}

// libgomp's workers do not survive a fork: a child that enters a parallel region waits for them
// for ever. So a forked child runs serial.
inline bool in_forked_child() noexcept { return detail::forked.load(std::memory_order_relaxed); }

inline void watch_forks() noexcept {
#ifdef ONEPASS_HAS_FORK
  pthread_atfork(nullptr, nullptr,
                 [] { detail::forked.store(true, std::memory_order_relaxed); });
#endif
}

// Calls body(rank, team) once on each of up to `threads` threads and waits for all of them.
template <class Body>
void parallel(int threads, const Body& body) noexcept {
#ifdef _OPENMP
  if (threads > 1 && !in_forked_child()) {
#pragma omp parallel num_threads(threads)
    body(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  (void)threads;
  body(0, 1);
}

}  // namespace onepass
