// Steps of rows of a tensor, against the same steps of a tensor of these rows alone: every rule,
// number format, width of a row and number of threads, in heap blocks of their exact size.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "checks.hpp"
#include "optimizer.hpp"

namespace {

struct Shape {
  std::size_t rows, width;
};
// Rows in no order; some follow each other, some come twice.
std::vector<std::size_t> some_rows(std::size_t rows) {
  std::vector<std::size_t> index;
  for (std::size_t i = 0; i < rows; ++i) {
    if (i % 5 < 3) index.push_back((i * 7 + 3) % rows);
  }
  index.push_back(index.front());
  index.push_back(index[index.size() / 2]);
  index.push_back(index.front());
  return index;
}

std::vector<std::size_t> without_repetition(std::vector<std::size_t> index) {
  std::sort(index.begin(), index.end());
  index.erase(std::unique(index.begin(), index.end()), index.end());
  return index;
}

// Calls body(array of the first, array of the second, elements of one) for what a step writes.
template <class T, class Body>
void for_each_array(const Arrays<T>& a, const Arrays<T>& b, const Body& body) {
  const auto both = [&](const StoredBlock<T>& first, const StoredBlock<T>& second) {
    if (first.numbers.size()) body(first.numbers.data(), second.numbers.data());
    if (first.halves.size()) body(first.halves.data(), second.halves.data());
  };
  both(a.param, b.param);
  both(a.copy, b.copy);
  for (std::size_t k = 0; k < onepass::max_states; ++k) {
    both(a.state[k], b.state[k]);
    both(a.full[k], b.full[k]);
  }
}

// An optimizer of one tensor.
template <class T>
onepass::Optimizer optimizer_of(const Arrays<T>& arrays, const Choice& choice) {
  onepass::Optimizer optimizer;
  const onepass::RuleRow& rule = *choice.kernels->rules[choice.row];
  onepass::Group& group = optimizer.groups.emplace_back(rule);
  for (std::size_t k = 0; k < rule.options.size(); ++k) {
    group.settings.options[k] = static_cast<double>(choice.variant >> k & 1);
  }
  group.settings.weight_decay = 0.125;
  optimizer.params.push_back({.size = arrays.size,
                              .is_double = sizeof(T) == sizeof(double),
                              .rounds = arrays.formats.rounds(),
                              .steps = 62});
  optimizer.tensors.push_back(arrays.tensor(choice));
  optimizer.tensors[0].streams.zero_grad = false;
  optimizer.tensors[0].streams.average = nullptr;
  optimizer.start_memory();
  return optimizer;
}

template <class T>
void check_rows(const Choice& choice, const Shape& shape, const Formats& formats, int threads,
                const std::string& where) {
  const std::vector<std::size_t> index = some_rows(shape.rows), named = without_repetition(index);
  const Arrays<T> table(shape.rows * shape.width, 1, formats), before(table.size, 1, formats);
  const Arrays<T> part(named.size() * shape.width, 0, formats);
  Block<T> values(index.size() * shape.width, 0, 5);
  for (std::size_t i = 0; i < values.size(); ++i) values.data()[i] = T(int(i % 9) - 4) / 4;
  Block<T> sums(part.size, 0, 5);
  std::fill_n(sums.data(), sums.size(), T(0));
  for (std::size_t i = 0; i < index.size(); ++i) {
    const auto k = static_cast<std::size_t>(std::lower_bound(named.begin(), named.end(), index[i]) -
                                            named.begin());
    for (std::size_t j = 0; j < shape.width; ++j) {
      sums.data()[k * shape.width + j] += values.data()[i * shape.width + j];
    }
  }
  for_each_array(table, part, [&](auto* whole, auto* rows) {
    for (std::size_t k = 0; k < named.size(); ++k) {
      std::copy_n(whole + named[k] * shape.width, shape.width, rows + k * shape.width);
    }
  });
  onepass::Optimizer by_rows = optimizer_of(table, choice), alone = optimizer_of(part, choice);
  onepass::StepOptions options;
  options.max_grad_norm = 2;
  options.num_threads = threads;
  for (int step = 0; step < 3; ++step) {
    by_rows.tensors[0].streams.grad = {values.data()};
    alone.tensors[0].streams.grad = {sums.data()};
    onepass::Rows rows({index.begin(), index.end()}, shape.width);
    onepass::StepOptions of_rows = options;
    of_rows.rows = {&rows, 1};
    onepass::Ready ready = by_rows.prepare(of_rows), other = alone.prepare(options);
    check(ready.norm == other.norm && ready.clipped == other.clipped, "the norm" + where);
    check(ready.elements() == part.size, "the elements" + where);
    ready.run(), other.run();
    check(by_rows.params[0].steps == 63 + step && by_rows.completed == 1 + step, "steps" + where);
  }
  bool moved = true, stayed = true;
  for_each_array(table, part, [&](auto* whole, auto* rows) {
    for (std::size_t k = 0; k < named.size(); ++k) {
      moved = moved && std::memcmp(whole + named[k] * shape.width, rows + k * shape.width,
                                   shape.width * sizeof *whole) == 0;
    }
  });
  for_each_array(table, before, [&](auto* whole, auto* old) {
    for (std::size_t row = 0; row < shape.rows; ++row) {
      if (std::binary_search(named.begin(), named.end(), row)) continue;
      const std::size_t first = row * shape.width;
      stayed = stayed && std::memcmp(whole + first, old + first, shape.width * sizeof *whole) == 0;
    }
  });
  check(moved, "rows that are named" + where);
  check(stayed, "rows that are not named" + where);
}

void check_choice(const Choice& choice, const std::string& where) {
  for (const Shape& shape : {Shape{37, 1}, {37, 5}, {12, 64}, {9, 300}}) {
    const std::string what = where + ", width " + std::to_string(shape.width);
    check_rows<float>(choice, shape, {}, 1, what + ", float");
    check_rows<double>(choice, shape, {}, 1, what + ", double");
    const Formats nearest{.param = onepass::bf16};
    const Formats master{.copy = onepass::f16, .follows = true};
    check_rows<float>(choice, shape, nearest, 1, what + ", rounded");
    check_rows<float>(choice, shape, master, 1, what + ", master");
  }
}

// Enough elements for several threads: short rows put together, long ones cut.
void check_threads(const Choice& choice, const std::string& where) {
  for (const Shape& shape : {Shape{80000, 1}, {3000, 48}, {5, 40001}}) {
    for (const int threads : {1, 4}) {
      const std::string what = where + ", " + std::to_string(threads) + " threads";
      check_rows<float>(choice, shape, {}, threads, what + ", float");
      check_rows<double>(choice, shape, {}, threads, what + ", double");
    }
  }
}

// A tensor as a whole beside one of which no row moves.
void check_beside(const onepass::KernelTable& kernels) {
  const Choice choice{&kernels, 0, 0};
  const Arrays<float> first(40000, 1), second(40000, 1), table(70, 1), before(70, 1);
  onepass::Optimizer optimizer = optimizer_of(table, choice), alone = optimizer_of(second, choice);
  onepass::Optimizer of_first = optimizer_of(first, choice);
  optimizer.params.push_back(of_first.params[0]);
  optimizer.tensors.push_back(of_first.tensors[0]);
  onepass::Rows rows[] = {onepass::Rows({}, 7), onepass::Rows()};
  onepass::StepOptions options;
  options.num_threads = 4;
  alone.prepare(options).run();
  options.rows = rows;
  optimizer.prepare(options).run();
  check(first == second, "a tensor as a whole");
  check(table == before, "no rows");
  check(optimizer.params[0].steps == 63, "no rows are a step");
}

}  // namespace

int main() {
  for_each_isa([](const onepass::KernelTable& kernels, const std::string& where) {
    for (std::size_t row = 0; row < kernels.rules.size(); ++row) {
      const onepass::RuleRow& rule = *kernels.rules[row];
      for (std::size_t variant = 0; variant < rule.variants.size(); ++variant) {
        if (rule.variants[variant].n_sums || rule.keeps_weights) continue;
        if (!only_races) check_choice({&kernels, row, variant}, ", " + (rule.name + where));
      }
    }
    check_beside(kernels);
  });
  const onepass::KernelTable& kernels = *onepass::choose_isa(nullptr).kernels;
  for (std::size_t row = 0; row < 2; ++row) check_threads({&kernels, row, 0}, "");
  return report();
}
