#include "optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "onepass/random.hpp"
#include "parallel.hpp"
#include "pieces.hpp"

namespace onepass {
namespace {

// PyTorch's coefficient, computed in double.
double clip_coefficient(double norm, double max_norm) noexcept {
  if (std::isinf(max_norm)) return 1;
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1 ? 1 : coefficient;  // a NaN stays one
}

// The first step whose weights enter an average.
double first_to_enter(const Settings& settings) noexcept {
  return is_none(settings.swa_start) ? settings.average_every : settings.swa_start;
}
[[gnu::cold]] bool enters_average(const Settings& settings, std::int64_t step) noexcept {
  const double since = static_cast<double>(step) - first_to_enter(settings);
  return since >= 0 && std::fmod(since, settings.average_every) == 0;
}

// The weight that the parameters of step `step` have in their new average, which they have entered
// so often before. As long as they never have, it is the weights themselves.
[[gnu::cold]] double average_weight_of(const Settings& settings, std::int64_t step,
                                       std::int64_t entered) noexcept {
  if (!enters_average(settings, step)) return entered == 0 ? 1 : 0;
  const auto n = static_cast<double>(entered + 1);
  if (!is_none(settings.swa_start) || n == 1) return 1 / n;
  const double decay = settings.ema_decay;
  const bool warms_up = settings.ema_warmup != 0 && decay < 1;  // a decay of 1: not in this step
  return 1 - (warms_up ? std::min(decay, (1 + n) / (10 + n)) : decay);
}

// The scalars of the kernel that adds gradients up.
constexpr auto scalars_of_sums = [] {
  std::array<double, max_scalars> plain{};
  plain[grad_scale] = plain[shrink] = plain[late_shrink] = plain[step_number] = 1;
  plain[max_grad_value] = std::numeric_limits<double>::infinity();
  return plain;
}();

Kernel adding(const Tensor& tensor, const KernelTable& kernels) noexcept {
  return tensor.item_size == sizeof(double) ? kernels.add_f64 : kernels.add_f32;
}

[[gnu::cold]] void look_ahead(const Settings& settings, double step, double* scalars) noexcept {
  const double every = settings.lookahead_every;
  scalars[begins_slow] = std::fmod(step - 1, every) == 0;
  if (std::fmod(step, every) == 0) scalars[slow_weight] = settings.lookahead_weight;
}

}  // namespace

std::int64_t count_entering(const Settings& settings, std::int64_t from, std::int64_t to) noexcept {
  const double first = first_to_enter(settings);
  const auto entered_by = [&](std::int64_t step) {
    const double since = static_cast<double>(step) - first;
    return since < 0 ? 0 : static_cast<std::int64_t>(since / settings.average_every) + 1;
  };
  return entered_by(to) - entered_by(from);
}

void fill_scalars(const Group& group, const Parameter& param, const double* memory,
                  std::uint64_t seed, double factor, double* scalars) noexcept {
  const Settings& settings = group.settings;
  const bool decoupled = settings.decoupled_weight_decay != 0;
  const auto step = static_cast<double>(param.steps + 1);
  const double decay = settings.weight_decay, sign = settings.maximize != 0 ? -1 : 1;
  scalars[grad_scale] = sign * factor;
  scalars[weight_decay] = decoupled ? 0 : decay;
  const double part = decoupled ? group.learning_rate() * decay : 0;
  const bool is_cautious = settings.cautious_weight_decay != 0, proximal = settings.no_prox == 0;
  scalars[shrink] = is_cautious || proximal ? 1 : 1 - part;
  scalars[late_shrink] = proximal ? 1 / (1 + part) : 1;
  scalars[cautious] = is_cautious ? part : 0;
  scalars[max_grad_value] = is_none(settings.max_grad_value)
                                ? std::numeric_limits<double>::infinity()
                                : settings.max_grad_value;
  scalars[average_weight] =
      group.averages() ? average_weight_of(settings, param.steps + 1, param.entered) : 0;
  scalars[begins_slow] = scalars[slow_weight] = 0;
  if (group.looks_ahead()) [[unlikely]]
    look_ahead(settings, step, scalars);
  scalars[random_seed] = static_cast<double>(seed);
  scalars[step_number] = step;
  group.rule->at(step, settings.hyper.data(), memory, scalars + shared_scalars);
}

Group::Group(const RuleRow& row) noexcept : rule(&row), lr(0) {
  std::copy(row.defaults.begin(), row.defaults.end(), settings.hyper.begin());
  while (lr + 1 < row.hyper.size() && std::strcmp(row.hyper[lr], "lr") != 0) ++lr;
}

std::optional<Disagreement> find_disagreement(std::span<const Group> groups) noexcept {
  if (groups.empty()) return {};
  const RuleRow& rule = *groups[0].rule;
  for (std::size_t k = 0; k < rule.hyper.size(); ++k) {
    if (std::strcmp(rule.hyper[k], "weight_decay") == 0) continue;
    const bool is_rate = k == groups[0].lr;
    double known = is_rate ? 0 : groups[0].settings.hyper[k];
    for (const Group& group : groups) {
      const double number = group.settings.hyper[k];
      const bool both_none = is_none(number) && is_none(known);
      if (both_none || number == known || (is_rate && number == 0)) continue;
      if (!is_rate || known != 0) return Disagreement{k, known, number};
      known = number;
    }
  }
  return {};
}

std::size_t Group::variant_index() const noexcept {
  std::size_t index = 0;
  for (std::size_t k = 0; k < rule->options.size(); ++k) {
    if (settings.options[k] != 0) index |= std::size_t{1} << k;
  }
  return index;
}

void Ready::run() noexcept {
  Optimizer& optimizer = *optimizer_;
  if (skipped()) {
    if (watches_) optimizer.watch(0, optimizer.tensors.size(), num_threads_, false);
    zero_gradients(optimizer.tensors, num_threads_);
    ++optimizer.skipped;
    return;
  }
  if (!optimizer.measuring_.empty()) {
    optimizer.measure_and_step(rows_, num_threads_, watches_);
  } else if (watches_) [[unlikely]] {
    optimizer.watch(0, optimizer.tensors.size(), num_threads_, true);
  } else {
    step(optimizer.tensors, rows_, num_threads_);
  }
  if (!optimizer.shaped_.empty()) optimizer.close_shapes();
  if (!optimizer.memory.empty()) optimizer.move_memory();
  for (std::size_t i = 0; i < optimizer.params.size(); ++i) {
    if (!optimizer.tensors[i].streams.grad.data) continue;
    Parameter& param = optimizer.params[i];
    ++param.steps;
    // An average that was left out has not begun: the next one starts as the weights.
    const Group& group = optimizer.groups[param.group];
    if (!group.averages()) [[likely]] {
      param.average_from = param.steps;
      param.entered = 0;
    } else if (enters_average(group.settings, param.steps)) {
      ++param.entered;
    }
  }
  ++optimizer.completed;
}

std::size_t Ready::elements() const noexcept {
  return optimizer_->elements(rows_);
}

Ready Optimizer::prepare(const StepOptions& options) {
  Ready ready(*this, options);
  if (shares_memory() && !memory.empty() && memory[0] != 0) ready.d = memory[0];
  leave_out();
  if (!options.rows.empty()) join(options.rows, options.num_threads);
  if (options.stats) [[unlikely]]
    watched_.resize(total_blocks(tensors));
  double coefficient = 1;
  const bool limits = !is_none(options.max_grad_norm);
  const bool limits_each = std::any_of(groups.begin(), groups.end(),
                                       [](const Group& group) { return group.clips_each(); });
  if (limits || limits_each || !is_none(options.skip_grad_norm) || options.is_left_out ||
      options.nonfinite != Nonfinite::propagate) [[unlikely]] {
    measure(options, ready);
    if (!is_none(options.grad_norm)) ready.norm = options.grad_norm;
    ready.skip_reason = reason_to_skip(options, ready);
    if (limits && !ready.skipped())
      coefficient = clip_coefficient(*ready.norm, options.max_grad_norm);
    ready.clipped = coefficient < 1;
  } else if (options.exchange) [[unlikely]] {
    (*options.exchange)({});
  }
  if (ready.skipped()) return ready;
  measuring_.clear();
  is_directed_ = false;
  if (compute(options, coefficient / options.grad_scale, ready.clipped)) prepare_measuring();
  if (!axes.empty()) prepare_shapes(options.num_threads);
  if (shares_memory()) [[unlikely]] {
    measure_all(options.num_threads);
    const auto first = std::ranges::find_if(
        tensors, [](const Tensor& tensor) { return tensor.streams.grad.data != nullptr; });
    if (first != tensors.end()) {
      ready.d = memory_after(static_cast<std::size_t>(first - tensors.begin()))[0];
    }
  }
  return ready;
}

void Optimizer::Job::draw(std::uint64_t seed) {
  bits = std::make_unique<StepBits>();
  onepass::draw(*bits, seed, static_cast<std::uint64_t>(scalars[step_number]));
}

// A parameter without a gradient has no elements in this step.
void Optimizer::leave_out() {
  for (std::size_t i = 0; i < params.size(); ++i) {
    tensors[i].size = tensors[i].streams.grad.data ? params[i].size : 0;
  }
}

// The tensors of which rows move have their gradients' sizes in this step.
void Optimizer::join(std::span<Rows> rows, int threads) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i].are_some) continue;
    rows[i].join(tensors[i], threads);
    tensors[i].size = rows[i].elements();
  }
}

