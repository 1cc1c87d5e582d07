// The rules as free functions on arrays (onepass.kernels): a step of which the caller keeps the
// state and counts the steps.
#include "kernel_functions.hpp"

#include <algorithm>
#include <list>
#include <optional>
#include <string>

#include "engine.hpp"
#include "function.hpp"
#include "gil.hpp"
#include "rows.hpp"
#include "threads.hpp"

namespace onepass::bindings {
namespace {

// What a call takes besides the rule's settings, as numbers.
struct CallOptions {
  double step = none, averaged = none, grad_scale = 1, max_grad_norm = none, grad_norm = none,
         nonfinite = 0, clear_grads = 0, rounding = 0, seed = 0, skip_grad_norm = none;
};
constexpr const char* call_options[] = {"step",          "averaged",  "grad_scale",
                                        "max_grad_norm", "grad_norm", "nonfinite",
                                        "clear_grads",   "rounding",  "seed",
                                        "skip_grad_norm"};
static_assert(sizeof(CallOptions) == std::size(call_options) * sizeof(double));
enum CallRounding : int { call_stochastic, call_nearest };

// The arrays of one kind that a call is given: one for the one parameter, or a list of them.
class Kind {
 public:
  Kind(const char* name, PyObject* given, bool many) : name_(name), given_(given), many_(many) {
    if (!many_ || !PyList_CheckExact(given)) return;
    list_ =
        py::reinterpret_steal<py::object>(PyList_AsTuple(given));  // the list may change meanwhile
    if (!list_) throw py::error_already_set();
    given_ = list_.ptr();
  }
  PyObject* operator[](std::size_t i) const {
    if (!many_ || given_ == Py_None) return given_;
    return PyTuple_GET_ITEM(given_, static_cast<Py_ssize_t>(i));
  }
  Label label(std::size_t i, Role role) const {
    return Label(name_, role, many_ ? static_cast<std::ptrdiff_t>(i) : Label::alone);
  }
  std::size_t size() const {
    return many_ ? static_cast<std::size_t>(PyTuple_GET_SIZE(given_)) : 1;
  }
  void check(std::size_t n, bool may_be_none = true) const {
    if (!many_ || (given_ == Py_None && may_be_none)) return;
    const std::string expected = "a list of " + std::to_string(n) + ", as param has";
    const Label label(name_, Role::input);
    if (!PyTuple_CheckExact(given_)) fail_type(label, expected, Py_TYPE(given_)->tp_name);
    const auto size = static_cast<std::size_t>(PyTuple_GET_SIZE(given_));
    if (size != n) fail_value(label, expected, "one of " + std::to_string(size));
  }

 private:
  const char* name_;
  PyObject* given_;
  bool many_;
  py::object list_;
};

// An array is given where the settings ask for it, and nowhere else.
void check_wanted(const char* name, PyObject* given, bool wanted, const std::string& settings) {
  if ((given != Py_None) == wanted) return;
  fail_type(Label(name, Role::input), (wanted ? "an array for " : "None without ") + settings,
            wanted ? "None" : Py_TYPE(given)->tp_name);
}

[[gnu::noinline]] void keep_items(PyObject* const* lists, std::size_t n, Unchanging& kept) {
  for (std::size_t k = 0; k < n; ++k) {
    if (lists[k] == Py_None) continue;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(lists[k]); ++i) {
      kept.keep(PySequence_Fast_GET_ITEM(lists[k], i));
    }
  }
}

class Kernel final : public Body {
 public:
  // `fail(name)` raises what is wrong with a keyword that is not known.
  Kernel(const Fields& fields, const py::dict& defaults, const py::dict& options,
         const py::object& check_setting, py::object fail)
      : fields_(fields),
        rule_(*fields.rule()),
        options_(call_options, options, check_setting),
        defaults_(fields.settings(defaults)),
        default_group_(rule_),
        fail_(std::move(fail)) {
    Numbers().read(*as_settings(defaults_.ptr()), default_group_.settings.hyper.data());
  }

