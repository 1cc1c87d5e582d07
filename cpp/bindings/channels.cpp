#include "channels.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace onepass::bindings {
namespace {

py::module_ numpy() {
  return py::module_::import("numpy");
}

// The axes from the one with the largest steps in memory to the one with the smallest, but for
// those of length 1; empty if the elements do not fill their memory.
std::vector<py::ssize_t> memory_order(const py::array& array) {
  std::vector<py::ssize_t> axes;
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    if (array.shape(axis) != 1) axes.push_back(axis);
  }
  std::stable_sort(axes.begin(), axes.end(), [&](py::ssize_t a, py::ssize_t b) {
    return array.strides(a) > array.strides(b);
  });
  py::ssize_t step = array.itemsize();
  for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
    if (array.strides(*axis) != step) return {};
    step *= array.shape(*axis);
  }
  return axes;
}

// Whether the elements of two arrays of one shape lie in the same order.
bool same_layout(const py::array& a, const py::array& b) {
  if (a.size() == 0) return true;
  for (py::ssize_t axis = 0; axis < a.ndim(); ++axis) {
    if (a.shape(axis) != 1 && a.strides(axis) != b.strides(axis)) return false;
  }
  return true;
}

// The largest count of batches: a double holds every whole number up to 2**53.
constexpr std::int64_t most_batches = std::int64_t{1} << 53;

}  // namespace

py::array Views::of(py::handle object, const Label& label) {
  const py::array array = check_array(object, label);
  hold(array);
  const auto& api = py::detail::npy_api::get();
  auto* const plain = reinterpret_cast<PyObject*>(api.PyArray_Type_);
  auto view = py::reinterpret_steal<py::array>(api.PyArray_View_(array.ptr(), nullptr, plain));
  if (!view) throw py::error_already_set();
  return view;
}

// NumPy never resizes an array that has a weak reference, not even with refcheck=False. The array
// that owns the memory may be a base of the given one, so each in the chain gets a weak reference.
void Views::hold(py::handle array) {
  constexpr std::size_t usual = 16;  // arrays of a call, and what they are parts of
  if (held_.empty()) held_.reserve(usual);
  py::handle owner = array;
  while (owner && py::isinstance<py::array>(owner)) {
    held_.push_back(py::weakref(owner));
    owner = py::detail::array_proxy(owner.ptr())->base;
  }
}

ChannelArray check_channels(py::handle object, const Label& label, py::ssize_t axis,
                            Arguments& arguments) {
  py::array array = arguments.views.of(object, label);
  const Dtype dtype = check_dtype(array, label);
  const py::ssize_t rank = array.ndim();
  if (rank < 2) {
    fail_value(label, "at least 2 axes, one of them the channels", "shape " + shape_name(array));
  }
  if (axis < -rank || axis >= rank) {
    fail_value(Label("axis", Role::input),
               "an axis of " + label.str() + ", from -" + std::to_string(rank) + " to " +
                   std::to_string(rank - 1),
               std::to_string(axis));
  }
  if (axis < 0) axis += rank;
  arguments.memory.add(array, label);
  const auto channels = static_cast<std::size_t>(array.shape(axis));
  if (array.size() == 0) return {array, false, dtype, axis, 0, channels, 0};
  std::vector<py::ssize_t> order = memory_order(array);
  const bool copied = !is_aligned(array) || (order.empty() && array.size() > 1);
  if (copied) {
    array = numpy().attr("array")(array, py::arg("copy") = true, py::arg("order") = "K");
    order = memory_order(array);
  }
  ChannelArray found{array, copied, dtype, axis, 1, channels, 1};
  if (channels == 1) {
    found.outer = static_cast<std::size_t>(array.size());
    return found;
  }
  std::size_t* extent = &found.outer;
  for (const py::ssize_t a : order) {
    if (a == axis) {
      extent = &found.inner;
    } else {
      *extent *= static_cast<std::size_t>(array.shape(a));
    }
  }
  return found;
}

py::array new_like(const ChannelArray& x) {
  return numpy().attr("empty_like")(x.array);
}

py::array check_like_channels(py::handle object, const Label& label, const ChannelArray& x,
                              Arguments& arguments) {
  py::array array = arguments.views.of(object, label);
  check_like(array, label, x.array, "x's");
  arguments.memory.add(array, label);
  if (same_layout(array, x.array) && is_aligned(array)) return array;
  const py::array copy = new_like(x);
  numpy().attr("copyto")(copy, array);
  return copy;
}