void Optimizer::measure(const StepOptions& options, Ready& ready) {
  sums_.resize(total_blocks(tensors));
  const Norm found =
      options.exchange ? norm_of_all(options) : onepass::norm(tensors, sums_, options.num_threads);
  ready.norm = found.value / options.grad_scale;
  unit_ = found.unit;
  ready.is_finite = found.is_finite;
  if (found.nonfinite) ready.nonfinite = found.nonfinite - tensors.data();
  if (options.is_left_out) ready.norm = none;  // as of the sum of what was left out
}

// A process whose gradients were all left out makes the others skip the step too.
Norm Optimizer::norm_of_all(const StepOptions& options) {
  if (!options.is_left_out) {
    return onepass::norm(tensors, sums_, options.num_threads, *options.exchange);
  }
  const double left_out[] = {none};
  return onepass::norm(tensors, sums_, options.num_threads,
                       [&](std::span<const double>) { return (*options.exchange)(left_out); });
}

// A norm that is not finite is above every limit, unless that is to be an error.
SkipReason Optimizer::reason_to_skip(const StepOptions& options, const Ready& ready) noexcept {
  if (options.is_left_out) return SkipReason::nonfinite;
  if (ready.is_finite) {  // the limit is NaN where there is none
    return *ready.norm > options.skip_grad_norm ? SkipReason::grad_norm : SkipReason::not_skipped;
  }
  const bool skips =
      options.nonfinite == Nonfinite::skip ||
      (options.nonfinite == Nonfinite::propagate && !is_none(options.skip_grad_norm));
  return skips ? SkipReason::nonfinite : SkipReason::not_skipped;
}

