#include "looks.hpp"

#include <pybind11/numpy.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "capi.hpp"
#include "function.hpp"
#include "gil.hpp"

namespace onepass::bindings {

namespace py = pybind11;

namespace {

// What DLPack 1.3 says a tensor looks like, and the table of functions that a library exchanges
// tensors with. Only what stands here is used.
struct DlTensor {
  void* data;
  std::int32_t device, device_number;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  const std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct DlExchange {
  std::uint32_t major, minor;
  const void* previous;
  void (*allocate)();
  void (*from_object)();
  void (*to_object)();
  int (*look)(void* object, DlTensor* out);  // not 0: a Python error is set
};

class Looks {
 public:
  explicit Looks(const py::capsule& exchange)
      : exchange_(exchange), functions_(exchange.get_pointer<DlExchange>()) {
    if (std::strcmp(exchange.name(), "dlpack_exchange_api") != 0 || functions_->major != 1 ||
        !functions_->look) {
      throw py::type_error("exchange: expected DLPack's exchange functions, version 1, got others");
    }
  }

  // What same and read compare with.
  void remember(const py::list& tensors) {
    looks_.clear();
    axes_.clear();
    for (const py::handle tensor : tensors) {
      DlTensor seen;
      if (functions_->look(tensor.ptr(), &seen) != 0) throw py::error_already_set();
      looks_.push_back({Py_TYPE(tensor.ptr()), seen});
      for (const auto* sizes : {seen.shape, seen.strides}) {
        axes_.insert(axes_.end(), sizes, sizes + seen.ndim);
      }
    }
  }

  // Whether these tensors begin where those did, and look as they did.
  bool same(const py::list& tensors) const {
    const auto begins_there = [](std::size_t, const void* now, const void* before) {
      return now == before;
    };
    return compare(tensors, begins_there);
  }

  // Whether they look as those did, wherever they begin, which goes to `addresses`.
  bool read(const py::list& tensors, py::array addresses) const {
    if (addresses.ndim() != 1 || addresses.itemsize() != sizeof(std::uintptr_t) ||
        static_cast<std::size_t>(addresses.shape(0)) != looks_.size()) {
      throw py::value_error("addresses: expected a vector of as many, got another array");
    }
    auto* const to = static_cast<char*>(addresses.mutable_data());
    const py::ssize_t stride = addresses.strides(0);
    const auto note = [&](std::size_t i, const void* now, const void*) {
      const auto address = reinterpret_cast<std::uintptr_t>(now);
      std::memcpy(to + static_cast<py::ssize_t>(i) * stride, &address, sizeof address);
      return true;
    };
    return compare(tensors, note);
  }

 private:
  struct Look {
    PyTypeObject* type;
    DlTensor tensor;  // shape and strides stand in axes_
  };

  template <class Begin>
  bool compare(const py::list& tensors, const Begin& begin) const {
    if (static_cast<std::size_t>(PyList_GET_SIZE(tensors.ptr())) != looks_.size()) return false;
    const std::int64_t* axes = axes_.data();
    for (std::size_t i = 0; i < looks_.size(); ++i) {
      PyObject* const object = PyList_GET_ITEM(tensors.ptr(), static_cast<py::ssize_t>(i));
      const Look& before = looks_[i];
      if (Py_TYPE(object) != before.type) return false;  // `look` takes one type alone
      DlTensor now;
      if (functions_->look(object, &now) != 0) {
        PyErr_Clear();
        return false;
      }
      const DlTensor& then = before.tensor;
      const bool alike = now.device == then.device && now.ndim == then.ndim &&
                         now.code == then.code && now.bits == then.bits && now.lanes == then.lanes;
      if (!alike) return false;
      const auto bytes = static_cast<std::size_t>(now.ndim) * sizeof(std::int64_t);
      if (bytes && (std::memcmp(now.shape, axes, bytes) != 0 ||
                    std::memcmp(now.strides, axes + now.ndim, bytes) != 0)) {
        return false;
      }
      axes += 2 * now.ndim;
      const auto* const data = static_cast<const char*>(now.data) + now.byte_offset;
      if (!begin(i, data, static_cast<const char*>(then.data) + then.byte_offset)) return false;
    }
    return true;
  }

