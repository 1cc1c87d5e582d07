// Every check of an array that Python hands in, and every message about one; rows.hpp has those of
// rows, channels.hpp those of BatchNorm.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace onepass::bindings {

namespace py = pybind11;

// NumPy's numbers of dtypes: NPY_UBYTE, NPY_FLOAT, NPY_DOUBLE, NPY_HALF.
inline constexpr int uint8_num = 2, float32_num = 11, float64_num = 12, float16_num = 23;

enum class Role { param, grad, zeroed_grad, state, allocated, copy, input, output };

// What to call an array in a message. An optimizer's arrays carry the name of their parameter
// (`names`: suffixes such as "['fc.weight']"); a free function's are just "param", "grad",
// "exp_avg".
class Label {
 public:
  Label(py::handle names, std::size_t tensor, Role role, const char* name = "")
      : names_(names), tensor_(tensor), role_(role), name_(name) {}
  static constexpr std::ptrdiff_t alone = -1;
  // A free function's; `item`: its place in a list of them.
  Label(const char* name, Role role, std::ptrdiff_t item = alone)
      : Label(py::handle(Py_None), static_cast<std::size_t>(item), role, name) {}
  std::string str() const;
  Role role() const { return role_; }
  const char* name() const { return name_; }
  bool written() const { return role_ != Role::grad && role_ != Role::input; }

 private:
  py::handle names_;
  std::size_t tensor_;
  Role role_;
  const char* name_;
};

enum class Dtype : std::uint8_t { f32, f64 };
// How the elements of an array without gaps stand in memory. `other` is any order of the axes but
// those of C and F. An array that is in C and in F order counts as c.
enum class Order : std::uint8_t { c, f, other };

// An array as it was when it was checked. Python code that has run since (a copy by NumPy, a
// gradient's __array__, another thread) may have resized it, or made another dtype of it: so
// whoever keeps an address asks again before it is used. Somebody else keeps the array itself.
class Unchanged {
 public:
  explicit Unchanged(const py::array& array);
  bool still() const;  // runs no Python code

 private:
  py::handle array_;
  const void* data_;
  py::object dtype_;  // kept, so that no other comes to lie where it was
  std::size_t size_;
  int flags_;
};

// What other arrays of a step are compared with: their parameter, as it was when it was checked.
struct Like {
  PyObject* object;
  void* data;
  std::size_t size;
  int flags;
  std::uint8_t item_size;
  Dtype dtype;  // that the rule computes with
  Order order;
  Format format;  // plain, or 16 bits
};

struct Param : Like {
  py::array array;     // the same object, kept alive
  py::object descr;    // NumPy's dtype, kept alive so that no other comes to lie where it was
  bool still() const;  // as Unchanged's
};

// Where the elements of an array lie, from the first byte to behind the last; empty without any.
struct Extent {
  std::uintptr_t begin, end;
};
Extent extent_of(const void* data, py::ssize_t item_size, py::ssize_t rank,
                 const py::ssize_t* shape, const py::ssize_t* strides);
Extent extent_of(const py::array& array);
void sort_by_begin(std::vector<Extent>& extents);

// Collects the memory that a step touches and finds out whether any of it overlaps.
class Memory {
 public:
  void reserve(std::size_t arrays) { ranges_.reserve(arrays); }
  void add(const py::array& array, const Label& label);
  void add(const Extent& extent, const Label& label) {
    if (extent.begin < extent.end) ranges_.push_back({extent.begin, extent.end, label});
  }
  void check_overlap();  // sorts; throws ValueError where a written array meets another

 private:
  struct Range {
    std::uintptr_t begin, end;
    Label label;
    bool written() const { return label.written(); }
  };
  std::vector<Range> ranges_;
};

// Writable, aligned, without gaps, float32, float64, float16 or bfloat16.
Param check_param(py::handle object, const Label& label);

// An array as the kernels are given it.
struct Checked {
  py::array array;
  Format format;
};