void Optimizer::start_memory() {
  memory.clear();
  for (const Parameter& param : params) {
    const auto start = groups[param.group].rule->memory_start;
    memory.insert(memory.end(), start.begin(), start.end());
    if (shares_memory()) return;
  }
}

void Optimizer::move_memory() noexcept {
  for (std::size_t i = 0; i < params.size(); ++i) {
    if (tensors[i].streams.grad.data) std::ranges::copy(memory_after(i), memory_of(i).begin());
  }
}

// The memory of a parameter that steps stands behind the rule's scalars.
std::span<const double> Optimizer::memory_after(std::size_t param) const noexcept {
  const std::size_t own = groups[params[param].group].rule->scalars.size();
  return {tensors[param].scalars + shared_scalars + own, memory_of(param).size()};
}

// Makes room for what the step will measure.
void Optimizer::prepare_measuring() {
  measuring_.resize(params.size());
  for (std::size_t i = 0; i < params.size(); ++i) {
    if (!tensors[i].streams.grad.data) continue;
    const Parameter& param = params[i];
    const Variant& variant = groups[param.group].variant(param.is_factored);
    auto* const scalars = const_cast<double*>(tensors[i].scalars);  // a job's, of ours
    measuring_[i] = {find_measure(variant, param.is_double, param.state_format), variant.weigh,
                     scalars + shared_scalars};
  }
  sums_.resize(total_blocks(tensors) * max_sums);
}

