// The engine's whole step, on memory of its own, against the loop that stands alone: update.hpp
// with the rule's own `at`, and every other number of a step written out here once more. Gradients
// are quarters, so the sum of their squares is exact in any order.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "arrays.hpp"
#include "checks.hpp"
#include "loops.hpp"
#include "onepass/random.hpp"
#include "optimizer.hpp"

namespace {

using onepass::Nonfinite, onepass::none, onepass::SkipReason;
constexpr double infinity = std::numeric_limits<double>::infinity();

struct Shape {
  std::size_t size;
  std::uint32_t group;
  bool is_double;
  onepass::StateFormat state;
  std::int64_t steps;  // before the first one of the run; a 64th step flushes
};
// Neighbours have or have not the same group, steps and beginning of their average.
constexpr Shape shapes[] = {
    {65, 0, false, onepass::plain_state, 0},     {1, 0, true, onepass::plain_state, 0},
    {5003, 0, false, onepass::q8_state, 0},      {300, 1, false, onepass::bf16_state, 0},
    {257, 1, true, onepass::plain_state, 0},     {0, 0, false, onepass::plain_state, 0},
    {40000, 0, false, onepass::plain_state, 61}, {3, 1, false, onepass::plain_state, 62},
    {70, 0, false, onepass::q8_state, 61},
};
constexpr std::size_t n_items = std::size(shapes), n_groups = 2;
constexpr int n_steps = 5;

// One parameter's arrays, of float or of double.
class Item {
 public:
  template <class Body>
  auto visit(const Body& body) const {
    return std::visit([&](const auto& arrays) { return body(*arrays); }, arrays_);
  }
  Item(const Shape& shape, onepass::StateFormat state) {
    if (shape.is_double) {
      arrays_ = std::make_unique<Arrays<double>>(shape.size, 3);
    } else {
      arrays_ = std::make_unique<Arrays<float>>(shape.size, 3, Formats{.state = state});
    }
    visit([](auto& arrays) {
      for (auto& state_array : arrays.state) {
        const auto zero = [](const auto& block) {
          if (block.size()) std::memset(block.data(), 0, block.size() * sizeof *block.data());
        };
        zero(state_array.numbers), zero(state_array.halves);
        zero(state_array.codes), zero(state_array.scales);
      }
    });
  }
  // Quarters in [-2, 2]. Returns the sum of their squares.
  double fill_gradient(std::uint32_t seed) const {
    return visit([&](const auto& arrays) {
      double sum = 0;
      for (std::size_t i = 0; i < arrays.size; ++i) {
        seed = seed * 1664525u + 1013904223u;
        auto& element = arrays.grad.numbers.data()[i];
        element = static_cast<std::remove_reference_t<decltype(element)>>(
            (static_cast<double>((seed >> 8) % 17) - 8) / 4);
        sum += static_cast<double>(element) * static_cast<double>(element);
      }
      return sum;
    });
  }
  bool gradient_is_zero() const {
    return visit([](const auto& arrays) {
      const auto* data = arrays.grad.numbers.data();
      return std::all_of(data, data + arrays.size, [](auto g) { return g == 0; });
    });
  }
  // Which NaN comes out of an operation on two of them is up to the compiler.
  void make_nans_equal() const {
    visit([](const auto& arrays) {
      const auto each = [](const auto& block) {
        using Value = std::remove_cvref_t<decltype(*block.data())>;
        for (std::size_t i = 0; i < block.size(); ++i) {
          if (std::isnan(block.data()[i])) {
            block.data()[i] = std::numeric_limits<Value>::quiet_NaN();
          }
        }
      };
      each(arrays.param.numbers), each(arrays.average);
      for (const auto& state : arrays.state) each(state.numbers);
    });
  }
  bool operator==(const Item& other) const {
    return visit([&](const auto& own) {
      using Own = std::unique_ptr<std::remove_cvref_t<decltype(own)>>;
      return own == *std::get<Own>(other.arrays_);
    });
  }

