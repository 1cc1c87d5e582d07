// Runs batch normalisation on every build that this machine can run and on several threads, for the
// sanitizers to watch: each array is a heap block of its exact size.
#include <string>
#include <vector>

#include "batchnorm.hpp"
#include "checks.hpp"
#include "dispatch.hpp"
#include "inference.hpp"

namespace {

constexpr onepass::Layout layouts[] = {
    {2, 1, 1},    {5, 3, 1},      {3, 7, 5},      {130, 600, 1}, {70, 9, 49},  {1, 2, 65},
    {6, 5, 1000}, {2, 3, 70'000}, {50'001, 3, 1}, {1, 4, 64},    {9, 20, 128}, {40'000, 33, 1},
};

const onepass::BatchNormTable<float>& table(const onepass::Isa& isa, float) {
  return isa.kernels->batch_norm_f32;
}
const onepass::BatchNormTable<double>& table(const onepass::Isa& isa, double) {
  return isa.kernels->batch_norm_f64;
}

// The results of all four operations.
template <class T>
struct Run {
  Block<T> x, residual, dy, y, inferred, dx, dresidual, frozen_dx;
  std::vector<double> numbers;  // per channel

  Run(const onepass::Isa& isa, const onepass::Layout& layout, bool relu, int threads,
      std::size_t offset)
      : x(layout.size(), offset, 1),
        residual(layout.size(), offset, 2),
        dy(layout.size(), offset, 3),
        y(layout.size(), offset, 4),
        inferred(layout.size(), offset, 4),
        dx(layout.size(), offset, 4),
        dresidual(layout.size(), offset, 4),
        frozen_dx(layout.size(), offset, 4),
        numbers(7 * layout.channels) {
    double* free = numbers.data();
    const auto take = [&] {
      double* values = free;
      free += layout.channels;
      return values;
    };
    const std::vector<double> weight(layout.channels, 1.5), bias(layout.channels, -0.25);
    const onepass::Affine affine{weight.data(), bias.data()};
    const T* const z = relu ? residual.data() : nullptr;
    const auto arrays = [&](const Block<T>& out) {
      T* const dz = relu ? dresidual.data() : nullptr;
      return onepass::Arrays<T>{x.data(), z, dy.data(), out.data(), dz, false};
    };
    // New ones each time: what an operation leaves behind must not matter to the next.
    using onepass::Operation;
    const auto make = [&](Operation operation, const Block<T>& out) {
      return onepass::BatchNorm<T>(table(isa, T()), layout, threads, arrays(out), affine, operation,
                                   relu);
    };
    const onepass::Statistics batch{take(), take(), take()};
    make(Operation::train, y).train(1e-5, batch);
    const auto source = [](const double* values) {
      return onepass::PerChannel{values, sizeof(double), false};
    };
    onepass::Inference<T>(*isa.kernels, layout, threads, arrays(inferred),
                          {source(batch.mean), source(batch.variance), source(weight.data()),
                           source(bias.data()), 1e-5},
                          relu)
        .run();
    make(Operation::backward, dx).backward(batch, {take(), take()});
    make(Operation::backward, frozen_dx).infer_backward(batch, {take(), take()});
  }

  bool operator==(const Run& other) const {
    return y == other.y && inferred == other.inferred && dx == other.dx &&
           dresidual == other.dresidual && frozen_dx == other.frozen_dx && numbers == other.numbers;
  }
};

template <class T>
void check_same_bits(const onepass::Layout& layout, bool relu) {
  const Run<T> first(onepass::compiled_isas()[0], layout, relu, 1, 0);
  check(first.y == first.inferred, "inference with the batch's statistics is training");
  for (const onepass::Isa& isa : onepass::compiled_isas()) {
    if (!isa.supported) continue;
    for (const int threads : {1, 3}) {
      const Run<T> other(isa, layout, relu, threads, static_cast<std::size_t>(threads));
      check(other == first, std::string(isa.name) + ", " + std::to_string(threads) + " threads, " +
                                std::to_string(layout.outer) + "x" +
                                std::to_string(layout.channels) + "x" +
                                std::to_string(layout.inner));
    }
  }
}

// What goes past the caches is what goes through them, wherever a row begins and ends.
template <class T>
void check_streaming(const onepass::Isa& isa, const onepass::Panel& panel, bool one_channel,
                     std::size_t offset) {
  const onepass::BatchNormLoops<T>& loops = table(isa, T())[one_channel ? 1 : 0];
  const std::size_t n = panel.rows * panel.stride + 64;  // so many that nobody may touch
  const Block<T> x(n, offset, 1), dy(n, offset, 2);
  const Block<T> y(n, offset, 3), streamed_y(n, offset, 3), dx(n, offset, 3),
      streamed_dx(n, offset, 3);
  const Block<T> values(panel.width + panel.rows, 0, 4);
  double center = 0, magnitude = 1;
  T* const v = values.data();
  const onepass::Channels<T> channels{&center, &magnitude, v, v, v, v, v, v};
  const auto arrays = [&](const Block<T>& out, bool stream) {
    return onepass::Arrays<T>{x.data(), nullptr, dy.data(), out.data(), nullptr, stream};
  };
  loops.normalize(arrays(y, false), panel, channels);
  loops.normalize(arrays(streamed_y, true), panel, channels);
  loops.input_gradient(arrays(dx, false), panel, channels);
  loops.input_gradient(arrays(streamed_dx, true), panel, channels);
  check(y == streamed_y && dx == streamed_dx,
        std::string(isa.name) + ", streamed, " + std::to_string(panel.rows) + " rows of " +
            std::to_string(panel.width) + " in " + std::to_string(panel.stride) + ", offset " +
            std::to_string(offset));
}

template <class T>
void check_streaming() {
  for (const onepass::Isa& isa : onepass::compiled_isas()) {
    if (!isa.supported) continue;
    for (const std::size_t width : {1u, 5u, 8u, 16u, 17u, 31u, 32u, 49u, 64u, 300u}) {
      for (const std::size_t gap : {0u, 3u}) {
        for (const std::size_t offset : {0u, 1u, 4u, 15u}) {
          check_streaming<T>(isa, {7, width, width + gap}, false, offset);
          check_streaming<T>(isa, {7, width, width + gap, 1}, true, offset);
        }
      }
    }
  }
}

// 1, 3: mean 2, variance 1; with eps 3 the deviation is 2.
void check_by_hand() {
  const float x[] = {1.0f, 3.0f};
  float y[2];
  double mean, invstd, variance;
  const double weight = 4, bias = 10;
  const auto& kernels = onepass::choose_isa(nullptr).kernels->batch_norm_f32;
  onepass::BatchNorm<float>(kernels, {2, 1, 1}, 1, {x, nullptr, nullptr, y, nullptr, false},
                            {&weight, &bias}, onepass::Operation::train, false)
      .train(3.0, {&mean, &invstd, &variance});
  check(mean == 2 && variance == 1 && invstd == 0.5, "statistics by hand");
  check(y[0] == 8.0f && y[1] == 12.0f, "y by hand");
}

}  // namespace

int main() {
  for (const onepass::Layout& layout : layouts) {
    for (const bool relu : {false, true}) {
      check_same_bits<float>(layout, relu);
      check_same_bits<double>(layout, relu);
    }
  }
  check_streaming<float>();
  check_streaming<double>();
  check_by_hand();
  return report();
}
