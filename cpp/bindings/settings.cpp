#include "settings.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>

#include "function.hpp"
#include "kernels_in_use.hpp"
#include "slots.hpp"

namespace onepass::bindings {
namespace {

std::ptrdiff_t position(std::span<const char* const> names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? Field::nowhere : found - names.begin();
}

// A setting of several numbers, say `betas`, has its places under `beta1`, `beta2` and so on; those
// of `eps` are `eps1` and `eps2`.
std::string first_number(const std::string& name, const Check& check) {
  if (check.size() == 1) return name;
  return (name == "eps" ? name : name.substr(0, name.size() - 1)) + "1";
}

constexpr std::ptrdiff_t first_option = max_hyper, first_common = first_option + max_options;

// The step that an optimizer gives a schedule needs no check.
py::object called(py::handle schedule) {
  const py::object call = py::type::of(schedule).attr("__call__");
  const bool is_own = call.ptr() == schedule_call;
  return is_own ? schedule.attr("_value") : py::reinterpret_borrow<py::object>(schedule);
}

// Whether a setting is a schedule, or has one among its numbers.
bool has_schedule(PyObject* value) {
  if (!PyTuple_CheckExact(value)) return PyCallable_Check(value);
  bool found = false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(value); ++i) {
    found = found || PyCallable_Check(PyTuple_GET_ITEM(value, i));
  }
  return found;
}

Field make_field(py::handle name, py::handle check) {
  PyObject* interned = Py_NewRef(name.ptr());
  PyUnicode_InternInPlace(&interned);
  return {py::reinterpret_steal<py::object>(interned),
          Check(py::reinterpret_borrow<py::object>(check))};
}

// Python's calls

SettingsObject* settings(PyObject* self) {
  return reinterpret_cast<SettingsObject*>(self);
}

[[noreturn]] void fail_removed(const std::string& name = "settings") {
  throw py::type_error(name + ": expected to stay, got a removal");
}

// Whether an assignment is to what a mapping has besides settings, the parameters, and changes
// nothing, as in `group.update(copy_of_group)`. Raises where it would change something.
bool keeps(SettingsObject* self, PyObject* name, PyObject* value) {
  if (self->fields->find(name)) return false;
  PyObject* const now = PyDict_GetItemWithError(reinterpret_cast<PyObject*>(self), name);
  if (!now && PyErr_Occurred()) throw py::error_already_set();
  if (now && now != value) {
    throw py::value_error(py::str(name).cast<std::string>() +
                          ": expected those it was made with, got others");
  }
  return now != nullptr;
}

// All of them are checked before the first one changes.
void set_all(SettingsObject* self, const py::dict& changes) {
  std::vector<std::pair<py::object, py::object>> checked;
  for (const auto& [name, value] : changes) {
    if (keeps(self, name.ptr(), value.ptr())) continue;
    checked.emplace_back(py::reinterpret_borrow<py::object>(name),
                         self->fields->checked(name.ptr(), value.ptr()));
  }
  for (const auto& [name, value] : checked) {
    if (PyDict_SetItem(reinterpret_cast<PyObject*>(self), name.ptr(), value.ptr()) != 0) {
      throw py::error_already_set();
    }
  }
  ++self->changes;
}

int assign_setting(PyObject* self, PyObject* name, PyObject* value) {
  PyObject* done = guarded([&] {
    if (!value) fail_removed(py::str(name).cast<std::string>());
    if (!keeps(settings(self), name, value)) {
      const py::object checked = settings(self)->fields->checked(name, value);
      if (PyDict_SetItem(self, name, checked.ptr()) != 0) throw py::error_already_set();
      ++settings(self)->changes;
    }
    return Py_NewRef(Py_None);
  });
  Py_XDECREF(done);
  return done ? 0 : -1;
}

PyObject* update_settings(PyObject* self, PyObject* args, PyObject* keywords) {
  return guarded([&] {
    const auto type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyDict_Type));
    const auto given = py::reinterpret_steal<py::dict>(PyObject_Call(type.ptr(), args, keywords));
    if (!given) throw py::error_already_set();
    set_all(settings(self), given);
    return Py_NewRef(Py_None);
  });
}

