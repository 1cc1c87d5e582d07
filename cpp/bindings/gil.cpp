#include "gil.hpp"

#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define ONEPASS_POSIX 1
#endif

namespace onepass::bindings {
namespace {

// The longest time that Python's exit waits for the calls of other threads. It has an end, because
// such a call may itself wait for the exit.
constexpr std::chrono::seconds longest_wait{5};
constexpr std::chrono::milliseconds between_looks{1};

// No thread-local counts: they would cost a small step some ten cold cache lines.
std::atomic<int> calls{0};  // of all threads
std::atomic<bool> exiting{false};
std::thread::id exit_thread;  // which runs the exit

void wait_for_other_threads() {
  exit_thread = std::this_thread::get_id();
  exiting = true;
  const auto deadline = std::chrono::steady_clock::now() + longest_wait;
  while (calls > 0 && std::chrono::steady_clock::now() < deadline) {
    const WithoutGil release;
    std::this_thread::sleep_for(between_looks);
  }
}

}  // namespace

InCall::InCall() {
  ++calls;  // first, so that an exit either sees it or is seen
  if (exiting && std::this_thread::get_id() != exit_thread) {
    --calls;  // this thread never returns from the call
    PyEval_SaveThread();
    sleep_for_ever();
  }
}

InCall::~InCall() {
  --calls;
}

void bind_exit(pybind11::module_& m) {
  m.def("_wait_for_other_threads", &wait_for_other_threads);
  pybind11::module_::import("atexit").attr("register")(m.attr("_wait_for_other_threads"));
#ifdef ONEPASS_POSIX
  pthread_atfork(nullptr, nullptr, [] { calls = 0; });  // the other threads are not there
#endif
}

}  // namespace onepass::bindings
