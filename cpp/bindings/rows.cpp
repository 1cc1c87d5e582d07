#include "rows.hpp"

#include <cstring>
#include <utility>
#include <vector>

#include "foreign.hpp"
#include "tensors.hpp"

namespace onepass::bindings {
namespace {

// An array of one axis of integers, in native byte order.
py::array check_index(py::handle object, const Label& label) {
  py::array array = check_readable(object, label);
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u') {
    fail_type(label, "an array of integers", "dtype " + dtype_name(array));
  }
  if (array.ndim() != 1) {
    fail_value(label, "an array of one axis, the numbers of rows", "shape " + shape_name(array));
  }
  if (!is_native(array.dtype().ptr()) || !is_aligned(array)) {
    const char* const same = kind == 'i' ? "int64" : "uint64";
    array = py::module_::import("numpy").attr("array")(array, py::arg("dtype") = same);
  }
  return array;
}

// Reads the numbers of rows, each of them below `length`.
template <class Integer>
std::vector<std::int64_t> read_as(const py::array& array, std::size_t length, const Label& label) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(array.shape(0)));
  const char* at = static_cast<const char*>(array.data());
  for (std::size_t i = 0; i < rows.size(); ++i, at += array.strides(0)) {
    const Integer row = *reinterpret_cast<const Integer*>(at);
    if (row < 0 || static_cast<std::uint64_t>(row) >= length) {
      fail_value(label, "rows in [0, " + std::to_string(length) + ")",
                 std::to_string(row) + " at " + std::to_string(i));
    }
    rows[i] = static_cast<std::int64_t>(row);
  }
  return rows;
}

std::vector<std::int64_t> read_index(const py::array& array, std::size_t length,
                                     const Label& label) {
  const bool is_signed = array.dtype().kind() == 'i';
  switch (array.itemsize()) {
    case 1:
      return is_signed ? read_as<std::int8_t>(array, length, label)
                       : read_as<std::uint8_t>(array, length, label);
    case 2:
      return is_signed ? read_as<std::int16_t>(array, length, label)
                       : read_as<std::uint16_t>(array, length, label);
    case 4:
      return is_signed ? read_as<std::int32_t>(array, length, label)
                       : read_as<std::uint32_t>(array, length, label);
    default:
      return is_signed ? read_as<std::int64_t>(array, length, label)
                       : read_as<std::uint64_t>(array, length, label);
  }
}

std::string shape_of_values(const py::array& index, const py::array& param) {
  std::string shape = "(" + std::to_string(index.shape(0)) + ",";
  for (py::ssize_t axis = 1; axis < param.ndim(); ++axis) {
    shape += (axis > 1 ? ", " : " ") + std::to_string(param.shape(axis));
  }
  return shape + ")";
}

}  // namespace

GivenRows::GivenRows(py::handle index, py::handle values, Names names, const Param& param,
                     Memory& memory)
    : names_(std::move(names)) {
  const Label label = values_label();
  index_ = check_index(index, index_label());
  memory.add(index_, index_label());
  values_ = check_readable(values, label);
  format_ = check_grad_format(values_, label, param);
  memory.add(values_, label);
  if (!(values_.flags() & py::array::c_style) || !is_aligned(values_)) {
    values_ = py::module_::import("numpy").attr("array")(values_, py::arg("order") = "C");
  }
  index_seen_.emplace(index_);
  values_seen_.emplace(values_);
}

Rows GivenRows::read(const Param& param, Tensor& tensor) const {
  if (!index_seen_->still() || !values_seen_->still() || index_.ndim() != 1) fail_changed();
  const py::array& array = param.array;
  bool fits = values_.ndim() == array.ndim() && values_.shape(0) == index_.shape(0);
  std::size_t width = 1;
  for (py::ssize_t axis = 1; fits && axis < array.ndim(); ++axis) {
    fits = values_.shape(axis) == array.shape(axis);
    width *= static_cast<std::size_t>(array.shape(axis));
  }
  if (!fits) {
    fail_value(values_label(),
               "shape " + shape_of_values(index_, array) + ", a row for each in the index",
               shape_name(values_));
  }
  const auto length = static_cast<std::size_t>(array.shape(0));
  tensor.streams.grad = stored(values_.data(), format_);
  tensor.streams.zero_grad = false;
  return {read_index(index_, length, index_label()), width};
}

void check_has_rows(const Param& param, const Label& label) {
  if (param.array.ndim() > 0 && param.order == Order::c) return;
  fail_value(label, "an array in C order, whose rows lie in one piece",
             param.array.ndim() == 0   ? "shape ()"
             : param.order == Order::f ? "F order"
                                       : "strides " + strides_name(param.array));
}

void check_keeps_gradients(bool clears) {
  if (!clears) return;
  fail_value(Label("clear_grads", Role::input), "False where rows move alone", "True");
}

void check_moves_rows(const Group& group, const Label& grad) {
  const Settings& settings = group.settings;
  const auto fail = [](const char* name, const std::string& got) {
    fail_value(Label(name, Role::input), "None where rows move alone", got);
  };
  std::string rule = group.rule->name;
  for (std::size_t k = 0; k < group.rule->options.size(); ++k) {
    if (settings.options[k] != 0) rule += std::string(" with ") + group.rule->options[k];
  }
  const auto fail_rule = [&](const char* why) {
    fail_value(grad, "a whole gradient for " + rule + ", which " + why, "rows");
  };
  if (group.variant().n_sums) fail_rule("measures it");
  if (group.variant().direct_f64) fail_rule("takes it as a matrix");
  if (group.rule->factored) fail_rule("keeps numbers of rows and columns");
  if (group.rule->keeps_weights) fail_rule("averages all weights");
  const auto number = [](const py::object& value) { return py::repr(value).cast<std::string>(); };
  if (!is_none(settings.ema_decay)) fail("ema_decay", number(py::float_(settings.ema_decay)));
  const auto whole = [&](double value) {
    return number(py::int_(static_cast<std::int64_t>(value)));
  };
  if (!is_none(settings.swa_start)) fail("swa_start", whole(settings.swa_start));
  if (!is_none(settings.lookahead_every)) fail("lookahead_every", whole(settings.lookahead_every));
  if (!is_none(settings.state_format)) {
    fail("state_format", settings.state_format == 0 ? "'bf16'" : "'q8'");
  }
}

void check_rounds_rows(const Param& param, bool stochastic, const char* others) {
  if (param.format == plain || !stochastic) return;
  fail_value(Label("rounding", Role::input),
             std::string(others) + " where rows of 16 bits move alone", "'stochastic'");
}

}  // namespace onepass::bindings
