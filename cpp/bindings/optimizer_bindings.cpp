// What Python sees of an optimizer's engine: the calls of each step by Python's fast protocol, the
// rest by pybind11's.
#include <pybind11/stl.h>

#include <string>

#include "engine.hpp"
#include "function.hpp"
#include "gil.hpp"
#include "slots.hpp"
#include "threads.hpp"

namespace onepass::bindings {
namespace {

// An optimizer as its methods see it. The engine is replaced as a whole where everything changes at
// once.
struct Base {
  PyObject_HEAD PyObject* engine;
};

PyTypeObject *base_type = nullptr, *engine_type = nullptr;  // set once, at import

// Null where it was made without __init__.
Engine* engine_of(PyObject* engine) {
  return static_cast<Engine*>(
      reinterpret_cast<py::detail::instance*>(engine)->simple_value_holder[0]);
}

constexpr const char* not_set_up =
    "self: expected an optimizer that was set up (__init__), got none";

// The engine of an optimizer, kept alive during a call.
class Held {
 public:
  explicit Held(PyObject* optimizer) {
    if (!PyObject_TypeCheck(optimizer, base_type)) {
      throw py::type_error("self: expected an optimizer, got " +
                           std::string(Py_TYPE(optimizer)->tp_name));
    }
    PyObject* const engine = reinterpret_cast<Base*>(optimizer)->engine;
    if (!engine || !Py_IS_TYPE(engine, engine_type) || !engine_of(engine)) {
      throw py::type_error(not_set_up);
    }
    engine_ = py::reinterpret_borrow<py::object>(engine);
  }
  Engine* operator->() const { return engine_of(engine_.ptr()); }

