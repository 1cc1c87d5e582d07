// The one meeting point of the kernels and Python: checks everything, then steps without a way to
// fail.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "batchnorm_bindings.hpp"
#include "dispatch.hpp"
#include "gil.hpp"
#include "parallel.hpp"
#include "step.hpp"

namespace onepass::bindings {
namespace {

const Isa* isa_in_use = nullptr;  // set once, at import

const RuleRow& find_rule(std::size_t index) {
  const KernelTable& kernels = *isa_in_use->kernels;
  if (index > kernels.rules.size()) throw py::index_error("rule: no such row");
  return index == kernels.rules.size() ? kernels.copy_limit : kernels.rules[index];
}

// Tensors that share a rule, its options and its scalars.
struct Job {
  const RuleRow& rule;
  const Variant& variant;
  py::tuple scalars;
  py::sequence members;

  explicit Job(const py::tuple& job)
      : rule(find_rule(job[0].cast<std::size_t>())),
        variant(find_variant(rule, job[1].cast<std::size_t>())),
        scalars(job[2]),
        members(job[3]) {
    if (scalars.size() != shared_scalars + rule.scalars.size()) {
      throw py::value_error("scalars: expected " +
                            std::to_string(shared_scalars + rule.scalars.size()) + ", got " +
                            std::to_string(scalars.size()));
    }
  }

  static const Variant& find_variant(const RuleRow& rule, std::size_t options) {
    if (options >= rule.variants.size()) throw py::index_error("options: no such variant");
    return rule.variants[options];
  }
};

// All that a step needs, checked. Building it may throw; using it cannot.
class Plan {
 public:
  Plan(py::handle names, const py::list& params, const py::list& grads, const py::list& states,
       const py::list& jobs) {
    tensors_.reserve(params.size());
    members_.reserve(params.size());
    memory_.reserve(params.size() * (2 + max_states));
    scalars_.reserve(jobs.size());  // the tensors point into it
    for (py::handle item : jobs) {
      const Job job(py::reinterpret_borrow<py::tuple>(item));
      auto& scalars = scalars_.emplace_back();
      for (std::size_t i = 0; i < job.scalars.size(); ++i)
        scalars[i] = job.scalars[i].cast<double>();
      for (py::handle member : job.members) {
        const auto index = member.cast<std::size_t>();
        if (py::handle grad = grads[index]; names.is_none() || !grad.is_none()) {
          add(job, names, index, params[index], grad, states[index]);
          tensors_.back().scalars = scalars.data();
          members_.push_back(index);
        }
      }
    }
    memory_.check_overlap();
  }

  std::span<Tensor> tensors() { return tensors_; }
  std::span<const std::size_t> members() const { return members_; }

 private:
  void add(const Job& job, py::handle names, std::size_t index, py::handle param, py::handle grad,
           py::handle states) {
    const Label label(names, index, Role::param);
    const Param p = check_param(param, label);
    memory_.add(p.array, label);
    Tensor tensor{p.data, nullptr, {}, p.size, p.item_size, nullptr, nullptr};
    tensor.kernel = p.dtype == Dtype::f32 ? job.variant.f32 : job.variant.f64;
    tensor.grad = check_grad(grad, Label(names, index, Role::grad), p, memory_, copies_);
    const auto given = py::reinterpret_borrow<py::tuple>(states);
    for (std::size_t k = 0; k < job.rule.states.size(); ++k) {
      const Label state(names, index, Role::state, job.rule.states[k]);
      const py::object array = k < given.size() ? py::object(given[k]) : py::none();
      if (job.variant.uses_state[k]) {
        tensor.state[k] = check_state(array, state, p, memory_);
      } else if (names.is_none() && !array.is_none()) {  // an optimizer may keep what it had used
        throw py::value_error(state.str() + ": expected None (these options do not use it), got " +
                              Py_TYPE(array.ptr())->tp_name);
      }
    }
    tensors_.push_back(tensor);
  }

