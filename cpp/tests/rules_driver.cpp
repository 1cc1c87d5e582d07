// Runs every kernel of every build that this machine can run, for the sanitizers to watch: each
// array is a heap block of its exact size, so one element too far is an error.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "checks.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"
#include "step.hpp"

namespace {

using onepass::Format;
using onepass::plain;

// Every combination that there is, beside float32; of a gradient in double, one for each of the
// rest.
std::vector<Formats> all_formats() {
  using namespace onepass;
  std::vector<Formats> found;
  for (const Format grad : {plain, bf16, f16}) {
    for (const StateFormat state : {plain_state, bf16_state, q8_state}) {
      for (const Format param : {plain, bf16, f16, bf16_random, f16_random}) {
        found.push_back({.param = param, .grad = grad, .state = state});
      }
      for (const Format copy : {bf16, f16}) {
        for (const bool follows : {false, true}) {
          found.push_back({.grad = grad, .state = state, .copy = copy, .follows = follows});
        }
      }
    }
  }
  for (const StateFormat state : {plain_state, bf16_state, q8_state}) {
    found.push_back({.grad = f64_beside_f32, .state = state});
  }
  found.push_back({.param = bf16, .grad = f64_beside_f32});
  found.push_back({.grad = f64_beside_f32, .copy = f16, .follows = true});
  return found;
}

constexpr Format grads_beside_f64[] = {onepass::f32_beside_f64, onepass::bf16, onepass::f16};

std::string describe(const Formats& f) {
  const char* const names[] = {"plain",      "bf16",           "f16",           "bf16_random",
                               "f16_random", "f32_beside_f64", "f64_beside_f32"};
  const char* const states[] = {"plain", "bf16", "q8"};
  return std::string(", param ") + names[f.param] + ", grad " + names[f.grad] + ", state " +
         states[f.state] + ", copy " + names[f.copy] + (f.follows ? " (master)" : "");
}

// Around every vector width, tile and block; elements past a cache line.
constexpr std::size_t lengths[] = {0,  1,  2,  3,   7,   8,   9,   15,   16,   17,  31,
                                   33, 63, 65, 127, 255, 256, 257, 1023, 1025, 5003};
constexpr std::size_t offsets[] = {0, 1, 3, 15};

// The loop over the whole against one element at a time, or one block where it is rounded, and
// every build against the first.
template <class T>
void check_variant(std::size_t row, std::size_t variant, const Scalars& scalars,
                   const Formats& formats = {}) {
  for (const std::size_t n : lengths) {
    Arrays<T> expected(n, 0, formats);
    const onepass::KernelTable* first = onepass::compiled_isas()[0].kernels;
    const onepass::Tensor cut = expected.tensor({first, row, variant, &scalars});
    const std::size_t length = formats.rounds() ? onepass::block_size : 1;
    for (std::size_t i = 0; i < n; i += length) {
      cut.kernel(cut.streams, i, std::min(i + length, n), cut.scalars);
    }
    for (const std::size_t offset : offsets) {
      if (formats.rounds() && offset > 1) continue;  // no loop is aligned there
      for (const onepass::Isa& isa : onepass::compiled_isas()) {
        if (!isa.supported) continue;
        Arrays<T> whole(n, offset, formats);
        onepass::Tensor tensor = whole.tensor({isa.kernels, row, variant, &scalars});
        onepass::step({&tensor, 1}, 1);
        check(whole == expected, isa.kernels->rules[row]->name + (" on " + std::string(isa.name)) +
                                     ", n = " + std::to_string(n) + describe(formats));
      }
    }
  }
}

// What a directed rule makes its direction of, and the sum of its squares: every build against the
// first. Nothing but the direction is written.
template <class T>
void check_direction(std::size_t row, std::size_t variant, const Formats& formats = {}) {
  for (const std::size_t n : lengths) {
    std::unique_ptr<Arrays<T>> expected;
    double expected_sum = 0;
    for (const onepass::Isa& isa : onepass::compiled_isas()) {
      if (!isa.supported) continue;
      const onepass::Variant& kernels = isa.kernels->rules[row]->variants[variant];
      auto arrays = std::make_unique<Arrays<T>>(n, 1, formats);
      const onepass::Tensor tensor = arrays->tensor({isa.kernels, row, variant, &decoupled});
      double sum = 0;
      onepass::find_direct(kernels, sizeof(T) == sizeof(double), formats.state)(
          tensor.streams, 0, n, tensor.scalars, &sum);
      if (!expected) {
        const StoredBlock<T>& direction = arrays->full[onepass::direction_place];
        double squares = 0;
        for (std::size_t i = 0; i < n; ++i) {
          squares += static_cast<double>(direction.numbers.data()[i]) *
                     static_cast<double>(direction.numbers.data()[i]);
        }
        check(std::abs(sum - squares) <= 1e-12 * squares, "the sum of a direction's squares");
        Arrays<T> untouched(n, 1, formats);
        std::copy_n(direction.numbers.data(), n,
                    untouched.full[onepass::direction_place].numbers.data());
        check(*arrays == untouched, "a direction, and nothing else" + describe(formats));
        expected = std::move(arrays);
        expected_sum = sum;
      } else {
        check(*arrays == *expected && sum == expected_sum,
              "a direction on " + std::string(isa.name) + describe(formats));
      }
    }
  }
}

// Many tensors in one region, every other one of about one piece or two: any number of threads
// gives the same bits.
void check_threads() {
  constexpr std::size_t piece = 16384;
  const onepass::KernelTable* kernels = onepass::choose_isa(nullptr).kernels;
  const std::vector<Formats> all = all_formats();
  std::vector<std::unique_ptr<Arrays<float>>> expected;
  for (const int threads : {1, 2, 3, 4, 7}) {
    std::vector<std::unique_ptr<Arrays<float>>> arrays;
    std::vector<onepass::Tensor> tensors;
    for (std::size_t i = 0; i < 2 * all.size(); ++i) {
      const std::size_t n = i % 2 ? i : i % 4 ? 2 * piece + 257 + i : piece - 1 + i % 3;
      const std::size_t row = i % kernels->rules.size();
      arrays.push_back(std::make_unique<Arrays<float>>(n, i % 16, all[i % all.size()]));
      const Choice choice{kernels, row, count_variants(*kernels->rules[row]) - 1};
      tensors.push_back(arrays.back()->tensor(choice, i));
    }
    onepass::step(tensors, threads);
    if (threads == 1) expected = std::move(arrays);
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      check(*arrays[i] == *expected[i],
            std::to_string(threads) + " threads" + describe(arrays[i]->formats));
    }
  }
}