// What is summed over all tensors is known before the first one steps.
void Optimizer::measure_all(int threads) noexcept {
  onepass::measure(tensors, measuring_.data(), sums_, threads);
  double totals[max_sums] = {};
  for (std::size_t i = 0; i < sums_.size(); ++i) totals[i % max_sums] += sums_[i];
  const auto size = static_cast<double>(total_elements(tensors));
  for (const Measuring& how : measuring_) {
    if (how.weigh) how.weigh(how.scalars, totals, size);
  }
  measuring_.clear();
}

// The tensors that go together begin with this one: what a step reads is still in the cache, where
// it was measured.
std::size_t Optimizer::end_of_group(std::size_t first) const noexcept {
  constexpr std::size_t most_elements = 65536;  // four arrays of floats fill 1 MB of L2
  std::size_t elements = 0;
  do {
    elements += tensors[first++].size;
  } while (first < tensors.size() && elements + tensors[first].size <= most_elements);
  return first;
}

// Makes room for state of another shape, and for the sums that such tensors take together.
void Optimizer::prepare_shapes(int threads) {
  shaped_.resize(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Parameter& param = params[i];
    const Group& group = groups[param.group];
    shaped_[i].shaping = nullptr;
    if (!param.is_factored || tensors[i].size == 0) continue;
    shaped_[i].prepare(axes[i], group.rule->shape, tensors[i].item_size, threads,
                       tensors[i].streams);
    shaped_[i].shaping = &find_shaping(group.variant(true), param.is_double);
  }
  for (std::size_t first = 0, last = 0; first < tensors.size(); first = last) {
    last = end_of_group(first);
    std::size_t n = 0;
    for (; first < last; ++first) {
      if (shaped_[first].shaping && shaped_[first].shaping->sum) n += shaped_[first].n_sums();
    }
    if (tile_sums_.size() < n) tile_sums_.resize(n);
  }
}

// Moves the numbers of rows and columns that the coming step reads.
void Optimizer::move_shapes(std::size_t first, std::size_t last, int threads) noexcept {
  double* sums = tile_sums_.data();
  for (std::size_t i = first; i < last; ++i) {
    if (!shaped_[i].shaping || !shaped_[i].shaping->sum) continue;
    shaped_[i].use(sums);
    sums += shaped_[i].n_sums();
  }
  const std::span<Tensor> together(tensors.data() + first, last - first);
  sum_tiles(together, shaped_.data() + first, threads);
  for (std::size_t i = first; i < last; ++i) {
    if (const Shaping* shaping = shaped_[i].shaping; shaping && shaping->move) {
      shaping->move(tensors[i].streams, tensors[i].scalars);
    }
  }
}

void Optimizer::close_shapes() noexcept {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (const Shaping* shaping = shaped_[i].shaping) {
      shaping->close(tensors[i].streams, tensors[i].scalars);
    }
  }
}

