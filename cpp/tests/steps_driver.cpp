// Single steps by hand, in numbers that are exact in binary: what surrounds the rule, and the
// formats.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <string>
#include <utility>

#include "checks.hpp"
#include "dispatch.hpp"
#include "onepass/random.hpp"
#include "onepass/rules.def"
#include "step.hpp"

namespace {

using Scalars = std::array<double, onepass::max_scalars>;

// Stages that change nothing, but for these; and then the rule's own scalars.
constexpr Scalars scalars_of(
    std::initializer_list<std::pair<onepass::SharedScalar, double>> stages = {},
    std::initializer_list<double> own = {}) {
  Scalars all{};
  all[onepass::grad_scale] = all[onepass::shrink] = all[onepass::late_shrink] = 1;
  all[onepass::max_grad_value] = HUGE_VAL;
  all[onepass::step_number] = 1;
  for (const auto& [place, number] : stages) all[place] = number;
  std::copy(own.begin(), own.end(), all.begin() + onepass::shared_scalars);
  return all;
}

// The first row, SGD, at a learning rate of 1; with a momentum of 0.5 where `state` is not plain.
onepass::Tensor sgd(const onepass::KernelTable& kernels, const onepass::Streams& streams,
                    std::size_t n, onepass::StateFormat state = onepass::plain_state) {
  static constexpr Scalars scalars = scalars_of({}, {0.5, 1.0, 1.0});  // momentum, gain, step_size
  const onepass::RuleRow& row = *kernels.rules[0];
  check(std::string(row.name) == "sgd", "the first row is sgd");
  const std::size_t variant = state == onepass::plain_state ? 0 : 1;
  return {.size = n,
          .kernel = onepass::find_kernel(row.variants[variant], false, state, false),
          .scalars = scalars.data(),
          .streams = streams,
          .item_size = sizeof(float),
          .squares = kernels.squares_f32};
}

// p - lr * g, and what surrounds it.
void check_stages() {
  constexpr Scalars scalars = scalars_of({{onepass::average_weight, 0.5}}, {0.0, 1.0, 0.25});
  for_each_isa([&](const onepass::KernelTable& kernels, const std::string& where) {
    float param[] = {1.0f, -2.0f, 8.0f}, grad[] = {4.0f, 2.0f, -16.0f};
    double average[] = {2.0, 0.5, 0.0};
    onepass::Streams streams;
    streams.param = {param};
    streams.grad = {grad};
    streams.average = average;
    streams.zero_grad = true;
    onepass::Tensor tensor = sgd(kernels, streams, 3);
    tensor.scalars = scalars.data();
    double sums[1];
    check(onepass::norm({&tensor, 1}, sums, 1).value == std::sqrt(276.0), "the norm" + where);
    onepass::step({&tensor, 1}, 1);
    check(param[0] == 0.0f && param[1] == -2.5f && param[2] == 12.0f, "sgd" + where);
    check(average[0] == 1.0 && average[1] == -1.0 && average[2] == 6.0, "the average" + where);
    check(grad[0] == 0.0f && grad[1] == 0.0f && grad[2] == 0.0f, "the gradient is zeroed" + where);
  });
}

// From (2, -1) with gradients of (1, 4), a rate of 0.25, a coupled decay of 0.5 and weights that
// shrink to 0.75: gradients of 2 and 3.5, weights of 1.5 and -0.75, and then the step. In double
// and in float32, by each of its kernels; and where the gradient is clipped to 2, before the decay.
template <class T>
void check_decay() {
  constexpr double largest[] = {HUGE_VAL, 2.0};
  constexpr T expected[][2] = {{T(1), T(-1.625)}, {T(1), T(-1.125)}};
  for_each_isa([&](const onepass::KernelTable& kernels, const std::string& where) {
    for (const std::size_t i : {0u, 1u}) {
      const Scalars scalars = scalars_of({{onepass::weight_decay, 0.5},
                                          {onepass::shrink, 0.75},
                                          {onepass::max_grad_value, largest[i]}},
                                         {0.0, 1.0, 0.25});
      for (const bool decays : {false, true}) {
        T param[] = {T(2), T(-1)}, grad[] = {T(1), T(4)};
        onepass::Streams streams;
        streams.param = {param};
        streams.grad = {grad};
        const bool is_double = sizeof(T) == sizeof(double);
        onepass::find_kernel(kernels.rules[0]->variants[0], is_double, onepass::plain_state,
                             decays)(streams, 0, 2, scalars.data());
        check(param[0] == expected[i][0] && param[1] == expected[i][1], "both decays" + where);
      }
    }
  });
}

// The numbers of a step: Adam's for betas of 0.5 and 0.75, in the second step, by hand; by the row
// and by the header, which knows their names.
void check_numbers() {
  constexpr double expected[] = {0.5, 0.5, 0.75, 0.25, 0.125 / 0.75, 1.0, 1 / 0.4375, 0.0, 0.0};
  const auto rule =
      onepass::Adam<double, false>::at(2, {.lr = 0.125, .beta1 = 0.5, .beta2 = 0.75, .eps = 0.0});
  check(rule.step_size == expected[4] && rule.inv_bias2 == expected[6], "the numbers of a step");
  const auto rounded = onepass::Adam<float, false>::at(2, {.lr = 0.125, .beta1 = 0.5});
  check(rounded.step_size == static_cast<float>(expected[4]), "rounded at the end");
  const double hyper[] = {0.125, 0.5, 0.75, 0.0, 0.0, 1.0, 0.0, 0.0};
  for_each_isa([&](const onepass::KernelTable& kernels, const std::string& where) {
    for (const onepass::RuleRow* row : kernels.rules) {
      if (row->name != std::string("adam")) continue;
      double found[onepass::max_scalars] = {};
      check(row->hyper.size() == std::size(hyper), "the hyperparameters" + where);
      row->at(2, hyper, nullptr, found);
      check(std::equal(std::begin(expected), std::end(expected), found),
            "the numbers of a step" + where);
    }
  });
}

// Gradients of 16 bits are added to a sum, and zeroed.
void check_add() {
  for_each_isa([](const onepass::KernelTable& kernels, const std::string& where) {
    constexpr Scalars scalars = scalars_of();
    float sum[] = {1.0f, -2.0f};
    std::uint16_t grad[] = {0x3fc0, 0xc000};
    onepass::Streams streams;
    streams.param = {sum};
    streams.grad = {grad, &kernels.codecs[onepass::bf16]};
    streams.zero_grad = true;
    kernels.add_f32(streams, 0, 2, scalars.data());
    check(sum[0] == 2.5f && sum[1] == -4.0f && grad[0] == 0 && grad[1] == 0, "a sum" + where);
    double sum64[] = {1.0}, grad64[] = {0x1p-52};
    streams = {};
    streams.param = {sum64};
    streams.grad = {grad64};
    kernels.add_f64(streams, 0, 1, scalars.data());
    check(sum64[0] == 1.0 + 0x1p-52 && grad64[0] == 0x1p-52, "a sum in double" + where);
  });
}

// A gradient of 16 bits: 1.5, -2, the smallest subnormal number; its norm, and a copy of 16 bits.
void check_gradient() {
  struct Case {
    onepass::Format format;
    std::uint16_t bits[3];
    float smallest;
  };
  const auto are_zero = [](const std::uint16_t* grad) { return !grad[0] && !grad[1] && !grad[2]; };
  for_each_isa([&](const onepass::KernelTable& kernels, const std::string& where) {
    for (const Case& each : {Case{onepass::f16, {0x3e00, 0xc000, 0x0001}, 0x1p-24f},
                             Case{onepass::bf16, {0x3fc0, 0xc000, 0x0001}, 0x1p-133f}}) {
      Block<std::uint16_t> grad(3, 0, 1), copy(3, 0, 2);
      std::memcpy(grad.data(), each.bits, sizeof each.bits);
      float param[] = {0.0f, 0.0f, 0.0f};
      onepass::Streams streams;
      const onepass::Codec* codec = &kernels.codecs[each.format];
      streams.param = {param};
      streams.grad = {grad.data(), codec};
      streams.copy = {copy.data(), codec};
      streams.zero_grad = true;
      onepass::Tensor tensor = sgd(kernels, streams, 3);
      double sum[1];
      const double smallest = each.smallest;
      check(
          onepass::norm({&tensor, 1}, sum, 1).value == std::sqrt(2.25 + 4.0 + smallest * smallest),
          "the norm of a gradient of 16 bits" + where);
      onepass::step({&tensor, 1}, 1);
      check(param[0] == -1.5f && param[1] == 2.0f && param[2] == -each.smallest,
            "a gradient of 16 bits" + where);
      for (std::size_t i = 0; i < 3; ++i) {
        check((copy.data()[i] ^ 0x8000) == each.bits[i], "a copy of 16 bits" + where);
      }
      check(are_zero(grad.data()), "it is zeroed" + where);
      std::memcpy(grad.data(), each.bits, sizeof each.bits);
      onepass::zero_gradients({&tensor, 1}, 1);
      check(are_zero(grad.data()), "it is zeroed alone" + where);
    }
  });
}

// A master of more bits than its bfloat16 stays, but for the element that was set to -3 there.
void check_follow() {
  for_each_isa([](const onepass::KernelTable& kernels, const std::string& where) {
    float param[] = {0x1.00002p0f, 0x1.00002p0f, 0.5f}, grad[] = {0.0f, 0.0f, -0x1p-20f};
    std::uint16_t copy[] = {0x3f80, 0xc040, 0x3f00};
    onepass::Streams streams;
    streams.param = {param};
    streams.grad = {grad};
    streams.copy = {copy, &kernels.codecs[onepass::bf16]};
    streams.follows = true;
    onepass::Tensor tensor = sgd(kernels, streams, 3);
    onepass::step({&tensor, 1}, 1);
    check(param[0] == 0x1.00002p0f && param[1] == -3.0f && param[2] == 0.5f + 0x1p-20f,
          "the master follows" + where);
    check(copy[0] == 0x3f80 && copy[1] == 0xc040 && copy[2] == 0x3f00, "its copy" + where);
  });
}

// Two steps from 2 with gradients of 0.5: momentum 0.5, then 0.75; parameter 1.5, then 0.75. All of
// these are exact in 16 bits; in 8, 0.5 lies just above a code.
void check_state() {
  using namespace onepass;
  struct Case {
    Format format;
    std::uint16_t first, second;
  };
  StepBits bits;
  draw(bits, 0, 1);
  for_each_isa([&](const KernelTable& kernels, const std::string& where) {
    for (const Case& each : {Case{bf16, 0x3fc0, 0x3f40}, Case{bf16_random, 0x3fc0, 0x3f40},
                             Case{f16, 0x3e00, 0x3a00}, Case{f16_random, 0x3e00, 0x3a00}}) {
      std::uint16_t param[] = {0x4000}, momentum[] = {0};
      float grad[] = {0.5f};
      Streams streams;
      streams.param = {param, &kernels.codecs[each.format]};
      streams.grad = {grad};
      streams.state[0] = {momentum};
      streams.random = &bits;
      Tensor tensor = sgd(kernels, streams, 1, bf16_state);
      step({&tensor, 1}, 1);
      check(param[0] == each.first && momentum[0] == 0x3f00, "a step in 16 bits" + where);
      step({&tensor, 1}, 1);
      check(param[0] == each.second && momentum[0] == 0x3f40, "its next" + where);

      std::uint8_t codes[block_size] = {}, scale[] = {0};
      param[0] = 0x4000;
      streams.state[0] = {codes, scale};
      tensor = sgd(kernels, streams, 1, q8_state);
      step({&tensor, 1}, 1);
      check(param[0] == each.first && codes[0] >> 1 == 15 << 2 && scale[0] == 126 - 19,
            "a step in 8 bits" + where);
    }
  });
}

// What a step keeps of the smallest normal number, of what lies below it, and of a NaN: the 64th
// nothing that is subnormal, every other all of it. A momentum of 1 and a gradient of 0 keep it.
void check_flush() {
  constexpr std::size_t n = 6;
  constexpr float smallest = std::numeric_limits<float>::min();
  constexpr float largest_below = smallest - std::numeric_limits<float>::denorm_min();
  constexpr float values[n] = {smallest,       -smallest, largest_below,
                               -largest_below, 0x1p-149f, std::numeric_limits<float>::quiet_NaN()};
  for_each_isa([&](const onepass::KernelTable& kernels, const std::string& where) {
    for (const double step : {1.0, 63.0, 64.0, 65.0, 128.0}) {
      // Weights of 0 leave a quarter of the average.
      const Scalars scalars = scalars_of(
          {{onepass::average_weight, 0.75}, {onepass::step_number, step}}, {1.0, 1.0, 0.0});
      float param[n] = {}, grad[n] = {}, momentum[n];
      std::copy(values, values + n, momentum);
      double average[n] = {0x1p-1020, -0x1p-1020, 0x1p-1021, -0x1p-1021, 0x1p-1072, 0.0};
      onepass::Streams streams;
      streams.param = {param};
      streams.grad = {grad};
      streams.state[0] = {momentum};
      streams.average = average;
      onepass::Tensor tensor = sgd(kernels, streams, n);
      tensor.kernel = kernels.rules[0]->variants[1].f32[onepass::plain_state];
      tensor.scalars = scalars.data();
      onepass::step({&tensor, 1}, 1);
      const bool flushes = std::fmod(step, 64.0) == 0;
      const std::string what = ", step " + std::to_string(step) + where;
      check(momentum[0] == smallest && momentum[1] == -smallest, "normal numbers stay" + what);
      check(std::isnan(momentum[5]), "NaN stays" + what);
      check(average[0] == 0x1p-1022 && average[1] == -0x1p-1022, "the average stays" + what);
      for (const std::size_t i : {2u, 3u, 4u}) {
        const bool is_zero = momentum[i] == 0 && average[i] == 0;
        const bool has_sign = std::signbit(momentum[i]) || std::signbit(average[i]);
        check(flushes ? is_zero && !has_sign : momentum[i] == values[i] && average[i] != 0,
              "subnormal numbers are flushed" + what);
      }
    }
  });
}

}  // namespace

int main() {
  check_stages();
  check_decay<float>();
  check_decay<double>();
  check_numbers();
  check_add();
  check_flush();
  check_gradient();
  check_follow();
  check_state();
  return report();
}
