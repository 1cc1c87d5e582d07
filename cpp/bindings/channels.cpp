#include "channels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <utility>

#include "gil.hpp"

namespace onepass::bindings {
namespace {

py::module_ numpy() {
  return py::module_::import("numpy");
}

// Whether no Python code can run until the call ends: no array has hooks, none is copied, and other
// threads wait.
bool is_quiet(std::initializer_list<PyObject*> arrays) {
#ifdef Py_GIL_DISABLED
  return arrays.size() == 0;
#else
  constexpr int aligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_, c_order = py::array::c_style;
  return std::ranges::all_of(arrays, [](PyObject* object) {
    if (object == Py_None) return true;
    if (!is_plain_array(object)) return false;
    const auto* array = py::detail::array_proxy(object);
    std::size_t size = 1;
    for (int axis = 0; axis < array->nd; ++axis) {
      size *= static_cast<std::size_t>(array->dimensions[axis]);
    }
    const bool is_vector = array->nd == 1;  // read at any stride
    return size < min_elements_without_gil && (array->flags & aligned) != 0 &&
           (is_vector || (array->flags & c_order) != 0);
  });
#endif
}

// The axes from the one with the largest steps in memory to the one with the smallest, but for
// those of length 1; empty if the elements do not fill their memory.
std::vector<py::ssize_t> memory_order(const View& view) {
  std::vector<py::ssize_t> axes;
  for (py::ssize_t axis = 0; axis < view.rank; ++axis) {
    if (view.shape()[axis] != 1) axes.push_back(axis);
  }
  std::stable_sort(axes.begin(), axes.end(), [&](py::ssize_t a, py::ssize_t b) {
    return view.strides()[a] > view.strides()[b];
  });
  py::ssize_t step = view.item_size();
  for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
    if (view.strides()[*axis] != step) return {};
    step *= view.shape()[*axis];
  }
  return axes;
}

void check_like(const View& view, Argument argument, const View& x) {
  if (!view.has_dtype_of(x)) {
    std::string got = dtype_name(view.array());
    if (!argument.written()) got += std::string(" (pass ") + argument.name + ".astype(x.dtype))";
    fail_type(argument, "x's dtype " + dtype_name(x.array()), got);
  }
  if (view.rank == x.rank && std::equal(view.shape(), view.shape() + view.rank, x.shape())) return;
  check_same_shape(view.array(), argument, x.array(), "x's");  // says what differs
  fail_value(argument, "an array that does not change during the call", "one that did");
}

void check_written_in_place(const View& view, Argument argument) {
  constexpr int writeable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  if ((view.flags & writeable) != 0 && view.is_aligned()) return;
  check_written_in_place(view.array(), argument);
  fail_value(argument, "an array that does not change during the call", "one that did");
}

// A plain array of this memory, or with `data` null of new memory; in C order without strides.
py::object new_array(int type_num, py::ssize_t rank, const py::ssize_t* shape,
                     const py::ssize_t* strides, void* data = nullptr) {
  const auto& api = py::detail::npy_api::get();
  PyObject* descr = api.PyArray_DescrFromType_(type_num);
  if (!descr) throw py::error_already_set();
  auto array = py::reinterpret_steal<py::object>(api.PyArray_NewFromDescr_(
      api.PyArray_Type_, descr, static_cast<int>(rank), shape, strides, data, 0, nullptr));
  if (!array) throw py::error_already_set();
  return array;
}

py::object copy_of(const View& view, const char* order) {
  return numpy().attr("array")(view.plain(), py::arg("copy") = true, py::arg("order") = order);
}

// Returns n if no value is negative.
template <class T>
std::size_t first_negative(const char* data, py::ssize_t stride, std::size_t n) noexcept {
  std::size_t c = 0;
  while (c < n && !(*reinterpret_cast<const T*>(data) < 0)) {
    data += stride;
    ++c;
  }
  return c;
}

// The largest count of batches: a double holds every whole number up to 2**53.
constexpr std::int64_t most_batches = std::int64_t{1} << 53;

}  // namespace