// Goes on with the next tensors once the first ones have stepped.
void Optimizer::measure_and_step(std::span<const Rows> rows, int threads, bool watches) noexcept {
  for (std::size_t first = 0, last = 0; first < tensors.size(); first = last) {
    last = end_of_group(first);
    const std::span<Tensor> together(tensors.data() + first, last - first);
    if (!shaped_.empty()) move_shapes(first, last, threads);
    const Measuring* how = measuring_.data() + first;
    onepass::measure(together, how, sums_, threads);
    const double* block = sums_.data();
    for (const Tensor& tensor : together) {
      double totals[max_sums] = {};
      for (std::size_t b = 0; b < count_blocks(tensor); ++b) {
        for (double& total : totals) total += *block++;
      }
      if (how->weigh) how->weigh(how->scalars, totals, static_cast<double>(tensor.size));
      ++how;
    }
    if (watches) {
      watch(first, last, threads, true);
    } else {
      step(together, rows.empty() ? rows : rows.subspan(first, together.size()), threads);
    }
  }
}

void Optimizer::watch(std::size_t first, std::size_t last, int threads, bool moves) noexcept {
  const std::span<Tensor> all(tensors);
  const std::size_t begin = total_blocks(all.first(first));
  step_and_watch(all.subspan(first, last - first), std::span(watched_).subspan(begin), threads,
                 moves);
}

void Optimizer::write_stats(double grad_scale, TensorStats* to) const noexcept {
  std::span<const Watched> blocks(watched_);
  for (const Tensor& tensor : tensors) {
    if (!tensor.streams.grad.data) continue;
    const std::size_t n = count_blocks(tensor);
    *to++ = stats_of(tensor, blocks.first(n), grad_scale);
    blocks = blocks.subspan(n);
  }
}

bool Optimizer::is_directed(std::size_t param) const noexcept {
  return tensors[param].size != 0 && groups[params[param].group].variant().direct_f64 != nullptr;
}

std::vector<double> Optimizer::direct(int num_threads) {
  std::vector<Measuring> how(params.size());
  for (std::size_t i = 0; i < params.size(); ++i) {
    const Parameter& param = params[i];
    const Variant& variant = groups[param.group].variant();
    if (is_directed(i)) how[i].measure = find_direct(variant, param.is_double, param.state_format);
  }
  sums_.resize(total_blocks(tensors) * max_sums);
  onepass::measure(tensors, how.data(), sums_, num_threads);
  std::vector<double> norms;
  const double* block = sums_.data();
  for (std::size_t i = 0; i < params.size(); ++i) {
    double total = 0;
    for (std::size_t b = 0; b < count_blocks(tensors[i]); ++b, block += max_sums) total += *block;
    if (is_directed(i)) norms.push_back(std::sqrt(total));
  }
  return norms;
}

bool Optimizer::share_job(std::size_t param, std::size_t other) noexcept {
  const Parameter &a = params[param], &b = params[other];
  const std::span<double> own = memory_of(param);
  return a.group == b.group && a.is_factored == b.is_factored && a.steps == b.steps &&
         a.entered == b.entered &&
         (own.empty() || std::memcmp(own.data(), memory_of(other).data(), own.size_bytes()) == 0);
}

// The coefficient of a gradient that is clipped by its own norm, once `factor` has scaled it.
double Optimizer::clip_each(Tensor& tensor, std::size_t first_block, double factor,
                            const Group& group) noexcept {
  const std::span<double> sums = std::span(sums_).subspan(first_block, count_blocks(tensor));
  const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
  double norm = std::sqrt(total) / unit_;
  // In the unit of one that is far too large, or not finite, the sums of the others are 0.
  if (unit_ < 1) norm = onepass::norm({&tensor, 1}, sums, 1).value;
  return clip_coefficient(norm * factor, group.settings.max_grad_norm_each);
}

