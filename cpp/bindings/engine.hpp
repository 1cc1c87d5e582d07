// The one owner of what an optimizer knows: arrays, counters, settings in force.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "optimizer.hpp"
#include "settings.hpp"
#include "tensors.hpp"

namespace onepass::bindings {

// What the settings of a group say about the arrays of its parameters.
struct Needs {
  explicit Needs(const Group& group) noexcept;
  std::size_t variant;
  bool averages, looks_ahead;
  double state_format, rounding, average_dtype;
  std::array<double, max_states> start{};
  bool operator==(const Needs& other) const noexcept;
};

// A parameter's other arrays. What is not there is None.
struct OwnedArrays {
  py::object copy = py::none();
  std::optional<Unchanged> copy_seen;
  std::vector<py::ssize_t> strides;  // of the parameter, where it is in neither C nor F order
  std::vector<py::object> state;     // the rule's
  py::object average = py::none(), master = py::none();
  py::object slow = py::none();  // Lookahead's weights
  py::object sum = py::none();   // of accumulated gradients
};

std::vector<py::ssize_t> strides_of(const Param& param);  // as OwnedArrays has them

// A bound gradient, and where it lay when it was checked.
struct Bound {
  py::object grad = py::none();
  const void* data = nullptr;
};

// All arrays, and the engine's view of them. Each step reads `params`, and rarely the others.
struct Arrangement {
  std::vector<Param> params;
  std::vector<OwnedArrays> arrays;
  Optimizer optimizer;
  std::vector<std::optional<Needs>> needs;  // of each group, which the arrays meet
};

// What is done in Python, and rarely.
struct Callbacks {
  py::object mirror;  // (shape, grouped, grads) -> gradients in the parameters' order
  // (rule, settings, param, kept, steps, allocator or None, size of the whole or None) -> kept
  py::object arrange;
  py::object new_sum;  // (param, allocator or None) -> zeros
  py::object direct;   // (rule, [(direction, its norm, hyperparameters)]) -> None
  py::object stats;    // (keys) -> (a mapping, the array behind it)
  Check grad_scale, stats_flag;
  py::str grad_scale_name{"grad_scale"}, stats_name{"stats"};
};

// The state of a round of step_one, in which each parameter has one turn.
struct Round {
  std::vector<bool> had_turn;  // of each parameter
  std::size_t turns = 0;       // how many had theirs; 0 if no round is open
  // Whether the settings have their numbers for this round, those of schedules included. If not,
  // `values` has the numbers to take for each group's schedules, or is null: then they are called.
  bool evaluated = false;
  py::object values;
};

// Where the gradients of a call come from.
enum class Source { given, bound, sums };

class Engine {
 public:
  // `contents`: what `contents()` returns. New parameters have no "progress" yet.
  explicit Engine(const py::dict& contents);

  // `by_rows`: `grads` are rows by the parameters' keys.
  // Returns false where the gradients were left out, as they are not finite. `exchange`: None, or a
  // function that is called before anything is written; it is told whether they are to be left out
  // here, and returns whether they are on any process.
  bool accumulate(py::handle grads, int num_threads, py::handle exchange = Py_None);
  // `exchange`: None, or what the sums of many processes are exchanged by.
  py::object step(py::handle grads, bool by_rows, double grad_scale, bool stats,
                  py::handle exchange, int num_threads);
  // Steps the parameter of this key alone, as a part of a round.
  py::object step_one(py::handle name, py::handle grad, double grad_scale, bool stats,
                      int num_threads);
  void discard_accumulated();
  // How many calls of accumulate were left out since the last step.
  std::int64_t left_out() const { return left_out_; }
  void bind(py::handle grads);
  // Raises inside a block that shows other weights; outdates one that was not entered.
  void check_block(const char* name);
  // Raises inside a step too, as in a schedule: what replaces the engine would lose the step.
  void check_outside(const char* name);
  py::dict contents() const;

  py::list groups() const { return groups_; }
  py::object own() const { return own_; }
  // The numbers of the coming step's settings, schedules evaluated.
  py::list values_of_coming_step();

  int traverse(visitproc visit, void* arg) const;
  void clear();

  // The block that shows other weights, if one was made, and which parameters it is about.
  const py::object& shown() const { return shown_; }
  void set_shown(py::object shown) { shown_ = std::move(shown); }

