// The checks of arrays with channels, and of those with a value per channel.
//
// What is read of an array (address, shape, strides, dtype) is kept while code of others may run: a
// copy lets other threads in, and a subclass of ndarray has hooks. So a call looks at views of its
// own, whose shape and dtype nobody else can set, and keeps the arrays from being resized.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "arrays.hpp"
#include "values.hpp"

namespace onepass::bindings {

// Views of the arrays of a call, of no subclass, and what keeps their memory where it is.
class Views {
 public:
  py::array of(py::handle object, const Label& label);  // throws TypeError where that is no array

 private:
  void hold(py::handle array);
  std::vector<py::object> held_;
};

// What the checks of one call share.
struct Arguments {
  Memory memory;
  Views views;
};

// An array with channels, as it lies in memory: in C order, `outer` x `channels` x `inner`.
struct ChannelArray {
  py::array array;
  bool copied;  // because what the caller gave does not fill its memory
  Dtype dtype;
  py::ssize_t axis;  // not negative
  std::size_t outer, channels, inner;
  std::size_t size() const { return outer * channels * inner; }
};

// float32 or float64, of any layout: one whose elements do not fill their memory is copied.
ChannelArray check_channels(py::handle object, const Label& label, py::ssize_t axis,
                            Arguments& arguments);

// Like `x` in shape and dtype, and in layout or else copied.
py::array check_like_channels(py::handle object, const Label& label, const ChannelArray& x,
                              Arguments& arguments);

// More than one value per channel, without which there is no variance.
void check_has_variance(const ChannelArray& x, const Label& label);

// Like `x` in everything, and writable. It may be one of `same`, in place.
py::array check_out(py::handle object, const Label& label, const ChannelArray& x,
                    const std::vector<py::array>& same, Arguments& arguments);

// Not the memory of an array that the backward pass will read; says so, where check_out could not.
void check_not_in_place(py::handle out, const Label& label, const py::array& other,
                        const char* name);

// An int64 array without axes, writable: counted up in place.
std::int64_t* check_counter(py::handle object, const Label& label, Arguments& arguments);

// Like `x` in shape, dtype and layout.
py::array new_like(const ChannelArray& x);

// One number per channel: read, and perhaps written.
class ChannelVector {
 public:
  ChannelVector(py::handle object, const Label& label, const ChannelArray& x, bool any_dtype,
                Arguments& arguments);
  PerChannel source() const;
  std::vector<double> values() const;
  void check_not_negative(const Label& label) const;
  // Whether all of these are finite, and stay so in this dtype.
  bool can_hold(std::span<const double> values, double factor) const noexcept;
  void write(const std::vector<double>& values) noexcept;

 private:
  py::array array_;
  Dtype dtype_;
};

}  // namespace onepass::bindings