// Returns the job of a parameter shortly before this one that is in the same group and shares its
// numbers, even with other parameters between the two; null if there is none. `last` is the last
// job.
Optimizer::Job* Optimizer::find_job(std::size_t param, Job* last) noexcept {
  constexpr std::size_t furthest = 8;  // a layer's weight, bias and what else has its own settings
  const Group& group = groups[params[param].group];
  if (group.variant(params[param].is_factored).weigh || group.clips_each()) return nullptr;
  for (std::size_t other = param; other-- > 0 && param - other <= furthest;) {
    if (!tensors[other].streams.grad.data || !share_job(param, other)) continue;
    while (last->scalars.data() != tensors[other].scalars) --last;
    return last;
  }
  return nullptr;
}

// Returns whether any tensor is to be measured, and whether any gradient is clipped by itself.
bool Optimizer::compute(const StepOptions& options, double factor, bool& clipped) {
  if (jobs_.size() < params.size()) jobs_.resize(params.size());  // none moves while one is used
  Job *job = jobs_.data(), *last = job;
  std::size_t before = params.size();  // none
  const Variant* variant = nullptr;
  bool measures = false;
  std::size_t first_block = 0;  // of the tensor's, among the sums of squares
  for (std::size_t i = 0; i < params.size(); ++i) {
    Tensor& tensor = tensors[i];
    if (!tensor.streams.grad.data) continue;
    const Parameter& param = params[i];
    const Group& group = groups[param.group];
    const bool is_first = before == params.size();
    if (is_first || variant->weigh || group.clips_each() || !share_job(i, before)) {
      Job* const shared = is_first ? nullptr : find_job(i, last);
      job = shared ? shared : is_first ? last : ++last;
      if (!shared) {
        double own = factor;
        if (group.clips_each()) [[unlikely]]
          own *= clip_each(tensor, first_block, factor, group);
        clipped = clipped || own < factor;
        fill_scalars(group, param, memory_of(i).data(), options.seed, own, job->scalars.data());
        job->bits.reset();
      }
      variant = &group.variant(param.is_factored);
      measures = measures || variant->weigh;
      is_directed_ = is_directed_ || variant->direct_f64;
    }
    if (param.rounds && !job->bits) job->draw(options.seed);
    before = i;
    first_block += count_blocks(tensor);
    const bool decays = job->scalars[weight_decay] != 0 || job->scalars[shrink] != 1;
    tensor.kernel = find_kernel(*variant, param.is_double, param.state_format, decays);
    tensor.scalars = job->scalars.data();
    tensor.streams.random = param.rounds ? job->bits.get() : nullptr;
  }
  return measures;
}

const Tensor* find_nonfinite(std::span<Tensor> tensors, int num_threads) {
  std::vector<double> sums(total_blocks(tensors));
  return norm(tensors, sums, num_threads).nonfinite;
}

void accumulate(std::span<Tensor> tensors, const KernelTable& kernels, int num_threads) noexcept {
  for (Tensor& tensor : tensors) {
    tensor.scalars = scalars_of_sums.data();
    tensor.kernel = adding(tensor, kernels);
  }
  step(tensors, num_threads);
}

void fold(const Tensor& sum, std::span<const Stored> parts, const KernelTable& kernels,
          int num_threads) noexcept {
  const Kernel add = adding(sum, kernels);
  parallel_for(count_blocks(sum), num_threads, [&](std::size_t index) noexcept {
    const Range range = block(sum, index);  // it stays in the cache until its last part is added
    Streams streams = sum.streams;
    std::memset(static_cast<char*>(streams.param.data) + range.begin * sum.item_size, 0,
                (range.end - range.begin) * sum.item_size);
    for (const Stored& part : parts) {
      streams.grad = part;
      add(streams, range.begin, range.end, scalars_of_sums.data());
    }
  });
}

}  // namespace onepass