py::array check_out(py::handle object, const Label& label, const ChannelArray& x,
                    const std::vector<py::array>& same, Arguments& arguments) {
  py::array array = arguments.views.of(object, label);
  check_like(array, label, x.array, "x's");
  check_written_in_place(array, label);
  if (!same_layout(array, x.array)) {
    fail_value(
        label,
        "strides " + strides_name(x.array) +
            (x.copied ? ", as x has when it is copied to fill its memory" : ", as x has in memory"),
        "strides " + strides_name(array));
  }
  for (const py::array& other : same) {
    if (array.data() == other.data()) {
      arguments.memory.overwrite(array, label);
      return array;
    }
  }
  arguments.memory.add(array, label);
  return array;
}

void check_has_variance(const ChannelArray& x, const Label& label) {
  const std::size_t count = x.outer * x.inner;
  if (count > 1 || x.channels == 0) return;
  const char* reason = count ? "one has no variance" : "none has no mean";
  fail_value(label, std::string("more than one value per channel, because ") + reason,
             "shape " + shape_name(x.array));
}

void check_not_in_place(py::handle out, const Label& label, const py::array& other,
                        const char* name) {
  if (other.size() == 0 || !py::isinstance<py::array>(out)) return;
  if (py::reinterpret_borrow<py::array>(out).data() != other.data()) return;
  fail_value(label, std::string("memory of its own, because the backward pass needs ") + name,
             std::string("the same memory as ") + name);
}

std::int64_t* check_counter(py::handle object, const Label& label, Arguments& arguments) {
  if (!py::isinstance<py::array_t<std::int64_t>>(object)) {
    fail_type(label, "an int64 array", py::repr(object).cast<std::string>());
  }
  const py::array array = arguments.views.of(object, label);
  if (array.ndim() != 0) fail_value(label, "no axes", "shape " + shape_name(array));
  check_written_in_place(array, label);
  arguments.memory.add(array, label);
  auto* const count = static_cast<std::int64_t*>(const_cast<void*>(array.data()));
  if (*count < 0 || *count >= most_batches) {
    fail_value(label, "a number of batches below 2**53", std::to_string(*count));
  }
  return count;
}

ChannelVector::ChannelVector(py::handle object, const Label& label, const ChannelArray& x,
                             bool any_dtype, Arguments& arguments) {
  array_ = arguments.views.of(object, label);
  dtype_ = check_dtype(array_, label);
  if (!any_dtype && dtype_ != x.dtype) {
    fail_type(label, "x's dtype " + dtype_name(x.array), dtype_name(array_));
  }
  if (array_.ndim() != 1 || static_cast<std::size_t>(array_.shape(0)) != x.channels) {
    fail_value(label,
               "shape (" + std::to_string(x.channels) + ",), a value per channel of axis " +
                   std::to_string(x.axis),
               "shape " + shape_name(array_));
  }
  if (label.written()) {
    check_written_in_place(array_, label);
    if (x.channels > 1 && array_.strides(0) == 0) {
      fail_value(label, "memory for each channel", "strides (0,)");
    }
  }
  arguments.memory.add(array_, label);
  if (!is_aligned(array_)) array_ = numpy().attr("array")(array_, py::arg("copy") = true);
}

PerChannel ChannelVector::source() const {
  return {array_.data(), array_.strides(0), dtype_ == Dtype::f32};
}

std::vector<double> ChannelVector::values() const {
  std::vector<double> values(static_cast<std::size_t>(array_.shape(0)));
  source().load(values.data(), values.size());
  return values;
}

void ChannelVector::check_not_negative(const Label& label) const {
  const auto channels = static_cast<std::size_t>(array_.shape(0));
  std::size_t negative = 0;  // counted, because a loop that stops at the first is no SIMD loop
  double part[256];
  for (std::size_t c = 0; c < channels; c += std::size(part)) {
    const std::size_t n = std::min(std::size(part), channels - c);
    source().load(part, n, c);
    for (std::size_t k = 0; k < n; ++k) negative += part[k] < 0;
  }
  if (negative == 0) return;
  const std::vector<double> all = values();
  const auto first = std::ranges::find_if(all, [](double value) { return value < 0; });
  fail_value(label, "values >= 0",
             py::repr(py::float_(*first)).cast<std::string>() + " in channel " +
                 std::to_string(first - all.begin()));
}

bool ChannelVector::can_hold(std::span<const double> values, double factor) const noexcept {
  return std::ranges::all_of(values, [&](double value) {
    const double kept = value * factor;
    return std::isfinite(dtype_ == Dtype::f32 ? static_cast<float>(kept) : kept);
  });
}

void ChannelVector::write(const std::vector<double>& values) noexcept {
  auto* p = static_cast<char*>(const_cast<void*>(array_.data()));
  for (const double value : values) {
    if (dtype_ == Dtype::f32) {
      *reinterpret_cast<float*>(p) = static_cast<float>(value);
    } else {
      *reinterpret_cast<double*>(p) = value;
    }
    p += array_.strides(0);
  }
}

}  // namespace onepass::bindings
