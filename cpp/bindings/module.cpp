// What Python sees of the kernels.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "batchnorm_bindings.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"
#include "plan.hpp"

namespace onepass::bindings {
namespace {

const Isa* isa_in_use = nullptr;  // set once, at import

void check_params(py::handle names, const py::list& params, const std::optional<py::list>& copies) {
  Memory memory;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const Label label(names, i, Role::param);
    const Param param = check_param(params[i], label);
    memory.add(param.array, label);
    if (copies && !py::object((*copies)[i]).is_none()) {
      check_copy((*copies)[i], Label(names, i, Role::copy), param, memory);
    }
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
      if (param.size != value.size || param.order != value.order || param.dtype != value.dtype ||
          param.format != value.format) {
        throw py::value_error(label.str() + ": expected values like the parameter's");
      }
      saved_.emplace_back(static_cast<std::size_t>(param.array.nbytes()));
      items_.push_back({param, value});
    }
  }
  // Once: what was saved and what is to be shown are those of one moment.
  void enter() {
    if (!open_)
      throw py::value_error("block: expected a new one, got one that was used or outdated");
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const auto& [param, value] = items_[i];
      std::memcpy(saved_[i].data(), param.data, saved_[i].size());
      std::memcpy(param.data, value.data, saved_[i].size());
    }
    active_ = true;
    open_ = false;
  }
  void exit() {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      std::memcpy(items_[i].first.data, saved_[i].data(), saved_[i].size());
    }
    active_ = false;
  }
  void outdate() { open_ = false; }
  bool active() const { return active_; }

 private:
  std::vector<std::pair<Param, Param>> items_;
  std::vector<std::vector<char>> saved_;
  bool open_ = true, active_ = false;
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
    rule["has_sign"] = py::cast(std::vector<bool>(row.has_sign.begin(), row.has_sign.end()));
    rule["uses_state"] = variants;
    rules[row.name] = rule;
  }
  return rules;
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  isa_in_use = &choose_isa(std::getenv("ONEPASS_ISA"));

  m.doc() = "The compiled kernels of onepass.";
  m.def("check_params", &check_params, py::arg("names"), py::arg("params"),
        py::arg("copies") = py::none(), "Raise what a step with these parameters would raise.");
  py::class_<Shown>(m, "Shown", "Other values in the parameters while a with block runs.")
      .def(py::init<py::handle, const py::list&, const py::list&>(), py::arg("names"),
           py::arg("params"), py::arg("values"))
      .def_property_readonly("active", &Shown::active)
      .def("outdate", &Shown::outdate, "What it would show no longer holds.")
      .def("__enter__", &Shown::enter)
      .def("__exit__", [](Shown& shown, const py::args&) { shown.exit(); });
  m.def("rules", &rules, "The rows of rules.def: states, scalars and options of each rule.");
  m.def("in_forked_child", &in_forked_child, "Whether steps run serial because of a fork.");

  bind_plan(m, *isa_in_use->kernels);
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
