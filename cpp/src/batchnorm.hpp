// Batch normalisation of a whole array with the array's own statistics, and the backward passes:
// the loops of onepass/batchnorm.hpp, shared out over threads.
#pragma once

#include <span>
#include <type_traits>
#include <utility>

#include "grid.hpp"
#include "kernels.hpp"
#include "values.hpp"

namespace onepass {

// running = (1 - momentum) * running + momentum * (batch * correction). A momentum of 0 or 1 leaves
// out the term that it makes 0, because 0 times infinity is a NaN.
void update_running(std::span<double> running, std::span<const double> batch, double correction,
                    double momentum) noexcept;

// Sums over some values of each channel, about a center near their mean.
struct Moments {
  double *center, *sum, *square;
};

template <class T>
class BatchNorm {
 public:
  // Allocates what the operation needs. Nothing after it can fail.
  BatchNorm(const BatchNormTable<T>& table, const Layout& layout, int threads,
            const Arrays<T>& arrays, const Affine& affine, Operation operation, bool relu);

  // Computes y and the statistics of the batch.
  void train(double eps, const Statistics& batch) noexcept;
  // Both compute dx and the gradients of weight and bias. If the statistics are the batch's own, dx
  // goes through them.
  void backward(const Statistics& batch, const Gradients& gradients) noexcept;
  void infer_backward(const Statistics& given, const Gradients& gradients) noexcept;

  // The two halves of train() and of backward(), for an array that is a piece of a batch.
  // The scratch memory of `batch` is what train() fills.
  void measure(const Statistics& batch, const Moments& moments) noexcept;
  void normalize(const Statistics& batch) noexcept;
  // The sums are the gradients of weight and bias where the deviation is 1; `ones` says so.
  void sum_gradients(const Statistics& batch, double* ones, const Gradients& sums) noexcept;
  void input_gradient(const Statistics& batch, const Gradients& gradients, double count) noexcept;

 private:
  using Sum = typename BatchNormLoops<T>::Sum;
  using Write = typename BatchNormLoops<T>::Write;
  using Values = Channels<Value<T>>;
  // Whether x may have to be summed in other units: a float's squares are within double's range.
  static constexpr bool in_units = std::is_same_v<T, double>;

  // Returns the first channel of a tile, and how many channels it has.
  std::pair<std::size_t, std::size_t> channels_of(std::size_t tile) const noexcept {
    const std::size_t first = grid_.first_channel(tile);
    return {first, grid_.first_channel(tile + 1) - first};
  }

  // `moments`: null if they are not wanted.
  void train(double eps, const Statistics& batch, const Moments* moments,
             Write write_loop) noexcept;

  // Sets what the sums of n channels are taken about. improve_centers replaces this for the
  // channels of a tile that need a better one, and returns whether there were any.
  void set_first_means(std::size_t first, std::size_t n) noexcept;
  bool improve_centers(std::size_t tile, const Statistics& batch) noexcept;

  // Each of these sets what a loop needs to know of a tile's channels.
  void set_forward(std::size_t tile, const Statistics& statistics) noexcept;
  void set_backward_sums(std::size_t tile, const Statistics& statistics) noexcept;
  // `through`: dx goes through the statistics.
  void finish_backward_sums(std::size_t tile, const Statistics& statistics,
                            const Gradients& gradients, bool through) noexcept;
  // Sums once more, for the channels whose sums of finite terms were not finite.
  void sum_in_small_units(std::size_t tile, const Statistics& statistics,
                          const Gradients& gradients, bool through) noexcept;
  // Both copy values from a tile's channels to their columns.
  void spread_center(std::size_t tile) noexcept;
  template <class... Members>
  void spread(std::size_t tile, Members... members) noexcept;

  void sum(Sum loop, Write write_at_once, std::size_t tile, std::size_t block, double* first,
           double* second) noexcept;
  void add(std::size_t tile, const double* a, const double* b, double* first,
           double* second) const noexcept;
  void write(Write loop, std::size_t tile, std::size_t block) noexcept;

  // Prepares each tile, sums it, finishes it with the sums known, and then writes it. A tile that
  // `finish` returns false for is summed again. A loop that is null is left out.
  template <class Prepare, class Finish>
  void run(Sum sum_loop, Write write_loop, bool write_at_once, const Prepare& prepare,
           const Finish& finish) noexcept;

  Layout layout_;
  int threads_;
  Grid grid_;
  const BatchNormLoops<T>& loops_;
  Arrays<T> arrays_;
  std::size_t tiles_at_once_;  // by all threads together; 0: each thread has a tile of its own
  Affine affine_;
  Values channels_, columns_;  // perhaps the same
  double *first_, *second_;    // sums per channel
  double* partial_ = nullptr;  // of the blocks
  std::span<char> finished_;   // of the tiles that are shared out at once
  Workspace workspace_;
};

extern template class BatchNorm<float>;
extern template class BatchNorm<double>;
extern template class BatchNorm<StoredBFloat16>;
extern template class BatchNorm<StoredFloat16>;

}  // namespace onepass
