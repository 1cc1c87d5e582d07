// The C interface: a step of one array, and of rows of one, without an allocation.
#include "capi.hpp"
#include "parallel.hpp"

namespace onepass::capi {
namespace {

// What a call says besides its arrays.
struct Asked {
  std::int32_t rule, options, format, threads;
  std::size_t size;
};

struct Given {
  void* param;
  const void* grad;
  void* states[max_states];
  const double* scalars;
  double* memory;
};

// A tensor that is ready to be stepped, and the numbers of its step: a copy, because measuring
// changes them.
struct One {
  const RuleRow* rule;
  const Variant* variant;
  Tensor tensor;
  double scalars[max_scalars];
};

std::int32_t check_array(const void* array, bool is_used, std::size_t size,
                         std::size_t item_size) noexcept {
  if (!is_used || size == 0) return ONEPASS_OK;
  if (!array) return ONEPASS_NO_ARRAY;
  return is_aligned(array, item_size) ? ONEPASS_OK : ONEPASS_MISALIGNED;
}

std::int32_t make(const Asked& asked, const Given& given, One& one) noexcept {
  one.rule = find_rule(asked.rule);
  if (!one.rule) return kernels() ? ONEPASS_NO_RULE : ONEPASS_NO_ISA;
  const RuleRow& rule = *one.rule;
  if (!are_options(rule, asked.options)) return ONEPASS_NO_OPTION;
  const Variant& variant = *(one.variant = &find_variant(rule, asked.options, 0));
  if (variant.direct_f64) return ONEPASS_NO_DIRECTION;
  const bool is_double = asked.format == ONEPASS_F64;
  if (!is_double && asked.format != ONEPASS_F32 && asked.format != 0) return ONEPASS_BAD_FORMAT;
  if (!is_threads(asked.threads)) return ONEPASS_BAD_NUMBER;
  if (!is_size(asked.size)) return ONEPASS_BAD_SIZE;
  if (!given.scalars || (!given.memory && !rule.memory.empty())) return ONEPASS_NO_ARRAY;
  Tensor& tensor = one.tensor = {};
  tensor.size = asked.size;
  tensor.item_size = is_double ? sizeof(double) : sizeof(float);
  tensor.streams.param = {given.param};
  tensor.streams.grad = {const_cast<void*>(given.grad)};
  const auto check = [&](const void* array, bool is_used = true) {
    return check_array(array, is_used, asked.size, tensor.item_size);
  };
  if (const std::int32_t code = check(given.param)) return code;
  if (const std::int32_t code = check(given.grad)) return code;
  for (std::size_t k = 0; k < max_states; ++k) {
    const bool is_used = k < rule.states.size() && variant.uses_state[k];
    if (const std::int32_t code = check(given.states[k], is_used)) return code;
    if (is_used) tensor.streams.state[k] = {given.states[k]};
  }
  std::copy_n(given.scalars, shared_scalars + rule.scalars.size() + rule.memory.size(),
              one.scalars);
  const double step = one.scalars[step_number];
  if (!(step >= 1 && step <= static_cast<double>(most_steps))) return ONEPASS_BAD_NUMBER;
  one.scalars[average_weight] = one.scalars[begins_slow] = one.scalars[slow_weight] = 0;
  const bool decays = one.scalars[weight_decay] != 0 || one.scalars[shrink] != 1;
  tensor.kernel = find_kernel(variant, is_double, plain_state, decays);
  tensor.scalars = one.scalars;
  return ONEPASS_OK;
}

// Measures some blocks at a time, whose sums need no allocation.
void measure_and_weigh(One& one, int threads) noexcept {
  constexpr std::size_t at_a_time = 256;
  const bool is_double = one.tensor.item_size == sizeof(double);
  const Measuring how{.measure = find_measure(*one.variant, is_double, plain_state)};
  const std::size_t blocks = count_blocks(one.tensor);
  double totals[max_sums] = {}, sums[at_a_time * max_sums] = {};
  for (std::size_t first = 0; first < blocks; first += at_a_time) {
    const std::size_t n = std::min(at_a_time, blocks - first);
    measure_blocks(one.tensor, how, first, {sums, n * max_sums}, threads);
    for (std::size_t i = 0; i < n * max_sums; ++i) totals[i % max_sums] += sums[i];
  }
  one.variant->weigh(one.scalars + shared_scalars, totals, static_cast<double>(one.tensor.size));
}

void move_memory(const One& one, double* memory) noexcept {
  const double* const after = one.scalars + shared_scalars + one.rule->scalars.size();
  std::copy_n(after, one.rule->memory.size(), memory);
}

}  // namespace
}  // namespace onepass::capi

using namespace onepass;
using namespace onepass::capi;

int32_t onepass_update(int32_t rule, int32_t options, int32_t format, size_t n, void* param,
                       const void* grad, void* state0, void* state1, void* state2, void* state3,
                       const double* scalars, double* memory, int32_t threads) {
  One one;
  const Asked asked{rule, options, format, threads, n};
  const Given given{param, grad, {state0, state1, state2, state3}, scalars, memory};
  if (const int32_t code = make(asked, given, one)) return code;
  const int wanted = resolve_threads(threads);
  if (one.variant->n_sums) measure_and_weigh(one, wanted);
  step({&one.tensor, 1}, wanted);
  move_memory(one, memory);
  return ONEPASS_OK;
}

int32_t onepass_update_rows(int32_t rule, int32_t options, int32_t format, size_t n_rows,
                            size_t width, const int64_t* index, size_t n_index, void* param,
                            const void* grad, void* state0, void* state1, void* state2,
                            void* state3, const double* scalars, double* memory, int32_t threads) {
  One one;
  if (width && (n_rows > SIZE_MAX / width || n_index > SIZE_MAX / width)) return ONEPASS_BAD_SIZE;
  if (!is_size(n_rows * width)) return ONEPASS_BAD_SIZE;
  const Asked asked{rule, options, format, threads, n_index * width};
  const Given given{param, grad, {state0, state1, state2, state3}, scalars, memory};
  if (const int32_t code = make(asked, given, one)) return code;
  if (!(traits(*one.rule, *one.variant) & ONEPASS_TRAIT_ROWS)) return ONEPASS_NO_ROWS;
  if (const int32_t code = check_array(index, true, n_index, sizeof(int64_t))) return code;
  const auto is_row = [=](int64_t row) { return row >= 0 && static_cast<size_t>(row) < n_rows; };
  if (!std::all_of(index, index + n_index, is_row)) return ONEPASS_BAD_ROW;
  if (one.tensor.size) step_rows(one.tensor, {{index, n_index}, width}, resolve_threads(threads));
  move_memory(one, memory);
  return ONEPASS_OK;
}
