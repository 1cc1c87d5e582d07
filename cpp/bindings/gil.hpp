// When other Python threads may run, and what becomes of our threads when the interpreter exits.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <thread>

namespace onepass::bindings {

// A call that works on at least this many elements lets other Python threads run meanwhile; for
// fewer, handing the interpreter over takes too long.
inline constexpr std::size_t min_elements_without_gil = 32768;

[[noreturn]] inline void sleep_for_ever() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Lets other Python threads run. While the interpreter shuts down, Python before 3.14 unwinds a
// daemon thread that asks for the GIL by an exception. A destructor must not throw, so this one
// hangs, as 3.14 does.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      sleep_for_ever();
    }
  }

 private:
  PyThreadState* state_;
};

// Runs Python code within work that may have let go of the GIL.
class WithGil {
 public:
  WithGil() {
    try {
      state_ = PyGILState_Ensure();
    } catch (...) {  // Python has ended, see above
      sleep_for_ever();
    }
  }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;
  ~WithGil() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_;
};

// Does work on this many elements. Nothing in it may need the GIL.
template <class Work>
void without_gil(std::size_t elements, const Work& work) {
  std::optional<WithoutGil> release;
  if (elements >= min_elements_without_gil) release.emplace();
  work();
}

// Every function that may run Python code holds one of these (as a py::call_guard). Such code (a
// copy by NumPy, a gradient's __array__, a finalizer) may hand the interpreter over. If a daemon
// thread then asks for the interpreter while Python exits, Python unwinds the thread's stack: the
// destructors of our Python objects would run without the interpreter, and crash. So Python's exit
// waits until no other thread is inside a call, and a thread that calls later sleeps.
class InCall {
 public:
  InCall();
  InCall(const InCall&) = delete;
  InCall& operator=(const InCall&) = delete;
  ~InCall();
};

// Makes Python's exit wait until no other thread is in a call.
void bind_exit(pybind11::module_& m);

}  // namespace onepass::bindings
