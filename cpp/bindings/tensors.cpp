#include "tensors.hpp"

#include <algorithm>
#include <optional>
#include <string>

#include "engine.hpp"
#include "gil.hpp"

namespace onepass::bindings {
namespace {

PyTypeObject* step_info = nullptr;  // set once, at import

// In Python's words; None where the step was taken. Never destroyed.
[[gnu::cold]] PyObject* reason_in_words(SkipReason reason) {
  static PyObject* const nonfinite = PyUnicode_InternFromString("nonfinite");
  static PyObject* const grad_norm = PyUnicode_InternFromString("grad_norm");
  return reason == SkipReason::nonfinite ? nonfinite : grad_norm;
}
constexpr Py_ssize_t info_size = 8, place_of_stats = 7;

}  // namespace

void start_layout(const Like& param, std::size_t index, Tensor& tensor, Parameter& known) {
  const auto& kernels = *kernels_in_use;
  known.size = param.size;
  known.is_double = param.dtype == Dtype::f64;
  known.state_format = plain_state;
  known.rounds = false;
  tensor = Tensor{};
  tensor.item_size = param.item_size;
  tensor.squares = known.is_double ? kernels.squares_f64 : kernels.squares_f32;
  tensor.streams.param = stored(param.data, param.format);
  tensor.streams.tensor = static_cast<std::uint32_t>(index);
}

void note_axes(const Like& param, std::size_t index, const Label& label, Optimizer& optimizer) {
  Parameter& known = optimizer.params[index];
  const RuleRow& rule = *optimizer.groups[known.group].rule;
  if (!rule.factored) return;
  optimizer.axes.resize(optimizer.params.size());
  optimizer.axes[index] = {sizes_of(param.object), param.order == Order::f, {}};
  if (param.order == Order::other) {
    if (std::ranges::find(rule.shape, Shape::rows) != rule.shape.end()) {
      fail_value(label,
                 std::string("C or F order for ") + rule.name +
                     ", which keeps numbers of rows and columns",
                 "strides " + strides_name(py::reinterpret_borrow<py::array>(param.object)));
    }
    optimizer.axes[index].order = axes_in_memory(param.object);
  }
  known.is_factored = optimizer.axes[index].sizes.size() > 1;
}

void add_state(const Group& group, std::size_t k, py::handle array, const Label& label,
               const Param& param, Memory& memory, Tensor& tensor, Parameter& known) {
  if (!group.variant(known.is_factored).uses_state[k]) {
    if (array.is_none()) return;
    fail_value(label, "None (these options do not use it)", Py_TYPE(array.ptr())->tp_name);
  }
  const Shape shape = known.is_factored ? group.rule->shape[k] : Shape::param;
  if (shape != Shape::param) {
    tensor.streams.state[k] = Stored(check_shaped_state(array, label, param, shape, memory));
    return;
  }
  const auto& in_full = group.rule->in_full;
  if (in_full[k]) {
    tensor.streams.state[k] = Stored(check_state(array, label, param, memory));
    return;
  }
  const CheckedState state = check_rule_state(array, label, param, memory);
  bool is_first = true;
  for (std::size_t other = 0; other < in_full.size(); ++other) {
    is_first = is_first && (in_full[other] || !tensor.streams.state[other].data);
  }
  if (!is_first && state.format != known.state_format) {
    fail_type(label, "all state of a parameter in one format",
              dtype_name(py::reinterpret_borrow<py::array>(array)));
  }
  const bool has_scales = state.scales != nullptr;
  tensor.streams.state[k] = has_scales ? Stored(state.data, state.scales) : Stored(state.data);
  known.state_format = state.format;
  known.rounds = state.format != plain_state;
}

void finish_layout(const Like& param, bool stochastic, Tensor& tensor, Parameter& known) {
  const bool has_master = tensor.streams.follows;
  if (param.format == plain || has_master) return;
  known.rounds = true;
  if (!stochastic) return;
  tensor.streams.param = stored(param.data, param.format == bf16 ? bf16_random : f16_random);
}

void check_dimensions(const Group& group, const py::array& param, const Label& label) {
  if (!group.variant().direct_f64 || param.ndim() >= 2) return;
  const std::string option = group.rule->options[0];
  fail_value(label,
             "at least 2 dimensions with " + option +
                 "=True (others, by overrides or in a group, have " + option + "=False)",
             "shape " + shape_name(param));
}

Directions::~Directions() {
  if (arrays_.empty()) return;
  for (Tensor& tensor : optimizer_.tensors) tensor.streams.state[direction_place] = {};
}

void Directions::make(const std::function<py::object(std::size_t)>& param,
                      const std::function<void()>& check, int num_threads) {
  std::vector<std::size_t> owners;
  std::vector<Unchanged> seen;
  for (std::size_t i = 0; i < optimizer_.tensors.size(); ++i) {
    if (!optimizer_.is_directed(i)) continue;
    py::array& array = arrays_.emplace_back(callbacks->new_sum(param(i), py::none()));
    optimizer_.tensors[i].streams.state[direction_place] = {array.mutable_data()};
    owners.push_back(i);
    seen.emplace_back(array);
  }
  check();
  std::vector<double> norms;
  without_gil(optimizer_.elements(), [&] { norms = optimizer_.direct(num_threads); });
  py::list given;
  for (std::size_t n = 0; n < owners.size(); ++n) {
    const Group& group = optimizer_.groups[optimizer_.params[owners[n]].group];
    py::dict hyper;
    for (std::size_t k = 0; k < group.rule->hyper.size(); ++k) {
      hyper[group.rule->hyper[k]] = group.settings.hyper[k];
    }
    given.append(py::make_tuple(arrays_[n], norms[n], hyper));
  }
  callbacks->direct(optimizer_.groups[0].rule->name, given);
  if (!std::ranges::all_of(seen, &Unchanged::still)) fail_changed();
  check();
}

py::object new_step_info(py::object& last) {
  if (last && Py_REFCNT(last.ptr()) == 1) return std::move(last);
  auto info = py::reinterpret_steal<py::object>(step_info->tp_alloc(step_info, info_size));
  if (!info) throw py::error_already_set();
  for (Py_ssize_t i = 0; i < info_size; ++i) PyTuple_SET_ITEM(info.ptr(), i, Py_NewRef(Py_None));
  return info;
}

// Where an object of the last step still serves, it stays: a new one costs cold cache lines.
void fill_step_info(const py::object& info, std::int64_t step, double lr, const Ready& ready) {
  const auto set = [&](Py_ssize_t i, PyObject* value) {
    if (!value) throw py::error_already_set();
    PyObject* const before = PyTuple_GET_ITEM(info.ptr(), i);
    PyTuple_SET_ITEM(info.ptr(), i, value);
    Py_DECREF(before);
  };
  const auto set_number = [&](Py_ssize_t i, double number) {
    PyObject* const before = PyTuple_GET_ITEM(info.ptr(), i);
    const bool same = PyFloat_CheckExact(before) && PyFloat_AS_DOUBLE(before) == number;
    if (!same || number == 0) set(i, PyFloat_FromDouble(number));  // -0.0 equals 0.0
  };
  const auto set_constant = [&](Py_ssize_t i, PyObject* value) {
    if (PyTuple_GET_ITEM(info.ptr(), i) != value) set(i, Py_NewRef(value));
  };
  set(0, PyLong_FromLongLong(step));
  set_number(1, lr);
  ready.norm ? set_number(2, *ready.norm) : set_constant(2, Py_None);
  set_constant(3, ready.clipped ? Py_True : Py_False);
  set_constant(4, ready.skipped() ? Py_True : Py_False);
  ready.d ? set_number(5, *ready.d) : set_constant(5, Py_None);
  set_constant(6, ready.skipped() ? reason_in_words(ready.skip_reason) : Py_None);
}

void set_stats(const py::object& info, const py::object& stats, const Optimizer& optimizer,
               double grad_scale) noexcept {
  PyObject* const array = PyTuple_GET_ITEM(stats.ptr(), 1);
  optimizer.write_stats(grad_scale,
                        reinterpret_cast<TensorStats*>(py::detail::array_proxy(array)->data));
  PyObject* const before = PyTuple_GET_ITEM(info.ptr(), place_of_stats);
  PyTuple_SET_ITEM(info.ptr(), place_of_stats, Py_NewRef(PyTuple_GET_ITEM(stats.ptr(), 0)));
  Py_DECREF(before);
}

Ready prepare_step(Optimizer& optimizer, const StepOptions& options) {
  std::optional<Ready> ready;
  without_gil(optimizer.elements(options.rows), [&] { ready.emplace(optimizer.prepare(options)); });
  return *ready;
}

void run_without_gil(Ready& ready) noexcept {
  without_gil(ready.elements(), [&]() noexcept { ready.run(); });
}

void set_step_info(py::object type) {
  step_info = reinterpret_cast<PyTypeObject*>(type.release().ptr());
}

void fail_elsewhere() {
  throw py::value_error(
      "exchange: expected finite sums of squares, got an infinity or NaN from another process");
}

void fail_changed() {
  throw py::value_error(
      "step: expected arrays that do not change during the call, got one that did");
}

void Unchanging::check() const {
  const auto is_still = [](const Unchanged& array) { return array.still(); };
  if (!std::all_of(seen_.begin(), seen_.end(), is_still)) fail_changed();
}

}  // namespace onepass::bindings
