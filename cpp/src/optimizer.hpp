// A step of an optimizer, without Python: what its settings come to as numbers, the gradients'
// norm, skipping and clipping, the pass over all tensors, and the counting.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels.hpp"
#include "rows.hpp"
#include "shapes.hpp"
#include "step.hpp"
#include "watch.hpp"

namespace onepass {

// Stands for a number that is not there.
inline constexpr double none = std::numeric_limits<double>::quiet_NaN();
constexpr bool is_none(double number) noexcept {
  return number != number;
}

inline constexpr std::size_t max_options = 4;

// What a group's settings are, as numbers: a flag is 0 or 1, a choice its place among the names.
// The members after `options` are those that every rule has.
struct Settings {
  std::array<double, max_hyper> hyper{};
  std::array<double, max_options> options{};  // not 0: on
  double weight_decay = 0;
  double decoupled_weight_decay = 0;
  double maximize = 0;
  double max_grad_value = none;
  double ema_decay = none;
  double ema_warmup = 0;
  double swa_start = none;
  double state_format = none;  // of "bf16", "q8"
  double rounding = 0;         // of "master", "stochastic", "nearest"
  double cautious_weight_decay = 0;
  double no_prox = 1;  // 0: the decoupled decay is proximal
  double max_grad_norm_each = none;
  double lookahead_every = none, lookahead_weight = 0.5;
  double average_dtype = 0;  // of "float64", "float32"
  double average_every = 1;
};
inline constexpr const char* common_settings[] = {"weight_decay",    "decoupled_weight_decay",
                                                  "maximize",        "max_grad_value",
                                                  "ema_decay",       "ema_warmup",
                                                  "swa_start",       "state_format",
                                                  "rounding",        "cautious_weight_decay",
                                                  "no_prox",         "max_grad_norm_each",
                                                  "lookahead_every", "lookahead_weight",
                                                  "average_dtype",   "average_every"};
static_assert(sizeof(Settings) ==
              (max_hyper + max_options + std::size(common_settings)) * sizeof(double));

enum Rounding : int { round_master, round_stochastic, round_nearest };

// Parameters that share settings.
struct Group {
  const RuleRow* rule;
  std::size_t lr;  // its place among the rule's hyperparameters
  Settings settings;

  explicit Group(const RuleRow& row) noexcept;
  std::size_t variant_index() const noexcept;
  // `is_factored`: whether that is of a parameter of two or more axes.
  const Variant& variant(bool is_factored = false) const noexcept {
    const std::size_t factored = is_factored && rule->factored;
    return rule->variants[variant_index() | factored << rule->options.size()];
  }
  bool averages() const noexcept {
    return !is_none(settings.ema_decay) || !is_none(settings.swa_start);
  }
  bool averages_in_double() const noexcept { return settings.average_dtype == 0; }
  bool looks_ahead() const noexcept { return !is_none(settings.lookahead_every); }
  bool clips_each() const noexcept { return !is_none(settings.max_grad_norm_each); }
  double learning_rate() const noexcept { return settings.hyper[lr]; }
};

// Two numbers of a hyperparameter in groups of a rule that sums over all tensors, which must share
// all but the decay, and a rate of 0.
struct Disagreement {
  std::size_t hyper;
  double first, second;
};
std::optional<Disagreement> find_disagreement(std::span<const Group> groups) noexcept;

// What is known of a parameter besides its arrays.
struct Parameter {
  std::size_t size = 0;
  std::uint32_t group = 0;
  bool is_double = false, rounds = false;  // whether it is of doubles; whether anything is rounded
  bool is_factored = false;                // whether it has two or more axes, where its rule cares
  StateFormat state_format = plain_state;
  std::int64_t steps = 0;         // completed
  std::int64_t average_from = 0;  // steps it had completed when its average began
  std::int64_t entered = 0;       // how often its weights have entered that
};

enum class Nonfinite : int { propagate, skip, raise };
enum class SkipReason : int { not_skipped, nonfinite, grad_norm };

struct StepOptions {
  double grad_scale = 1;
  double max_grad_norm = none;   // infinite: measured only
  double skip_grad_norm = none;  // a step with a larger norm is left out
  double grad_norm = none;       // of all gradients together, where the step has some of them only
  Nonfinite nonfinite = Nonfinite::propagate;
  bool is_left_out = false;  // no gradient is left that is finite: the step is skipped
  std::uint64_t seed = 0;
  int num_threads = 1;
  std::span<Rows> rows{};  // of each tensor, where a step moves rows of some; else none
  bool stats = false;      // whether the step notes what `stats_of` says; not beside rows
  // Exchanges the sums of a step that many processes make together. It is called once all else is
  // checked, with no sums where no norm is asked for; what it throws leaves the step undone.
  const Exchange* exchange = nullptr;
};

// How often weights enter an average from one number of completed steps to another.
[[gnu::cold]] std::int64_t count_entering(const Settings& settings, std::int64_t from,
                                          std::int64_t to) noexcept;

class Optimizer;

// A step that has been checked and computed as far as it can be without writing.
class Ready {
 public:
  std::optional<double> norm;  // of all gradients together, unscaled, where it was asked for
  bool clipped = false;        // by a norm
  SkipReason skip_reason = SkipReason::not_skipped;
  std::optional<double> d;        // of a rule that finds its rate, after the step
  std::ptrdiff_t nonfinite = -1;  // the first parameter whose gradient is not finite
  bool is_finite = true;          // not, too, where that is a parameter of another process
  bool skipped() const noexcept { return skip_reason != SkipReason::not_skipped; }
  // Moves everything, or counts a skipped step. No failure is possible any more.
  void run() noexcept;
  std::size_t elements() const noexcept;

