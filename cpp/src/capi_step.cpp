// The C interface: a step over many tensors with all stages, checked before the first write.
#include <cmath>
#include <vector>

#include "capi.hpp"
#include "overlap.hpp"

namespace onepass::capi {
namespace {

// Where something is wrong.
struct Place {
  std::int64_t tensor = -1;
  std::int32_t array = ONEPASS_ARRAY_NONE;
};

struct Range {
  std::uintptr_t begin, end;
  bool is_written;
  Place place;
  bool written() const { return is_written; }
};

// One of the caller's structs, each `stride` bytes behind the other.
template <class Struct>
bool read_one(const Struct* from, std::size_t i, std::size_t stride, Struct& to) noexcept {
  return read_struct(reinterpret_cast<const char*>(from) + i * stride, stride, to);
}

// The sizes of the structs in the first version of this interface.
constexpr std::size_t first_call = offsetof(onepass_call, unchecked) + sizeof(std::int32_t),
                      first_group = sizeof(onepass_group),
                      first_tensor = offsetof(onepass_tensor, reserved) + sizeof(std::int32_t),
                      first_result = offsetof(onepass_result, skipped) + sizeof(std::int32_t);

static_assert(static_cast<int>(SkipReason::nonfinite) == ONEPASS_SKIPPED_NONFINITE &&
              static_cast<int>(SkipReason::grad_norm) == ONEPASS_SKIPPED_NORM);

// Python's range.
bool is_grad_scale(double scale) noexcept {
  return scale == 0 || (scale >= 0x1p-126 && scale < 0x1p128);
}

// Whether the steps whose weights enter an average can be counted, if the group has one.
bool counts_average(const Group& group) noexcept {
  const auto is_count = [](double n) {
    return n >= 1 && n < static_cast<double>(most_steps) && n == std::floor(n);
  };
  const Settings& own = group.settings;
  return !group.averages() ||
         (is_count(own.average_every) && (is_none(own.swa_start) || is_count(own.swa_start)));
}

class Step {
 public:
  std::int32_t read(const onepass_group* groups, std::size_t n_groups,
                    const onepass_tensor* tensors, std::size_t n_tensors, const onepass_call* call);
  // Takes the step that was read. `norms`: instead, writes what directions are made of.
  std::int32_t run(double* norms);
  void say(onepass_result& result) const noexcept;

 private:
  std::int32_t read_call(const onepass_call* call);
  std::int32_t read_groups(const onepass_group* groups, std::size_t n);
  std::int32_t add(const onepass_tensor& given, bool is_first);
  std::int32_t add_param(const onepass_tensor& given, Tensor& tensor, Parameter& known);
  std::int32_t add_shape(const onepass_tensor& given, Parameter& known);
  std::int32_t add_grad(const onepass_tensor& given, Tensor& tensor, Parameter& known);
  std::int32_t add_rows(const onepass_tensor& given, const Tensor& tensor, const Parameter& known);
  std::int32_t add_states(const onepass_tensor& given, Tensor& tensor, Parameter& known);
  std::int32_t add_beside(const onepass_tensor& given, Tensor& tensor, Parameter& known);
  std::int32_t add_memory(const onepass_tensor& given);
  std::int32_t find_overlapping();
  // Notes an array of the tensor that is being read; checks that it is there and aligned.
  std::int32_t note(std::int32_t array, const void* data, std::int32_t format, std::size_t n,
                    bool is_written = true);
  std::int32_t fail(std::int32_t code, std::int32_t array) noexcept {
    place_.array = array;
    return code;
  }
  const Group& group_of(const Parameter& known) const { return optimizer_.groups[known.group]; }
  Stored stored(void* data, Format format) const noexcept {
    return {data, format == plain ? nullptr : &kernels_->codecs[format]};
  }

