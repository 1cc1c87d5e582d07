#include "parallel.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cfenv>
#include <cstdlib>
#include <thread>
#include <type_traits>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#define ONEPASS_POSIX 1
#endif
#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace onepass::detail {
namespace {

std::atomic<bool> forked{false};

void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` is no longer `old`, and returns the new one. The thread spins for some tens
// of microseconds, since the next step may follow at once, and then sleeps.
int wait_for_change(const std::atomic<int>& value, int old) noexcept {
  constexpr int spins = 1000;
  for (int i = 0; i < spins; ++i) {
    const int now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    relax();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

// Blocks signals in the threads that start meanwhile, which inherit the mask, so that the threads
// that Python knows get them. The signals that an instruction raises are not blocked: the thread
// that runs the instruction must handle them.
class BlockedSignals {
 public:
#ifdef ONEPASS_POSIX
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
#endif
};

// The core that a helper runs on. In a virtual machine, whose idle cores it takes for busy, Linux
// may wake a helper on the caller's own core and leave it there for seconds, waiting for the caller
// to be done. Then the caller moves the helper by setting its affinity.
class Place {
 public:
#ifdef __linux__
  void note() noexcept {
    static thread_local const pid_t self = static_cast<pid_t>(syscall(SYS_gettid));
    thread_.store(self, std::memory_order_relaxed);
    core_.store(sched_getcpu(), std::memory_order_relaxed);
  }
  void leave(int callers_core) noexcept {
    if (core_.load(std::memory_order_relaxed) != callers_core) return;
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) != 0) return;
    CPU_CLR(static_cast<std::size_t>(callers_core), &cores);
    if (CPU_COUNT(&cores) == 0) return;
    sched_setaffinity(thread_.load(std::memory_order_relaxed), sizeof cores, &cores);
    core_.store(unknown, std::memory_order_relaxed);
  }
  static int callers_core() noexcept { return sched_getcpu(); }

 private:
  static constexpr int unknown = -1;
  std::atomic<pid_t> thread_{0};
  std::atomic<int> core_{unknown};
#else
  void note() noexcept {}
  void leave(int) noexcept {}
  static int callers_core() noexcept { return 0; }
#endif
};

struct alignas(64) Share {
  std::atomic<std::size_t> next;
  std::size_t end;
  std::atomic<int> calls;  // the share's helper sleeps on this; only needed helpers are called
};

// Deals the indices out in one contiguous share per thread, so that a thread finds the same memory
// in its cache step after step. A thread that is through with its share helps with the others.
class Shares {
 public:
  void deal(std::size_t count, int threads, Task task) noexcept {
    task_ = task;
    n_ = threads;
    const auto n = static_cast<std::size_t>(threads);
    for (std::size_t k = 0; k < n; ++k) {
      shares_[k].next.store(count * k / n, std::memory_order_relaxed);
      shares_[k].end = count * (k + 1) / n;
    }
    std::fegetenv(&environment_);
  }
  // What a thread does that is not the caller: it rounds and flushes as the caller does.
  void help(int rank) noexcept {
    if (rank >= n_) return;
    std::fesetenv(&environment_);
    work(rank);
  }
  void work(int rank) noexcept {
    for (int i = 0; i < n_; ++i) {
      Share& share = shares_[static_cast<std::size_t>((rank + i) % n_)];
      for (;;) {
        const std::size_t index = share.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= share.end) break;
        task_.call(task_.body, index, static_cast<std::size_t>(rank));
      }
    }
  }
  Share& operator[](std::size_t rank) noexcept { return shares_[rank]; }

 private:
  Task task_{};
  std::fenv_t environment_{};
  int n_ = 0;
  std::array<Share, max_threads> shares_{};
};

class Pool {
 public:
  void run(std::size_t count, int threads, Task task) noexcept {
    const int n_shares = std::min(threads, start_helpers(threads - 1) + 1);
    shares_.deal(count, n_shares, task);
    const auto n = static_cast<std::size_t>(n_shares);
    const int core = Place::callers_core();
    for (std::size_t k = 1; k < n; ++k) places_[k].leave(core);
    gate_.store(0, std::memory_order_release);
    for (std::size_t k = 1; k < n; ++k) {
      shares_[k].calls.fetch_add(1, std::memory_order_release);
      shares_[k].calls.notify_one();
    }

    shares_.work(0);
    int inside = gate_.fetch_or(closed, std::memory_order_acq_rel) | closed;
    while (inside != closed) inside = wait_for_change(gate_, inside);
  }

  std::atomic<bool> busy{false};

 private:
  // Starts helpers until there are `wanted`, and returns how many there are: the system may refuse
  // some.
  int start_helpers(int wanted) noexcept {
    while (n_helpers_ < wanted) {
      try {
        [[maybe_unused]] const BlockedSignals blocked;  // where there are signals
        const int rank = n_helpers_ + 1;
        const int seen = shares_[static_cast<std::size_t>(rank)].calls.load();
        std::thread([this, rank, seen] { help(rank, seen); }).detach();
        ++n_helpers_;
      } catch (...) {
        break;
      }
    }
    return n_helpers_;
  }

  void help(int rank, int seen) noexcept {
    Share& share = shares_[static_cast<std::size_t>(rank)];
    Place& place = places_[static_cast<std::size_t>(rank)];
    for (;;) {
      place.note();
      seen = wait_for_change(share.calls, seen);
      int inside = gate_.load(std::memory_order_relaxed);
      while (!(inside & closed)) {
        if (gate_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) {
          shares_.help(rank);
          if (gate_.fetch_sub(1, std::memory_order_acq_rel) == closed + 1) gate_.notify_one();
          break;
        }
      }
    }
  }

  static constexpr int closed = 1 << 30;
  std::atomic<int> gate_{closed};  // helpers inside the task, and whether more may enter
  int n_helpers_ = 0;
  Shares shares_;
  std::array<Place, max_threads> places_{};  // by rank; the caller's own is not used
};

// From now on a child process knows that it has no helpers, nor a team's threads.
void watch_forks() noexcept {
#ifdef ONEPASS_POSIX
  [[maybe_unused]] static const int registered =
      pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#endif
}

Pool& pool() noexcept {
  static Pool pool;
  // The helpers sleep in the pool until the process ends.
  static_assert(std::is_trivially_destructible_v<Pool>);
  watch_forks();
  return pool;
}

thread_local Team team = nullptr;  // whose threads a call takes; null: our helpers

// One task on a team. The caller is always the first: what it finds in its cache, it finds again.
class TeamWork {
 public:
  TeamWork(std::size_t count, int threads, Task task) noexcept {
    shares_.deal(count, threads, task);
  }
  static void work(void* data) noexcept {
    auto& self = *static_cast<TeamWork*>(data);
    if (std::this_thread::get_id() == self.caller_) return self.shares_.work(0);
    std::fenv_t own;  // the thread is not ours
    std::fegetenv(&own);
    self.shares_.help(self.next_rank_.fetch_add(1, std::memory_order_relaxed));
    std::fesetenv(&own);
  }

 private:
  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<int> next_rank_{1};
  Shares shares_;
};

}  // namespace

void run(std::size_t count, int threads, Task task) noexcept {
  threads = std::min(threads, max_threads);
  const bool alone = threads <= 1 || count <= 1 || forked.load(std::memory_order_relaxed);
  if (!alone && team) {
    watch_forks();
    TeamWork work(count, threads, task);
    const auto call = [](void* data) { TeamWork::work(data); };
    team(call, &work, static_cast<unsigned>(threads), 0);
    return;
  }
  if (alone || pool().busy.exchange(true, std::memory_order_acquire)) {
    for (std::size_t i = 0; i < count; ++i) task.call(task.body, i, 0);
    return;
  }
  pool().run(count, threads, task);
  pool().busy.store(false, std::memory_order_release);
}

}  // namespace onepass::detail

namespace onepass {

namespace {

int threads_of_environment() noexcept {
  const char* const given = std::getenv("OMP_NUM_THREADS");
  int threads = given ? std::atoi(given) : 0;
#ifdef __linux__
  cpu_set_t cores;
  if (threads < 1 && sched_getaffinity(0, sizeof cores, &cores) == 0) threads = CPU_COUNT(&cores);
#endif
  if (threads < 1) threads = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(threads, 1, max_threads);
}

std::atomic<int> threads_in_use{0};  // 0: not yet known

}  // namespace

int default_threads() noexcept {
  const int threads = threads_in_use.load(std::memory_order_relaxed);
  if (threads > 0) [[likely]]
    return threads;
  static const int found = threads_of_environment();
  return found;
}

void set_default_threads(int threads) noexcept {
  threads_in_use.store(std::clamp(threads, 1, max_threads), std::memory_order_relaxed);
}

OnTeam::OnTeam(Team team) noexcept : before_(detail::team) {
  detail::team = team;
}
OnTeam::~OnTeam() {
  detail::team = before_;
}

bool in_forked_child() noexcept {
  return detail::forked.load(std::memory_order_relaxed);
}

}  // namespace onepass
