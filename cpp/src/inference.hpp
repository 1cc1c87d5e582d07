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
    const PerChannel &mean, &var, &weight, &bias;
    double eps;
  };

  // Allocates what run() needs; that cannot fail.
  Inference(const KernelTable& kernels, const Layout& layout, int threads, const Arrays<T>& arrays,
            bool relu);
  void run(const Given& given) noexcept;

 private:
  using V = Value<T>;
  // The values that a thread has prepared for itself: mean, scale and shift of each channel, and of
  // each column, which may be the same.
  struct Own {
    V *channels, *columns;
    bool ready;
  };
  // Three arrays of n values, one behind the other.
  V* take(std::size_t n);
  static std::size_t apart(std::size_t n) noexcept {
    return (n + per_line - 1) / per_line * per_line;
  }
  static Channels<V> values(V* first, std::size_t n, std::size_t from) noexcept {
    Channels<V> of{};
    of.mean = first + from;
    of.scale = of.mean + apart(n);
    of.shift = of.scale + apart(n);
    return of;
  }
  void prepare(const Given& given, Own& own) const noexcept;

  static constexpr std::size_t per_line = 64 / sizeof(V);
  const KernelTable& kernels_;
  Layout layout_;
  int threads_;
  Grid grid_;
  const BatchNormLoops<T>& loops_;
  Arrays<T> arrays_;
  Workspace workspace_;
  std::span<Own> own_;
};

extern template class Inference<float>;
extern template class Inference<double>;
extern template class Inference<StoredBFloat16>;
extern template class Inference<StoredFloat16>;

}  // namespace onepass