 private:
  friend class Optimizer;
  Ready(Optimizer& optimizer, const StepOptions& options) noexcept
      : optimizer_(&optimizer),
        num_threads_(options.num_threads),
        rows_(options.rows),
        watches_(options.stats) {}
  Optimizer* optimizer_;
  int num_threads_;
  std::span<const Rows> rows_;
  bool watches_;
};

// The memory is the caller's, who keeps it alive.
class Optimizer {
 public:
  std::vector<Group> groups;
  std::vector<Parameter> params;
  std::vector<Tensor> tensors;  // one a parameter; without gradient data it is left alone
  std::vector<double> memory;   // that the rule has of each parameter in turn, or of all together
  std::vector<AxesOf> axes;     // of each parameter, where the rule may be factored
  std::int64_t completed = 0, skipped = 0;

  // That a step may move: of all parameters, those included that have no gradient, or of rows.
  std::size_t elements(std::span<const Rows> rows = {}) const noexcept {
    std::size_t total = 0;
    for (const Parameter& param : params) total += param.size;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (rows[i].are_some) total = total - params[i].size + rows[i].elements();
    }
    return total;
  }
  // What the rule remembers of a parameter; that of a step moves when the step is run.
  std::span<double> memory_of(std::size_t param) noexcept {
    const std::size_t n = memory.empty() ? 0 : groups[0].rule->memory.size();
    return {memory.data() + (shares_memory() ? 0 : param * n), n};
  }
  std::span<const double> memory_of(std::size_t param) const noexcept {
    return const_cast<Optimizer*>(this)->memory_of(param);
  }
  bool shares_memory() const noexcept { return !groups.empty() && groups[0].rule->sums_over_all; }
  // Lets every parameter's memory begin.
  void start_memory();
  // May throw std::bad_alloc, and what an exchange throws.
  Ready prepare(const StepOptions& options);
  // Whether the step that was prepared takes a direction, of any tensor or of this one. It must be
  // there, at the tensor's direction_place, when the step is run.
  bool is_directed() const noexcept { return is_directed_; }
  bool is_directed(std::size_t param) const noexcept;
  // The pass between `prepare` and Ready::run that writes there what these directions are made of;
  // returns their norms in the tensors' order. May throw std::bad_alloc.
  std::vector<double> direct(int num_threads);
  // Once a step with `stats` has run: writes what it says of each tensor that had a gradient.
  void write_stats(double grad_scale, TensorStats* to) const noexcept;

 private:
  friend class Ready;
  // What parameters share that are near each other, in one group, and have completed as many steps.
  struct Job {
    std::array<double, max_scalars> scalars;
    std::unique_ptr<StepBits> bits;  // where something is rounded
    [[gnu::cold]] void draw(std::uint64_t seed);
  };
  void leave_out();
  [[gnu::cold]] void join(std::span<Rows> rows, int threads);
  bool share_job(std::size_t param, std::size_t other) noexcept;
  [[gnu::cold]] Job* find_job(std::size_t param, Job* last) noexcept;
  [[gnu::cold]] void move_memory() noexcept;
  std::span<const double> memory_after(std::size_t param) const noexcept;
  [[gnu::cold]] void prepare_measuring();
  [[gnu::cold]] void measure_all(int threads) noexcept;
  [[gnu::cold]] void prepare_shapes(int threads);
  std::size_t end_of_group(std::size_t first) const noexcept;
  void move_shapes(std::size_t first, std::size_t last, int threads) noexcept;
  [[gnu::cold]] void close_shapes() noexcept;
  [[gnu::cold]] void measure_and_step(std::span<const Rows> rows, int threads,
                                      bool watches) noexcept;
  [[gnu::cold]] void watch(std::size_t first, std::size_t last, int threads, bool moves) noexcept;
  void measure(const StepOptions& options, Ready& ready);
  [[gnu::cold]] Norm norm_of_all(const StepOptions& options);
  static SkipReason reason_to_skip(const StepOptions& options, const Ready& ready) noexcept;
  [[gnu::cold]] double clip_each(Tensor& tensor, std::size_t first_block, double factor,
                                 const Group& group) noexcept;
  bool compute(const StepOptions& options, double factor, bool& clipped);
  std::vector<Job> jobs_;
  std::vector<double> sums_;
  double unit_ = 1;                   // in which the sums of squares are, over 1
  std::vector<Measuring> measuring_;  // of each tensor; empty where none is measured
  bool is_directed_ = false;
  std::vector<ShapedState> shaped_;  // of each tensor, where the rule may be factored
  std::vector<double> tile_sums_;    // of the tensors that go together
  std::vector<Watched> watched_;     // of each block, where a step notes what it does
};

// Fills in all scalars of the coming step of a parameter, and behind them its memory after it.
// `factor`: the gradient's.
void fill_scalars(const Group& group, const Parameter& param, const double* memory,
                  std::uint64_t seed, double factor, double* scalars) noexcept;

// The first of these tensors with an infinity or a NaN in its gradient, or null. Reads the
// gradients alone. May throw std::bad_alloc.
[[gnu::cold]] const Tensor* find_nonfinite(std::span<Tensor> tensors, int num_threads);

// Adds each tensor's gradient to its `param`.
void accumulate(std::span<Tensor> tensors, const KernelTable& kernels, int num_threads) noexcept;

// Adds vectors up in their order, beginning with zeros, as one `accumulate` for each would. `sum`
// has the size, the item size and where the sums go to.
void fold(const Tensor& sum, std::span<const Stored> parts, const KernelTable& kernels,
          int num_threads) noexcept;

}  // namespace onepass
