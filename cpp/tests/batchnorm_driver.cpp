// Runs batch normalisation on every build that this machine can run and on several threads, for the
// sanitizers to watch: each array is a heap block of its exact size.
#include <algorithm>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "batchnorm.hpp"
#include "checks.hpp"
#include "dispatch.hpp"
#include "inference.hpp"

namespace {

// Memory that runs out at an allocation of this thread's, the first being 1. 0: never.
thread_local std::size_t allocations = 0, failing_allocation = 0;

void* allocate(std::size_t n, std::size_t line) {
  if (++allocations == failing_allocation) throw std::bad_alloc();
  void* const p = std::aligned_alloc(line, (n + line - 1) / line * line + line);
  if (!p) throw std::bad_alloc();
  return p;
}

}  // namespace

// Not inlined: the compiler would take malloc and free for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t n) {
  return allocate(n, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t line) {
  return allocate(n, static_cast<std::size_t>(line));
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace {

constexpr onepass::Layout layouts[] = {
    {2, 1, 1},    {5, 3, 1},      {3, 7, 5},      {130, 600, 1}, {70, 9, 49},  {1, 2, 65},
    {6, 5, 1000}, {2, 3, 70'000}, {50'001, 3, 1}, {1, 4, 64},    {9, 20, 128}, {40'000, 33, 1},
};

template <class T>
const onepass::BatchNormTable<T>& table(const onepass::Isa& isa, T) {
  return onepass::batch_norm_table<T>(*isa.kernels);
}

// The results of all four operations.
template <class T>
struct Run {
  Block<T> x, residual, dy, y, inferred, dx, dresidual, frozen_dx, in_two;
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
        in_two(layout.size(), offset, 4),
        numbers(15 * layout.channels) {
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
    onepass::Inference<T>(*isa.kernels, layout, threads, arrays(inferred), relu)
        .run({source(batch.mean), source(batch.variance), source(weight.data()),
              source(bias.data()), 1e-5});
    make(Operation::backward, dx).backward(batch, {take(), take()});
    make(Operation::backward, frozen_dx).infer_backward(batch, {take(), take()});
    // In two halves, as a piece of a batch.
    std::vector<double> ones(layout.channels, 1.0);
    const onepass::Moments moments{take(), take(), take()};
    auto piece = make(Operation::train, in_two);
    piece.measure({take(), take(), take()}, moments);
    piece.normalize(batch);
    check(in_two == y, "normalised with the batch's statistics");
    const onepass::Gradients sums{take(), take()};
    auto back = make(Operation::backward, in_two);
    back.sum_gradients(batch, ones.data(), sums);
    for (std::size_t c = 0; c < layout.channels; ++c) sums.weight[c] *= batch.invstd[c];
    back.input_gradient(batch, sums, static_cast<double>(layout.per_channel()));
    check(in_two == dx, "the input gradient in two halves");
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

// With more threads than there are channels, blocks or cores: shapes that users have.
constexpr onepass::Layout shared_layouts[] = {
    {128, 4, 196},  {128, 3, 250},  {64, 8, 240},    {200, 2, 253},     {100, 5, 128},
    {1024, 4, 256}, {4100, 256, 1}, {40, 2, 13'000}, {1'050'000, 1, 1}, {3, 350, 1000},
};

std::string name_of(const onepass::Layout& layout, int threads) {
  return std::to_string(layout.outer) + "x" + std::to_string(layout.channels) + "x" +
         std::to_string(layout.inner) + ", " + std::to_string(threads) + " threads";
}

void check_many_threads() {
  const onepass::Isa& isa = onepass::choose_isa(nullptr);
  for (const onepass::Layout& layout : shared_layouts) {
    const Run<float> first(isa, layout, true, 1, 0);
    for (const int threads : {2, 5, 6, 16, 64}) {
      const Run<float> other(isa, layout, true, threads, 3);
      check(other == first, "the same bits, " + name_of(layout, threads));
    }
  }
}

// A grid visits every element once, in a column of its channel; and what a block of a sum is does
// not depend on the number of threads.
void check_grid(const onepass::Layout& layout, int threads, onepass::Grid::Pass pass) {
  using onepass::Grid;
  const bool summed = pass == Grid::Pass::sums;
  const Grid grid(layout, threads, pass), alone(layout, 1, pass);
  std::vector<char> visits(layout.size(), 0);
  std::vector<double> channels(layout.channels), columns(grid.columns());
  for (std::size_t c = 0; c < layout.channels; ++c) channels[c] = static_cast<double>(c);
  bool right = grid.tiles() > 0 && grid.first_channel(0) == 0 &&
               grid.first_channel(grid.tiles()) == layout.channels;
  for (std::size_t tile = 0; tile < grid.tiles(); ++tile) {
    if (grid.columns_are_channels()) {
      columns = channels;
    } else {
      grid.spread(tile, channels.data(), columns.data());
    }
    right = right && grid.first_channel(tile) < grid.first_channel(tile + 1);
    for (std::size_t block = 0; block < grid.blocks(); ++block) {
      grid.for_each_panel(
          tile, block,
          [&](std::size_t offset, std::size_t column, const onepass::Panel& panel) noexcept {
            right = right && (!summed || grid.one_channel() || panel.width <= Grid::max_tile_width);
            for (std::size_t r = 0; r < panel.rows; ++r) {
              for (std::size_t j = 0; j < panel.width; ++j) {
                const std::size_t i = offset + r * panel.stride + j;
                const std::size_t at =
                    grid.one_channel() ? column + r * panel.channel_step : column + j;
                right = right && i < layout.size() && visits[i]++ == 0 &&
                        columns[at] == static_cast<double>(i / layout.inner % layout.channels);
              }
            }
          });
    }
  }
  right = right && std::all_of(visits.begin(), visits.end(), [](char n) { return n == 1; });
  right = right && (!summed || grid.blocks() == alone.blocks());
  check(right, "a grid of " + name_of(layout, threads));
}

void check_grids() {
  std::uint32_t seed = 7;
  const auto draw = [&](std::size_t below) {
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
  };
  for (int i = 0; i < 1500; ++i) {
    const std::size_t inner = 1 + draw(draw(3) ? 20 : 600), channels = 1 + draw(draw(3) ? 9 : 700);
    const std::size_t most = std::max<std::size_t>(60'000 / (inner * channels), 1);
    const onepass::Layout layout{1 + draw(most), channels, inner};
    const auto threads = static_cast<int>(1 + draw(64));
    using Pass = onepass::Grid::Pass;
    for (const Pass pass : {Pass::sums, Pass::writes, Pass::streams}) {
      check_grid(layout, threads, pass);
    }
  }
}

// Memory runs out before anything is written, wherever it does; and running takes none.
template <class Make, class Go>
void check_allocations(const Block<float>& out, const Make& make, const Go& go) {
  const Block<float> before(out.size(), 0, 4);
  bool made = false;
  for (std::size_t failing = 1; !made && failing < 100; ++failing) {
    try {
      allocations = 0;
      failing_allocation = failing;
      auto operation = make();
      failing_allocation = 0;
      made = true;
      const std::size_t needed = allocations;
      go(operation);
      const bool none = allocations == needed;  // before there is a message, which allocates
      check(none, "running allocates nothing");
    } catch (const std::bad_alloc&) {
      failing_allocation = 0;
      check(out == before, "no memory, and nothing is written");
    }
  }
  check(made, "enough memory");
}

void check_allocations() {
  const auto& isa = onepass::choose_isa(nullptr);
  const auto& loops = isa.kernels->batch_norm_f32;
  for (const onepass::Layout& layout : {onepass::Layout{70, 9, 49}, onepass::Layout{3, 40, 100}}) {
    const Block<float> x(layout.size(), 0, 1), dy(layout.size(), 0, 2);
    std::vector<double> numbers(7 * layout.channels, 1.0);
    const auto at = [&](std::size_t i) { return numbers.data() + i * layout.channels; };
    const onepass::Statistics batch{at(0), at(1), at(2)};
    const onepass::Affine affine{at(3), at(4)};
    const onepass::Gradients gradients{at(5), at(6)};
    const auto with = [&](onepass::Operation operation, const Block<float>& out, const auto& go) {
      const onepass::Arrays<float> arrays{x.data(), nullptr, dy.data(), out.data(), nullptr, false};
      check_allocations(
          out,
          [&] {
            return onepass::BatchNorm<float>(loops, layout, 1, arrays, affine, operation, false);
          },
          go);
    };
    const auto block = [&] { return Block<float>(layout.size(), 0, 4); };
    with(onepass::Operation::train, block(), [&](auto& bn) { bn.train(1e-5, batch); });
    with(onepass::Operation::backward, block(), [&](auto& bn) { bn.backward(batch, gradients); });
    with(onepass::Operation::backward, block(),
         [&](auto& bn) { bn.infer_backward(batch, gradients); });
    const Block<float> y(layout.size(), 0, 4);
    const onepass::Arrays<float> arrays{x.data(), nullptr, nullptr, y.data(), nullptr, false};
    const onepass::PerChannel one{nullptr, 0, false, 1.0};
    check_allocations(
        y, [&] { return onepass::Inference<float>(*isa.kernels, layout, 1, arrays, false); },
        [&](auto& inference) {
          inference.run({one, one, one, one, 1e-5});
        });
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
  using V = onepass::Value<T>;
  const Block<V> values(panel.width + panel.rows, 0, 4);
  double center = 0, magnitude = 1;
  V* const v = values.data();
  const onepass::Channels<V> channels{&center, &magnitude, v, v, v, v, v, v};
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
      check_same_bits<onepass::StoredBFloat16>(layout, relu);
      check_same_bits<onepass::StoredFloat16>(layout, relu);
    }
  }
  check_many_threads();
  if (!only_races) {
    check_streaming<float>();
    check_streaming<double>();
    check_streaming<onepass::StoredBFloat16>();
    check_streaming<onepass::StoredFloat16>();
    check_by_hand();
    check_grids();
    check_allocations();
  }
  return report();
}
