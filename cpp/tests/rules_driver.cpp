// Runs every kernel of every build that this machine can run, for the sanitizers to watch: each
// array is a heap block of its exact size, so one element too far is an error.
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "dispatch.hpp"
#include "onepass/rules.def"
#include "parallel.hpp"
#include "step.hpp"

namespace {

using onepass::as_param;

template <class T, class Grad = T>
struct Arrays {
  Block<T> param;
  Block<Grad> grad;
  Block<T> state0, state1, state2, average;
  Block<std::uint16_t> copy;
  Arrays(std::size_t n, std::size_t offset)
      : param(n, offset, 1),
        grad(n, offset, 2),
        state0(n, offset, 3),
        state1(n, offset, 4),
        state2(n, offset, 5),
        average(n, offset, 6),
        copy(n, offset, 7) {}

  onepass::Tensor tensor(std::size_t n, onepass::Kernel kernel, const double* scalars,
                         onepass::Format format = as_param) const {
    const bool is_float = sizeof(T) == sizeof(float);
    const onepass::KernelTable& kernels = *onepass::choose_isa(nullptr).kernels;
    return {{param.data(),
             grad.data(),
             {state0.data(), state1.data(), state2.data()},
             average.data(),
             grad.data(),
             format == onepass::as_param ? nullptr : copy.data(),
             kernels.narrow[format]},
            n,
            sizeof(T),
            sizeof(Grad),
            kernel,
            is_float ? kernels.squares_f32[format] : kernels.squares_f64,
            scalars};
  }
  bool operator==(const Arrays& other) const {
    return param == other.param && grad == other.grad && state0 == other.state0 &&
           state1 == other.state1 && state2 == other.state2 && average == other.average &&
           copy == other.copy;
  }
};

// Scalars that suit any rule: all in (0, 1), none round in binary. Before them the stages': the
// gradient is clipped, and the average is near the new weights.
constexpr double scalars[onepass::max_scalars] = {-1.0, 0.1, 0.7,  0.6,  0.9, 0.05, 0.3, 0.7,
                                                  0.2,  0.6, 1e-3, 1e-4, 0.4, 0.8,  0.1, 0.15};

// Around every vector width and tile; elements past a cache line.
constexpr std::size_t lengths[] = {0,  1,  2,  3,  7,  8,   9,    15,   16,
                                   17, 31, 33, 63, 65, 127, 1023, 1025, 5003};
constexpr std::size_t offsets[] = {0, 1, 3, 15};

// The vector loop against one element at a time, and every build against the first.
template <class T, class Grad = T>
void check_variant(const std::string& rule, std::size_t row, std::size_t variant,
                   onepass::Format format = as_param) {
  for (const std::size_t n : lengths) {
    for (const std::size_t offset : offsets) {
      Arrays<T, Grad> expected(n, offset);
      bool first = true;
      for (const onepass::Isa& isa : onepass::compiled_isas()) {
        if (!isa.supported) continue;
        const onepass::Variant& v = isa.kernels->rules[row].variants[variant];
        const onepass::Kernel kernel = sizeof(T) == sizeof(float) ? v.f32[format] : v.f64;
        if (first) {
          const auto one = expected.tensor(n, kernel, scalars, format);
          for (std::size_t i = 0; i < n; ++i) {
            kernel(one.streams, i, i + 1, scalars);
          }
          first = false;
        }
        Arrays<T, Grad> whole(n, offset);
        onepass::Tensor tensor = whole.tensor(n, kernel, scalars, format);
        onepass::step({&tensor, 1}, 1);
        check(whole == expected, rule + " on " + isa.name + ", n = " + std::to_string(n));
      }
    }
  }
}

// Many tensors in one region: any number of threads gives the same bits.
void check_threads() {
  const onepass::Isa& isa = onepass::choose_isa(nullptr);
  const auto rules = isa.kernels->rules;
  std::vector<std::unique_ptr<Arrays<float>>> expected;
  for (const int threads : {1, 2, 3, 4, 7}) {
    std::vector<std::unique_ptr<Arrays<float>>> arrays;
    std::vector<onepass::Tensor> tensors;
    for (std::size_t i = 0; i < 40; ++i) {
      const std::size_t n = i % 7 == 0 ? 20000 + i : i * i;
      arrays.push_back(std::make_unique<Arrays<float>>(n, i % 16));
      const onepass::Kernel kernel = rules[i % rules.size()].variants.back().f32[as_param];
      tensors.push_back(arrays.back()->tensor(n, kernel, scalars));
    }
    onepass::step(tensors, threads);
    if (threads == 1) expected = std::move(arrays);
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      check(*arrays[i] == *expected[i], std::to_string(threads) + " threads");
    }
  }
}