 private:
  std::size_t size() const { return now_.params.size(); }
  bool clears() const { return own_settings_.clear_grads != 0; }

  // engine.cpp: settings, and the arrays that they ask for.
  void read_progress(const py::dict& progress);
  void check_groups() const;
  [[gnu::cold]] void check_groups_agree() const;
  void read_settings();
  void read_own_settings();
  void call_schedules();
  [[gnu::cold]] void evaluate_round();
  [[gnu::cold]] std::optional<Arrangement> arranged();
  void arrange(Arrangement& arrangement, std::size_t index) const;
  void lay_out(Arrangement& arrangement, std::size_t index) const;
  void note_written(const Arrangement& arrangement);
  // What makes a parameter's arrays: (state_alloc, its key, its label), or None.
  py::object allocator(std::size_t index) const;
  // The size of what a parameter is a part of, or None.
  py::object whole_size(std::size_t index) const;
  // The arrays that the user's function has made, which may lie where others do.
  [[gnu::cold]] std::vector<std::pair<py::array, Label>> allocated(
      const Arrangement& arrangement) const;
  [[gnu::cold]] void add_allocated(const Arrangement& arrangement, Memory& memory) const;
  [[gnu::cold]] void check_allocated(const Arrangement& arrangement) const;
  [[gnu::cold]] void check_new_sums(const std::vector<py::object>& sums) const;

  // What a call of step or step_rows is given.
  struct Call {
    py::handle grads;
    bool by_rows;
    StepOptions options;
    std::ptrdiff_t only = -1;       // the parameter that `grads` is for, where it is one's
    py::handle exchange = Py_None;  // or a Python function
  };

  // gradients.cpp: from what a user gives to addresses.
  bool walk(py::handle shape, py::object grads);
  void collect_tree(py::handle grads);
  void collect(py::handle grads);
  [[gnu::cold]] void take_leaves(const py::list& grads);
  bool overlaps_written(PyObject* object, std::size_t item_size) const;
  bool is_ready(Arrangement& arrangement, std::size_t index, Source source, bool checked) const;
  bool all_ready(Arrangement& arrangement, Source source, bool checked) const;
  void check_gradients(Arrangement& arrangement, Source source);
  void check_axes(const Arrangement& arrangement) const;
  void bind_leaves(const py::list& grads);
  void bind_given();
  void note_bound();
  [[gnu::cold]] bool read_foreign();
  [[gnu::cold]] void check_slowly(Arrangement& arrangement, Source source);
  bool is_still(const Arrangement& arrangement, std::size_t index) const;
  [[gnu::cold]] bool strides_are_still(const Arrangement& arrangement, std::size_t index) const;
  void renew(Arrangement& arrangement, std::size_t index, Param param, Memory& memory) const;
  [[gnu::cold]] void lay_out_anew(Arrangement& arrangement, std::size_t index, Param param,
                                  std::optional<Unchanged> copy_seen) const;

  // engine_rows.cpp
  struct Named;
  const py::object& places();
  std::deque<Named> named_rows(py::handle grads);
  std::vector<Rows> take_rows(Arrangement& arrangement, py::handle grads);
  [[gnu::cold]] bool step_rows_in(Arrangement& arrangement, const Call& call,
                                  const py::object& info);

  // engine_one.cpp
  friend class ClosedRound;
  std::size_t find_param(py::handle name);
  void check_steps_one() const;
  Source take_one(const Call& call);
  void end_turn(std::size_t index) noexcept;
  void close_round() noexcept;
  py::object values_of_round() const;

  // engine_step.cpp
  void forget_accumulated();
  std::vector<Tensor> given_tensors() const;
  [[gnu::cold]] bool finds_nonfinite(Source source, int num_threads);
  [[gnu::cold]] void leave_out(int num_threads);
  bool step_in(Arrangement& arrangement, const Call& call, const py::object& info);
  [[gnu::cold]] py::object new_stats() const;
  // `check`: raises where what the step reads has changed, since directions are made by Python
  // code.
  template <class Check>
  bool run(Arrangement& arrangement, const StepOptions& options, const Check& check,
           const py::object& info) {
    const auto grad_label = [&](std::size_t i) { return Label(labels_, i, Role::grad); };
    const auto direct = [&](Directions& directions) {
      directions.make([&](std::size_t i) { return arrangement.params[i].array; }, check,
                      options.num_threads);
    };
    Optimizer& optimizer = arrangement.optimizer;
    return run_step(optimizer, options, grad_label, direct, optimizer.completed, info);
  }
  [[gnu::cold]] bool step_with_others(Arrangement& arrangement, const Call& call,
                                      const std::function<void()>& check, const py::object& info);
  [[gnu::cold]] void check_exchange(py::handle exchange) const;
  [[gnu::cold]] bool step_and_arrange(const Call& call, const py::object& info);
  Source gather(py::handle grads);
  void take_bound(const char* missing);