  PyObject* call(PyObject* const* args, Py_ssize_t n_positional, PyObject* keywords) override;

 private:
  // What is kept from call to call: to make it anew costs a small call cold cache lines.
  struct Scratch {
    Optimizer optimizer;
    py::object last_info;
    Together together;  // settings that were last seen to go together
    std::vector<Extent> extents;
    std::vector<double*> remembered;  // where the caller keeps the rule's memory
    std::vector<py::object> params;   // of a rule that is directed

    void add(const void* data, std::size_t bytes) {
      const auto begin = reinterpret_cast<std::uintptr_t>(data);
      if (bytes != 0) extents.push_back({begin, begin + bytes});
    }
    // Says no too where only gradients meet each other, which is allowed.
    [[gnu::noinline]] bool are_apart() {
      sort_by_begin(extents);
      return std::adjacent_find(extents.begin(), extents.end(),
                                [](const Extent& a, const Extent& b) { return b.begin < a.end; }) ==
             extents.end();
    }
  };
  // What the keywords of a call say.
  struct Given {
    Group& group;
    CallOptions options;
    PyObject *average = Py_None, *slow = Py_None, *rows = Py_None;
    int num_threads = 0;
  };
  // Rows of a parameter.
  struct RowsOfOne {
    std::size_t index;
    Param param;
    std::optional<GivenRows> given;
  };
  using RowsOfCall = std::list<RowsOfOne>;  // messages point to the names in it
  // State and memory, the arrays after the gradient.
  std::size_t most_kept() const { return rule_.states.size() + rule_.memory.size(); }
  // Whether the k-th argument is one array, however many parameters there are.
  bool is_for_all(std::size_t k) const {
    return rule_.sums_over_all && k >= 2 + rule_.states.size();
  }
  void read(PyObject* const* values, PyObject* keywords, Given& given) const;
  [[gnu::cold]] void check_together(const Group& group, PyObject* const* values, PyObject* keywords,
                                    Together& before) const;
  void check_step(const Given& given, const Optimizer& optimizer) const;
  bool lay_out_usual(const Given& given, PyObject* const* args, std::size_t n_kept,
                     Scratch& scratch, Unchanging& arrays) const;
  bool lay_out_usual(const Variant& variant, PyObject* const* arrays, std::size_t index,
                     Scratch& scratch) const;
  [[gnu::cold]] void lay_out(const Given& given, PyObject* const* args, std::size_t n_kept,
                             Scratch& scratch, Unchanging& arrays, RowsOfCall& rows) const;

  const Fields& fields_;
  const RuleRow& rule_;
  Fields options_;
  py::object defaults_;
  Group default_group_;
  py::object fail_;
  Scratch scratch_;
  std::atomic<bool> is_taken_ = false;  // by a call of another thread
};

void Kernel::read(PyObject* const* values, PyObject* keywords, Given& given) const {
  static PyObject* const average = PyUnicode_InternFromString("average");
  static PyObject* const slow = PyUnicode_InternFromString("slow");
  static PyObject* const rows = PyUnicode_InternFromString("rows");
  static PyObject* const num_threads = PyUnicode_InternFromString("num_threads");
  PyObject* threads = Py_None;
  const Py_ssize_t n = keywords ? PyTuple_GET_SIZE(keywords) : 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject *const name = PyTuple_GET_ITEM(keywords, i), *const value = values[i];
    if (const Field* field = fields_.find(name)) {
      if (PyCallable_Check(value)) {
        throw py::type_error(py::str(name).cast<std::string>() +
                             ": expected a value (evaluate the schedule), got " +
                             py::repr(value).cast<std::string>());
      }
      field->read(value, given.group.settings.hyper.data());
    } else if (const Field* option = options_.find(name)) {
      option->read(value, &given.options.step);
    } else if (is_name(average, name)) {
      given.average = value;
    } else if (is_name(slow, name)) {
      given.slow = value;
    } else if (is_name(rows, name)) {
      given.rows = value;
    } else if (is_name(num_threads, name)) {
      threads = value;
    } else {
      fail_(py::handle(name));
    }
  }
  given.num_threads = resolve_num_threads(threads);
}

