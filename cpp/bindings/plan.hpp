// A step for Python: everything is checked when it is planned, so that running it cannot fail.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "arrays.hpp"
#include "step.hpp"
#include "updates.hpp"

namespace onepass::bindings {

// What to do where a gradient has an infinity or a NaN.
enum class Nonfinite { propagate, skip, raise };

// Whether the gradients are read as they are given, or must lie as their parameters do: because the
// step zeroes them, or will read them again and again.
enum class GradientUse { any, bound, zeroed };

using Counters = py::array_t<std::int64_t>;

// What a plan is made from; in Python a tuple of these, in this order. The lists are copied, so
// that the arrays stay alive during the step even if other code empties the caller's lists.
struct Given {
  explicit Given(const py::tuple& fields);
  py::object names;  // what messages call the parameters; None for a free function
  py::list params, grads;
  // Per parameter the rule's arrays, and perhaps the average of the weights, their master in
  // float32 and a copy of them in fewer bits.
  py::list states;
  // A rule, its options, the parameters that share them and their scalars, and whether those of 16
  // bits without a master are rounded at random.
  py::list jobs;
  GradientUse gradients;
  // The steps of each parameter, those of the optimizer, and the steps skipped.
  std::optional<Counters> counters;
  // Such counters that a step sets to zero, because it takes what was gathered.
  std::optional<Counters> gathered;
};

class Plan {
 public:
  explicit Plan(Given given);

  // One step, unless it is skipped. `scalars`: per job. `commit`: what becomes of attributes with a
  // step that is not skipped. Returns the norm of the gradients, None where neither `max_norm` nor
  // `nonfinite` asks for it, what they were multiplied by to clip them, and whether the step was
  // skipped.
  py::tuple run(const py::list& scalars, int num_threads, double grad_scale,
                std::optional<double> max_norm, Nonfinite nonfinite, const Updates& commit);

 private:
  struct Job {
    const RuleRow* rule;
    const Variant* variant;
    bool stochastic;
    std::array<double, max_scalars> scalars = {};
    std::unique_ptr<StepBits> bits = {};  // where an array is rounded
  };

  void watch(std::size_t index);
  void add(Job& job, std::size_t index, Memory& memory);
  StateFormat add_state(Job& job, std::size_t index, const Param& param, Streams& streams,
                        Memory& memory);
  void check_unchanged();
  template <class Work>
  void without_gil(const Work& work);
  Norm measure(int num_threads, Nonfinite nonfinite);
  void set_scalars(const py::list& scalars, double factor);

  Given given_;
  std::unique_ptr<std::atomic<bool>> busy_ = std::make_unique<std::atomic<bool>>(false);
  std::vector<Tensor> tensors_;  // in the parameters' order
  std::deque<Job> jobs_;         // the tensors point into it
  struct Choice {
    const Job* job;
    StateFormat format;
  };
  std::vector<Choice> choices_;  // each parameter's, which decide about its kernel
  std::vector<double> sums_;
  std::vector<Unchanged> seen_;  // all arrays, and copies of gradients, which live in it
};

void bind_plan(py::module_& m, const KernelTable& kernels);

}  // namespace onepass::bindings
