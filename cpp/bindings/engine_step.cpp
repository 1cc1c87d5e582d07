// The calls that change parameters or sums: step and accumulate.
#include <algorithm>
#include <string>

#include "engine.hpp"
#include "gil.hpp"

namespace onepass::bindings {

void Engine::check_block(const char* name) {
  if (shown_.is_none()) return;
  const py::object block = shown_[py::int_(0)];
  if (block.attr("active").cast<bool>()) {
    throw py::value_error(std::string(name) +
                          ": expected after the block that shows other weights, got a call inside "
                          "it");
  }
  block.attr("outdate")();
  shown_ = py::none();
}

void Engine::check_outside(const char* name) {
  if (busy_) {
    throw py::value_error(std::string(name) + ": expected outside a step, got a call inside one");
  }
  check_block(name);
}

// Fills `given_` with the gradients of a step.
Source Engine::gather(py::handle grads) {
  if (!grads.is_none()) {
    if (accumulations_ > 0) {
      throw py::value_error("grads: expected none after accumulate, got some");
    }
    collect(grads);
    return Source::given;
  }
  if (accumulations_ > 0) {
    for (std::size_t i = 0; i < size(); ++i) {
      given_.push_back(accumulated_[i] > 0 ? now_.arrays[i].sum : py::none());
    }
    return Source::sums;
  }
  take_bound("grads: expected gradients, as none are bound or accumulated, got none");
  return Source::bound;
}

void Engine::take_bound(const char* missing) {
  if (!has_bound_) throw py::value_error(missing);
  for (const Bound& bound : bound_) given_.push_back(bound.grad);
}

py::object Engine::step(py::handle grads, bool by_rows, double grad_scale, bool stats,
                        int num_threads) {
  const char* const name = by_rows ? "step_rows" : "step";
  const OneAtATime guard(busy_, name);
  const Cleared cleared(given_);
  check_block(name);
  py::object info = new_step_info(last_info_);
  std::optional<ClosedRound> closed;
  if (in_round_) [[unlikely]]
    closed.emplace(*this);
  read_settings();
  call_schedules();
  if (fields_->rule()->sums_over_all) check_groups_agree();
  Call call{grads, by_rows, {}};
  StepOptions& options = call.options;
  options.grad_scale = grad_scale;
  options.max_grad_norm = own_settings_.max_grad_norm;
  options.nonfinite = static_cast<Nonfinite>(own_settings_.nonfinite);
  options.seed = static_cast<std::uint64_t>(own_settings_.seed);
  options.num_threads = num_threads;
  options.stats = stats;
  if (is_arranged_) {
    step_in(now_, call, info);
  } else {
    step_and_arrange(call, info);
  }
  if (closed) closed->keep();
  if (!stats) last_info_ = info;  // one with stats serves no other step
  return info;
}

// One that needs other arrays than there are: they are kept only if it steps.
void Engine::step_and_arrange(const Call& call, const py::object& info) {
  std::optional<Arrangement> coming = arranged();
  if (!coming) {
    step_in(now_, call, info);
  } else if (step_in(*coming, call, info)) {
    now_.optimizer.skipped = coming->optimizer.skipped;
  } else {
    std::swap(now_, *coming);
  }
}

// A mapping for what the step says of each parameter in `given_` that has a gradient, and the array
// that it shows. They are made before anything is checked: this may run any Python code.
py::object Engine::new_stats() const {
  py::list keys;
  for (std::size_t i = 0; i < size(); ++i) {
    if (!given_[i].is_none()) keys.append(keys_[i]);
  }
  return callbacks->stats(keys);
}

// Returns whether the step was skipped.
bool Engine::step_in(Arrangement& arrangement, const Call& call, const py::object& info) {
  if (call.by_rows) return step_rows_in(arrangement, call, info);
  const Source source = call.only < 0 ? gather(call.grads) : take_one(call);
  py::object stats;
  if (call.options.stats) [[unlikely]]
    stats = new_stats();
  check_gradients(arrangement, source);
  const auto check = [&] {
    if (!all_ready(arrangement, source, true)) fail_changed();
  };
  const bool skipped = run(arrangement, call.options, check, info);
  if (stats) [[unlikely]]
    set_stats(info, stats, arrangement.optimizer, call.options.grad_scale);
  if (source == Source::sums) {
    std::fill(accumulated_.begin(), accumulated_.end(), 0);
    accumulations_ = 0;
  }
  return skipped;
}

void Engine::accumulate(py::handle grads, int num_threads) {
  const OneAtATime guard(busy_, "accumulate");
  const Cleared cleared(given_);
  read_own_settings();
  Source source = Source::bound;
  if (grads.is_none()) {
    take_bound("grads: expected gradients, as none are bound, got none");
  } else {
    source = Source::given;
    collect(grads);
  }
  std::vector<py::object> sums(size());
  std::vector<Tensor> tensors;
  for (std::size_t i = 0; i < size(); ++i) {
    if (given_[i].is_none()) continue;
    const py::object& sum = now_.arrays[i].sum;
    sums[i] = sum.is_none() ? callbacks->new_sum(now_.params[i].array) : sum;
    tensors.emplace_back();
  }
  if (tensors.empty()) return;
  check_gradients(now_, source);
  Memory memory;  // of our own; nothing else can overlap it
  std::size_t n = 0;
  for (std::size_t i = 0; i < size(); ++i) {
    if (!sums[i]) continue;
    const Param& param = now_.params[i];
    const Streams& streams = now_.optimizer.tensors[i].streams;
    const Label label(labels_, i, Role::state, "accumulated");
    tensors[n].streams.param = {check_state(sums[i], label, param, memory)};
    tensors[n].streams.grad = streams.grad;
    tensors[n].streams.zero_grad = streams.zero_grad;
    tensors[n].size = param.size;
    tensors[n++].item_size = param.item_size;
  }
  without_gil(total_elements(tensors),
              [&]() noexcept { onepass::accumulate(tensors, *kernels_in_use, num_threads); });
  for (std::size_t i = 0; i < size(); ++i) {
    if (!sums[i]) continue;
    now_.arrays[i].sum = sums[i];
    ++accumulated_[i];
  }
  ++accumulations_;
}

void Engine::discard_accumulated() {
  const OneAtATime guard(busy_, "discard_accumulated");
  for (OwnedArrays& arrays : now_.arrays) arrays.sum = py::none();
  std::fill(accumulated_.begin(), accumulated_.end(), 0);
  accumulations_ = 0;
}

}  // namespace onepass::bindings