void Kernel::check_together(const Group& group, PyObject* const* values, PyObject* keywords,
                            Together& before) const {
  py::dict settings;
  PyDict_Update(settings.ptr(), defaults_.ptr());
  const Py_ssize_t n = keywords ? PyTuple_GET_SIZE(keywords) : 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* const name = PyTuple_GET_ITEM(keywords, i);
    if (fields_.find(name)) settings[py::handle(name)] = fields_.checked(name, values[i]);
  }
  fields_.check_together(settings);
  before = fields_.together(group.settings.hyper.data());
}

// Where nothing depends on the number of the step, it may be left out.
void Kernel::check_step(const Given& given, const Optimizer& optimizer) const {
  if (!is_none(given.options.step)) return;
  double first[max_scalars], second[max_scalars];
  const double* hyper = given.group.settings.hyper.data();
  rule_.at(1, hyper, rule_.memory_start.data(), first);
  rule_.at(2, hyper, rule_.memory_start.data(), second);
  const bool rounds = std::any_of(optimizer.params.begin(), optimizer.params.end(),
                                  [](const Parameter& param) { return param.rounds; });
  if (rounds || given.average != Py_None || given.slow != Py_None ||
      !std::equal(first, first + rule_.scalars.size() + rule_.memory.size(), second)) {
    throw py::type_error("step: expected the number of this step, from 1, got none");
  }
}

// Arrays of the usual kind, looked at without Python code and without a list of what there is.
// Returns false where anything is unusual, or wrong.
bool Kernel::lay_out_usual(const Given& given, PyObject* const* args, std::size_t n_kept,
                           Scratch& scratch, Unchanging& arrays) const {
  if (given.average != Py_None || given.group.averages() || given.slow != Py_None ||
      given.group.looks_ahead() || given.rows != Py_None || given.options.clear_grads != 0 ||
      given.group.variant().direct_f64 || rule_.factored) {
    return false;
  }
  const bool many = is_list_or_tuple(args[0]);
  const std::size_t n = many ? static_cast<std::size_t>(PySequence_Fast_GET_SIZE(args[0])) : 1;
  for (std::size_t k = 1; many && k < n_kept + 2; ++k) {
    if (is_for_all(k)) continue;
    const bool fits = is_list_or_tuple(args[k]) &&
                      static_cast<std::size_t>(PySequence_Fast_GET_SIZE(args[k])) == n;
    if (!fits && (k < 2 || args[k] != Py_None)) return false;
  }
  scratch.extents.clear();
  scratch.remembered.clear();
  scratch.optimizer.params.resize(n);
  scratch.optimizer.tensors.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    PyObject* of_one[2 + max_states + max_memory];
    for (std::size_t k = 0; k < 2 + most_kept(); ++k) {
      PyObject* const kind = k < n_kept + 2 ? args[k] : Py_None;
      of_one[k] = many && kind != Py_None && !is_for_all(k)
                      ? PySequence_Fast_GET_ITEM(kind, static_cast<Py_ssize_t>(i))
                      : kind;
    }
    if (!lay_out_usual(given.group.variant(), of_one, i, scratch)) return false;
  }
  if (!scratch.are_apart()) return false;
  // While other threads run, they may take arrays out of the lists.
  const bool others_run = scratch.optimizer.elements() >= min_elements_without_gil;
  if (many && others_run) keep_items(args, n_kept + 2, arrays);
  return true;
}