  const KernelTable* kernels_ = nullptr;
  const RuleRow* rule_ = nullptr;
  onepass_call call_{};
  Optimizer optimizer_;
  StepOptions options_;
  std::vector<Rows> rows_;
  bool moves_rows_ = false;
  std::vector<double*> memories_;  // the caller's, of each tensor or of all
  std::vector<void*> directions_;  // of each tensor
  std::vector<Range> ranges_;
  Place place_, other_;
  double norm_ = none, d_ = none;
  bool clipped_ = false;
  SkipReason skip_reason_ = SkipReason::not_skipped;
};

std::int32_t Step::note(std::int32_t array, const void* data, std::int32_t format, std::size_t n,
                        bool is_written) {
  const std::size_t bytes = onepass_bytes(format, n);
  if (bytes == 0) return ONEPASS_OK;
  if (!data) return fail(ONEPASS_NO_ARRAY, array);
  const std::size_t item_size = format == ONEPASS_Q8 ? 1 : onepass_bytes(format, 1);
  if (!is_aligned(data, item_size)) return fail(ONEPASS_MISALIGNED, array);
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  if (!call_.unchecked)
    ranges_.push_back({begin, begin + bytes, is_written, {place_.tensor, array}});
  return ONEPASS_OK;
}

std::int32_t Step::read_call(const onepass_call* call) {
  if (!call) return ONEPASS_NO_ARRAY;
  if (call->struct_size < first_call) return ONEPASS_BAD_SIZE;
  if (!read_struct(call, call->struct_size, call_)) return ONEPASS_BAD_SIZE;
  if (call_.group_size < first_group || call_.group_size % alignof(onepass_group) != 0 ||
      call_.tensor_size < first_tensor || call_.tensor_size % alignof(onepass_tensor) != 0) {
    return ONEPASS_BAD_SIZE;
  }
  const bool are_numbers = is_threads(call_.threads) && call_.nonfinite >= ONEPASS_PROPAGATE &&
                           call_.nonfinite <= ONEPASS_FAIL && call_.max_norm >= 0 &&
                           call_.skip_norm >= 0 && !std::isinf(call_.skip_norm) &&
                           is_grad_scale(call_.grad_scale);
  if (!are_numbers) return ONEPASS_BAD_NUMBER;
  options_.grad_scale = call_.grad_scale == 0 ? 1 : call_.grad_scale;
  options_.max_grad_norm = call_.max_norm == 0 ? none : call_.max_norm;
  options_.skip_grad_norm = call_.skip_norm == 0 ? none : call_.skip_norm;
  options_.nonfinite = static_cast<Nonfinite>(call_.nonfinite);
  options_.seed = static_cast<std::uint64_t>(call_.seed);
  options_.num_threads = resolve_threads(call_.threads);
  return ONEPASS_OK;
}

std::int32_t Step::read_groups(const onepass_group* groups, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    onepass_group given;
    if (!read_one(groups, i, call_.group_size, given)) return ONEPASS_BAD_SIZE;
    const RuleRow* const rule = find_rule(given.rule);
    if (!rule) return ONEPASS_NO_RULE;
    if (rule_ && rule != rule_) return ONEPASS_DISAGREE;
    rule_ = rule;
    if (!are_options(*rule, given.options)) return ONEPASS_NO_OPTION;
    optimizer_.groups.push_back(make_group(given.rule, given.options, given.settings));
    if (!counts_average(optimizer_.groups.back())) return ONEPASS_BAD_NUMBER;
  }
  const bool agree = !rule_ || !rule_->sums_over_all || !find_disagreement(optimizer_.groups);
  return agree ? ONEPASS_OK : ONEPASS_DISAGREE;
}

std::int32_t Step::read(const onepass_group* groups, std::size_t n_groups,
                        const onepass_tensor* tensors, std::size_t n_tensors,
                        const onepass_call* call) {
  kernels_ = kernels();
  if (!kernels_) return ONEPASS_NO_ISA;
  if (const std::int32_t code = read_call(call)) return code;
  if ((!groups && n_groups) || (!tensors && n_tensors)) return ONEPASS_NO_ARRAY;
  if (const std::int32_t code = read_groups(groups, n_groups)) return code;
  optimizer_.params.reserve(n_tensors);
  optimizer_.tensors.reserve(n_tensors);
  rows_.resize(n_tensors);
  for (std::size_t i = 0; i < n_tensors; ++i) {
    place_ = {static_cast<std::int64_t>(i), ONEPASS_ARRAY_NONE};
    onepass_tensor given;
    if (!read_one(tensors, i, call_.tensor_size, given)) return ONEPASS_BAD_SIZE;
    if (given.group < 0 || static_cast<std::size_t>(given.group) >= n_groups) {
      return ONEPASS_BAD_NUMBER;
    }
    if (const std::int32_t code = add(given, i == 0)) return code;
  }
  if (moves_rows_) options_.rows = rows_;
  if (const std::int32_t code = find_overlapping()) return code;
  place_ = {};
  return ONEPASS_OK;
}

std::int32_t Step::add(const onepass_tensor& given, bool is_first) {
  if (!is_size(given.size) || !is_size(given.n_rows)) return ONEPASS_BAD_SIZE;
  const bool are_counts = given.average_from >= 0 && given.average_from <= given.steps &&
                          given.steps < most_steps && given.reserved == 0;
  if (!are_counts) return ONEPASS_BAD_NUMBER;
  Parameter& known = optimizer_.params.emplace_back();
  Tensor& tensor = optimizer_.tensors.emplace_back();
  known.size = given.size;
  known.group = static_cast<std::uint32_t>(given.group);
  known.steps = given.steps;
  known.average_from = given.average_from;
  const Group& own = group_of(known);
  if (own.averages()) {
    known.entered = count_entering(own.settings, given.average_from, given.steps);
  }
  if (const std::int32_t code = add_param(given, tensor, known)) return code;
  if (const std::int32_t code = add_shape(given, known)) return code;
  if (const std::int32_t code = add_grad(given, tensor, known)) return code;
  if (const std::int32_t code = add_states(given, tensor, known)) return code;
  if (const std::int32_t code = add_beside(given, tensor, known)) return code;
  return rule_->sums_over_all && !is_first ? ONEPASS_OK : add_memory(given);
}

std::int32_t Step::add_param(const onepass_tensor& given, Tensor& tensor, Parameter& known) {
  Format format = plain;
  switch (given.format) {
    case 0:
    case ONEPASS_F32:
      break;
    case ONEPASS_F64:
      known.is_double = true;
      break;
    case ONEPASS_BF16:
      format = given.nearest ? bf16 : bf16_random;
      break;
    case ONEPASS_F16:
      format = given.nearest ? f16 : f16_random;
      break;
    default:
      return fail(ONEPASS_BAD_FORMAT, ONEPASS_ARRAY_PARAM);
  }
  if (format != plain && rule_->full_weights) return fail(ONEPASS_BAD_FORMAT, ONEPASS_ARRAY_PARAM);
  known.rounds = format != plain;
  tensor.item_size = known.is_double ? sizeof(double) : sizeof(float);
  tensor.squares = known.is_double ? kernels_->squares_f64 : kernels_->squares_f32;
  tensor.streams.param = stored(given.param, format);
  tensor.streams.tensor = static_cast<std::uint32_t>(place_.tensor);
  return note(ONEPASS_ARRAY_PARAM, given.param, given.format, given.size);
}

std::int32_t Step::add_shape(const onepass_tensor& given, Parameter& known) {
  const bool is_directed = group_of(known).variant().direct_f64;
  if (!rule_->factored && !is_directed) return ONEPASS_OK;
  if (given.ndim < 0) return fail(ONEPASS_BAD_SIZE, ONEPASS_ARRAY_SHAPE);
  if (!given.shape && given.ndim > 0) return fail(ONEPASS_NO_ARRAY, ONEPASS_ARRAY_SHAPE);
  if (given.ndim > static_cast<std::int32_t>(max_rank) ||
      product(given.shape, given.ndim) != given.size || (is_directed && given.ndim < 2)) {
    return fail(ONEPASS_BAD_SIZE, ONEPASS_ARRAY_SHAPE);
  }
  AxesOf axes;
  axes.sizes.assign(given.shape, given.shape + given.ndim);
  axes.f_order = given.f_order != 0;
  known.is_factored = rule_->factored && given.ndim > 1;
  if (rule_->factored) optimizer_.axes.push_back(std::move(axes));
  return ONEPASS_OK;
}

std::int32_t Step::add_grad(const onepass_tensor& given, Tensor& tensor, Parameter& known) {
  if (!given.grad) return ONEPASS_OK;
  std::int32_t as = given.grad_format;
  if (as == 0) as = known.is_double ? ONEPASS_F64 : ONEPASS_F32;
  Format format = plain;
  switch (as) {
    case ONEPASS_F32:
      format = known.is_double ? f32_beside_f64 : plain;
      break;
    case ONEPASS_F64:
      format = known.is_double ? plain : f64_beside_f32;
      break;
    case ONEPASS_BF16:
      format = bf16;
      break;
    case ONEPASS_F16:
      format = f16;
      break;
    default:
      return fail(ONEPASS_BAD_FORMAT, ONEPASS_ARRAY_GRAD);
  }
  tensor.streams.grad = stored(given.grad, format);
  tensor.streams.zero_grad = call_.zero_grad != 0;
  std::size_t n = given.size;
  if (given.rows || given.n_rows || given.width) {
    if (const std::int32_t code = add_rows(given, tensor, known)) return code;
    n = given.n_rows * given.width;
  }
  return note(ONEPASS_ARRAY_GRAD, given.grad, as, n, call_.zero_grad != 0);
}

std::int32_t Step::add_rows(const onepass_tensor& given, const Tensor& tensor,
                            const Parameter& known) {
  const Group& group = group_of(known);
  const bool is_rounded_at_random = tensor.streams.param.codec && !given.nearest;
  const bool is_small = given.state_format == ONEPASS_BF16 || given.state_format == ONEPASS_Q8;
  if (!(traits(*rule_, group.variant()) & ONEPASS_TRAIT_ROWS) || group.averages() ||
      group.looks_ahead() || is_small || is_rounded_at_random || call_.zero_grad || given.f_order) {
    return fail(ONEPASS_NO_ROWS, ONEPASS_ARRAY_ROWS);
  }
  const std::size_t width = given.width;
  if (width == 0 ? given.size != 0 : given.size % width != 0) {
    return fail(ONEPASS_BAD_SIZE, ONEPASS_ARRAY_ROWS);
  }
  if (width && (given.n_rows > SIZE_MAX / width || !is_size(given.n_rows * width))) {
    return fail(ONEPASS_BAD_SIZE, ONEPASS_ARRAY_ROWS);
  }
  // The index has items of 8 bytes, as doubles have.
  if (const auto code = note(ONEPASS_ARRAY_ROWS, given.rows, ONEPASS_F64, given.n_rows, false)) {
    return code;
  }
  std::vector<std::int64_t> index(given.rows, given.rows + given.n_rows);
  const auto is_row = [&](std::int64_t row) {  // how many there are of no elements, nobody knows
    return row >= 0 && (width == 0 || static_cast<std::size_t>(row) < given.size / width);
  };
  if (!std::ranges::all_of(index, is_row)) return fail(ONEPASS_BAD_ROW, ONEPASS_ARRAY_ROWS);
  rows_[optimizer_.tensors.size() - 1] = Rows(std::move(index), width);
  moves_rows_ = true;
  return ONEPASS_OK;
}

std::int32_t Step::add_states(const onepass_tensor& given, Tensor& tensor, Parameter& known) {
  const bool is_small = given.state_format == ONEPASS_BF16 || given.state_format == ONEPASS_Q8;
  const std::int32_t full = known.is_double ? ONEPASS_F64 : ONEPASS_F32;
  const bool is_full = given.state_format == 0 || given.state_format == full;
  if (!is_full && !(is_small && !known.is_double)) {
    return fail(ONEPASS_BAD_FORMAT, ONEPASS_ARRAY_STATE);
  }
  const Group& group = group_of(known);
  for (std::size_t k = 0; k < max_states; ++k) {
    const auto array = ONEPASS_ARRAY_STATE + static_cast<std::int32_t>(k);
    if (k >= rule_->states.size() || !group.variant(known.is_factored).uses_state[k]) {
      if (given.state[k]) return fail(ONEPASS_NO_ARRAY, array);
      continue;
    }
    const bool has_own_shape = known.is_factored && rule_->shape[k] != Shape::param;
    const bool in_full = rule_->in_full[k] || has_own_shape || !is_small;
    std::size_t n = given.size;
    if (has_own_shape) n = elements_of(rule_->shape[k], given.shape, given.ndim);
    const std::int32_t format = in_full ? full : given.state_format;
    if (const std::int32_t code = note(array, given.state[k], format, n)) return code;
    tensor.streams.state[k] = {given.state[k]};
    if (in_full) continue;
    known.state_format = format == ONEPASS_BF16 ? bf16_state : q8_state;
    known.rounds = true;
    if (format != ONEPASS_Q8 || !given.state[k]) continue;
    auto* const codes = static_cast<std::uint8_t*>(given.state[k]);
    const std::size_t blocks = (given.size + block_size - 1) / block_size;
    tensor.streams.state[k] = {given.state[k], codes + blocks * block_size};
  }
  return ONEPASS_OK;
}

// The average, Lookahead's weights, a copy in 16 bits, and a direction.
std::int32_t Step::add_beside(const onepass_tensor& given, Tensor& tensor, Parameter& known) {
  const Group& group = group_of(known);
  const std::int32_t full = known.is_double ? ONEPASS_F64 : ONEPASS_F32;
  const auto add = [&](std::int32_t array, void* data, bool is_asked_for, std::int32_t format) {
    if (!is_asked_for) return data ? fail(ONEPASS_NO_ARRAY, array) : ONEPASS_OK;
    return note(array, data, format, given.size);
  };
  const std::int32_t format = group.averages_in_double() ? ONEPASS_F64 : full;
  if (const auto code = add(ONEPASS_ARRAY_AVERAGE, given.average, group.averages(), format)) {
    return code;
  }
  if (const auto code = add(ONEPASS_ARRAY_SLOW, given.slow, group.looks_ahead(), full)) return code;
  tensor.streams.average = given.average;
  tensor.streams.average_is_double = group.averages_in_double();
  tensor.streams.slow = given.slow;
  if (given.copy || given.is_master) {
    const bool is_small = given.copy_format == ONEPASS_BF16 || given.copy_format == ONEPASS_F16;
    const bool is_float = given.format == 0 || given.format == ONEPASS_F32;
    if (!is_small || !is_float) return fail(ONEPASS_BAD_FORMAT, ONEPASS_ARRAY_COPY);
    if (const auto code = add(ONEPASS_ARRAY_COPY, given.copy, true, given.copy_format)) return code;
    tensor.streams.copy = stored(given.copy, given.copy_format == ONEPASS_BF16 ? bf16 : f16);
    tensor.streams.follows = given.is_master != 0;
  }
  directions_.push_back(given.direction);
  const bool is_directed = group.variant().direct_f64 && tensor.streams.grad.data;
  if (!is_directed) return ONEPASS_OK;
  if (!given.direction && given.size) return fail(ONEPASS_NO_DIRECTION, ONEPASS_ARRAY_DIRECTION);
  return note(ONEPASS_ARRAY_DIRECTION, given.direction, full, given.size);
}

std::int32_t Step::add_memory(const onepass_tensor& given) {
  if (rule_->memory.empty()) return ONEPASS_OK;
  // What a tensor that is left alone remembers stays where it is.
  const bool is_needed = given.grad || rule_->sums_over_all;
  double* const memory = is_needed ? given.memory : nullptr;
  if (is_needed) {
    const auto code = note(ONEPASS_ARRAY_MEMORY, memory, ONEPASS_F64, rule_->memory.size());
    if (code) return code;
  }
  memories_.push_back(memory);
  const double* const from = memory ? memory : rule_->memory_start.data();
  optimizer_.memory.insert(optimizer_.memory.end(), from, from + rule_->memory.size());
  return ONEPASS_OK;
}

std::int32_t Step::find_overlapping() {
  const auto [first, second] = find_overlap(std::span(ranges_));
  if (!first) return ONEPASS_OK;
  place_ = second->place;
  other_ = first->place;
  return ONEPASS_OVERLAP;
}

std::int32_t Step::run(double* norms) {
  if (optimizer_.groups.empty()) return ONEPASS_OK;
  const OnTeam on_team(call_.parallel);
  Ready ready = optimizer_.prepare(options_);
  if (ready.norm) norm_ = *ready.norm;
  clipped_ = ready.clipped;
  skip_reason_ = ready.skip_reason;
  if (ready.d) d_ = *ready.d;
  if (ready.nonfinite >= 0 && options_.nonfinite == Nonfinite::raise) {
    place_ = {ready.nonfinite, ONEPASS_ARRAY_GRAD};
    return ONEPASS_NONFINITE;
  }
  for (std::size_t i = 0; i < directions_.size(); ++i) {
    if (norms) norms[i] = 0;
    if (ready.skipped() || !optimizer_.is_directed(i)) continue;
    optimizer_.tensors[i].streams.state[direction_place] = {directions_[i]};
  }
  if (norms) {
    if (ready.skipped()) return ONEPASS_OK;
    const std::vector<double> found = optimizer_.direct(options_.num_threads);
    auto next = found.begin();
    for (std::size_t i = 0; i < directions_.size(); ++i) {
      if (optimizer_.is_directed(i)) norms[i] = *next++;
    }
    return ONEPASS_OK;
  }
  ready.run();
  for (std::size_t i = 0; i < memories_.size(); ++i) {
    if (memories_[i]) std::ranges::copy(optimizer_.memory_of(i), memories_[i]);
  }
  return ONEPASS_OK;
}

void Step::say(onepass_result& result) const noexcept {
  onepass_result said{};
  said.struct_size = result.struct_size;
  said.norm = norm_;
  said.d = d_;
  said.tensor = place_.tensor;
  said.array = place_.array;
  said.other_tensor = other_.tensor;
  said.other_array = other_.array;
  said.clipped = clipped_;
  said.skipped = static_cast<std::int32_t>(skip_reason_);
  std::memcpy(&result, &said, std::min(result.struct_size, sizeof said));
}

std::int32_t refuse(std::int32_t code, onepass_result* result) noexcept {
  if (result && result->struct_size >= first_result) Step().say(*result);
  return code;
}

std::int32_t take_step(const onepass_group* groups, std::size_t n_groups,
                       const onepass_tensor* tensors, std::size_t n_tensors,
                       const onepass_call* call, double* norms, onepass_result* result) noexcept {
  if (result && result->struct_size < first_result) return ONEPASS_BAD_SIZE;
  if (result) Step().say(*result);
  return guarded([&] {
    Step step;
    std::int32_t code = step.read(groups, n_groups, tensors, n_tensors, call);
    if (code == ONEPASS_OK) code = step.run(norms);
    if (result) step.say(*result);
    return code;
  });
}

}  // namespace
}  // namespace onepass::capi

int32_t onepass_step(const onepass_group* groups, size_t n_groups, const onepass_tensor* tensors,
                     size_t n_tensors, const onepass_call* call, onepass_result* result) {
  return onepass::capi::take_step(groups, n_groups, tensors, n_tensors, call, nullptr, result);
}

int32_t onepass_direct(const onepass_group* groups, size_t n_groups, const onepass_tensor* tensors,
                       size_t n_tensors, const onepass_call* call, double* norms,
                       onepass_result* result) {
  if (!norms) return onepass::capi::refuse(ONEPASS_NO_ARRAY, result);
  return onepass::capi::take_step(groups, n_groups, tensors, n_tensors, call, norms, result);
}