 private:
  std::variant<std::unique_ptr<Arrays<float>>, std::unique_ptr<Arrays<double>>> arrays_;
};

// What is tried: settings of the first and the second group, and a step's options.
struct Trial {
  std::string name;
  std::function<void(onepass::Settings&, onepass::Settings&)> set = [](auto&, auto&) {};
  onepass::StepOptions options{};
  bool zeroes = false;
  int skipped = 0;           // how many steps
  std::ptrdiff_t bad = -1;   // the item whose gradient is infinite in the second step
  int without_average = -1;  // the step in which no group keeps one
};

std::vector<Trial> trials() {
  const auto decay = [](onepass::Settings& a, onepass::Settings& b) {
    a.weight_decay = 0.125, a.max_grad_value = 0.75;
    b.weight_decay = 0.25, b.decoupled_weight_decay = 1, b.maximize = 1;
  };
  const auto averages = [](onepass::Settings& a, onepass::Settings& b) {
    a.ema_decay = 0.75, a.ema_warmup = 1;
    b.swa_start = 2, b.weight_decay = 0.25;
  };
  const auto plain_average = [](onepass::Settings& a, onepass::Settings&) { a.ema_decay = 0.25; };
  return {
      {"plain"},
      {"decays", decay},
      {"clipped", decay, {.grad_scale = 4, .max_grad_norm = 1.5}, true},
      {"not clipped", averages, {.max_grad_norm = 1e9, .nonfinite = Nonfinite::raise}},
      {"measured", averages, {.grad_scale = 0.5, .max_grad_norm = infinity, .seed = 7}},
      {"measured where it is infinite", decay, {.max_grad_norm = infinity}, false, 0, 7},
      {"an average that is left out", averages, {}, false, 0, -1, 2},
      {"skipped", plain_average, {.max_grad_norm = 1, .nonfinite = Nonfinite::skip}, true, 1, 3},
      {"skipped, unclipped", averages, {.nonfinite = Nonfinite::skip}, false, 1, 7},
      {"raised", plain_average, {.nonfinite = Nonfinite::raise}, true, 0, 4},
      {"propagated", decay, {.max_grad_norm = 1}, false, 0, 4},
      {"above a norm",
       averages,
       {.grad_scale = 0.5, .max_grad_norm = 1, .skip_grad_norm = 521.5},
       true,
       2},
      {"not finite beside a norm", decay, {.skip_grad_norm = 1e9}, true, 1, 3},
      {"raised beside a norm",
       decay,
       {.skip_grad_norm = 1e9, .nonfinite = Nonfinite::raise},
       false,
       0,
       4},
      {"nothing that is finite", decay, {.is_left_out = true}, true, n_steps},
      {"watched", decay, {.grad_scale = 4, .max_grad_norm = 1.5, .stats = true}, true},
      {"watched and skipped", averages, {.nonfinite = Nonfinite::skip, .stats = true}, true, 1, 3},
  };
}

// An optimizer and its parameters' arrays.
struct Run {
  std::vector<Item> items;
  onepass::Optimizer optimizer;

  Run(const onepass::KernelTable& kernels, std::size_t row, std::size_t variant,
      const Trial& trial) {
    const onepass::RuleRow& rule = *kernels.rules[row];
    bool has_state = false;  // that may be in fewer bits
    for (std::size_t k = 0; k < rule.states.size(); ++k) {
      has_state = has_state || (rule.variants[variant].uses_state[k] && !rule.in_full[k]);
    }
    for (std::size_t g = 0; g < n_groups; ++g) {
      onepass::Group& group = optimizer.groups.emplace_back(rule);
      for (std::size_t k = 0; k < rule.options.size(); ++k) {
        group.settings.options[k] = static_cast<double>(variant >> k & 1);
      }
      for (std::size_t k = 0; k < rule.hyper.size(); ++k) {
        if (rule.hyper[k] == std::string("momentum")) group.settings.hyper[k] = 0.5;
      }
      group.settings.hyper[group.lr] = g == 0 ? 0.125 : 0.03;
    }
    trial.set(optimizer.groups[0].settings, optimizer.groups[1].settings);
    for (std::size_t i = 0; i < n_items; ++i) {
      const Shape& shape = shapes[i];
      const onepass::StateFormat state = has_state ? shape.state : onepass::plain_state;
      items.emplace_back(shape, state);
      optimizer.params.push_back({.size = shape.size,
                                  .group = shape.group,
                                  .is_double = shape.is_double,
                                  .rounds = state != onepass::plain_state,
                                  .state_format = state,
                                  .steps = shape.steps,
                                  .average_from = shape.steps});
      onepass::Tensor tensor = items.back().visit([&](const auto& arrays) {
        return arrays.tensor({&kernels, row, variant}, i);
      });
      tensor.streams.zero_grad = trial.zeroes;
      if (!optimizer.groups[shape.group].averages()) tensor.streams.average = nullptr;
      optimizer.tensors.push_back(tensor);
    }
    optimizer.start_memory();
  }