// The norm is the same bits for any number of threads and every build, and tells whose gradient is
// not finite.
template <class T>
void check_norm() {
  std::vector<std::unique_ptr<Arrays<T>>> arrays;
  for (const std::size_t n : {0u, 1u, 65u, 40000u, 0u, 20000u}) {
    arrays.push_back(std::make_unique<Arrays<T>>(n, 3));
  }
  const auto measure = [&](const onepass::Isa& isa, int threads) {
    std::vector<onepass::Tensor> tensors;
    for (const auto& each : arrays) {
      tensors.push_back(each->tensor(each->grad.size(), nullptr, scalars));
      const auto& kernels = *isa.kernels;
      tensors.back().squares =
          sizeof(T) == sizeof(float) ? kernels.squares_f32[as_param] : kernels.squares_f64;
    }
    std::vector<double> sums(onepass::norm_blocks(tensors));
    const onepass::Norm norm = onepass::norm(tensors, sums, threads);
    const auto culprit = norm.nonfinite ? norm.nonfinite - tensors.data() : -1;
    return std::pair(norm.value, culprit);
  };
  const auto expected = measure(onepass::compiled_isas()[0], 1);
  check(expected.first > 0 && expected.second == -1, "a norm");
  for (const onepass::Isa& isa : onepass::compiled_isas()) {
    if (!isa.supported) continue;
    for (const int threads : {1, 2, 3, 7}) {
      check(measure(isa, threads) == expected, std::string("the norm on ") + isa.name);
      for (const std::size_t culprit : {1u, 2u, 3u, 5u}) {
        T& last = arrays[culprit]->grad.data()[arrays[culprit]->grad.size() - 1];
        const T before = last;
        last = std::numeric_limits<T>::infinity();
        check(measure(isa, threads).second == static_cast<std::ptrdiff_t>(culprit), "the culprit");
        last = before;
      }
    }
  }
}

