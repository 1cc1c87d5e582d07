#include "arrays.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <functional>
#include <numeric>
#include <utility>

#include "foreign.hpp"
#include "overlap.hpp"

namespace onepass::bindings {
namespace {

using Proxy = py::detail::PyArray_Proxy;  // NumPy's struct

constexpr int aligned_flag = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int writable_flag = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
constexpr int order_flag(Order order) noexcept {  // Order::other has no flag
  return order == Order::c ? py::array::c_style : py::array::f_style;
}

bool has_all(const Proxy& array, int flags) noexcept {
  return (array.flags & flags) == flags;
}
bool is_order(const py::array& array, Order order) {
  return has_all(*py::detail::array_proxy(array.ptr()), order_flag(order));
}
bool has_shape_of(const Proxy& array, const Proxy& other) noexcept {
  bool same = array.nd == other.nd;
  for (int axis = 0; same && axis < array.nd; ++axis) {  // std::equal would call memcmp
    same = array.dimensions[axis] == other.dimensions[axis];
  }
  return same;
}
std::size_t size_of(const Proxy& array) noexcept {
  py::ssize_t size = 1;
  for (int axis = 0; axis < array.nd; ++axis) size *= array.dimensions[axis];
  return static_cast<std::size_t>(size);
}

// Whether the elements of two arrays of one shape, one of which has no gaps, stand in one order.
[[gnu::cold]] bool has_order_of(PyObject* object, PyObject* other) noexcept {
  const auto a = py::reinterpret_borrow<py::array>(object);
  const auto b = py::reinterpret_borrow<py::array>(other);
  for (py::ssize_t axis = 0; axis < a.ndim(); ++axis) {
    if (a.shape(axis) == 1) continue;
    if (a.strides(axis) * b.itemsize() != b.strides(axis) * a.itemsize()) return false;
  }
  return true;
}

// Whether an array has its parameter's order. An array of another shape than the parameter has one
// axis, or its parameter is in C or F order.
bool is_order_of(const py::array& array, const Like& param) {
  if (param.order != Order::other) return is_order(array, param.order);
  const auto& proxy = *py::detail::array_proxy(array.ptr());
  if (!has_shape_of(proxy, *py::detail::array_proxy(param.object))) {
    return is_order(array, Order::c);
  }
  return has_order_of(array.ptr(), param.object);
}

bool has_no_gaps(const py::array& array) {
  const std::vector<std::size_t> axes = axes_in_memory(array.ptr());
  py::ssize_t expected = array.itemsize();
  return std::all_of(axes.rbegin(), axes.rend(), [&](std::size_t found) {
    const auto axis = static_cast<py::ssize_t>(found);
    const bool fits = array.shape(axis) == 1 || array.strides(axis) == expected;
    expected *= array.shape(axis);
    return fits;
  });
}

std::string order_name(const Like& param) {
  if (param.order == Order::c) return "C order";
  if (param.order == Order::f) return "F order";
  const py::tuple axes(py::cast(axes_in_memory(param.object)));
  return "its axes in the order " + py::str(axes).cast<std::string>() + " in memory";
}

py::array copied_in_order_of(const py::array& array, const Param& param) {
  const py::module_ numpy = py::module_::import("numpy");
  if (param.order != Order::other) {
    return numpy.attr("array")(array, py::arg("copy") = true,
                               py::arg("order") = param.order == Order::c ? "C" : "F");
  }
  py::array copy = numpy.attr("empty_like")(param.array, py::arg("dtype") = array.dtype(),
                                            py::arg("order") = "K", py::arg("subok") = false);
  numpy.attr("copyto")(copy, array);
  return copy;
}

bool is_as_it_was(PyObject* object, const void* data, const PyObject* descr, std::size_t size,
                  int flags) noexcept {
  const auto& now = *py::detail::array_proxy(object);
  return now.data == data && now.descr == descr && now.flags == flags && size_of(now) == size;
}

void check_same_order(const py::array& array, const Label& label, const Param& param) {
  if (is_order_of(array, param) && is_aligned(array)) return;
  fail_value(label, order_name(param) + ", as its parameter has",
             is_aligned(array) ? "strides " + strides_name(array) : "misaligned data");
}

constexpr char native_order = std::endian::native == std::endian::little ? '<' : '>';
// Whether a dtype is bfloat16, which ml_dtypes registers; NumPy numbers such dtypes from 256 on.
// The name is asked for once, because that takes longer than the step of a small tensor.
std::atomic<int> known_bfloat16_num = -1;
bool is_bfloat16(const py::dtype& dtype) {
  const int num = dtype.num();
  if (num < 256 || num == known_bfloat16_num) return num >= 256;
  if (py::str(dtype).cast<std::string>() != "bfloat16") return false;
  known_bfloat16_num = num;
  return true;
}

// The format of a gradient of float32 or float64.
Format format_beside(int num, const Like& param) noexcept {
  const bool is_float = param.dtype == Dtype::f32;
  if (num == (is_float ? float32_num : float64_num)) return plain;
  return is_float ? f64_beside_f32 : f32_beside_f64;
}

// Whether an array has its parameter's dtype, and the rule computes with that. Compared by
// identity, which is quick, and mostly enough.
bool has_its_dtype(const py::array& array, const Param& param) {
  return param.format == plain && array.dtype().is(param.array.dtype());
}

void* written_in_its_order(const py::array& array, const Label& label, const Param& param,
                           Memory& memory) {
  check_written_in_place(array, label);
  check_same_order(array, label, param);
  memory.add(array, label);
  return const_cast<void*>(array.data());
}

void* written_beside(const py::array& array, const Label& label, const Param& param,
                     Memory& memory) {
  check_same_shape(array, label, param.array, "the parameter's");
  return written_in_its_order(array, label, param, memory);
}

void check_its_dtype(const py::array& array, const Label& label, const Param& param) {
  if (has_its_dtype(array, param) || check_dtype(array, label) == param.dtype) return;
  const bool is_plain = param.format == plain;
  fail_type(label, is_plain ? "the parameter's dtype " + dtype_name(param.array) : "dtype float32",
            dtype_name(array));
}

void check_is_float64(const py::array& array, const Label& label) {
  if (array.dtype().num() == float64_num && is_native(array.dtype().ptr())) return;
  fail_type(label, "dtype float64", dtype_name(array));
}

}  // namespace

Format small_format(const py::dtype& dtype) {
  if (!is_native(dtype.ptr())) return plain;
  return dtype.num() == float16_num ? f16 : is_bfloat16(dtype) ? bf16 : plain;
}

void fail_type(const Label& label, const std::string& expected, const std::string& got) {
  throw py::type_error(label.str() + ": expected " + expected + ", got " + got);
}
void fail_value(const Label& label, const std::string& expected, const std::string& got) {
  throw py::value_error(label.str() + ": expected " + expected + ", got " + got);
}

std::string dtype_name(const py::array& array) {
  return py::str(array.dtype()).cast<std::string>();
}
std::string shape_name(const py::array& array) {
  return py::str(array.attr("shape")).cast<std::string>();
}

std::vector<std::size_t> sizes_of(PyObject* array) {
  const auto& proxy = *py::detail::array_proxy(array);
  return {proxy.dimensions, proxy.dimensions + proxy.nd};
}

std::vector<std::size_t> axes_in_memory(PyObject* array) {
  const auto& proxy = *py::detail::array_proxy(array);
  std::vector<std::size_t> axes(static_cast<std::size_t>(proxy.nd));
  std::iota(axes.begin(), axes.end(), std::size_t{0});
  std::ranges::stable_sort(axes, std::greater<>(),
                           [&](std::size_t axis) { return proxy.strides[axis]; });
  return axes;
}

bool are_in_one_order(const Like& a, const Like& b) noexcept {
  return a.order == b.order && (a.order != Order::other || has_order_of(a.object, b.object));
}

std::string strides_name(const py::array& array) {
  return py::str(array.attr("strides")).cast<std::string>();
}

Format check_grad_format(const py::array& array, const Label& label, const Param& param) {
  const py::dtype dtype = array.dtype();
  if (dtype.is(param.array.dtype())) return param.format;
  const int num = dtype.num();
  if (is_native(dtype.ptr()) && (num == float32_num || num == float64_num)) {
    return format_beside(num, param);
  }
  const Format format = small_format(dtype);
  if (format == plain) {
    fail_type(label,
              std::string("dtype float32, float64, float16 or bfloat16") +
                  (is_native(dtype.ptr()) ? "" : " in native byte order"),
              dtype_name(array));
  }
  return format;
}

bool is_native(const PyObject* dtype) noexcept {
  const char order = py::detail::array_descriptor_proxy(dtype)->byteorder;
  return order == '=' || order == native_order;
}

bool is_aligned(const py::array& array) {
  return has_all(*py::detail::array_proxy(array.ptr()), aligned_flag);
}
py::array check_array(py::handle object, const Label& label) {
  if (!py::isinstance<py::array>(object)) {
    fail_type(label, "a NumPy array", Py_TYPE(object.ptr())->tp_name);
  }
  auto array = py::reinterpret_borrow<py::array>(object);
  if (!is_plain_array(object.ptr()) &&
      py::isinstance(object, py::module_::import("numpy.ma").attr("MaskedArray"))) {
    fail_type(label, "an array without a mask", "a masked array");
  }
  return array;
}

Dtype check_dtype(const py::array& array, const Label& label, const char* expected) {
  const py::dtype dtype = array.dtype();
  const bool native = is_native(dtype.ptr());
  if (native && dtype.num() == float32_num) return Dtype::f32;
  if (native && dtype.num() == float64_num) return Dtype::f64;
  fail_type(label, std::string("dtype ") + expected + " in native byte order", dtype_name(array));
}

void check_like(const py::array& array, const Label& label, const py::array& other,
                const std::string& whose) {
  if (check_dtype(array, label) != check_dtype(other, label)) {
    fail_type(label, whose + " dtype " + dtype_name(other), dtype_name(array));
  }
  check_same_shape(array, label, other, whose);
}

void check_same_shape(const py::array& array, const Label& label, const py::array& other,
                      const std::string& whose) {
  const bool same =
      has_shape_of(*py::detail::array_proxy(array.ptr()), *py::detail::array_proxy(other.ptr()));
  if (!same) fail_value(label, whose + " shape " + shape_name(other), shape_name(array));
}

void check_written_in_place(const py::array& array, const Label& label) {
  if (!array.writeable()) fail_value(label, "a writable array", "a read-only one");
  if (!is_aligned(array)) {
    fail_value(label, "data aligned to its item size", "a misaligned array");
  }
}

std::string Label::str() const {
  if (names_.is_none()) {
    const std::string name = role_ == Role::param                                ? "param"
                             : role_ == Role::grad || role_ == Role::zeroed_grad ? "grad"
                             : role_ == Role::copy                               ? "copy_to"
                                                                                 : name_;
    const bool is_alone = static_cast<std::ptrdiff_t>(tensor_) == alone;
    return is_alone ? name : name + "[" + std::to_string(tensor_) + "]";
  }
  const auto suffix =
      py::cast<std::string>(py::list(py::reinterpret_borrow<py::list>(names_))[tensor_]);
  switch (role_) {
    case Role::param:
      return "params" + suffix;
    case Role::grad:
    case Role::zeroed_grad:
      return "grads" + suffix;
    case Role::copy:
      return "copy_to" + suffix;
    default:
      return (role_ == Role::allocated ? "state_alloc" : "state") + suffix + "['" + name_ + "']";
  }
}

Unchanged::Unchanged(const py::array& array)
    : array_(array),
      data_(array.data()),
      dtype_(array.dtype()),
      size_(static_cast<std::size_t>(array.size())),
      flags_(array.flags()) {}

bool Unchanged::still() const {
  return is_as_it_was(array_.ptr(), data_, dtype_.ptr(), size_, flags_);
}

bool Param::still() const {
  return is_as_it_was(object, data, descr.ptr(), size, flags);
}

Extent extent_of(const void* data, py::ssize_t item_size, py::ssize_t rank,
                 const py::ssize_t* shape, const py::ssize_t* strides) {
  const auto first = reinterpret_cast<std::uintptr_t>(data);
  Extent extent{first, first + static_cast<std::uintptr_t>(item_size)};
  for (py::ssize_t axis = 0; axis < rank; ++axis) {
    if (shape[axis] == 0) return {first, first};
    const py::ssize_t reach = (shape[axis] - 1) * strides[axis];
    if (reach < 0) {
      extent.begin -= static_cast<std::uintptr_t>(-reach);
    } else {
      extent.end += static_cast<std::uintptr_t>(reach);
    }
  }
  return extent;
}

void sort_by_begin(std::vector<Extent>& extents) {
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
}

Extent extent_of(const py::array& array) {
  return extent_of(array.data(), array.itemsize(), array.ndim(), array.shape(), array.strides());
}

void Memory::add(const py::array& array, const Label& label) {
  add(extent_of(array), label);
}

void Memory::check_overlap() {
  const auto [other, range] = find_overlap(std::span(ranges_));
  if (!other) return;
  // Name the culprit the user can act on: not a parameter, not what is only read.
  const bool keep = other->label.role() == Role::param || range->label.role() == Role::output;
  const Range& first = keep ? *other : *range;
  const Range& second = keep ? *range : *other;
  const bool same = first.begin == second.begin && first.end == second.end;
  fail_value(second.label, "memory of its own",
             std::string(same ? "the same memory as " : "an overlap with ") + first.label.str());
}

Param check_param(py::handle object, const Label& label) {
  py::array array = check_array(object, label);
  const int num = array.dtype().num();
  const bool is_usual = num == float32_num || num == float64_num;  // asked first: it is quick
  const Format format = is_usual ? plain : small_format(array.dtype());
  const Dtype dtype = format == plain
                          ? check_dtype(array, label, "float32, float64, float16 or bfloat16")
                          : Dtype::f32;
  check_written_in_place(array, label);
  const Order order = is_order(array, Order::c)   ? Order::c
                      : is_order(array, Order::f) ? Order::f
                                                  : Order::other;
  if (order == Order::other && !has_no_gaps(array)) {
    fail_value(label, "an array without gaps, in any order of its axes (it is updated in place)",
               "strides " + strides_name(array));
  }
  const auto& proxy = *py::detail::array_proxy(array.ptr());
  const std::uint8_t item_size = dtype == Dtype::f32 ? sizeof(float) : sizeof(double);
  const Like like{array.ptr(), proxy.data, size_of(proxy), proxy.flags,
                  item_size,   dtype,      order,          format};
  return {like, std::move(array), py::reinterpret_borrow<py::object>(proxy.descr)};
}

Checked check_grad(py::handle object, const Label& label, const Param& param, Memory& memory) {
  py::array array = check_readable_grad(object, label, param.array);
  const Format format = check_grad_format(array, label, param);
  check_same_shape(array, label, param.array, "the parameter's");
  memory.add(array, label);
  if (!is_order_of(array, param) || !is_aligned(array)) array = copied_in_order_of(array, param);
  return {std::move(array), format};
}

void bind_arrays() {
  array_type = py::detail::npy_api::get().PyArray_Type_;
}

bool lies_like(PyObject* object, const Like& param, Format& format) noexcept {
  const auto& array = *py::detail::array_proxy(object);
  const auto& like = *py::detail::array_proxy(param.object);
  if (array.descr == like.descr) {
    format = param.format;
  } else {
    const int num = py::detail::array_descriptor_proxy(array.descr)->type_num;
    if (!is_native(array.descr)) return false;
    if (num == float32_num || num == float64_num) {
      format = format_beside(num, param);
    } else if (num == float16_num || num == known_bfloat16_num) {
      format = num == float16_num ? f16 : bf16;
    } else {
      return false;
    }
  }
  if (param.order == Order::other) [[unlikely]] {
    return has_all(array, aligned_flag) && has_shape_of(array, like) &&
           has_order_of(object, param.object);
  }
  return has_all(array, order_flag(param.order) | aligned_flag) && has_shape_of(array, like);
}

bool is_usual_param(PyObject* object, Like& param) noexcept {
  if (!is_plain_array(object)) return false;
  const auto& array = *py::detail::array_proxy(object);
  const int num = py::detail::array_descriptor_proxy(array.descr)->type_num;
  const bool is_float = num == float32_num;
  const bool is_c = has_all(array, order_flag(Order::c));
  if (!(is_float || num == float64_num) || !is_native(array.descr) ||
      !has_all(array, aligned_flag | writable_flag) ||
      !(is_c || has_all(array, order_flag(Order::f)))) {
    return false;
  }
  param = {object,
           array.data,
           size_of(array),
           array.flags,
           is_float ? std::uint8_t{sizeof(float)} : std::uint8_t{sizeof(double)},
           is_float ? Dtype::f32 : Dtype::f64,
           is_c ? Order::c : Order::f,
           plain};
  return true;
}

bool is_usual_state(PyObject* object, const Like& param) noexcept {
  if (!is_plain_array(object)) return false;
  const auto& array = *py::detail::array_proxy(object);
  const auto& like = *py::detail::array_proxy(param.object);
  return array.descr == like.descr && has_shape_of(array, like) &&
         has_all(array, order_flag(param.order) | aligned_flag | writable_flag);
}

bool is_usual_remembered(PyObject* object) noexcept {
  if (!is_plain_array(object)) return false;
  const auto& array = *py::detail::array_proxy(object);
  const int num = py::detail::array_descriptor_proxy(array.descr)->type_num;
  return num == float64_num && is_native(array.descr) && size_of(array) == 1 &&
         has_all(array, aligned_flag | writable_flag);
}

Checked check_grad_in_place(py::handle object, const Label& label, const Param& param,
                            Memory& memory) {
  check_is_not_foreign(object, label);
  py::array array = check_array(object, label);
  const Format format = check_grad_format(array, label, param);
  check_same_shape(array, label, param.array, "the parameter's");
  if (label.written()) check_written_in_place(array, label);
  check_same_order(array, label, param);
  memory.add(array, label);
  return {std::move(array), format};
}

Checked check_copy(py::handle object, const Label& label, const Param& param, Memory& memory) {
  py::array array = check_array(object, label);
  const Format format = small_format(array.dtype());
  if (format == plain) fail_type(label, "dtype float16 or bfloat16", dtype_name(array));
  if (param.dtype != Dtype::f32 || param.format != plain) {
    fail_type(label, "None beside a parameter that is not float32", dtype_name(array));
  }
  written_beside(array, label, param, memory);
  return {std::move(array), format};
}

void* check_state(py::handle object, const Label& label, const Param& param, Memory& memory) {
  const py::array array = check_array(object, label);
  check_its_dtype(array, label, param);
  return written_beside(array, label, param, memory);
}

void* check_shaped_state(py::handle object, const Label& label, const Param& param, Shape shape,
                         Memory& memory) {
  const py::array array = check_array(object, label);
  check_its_dtype(array, label, param);
  std::vector<std::size_t> expected = sizes_of(param.object);
  if (shape == Shape::axes) {
    std::size_t total = 0;
    for (const std::size_t size : expected) total += size;
    expected = {total};
  } else {
    expected[expected.size() - (shape == Shape::rows ? 1 : 2)] = 1;
  }
  if (sizes_of(array.ptr()) != expected) {
    const std::string text = py::str(py::tuple(py::cast(expected))).cast<std::string>();
    fail_value(label, "shape " + text + " beside a parameter of shape " + shape_name(param.array),
               shape_name(array));
  }
  return written_in_its_order(array, label, param, memory);
}

double* check_remembered(py::handle object, const Label& label, Memory& memory) {
  const py::array array = check_array(object, label);
  check_is_float64(array, label);
  if (array.size() != 1) fail_value(label, "an array of one element", shape_name(array));
  check_written_in_place(array, label);
  memory.add(array, label);
  return static_cast<double*>(const_cast<void*>(array.data()));
}

void* check_average(py::handle object, bool is_double, const Label& label, const Param& param,
                    Memory& memory) {
  if (!is_double) return check_state(object, label, param, memory);
  const py::array array = check_array(object, label);
  check_is_float64(array, label);
  return written_beside(array, label, param, memory);
}

CheckedState check_rule_state(py::handle object, const Label& label, const Param& param,
                              Memory& memory) {
  const py::array array = check_array(object, label);
  const py::dtype dtype = array.dtype();
  const bool is_small = param.dtype == Dtype::f32 && !has_its_dtype(array, param);
  if (is_small && small_format(dtype) == bf16) {
    return {written_beside(array, label, param, memory), nullptr, bf16_state};
  }
  if (!is_small || dtype.num() != uint8_num) {
    return {check_state(object, label, param, memory), nullptr, plain_state};
  }
  const std::size_t blocks = (param.size + block_size - 1) / block_size;
  const std::size_t size = blocks * (block_size + 1);
  if (array.ndim() != 1 || static_cast<std::size_t>(array.size()) != size) {
    const std::string shape = "(" + std::to_string(size) + ",)";
    fail_value(label, "8-bit codes and scales of shape " + shape, shape_name(array));
  }
  check_written_in_place(array, label);
  if (!is_order(array, Order::c)) {
    fail_value(label, "a contiguous array", "strides " + strides_name(array));
  }
  memory.add(array, label);
  auto* codes = static_cast<std::uint8_t*>(const_cast<void*>(array.data()));
  return {codes, codes + blocks * block_size, q8_state};
}

}  // namespace onepass::bindings
