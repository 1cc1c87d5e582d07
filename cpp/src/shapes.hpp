// State of another shape than its parameter: what a step needs besides the arrays themselves.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "kernels.hpp"

namespace onepass {

// A parameter's axes, and whether its first one is that of neighbours in memory. `order`: in an
// array in neither C nor F order, the axes, that of the farthest elements first.
struct AxesOf {
  std::vector<std::size_t> sizes;
  bool f_order = false;
  std::vector<std::size_t> order{};
  bool operator==(const AxesOf&) const = default;
};

// The layout that the kernels are given of one parameter, and the memory that they work in. Nothing
// of it outlasts a step.
class ShapedState {
 public:
  // Makes everything that a step needs, and tells the tensor's state of it. May throw
  // std::bad_alloc.
  void prepare(const AxesOf& axes, std::span<const Shape> shapes, std::size_t item_size,
               int threads, Streams& streams);
  const Matrix& matrix() const noexcept { return matrix_; }
  // How many sums the tiles of a Matrix have.
  std::size_t n_sums() const noexcept;
  void use(double* sums) noexcept;
  // The kernels; null where the tensor takes no part.
  const Shaping* shaping = nullptr;

 private:
  void lay_out(const AxesOf& axes, std::span<const Shape> shapes, std::size_t item_size);
  AxesOf known_;
  std::size_t item_size_ = 0;
  Matrix matrix_;
  Axes axes_;
  std::vector<std::size_t> sizes_, places_;
  std::vector<std::byte> rows_, columns_;  // opened
  std::size_t n_copies_ = 0;
  std::unique_ptr<Axes::Copy[]> copies_;
  std::vector<std::byte> numbers_;  // of the copies
};

}  // namespace onepass