  py::capsule exchange_;
  const DlExchange* functions_;
  std::vector<Look> looks_;
  std::vector<std::int64_t> axes_;
};

template <class Number>
void count_step(py::array& steps, py::array& begun) {
  const std::size_t n = static_cast<std::size_t>(steps.shape(0));
  auto* counted = static_cast<char*>(steps.mutable_data());
  auto* before = static_cast<char*>(begun.mutable_data());
  for (std::size_t i = 0; i < n; ++i, counted += steps.strides(0), before += begun.strides(0)) {
    Number number;
    std::memcpy(&number, counted, sizeof number);
    const auto completed = static_cast<std::int64_t>(number);
    std::memcpy(before, &completed, sizeof completed);
    number += 1;
    std::memcpy(counted, &number, sizeof number);
  }
}

// Counts a step: `begun` becomes how many there were before it. NumPy's own addition touches many
// times the cache lines that these few numbers take, and so does a look at a dtype.
void count(py::array steps, py::array begun) {
  const bool fits = steps.ndim() == 1 && begun.ndim() == 1 && steps.shape(0) == begun.shape(0) &&
                    begun.itemsize() == sizeof(std::int64_t);
  if (!fits) throw py::value_error("begun: expected as many numbers as steps, got others");
  if (steps.itemsize() == sizeof(float)) {
    count_step<float>(steps, begun);
  } else {
    count_step<double>(steps, begun);
  }
}

// Returns the places of those items of the parts that are other objects than these `items`: each
// list has its items, each dictionary its keys and values in turn. None where there are more or
// fewer, or other keys.
PyObject* other_items(PyObject* const* values) {
  PyObject *const parts = values[0], *const items = values[1];
  if (!PyList_Check(parts) || !PyList_Check(items)) {
    throw py::type_error("parts, items: expected lists, got others");
  }
  py::list others;
  const Py_ssize_t size = PyList_GET_SIZE(items);
  Py_ssize_t n = 0;  // items that have been looked at
  const auto is_next = [&](PyObject* item) { return PyList_GET_ITEM(items, n++) == item; };
  for (Py_ssize_t k = 0; k < PyList_GET_SIZE(parts); ++k) {
    PyObject* const part = PyList_GET_ITEM(parts, k);
    if (PyDict_Check(part)) {
      if (size - n < 2 * PyDict_GET_SIZE(part)) return Py_NewRef(Py_None);
      PyObject *key = nullptr, *value = nullptr;
      for (Py_ssize_t at = 0; PyDict_Next(part, &at, &key, &value);) {
        if (!is_next(key)) return Py_NewRef(Py_None);
        if (!is_next(value)) others.append(n - 1);
      }
    } else {
      const bool fits = PyList_Check(part) && size - n >= PyList_GET_SIZE(part);
      if (!fits) return Py_NewRef(Py_None);
      for (Py_ssize_t i = 0; i < PyList_GET_SIZE(part); ++i) {
        if (!is_next(PyList_GET_ITEM(part, i))) others.append(n - 1);
      }
    }
  }
  return n == size ? others.release().ptr() : Py_NewRef(Py_None);
}

// The C interface's step. Called by ctypes, it touches many more cold cache lines.
PyObject* take_step(PyObject* const* values) {  // addresses and numbers, as onepass_step takes them
  const auto address = [&](std::size_t i) { return PyLong_AsVoidPtr(values[i]); };
  const auto* const groups = static_cast<const onepass_group*>(address(0));
  const std::size_t n_groups = PyLong_AsSize_t(values[1]);
  const auto* const tensors = static_cast<const onepass_tensor*>(address(2));
  const std::size_t n_tensors = PyLong_AsSize_t(values[3]);
  const auto* const call = static_cast<const onepass_call*>(address(4));
  auto* const result = static_cast<onepass_result*>(address(5));
  if (PyErr_Occurred()) throw py::error_already_set();
  std::size_t elements = 0;
  for (std::size_t i = 0; i < n_tensors; ++i) elements += tensors[i].size;
  std::int32_t code = ONEPASS_OK;
  without_gil(elements,
              [&] { code = onepass_step(groups, n_groups, tensors, n_tensors, call, result); });
  return PyLong_FromLong(code);
}

}  // namespace

void bind_looks(py::module_& m) {
  implement({"other_items", {"parts", "items"}, other_items});
  implement(
      {"take_step", {"groups", "n_groups", "tensors", "n_tensors", "call", "result"}, take_step});
  py::class_<Looks>(m, "Looks", "What another library's tensors look like.")
      .def(py::init<py::capsule>(), py::arg("exchange"))
      .def("remember", &Looks::remember, py::arg("tensors"),
           "Remember where tensors begin, their dtypes, shapes, strides and devices.")
      .def("same", &Looks::same, py::arg("tensors"), "Whether these are as those remembered.")
      .def("read", &Looks::read, py::arg("tensors"), py::arg("addresses"),
           "Whether these are alike, wherever they begin, which is written down.");
  m.def("count_step", &count, py::arg("steps"), py::arg("begun"),
        "Add 1 to each of these floating-point numbers, and write down what they were.");
}

}  // namespace onepass::bindings
