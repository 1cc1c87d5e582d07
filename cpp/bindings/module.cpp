// What Python sees of the kernels.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "batchnorm_bindings.hpp"
#include "capi.hpp"
#include "dispatch.hpp"
#include "engine.hpp"
#include "fold.hpp"
#include "foreign.hpp"
#include "function.hpp"
#include "gil.hpp"
#include "kernel_functions.hpp"
#include "kernels_in_use.hpp"
#include "looks.hpp"
#include "row_norm_bindings.hpp"
#include "ruler.hpp"
#include "settings.hpp"
#include "shown.hpp"
#include "threads.hpp"
#include "updates.hpp"

namespace onepass::bindings {
namespace {

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

// The copies that a step writes beside float32 parameters, as of now; and attributes with them.
void commit(py::handle updates, const py::list& names, const py::list& params,
            const std::optional<py::list>& copies) {
  const Updates checked(updates);
  std::vector<std::pair<Param, Checked>> pairs;
  std::vector<Unchanged> seen;
  Memory memory;
  for (std::size_t i = 0; copies && i < params.size(); ++i) {
    if (py::object((*copies)[i]).is_none()) continue;
    const Label label(names, i, Role::param);
    Param param = check_param(params[i], label);
    memory.add(param.array, label);
    Checked copy = check_copy((*copies)[i], Label(names, i, Role::copy), param, memory);
    seen.emplace_back(param.array);
    seen.emplace_back(copy.array);
    pairs.emplace_back(std::move(param), std::move(copy));
  }
  memory.check_overlap();
  if (!std::all_of(seen.begin(), seen.end(), [](const Unchanged& a) { return a.still(); })) {
    throw py::value_error(
        "copy_to: expected arrays that do not change during the call, got one that did");
  }
  checked.make_room();
  for (const auto& [param, copy] : pairs) {
    const Stored stored{const_cast<void*>(copy.array.data())};
    const auto* values = static_cast<const float*>(param.array.data());
    kernels_in_use->codecs[copy.format].close(values, param.size, stored, 0, {});
  }
  checked.apply();  // last: what it replaces may have finalizers, which are Python code
}

py::list to_list(std::span<const char* const> names) {
  py::list list;
  for (const char* name : names) list.append(name);
  return list;
}

py::dict rules() {
  py::dict rules;
  for (const RuleRow* found : kernels_in_use->rules) {
    const RuleRow& row = *found;
    py::list variants, n_sums, directed;  // per combination of options
    for (const Variant& variant : row.variants) {
      n_sums.append(variant.n_sums);
      directed.append(variant.direct_f64 != nullptr);
      py::list used;
      for (std::size_t k = 0; k < row.states.size(); ++k) used.append(variant.uses_state[k]);
      variants.append(py::tuple(used));
    }
    py::dict rule;
    rule["states"] = to_list(row.states);
    rule["scalars"] = to_list(row.scalars);
    rule["options"] = to_list(row.options);
    rule["has_sign"] = py::cast(std::vector<bool>(row.has_sign.begin(), row.has_sign.end()));
    rule["in_full"] = py::cast(std::vector<bool>(row.in_full.begin(), row.in_full.end()));
    rule["hyper"] = to_list(row.hyper);
    rule["defaults"] = py::cast(std::vector<double>(row.defaults.begin(), row.defaults.end()));
    rule["start"] = py::list();
    for (const int place : row.start) {
      rule["start"].cast<py::list>().append(
          place < 0 ? py::object(py::none()) : py::str(row.hyper[static_cast<std::size_t>(place)]));
    }
    rule["uses_state"] = variants;
    rule["factored"] = row.factored;
    rule["shape"] = py::list();
    for (const Shape shape : row.shape) {
      constexpr const char* names[] = {"param", "rows", "columns", "axes"};
      rule["shape"].cast<py::list>().append(py::str(names[static_cast<std::size_t>(shape)]));
    }
    rule["memory"] = to_list(row.memory);
    rule["keeps_weights"] = row.keeps_weights;
    rule["full_weights"] = row.full_weights;
    rule["sums_over_all"] = row.sums_over_all;
    rule["n_sums"] = n_sums;
    rule["directed"] = directed;
    rule["memory_start"] =
        py::cast(std::vector<double>(row.memory_start.begin(), row.memory_start.end()));
    rules[row.name] = rule;
  }
  return rules;
}

std::vector<double> at(const std::string& name, double step, const std::vector<double>& hyper,
                       const std::vector<double>& memory) {
  const RuleRow& row = find_rule(name);
  const auto check_size = [](const char* what, std::size_t expected, std::size_t got) {
    if (got == expected) return;
    throw py::value_error(std::string(what) + ": expected " + std::to_string(expected) +
                          " numbers, got " + std::to_string(got));
  };
  check_size("hyper", row.hyper.size(), hyper.size());
  check_size("memory", row.memory.size(), memory.size());
  std::vector<double> scalars(row.scalars.size() + row.memory.size());
  row.at(step, hyper.data(), memory.data(), scalars.data());
  return scalars;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  kernels_in_use = isa_in_use().kernels;

  m.doc() = "The compiled kernels of onepass.";
  m.def("check_params", &check_params, py::arg("names"), py::arg("params"),
        py::arg("copies") = py::none(), py::call_guard<InCall>(),
        "Raise what a step with these parameters would raise.");
  m.def("commit", &commit, py::arg("updates"), py::arg("names") = py::list(),
        py::arg("params") = py::list(), py::arg("copies") = py::none(), py::call_guard<InCall>(),
        "Change attributes, and write the copies of parameters, in one call.");
  m.def(
      "readable",
      [](const std::string& name, py::handle grad, const py::array& param) {
        const Label label(name.c_str(), Role::input);
        py::array array = check_readable_grad(grad, label, param);
        check_grad_format(array, label, check_param(param, label));
        return array;
      },
      py::arg("name"), py::arg("grad"), py::arg("param"), py::call_guard<InCall>(),
      "Return a parameter's gradient as an array of NumPy's.");
  m.def("rules", &rules, "The rows of rules.def, and what each rule's header says.");
  m.def("at", &at, py::arg("rule"), py::arg("step"), py::arg("hyper"),
        py::arg("memory") = std::vector<double>(),
        "The numbers of a step that a rule makes of its hyperparameters, in double, and what its "
        "memory becomes.");

  bind_arrays();
  bind_exit(m);
  bind_function(m);
  bind_threads(m);
  bind_shown(m);
  bind_settings(m);
  bind_engine(m);
  bind_kernel_functions(m);
  bind_ruler(m);
  bind_fold(m);
  bind_looks(m);
  bind_batch_norm(m);
  bind_row_norm();

  m.attr("isa") = isa_in_use().name;
  py::dict isas;
  for (const Isa& isa : compiled_isas()) isas[isa.name] = isa.supported;
  m.attr("isas") = isas;
  m.attr("_C_API") = py::capsule(&c_api, "onepass._core._C_API");
  m.attr("version") = ONEPASS_VERSION;
  m.attr("compiler") = ONEPASS_COMPILER;
  m.attr("flags") = ONEPASS_FLAGS;
}

}  // namespace onepass::bindings