PyObject* update_in_place(PyObject* self, PyObject* other) {
  return guarded([&] {
    const auto given = py::reinterpret_steal<py::dict>(  // a mapping, or pairs
        PyObject_CallOneArg(reinterpret_cast<PyObject*>(&PyDict_Type), other));
    if (!given) throw py::error_already_set();
    set_all(settings(self), given);
    return Py_NewRef(self);
  });
}

PyObject* set_default(PyObject* self, PyObject* args) {
  return guarded([&] {
    PyObject *name = nullptr, *value = Py_None;
    if (!PyArg_ParseTuple(args, "O|O", &name, &value)) throw py::error_already_set();
    PyObject* now = PyDict_GetItemWithError(self, name);
    if (!now) settings(self)->fields->checked(name, value);  // raises: it is unknown
    return Py_NewRef(now ? now : value);
  });
}

PyObject* refuse_removal(PyObject*, PyObject*) {
  return guarded([]() -> PyObject* { fail_removed(); });
}

// A copy is a plain dictionary, as of any dictionary's subclass.
PyObject* reduce_settings(PyObject* self, PyObject*) {
  return guarded([&] {
    py::dict plain;
    if (PyDict_Update(plain.ptr(), self) != 0) throw py::error_already_set();
    const auto type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyDict_Type));
    return py::make_tuple(type, py::make_tuple(plain)).release().ptr();
  });
}
PyObject* reduce_settings_by_protocol(PyObject* self, PyObject*) {
  return reduce_settings(self, nullptr);
}

PyObject* make_settings_type() {
  static PyMethodDef methods[] = {
      {"update", method(update_settings), METH_VARARGS | METH_KEYWORDS, "Change several, or none."},
      {"setdefault", set_default, METH_VARARGS, "Return a setting."},
      {"pop", refuse_removal, METH_VARARGS, "Settings stay."},
      {"popitem", refuse_removal, METH_NOARGS, "Settings stay."},
      {"clear", refuse_removal, METH_NOARGS, "Settings stay."},
      {"__reduce__", reduce_settings, METH_NOARGS, nullptr},
      {"__reduce_ex__", reduce_settings_by_protocol, METH_O, nullptr},
      {}};
  PyType_Slot slots[] = {
      {Py_mp_ass_subscript, slot(assign_setting)},
      {Py_nb_inplace_or, slot(update_in_place)},
      {Py_tp_methods, methods},
      {Py_tp_doc, const_cast<char*>("Settings, checked when they are assigned.")},
      {0, nullptr}};
  constexpr unsigned flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  PyType_Spec spec{"onepass._core.Settings", sizeof(SettingsObject), 0, flags, slots};
  return PyType_FromSpecWithBases(&spec, reinterpret_cast<PyObject*>(&PyDict_Type));
}

}  // namespace

const RuleRow& find_rule(const std::string& name) {
  for (const RuleRow* row : kernels_in_use->rules) {
    if (row->name == name) return *row;
  }
  throw py::value_error("rule: expected one of rules(), got '" + name + "'");
}

void Field::read(PyObject* value, double* numbers) const {
  double found[Check::most];
  check.read(name, value, found);
  write(found, numbers);
}

bool Field::read_usual(PyObject* value, double* numbers) const noexcept {
  double found[Check::most];
  if (!check.quick(value, found)) return false;
  write(found, numbers);
  return true;
}

void Field::take(PyObject* value, double* numbers) const {
  double found[Check::most];
  check.read(name, value, found);
  if (place != nowhere) std::copy_n(found, check.size(), numbers + place);
}

void Field::write(const double* found, double* numbers) const noexcept {
  if (place != nowhere) std::copy_n(found, check.size(), numbers + place);
  if (option != nowhere) numbers[first_option + option] = found[0] != 0 && !is_none(found[0]);
}

