// Batch normalisation of a whole array: the loops of onepass/batchnorm.hpp, shared out over
// threads.
#pragma once

#include <new>
#include <span>
#include <vector>

#include "grid.hpp"
#include "kernels.hpp"

namespace onepass {

// One value per channel.
struct Affine {
  const double *weight, *bias;
};
struct Statistics {
  double *mean, *invstd;
};
struct Gradients {
  double *weight, *bias;
};

// 1 / the standard deviation.
void invstd(std::span<const double> variance, double eps, std::span<double> result) noexcept;

// running = (1 - momentum) * running + momentum * (batch * correction); what has no weight does not
// count, or 0 times infinity would be a NaN.
void update_running(std::span<double> running, std::span<const double> batch, double correction,
                    double momentum) noexcept;

// Whole cache lines, because SIMD vectors that straddle two cost two loads; and not zeroed.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t line{64};
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
  void deallocate(T* p, std::size_t) noexcept { ::operator delete(p, line); }
  void construct(T* p) noexcept { ::new (static_cast<void*>(p)) T; }
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) noexcept {}
  bool operator==(const LineAllocator&) const = default;
};
template <class T>
using Vector = std::vector<T, LineAllocator<T>>;

enum class Operation { train, infer, backward };

template <class T>
class BatchNorm {
 public:
  // Allocates what the operation needs. Nothing after it can fail.
  BatchNorm(const BatchNormTable<T>& table, const Layout& layout, int threads, const Affine& affine,
            Operation operation, bool relu, bool residual);

  // y and the statistics of the batch, the biased variance among them.
  void train(Arrays<T> arrays, double eps, const Statistics& batch, double* variance) noexcept;
  void infer(Arrays<T> arrays, const Statistics& given) noexcept;
  // dx and the gradients of weight and bias: through the statistics, if they are the batch's own.
  void backward(Arrays<T> arrays, const Statistics& batch, const Gradients& gradients) noexcept;
  void infer_backward(Arrays<T> arrays, const Statistics& given,
                      const Gradients& gradients) noexcept;

 private:
  using Sum = typename BatchNormLoops<T>::Sum;
  using Write = typename BatchNormLoops<T>::Write;

  // What Channels points to.
  struct Values {
    Vector<double> center, magnitude;
    Vector<T> mean, scale, shift, slope, offset, gain;
    void resize(std::size_t n, Operation operation);
    Channels<T> at(std::size_t i) const noexcept;
  };

  bool streams(const Arrays<T>& arrays) const noexcept;
  // What the sums are taken about; and whether some channels needed a better one, and got it.
  void set_first_means(const T* x, std::size_t begin, std::size_t end) noexcept;
  bool improve_centers(const T* x, const Statistics& batch, const double* variance) noexcept;

  // Each of these sets what a loop needs to know of a tile's channels.
  void set_forward(std::size_t tile, const Statistics& statistics) noexcept;
  void set_backward_sums(std::size_t tile, const Statistics& statistics) noexcept;
  void set_input_gradient(std::size_t tile, const Statistics& statistics,
                          const Gradients* through) noexcept;
  void finish_backward_sums(std::size_t tile, const Statistics& statistics,
                            const Gradients& gradients) const noexcept;
  // And hands it on from the channels to their columns.
  void spread_center(std::size_t tile) noexcept;
  template <class... Members>
  void spread(std::size_t tile, Members... members) noexcept;

  void sum(const Arrays<T>& arrays, Sum loop, Write write_at_once, std::size_t tile,
           std::size_t block, double* first, double* second) const noexcept;
  void write(const Arrays<T>& arrays, Write loop, std::size_t tile,
             std::size_t block) const noexcept;

  // Prepares each tile, sums it, finishes it with the sums known, and then writes it.
  template <class Prepare, class Finish>
  void run(const Arrays<T>& arrays, Sum sum_loop, Write write_loop, bool write_at_once,
           const Prepare& prepare, const Finish& finish) noexcept;

  Layout layout_;
  int threads_;
  Grid grid_;
  BatchNormLoops<T> loops_;
  std::size_t tiles_at_once_;  // by all threads together; 0: each thread a tile of its own
  Affine affine_;
  Values channels_, columns_;
  Vector<double> first_, second_;  // sums per channel
  Vector<double> partial_;         // of the blocks
};

extern template class BatchNorm<float>;
extern template class BatchNorm<double>;

}  // namespace onepass