// The same of one parameter.
bool Kernel::lay_out_usual(const Variant& variant, PyObject* const* arrays, std::size_t index,
                           Scratch& scratch) const {
  Like param;
  Format format = plain;
  if (!is_usual_param(arrays[0], param) || !is_plain_array(arrays[1]) ||
      !lies_like(arrays[1], param, format)) {
    return false;
  }
  Tensor& tensor = scratch.optimizer.tensors[index];
  start_layout(param, index, tensor, scratch.optimizer.params[index] = {});
  const std::size_t bytes = param.size * param.item_size;
  scratch.add(param.data, bytes);
  void* const grad = py::detail::array_proxy(arrays[1])->data;
  scratch.add(grad, param.size * item_size(format, param));
  tensor.streams.grad = stored(grad, format);
  for (std::size_t k = 0; k < rule_.states.size(); ++k) {
    PyObject* const state = arrays[k + 2];
    if (variant.uses_state[k] == (state == Py_None)) return false;
    if (state == Py_None) continue;
    if (!is_usual_state(state, param)) return false;
    void* const data = py::detail::array_proxy(state)->data;
    tensor.streams.state[k] = Stored(data);
    scratch.add(data, bytes);
  }
  for (std::size_t k = 0; k < rule_.memory.size() && !(rule_.sums_over_all && index > 0); ++k) {
    PyObject* const remembered = arrays[2 + rule_.states.size() + k];
    if (!is_usual_remembered(remembered)) return false;
    scratch.remembered.push_back(
        reinterpret_cast<double*>(py::detail::array_proxy(remembered)->data));
    scratch.add(scratch.remembered.back(), sizeof(double));
  }
  return true;
}

