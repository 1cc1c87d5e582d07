// Steps of single parameters, and the rounds in which each parameter has one turn.
#include <algorithm>
#include <string>

#include "engine.hpp"

namespace onepass::bindings {

std::size_t Engine::find_param(py::handle name) {
  const Label label("name", Role::input);
  if (PyObject_Hash(name.ptr()) == -1) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
    PyErr_Clear();
    fail_type(label, "the key of a parameter", Py_TYPE(name.ptr())->tp_name);
  }
  PyObject* const place = place_of(name, places());
  if (!place) {
    fail_value(label, "a key among " + py::repr(keys_).cast<std::string>(),
               py::repr(name).cast<std::string>());
  }
  return py::handle(place).cast<std::size_t>();
}

// Raises where a setting or the rule needs all gradients at once, or where there are accumulated
// gradients.
void Engine::check_steps_one() const {
  const auto fail = [](const char* setting, const char* expected, const std::string& got) {
    fail_value(Label(setting, Role::input), std::string(expected) + " with step_one", got);
  };
  // A schedule is refused whatever it gives in this round.
  const auto check_none = [&](const char* setting, const char* expected) {
    const py::object value = own_[py::str(setting)];
    if (!value.is_none()) fail(setting, expected, py::repr(value).cast<std::string>());
  };
  check_none("max_grad_norm", "None (or max_grad_norm_each, or max_grad_value)");
  check_none("skip_grad_norm", "None");
  if (static_cast<Nonfinite>(own_settings_.nonfinite) == Nonfinite::skip) {
    fail("nonfinite", "'propagate' or 'raise'", "'skip'");
  }
  const RuleRow& rule = *fields_->rule();
  if (rule.sums_over_all) fail("self", "a rule that takes no sum over all arrays", rule.name);
  if (gathered_ + left_out_ > 0) fail("grad", "no sum of accumulate, which step takes,", "some");
}

Source Engine::take_one(const Call& call) {
  given_.assign(size(), py::none());
  given_[static_cast<std::size_t>(call.only)] = py::reinterpret_borrow<py::object>(call.grads);
  return Source::given;
}

py::object Engine::step_one(py::handle name, py::handle grad, double grad_scale, bool stats,
                            int num_threads) {
  const OneAtATime guard(busy_, "step_one");
  const Cleared cleared(given_);
  check_block("step_one");
  py::object info = new_step_info(last_info_);
  const std::size_t index = find_param(name);
  std::optional<ClosedRound> closed;
  if (round_.had_turn[index]) closed.emplace(*this);
  read_settings();
  check_steps_one();
  call_schedules();
  Call call{grad, false, {}, static_cast<std::ptrdiff_t>(index)};
  call.options.grad_scale = grad_scale;
  call.options.nonfinite = static_cast<Nonfinite>(own_settings_.nonfinite);
  call.options.seed = static_cast<std::uint64_t>(own_settings_.seed);
  call.options.num_threads = num_threads;
  call.options.stats = stats;
  if (is_arranged_) {
    step_in(now_, call, info);
  } else {
    step_and_arrange(call, info);
  }
  end_turn(index);
  if (closed) closed->keep();
  if (!stats) last_info_ = info;  // one with stats serves no other step
  return info;
}

// Takes back the step's own count, because a round of turns counts as one step.
void Engine::end_turn(std::size_t index) noexcept {
  --now_.optimizer.completed;
  round_.had_turn[index] = true;
  round_.evaluated = true;
  in_round_ = true;
  if (++round_.turns == size()) close_round();
}

void Engine::close_round() noexcept {
  ++now_.optimizer.completed;
  in_round_ = false;
  std::fill(round_.had_turn.begin(), round_.had_turn.end(), false);
  round_.turns = 0;
  round_.evaluated = false;
  round_.values = {};
}

// Returns the values that each group's schedules have in the open round, or None if the coming turn
// will call the schedules.
py::object Engine::values_of_round() const {
  if (!in_round_) return py::none();
  py::list all;
  for (std::size_t g = 0; g < numbers_.size(); ++g) {
    if (numbers_[g].outdated(*as_settings(known_groups_[g].ptr()))) return py::none();
    all.append(numbers_[g].values(now_.optimizer.groups[g].settings.hyper.data()));
  }
  if (round_.evaluated) return all;
  return round_.values ? round_.values : py::none();
}

ClosedRound::ClosedRound(Engine& engine) : engine_(&engine), before_(engine.round_) {
  const py::object values = engine.values_of_round();
  before_.evaluated = false;
  before_.values = values.is_none() ? py::object() : values;
  engine.close_round();
}

ClosedRound::~ClosedRound() {
  if (!engine_) return;
  --engine_->now_.optimizer.completed;
  engine_->round_ = std::move(before_);
  engine_->in_round_ = true;
}

}  // namespace onepass::bindings
