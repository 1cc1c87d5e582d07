// What an optimizer's settings come to: numbers, and the arrays that they ask for.
#include "engine.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <string>

namespace onepass::bindings {
namespace {

std::int64_t whole(const py::dict& from, const char* name) {
  return from[name].cast<std::int64_t>();
}

py::tuple kept_arrays(const OwnedArrays& arrays) {
  py::list kept;
  for (const py::object& array : arrays.state) kept.append(array);
  kept.append(arrays.average);
  kept.append(arrays.master);
  kept.append(arrays.slow);
  return py::tuple(kept);
}

void set_kept_arrays(OwnedArrays& arrays, const py::tuple& kept) {
  const std::size_t n = arrays.state.size();
  if (kept.size() != n + 3) throw py::value_error("kept: expected an array for each name");
  for (std::size_t k = 0; k < n; ++k) arrays.state[k] = kept[k];
  arrays.average = kept[n];
  arrays.master = kept[n + 1];
  arrays.slow = kept[n + 2];
}

Optimizer copied(const Optimizer& from) {
  Optimizer to;
  to.groups = from.groups;
  to.params = from.params;
  to.tensors = from.tensors;
  to.memory = from.memory;
  to.axes = from.axes;
  to.completed = from.completed;
  to.skipped = from.skipped;
  return to;
}

}  // namespace

std::vector<py::ssize_t> strides_of(const Param& param) {
  if (param.order != Order::other) return {};
  return {param.array.strides(), param.array.strides() + param.array.ndim()};
}

Needs::Needs(const Group& group) noexcept
    : variant(group.variant_index()),
      averages(group.averages()),
      looks_ahead(group.looks_ahead()),
      state_format(group.settings.state_format),
      rounding(group.settings.rounding),
      average_dtype(group.settings.average_dtype) {
  for (std::size_t k = 0; k < group.rule->start.size(); ++k) {
    const int place = group.rule->start[k];
    if (place >= 0) start[k] = group.settings.hyper[static_cast<std::size_t>(place)];
  }
}

bool Needs::operator==(const Needs& other) const noexcept {
  const bool same_format =
      state_format == other.state_format || (is_none(state_format) && is_none(other.state_format));
  return variant == other.variant && averages == other.averages &&
         looks_ahead == other.looks_ahead && same_format && rounding == other.rounding &&
         average_dtype == other.average_dtype && start == other.start;
}

OneAtATime::OneAtATime(std::atomic<bool>& busy, const char* name) : taken_(busy) {
  if (taken_) return;
  throw py::value_error(std::string(name) + ": expected one thread at a time, got a second one");
}

Engine::Engine(const py::dict& contents)
    : grouped_(contents["grouped"].cast<bool>()),
      groups_(contents["groups"]),
      own_(contents["own"]),
      fields_(contents["fields"].cast<const Fields*>()),
      shape_(contents["shape"]),
      labels_(contents["labels"]),
      keys_(contents["keys"]) {
  flat_ = !grouped_ && PyList_CheckExact(shape_.ptr()) &&
          py::list(shape_).attr("count")(py::none()).equal(py::int_(py::len(shape_)));
  const py::list params = contents["params"], copies = contents["copies"];
  Memory memory;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const Label label(labels_, i, Role::param);
    const Param& param = now_.params.emplace_back(check_param(params[i], label));
    OwnedArrays& arrays = now_.arrays.emplace_back();
    memory.add(param.array, label);
    arrays.state.resize(fields_->rule()->states.size(), py::none());
    arrays.strides = strides_of(param);
    arrays.copy = copies[i];
    if (arrays.copy.is_none()) continue;
    check_copy(arrays.copy, Label(labels_, i, Role::copy), param, memory);
    arrays.copy_seen.emplace(py::reinterpret_borrow<py::array>(arrays.copy));
    has_copies_ = true;
  }
  memory.check_overlap();
  if (contents.contains("state_alloc")) state_alloc_ = contents["state_alloc"];
  if (contents.contains("parts") && !contents["parts"].is_none()) {
    parts_ = contents["parts"].cast<decltype(parts_)>();
  }
  bound_.resize(size());
  now_.optimizer.params.resize(size());
  now_.optimizer.tensors.resize(size());
  accumulated_.resize(size());
  round_.had_turn.resize(size());
  const auto group_of = contents["group_of"].cast<std::vector<std::uint32_t>>();
  for (py::handle settings : groups_) {
    const auto number = static_cast<std::uint32_t>(known_groups_.size());
    if (std::ranges::count(group_of, number) != py::ssize_t(py::len(settings["params"]))) {
      throw py::value_error("param_groups: expected the parameters as they were");
    }
    known_groups_.push_back(py::reinterpret_borrow<py::object>(settings));
    now_.optimizer.groups.emplace_back(*fields_->rule());
  }
  for (std::size_t i = 0; i < size(); ++i) {
    if (group_of.at(i) >= known_groups_.size()) {
      throw py::value_error("group_of: expected the number of a group for each parameter");
    }
    now_.optimizer.params[i].group = group_of[i];
  }
  now_.optimizer.start_memory();
  numbers_.resize(known_groups_.size());
  now_.needs.resize(known_groups_.size());
  read_settings();
  for (std::size_t i = 0; i < size(); ++i) {
    const Group& group = now_.optimizer.groups[now_.optimizer.params[i].group];
    check_dimensions(group, now_.params[i].array, Label(labels_, i, Role::param));
  }
  if (contents.contains("progress")) {
    read_progress(contents["progress"]);
  } else if (std::optional<Arrangement> coming = arranged()) {
    now_ = std::move(*coming);
  }
  if (!state_alloc_.is_none()) check_allocated(now_);
  note_written(now_);
  const py::object bound = contents["bound"];
  if (!bound.is_none()) bind_leaves(bound);
}

