#include "plan.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "gil.hpp"
#include "onepass/random.hpp"
#include "threads.hpp"

namespace onepass::bindings {
namespace {

const KernelTable* kernels_in_use = nullptr;  // set once, at import

// After the rules' rows come the one that adds gradients up, and the benchmarks' ruler.
const RuleRow& find_rule(std::size_t index) {
  static const Variant add{{kernels_in_use->add_f32}, nullptr, kernels_in_use->add_f64, {}};
  static const RuleRow add_row{"add", {}, {}, {}, {}, {}, {}, {}, {&add, 1}, nullptr};
  const auto rules = kernels_in_use->rules;
  if (index < rules.size()) return *rules[index];
  if (index == rules.size()) return add_row;
  if (index == rules.size() + 1) return *kernels_in_use->copy_limit;
  throw py::index_error("rule: no such row");
}

const Variant& find_variant(const RuleRow& rule, std::size_t options) {
  if (options >= rule.variants.size()) throw py::index_error("options: no such variant");
  return rule.variants[options];
}

Stored stored(const py::array& array, Format format) {
  const Codec& codec = kernels_in_use->codecs[format];
  return {const_cast<void*>(array.data()), nullptr, format == plain ? nullptr : &codec};
}

py::list copied(py::handle list) {
  return py::reinterpret_steal<py::list>(PySequence_List(list.ptr()));
}

// PyTorch's, and in double.
double clip_coefficient(double norm, double max_norm) noexcept {
  if (std::isinf(max_norm)) return 1;
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1 ? 1 : coefficient;  // a NaN stays one
}

// One run at a time: a second one would find the first one's tensors replaced.
class OneAtATime {
 public:
  explicit OneAtATime(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true)) {
      throw py::value_error("step: expected one thread at a time, got a second one");
    }
  }
  OneAtATime(const OneAtATime&) = delete;
  OneAtATime& operator=(const OneAtATime&) = delete;
  ~OneAtATime() { busy_ = false; }

 private:
  std::atomic<bool>& busy_;
};

}  // namespace

Given::Given(const py::tuple& fields)
    : names(fields[0]),
      params(copied(fields[1])),
      grads(copied(fields[2])),
      states(copied(fields[3])),
      jobs(fields[4]),
      gradients(fields[5].cast<GradientUse>()),
      counters(fields[6].cast<std::optional<Counters>>()),
      gathered(fields[7].cast<std::optional<Counters>>()) {}

Plan::Plan(Given given) : given_(std::move(given)) {
  for (const auto& counters : {given_.counters, given_.gathered}) {
    if (counters && static_cast<std::size_t>(counters->size()) != given_.params.size() + 2) {
      throw py::value_error("counters: expected one per parameter and two for the optimizer");
    }
  }
  tensors_.reserve(given_.params.size());
  choices_.resize(given_.params.size());
  Memory memory;
  memory.reserve(given_.params.size() * (4 + max_states));
  seen_.reserve(given_.params.size() * (2 + max_states));
  for (py::handle item : given_.jobs) {
    const auto fields = py::reinterpret_borrow<py::tuple>(item);
    const RuleRow& rule = find_rule(fields[0].cast<std::size_t>());
    const Variant& variant = find_variant(rule, fields[1].cast<std::size_t>());
    Job& job = jobs_.emplace_back(Job{&rule, &variant, fields[3].cast<bool>()});
    for (py::handle member : py::reinterpret_borrow<py::sequence>(fields[2])) {
      const auto index = member.cast<std::size_t>();
      add(job, index, memory);
    }
  }
  memory.check_overlap();
  // In the parameters' order, whatever steps they have done: the order of the norm's sum.
  const auto before = [](const Tensor& a, const Tensor& b) {
    return a.streams.tensor < b.streams.tensor;
  };
  if (!std::is_sorted(tensors_.begin(), tensors_.end(), before)) {
    std::sort(tensors_.begin(), tensors_.end(), before);
  }
  sums_.resize(norm_blocks(tensors_));
}

// Notes the arrays of one parameter. Called before its first check, because a check may run Python
// code that changes them.
void Plan::watch(std::size_t index) {
  const auto add = [&](py::handle array) {
    if (py::isinstance<py::array>(array)) {
      seen_.emplace_back(py::reinterpret_borrow<py::array>(array));
    }
  };
  add(given_.params[index]);
  add(given_.grads[index]);
  for (py::handle array : py::reinterpret_borrow<py::tuple>(given_.states[index])) add(array);
}