  static bool takes_part(std::size_t item, int step) {
    return item % n_steps != static_cast<std::size_t>(step);
  }
  // Returns the sum of the gradients' squares.
  double set_gradients(int step, const Trial& trial) {
    double sum = 0;
    for (std::size_t i = 0; i < n_items; ++i) {
      const auto seed = static_cast<std::uint32_t>(97 * i + 13 * static_cast<std::size_t>(step));
      const bool bad = step == 1 && trial.bad == static_cast<std::ptrdiff_t>(i);
      double squares = items[i].fill_gradient(seed);
      if (bad) {
        items[i].visit([](const auto& arrays) { arrays.make_infinite(); });
        squares = infinity;
      }
      auto grad = items[i].visit([](const auto& arrays) { return arrays.grad.stored(); });
      if (!takes_part(i, step)) grad = {};
      if (grad.data) sum += squares;
      optimizer.tensors[i].streams.grad = grad;
    }
    return sum;
  }
  bool same_arrays(const Run& other) const {
    for (std::size_t i = 0; i < n_items; ++i) {
      if (!(items[i] == other.items[i])) return false;
    }
    return true;
  }
};

// What a step is by its definition, and one item after the other.
class Expected {
 public:
  Expected(const onepass::KernelTable& kernels, std::size_t row, std::size_t variant,
           const Trial& trial)
      : run(kernels, row, variant, trial), loops_(all_loops()[row][variant]) {
    for (std::size_t i = 0; i < n_items; ++i) steps_.push_back(shapes[i].steps);
  }

  Run run;
  std::vector<std::int64_t> steps_, averaged_ = std::vector<std::int64_t>(n_items);

  void step(int number, double factor, const std::vector<onepass::Group>& groups, bool zeroes,
            std::uint64_t seed) {
    Totals totals;
    const auto each = [&](Totals* found, const Totals* of_all) {
      const std::vector<double> memory = run.optimizer.memory;
      for (std::size_t i = 0; i < n_items; ++i) {
        if (!Run::takes_part(i, number)) continue;
        const onepass::Group& group = groups[shapes[i].group];
        if (of_all || found) run.optimizer.memory = memory;  // which all share
        run.items[i].visit([&]<class T>(const Arrays<T>& arrays) {
          step_one(arrays, i, group, factor, zeroes, seed, found, of_all);
        });
      }
      if (found) run.optimizer.memory = memory;
    };
    for (std::size_t i = 0; i < n_items; ++i) {
      if (!Run::takes_part(i, number)) continue;
      ++steps_[i];
      averaged_[i] = groups[shapes[i].group].averages() ? averaged_[i] + 1 : 0;
    }
    const bool over_all = run.optimizer.shares_memory();
    if (over_all) each(&totals, nullptr);
    each(nullptr, over_all ? &totals : nullptr);
  }