// Takes over the progress of a run. The arrays may be in other formats than the settings ask for.
void Engine::read_progress(const py::dict& progress) {
  const auto steps = progress["steps"].cast<std::vector<std::int64_t>>();
  const auto average_from = progress["average_from"].cast<std::vector<std::int64_t>>();
  const auto entered = progress["entered"].cast<std::vector<std::optional<std::int64_t>>>();
  const py::list kept = progress["kept"], sums = progress["sums"];
  const auto memory = progress["memory"].cast<std::vector<std::vector<double>>>();
  accumulated_ = progress["accumulated"].cast<std::vector<std::int64_t>>();
  gathered_ = whole(progress, "gathered");
  left_out_ = whole(progress, "left_out");
  now_.optimizer.completed = whole(progress, "completed");
  now_.optimizer.skipped = whole(progress, "skipped");
  round_.had_turn = progress["had_turn"].cast<std::vector<bool>>();
  round_.turns = static_cast<std::size_t>(std::ranges::count(round_.had_turn, true));
  in_round_ = round_.turns > 0;
  const py::object values = progress["values_of_round"];
  if (!values.is_none()) round_.values = values;
  for (std::size_t i = 0; i < size(); ++i) {
    now_.optimizer.params[i].steps = steps.at(i);
    Parameter& param = now_.optimizer.params[i];
    param.average_from = average_from.at(i);
    const Settings& settings = now_.optimizer.groups[param.group].settings;
    // Older files do not say it.
    param.entered =
        entered.at(i) ? *entered[i] : count_entering(settings, param.average_from, param.steps);
    const std::span<double> remembered = now_.optimizer.memory_of(i);
    if (memory.at(i).size() != remembered.size()) {
      throw py::value_error("memory: expected a number for each name");
    }
    std::ranges::copy(memory[i], remembered.begin());
    set_kept_arrays(now_.arrays[i], kept[i]);
    now_.arrays[i].sum = sums[i];
    // The first step arranges these arrays, and lays them out.
  }
}