// Generated shapes and formats, with 1 to 64 threads: the norm and the step are those of one
// thread, however pieces, blocks and threads meet.
void check_generated() {
  constexpr int most_threads = 64;
  constexpr std::size_t piece = 16384;
  const onepass::KernelTable* kernels = onepass::choose_isa(nullptr).kernels;
  const std::vector<Formats> all = all_formats();
  std::mt19937 random(1);
  const auto draw = [&](std::size_t below) { return random() % below; };
  for (int threads = 1; threads <= most_threads; ++threads) {
    struct Made {
      std::vector<std::unique_ptr<Arrays<float>>> arrays;
      std::vector<onepass::Tensor> tensors;
    } made[2];
    // Enough pieces for all threads, in one tensor or in many, some of them empty or of one
    // element.
    std::size_t wanted = piece * static_cast<std::size_t>(threads + 1);
    for (std::size_t number = 0; wanted > 0; ++number) {
      const std::size_t sizes[] = {draw(3), draw(300), piece - 1 + draw(3), draw(4 * piece),
                                   std::min(wanted, draw(40 * piece))};
      const std::size_t n = sizes[draw(std::size(sizes))], offset = draw(16);
      const std::size_t row = draw(kernels->rules.size());
      const Choice choice{kernels, row, draw(count_variants(*kernels->rules[row]))};
      const Formats& formats = all[draw(all.size())];
      for (Made& each : made) {
        each.arrays.push_back(std::make_unique<Arrays<float>>(n, offset, formats));
        each.tensors.push_back(each.arrays.back()->tensor(choice, number));
      }
      wanted -= std::min(wanted, std::max<std::size_t>(n, 1000));
    }
    double norms[2];
    for (const int of : {0, 1}) {
      std::vector<double> sums(onepass::total_blocks(made[of].tensors));
      norms[of] = onepass::norm(made[of].tensors, sums, of ? threads : 1).value;
      onepass::step(made[of].tensors, of ? threads : 1);
    }
    const std::string what = std::to_string(threads) + " threads, generated";
    check(norms[0] == norms[1], "the norm, " + what);
    for (std::size_t i = 0; i < made[0].arrays.size(); ++i) {
      const Arrays<float>& one = *made[0].arrays[i];
      check(one == *made[1].arrays[i], what + describe(one.formats));
    }
  }
}