 private:
  template <class T>
  void step_one(const Arrays<T>& arrays, std::size_t i, const onepass::Group& group, double factor,
                bool zeroes, std::uint64_t seed, Totals* found, const Totals* of_all) {
    const onepass::Settings& settings = group.settings;
    const double decay = settings.weight_decay, lr = settings.hyper[group.lr];
    const bool decoupled = settings.decoupled_weight_decay != 0;
    onepass::Stages<T> stages;
    stages.scale = static_cast<T>(settings.maximize != 0 ? -factor : factor);
    stages.weight_decay = decoupled ? 0 : decay;
    if (decoupled) stages.shrink = static_cast<T>(1 - lr * decay);
    if (settings.max_grad_value == settings.max_grad_value) {
      stages.max_value = static_cast<T>(settings.max_grad_value);
    }
    stages.average_weight = group.averages() ? average_weight(settings, i) : 0;
    stages.average_rest = 1 - stages.average_weight;
    stages.flushes = steps_[i] % 64 == 0;
    onepass::Streams streams = run.optimizer.tensors[i].streams;
    onepass::StepBits bits;
    onepass::draw(bits, seed, static_cast<std::uint64_t>(steps_[i]));
    if (streams.random) streams.random = &bits;
    streams.zero_grad = zeroes;
    const auto loop = [&] {
      if constexpr (std::is_same_v<T, float>) {
        return loops_.f32;
      } else {
        return loops_.f64;
      }
    }();
    const Given given{static_cast<double>(steps_[i]), settings.hyper.data(),
                      run.optimizer.memory_of(i).data(), found, of_all};
    loop(streams, arrays.size, given, arrays.formats.state, stages);
  }

  // Of n weights in an average: the mean's 1 / n, or what the decay leaves; all at its beginning.
  double average_weight(const onepass::Settings& settings, std::size_t i) const {
    const auto n = static_cast<double>(averaged_[i]), step = static_cast<double>(steps_[i]);
    if (settings.swa_start == settings.swa_start) {
      const double later = step - settings.swa_start + 1;
      return 1 / std::max(1.0, std::min(n, later));
    }
    if (n == 1) return 1;
    if (settings.ema_warmup == 0) return 1 - settings.ema_decay;
    return 1 - std::min(settings.ema_decay, (1 + n) / (10 + n));
  }