 private:
  py::object engine_;
};

double check_grad_scale(PyObject* value) {
  if (PyFloat_CheckExact(value) && PyFloat_AS_DOUBLE(value) == 1) return 1;  // nearly always
  double scale = 0;
  callbacks->grad_scale.read(callbacks->grad_scale_name, value, &scale);
  return scale;
}

bool check_stats(PyObject* value) {
  if (value == Py_False) return false;  // nearly always
  double flag = 0;
  callbacks->stats_flag.read(callbacks->stats_name, value, &flag);
  return flag != 0;
}

PyObject* step(PyObject* const* values) {  // self, grads, grad_scale, stats, exchange, num_threads
  const Held engine(values[0]);
  const int num_threads = resolve_num_threads(values[5]);
  const double grad_scale = check_grad_scale(values[2]);
  const bool stats = check_stats(values[3]);
  return engine->step(values[1], false, grad_scale, stats, values[4], num_threads).release().ptr();
}

PyObject* step_rows(PyObject* const* values) {  // self, grads, grad_scale, num_threads
  const Held engine(values[0]);
  const int num_threads = resolve_num_threads(values[3]);
  const double grad_scale = check_grad_scale(values[2]);
  return engine->step(values[1], true, grad_scale, false, Py_None, num_threads).release().ptr();
}

PyObject* step_one(PyObject* const* values) {  // self, name, grad, grad_scale, stats, num_threads
  const Held engine(values[0]);
  const int num_threads = resolve_num_threads(values[5]);
  const double grad_scale = check_grad_scale(values[3]);
  const bool stats = check_stats(values[4]);
  return engine->step_one(values[1], values[2], grad_scale, stats, num_threads).release().ptr();
}

PyObject* accumulate(PyObject* const* values) {  // self, grads, num_threads
  const Held engine(values[0]);
  const bool added = engine->accumulate(values[1], resolve_num_threads(values[2]));
  return PyBool_FromLong(added);
}

// Python's type

int traverse_base(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(reinterpret_cast<Base*>(self)->engine);
  return 0;
}
int clear_base(PyObject* self) {
  Py_CLEAR(reinterpret_cast<Base*>(self)->engine);
  return 0;
}
void dealloc_base(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  clear_base(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* get_engine(PyObject* self, void*) {
  PyObject* const engine = reinterpret_cast<Base*>(self)->engine;
  if (!engine) PyErr_SetString(PyExc_TypeError, not_set_up);
  return Py_XNewRef(engine);
}
int replace_engine(PyObject* self, PyObject* engine, void*) {
  Py_XSETREF(reinterpret_cast<Base*>(self)->engine, Py_XNewRef(engine));
  return 0;
}

PyObject* make_base_type() {
  static PyGetSetDef attributes[] = {{"_engine", get_engine, replace_engine, nullptr, nullptr}, {}};
  PyType_Slot slots[] = {{Py_tp_dealloc, slot(dealloc_base)}, {Py_tp_traverse, slot(traverse_base)},
                         {Py_tp_clear, slot(clear_base)},     {Py_tp_new, slot(PyType_GenericNew)},
                         {Py_tp_getset, attributes},          {0, nullptr}};
  constexpr unsigned flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE;
  PyType_Spec spec{"onepass._core.Base", sizeof(Base), 0, flags, slots};
  return PyType_FromSpec(&spec);
}

void collect_garbage(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const Engine* engine = engine_of(self);
    return engine ? engine->traverse(visit, arg) : 0;
  };
  type.tp_clear = [](PyObject* self) {
    if (Engine* engine = engine_of(self)) engine->clear();
    return 0;
  };
}

}  // namespace

bool is_optimizer(py::handle object) {
  return PyObject_TypeCheck(object.ptr(), base_type);
}

void set_engine(PyObject* optimizer, PyObject* engine) noexcept {
  PyObject* const before =
      std::exchange(reinterpret_cast<Base*>(optimizer)->engine, Py_NewRef(engine));
  Py_XDECREF(before);
}

void bind_engine(py::module_& m) {
  implement({"Optimizer.step",
             {"self", "grads", "grad_scale", "stats", "exchange", "num_threads"},
             step});
  implement({"Optimizer.step_rows", {"self", "grads", "grad_scale", "num_threads"}, step_rows});
  implement({"Optimizer.step_one",
             {"self", "name", "grad", "grad_scale", "stats", "num_threads"},
             step_one});
  implement({"Optimizer.accumulate", {"self", "grads", "num_threads"}, accumulate});

  const auto base = py::reinterpret_steal<py::object>(make_base_type());
  if (!base) throw py::error_already_set();
  m.attr("Base") = base;
  base_type = reinterpret_cast<PyTypeObject*>(base.ptr());  // the module keeps it alive

  py::class_<Engine> engine(m, "Engine", py::custom_type_setup(collect_garbage),
                            "The owner of what an optimizer knows.");
  engine_type = reinterpret_cast<PyTypeObject*>(engine.ptr());
  engine.def(py::init<const py::dict&>(), py::arg("contents"), py::call_guard<InCall>())
      .def("contents", &Engine::contents, py::call_guard<InCall>(),
           "Return what another one like it is made from; it shares the arrays.")
      .def("bind", &Engine::bind, py::arg("grads"), py::call_guard<InCall>(),
           "Check gradients, and take them in each step that is given none.")
      .def("check_outside", &Engine::check_outside, py::arg("name"), py::call_guard<InCall>(),
           "Raise inside a step or a block that shows other weights; outdate one not entered.")
      .def(
          "accumulate_with_others",
          [](Engine& self, const py::object& grads, const py::object& exchange,
             const py::object& num_threads) {
            return self.accumulate(grads, resolve_num_threads(num_threads.ptr()), exchange);
          },
          py::arg("grads"), py::arg("exchange"), py::arg("num_threads"), py::call_guard<InCall>(),
          "Do what `Optimizer.accumulate` does, as one of many processes: `exchange` is told "
          "whether the gradients are left out here, and returns whether they are anywhere.")
      .def("discard_accumulated", &Engine::discard_accumulated, py::call_guard<InCall>())
      .def("values_of_coming_step", &Engine::values_of_coming_step, py::call_guard<InCall>(),
           "Return each group's settings, schedules evaluated.")
      .def_property_readonly("groups", &Engine::groups)
      .def_property_readonly("own", &Engine::own)
      .def_property_readonly("left_out", &Engine::left_out,
                             "How many calls of accumulate were left out since the last step.")
      .def_property("shown", &Engine::shown, &Engine::set_shown,
                    "The block that shows other weights, if any.");
  m.def(
      "set_callbacks",
      [](py::object step_info, py::object mirror, py::object arrange, py::object new_sum,
         py::object direct, py::object stats, py::object grad_scale, py::object stats_flag,
         py::object call_schedule) {
        schedule_call = call_schedule.release().ptr();
        set_step_info(std::move(step_info));
        callbacks = new Callbacks{
            std::move(mirror),           std::move(arrange), std::move(new_sum),
            std::move(direct),           std::move(stats),   Check(std::move(grad_scale)),
            Check(std::move(stats_flag))};
      },
      py::kw_only(), py::arg("step_info"), py::arg("mirror"), py::arg("arrange"),
      py::arg("new_sum"), py::arg("direct"), py::arg("stats"), py::arg("grad_scale"),
      py::arg("stats_flag"), py::arg("schedule_call"), "Set what is done in Python.");
}

}  // namespace onepass::bindings