  // What each step reads stands together: a small step pays for each cache line.
  std::atomic<bool> busy_ = false;
  bool grouped_;
  bool flat_ = false;           // a list of arrays without groups
  bool is_arranged_ = false;    // the arrays in force are those that the settings ask for
  bool had_schedules_ = false;  // some setting is a schedule, or was one
  bool has_copies_ = false;
  bool has_bound_ = false;
  bool bound_to_be_zeroed_ = false;           // they were checked for that
  std::int64_t gathered_ = 0, left_out_ = 0;  // calls of accumulate since the last step
  bool in_round_ = false;                     // one of step_one is open
  py::object shown_ = py::none();
  py::list groups_;  // `param_groups`
  std::vector<py::object> known_groups_;
  std::vector<Numbers> numbers_;  // of each group
  py::object own_;
  OwnSettings own_settings_;
  Numbers own_numbers_;
  py::object last_info_;
  std::vector<py::object> given_;  // the gradients of a call
  std::vector<Extent> written_;    // by every step, in order
  std::vector<Bound> bound_;       // gradients, of each parameter
  Arrangement now_;

  const Fields* fields_;
  py::object shape_;
  py::list labels_, keys_;
  py::object state_alloc_ = py::none();  // the user's function that makes state
  // Where the parameters are parts of others: of each, where it begins in the whole one, and the
  // size of that.
  std::vector<std::pair<std::size_t, std::size_t>> parts_;
  py::object places_;  // from a key to the parameter's place; null until a step names keys
  std::vector<std::int64_t> accumulated_;  // how often, for each parameter
  Round round_;
};

// Closes the round that is open, and opens it again where the call that does so fails or skips.
class ClosedRound {
 public:
  [[gnu::cold]] explicit ClosedRound(Engine& engine);
  ClosedRound(const ClosedRound&) = delete;
  ClosedRound& operator=(const ClosedRound&) = delete;
  [[gnu::cold]] ~ClosedRound();
  void keep() { engine_ = nullptr; }

 private:
  Engine* engine_;
  Round before_;
};

// Whether a thing that one call at a time can use is this call's.
class Taken {
 public:
  explicit Taken(std::atomic<bool>& is_taken)
      : is_taken_(is_taken), own_(!is_taken.exchange(true)) {}
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;
  ~Taken() {
    if (own_) is_taken_ = false;
  }
  explicit operator bool() const { return own_; }

 private:
  std::atomic<bool>& is_taken_;
  bool own_;
};

// Refuses a second call at a time, which would find the first one's tensors replaced.
class OneAtATime {
 public:
  OneAtATime(std::atomic<bool>& busy, const char* name);

 private:
  Taken taken_;
};

// Lets go of a call's gradients when it ends.
class Cleared {
 public:
  explicit Cleared(std::vector<py::object>& objects) : objects_(objects) { objects.clear(); }
  Cleared(const Cleared&) = delete;
  Cleared& operator=(const Cleared&) = delete;
  ~Cleared() { objects_.clear(); }

 private:
  std::vector<py::object>& objects_;
};

// The place of a parameter; null where there is none. The key of one whose name is an integer is
// text, as a path is, and the name will do too.
PyObject* place_of(py::handle key, py::handle places);

inline Callbacks* callbacks = nullptr;  // set once; never destroyed

bool is_optimizer(py::handle object);
// Puts an engine in the place of an optimizer's.
void set_engine(PyObject* optimizer, PyObject* engine) noexcept;

// `_core.Base` in Python: what an optimizer's methods find its engine by.
void bind_engine(py::module_& m);

}  // namespace onepass::bindings