py::dict Engine::contents() const {
  check_groups();
  py::list params, group_of, copies, bound, steps, average_from, memory, kept, sums, entered;
  for (std::size_t i = 0; i < size(); ++i) {
    const OwnedArrays& arrays = now_.arrays[i];
    params.append(now_.params[i].array);
    group_of.append(now_.optimizer.params[i].group);
    copies.append(arrays.copy);
    bound.append(bound_[i].grad);
    kept.append(kept_arrays(arrays));
    sums.append(arrays.sum);
    steps.append(now_.optimizer.params[i].steps);
    average_from.append(now_.optimizer.params[i].average_from);
    entered.append(now_.optimizer.params[i].entered);
    const std::span<const double> remembered = now_.optimizer.memory_of(i);
    memory.append(py::cast(std::vector<double>(remembered.begin(), remembered.end())));
  }
  py::dict progress;
  progress["steps"] = steps;
  progress["average_from"] = average_from;
  progress["entered"] = entered;
  progress["memory"] = memory;
  progress["kept"] = kept;
  progress["sums"] = sums;
  progress["accumulated"] = py::cast(accumulated_);
  progress["gathered"] = gathered_;
  progress["left_out"] = left_out_;
  progress["completed"] = now_.optimizer.completed;
  progress["skipped"] = now_.optimizer.skipped;
  progress["had_turn"] = py::cast(round_.had_turn);
  progress["values_of_round"] = values_of_round();
  py::dict all;
  all["fields"] = py::cast(fields_, py::return_value_policy::reference);
  all["groups"] = groups_;
  all["own"] = own_;
  all["shape"] = shape_;
  all["grouped"] = grouped_;
  all["labels"] = labels_;
  all["keys"] = keys_;
  all["params"] = params;
  all["group_of"] = group_of;
  all["state_alloc"] = state_alloc_;
  all["parts"] = parts_.empty() ? py::object(py::none()) : py::cast(parts_);
  all["copies"] = copies;
  all["bound"] = has_bound_ ? py::object(bound) : py::none();
  all["progress"] = progress;
  return all;
}

void Engine::check_groups() const {
  if (PyList_GET_SIZE(groups_.ptr()) != std::ssize(known_groups_)) {
    throw py::value_error("param_groups: expected " + std::to_string(known_groups_.size()) +
                          " groups, got " + std::to_string(groups_.size()));
  }
  for (std::size_t g = 0; g < known_groups_.size(); ++g) {
    PyObject* const settings = PyList_GET_ITEM(groups_.ptr(), static_cast<py::ssize_t>(g));
    if (settings != known_groups_[g].ptr()) {
      throw py::value_error("param_groups[" + std::to_string(g) +
                            "]: expected the mapping it was made with (change what is in it), got "
                            "another one");
    }
  }
}

void Engine::read_settings() {
  check_groups();
  for (std::size_t g = 0; g < known_groups_.size(); ++g) {
    SettingsObject& own = *as_settings(known_groups_[g].ptr());
    if (!numbers_[g].outdated(own)) continue;
    is_arranged_ = false;
    round_.evaluated = false;
    round_.values = {};
    numbers_[g].read(own, now_.optimizer.groups[g].settings.hyper.data());
    had_schedules_ = had_schedules_ || numbers_[g].has_schedules();
  }
  read_own_settings();
}

void Engine::read_own_settings() {
  SettingsObject& own = *as_settings(own_.ptr());
  if (!own_numbers_.outdated(own)) return;
  own_numbers_.read(own, &own_settings_.max_grad_norm);
  had_schedules_ = had_schedules_ || own_numbers_.has_schedules();
}

// Where a rule sums over all tensors, its groups may differ in the weight decay alone, and in a
// rate of 0, which leaves a group where it is.
void Engine::check_groups_agree() const {
  const auto found = find_disagreement(now_.optimizer.groups);
  if (!found) return;
  const Group& group = now_.optimizer.groups[0];
  const auto text = [](double number) { return py::str(py::float_(number)).cast<std::string>(); };
  throw py::value_error(std::string(group.rule->hyper[found->hyper]) +
                        ": expected the same in all groups" +
                        (found->hyper == group.lr ? ", or 0" : "") + ", got " + text(found->first) +
                        " and " + text(found->second));
}

void Engine::call_schedules() {
  if (!had_schedules_) return;
  if (in_round_) [[unlikely]]
    return evaluate_round();
  const std::int64_t completed = now_.optimizer.completed;
  for (std::size_t g = 0; g < numbers_.size(); ++g) {
    numbers_[g].call_schedules(completed, now_.optimizer.groups[g].settings.hyper.data());
  }
  own_numbers_.call_schedules(completed, &own_settings_.max_grad_norm);
}