Fields::Fields(const RuleRow& rule, py::dict checks, py::object check_setting,
               py::object check_together)
    : rule_(&rule),
      checks_(std::move(checks)),
      check_setting_(std::move(check_setting)),
      check_together_(std::move(check_together)) {
  for (const auto& [name, check] : checks_) {
    Field field = make_field(name, check);
    const auto text = name.cast<std::string>();
    // A rule may have a number of its own in the place of one that all share.
    const std::ptrdiff_t common = position(common_settings, text);
    field.place = position(rule.hyper, first_number(text, field.check));
    if (field.place == Field::nowhere && common != Field::nowhere) {
      field.place = first_common + common;
    }
    field.option = position(rule.options, text);
    add(std::move(field));
  }
}

Fields::Fields(std::span<const char* const> places, py::dict checks, py::object check_setting)
    : checks_(std::move(checks)), check_setting_(std::move(check_setting)) {
  for (const auto& [name, check] : checks_) {
    Field field = make_field(name, check);
    field.place = position(places, name.cast<std::string>());
    add(std::move(field));
  }
}

void Fields::add(Field field) {
  if (field.place == Field::nowhere && field.option == Field::nowhere) {
    throw py::import_error("no place for the setting " + field.name.cast<std::string>());
  }
  names_.push_back(field.name.ptr());
  const std::ptrdiff_t first =
      field.place != Field::nowhere ? field.place : first_option + field.option;
  for (std::size_t i = 0; i < field.check.size(); ++i) {
    const auto place = static_cast<std::uint8_t>(first + static_cast<std::ptrdiff_t>(i));
    places_.push_back({place, field.check.schedulable(i)});
  }
  fields_.push_back(std::move(field));
}

const Field* Fields::find(PyObject* name) const {
  std::size_t i = 0;
  while (i < names_.size() && names_[i] != name) ++i;
  if (i == names_.size() && !PyUnicode_CHECK_INTERNED(name)) {  // else it would have been found
    i = 0;
    while (i < names_.size() && !is_name(names_[i], name)) ++i;
  }
  return i == names_.size() ? nullptr : &fields_[i];
}

py::object Fields::checked(PyObject* name, PyObject* value) const {
  const Field* field = find(name);
  double numbers[Check::most];
  if (field && field->check.quick(value, numbers)) {
    return py::reinterpret_borrow<py::object>(value);
  }
  return check_setting_(checks_, py::handle(name), py::handle(value));
}

bool Fields::go_together_like(const double* numbers, const Together& before) const {
  bool same = before.size() == places_.size();
  for (std::size_t i = 0; same && i < places_.size(); ++i) {
    same = seen_together(i, numbers) == before[i];
  }
  return same;
}

Together Fields::together(const double* numbers) const {
  Together all;
  for (std::size_t i = 0; i < places_.size(); ++i) all.push_back(seen_together(i, numbers));
  return all;
}

double Fields::seen_together(std::size_t i, const double* numbers) const {
  const double number = numbers[places_[i].place];
  return is_none(number) ? -1 : places_[i].only_whether && number != 0 ? 1 : number;
}

py::object Fields::settings(const py::dict& values) const {
  const py::tuple nothing;
  auto made =
      py::reinterpret_steal<py::object>(PyDict_Type.tp_new(settings_type, nothing.ptr(), nullptr));
  if (!made || PyDict_Update(made.ptr(), values.ptr()) != 0) throw py::error_already_set();
  as_settings(made.ptr())->fields = this;
  as_settings(made.ptr())->changes = 1;
  return made;
}

void Numbers::read(SettingsObject& settings, double* numbers) {
  const std::uint64_t changes = settings.changes;
  const Fields& fields = *settings.fields;
  PyObject* const dict = reinterpret_cast<PyObject*>(&settings);
  std::vector<Scheduled> scheduled;
  for (const Field& field : fields.fields()) {
    PyObject* const value = PyDict_GetItemWithError(dict, field.name.ptr());
    if (!value) throw py::key_error(field.name.cast<std::string>());
    if (field.read_usual(value, numbers)) continue;
    if (!note_schedules(field, value, numbers, scheduled)) field.read(value, numbers);
  }
  if (!fields.go_together_like(numbers, together_)) fields.check_together(dict);
  together_ = fields.together(numbers);
  scheduled_ = std::move(scheduled);
  changes_ = changes;
}

