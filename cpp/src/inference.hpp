// Normalising a whole array with given statistics.
#pragma once

#include <cstddef>
#include <vector>

#include "grid.hpp"
#include "kernels.hpp"
#include "values.hpp"

namespace onepass {

// Every thread prepares the channels' values for itself, from what the caller gave: for a core,
// reading what another one has just written takes longer than computing it (bench/NOTES.md).
template <class T>
class Inference {
 public:
  struct Given {
    PerChannel mean, var, weight, bias;
    double eps;
  };

  // Allocates what run() needs; that cannot fail.
  Inference(const KernelTable& kernels, const Layout& layout, int threads, const Arrays<T>& arrays,
            const Given& given, bool relu);
  void run() noexcept;

 private:
  // The values that a thread has prepared for itself.
  struct Own {
    Own(const LineAllocator<T>& allocator, const Grid& grid, std::size_t n);
    Values<T> channels, columns;
    bool ready = false;
  };
  void prepare(Own& own) const noexcept;

  const KernelTable& kernels_;
  Layout layout_;
  int threads_;
  Grid grid_;
  BatchNormLoops<T> loops_;
  Arrays<T> arrays_;
  Given given_;
  std::vector<Own> own_;
};

extern template class Inference<float>;
extern template class Inference<double>;

}  // namespace onepass
