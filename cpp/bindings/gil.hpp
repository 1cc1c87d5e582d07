#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <cstddef>
#include <thread>

namespace onepass::bindings {

// Other Python threads may run while this many elements are worked on; for fewer it is not worth
// handing the interpreter over.
inline constexpr std::size_t min_elements_without_gil = 32768;

// Lets other Python threads run. Where the interpreter is shutting down, Python before 3.14 ends a
// daemon thread that asks for it back by an exception that no destructor may let through; 3.14 lets
// the thread hang, and so does this.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace onepass::bindings