// Puts 1 in the place of each number that a schedule of the setting gives, until it is called.
// Returns whether the setting has a schedule.
[[gnu::cold]] bool Numbers::note_schedules(const Field& field, PyObject* value, double* numbers,
                                           std::vector<Scheduled>& scheduled) {
  if (!has_schedule(value)) return false;
  double found[Check::most] = {1, 1, 1};
  if (PyCallable_Check(value)) {
    scheduled.push_back({&field, Scheduled::all, called(value)});
  } else {
    if (PyTuple_GET_SIZE(value) != static_cast<Py_ssize_t>(field.check.size())) return false;
    for (std::size_t i = 0; i < field.check.size(); ++i) {
      PyObject* const item = PyTuple_GET_ITEM(value, static_cast<Py_ssize_t>(i));
      if (PyCallable_Check(item)) {
        scheduled.push_back({&field, static_cast<std::ptrdiff_t>(i), called(item)});
      } else {
        field.check.read_one(field.name, i, item, found + i);
      }
    }
  }
  field.write(found, numbers);
  return true;
}

void Numbers::call_schedules(std::int64_t completed, double* numbers) const {
  const auto step = py::reinterpret_steal<py::object>(PyLong_FromLongLong(completed));
  if (!step) throw py::error_already_set();
  for (std::size_t i = 0; i < scheduled_.size(); ++i) {
    const Scheduled own = scheduled_[i];  // its call may change the settings
    const auto value =
        py::reinterpret_steal<py::object>(PyObject_CallOneArg(own.schedule.ptr(), step.ptr()));
    if (!value) throw py::error_already_set();
    const Field& field = *own.field;
    if (own.number == Scheduled::all) {
      field.take(value.ptr(), numbers);
    } else {
      double* const to = numbers + field.place + own.number;
      field.check.read_one(field.name, static_cast<std::size_t>(own.number), value.ptr(), to);
    }
  }
}

py::dict Numbers::values(const double* numbers) const {
  const auto value_of = [](double number) -> py::object {
    return is_none(number) ? py::object(py::none()) : py::float_(number);
  };
  py::dict all;
  for (const Scheduled& each : scheduled_) {
    const Field& field = *each.field;
    if (field.place == Field::nowhere) continue;
    py::list own;
    for (std::size_t i = 0; i < field.check.size(); ++i) {
      own.append(value_of(numbers[static_cast<std::size_t>(field.place) + i]));
    }
    all[field.name] = own.size() == 1 ? py::object(own[0]) : py::tuple(own);
  }
  return all;
}

bool Numbers::take_values(const py::dict& values, double* numbers) const {
  for (const Scheduled& each : scheduled_) {
    const Field& field = *each.field;
    if (field.place == Field::nowhere) continue;
    if (!values.contains(field.name)) return false;
    field.take(py::object(values[field.name]).ptr(), numbers);
  }
  return true;
}

int Numbers::traverse(visitproc visit, void* arg) const {
  for (const Scheduled& each : scheduled_) Py_VISIT(each.schedule.ptr());
  return 0;
}

void bind_settings(py::module_& m) {
  const auto type = py::reinterpret_steal<py::object>(make_settings_type());
  if (!type) throw py::error_already_set();
  m.attr("Settings") = type;
  settings_type = reinterpret_cast<PyTypeObject*>(type.ptr());  // the module keeps it alive
  using Immortal = std::unique_ptr<Fields, py::nodelete>;
  py::class_<Fields, Immortal>(m, "Fields", "What settings there are.")
      .def(py::init([](const std::string& rule, py::dict checks, py::object check_setting,
                       py::object check_together) {
             return new Fields(find_rule(rule), std::move(checks), std::move(check_setting),
                               std::move(check_together));
           }),
           py::arg("rule"), py::arg("checks"), py::arg("check_setting"), py::arg("check_together"))
      .def(py::init([](py::dict checks, py::object check_setting) {
             return new Fields(own_settings, std::move(checks), std::move(check_setting));
           }),
           py::arg("checks"), py::arg("check_setting"))
      .def("settings", &Fields::settings, py::arg("values"), "Return a mapping of checked values.");
}

}  // namespace onepass::bindings