Arguments::Arguments(std::initializer_list<PyObject*> arrays, bool calls_back) {
  if (!calls_back && is_quiet(arrays)) return;
  for (PyObject* array : arrays) hold(array);
}

void Arguments::keep(py::object object) {
  if (!kept_) {
    kept_.reset(new std::vector<py::object>);
    kept_->reserve(2 * most_arrays);
  }
  kept_->push_back(std::move(object));
}

[[gnu::noinline]] void Arguments::Release::operator()(
    std::vector<py::object>* kept) const noexcept {
  delete kept;
}

// NumPy never resizes an array that has a weak reference, not even with refcheck=False. The array
// that owns the memory may be a base of the given one, so each in the chain gets a weak reference.
void Arguments::hold(py::handle array) {
  while (array && py::isinstance<py::array>(array)) {
    keep(py::weakref(array));
    array = py::detail::array_proxy(array.ptr())->base;
  }
}

void Arguments::add(const Extent& extent, Argument argument, bool overwrites) {
  if (extent.begin == extent.end) return;
  for (std::size_t i = 0; overwrites && i < n_ranges_; ++i) {
    Range& range = ranges_[i];
    const bool same = range.extent.begin == extent.begin && range.extent.end == extent.end;
    if (same && !range.written) range.extent.end = extent.begin;  // it meets nothing now
  }
  ranges_[n_ranges_++] = {extent, argument.name, argument.written()};
}

void Arguments::check_overlap() const {
  bool any = false;
  for (std::size_t i = 0; i < n_ranges_; ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      const Range &a = ranges_[i], &b = ranges_[k];
      const bool meet = a.extent.begin < b.extent.end && b.extent.begin < a.extent.end;
      any |= meet && (a.written || b.written);
    }
  }
  if (any) check_each_overlap();
}

// Says which array meets which.
[[gnu::cold]] void Arguments::check_each_overlap() const {
  Memory memory;
  for (std::size_t i = 0; i < n_ranges_; ++i) {
    const Range& range = ranges_[i];
    memory.add(range.extent, Argument{range.name, range.written ? Role::output : Role::input});
  }
  memory.check_overlap();
}

View::View(py::handle given, Argument argument, Small small) : object(given) {
  if (!is_plain_array(given.ptr()))
    check_array(given, argument);  // which may run hooks, so it comes first
  const auto* seen = py::detail::array_proxy(given.ptr());
  data = seen->data;
  rank = seen->nd;
  flags = seen->flags;
  for (py::ssize_t axis = 0; axis < rank; ++axis) {
    numbers_[axis] = seen->dimensions[axis];
    numbers_[rank + axis] = seen->strides[axis];
  }
  const auto* descr = py::detail::array_descriptor_proxy(seen->descr);
  type_num = descr->type_num;
  if (descr->byteorder == '=' && type_num == float32_num) {
    dtype = Dtype::f32;
  } else if (descr->byteorder == '=' && type_num == float64_num) {
    dtype = Dtype::f64;
  } else if (small == Small::refused) {
    dtype = check_dtype(array(), argument);
  } else if ((format = small_format(array().dtype())) != Format::plain) {
    dtype = Dtype::f32;
  } else {
    dtype = check_dtype(array(), argument, "float32, float64, float16 or bfloat16");
  }
}

py::object View::plain() const {
  return new_array(type_num, rank, shape(), strides(), data);
}

bool View::has_layout_of(const View& other) const {
  if (is_c_order() && other.is_c_order()) return true;
  for (py::ssize_t axis = 0; axis < rank; ++axis) {
    if (shape()[axis] == 0) return true;
  }
  for (py::ssize_t axis = 0; axis < rank; ++axis) {
    if (shape()[axis] != 1 && strides()[axis] != other.strides()[axis]) return false;
  }
  return true;
}

py::ssize_t View::size() const {
  return std::accumulate(shape(), shape() + rank, py::ssize_t{1}, std::multiplies<>());
}

