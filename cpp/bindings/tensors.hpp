// From arrays that were checked to the engine's tensors, and the step over these: what an
// optimizer's step and a free function's have in common.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "kernels_in_use.hpp"
#include "optimizer.hpp"

namespace onepass::bindings {

inline Stored stored(const void* data, Format format) {
  const Codec& codec = kernels_in_use->codecs[format];
  return {const_cast<void*>(data), format == plain ? nullptr : &codec};
}

// The bytes of an element of a gradient.
inline std::size_t item_size(Format format, const Like& param) {
  return format == plain ? param.item_size : kernels_in_use->codecs[format].item_size;
}

// Begins a layout, with the parameter alone. `index`: the random bits depend on it.
void start_layout(const Like& param, std::size_t index, Tensor& tensor, Parameter& known);
// Notes the axes of the parameter, where its rule may be factored. Raises where the rule keeps
// numbers of rows and columns, and these are in neither C nor F order.
void note_axes(const Like& param, std::size_t index, const Label& label, Optimizer& optimizer);
// Adds the k-th state of the rule; `array` is None where the rule's options do not use it.
void add_state(const Group& group, std::size_t k, py::handle array, const Label& label,
               const Param& param, Memory& memory, Tensor& tensor, Parameter& known);
// Ends a layout: says how 16-bit weights without a master are rounded.
void finish_layout(const Like& param, bool stochastic, Tensor& tensor, Parameter& known);

// Raises where a directed rule is given what is no matrix.
void check_dimensions(const Group& group, const py::array& param, const Label& label);

// A onepass.StepInfo that is still to be filled: the one of the last call where nobody has kept
// that, since a new one would cost a small step a tenth of its cold cache lines. It is made before
// anything is checked, because its making may collect garbage, and that may run any Python code.
py::object new_step_info(py::object& last);

// The gradients of another process are not finite, and that is an error.
[[noreturn, gnu::cold]] void fail_elsewhere();

// Python code that a check has run has changed an array that was checked before.
[[noreturn]] void fail_changed();

// The arrays of a call, kept alive and looked at once more before they are used. Each is watched
// from when its address has been taken.
class Unchanging {
 public:
  void watch(PyObject* object) {
    if (!py::isinstance<py::array>(object)) return;
    keep(object);
    seen_.emplace_back(kept_.back());
  }
  // For what no Python code runs before it is used.
  void keep(PyObject* array) { kept_.push_back(py::reinterpret_borrow<py::array>(array)); }
  void check() const;

 private:
  std::vector<py::array> kept_;
  std::vector<Unchanged> seen_;
};

// The directions of one step: an array for each tensor whose rule is directed, which a pass fills
// and Python then changes. The tensors point to them until the step ends.
class Directions {
 public:
  explicit Directions(Optimizer& optimizer) : optimizer_(optimizer) {}
  Directions(const Directions&) = delete;
  Directions& operator=(const Directions&) = delete;
  ~Directions();
  // `param(i)`: the parameter that the i-th tensor's direction must be like. Runs Python code, and
  // after it `check`, which raises where another array of the step has changed meanwhile.
  [[gnu::cold]] void make(const std::function<py::object(std::size_t)>& param,
                          const std::function<void()>& check, int num_threads);

 private:
  Optimizer& optimizer_;
  std::vector<py::array> arrays_;
};

Ready prepare_step(Optimizer& optimizer, const StepOptions& options);
void fill_step_info(const py::object& info, std::int64_t step, double lr, const Ready& ready);
void run_without_gil(Ready& ready) noexcept;
// Writes what a step says of its tensors, and lets its info show that. `stats`: a mapping, and the
// array that it shows.
[[gnu::cold]] void set_stats(const py::object& info, const py::object& stats,
                             const Optimizer& optimizer, double grad_scale) noexcept;

// One step, or an error where a gradient is not finite and that is one. Fills `info`; `completed`:
// the steps before this one; `direct` makes the directions, where there are some. Returns whether
// it was skipped.
template <class GradLabel, class Direct>
bool run_step(Optimizer& optimizer, const StepOptions& options, const GradLabel& grad_label,
              const Direct& direct, std::int64_t completed, const py::object& info) {
  Ready ready = prepare_step(optimizer, options);
  if (!ready.is_finite && options.nonfinite == Nonfinite::raise) [[unlikely]] {
    if (ready.nonfinite < 0) fail_elsewhere();
    const auto index = static_cast<std::size_t>(ready.nonfinite);
    fail_value(grad_label(index), "finite values", "an infinity or NaN");
  }
  std::optional<Directions> directions;
  if (!ready.skipped() && optimizer.is_directed()) direct(directions.emplace(optimizer));
  fill_step_info(info, completed + !ready.skipped(), optimizer.groups[0].learning_rate(), ready);
  run_without_gil(ready);  // from here on nothing fails
  return ready.skipped();
}

void set_step_info(py::object type);

}  // namespace onepass::bindings
