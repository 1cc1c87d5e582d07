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

std::atomic<int> calls{0};  // of all threads
thread_local int own_calls = 0;
std::atomic<bool> exiting{false};
thread_local bool exits = false;  // whether this thread runs the exit

void wait_for_other_threads() {
  exits = true;
  exiting = true;
  const auto deadline = std::chrono::steady_clock::now() + longest_wait;
  while (calls > own_calls && std::chrono::steady_clock::now() < deadline) {
    const WithoutGil release;
    std::this_thread::sleep_for(between_looks);
  }
}

}  // namespace

InCall::InCall() {
  ++calls;  // first, so that either the exit sees this call, or this call sees the exit
  ++own_calls;
  if (exiting && !exits) {
    calls -= own_calls;  // this thread never returns from the calls that it is inside
    PyEval_SaveThread();
    sleep_for_ever();
  }
}

InCall::~InCall() {
  --calls;
  --own_calls;
}

void bind_exit(pybind11::module_& m) {
  m.def("_wait_for_other_threads", &wait_for_other_threads);
  pybind11::module_::import("atexit").attr("register")(m.attr("_wait_for_other_threads"));
#ifdef ONEPASS_POSIX
  pthread_atfork(nullptr, nullptr, [] { calls = own_calls; });  // the other threads are not there
#endif
}

}  // namespace onepass::bindings
