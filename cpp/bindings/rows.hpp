// Rows of a parameter as a call is given them, (index, values): every check of them and every
// message.
#pragma once

#include <optional>
#include <string>

#include "arrays.hpp"
#include "optimizer.hpp"

namespace onepass::bindings {

class GivenRows {
 public:
  // What the two arrays are called in messages.
  struct Names {
    std::string index, values;
  };
  // Checks what can be checked while Python code may still run. `memory` points to the names.
  GivenRows(py::handle index, py::handle values, Names names, const Param& param, Memory& memory);
  GivenRows(const GivenRows&) = delete;
  GivenRows& operator=(const GivenRows&) = delete;
  // Checks the rest, and tells the engine where the gradient lies. Runs no Python code.
  Rows read(const Param& param, Tensor& tensor) const;
  // Whoever steps keeps them alive.
  const py::array& values() const { return values_; }

 private:
  Label index_label() const { return Label(names_.index.c_str(), Role::input); }
  Label values_label() const { return Label(names_.values.c_str(), Role::input); }
  Names names_;
  py::array index_, values_;
  std::optional<Unchanged> index_seen_, values_seen_;
  Format format_ = plain;
};

// Raise where a step of these settings cannot move rows alone. `grad` is the argument to blame.
void check_moves_rows(const Group& group, const Label& grad);
void check_keeps_gradients(bool clears);
void check_rounds_rows(const Param& param, bool stochastic, const char* others);
// The parameter's rows must lie in one piece each.
void check_has_rows(const Param& param, const Label& label);

}  // namespace onepass::bindings