  const Loops& loops_;
};

bool same_number(double a, double b) {
  return a == b || (a != a && b != b);
}

void check_trial(const onepass::KernelTable& kernels, std::size_t row, std::size_t variant,
                 const Trial& trial, int threads, const std::string& where) {
  Run run(kernels, row, variant, trial);
  Expected expected(kernels, row, variant, trial);
  onepass::StepOptions options = trial.options;
  options.num_threads = threads;
  const bool limits = !onepass::is_none(options.max_grad_norm);
  const bool skips = !onepass::is_none(options.skip_grad_norm);
  const bool measures =
      limits || skips || options.is_left_out || options.nonfinite != Nonfinite::propagate;
  std::int64_t completed = 0, skipped = 0, above = 0;
  for (int step = 0; step < n_steps; ++step) {
    const std::string what = trial.name + ", step " + std::to_string(step) + ", variant " +
                             std::to_string(variant) + " of " + kernels.rules[row]->name + ", " +
                             std::to_string(threads) + " threads" + where;
    std::vector<onepass::Group> groups = expected.run.optimizer.groups;
    if (step == trial.without_average) {
      for (onepass::Group& group : groups) {
        group.settings.ema_decay = group.settings.swa_start = none;
      }
    }
    run.optimizer.groups = groups;
    const double sum = run.set_gradients(step, trial);
    expected.run.set_gradients(step, trial);
    const bool finite = sum < infinity;
    const double norm = std::sqrt(sum) / options.grad_scale;
    const double coefficient = !limits || options.max_grad_norm == infinity
                                   ? 1
                                   : std::min(1.0, options.max_grad_norm / (norm + 1e-6));

    onepass::Ready ready = run.optimizer.prepare(options);
    check(ready.norm.has_value() == measures, "a norm where it is asked for, " + what);
    const double measured = options.is_left_out ? none : norm;
    if (measures) check(same_number(*ready.norm, measured), "the norm, " + what);
    check(ready.nonfinite == (measures && !finite ? trial.bad : -1), "the culprit, " + what);
    const bool is_above = finite && norm > options.skip_grad_norm;
    above += is_above;
    const bool may_skip = options.nonfinite == Nonfinite::skip ||
                          (skips && options.nonfinite == Nonfinite::propagate);
    const bool is_left_out = options.is_left_out || (!finite && may_skip);
    check(ready.skip_reason == (is_above      ? SkipReason::grad_norm
                                : is_left_out ? SkipReason::nonfinite
                                              : SkipReason::not_skipped),
          "skips, " + what);
    check(ready.clipped == (coefficient < 1 && !ready.skipped()), "clips, " + what);
    check(run.same_arrays(expected.run), "preparing writes nothing, " + what);
    check(run.optimizer.completed == completed && run.optimizer.skipped == skipped,
          "nor does it count, " + what);
    if (!finite && options.nonfinite == Nonfinite::raise) continue;

    ready.run();
    if (options.stats) {
      std::vector<onepass::TensorStats> stats(n_items);
      run.optimizer.write_stats(options.grad_scale, stats.data());
      double found = 0;
      for (const onepass::TensorStats& each : stats) found += each.grad_norm * each.grad_norm;
      check(finite ? std::abs(std::sqrt(found) - norm) <= 1e-12 * norm : found == infinity,
            "the gradients' norms, " + what);
    }
    if (ready.skipped()) {
      ++skipped;
      for (std::size_t i = 0; i < n_items; ++i) {
        if (!Run::takes_part(i, step)) continue;
        if (trial.zeroes) check(run.items[i].gradient_is_zero(), "zeroed, " + what);
        if (trial.zeroes)
          expected.run.items[i].visit([](const auto& arrays) {
            auto* data = arrays.grad.numbers.data();
            std::fill(data, data + arrays.size, 0);
          });
      }
    } else {
      ++completed;
      expected.step(step, coefficient / options.grad_scale, groups, trial.zeroes, options.seed);
    }
    for (std::size_t i = 0; trial.bad >= 0 && i < n_items; ++i) {
      run.items[i].make_nans_equal(), expected.run.items[i].make_nans_equal();
    }
    check(run.same_arrays(expected.run), "the arrays, " + what);
    check(std::ranges::equal(run.optimizer.memory, expected.run.optimizer.memory, same_number),
          "the memory, " + what);
    check(run.optimizer.completed == completed && run.optimizer.skipped == skipped,
          "the counters, " + what);
    for (std::size_t i = 0; i < n_items; ++i) {
      const onepass::Parameter& param = run.optimizer.params[i];
      check(param.steps == expected.steps_[i], "a parameter's steps, " + what);
    }
  }
  check(skipped == trial.skipped, "it skipped, " + trial.name);
  check(above == 0 || above < n_steps, "some steps are above the norm");
}

// Sums of gradients that are exact, in any number of threads; and they are zeroed.
void check_accumulate() {
  for_each_isa([](const onepass::KernelTable& kernels, const std::string& where) {
    for (const int threads : {1, 4}) {
      Block<float> sums(40000, 1, 1), grads(40000, 1, 1);
      Block<double> sums64(300, 1, 1), grads64(300, 1, 1);
      std::uint16_t halves[] = {0x3fc0, 0xc000};  // 1.5 and -2 in bfloat16
      float small[] = {1.0f, 1.0f};
      std::fill_n(sums.data(), sums.size(), 0.0f);
      std::fill_n(sums64.data(), sums64.size(), 0.0);
      onepass::Tensor tensors[3] = {};
      tensors[0].streams.param = {sums.data()};
      tensors[0].streams.grad = {grads.data()};
      tensors[0].streams.zero_grad = true;
      tensors[1].streams.param = {sums64.data()};
      tensors[1].streams.grad = {grads64.data()};
      tensors[2].streams.param = {small};
      tensors[2].streams.grad = {halves, &kernels.codecs[onepass::bf16]};
      const std::size_t sizes[] = {sums.size(), sums64.size(), 2};
      for (std::size_t i = 0; i < 3; ++i) {
        tensors[i].size = sizes[i];
        tensors[i].item_size = i == 1 ? sizeof(double) : sizeof(float);
        tensors[i].squares = i == 1 ? kernels.squares_f64 : kernels.squares_f32;
      }
      std::fill_n(grads.data(), grads.size(), 1.0f);
      std::fill_n(grads64.data(), grads64.size(), 1e300);
      const auto find = [&] { return onepass::find_nonfinite(tensors, threads); };
      check(!find(), "all are finite" + where);
      halves[1] = 0x7fc0;
      check(find() == &tensors[2], "a NaN in 16 bits" + where);
      grads64.data()[299] = infinity;
      check(find() == &tensors[1], "the first that is not finite" + where);
      halves[1] = 0xc000;
      for (const float value : {0.25f, 3.0f}) {
        std::fill_n(grads.data(), grads.size(), value);
        std::fill_n(grads64.data(), grads64.size(), 0x1p-40);
        onepass::accumulate(tensors, kernels, threads);
      }
      const auto all = [](const auto& block, auto value) {
        return std::all_of(block.data(), block.data() + block.size(),
                           [=](auto x) { return x == value; });
      };
      check(all(sums, 3.25f) && all(grads, 0.0f), "sums, and gradients that are zeroed" + where);
      check(all(sums64, 0x1p-39) && all(grads64, 0x1p-40), "sums in double" + where);
      check(small[0] == 4.0f && small[1] == -3.0f && halves[0] == 0x3fc0, "of 16 bits" + where);
    }
  });
}

// A vector of floats and its gradient, or a part of both, by the first rule; and the sums that its
// step has handed out.
struct Part {
  Block<float> param, grad;
  onepass::Optimizer optimizer;
  std::vector<std::vector<double>> told;