// The numbers of a round are those of its first turn, until a setting is assigned.
void Engine::evaluate_round() {
  if (round_.evaluated) return;
  const py::object known = round_.values ? round_.values : py::list();
  const std::int64_t completed = now_.optimizer.completed;
  for (std::size_t g = 0; g < numbers_.size(); ++g) {
    double* const numbers = now_.optimizer.groups[g].settings.hyper.data();
    if (g < py::len(known) && numbers_[g].take_values(known[py::int_(g)], numbers)) continue;
    numbers_[g].call_schedules(completed, numbers);
  }
  own_numbers_.call_schedules(completed, &own_settings_.max_grad_norm);
  round_.evaluated = true;
  round_.values = {};
}

py::list Engine::values_of_coming_step() {
  const OneAtATime guard(busy_, "settings");
  read_settings();
  call_schedules();
  py::list all;
  for (std::size_t g = 0; g < known_groups_.size(); ++g) {
    py::dict values;
    const auto* numbers = now_.optimizer.groups[g].settings.hyper.data();
    for (const Field& field : fields_->fields()) {
      const py::object given = known_groups_[g][field.name];
      const bool is_schedule = PyCallable_Check(given.ptr()) && field.place != Field::nowhere;
      values[field.name] = is_schedule ? py::float_(numbers[field.place]) : given;
    }
    all.append(values);
  }
  return all;
}

// The arrays that the settings ask for, where those are not the ones in force.
std::optional<Arrangement> Engine::arranged() {
  std::optional<Arrangement> coming;
  for (std::size_t g = 0; g < known_groups_.size(); ++g) {
    const Needs needs(now_.optimizer.groups[g]);
    if (now_.needs[g] && *now_.needs[g] == needs) continue;
    if (!coming)
      coming.emplace(Arrangement{now_.params, now_.arrays, copied(now_.optimizer), now_.needs});
    coming->needs[g] = needs;
    for (std::size_t i = 0; i < size(); ++i) {
      if (now_.optimizer.params[i].group == g) arrange(*coming, i);
    }
  }
  is_arranged_ = !coming;
  if (coming && !state_alloc_.is_none()) check_allocated(*coming);
  return coming;
}

void Engine::arrange(Arrangement& arrangement, std::size_t index) const {
  OwnedArrays& arrays = arrangement.arrays[index];
  Parameter& param = arrangement.optimizer.params[index];
  const bool had_average = !arrays.average.is_none();
  const py::object kept = callbacks->arrange(fields_->rule()->name, known_groups_[param.group],
                                             arrangement.params[index].array, kept_arrays(arrays),
                                             param.steps, allocator(index), whole_size(index));
  set_kept_arrays(arrays, kept.cast<py::tuple>());
  if (!had_average) {
    param.average_from = param.steps;
    param.entered = 0;
  }
  lay_out(arrangement, index);
}

py::object Engine::whole_size(std::size_t index) const {
  if (parts_.empty()) return py::none();
  return py::int_(parts_.at(index).second);
}

py::object Engine::allocator(std::size_t index) const {
  if (state_alloc_.is_none()) return py::none();
  const py::object key = keys_[index], label = labels_[index];
  return py::make_tuple(state_alloc_, key, label);
}

std::vector<std::pair<py::array, Label>> Engine::allocated(const Arrangement& arrangement) const {
  std::vector<std::pair<py::array, Label>> found;
  for (std::size_t i = 0; i < arrangement.arrays.size(); ++i) {
    const OwnedArrays& arrays = arrangement.arrays[i];
    const auto add = [&](const py::object& array, const char* name) {
      if (array.is_none()) return;
      found.emplace_back(py::reinterpret_borrow<py::array>(array),
                         Label(labels_, i, Role::allocated, name));
    };
    for (std::size_t k = 0; k < arrays.state.size(); ++k) {
      add(arrays.state[k], fields_->rule()->states[k]);
    }
    add(arrays.average, "average");
    add(arrays.master, "master");
    add(arrays.slow, "slow");
    add(arrays.sum, "accumulated");
  }
  return found;
}

void Engine::add_allocated(const Arrangement& arrangement, Memory& memory) const {
  for (const auto& [array, label] : allocated(arrangement)) memory.add(array, label);
}