ChannelArray::ChannelArray(py::handle object, Argument argument, py::ssize_t axis_given,
                           Arguments& arguments)
    : axis(axis_given), view(object, argument, View::Small::allowed) {
  const py::ssize_t rank = view.rank;
  if (rank < 2) {
    fail_value(argument, "at least 2 axes, one of them the channels",
               "shape " + shape_name(view.array()));
  }
  if (axis < -rank || axis >= rank) {
    fail_value(Argument{"axis"},
               std::string("an axis of ") + argument.name + ", from -" + std::to_string(rank) +
                   " to " + std::to_string(rank - 1),
               std::to_string(axis));
  }
  if (axis < 0) axis += rank;
  arguments.add(view.extent(), argument);
  channels = static_cast<std::size_t>(view.shape()[axis]);
  const py::ssize_t size = view.size();
  if (view.is_c_order() && view.is_aligned()) {
    std::size_t* extent = &outer;
    for (py::ssize_t a = 0; a < rank; ++a) {
      if (a == axis) {
        extent = &inner;
      } else {
        *extent *= static_cast<std::size_t>(view.shape()[a]);
      }
    }
  } else if (size != 0) {
    arrange(argument, arguments);
  }
  if (size == 0) {
    outer = inner = 0;
  } else if (channels == 1) {
    outer *= std::exchange(inner, 1);
  }
}

// Finds the extents of an array that is not in C order.
[[gnu::noinline]] void ChannelArray::arrange(Argument argument, Arguments& arguments) {
  std::vector<py::ssize_t> order = memory_order(view);
  if (!view.is_aligned() || (order.empty() && view.size() > 1)) {
    copy(argument, arguments);
    order = memory_order(view);
  }
  std::size_t* extent = &outer;
  for (const py::ssize_t a : order) {
    if (a == axis) {
      extent = &inner;
    } else {
      *extent *= static_cast<std::size_t>(view.shape()[a]);
    }
  }
}

ChannelArray::ChannelArray(py::handle object, Argument argument, Arguments& arguments)
    : view(object, argument, View::Small::refused) {
  arguments.add(view.extent(), argument);
  if (!view.is_c_order() || !view.is_aligned()) copy(argument, arguments, "C");
  outer = static_cast<std::size_t>(view.size());
}

void ChannelArray::copy(Argument argument, Arguments& arguments, const char* order) {
  py::object copy = copy_of(view, order);
  view = View(copy, argument, View::Small::allowed);
  copied = true;
  arguments.keep(std::move(copy));
}

py::object copy_in_c_order(const View& view) {
  return copy_of(view, "C");
}

py::object new_like(const ChannelArray& x) {
  return new_array(x.view.type_num, x.view.rank, x.view.shape(),
                   x.view.is_c_order() ? nullptr : x.view.strides());
}

py::object new_vector(std::size_t channels, Dtype dtype) {
  const auto length = static_cast<py::ssize_t>(channels);
  return new_array(dtype == Dtype::f32 ? float32_num : float64_num, 1, &length, nullptr);
}

void* check_like_channels(py::handle object, Argument argument, const ChannelArray& x,
                          Arguments& arguments) {
  const View view(object, argument, View::Small::allowed);
  check_like(view, argument, x.view);
  arguments.add(view.extent(), argument);
  if (view.is_aligned() && view.has_layout_of(x.view)) return view.data;
  py::object copy = new_like(x);
  numpy().attr("copyto")(copy, view.plain());
  void* const data = data_of(copy);
  arguments.keep(std::move(copy));
  return data;
}

void* check_out(py::handle object, Argument argument, const ChannelArray& x,
                std::initializer_list<const void*> same, Arguments& arguments) {
  const View view(object, argument, View::Small::allowed);
  check_like(view, argument, x.view);
  check_written_in_place(view, argument);
  if (!view.has_layout_of(x.view)) {
    fail_value(
        argument,
        "strides " + strides_name(x.view.array()) +
            (x.copied ? ", as x has when it is copied to fill its memory" : ", as x has in memory"),
        "strides " + strides_name(view.array()));
  }
  const bool overwrites = std::ranges::find(same, view.data) != same.end();
  arguments.add(view.extent(), argument, overwrites);
  return view.data;
}