void Plan::add(Job& job, std::size_t index, Memory& memory) {
  watch(index);
  const Label label(given_.names, index, Role::param);
  const Param p = check_param(given_.params[index], label);
  memory.add(p.array, label);
  const bool repeated = given_.gradients != GradientUse::any;
  const bool zeroed = given_.gradients == GradientUse::zeroed;
  const Label grad_label(given_.names, index, zeroed ? Role::zeroed_grad : Role::grad);
  const py::object given_grad = given_.grads[index];
  Streams streams;
  const Checked grad = repeated ? check_grad_in_place(given_grad, grad_label, p, memory)
                                : check_grad(given_grad, grad_label, p, memory);
  streams.param = stored(p.array, p.format);
  streams.grad = stored(grad.array, grad.format);
  streams.zero_grad = zeroed;
  streams.tensor = index;
  const StateFormat format = add_state(job, index, p, streams, memory);
  if (!grad.array.is(given_grad)) seen_.emplace_back(grad.array);
  const bool is_float = p.dtype == Dtype::f32;
  const auto& kernels = *kernels_in_use;
  choices_[index] = {&job, format};
  tensors_.push_back({streams, p.size, p.item_size, nullptr,
                      is_float ? kernels.squares_f32 : kernels.squares_f64, job.scalars.data()});
}

// The rule's arrays, and what else belongs to a parameter. Returns how the rule's are kept.
StateFormat Plan::add_state(Job& job, std::size_t index, const Param& param, Streams& streams,
                            Memory& memory) {
  const auto given = py::reinterpret_borrow<py::tuple>(given_.states[index]);
  const auto find = [&](std::size_t k) {
    return k < given.size() ? py::object(given[k]) : py::none();
  };
  const std::size_t n_states = job.rule->states.size();
  std::optional<StateFormat> format;
  for (std::size_t k = 0; k < n_states; ++k) {
    const Label label(given_.names, index, Role::state, job.rule->states[k]);
    if (job.variant->uses_state[k]) {
      const CheckedState state = check_rule_state(find(k), label, param, memory);
      if (format && *format != state.format) {
        fail_type(label, "all state of a parameter in one format",
                  dtype_name(py::reinterpret_borrow<py::array>(find(k))));
      }
      format = state.format;
      streams.state[k] = {state.data, state.scales};
    } else if (given_.names.is_none() &&
               !find(k).is_none()) {  // an optimizer may keep what it had used
      fail_value(label, "None (these options do not use it)", Py_TYPE(find(k).ptr())->tp_name);
    }
  }
  bool rounds = format.value_or(plain_state) != plain_state;
  const py::object average = find(n_states), master = find(n_states + 1), copy = find(n_states + 2);
  if (!average.is_none()) {
    const Label label(given_.names, index, Role::state, "average");
    streams.average = check_average(average, label, param, memory);
  }
  if (!copy.is_none()) {
    const Label label(given_.names, index, Role::copy);
    const Checked checked = check_copy(copy, label, param, memory);
    streams.copy = stored(checked.array, checked.format);
  }
  if (!master.is_none()) {
    const Label label(given_.names, index, Role::state, "master");
    streams.copy = streams.param;
    streams.param = {check_state(master, label, param, memory)};
    streams.follows = true;
  } else if (param.format != plain) {
    rounds = true;
    if (job.stochastic) {
      streams.param = stored(param.array, param.format == bf16 ? bf16_random : f16_random);
    }
  }
  if (rounds && !job.bits) job.bits = std::make_unique<StepBits>();
  if (rounds) streams.random = job.bits.get();
  return format.value_or(plain_state);
}

void Plan::set_scalars(const py::list& scalars, double factor) {
  if (scalars.size() != jobs_.size()) throw py::value_error("scalars: expected some for each job");
  for (std::size_t j = 0; j < jobs_.size(); ++j) {
    Job& job = jobs_[j];
    const auto given = py::cast<py::tuple>(scalars[j]);
    const std::size_t expected = shared_scalars + job.rule->scalars.size();
    if (given.size() != expected) {
      throw py::value_error("scalars: expected " + std::to_string(expected) + ", got " +
                            std::to_string(given.size()));
    }
    for (std::size_t i = 0; i < expected; ++i) {
      // Python's own call: pybind11's would take longer than the step of a small tensor.
      const double value =
          PyFloat_AsDouble(PyTuple_GET_ITEM(given.ptr(), static_cast<py::ssize_t>(i)));
      if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
      job.scalars[i] = value;
    }
    job.scalars[SharedScalar::grad_scale] *= factor;
    if (job.bits) {
      draw(*job.bits, static_cast<std::uint64_t>(job.scalars[SharedScalar::random_seed]),
           static_cast<std::uint64_t>(job.scalars[SharedScalar::step_number]));
    }
  }
  for (Tensor& tensor : tensors_) {
    const auto& [job, format] = choices_[tensor.streams.tensor];
    const bool decays =
        job->scalars[SharedScalar::weight_decay] != 0 || job->scalars[SharedScalar::shrink] != 1;
    tensor.kernel = find_kernel(*job->variant, tensor.item_size == sizeof(double), format, decays);
  }
}

template <class Work>
void Plan::without_gil(const Work& work) {
  std::optional<WithoutGil> release;
  if (total_elements(tensors_) >= min_elements_without_gil) release.emplace();
  work();
}