// A gradient has its parameter's shape, any of the four dtypes and any layout: if its elements do
// not lie in the parameter's order, it is copied. For a parameter of shape () it may be a number.
Checked check_grad(py::handle object, const Label& label, const Param& param, Memory& memory);

// A gradient that must lie in its parameter's layout, because steps write it, or read it again and
// again.
Checked check_grad_in_place(py::handle object, const Label& label, const Param& param,
                            Memory& memory);

inline const PyTypeObject* array_type = nullptr;  // NumPy's; set once, at import
void bind_arrays();

// Whether an object is an array of NumPy's own type, and not of a subclass.
inline bool is_plain_array(PyObject* object) noexcept {
  return Py_TYPE(object) == array_type;
}

// Whether this is a sequence of Python's own, whose items can be read without Python code.
inline bool is_list_or_tuple(PyObject* object) noexcept {
  return PyList_CheckExact(object) || PyTuple_CheckExact(object);
}

// Whether a step can read an array as its parameter's gradient where it lies. Runs no Python code.
bool lies_like(PyObject* array, const Like& param, Format& format) noexcept;

// Whether these are the usual arrays, with which nothing is wrong: a parameter of float32 or
// float64, and the state of such a one. Else the checks below have a closer look.
bool is_usual_param(PyObject* object, Like& param) noexcept;
bool is_usual_state(PyObject* object, const Like& param) noexcept;
bool is_usual_remembered(PyObject* object) noexcept;

// A copy of a float32 parameter in float16 or bfloat16, in its layout.
Checked check_copy(py::handle object, const Label& label, const Param& param, Memory& memory);

// State: like its parameter in everything but the dtype, which is the one that the rule computes
// with.
void* check_state(py::handle object, const Label& label, const Param& param, Memory& memory);

// State of another shape, with the numbers of rows, columns or axes: in the parameter's order.
void* check_shaped_state(py::handle object, const Label& label, const Param& param, Shape shape,
                         Memory& memory);

// A number of a rule's memory: an array of one element, of float64.
double* check_remembered(py::handle object, const Label& label, Memory& memory);

// The average of the weights is like its parameter, but of float64 if `is_double`, and else of the
// dtype that state has.
void* check_average(py::handle object, bool is_double, const Label& label, const Param& param,
                    Memory& memory);

// A rule's state, as above or in fewer bits: bfloat16, or 8-bit codes with their scales behind
// them.
struct CheckedState {
  void* data;
  std::uint8_t* scales;  // of 8-bit codes
  StateFormat format;
};
CheckedState check_rule_state(py::handle object, const Label& label, const Param& param,
                              Memory& memory);

// What every check is made of; more of them in channels.hpp.

[[noreturn, gnu::cold]] void fail_type(const Label& label, const std::string& expected,
                                       const std::string& got);
[[noreturn, gnu::cold]] void fail_value(const Label& label, const std::string& expected,
                                        const std::string& got);
py::array check_array(py::handle object, const Label& label);
// The format of an array of 16 bits, plain for any other dtype.
Format small_format(const py::dtype& dtype);
Dtype check_dtype(const py::array& array, const Label& label,
                  const char* expected = "float32 or float64");
// `whose`: "the parameter's", to be told apart from the array's own.
void check_same_shape(const py::array& array, const Label& label, const py::array& other,
                      const std::string& whose);
void check_like(const py::array& array, const Label& label, const py::array& other,
                const std::string& whose);
void check_written_in_place(const py::array& array, const Label& label);
Format check_grad_format(const py::array& array, const Label& label, const Param& param);
std::vector<std::size_t> sizes_of(PyObject* array);  // of each axis
// The axes of an array in the order of memory, the one with the largest stride first.
std::vector<std::size_t> axes_in_memory(PyObject* array);
// Whether two arrays without gaps, of one shape, have their elements in one order.
bool are_in_one_order(const Like& a, const Like& b) noexcept;
bool is_aligned(const py::array& array);
bool is_native(const PyObject* dtype) noexcept;  // in byte order
std::string dtype_name(const py::array& array);
std::string shape_name(const py::array& array);
std::string strides_name(const py::array& array);

}  // namespace onepass::bindings