// The user's function may have put them where others lie.
void Engine::check_allocated(const Arrangement& arrangement) const {
  Memory memory;
  for (std::size_t i = 0; i < size(); ++i) {
    const auto add = [&](const py::object& array, Role role) {
      if (array.is_none()) return;
      memory.add(py::reinterpret_borrow<py::array>(array), Label(labels_, i, role));
    };
    add(arrangement.params[i].array, Role::param);
    add(arrangement.arrays[i].copy, Role::copy);
    add(bound_[i].grad, Role::grad);
  }
  add_allocated(arrangement, memory);
  memory.check_overlap();
}

// Tells the engine where a parameter's arrays lie, and how.
void Engine::lay_out(Arrangement& arrangement, std::size_t index) const {
  const OwnedArrays& arrays = arrangement.arrays[index];
  const Param& param = arrangement.params[index];
  Parameter& known = arrangement.optimizer.params[index];
  const Group& group = arrangement.optimizer.groups[known.group];
  Tensor& tensor = arrangement.optimizer.tensors[index];
  check_dimensions(group, param.array, Label(labels_, index, Role::param));
  Memory memory;  // of our own; nothing else can overlap it
  start_layout(param, index, tensor, known);
  if (!parts_.empty()) tensor.streams.first_block = parts_.at(index).first / block_size;
  note_axes(param, index, Label(labels_, index, Role::param), arrangement.optimizer);
  for (std::size_t k = 0; k < arrays.state.size(); ++k) {
    if (!group.variant(known.is_factored).uses_state[k])
      continue;  // kept, perhaps, for later options
    const Label label(labels_, index, Role::state, group.rule->states[k]);
    add_state(group, k, arrays.state[k], label, param, memory, tensor, known);
  }
  Streams& streams = tensor.streams;
  if (!arrays.average.is_none()) {
    const Label label(labels_, index, Role::state, "average");
    streams.average_is_double = group.averages_in_double();
    streams.average =
        check_average(arrays.average, streams.average_is_double, label, param, memory);
  }
  if (!arrays.slow.is_none()) {
    const Label label(labels_, index, Role::state, "slow");
    streams.slow = check_state(arrays.slow, label, param, memory);
  }
  if (!arrays.copy.is_none()) {
    const Checked copy = check_copy(arrays.copy, Label(labels_, index, Role::copy), param, memory);
    streams.copy = stored(copy.array.data(), copy.format);
  }
  if (!arrays.master.is_none()) {
    const Label label(labels_, index, Role::state, "master");
    streams.copy = streams.param;
    streams.param = {check_state(arrays.master, label, param, memory)};
    streams.follows = true;
  }
  finish_layout(param, static_cast<int>(group.settings.rounding) == round_stochastic, tensor,
                known);
}

int Engine::traverse(visitproc visit, void* arg) const {
  const auto visit_all = [&](const auto& objects) {
    for (const py::object& object : objects) {
      if (object) Py_VISIT(object.ptr());
    }
    return 0;
  };
  for (const py::handle object :
       {py::handle(groups_), py::handle(own_), py::handle(shape_), py::handle(labels_),
        py::handle(keys_), py::handle(shown_), py::handle(state_alloc_)}) {
    if (object) Py_VISIT(object.ptr());
  }
  for (const Param& param : now_.params) Py_VISIT(param.object);
  for (const Bound& bound : bound_) Py_VISIT(bound.grad.ptr());
  for (const OwnedArrays& arrays : now_.arrays) {
    for (const py::handle array :
         {py::handle(arrays.average), py::handle(arrays.master), py::handle(arrays.slow),
          py::handle(arrays.copy), py::handle(arrays.sum)}) {
      Py_VISIT(array.ptr());
    }
    if (const int stop = visit_all(arrays.state)) return stop;
  }
  for (const Numbers& numbers : numbers_) {
    if (const int stop = numbers.traverse(visit, arg)) return stop;
  }
  if (const int stop = own_numbers_.traverse(visit, arg)) return stop;
  return visit_all(known_groups_);
}

// Breaks a cycle of references: through the schedules among the settings, or a subclass of ndarray.
void Engine::clear() {
  groups_.release().dec_ref();
}

}  // namespace onepass::bindings