  std::vector<Tensor> tensors_;
  std::vector<std::size_t> members_;
  std::vector<std::array<double, max_scalars>> scalars_;  // per job
  std::vector<py::object> copies_;
  Memory memory_;
};

void run(py::handle names, const py::list& params, const py::list& grads, const py::list& states,
         const py::list& jobs, std::optional<py::array_t<std::int64_t>> counters, int num_threads) {
  Plan plan(names, params, grads, states, jobs);
  std::int64_t* counts = counters ? counters->mutable_data() : nullptr;
  const std::size_t n_counts = counters ? static_cast<std::size_t>(counters->size()) : 0;
  if (counters && n_counts != params.size() + 1) {
    throw py::value_error("counters: expected one per parameter and one for the optimizer");
  }
  // From here on nothing throws: the arrays and the counters move together or not at all.
  {
    std::optional<WithoutGil> release;
    if (total_elements(plan.tensors()) >= min_elements_without_gil) release.emplace();
    step(plan.tensors(), num_threads);
  }
  if (counts) {
    for (const std::size_t member : plan.members()) ++counts[member];
    ++counts[n_counts - 1];
  }
}

void check_params(py::handle names, const py::list& params) {
  Memory memory;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const Label label(names, i, Role::param);
    memory.add(check_param(params[i], label).array, label);
  }
  memory.check_overlap();
}

// Other values in the parameters while a `with` block runs. Native, so that no interrupt can come
// between a block's end and the restoration, which is a plain copy and cannot fail.
class Shown {
 public:
  Shown(py::handle names, const py::list& params, const py::list& values) {
    for (std::size_t i = 0; i < params.size(); ++i) {
      const Label label(names, i, Role::param);
      const Param param = check_param(params[i], label);
      const Param value = check_param(values[i], label);
      if (param.size != value.size || param.dtype != value.dtype || param.order != value.order) {
        throw py::value_error(label.str() + ": expected values like the parameter's");
      }
      const auto* first = static_cast<const char*>(param.data);
      saved_.emplace_back(first, first + param.size * param.item_size);
      items_.push_back({param, value});
    }
  }
  void enter() {
    for (const auto& [param, value] : items_) {
      std::memcpy(param.data, value.data, param.size * param.item_size);
    }
    active_ = true;
  }
  void exit() {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      std::memcpy(items_[i].first.data, saved_[i].data(), saved_[i].size());
    }
    active_ = false;
  }
  bool active() const { return active_; }

 private:
  std::vector<std::pair<Param, Param>> items_;
  std::vector<std::vector<char>> saved_;
  bool active_ = false;
};

py::list to_list(std::span<const char* const> names) {
  py::list list;
  for (const char* name : names) list.append(name);
  return list;
}

py::dict rules() {
  py::dict rules;
  for (const RuleRow& row : isa_in_use->kernels->rules) {
    py::list variants;  // per combination of options: which state it uses
    for (const Variant& variant : row.variants) {
      py::list used;
      for (std::size_t k = 0; k < row.states.size(); ++k) used.append(variant.uses_state[k]);
      variants.append(py::tuple(used));
    }
    py::dict rule;
    rule["states"] = to_list(row.states);
    rule["scalars"] = to_list(row.scalars);
    rule["options"] = to_list(row.options);
    rule["uses_state"] = variants;
    rules[row.name] = rule;
  }
  return rules;
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  isa_in_use = &choose_isa(std::getenv("ONEPASS_ISA"));

  m.doc() = "The compiled kernels of onepass.";
  m.def("run", &run, py::arg("names").none(true), py::arg("params"), py::arg("grads"),
        py::arg("states"), py::arg("jobs"), py::arg("counters").none(true), py::arg("num_threads"),
        "Check every array of a step, then update parameters, state and counters in place.");
  m.def("check_params", &check_params, py::arg("names"), py::arg("params"),
        "Raise what a step with these parameters would raise.");
  py::class_<Shown>(m, "Shown", "Other values in the parameters while a with block runs.")
      .def(py::init<py::handle, const py::list&, const py::list&>(), py::arg("names"),
           py::arg("params"), py::arg("values"))
      .def_property_readonly("active", &Shown::active)
      .def("__enter__", &Shown::enter)
      .def("__exit__", [](Shown& shown, const py::args&) { shown.exit(); });
  m.def("rules", &rules, "The rows of rules.def: states, scalars and options of each rule.");
  m.def("in_forked_child", &in_forked_child, "Whether steps run serial because of a fork.");

  bind_batch_norm(m, *isa_in_use->kernels);

  m.attr("max_threads") = max_threads;
  m.attr("isa") = isa_in_use->name;
  py::dict isas;
  for (const Isa& isa : compiled_isas()) isas[isa.name] = isa.supported;
  m.attr("isas") = isas;
  m.attr("compiler") = ONEPASS_COMPILER;
  m.attr("flags") = ONEPASS_FLAGS;
  m.attr("copy_limit") = isa_in_use->kernels->rules.size();
}

}  // namespace onepass::bindings