// Any number of parameters with any arrays, or an error.
void Kernel::lay_out(const Given& given, PyObject* const* args, std::size_t n_kept,
                     Scratch& scratch, Unchanging& arrays, RowsOfCall& rows_of_call) const {
  Optimizer& optimizer = scratch.optimizer;
  const bool many = is_list_or_tuple(args[0]);
  const Kind params("param", args[0], many), grads("grad", args[1], many),
      averages("average", given.average, many), slows("slow", given.slow, many),
      rows("rows", given.rows, many);
  const std::size_t n = params.size();
  std::vector<Kind> states, memories;
  for (std::size_t k = 0; k < most_kept(); ++k) {
    const std::size_t n_states = rule_.states.size();
    const char* const name = k < n_states ? rule_.states[k] : rule_.memory[k - n_states];
    (k < n_states ? states : memories)
        .emplace_back(name, k < n_kept ? args[k + 2] : Py_None, many && !is_for_all(k + 2));
  }
  grads.check(n, false);
  averages.check(n);
  slows.check(n);
  rows.check(n);
  for (const Kind& state : states) state.check(n);
  for (const Kind& each : memories) each.check(n, false);
  check_wanted("average", given.average, given.group.averages(), "ema_decay or swa_start");
  check_wanted("slow", given.slow, given.group.looks_ahead(), "lookahead_every");
  optimizer.params.assign(n, {});
  optimizer.tensors.assign(n, {});
  optimizer.axes.clear();
  scratch.remembered.clear();
  Memory memory;
  memory.reserve(n * (most_kept() + 3));
  for (std::size_t i = 0; i < n; ++i) {
    const Param param = check_param(params[i], params.label(i, Role::param));
    arrays.watch(params[i]);
    memory.add(param.array, params.label(i, Role::param));
    check_dimensions(given.group, param.array, params.label(i, Role::param));
    if (given.group.variant().direct_f64) scratch.params.push_back(param.array);
    if (rule_.full_weights && param.format != plain) {
      fail_type(params.label(i, Role::param), "float32 or float64 for this rule",
                dtype_name(param.array));
    }
    Tensor& tensor = optimizer.tensors[i];
    Parameter& known = optimizer.params[i];
    start_layout(param, i, tensor, known);
    note_axes(param, i, params.label(i, Role::param), optimizer);
    const bool stochastic = static_cast<int>(given.options.rounding) == call_stochastic;
    const bool by_rows = rows[i] != Py_None && grads[i] != Py_None;
    if (by_rows) {
      check_has_rows(param, params.label(i, Role::param));
      check_moves_rows(given.group, grads.label(i, Role::grad));
      check_keeps_gradients(given.options.clear_grads != 0);
      check_rounds_rows(param, stochastic, "'nearest'");
      RowsOfOne& of_one = rows_of_call.emplace_back();
      of_one.index = i;
      of_one.param = param;
      GivenRows::Names names{rows.label(i, Role::input).str(), grads.label(i, Role::grad).str()};
      of_one.given.emplace(rows[i], grads[i], std::move(names), param, memory);
    } else if (grads[i] != Py_None) {
      const bool zeroed = given.options.clear_grads != 0;
      const Label grad_label = grads.label(i, zeroed ? Role::zeroed_grad : Role::grad);
      const Checked grad = zeroed ? check_grad_in_place(grads[i], grad_label, param, memory)
                                  : check_grad(grads[i], grad_label, param, memory);
      arrays.watch(grad.array.ptr());
      tensor.streams.grad = stored(grad.array.data(), grad.format);
      tensor.streams.zero_grad = zeroed;
    } else if (!many) {
      check_grad(grads[i], grads.label(i, Role::grad), param, memory);
    }
    for (std::size_t k = 0; k < states.size(); ++k) {
      const Label label = states[k].label(i, Role::state);
      add_state(given.group, k, states[k][i], label, param, memory, tensor, known);
      arrays.watch(states[k][i]);
      if (by_rows && known.state_format != plain_state) {
        fail_type(label, "dtype float32 where rows move alone", "fewer bits");
      }
    }
    for (const Kind& each : memories) {
      if (rule_.sums_over_all && i > 0) break;
      scratch.remembered.push_back(check_remembered(each[i], each.label(i, Role::state), memory));
      arrays.watch(each[i]);
    }
    if (averages[i] != Py_None) {
      const Label average = averages.label(i, Role::state);
      tensor.streams.average_is_double = given.group.averages_in_double();
      tensor.streams.average =
          check_average(averages[i], tensor.streams.average_is_double, average, param, memory);
      arrays.watch(averages[i]);
    }
    if (slows[i] != Py_None) {
      tensor.streams.slow = check_state(slows[i], slows.label(i, Role::state), param, memory);
      arrays.watch(slows[i]);
    }
    finish_layout(param, stochastic, tensor, known);
  }
  memory.check_overlap();
}

