// Threads, which only this file and parallel.cpp know.
#pragma once

#include <cstddef>
#include <type_traits>

namespace onepass {

inline constexpr int max_threads = 256;

// Threads of a call that is not told how many. Until somebody sets it: the environment's
// OMP_NUM_THREADS, or the cores that this process may use.
int default_threads() noexcept;
void set_default_threads(int threads) noexcept;

// Calls body(i) once for each i < count, on up to `threads` threads, and returns when all calls
// have returned. A body with two parameters is called as body(i, rank), where the number of the
// thread, rank, is less than `threads`.
//
// The caller does not wait for helpers to wake up: it takes indices itself until none is left, and
// then waits only for those that a helper has begun. So a step is never slower than on one thread
// for long, even if the other cores are busy with something else (bench/NOTES.md has what the
// barrier of an OpenMP region costs then). The caller does everything itself while the helpers work
// for another thread, and in a forked child, which has no helpers.
template <class Body>
void parallel_for(std::size_t count, int threads, const Body& body) noexcept;

// Somebody else's threads: calls work(data) on up to so many of them, the caller among them, and
// returns when all calls have returned. OpenMP run-time libraries have such a function,
// GOMP_parallel, whose last argument is 0.
using Team = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

// As long as it lives, the calling thread's parallel_for takes this team's threads, not our
// helpers: where a team has just worked, its threads still spin on the cores that helpers would
// need. A null team changes nothing.
class OnTeam {
 public:
  explicit OnTeam(Team team) noexcept;
  ~OnTeam();
  OnTeam(const OnTeam&) = delete;
  OnTeam& operator=(const OnTeam&) = delete;

 private:
  Team before_;
};

// Returns whether this process came from a fork and therefore runs serial.
bool in_forked_child() noexcept;

namespace detail {

struct Task {
  void (*call)(const void* body, std::size_t index, std::size_t rank) noexcept;
  const void* body;
};
void run(std::size_t count, int threads, Task task) noexcept;

}  // namespace detail

template <class Body>
void parallel_for(std::size_t count, int threads, const Body& body) noexcept {
  constexpr bool ranked = std::is_invocable_v<const Body&, std::size_t, std::size_t>;
  const auto call = [](const void* b, std::size_t i, [[maybe_unused]] std::size_t rank) noexcept {
    const Body& of = *static_cast<const Body*>(b);
    if constexpr (ranked) {
      static_assert(noexcept(of(i, rank)), "nothing may escape from a helper");
      of(i, rank);
    } else {
      static_assert(noexcept(of(i)), "nothing may escape from a helper");
      of(i);
    }
  };
  if (count == 1) return call(&body, 0, 0);
  detail::run(count, threads, {call, &body});
}

}  // namespace onepass
