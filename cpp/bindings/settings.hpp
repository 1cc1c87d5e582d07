// Settings as a user changes them: checked when they are assigned, and counted, so that a step
// knows without a look at them that none has changed.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checks.hpp"
#include "optimizer.hpp"

namespace onepass::bindings {

namespace py = pybind11;

// An optimizer's own settings, as numbers.
struct OwnSettings {
  double max_grad_norm = none;
  double nonfinite = 0;  // of "propagate", "skip", "raise"
  double clear_grads = 0;
  double seed = 0;
  double skip_grad_norm = none;
};
inline constexpr const char* own_settings[] = {"max_grad_norm", "nonfinite", "clear_grads", "seed",
                                               "skip_grad_norm"};
static_assert(sizeof(OwnSettings) == std::size(own_settings) * sizeof(double));

// A setting, and where its numbers go.
struct Field {
  static constexpr std::ptrdiff_t nowhere = -1;

  py::object name;  // interned
  Check check;
  std::ptrdiff_t place = nowhere;   // of its first number
  std::ptrdiff_t option = nowhere;  // of the rule's option that it turns on

  // Writes the numbers of a value, checked, among `numbers`.
  void read(PyObject* value, double* numbers) const;
  // Does the same only for a usual value. Returns whether the value is one.
  bool read_usual(PyObject* value, double* numbers) const noexcept;
  void write(const double* found, double* numbers) const noexcept;
  // Reads what a schedule gives: only the numbers, for options stay as they are.
  void take(PyObject* value, double* numbers) const;
};

using Together = std::vector<double>;

// The settings that mappings of one kind have: those of a rule's groups, or an optimizer's own.
// Never destroyed: there is one for each class of optimizers, and mappings point to it.
class Fields {
 public:
  // `check_setting(checks, name, value)` converts what is no usual value, or raises;
  // `check_together(settings)` raises where values do not go together.
  Fields(const RuleRow& rule, py::dict checks, py::object check_setting, py::object check_together);
  // Settings of no rule: the number of each has the place that its name has among `places`.
  Fields(std::span<const char* const> places, py::dict checks, py::object check_setting);

  const RuleRow* rule() const { return rule_; }
  const std::vector<Field>& fields() const { return fields_; }
  const Field* find(PyObject* name) const;
  // Returns a value in its plain type, or raises.
  py::object checked(PyObject* name, PyObject* value) const;
  void check_together(py::handle settings) const {
    if (check_together_) check_together_(settings);
  }
  // What it may depend on whether settings go together: of a setting that may be a schedule, only
  // whether it is 0.
  Together together(const double* numbers) const;
  bool go_together_like(const double* numbers, const Together& before) const;
  // A mapping of checked values.
  py::object settings(const py::dict& values) const;

 private:
  void add(Field field);
  double seen_together(std::size_t i, const double* numbers) const;

  const RuleRow* rule_ = nullptr;
  py::dict checks_;
  py::object check_setting_, check_together_;
  std::vector<Field> fields_;
  // Once more, side by side: they take few cache lines.
  struct Place {
    std::uint8_t place;
    bool only_whether;
  };
  std::vector<PyObject*> names_;
  std::vector<Place> places_;
};

// A dictionary of settings (`_core.Settings` in Python). Other keys than its fields it keeps as it
// was made with them.
struct SettingsObject {
  PyDictObject dict;
  const Fields* fields;
  std::uint64_t changes;
};

inline PyTypeObject* settings_type = nullptr;  // set once, at import

// `__call__` of our own schedules, which checks the step and calls `_value`. Set once, at import.
inline PyObject* schedule_call = nullptr;

inline SettingsObject* as_settings(PyObject* object) {
  return Py_IS_TYPE(object, settings_type) ? reinterpret_cast<SettingsObject*>(object) : nullptr;
}

// The numbers of settings as they were last read, and the schedules among them.
class Numbers {
 public:
  // Whether the settings have changed since they were read.
  bool outdated(const SettingsObject& settings) const { return settings.changes != changes_; }
  // Reads them anew. An option is on where its setting is a schedule: the state must not come and
  // go. Raises where settings do not go together.
  void read(SettingsObject& settings, double* numbers);
  bool has_schedules() const { return !scheduled_.empty(); }
  // Calls the schedules with the number of completed steps. May run any Python code.
  void call_schedules(std::int64_t completed, double* numbers) const;
  // Returns the current values of the schedules, by their settings' names.
  py::dict values(const double* numbers) const;
  // Takes these values instead of calling schedules. Returns whether each schedule has one.
  bool take_values(const py::dict& values, double* numbers) const;
  int traverse(visitproc visit, void* arg) const;

 private:
  struct Scheduled {
    static constexpr std::ptrdiff_t all = -1;

    const Field* field;
    std::ptrdiff_t number;  // of several: which one it gives, or all
    py::object schedule;    // or its method that computes the value
  };
  static bool note_schedules(const Field& field, PyObject* value, double* numbers,
                             std::vector<Scheduled>& scheduled);

  std::uint64_t changes_ = 0;
  std::vector<Scheduled> scheduled_;
  Together together_;
};

// The row of a rule, or an error that names it.
const RuleRow& find_rule(const std::string& name);

void bind_settings(py::module_& m);

}  // namespace onepass::bindings