// The norm is the same bits for any number of threads and every build, and tells whose gradient is
// the first that is not finite.
template <class T>
void check_norm(Format grad = plain) {
  std::vector<std::unique_ptr<Arrays<T>>> arrays;
  for (const std::size_t n : {0u, 1u, 65u, 40000u, 0u, 20000u}) {
    arrays.push_back(std::make_unique<Arrays<T>>(n, 3, Formats{.grad = grad}));
  }
  const auto measure = [&](const onepass::Isa& isa, int threads) {
    std::vector<onepass::Tensor> tensors;
    for (const auto& each : arrays) tensors.push_back(each->tensor({isa.kernels, 0, 0}));
    std::vector<double> sums(onepass::total_blocks(tensors));
    const onepass::Norm norm = onepass::norm(tensors, sums, threads);
    const auto culprit = norm.nonfinite ? norm.nonfinite - tensors.data() : -1;
    return std::pair(norm.value, culprit);
  };
  for (const int culprit : {-1, 5, 3, 2, 1}) {
    if (culprit >= 0) arrays[static_cast<std::size_t>(culprit)]->make_infinite();
    const auto expected = measure(onepass::compiled_isas()[0], 1);
    check(expected.first > 0 && expected.second == culprit, "a norm");
    for (const onepass::Isa& isa : onepass::compiled_isas()) {
      if (!isa.supported) continue;
      for (const int threads : {1, 2, 3, 7}) {
        check(measure(isa, threads) == expected, std::string("the norm on ") + isa.name);
      }
    }
  }
}

// Several callers at once, each with small steps in quick succession: whoever finds the helpers
// taken works alone, and nobody sees another's arrays.
void check_concurrent_callers() {
  const Choice choice{onepass::choose_isa(nullptr).kernels, 0, 1};
  constexpr std::size_t n = 50000;
  constexpr int steps = 200;
  Arrays<float> expected(n, 4);
  onepass::Tensor alone = expected.tensor(choice);
  for (int i = 0; i < steps; ++i) onepass::step({&alone, 1}, 1);

  std::vector<std::unique_ptr<Arrays<float>>> arrays;
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c) {
    arrays.push_back(std::make_unique<Arrays<float>>(n, 4));
    callers.emplace_back([tensor = arrays.back()->tensor(choice)]() mutable {
      for (int i = 0; i < steps; ++i) onepass::step({&tensor, 1}, 3);
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& each : arrays) check(*each == expected, "concurrent callers");
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
  const std::vector<Formats> all = all_formats();
  for (std::size_t row = 0; row < rules.size(); ++row) {
    for (std::size_t variant = 0; variant < count_variants(*rules[row]); ++variant) {
      for (const Scalars* scalars : {&undecayed, &coupled, &decoupled}) {
        check_variant<double>(row, variant, *scalars);
        check_variant<float>(row, variant, *scalars);
      }
      for (const Formats& formats : all) check_variant<float>(row, variant, decaying, formats);
      for (const Format grad : grads_beside_f64) {
        check_variant<double>(row, variant, decaying, {.grad = grad});
      }
      if (!rules[row]->variants[variant].direct_f64) continue;
      check_direction<double>(row, variant);
      for (const Formats& formats : all) check_direction<float>(row, variant, formats);
    }
  }
  check_threads();
  check_generated();
  check_norm<double>();
  for (const Format grad : grads_beside_f64) check_norm<double>(grad);
  for (const Format grad : {plain, onepass::bf16, onepass::f16, onepass::f64_beside_f32}) {
    check_norm<float>(grad);
  }
  check_concurrent_callers();
  check_choice();
  return report();
}
