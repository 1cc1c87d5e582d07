#include "looks.hpp"

#include <pybind11/numpy.h>

#include <cstdint>
#include <cstring>
#include <vector>

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

// Counts a step: `begun` becomes how many there were before it. NumPy's own addition touches many
// times the cache lines that these few numbers take.
template <class Number>
void count_step(py::array_t<Number, 0> steps, py::array_t<std::int64_t, 0> begun) {
  auto before = begun.template mutable_unchecked<1>();
  auto counts = steps.template mutable_unchecked<1>();
  if (before.shape(0) != counts.shape(0)) {
    throw py::value_error("begun: expected as many numbers as steps, got others");
  }
  for (py::ssize_t i = 0; i < counts.shape(0); ++i) {
    before(i) = static_cast<std::int64_t>(counts(i));
    counts(i) += 1;
  }
}

}  // namespace

void bind_looks(py::module_& m) {
  py::class_<Looks>(m, "Looks", "What another library's tensors look like.")
      .def(py::init<py::capsule>(), py::arg("exchange"))
      .def("remember", &Looks::remember, py::arg("tensors"),
           "Remember where tensors begin, their dtypes, shapes, strides and devices.")
      .def("same", &Looks::same, py::arg("tensors"), "Whether these are as those remembered.")
      .def("read", &Looks::read, py::arg("tensors"), py::arg("addresses"),
           "Whether these are alike, wherever they begin, which is written down.");
  const char* const doc = "Add 1 to each, and write down what they were.";
  m.def("count_step", &count_step<float>, py::arg("steps").noconvert(),
        py::arg("begun").noconvert(), doc);
  m.def("count_step", &count_step<double>, py::arg("steps").noconvert(),
        py::arg("begun").noconvert(), doc);
}

}  // namespace onepass::bindings