void check_has_variance(const ChannelArray& x, Argument argument) {
  const std::size_t count = x.outer * x.inner;
  if (count > 1 || x.channels == 0) return;
  const char* reason = count ? "one has no variance" : "none has no mean";
  fail_value(argument, std::string("more than one value per channel, because ") + reason,
             "shape " + shape_name(x.view.array()));
}

void check_not_in_place(py::handle out, Argument argument, const ChannelArray& x, const void* other,
                        const char* name) {
  if (x.size() == 0 || !py::isinstance<py::array>(out) || data_of(out) != other) return;
  fail_value(argument, std::string("memory of its own, because the backward pass needs ") + name,
             std::string("the same memory as ") + name);
}

std::int64_t* check_counter(py::handle object, Argument argument, Arguments& arguments) {
  if (!py::isinstance<py::array_t<std::int64_t>>(object)) {
    fail_type(argument, "an int64 array", py::repr(object).cast<std::string>());
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (array.ndim() != 0) fail_value(argument, "no axes", "shape " + shape_name(array));
  check_written_in_place(array, argument);
  auto* const count = static_cast<std::int64_t*>(data_of(array));
  arguments.add(extent_of(count, sizeof *count, 0, nullptr, nullptr), argument);
  if (*count < 0 || *count >= most_batches) {
    fail_value(argument, "a number of batches below 2**53", std::to_string(*count));
  }
  return count;
}

ChannelVector::ChannelVector(py::handle object, Argument argument, const ChannelArray& x,
                             bool any_dtype, Arguments& arguments) {
  const View view(object, argument, View::Small::refused);
  if (!any_dtype && view.dtype != x.view.dtype) {
    const bool is_small = x.view.format != Format::plain;
    fail_type(argument, is_small ? "dtype float32" : "x's dtype " + dtype_name(x.view.array()),
              dtype_name(view.array()));
  }
  if (view.rank != 1 || static_cast<std::size_t>(view.shape()[0]) != x.channels) {
    fail_value(argument,
               "shape (" + std::to_string(x.channels) + ",), a value per channel of axis " +
                   std::to_string(x.axis),
               "shape " + shape_name(view.array()));
  }
  data_ = view.data;
  stride_ = view.strides()[0];
  channels_ = x.channels;
  dtype_ = view.dtype;
  if (argument.written()) {
    check_written_in_place(view, argument);
    if (x.channels > 1 && stride_ == 0) {
      fail_value(argument, "memory for each channel", "strides (0,)");
    }
  }
  arguments.add(view.extent(), argument);
  if (view.is_aligned()) return;
  py::object copy = copy_of(view, "K");
  data_ = static_cast<char*>(data_of(copy));
  stride_ = view.item_size();
  arguments.keep(std::move(copy));
}

void ChannelVector::check_not_negative(Argument argument) const {
  const std::size_t c = dtype_ == Dtype::f32 ? first_negative<float>(data_, stride_, channels_)
                                             : first_negative<double>(data_, stride_, channels_);
  if (c == channels_) return;
  double value;
  source().load(&value, 1, c);
  fail_value(argument, "values >= 0",
             py::repr(py::float_(value)).cast<std::string>() + " in channel " + std::to_string(c));
}

bool ChannelVector::can_hold(std::span<const double> values, double factor) const noexcept {
  return std::ranges::all_of(values, [&](double value) {
    const double kept = value * factor;
    return std::isfinite(dtype_ == Dtype::f32 ? static_cast<float>(kept) : kept);
  });
}

void ChannelVector::write(std::span<const double> values) noexcept {
  char* p = data_;
  for (const double value : values) {
    if (dtype_ == Dtype::f32) {
      *reinterpret_cast<float*>(p) = static_cast<float>(value);
    } else {
      *reinterpret_cast<double*>(p) = value;
    }
    p += stride_;
  }
}

}  // namespace onepass::bindings