// The norm of the gradients, or an error where one of them is not finite and that is one.
Norm Plan::measure(int num_threads, Nonfinite nonfinite) {
  Norm found{};
  without_gil([&]() noexcept { found = norm(tensors_, sums_, num_threads); });
  if (found.nonfinite && nonfinite == Nonfinite::raise) {
    fail_value(Label(given_.names, found.nonfinite->streams.tensor, Role::grad), "finite values",
               "an infinity or NaN");
  }
  return found;
}

// Plans the step anew if an array has changed since it was planned. It tries this once: if planning
// itself runs code that changes an array again, it raises.
void Plan::check_unchanged() {
  const auto still = [](const Unchanged& array) { return array.still(); };
  if (std::all_of(seen_.begin(), seen_.end(), still)) return;
  Plan checked(given_);
  if (!std::all_of(checked.seen_.begin(), checked.seen_.end(), still)) {
    throw py::value_error(
        "step: expected arrays that do not change during the call, got one that did");
  }
  checked.busy_.swap(busy_);
  *this = std::move(checked);
}

py::tuple Plan::run(const py::list& scalars, int num_threads, double grad_scale,
                    std::optional<double> max_norm, Nonfinite nonfinite, const Updates& commit) {
  const OneAtATime guard(*busy_);
  check_unchanged();
  py::object norm_found = py::none();
  double coefficient = 1;
  bool skipped = false;
  if (max_norm || nonfinite != Nonfinite::propagate) {
    const Norm found = measure(num_threads, nonfinite);
    const double norm = found.value / grad_scale;
    norm_found = py::float_(norm);
    skipped = found.nonfinite && nonfinite == Nonfinite::skip;
    if (max_norm && !skipped) coefficient = clip_coefficient(norm, *max_norm);
  }
  set_scalars(scalars, coefficient / grad_scale);
  const py::tuple result = py::make_tuple(norm_found, coefficient, skipped);
  std::int64_t* counts = given_.counters ? given_.counters->mutable_data() : nullptr;
  std::int64_t* gathered = given_.gathered ? given_.gathered->mutable_data() : nullptr;
  // From here on nothing throws: the arrays and the counters move together or not at all.
  without_gil([&]() noexcept {
    if (skipped) {
      zero_gradients(tensors_, num_threads);
    } else {
      step(tensors_, num_threads);
    }
  });
  if (!skipped) commit.apply();
  const std::size_t n = given_.params.size();
  if (counts) {
    if (!skipped) {
      for (const Tensor& tensor : tensors_) ++counts[tensor.streams.tensor];
    }
    ++counts[n + skipped];
  }
  if (gathered) std::fill_n(gathered, n + 2, 0);
  return result;
}

void bind_plan(py::module_& m, const KernelTable& kernels) {
  kernels_in_use = &kernels;
  py::enum_<Nonfinite>(m, "Nonfinite", "What to do where a gradient has an infinity or a NaN.")
      .value("propagate", Nonfinite::propagate)
      .value("skip", Nonfinite::skip)
      .value("raise_", Nonfinite::raise);
  py::enum_<GradientUse>(m, "Gradients", "Whether they must lie as their parameters do, and why.")
      .value("any", GradientUse::any)
      .value("bound", GradientUse::bound)
      .value("zeroed", GradientUse::zeroed);
  py::class_<Plan>(m, "Plan", "A step, checked. Running it cannot fail half way.")
      .def(py::init([](const py::tuple& given) { return Plan(Given(given)); }), py::arg("given"),
           py::call_guard<InCall>())
      .def(
          "run",
          [](Plan& plan, const py::list& scalars, py::handle num_threads, double grad_scale,
             std::optional<double> max_norm, Nonfinite nonfinite, py::handle commit) {
            return plan.run(scalars, resolve_num_threads(num_threads.ptr()), grad_scale, max_norm,
                            nonfinite, Updates(commit));
          },
          py::arg("scalars"), py::arg("num_threads"), py::arg("grad_scale") = 1.0,
          py::arg("max_norm") = py::none(), py::arg("nonfinite") = Nonfinite::propagate,
          py::arg("commit") = py::none(), py::call_guard<InCall>(),
          "Update parameters, state, averages and counters in place, or skip it all.");
  m.def(
      "run",
      [](const py::tuple& given, const py::list& scalars, py::handle num_threads, double grad_scale,
         std::optional<double> max_norm, Nonfinite nonfinite, py::handle commit) {
        return Plan(Given(given))
            .run(scalars, resolve_num_threads(num_threads.ptr()), grad_scale, max_norm, nonfinite,
                 Updates(commit));
      },
      py::arg("given"), py::arg("scalars"), py::arg("num_threads"), py::arg("grad_scale") = 1.0,
      py::arg("max_norm") = py::none(), py::arg("nonfinite") = Nonfinite::propagate,
      py::arg("commit") = py::none(), py::call_guard<InCall>(), "Plan a step and run it.");
}

}  // namespace onepass::bindings
