// Some rows of a tensor, which a step reads and writes alone: those of an embedding table that a
// batch has looked up.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "step.hpp"

namespace onepass {

struct Rows {
  Rows() noexcept = default;  // all: the tensor moves as a whole
  // `of`: the row of the tensor that each row of its gradient is for, in any order, also twice.
  Rows(std::vector<std::int64_t> of, std::size_t elements)
      : are_some(true), width(elements), index(std::move(of)) {}

  // Brings the gradient's rows into the tensor's order, and adds up those for the same row of the
  // tensor: in the type that the rule computes with, and in the order in which they are given. May
  // throw std::bad_alloc.
  void join(Tensor& tensor, int threads);
  std::size_t elements() const noexcept { return index.size() * width; }
  RowIndex view() const noexcept { return {index, width}; }

  bool are_some = false;
  std::size_t width = 0;              // elements of a row
  std::vector<std::int64_t> index;    // after join() ascending, none twice
  std::unique_ptr<std::byte[]> sums;  // the gradient after join(), where that had to be made
};

}  // namespace onepass