// Several callers at once, each with small steps in quick succession: whoever finds the helpers
// taken works alone, and nobody sees another's arrays.
void check_concurrent_callers() {
  const onepass::Kernel kernel =
      onepass::choose_isa(nullptr).kernels->rules[0].variants[2].f32[as_param];
  constexpr std::size_t n = 50000;
  constexpr int steps = 200;
  Arrays<float> expected(n, 4);
  onepass::Tensor alone = expected.tensor(n, kernel, scalars);
  for (int i = 0; i < steps; ++i) onepass::step({&alone, 1}, 1);

  std::vector<std::unique_ptr<Arrays<float>>> arrays;
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c) {
    arrays.push_back(std::make_unique<Arrays<float>>(n, 4));
    callers.emplace_back([tensor = arrays.back()->tensor(n, kernel, scalars)]() mutable {
      for (int i = 0; i < steps; ++i) onepass::step({&tensor, 1}, 3);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& each : arrays) check(*each == expected, "concurrent callers");
}

// Gradients of 16 bits, by hand: 1.5, -2, the smallest subnormal number, and their norm.
void check_formats_by_hand() {
  const auto& kernels = *onepass::choose_isa(nullptr).kernels;
  const double sgd[] = {1.0, 0.0, HUGE_VAL, 0.0, 0.0, 1.0, 1.0};
  struct Case {
    onepass::Format format;
    std::uint16_t bits[3];
    float smallest;
  };
  for (const Case& each : {Case{onepass::f16, {0x3e00, 0xc000, 0x0001}, 0x1p-24f},
                           Case{onepass::bf16, {0x3fc0, 0xc000, 0x0001}, 0x1p-133f}}) {
    Block<std::uint16_t> grad(3, 0, 1);
    std::memcpy(grad.data(), each.bits, sizeof each.bits);
    float param[] = {0.0f, 0.0f, 0.0f};
    std::uint16_t copy[3];
    onepass::Tensor tensor{
        {param, grad.data(), {}, nullptr, grad.data(), copy, kernels.narrow[each.format]},
        3,
        sizeof(float),
        sizeof(std::uint16_t),
        kernels.rules[0].variants[0].f32[each.format],
        kernels.squares_f32[each.format],
        sgd};
    double sum[1];
    const float smallest = each.smallest;
    check(onepass::norm({&tensor, 1}, sum, 1).value ==
              std::sqrt(2.25 + 4.0 + static_cast<double>(smallest) * smallest),
          "the norm of a gradient of 16 bits");
    onepass::step({&tensor, 1}, 1);
    check(param[0] == -1.5f && param[1] == 2.0f && param[2] == -smallest, "a gradient of 16 bits");
    check((copy[0] ^ 0x8000) == each.bits[0] && (copy[1] ^ 0x8000) == each.bits[1] &&
              (copy[2] ^ 0x8000) == each.bits[2],
          "a copy of 16 bits");
    check(grad.data()[0] == 0 && grad.data()[1] == 0 && grad.data()[2] == 0, "it is zeroed");
    std::memcpy(grad.data(), each.bits, sizeof each.bits);
    onepass::zero_gradients({&tensor, 1}, 1);
    check(grad.data()[0] == 0 && grad.data()[1] == 0 && grad.data()[2] == 0, "it is zeroed alone");
  }
}

// p - lr * g in numbers that are exact in binary.
void check_by_hand() {
  float param[] = {1.0f, -2.0f, 8.0f}, grad[] = {4.0f, 2.0f, -16.0f};
  // Scale, decay, no clipping, the average's weight; momentum, gain, step_size.
  const double sgd[] = {1.0, 0.0, HUGE_VAL, 0.5, 0.0, 1.0, 0.25};
  const auto& row = onepass::choose_isa(nullptr).kernels->rules[0];
  check(std::string(row.name) == "sgd", "the first row is sgd");
  const auto& kernels = *onepass::choose_isa(nullptr).kernels;
  float average[] = {2.0f, 0.5f, 0.0f};
  onepass::Tensor tensor{{param, grad, {}, average, grad, nullptr, nullptr},
                         3,
                         sizeof(float),
                         sizeof(float),
                         row.variants[0].f32[as_param],
                         kernels.squares_f32[as_param],
                         sgd};
  double sums[1];
  check(onepass::norm({&tensor, 1}, sums, 1).value == std::sqrt(276.0), "the norm by hand");
  onepass::step({&tensor, 1}, 1);
  check(param[0] == 0.0f && param[1] == -2.5f && param[2] == 12.0f, "sgd by hand");
  check(average[0] == 1.0f && average[1] == -1.0f && average[2] == 6.0f, "the average by hand");
  check(grad[0] == 0.0f && grad[1] == 0.0f && grad[2] == 0.0f, "the gradient is zeroed");
}

void check_choice() {
  for (const onepass::Isa& isa : onepass::compiled_isas()) {
    if (isa.supported) check(&onepass::choose_isa(isa.name) == &isa, "a forced ISA is chosen");
  }
  try {
    onepass::choose_isa("sse9");
    check(false, "an unknown ISA is an error");
  } catch (const std::invalid_argument& error) {
    check(std::string(error.what()).find("'baseline'") != std::string::npos, "it lists choices");
  }
}

}  // namespace

int main() {
  const auto rules = onepass::compiled_isas()[0].kernels->rules;
  for (std::size_t row = 0; row < rules.size(); ++row) {
    for (std::size_t variant = 0; variant < rules[row].variants.size(); ++variant) {
      check_variant<float>(rules[row].name, row, variant);
      check_variant<double>(rules[row].name, row, variant);
      for (const onepass::Format format : {onepass::bf16, onepass::f16}) {
        check_variant<float, std::uint16_t>(rules[row].name, row, variant, format);
      }
    }
  }
  check_threads();
  check_norm<float>();
  check_norm<double>();
  check_concurrent_callers();
  check_formats_by_hand();
  check_by_hand();
  check_choice();
  return report();
}
