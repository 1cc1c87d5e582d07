// Normalising a whole array with given statistics.
#pragma once

#include <cstddef>
#include <span>

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
    Channels<T> channels, columns;  // perhaps the same
    bool ready;
  };
  void prepare(Own& own) const noexcept;

  const KernelTable& kernels_;
  Layout layout_;
  int threads_;
  Grid grid_;
  const BatchNormLoops<T>& loops_;
  Arrays<T> arrays_;
  Given given_;
  Workspace workspace_;
  std::span<Own> own_;
};

extern template class Inference<float>;
extern template class Inference<double>;

}  // namespace onepass
