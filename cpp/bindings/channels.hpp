// The checks of arrays with channels, and of those with a value per channel.
//
// What NumPy says of an array (address, shape, strides, dtype) is read once, since another thread
// or a hook of a subclass may change it while the call runs; and the memory of the arrays is kept
// where it is as long as such code may run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "arrays.hpp"
#include "values.hpp"

namespace onepass::bindings {

// An argument's name, and whether the call writes it. A Label is made of it for a message only: a
// name lies in registers.
struct Argument {
  const char* name;
  Role role = Role::input;
  bool written() const { return role == Role::output; }
  operator Label() const { return {name, role}; }
};

// What the checks of one call share: the memory it touches, and what keeps that where it is.
class Arguments {
 public:
  // All arrays that the caller gave; what is no array is left to the checks. `calls_back`: Python
  // code will run.
  explicit Arguments(std::initializer_list<PyObject*> arrays, bool calls_back = false);
  // Keeps an object until the call ends.
  void keep(py::object object);
  // Memory of this call. Where `overwrites`, an array that was added as one that is read lies there
  // too, and may.
  void add(const Extent& extent, Argument argument, bool overwrites = false);
  void check_overlap() const;  // throws ValueError where a written array meets another

 private:
  struct Range {
    Extent extent;
    const char* name;
    bool written;
  };
  void hold(py::handle array);
  void check_each_overlap() const;
  static constexpr std::size_t most_arrays = 16;
  struct Release {
    void operator()(std::vector<py::object>* kept) const noexcept;
  };
  std::unique_ptr<std::vector<py::object>, Release> kept_;  // null while there are none
  std::size_t n_ranges_ = 0;
  Range ranges_[most_arrays];
};

// An array as a call sees it.
class View {
 public:
  // Throws TypeError for what is no array, or is neither float32 nor float64 nor, where that is
  // `allowed`, of 16 bits.
  enum class Small { refused, allowed };
  View(py::handle object, Argument argument, Small small);

  bool is_aligned() const { return (flags & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0; }
  bool is_c_order() const { return (flags & py::array::c_style) != 0; }
  bool has_layout_of(const View& other) const;  // both have the same shape
  const py::ssize_t* shape() const { return numbers_; }
  const py::ssize_t* strides() const { return numbers_ + rank; }
  bool has_dtype_of(const View& other) const {
    return dtype == other.dtype && format == other.format;
  }
  py::ssize_t item_size() const {
    return format != Format::plain ? 2 : dtype == Dtype::f32 ? 4 : 8;
  }
  py::ssize_t size() const;
  // An array of its own on the same memory, which has no hooks and does not change.
  py::object plain() const;
  // What the caller gave, for the messages of arrays.hpp.
  py::array array() const { return py::reinterpret_borrow<py::array>(object); }
  Extent extent() const { return extent_of(data, item_size(), rank, shape(), strides()); }

  py::handle object;
  char* data;
  py::ssize_t rank;
  int flags;
  Dtype dtype;                    // that is computed with
  Format format = Format::plain;  // or 16 bits
  int type_num;                   // NumPy's

 private:
  static constexpr std::size_t max_rank = 64;  // NumPy's
  py::ssize_t numbers_[2 * max_rank];
};

// The array of a call that says how many channels there are. Of any layout: where the elements do
// not fill their memory, a copy takes its place. In C order it is `outer` x `channels` x `inner`.
class ChannelArray {
 public:
  ChannelArray(py::handle object, Argument argument, py::ssize_t axis_given, Arguments& arguments);
  // In C order, into which it is copied where it is not; without channels, of any rank.
  ChannelArray(py::handle object, Argument argument, Arguments& arguments);
  std::size_t size() const { return outer * channels * inner; }

  bool copied = false;
  py::ssize_t axis = 0;  // not negative
  std::size_t outer = 1, channels = 1, inner = 1;
  View view;

 private:
  void arrange(Argument argument, Arguments& arguments);
  void copy(Argument argument, Arguments& arguments, const char* order = "K");
};

py::object copy_in_c_order(const View& view);

// The data of an array like `x` in shape and dtype; a copy's where its layout is another.
void* check_like_channels(py::handle object, Argument argument, const ChannelArray& x,
                          Arguments& arguments);

// More than one value per channel, without which there is no variance.
void check_has_variance(const ChannelArray& x, Argument argument);

// The data of a writable array like `x` in everything. It may lie where one of `same` lies.
void* check_out(py::handle object, Argument argument, const ChannelArray& x,
                std::initializer_list<const void*> same, Arguments& arguments);

// Not the memory of an array that the backward pass will read; says so, where check_out could not.
void check_not_in_place(py::handle out, Argument argument, const ChannelArray& x, const void* other,
                        const char* name);

// An int64 array without axes, writable: counted up in place.
std::int64_t* check_counter(py::handle object, Argument argument, Arguments& arguments);

// A new array like `x` in shape, dtype and layout.
py::object new_like(const ChannelArray& x);
// A new array with an element per channel.
py::object new_vector(std::size_t channels, Dtype dtype);
inline void* data_of(py::handle array) {
  return py::detail::array_proxy(array.ptr())->data;
}

// One number per channel: read, and perhaps written.
class ChannelVector {
 public:
  ChannelVector(py::handle object, Argument argument, const ChannelArray& x, bool any_dtype,
                Arguments& arguments);
  // A new_vector.
  ChannelVector(py::handle made, std::size_t channels, Dtype dtype)
      : data_(static_cast<char*>(data_of(made))),
        stride_(dtype == Dtype::f32 ? 4 : 8),
        channels_(channels),
        dtype_(dtype) {}
  PerChannel source() const { return {data_, stride_, dtype_ == Dtype::f32}; }
  void load(double* to) const { source().load(to, channels_); }
  void check_not_negative(Argument argument) const;  // but a NaN may be there
  // Whether all of these are finite, and stay so in this dtype.
  bool can_hold(std::span<const double> values, double factor) const noexcept;
  void write(std::span<const double> values) noexcept;

 private:
  char* data_;
  py::ssize_t stride_;
  std::size_t channels_;
  Dtype dtype_;
};

}  // namespace onepass::bindings