PyObject* Kernel::call(PyObject* const* args, Py_ssize_t n_positional, PyObject* keywords) {
  if (n_positional < 2) return nullptr;
  const auto n_kept = static_cast<std::size_t>(n_positional - 2);
  if (n_kept > most_kept()) {
    throw py::type_error("state: expected at most " + std::to_string(most_kept()) +
                         " arrays, got " + std::to_string(n_kept));
  }
  const Taken is_first(is_taken_);
  std::optional<Scratch> own;
  Scratch& scratch = is_first ? scratch_ : own.emplace();
  const Cleared cleared(scratch.params);
  py::object info = new_step_info(scratch.last_info);
  Optimizer& optimizer = scratch.optimizer;
  if (optimizer.groups.empty()) optimizer.groups.push_back(default_group_);
  optimizer.groups[0].settings = default_group_.settings;
  Given given{optimizer.groups[0], {}};
  read(args + n_positional, keywords, given);
  if (!fields_.go_together_like(given.group.settings.hyper.data(), scratch.together)) {
    check_together(given.group, args + n_positional, keywords, scratch.together);
  }
  Unchanging arrays;
  RowsOfCall rows_of_call;
  if (!lay_out_usual(given, args, n_kept, scratch, arrays)) {
    lay_out(given, args, n_kept, scratch, arrays, rows_of_call);
  }
  check_step(given, optimizer);
  const bool has_step = !is_none(given.options.step);
  const std::int64_t completed = has_step ? static_cast<std::int64_t>(given.options.step) - 1 : 0;
  for (Parameter& known : optimizer.params) {
    known.steps = completed;
    if (!is_none(given.options.averaged)) {
      known.average_from = completed + 1 - static_cast<std::int64_t>(given.options.averaged);
    }
    if (given.group.averages()) [[unlikely]]
      known.entered = count_entering(given.group.settings, known.average_from, completed);
  }
  arrays.check();
  std::vector<Rows> rows(rows_of_call.empty() ? 0 : optimizer.tensors.size());
  for (const RowsOfOne& of_one : rows_of_call) {
    rows[of_one.index] = of_one.given->read(of_one.param, optimizer.tensors[of_one.index]);
  }
  optimizer.memory.clear();
  for (const double* number : scratch.remembered) optimizer.memory.push_back(*number);
  StepOptions options;
  options.grad_scale = given.options.grad_scale;
  options.max_grad_norm = given.options.max_grad_norm;
  options.grad_norm = given.options.grad_norm;
  options.skip_grad_norm = given.options.skip_grad_norm;
  options.nonfinite = static_cast<Nonfinite>(given.options.nonfinite);
  options.seed = static_cast<std::uint64_t>(given.options.seed);
  options.num_threads = given.num_threads;
  options.rows = rows;
  const bool many = is_list_or_tuple(args[0]);
  const auto grad_label = [=](std::size_t i) {
    return Label("grad", Role::grad, many ? static_cast<std::ptrdiff_t>(i) : Label::alone);
  };
  const auto direct = [&](Directions& directions) {
    directions.make([&](std::size_t i) { return scratch.params[i]; }, [&] { arrays.check(); },
                    options.num_threads);
  };
  run_step(optimizer, options, grad_label, direct, completed, info);
  for (std::size_t i = 0; i < optimizer.memory.size(); ++i) {
    *scratch.remembered[i] = optimizer.memory[i];
  }
  scratch.last_info = info;
  return info.release().ptr();
}

// The norm of a gradient that lies in one piece, as a step measures it, and whether it is finite.
// `like`: an array of the parameter's dtype.
py::tuple grad_norm(const py::array& grad, py::handle like, py::handle num_threads) {
  const Param param = check_param(like, Label("param", Role::param));
  const Format format = check_grad_format(grad, Label("grads", Role::input), param);
  const int threads = resolve_num_threads(num_threads.ptr());
  Tensor tensor;
  Parameter known;
  start_layout(param, 0, tensor, known);
  tensor.size = static_cast<std::size_t>(grad.size());
  tensor.streams.grad = stored(const_cast<void*>(grad.data()), format);
  const std::span<Tensor> tensors(&tensor, 1);
  std::vector<double> sums(total_blocks(tensors));
  Norm found{};
  without_gil(tensor.size, [&]() noexcept { found = norm(tensors, sums, threads); });
  return py::make_tuple(found.value, found.nonfinite == nullptr);
}

}  // namespace

void bind_kernel_functions(py::module_& m) {
  m.def("grad_norm", &grad_norm, py::arg("grad"), py::arg("like"),
        py::arg("num_threads") = py::none(), py::call_guard<InCall>(),
        "Return the norm of a gradient in one piece, and whether it is finite.");
  m.def(
      "make_kernel",
      [](const py::function& declaration, const Fields& fields, const py::dict& defaults,
         const py::dict& options, const py::object& check_setting, py::object fail) {
        return make_function(declaration, std::make_unique<Kernel>(fields, defaults, options,
                                                                   check_setting, std::move(fail)));
      },
      py::kw_only(), py::arg("declaration"), py::arg("fields"), py::arg("defaults"),
      py::arg("options"), py::arg("check_setting"), py::arg("fail"),
      "Return a rule as a function of arrays.");
}

}  // namespace onepass::bindings