  Part(const onepass::KernelTable& kernels, const float* params, const float* grads, std::size_t n)
      : param(n, 0, 1), grad(n, 0, 2) {
    std::copy_n(params, n, param.data());
    std::copy_n(grads, n, grad.data());
    optimizer.groups.emplace_back(*kernels.rules[0]);
    optimizer.params.push_back({.size = n});
    onepass::Tensor& tensor = optimizer.tensors.emplace_back();
    tensor.item_size = sizeof(float);
    tensor.squares = kernels.squares_f32;
    tensor.streams.param = onepass::Stored(param.data());
    tensor.streams.grad = onepass::Stored(grad.data());
  }
};

// The first rule keeps no state with its defaults.
bool is_stateless(const onepass::KernelTable& kernels) {
  const auto& uses = onepass::Group(*kernels.rules[0]).variant().uses_state;
  return std::none_of(std::begin(uses), std::end(uses), [](bool used) { return used; });
}

// Two optimizers with a part each, and what they exchange, are one with the whole: whatever the
// rule is, the norm and what follows from it are the engine's.
void check_exchange() {
  constexpr std::size_t n = 40000, cut = 16384;
  for_each_isa([](const onepass::KernelTable& kernels, const std::string& where) {
    if (!is_stateless(kernels)) return;
    Block<float> params(n, 0, 3), grads(n, 0, 4);
    for (const double bad : {0.0, infinity}) {
      grads.data()[n - 1] = static_cast<float>(bad);
      for (const onepass::StepOptions& given :
           {onepass::StepOptions{.max_grad_norm = 0.5},
            onepass::StepOptions{.skip_grad_norm = 1e-3},
            onepass::StepOptions{.nonfinite = Nonfinite::skip}}) {
        Part whole(kernels, params.data(), grads.data(), n);
        Part parts[] = {{kernels, params.data(), grads.data(), cut},
                        {kernels, params.data() + cut, grads.data() + cut, n - cut}};
        onepass::Ready expected = whole.optimizer.prepare(given);
        expected.run();
        for (const bool knows : {false, true}) {  // at first each hears what the other has told
          for (Part& part : parts) {
            std::size_t calls = 0;
            const onepass::Exchange exchange = [&](std::span<const double> own) {
              if (!knows) part.told.emplace_back(own.begin(), own.end());
              std::vector<double> all = parts[0].told[calls];
              if (!knows) throw 1;
              all.insert(all.end(), parts[1].told[calls].begin(), parts[1].told[calls].end());
              return all;
            };
            onepass::StepOptions options = given;
            options.exchange = &exchange;
            try {
              onepass::Ready ready = part.optimizer.prepare(options);
              check(same_number(*ready.norm, *expected.norm), "the norm of all" + where);
              check(ready.clipped == expected.clipped, "clips" + where);
              check(ready.skip_reason == expected.skip_reason, "skips" + where);
              check(ready.is_finite == expected.is_finite, "finite" + where);
              ready.run();
            } catch (int) {
              check(!knows, "an exchange that throws" + where);
              check(part.optimizer.completed == 0, "no step was taken" + where);
              part.told.push_back(part.told[0]);  // in other units: not finite, or 0, in these too
            }
          }
        }
        const auto same = [&](const Part& part, std::size_t begin) {
          return std::equal(part.param.data(), part.param.data() + part.param.size(),
                            whole.param.data() + begin, same_number);
        };
        check(same(parts[0], 0) && same(parts[1], cut), "the parts" + where);
      }
    }
  });
}

// A sum of many vectors is that of adding one after the other.
void check_fold() {
  for_each_isa([](const onepass::KernelTable& kernels, const std::string& where) {
    for (const int threads : {1, 4}) {
      constexpr std::size_t n = 40001;
      Block<float> sum(n, 0, 1), one_by_one(n, 0, 1);
      std::deque<Block<float>> grads;
      std::vector<onepass::Stored> parts;
      onepass::Tensor tensor{};
      tensor.size = n;
      tensor.item_size = sizeof(float);
      std::fill_n(one_by_one.data(), n, 0.0f);
      for (std::uint32_t i = 0; i < 3; ++i) {
        parts.emplace_back(grads.emplace_back(n, 0, 5 + i).data());
        tensor.streams.param = onepass::Stored(one_by_one.data());
        tensor.streams.grad = parts.back();
        onepass::accumulate({&tensor, 1}, kernels, threads);
      }
      tensor.streams.param = onepass::Stored(sum.data());
      onepass::fold(tensor, parts, kernels, threads);
      check(std::equal(sum.data(), sum.data() + n, one_by_one.data()), "a sum of many" + where);
    }
  });
}

// Several optimizers at once, each in a thread of its own: whoever finds the helpers taken works
// alone, and nobody sees another's arrays.
void check_concurrent_optimizers() {
  const onepass::KernelTable& kernels = *onepass::choose_isa(nullptr).kernels;
  const std::size_t row = kernels.rules.size() - 1;
  const Trial trial = trials()[2];
  const auto take_steps = [&](Run& run, int threads) {
    onepass::StepOptions options = trial.options;
    options.num_threads = threads;
    for (int step = 0; step < n_steps; ++step) {
      run.set_gradients(step, trial);
      run.optimizer.prepare(options).run();
    }
  };
  Run alone(kernels, row, 0, trial);
  take_steps(alone, 1);
  std::vector<std::unique_ptr<Run>> runs;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    runs.push_back(std::make_unique<Run>(kernels, row, 0, trial));
    threads.emplace_back([&take_steps, run = runs.back().get()] { take_steps(*run, 3); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& run : runs) check(run->same_arrays(alone), "concurrent optimizers");
}

// A parameter of some axes with the state of a factored rule.
struct Shaped {
  std::size_t size = 1;
  std::deque<Block<float>> arrays;  // parameter, gradient and state
};

// Some steps of parameters of many shapes by a factored rule: any number of threads and any build
// gives the same bits, and no thread reads or writes beyond an array.
std::deque<Shaped> factored_steps(const onepass::KernelTable& kernels, std::size_t row,
                                  std::size_t variant, bool f_order, int threads) {
  const onepass::RuleRow& rule = *kernels.rules[row];
  const std::vector<std::vector<std::size_t>> axes = {
      {7, 5}, {1, 300},  {300, 1},     {65, 257},  {3, 9000}, {9000, 3},
      {0, 4}, {4, 3, 5}, {2, 2100, 3}, {130, 300}, {1, 1},    {3, 2, 1}};
  std::deque<Shaped> made;
  onepass::Optimizer optimizer;
  onepass::Group& group = optimizer.groups.emplace_back(rule);
  for (std::size_t k = 0; k < rule.options.size(); ++k) {
    group.settings.options[k] = static_cast<double>(variant >> k & 1);
  }
  for (const auto& sizes : axes) {
    Shaped& own = made.emplace_back();
    std::size_t total = 0;
    for (const std::size_t size : sizes) own.size *= size, total += size;
    const auto seed = static_cast<std::uint32_t>(made.size());
    for (const std::uint32_t which : {1u, 2u}) own.arrays.emplace_back(own.size, 0, seed + which);
    optimizer.params.push_back({.size = own.size, .is_factored = true});
    optimizer.axes.push_back({sizes, f_order});
    onepass::Tensor tensor{};
    tensor.size = own.size;
    tensor.item_size = sizeof(float);
    tensor.squares = kernels.squares_f32;
    tensor.streams.param = onepass::Stored(own.arrays[0].data());
    tensor.streams.grad = onepass::Stored(own.arrays[1].data());
    const onepass::Variant& kernel = group.variant(true);
    for (std::size_t k = 0; k < rule.states.size(); ++k) {
      if (!kernel.uses_state[k]) continue;
      const std::size_t rows = sizes[sizes.size() - 2], columns = sizes.back();
      const onepass::Shape shape = rule.shape[k];
      const std::size_t n =
          shape == onepass::Shape::axes      ? total
          : shape == onepass::Shape::rows    ? own.size / std::max<std::size_t>(1, columns)
          : shape == onepass::Shape::columns ? own.size / std::max<std::size_t>(1, rows)
                                             : own.size;
      Block<float>& array = own.arrays.emplace_back(n, 0, 9);
      std::fill_n(array.data(), n, 0.0f);
      tensor.streams.state[k] = onepass::Stored(array.data());
    }
    optimizer.tensors.push_back(tensor);
  }
  for (int step = 0; step < 3; ++step) {
    onepass::StepOptions options;
    options.num_threads = threads;
    options.stats = threads > 1;  // which changes no array
    optimizer.prepare(options).run();
  }
  return made;
}

void check_factored() {
  const onepass::KernelTable& first = *onepass::choose_isa(nullptr).kernels;
  for (std::size_t row = 0; row < first.rules.size(); ++row) {
    const onepass::RuleRow& rule = *first.rules[row];
    if (!rule.factored) continue;
    for (std::size_t variant = 0; variant < count_variants(rule); ++variant) {
      for (const bool f_order : {false, true}) {
        const auto expected = factored_steps(first, row, variant, f_order, 1);
        const auto same = [&](const onepass::KernelTable& kernels, int threads) {
          const auto found = factored_steps(kernels, row, variant, f_order, threads);
          bool all = true;
          for (std::size_t i = 0; i < found.size(); ++i) {
            all = all && found[i].arrays == expected[i].arrays;
          }
          return all;
        };
        for (const int threads : {2, 3, 5}) {
          check(same(first, threads), rule.name + (", threads " + std::to_string(threads)));
        }
        for_each_isa([&](const onepass::KernelTable& kernels, const std::string& where) {
          check(same(kernels, 1), rule.name + where);
        });
      }
    }
  }
}

// What tells the engine to do more or less: all that threads can see of a variant.
std::vector<std::size_t> kind_of(const onepass::RuleRow& rule, const onepass::Variant& variant) {
  std::vector<std::size_t> kind(std::begin(variant.uses_state), std::end(variant.uses_state));
  kind.insert(kind.end(), rule.in_full.begin(), rule.in_full.end());
  kind.insert(kind.end(), {variant.n_sums, rule.sums_over_all, variant.direct_f64 != nullptr,
                           rule.memory.size()});
  return kind;
}

// Every rule, choice of its options and trial; for races, one variant of each kind.
void check_trials(const onepass::KernelTable& kernels, int threads, const std::string& where) {
  std::set<std::vector<std::size_t>> tried;
  for (std::size_t row = 0; row < kernels.rules.size(); ++row) {
    const onepass::RuleRow& rule = *kernels.rules[row];
    check(all_loops()[row].size() == rule.variants.size(), "the options" + where);
    for (std::size_t variant = 0; variant < count_variants(rule); ++variant) {
      const bool is_new = tried.insert(kind_of(rule, rule.variants[variant])).second;
      if (only_races && !is_new) continue;
      for (const Trial& trial : trials()) {
        check_trial(kernels, row, variant, trial, threads, where);
      }
    }
  }
}

}  // namespace

int main() {
  for_each_isa([](const onepass::KernelTable& kernels, const std::string& where) {
    if (!only_races) check_trials(kernels, 1, where);
  });
  check_trials(*onepass::choose_isa(nullptr).kernels, 4, "");
  check_accumulate();
  check_fold();
  check_exchange();
  check_concurrent_optimizers();
  check_factored();
  return report();
}
