// The calls that change parameters or sums: step and accumulate.
#include <algorithm>
#include <string>

#include "engine.hpp"
#include "gil.hpp"

namespace onepass::bindings {

namespace {

// What the user's function has returned for so many sums of this process.
std::vector<double> sums_of_all(const py::object& sums, std::size_t n_own) {
  const char* const expected = "exchange: expected it to return a vector of float64, got ";
  if (!py::isinstance<py::array>(sums)) {
    throw py::type_error(expected + std::string(Py_TYPE(sums.ptr())->tp_name));
  }
  const auto array = py::reinterpret_borrow<py::array>(sums);
  if (!py::isinstance<py::array_t<double>>(sums))
    throw py::type_error(expected + dtype_name(array));
  if (array.ndim() != 1) throw py::value_error(expected + ("shape " + shape_name(array)));
  if (static_cast<std::size_t>(array.size()) < n_own) {
    throw py::value_error("exchange: expected at least the " + std::to_string(n_own) +
                          " sums of this process, got " + std::to_string(array.size()));
  }
  const auto values = py::array_t<double, py::array::c_style>::ensure(sums);
  if (!values) throw py::error_already_set();
  std::vector<double> all(values.data(), values.data() + values.size());
  const auto wrong = std::ranges::find_if(all, [](double sum) { return sum < 0; });
  if (wrong != all.end()) {
    throw py::value_error("exchange: expected sums of squares, got " +
                          py::str(py::float_(*wrong)).cast<std::string>());
  }
  return all;
}

}  // namespace

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
    if (gathered_ + left_out_ > 0) {
      throw py::value_error("grads: expected none after accumulate, got some");
    }
    collect(grads);
    return Source::given;
  }
  if (gathered_ + left_out_ > 0) {
    for (std::size_t i = 0; i < size(); ++i) {
      given_.push_back(accumulated_[i] > 0 ? now_.arrays[i].sum : py::none());
    }
    return Source::sums;
  }
  take_bound("grads: expected gradients, got none, and none are bound or accumulated");
  return Source::bound;
}

void Engine::take_bound(const char* missing) {
  if (!has_bound_) throw py::value_error(missing);
  for (const Bound& bound : bound_) given_.push_back(bound.grad);
}

py::object Engine::step(py::handle grads, bool by_rows, double grad_scale, bool stats,
                        py::handle exchange, int num_threads) {
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
  if (!exchange.is_none()) [[unlikely]]
    check_exchange(exchange);
  call.exchange = exchange;
  StepOptions& options = call.options;
  options.grad_scale = grad_scale;
  options.max_grad_norm = own_settings_.max_grad_norm;
  options.skip_grad_norm = own_settings_.skip_grad_norm;
  options.nonfinite = static_cast<Nonfinite>(own_settings_.nonfinite);
  options.seed = static_cast<std::uint64_t>(own_settings_.seed);
  options.is_left_out = left_out_ > 0 && gathered_ == 0;
  options.num_threads = num_threads;
  options.stats = stats;
  const bool skipped = is_arranged_ ? step_in(now_, call, info) : step_and_arrange(call, info);
  if (closed && !skipped) closed->keep();
  if (!stats) last_info_ = info;  // one with stats serves no other step
  return info;
}

// One that needs other arrays than there are: they are kept only if it steps. Returns whether the
// step was skipped.
bool Engine::step_and_arrange(const Call& call, const py::object& info) {
  std::optional<Arrangement> coming = arranged();
  if (!state_alloc_.is_none()) note_written(coming ? *coming : now_);
  if (!coming) return step_in(now_, call, info);
  const bool skipped = step_in(*coming, call, info);
  if (skipped) {
    now_.optimizer.skipped = coming->optimizer.skipped;
  } else {
    std::swap(now_, *coming);
  }
  return skipped;
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
  const bool skipped = call.exchange.is_none() ? run(arrangement, call.options, check, info)
                                               : step_with_others(arrangement, call, check, info);
  if (stats) [[unlikely]]
    set_stats(info, stats, arrangement.optimizer, call.options.grad_scale);
  if (source == Source::sums) forget_accumulated();
  return skipped;
}

// A step in two phases: between measuring and writing, Python's function is given the sums of
// squares of the blocks here, and returns those of all processes.
bool Engine::step_with_others(Arrangement& arrangement, const Call& call,
                              const std::function<void()>& check, const py::object& info) {
  const Exchange exchange = [&](std::span<const double> own) {
    const WithGil gil;
    const py::object sums =
        call.exchange(py::array_t<double>(static_cast<py::ssize_t>(own.size()), own.data()));
    std::vector<double> all = sums_of_all(sums, own.size());
    check();  // it may have changed anything
    return all;
  };
  StepOptions options = call.options;
  options.exchange = &exchange;
  return run(arrangement, options, check, info);
}

void Engine::check_exchange(py::handle exchange) const {
  if (!PyCallable_Check(exchange.ptr())) {
    throw py::type_error("exchange: expected a function or None, got " +
                         std::string(Py_TYPE(exchange.ptr())->tp_name));
  }
  if (fields_->rule()->sums_over_all) {
    throw py::value_error(std::string("exchange: expected None beside ") + fields_->rule()->name +
                          ", whose own sums over all arrays are not exchanged, got a function");
  }
}

// The sums are zeros, or gone.
void Engine::forget_accumulated() {
  std::fill(accumulated_.begin(), accumulated_.end(), 0);
  gathered_ = left_out_ = 0;
}

// Tensors of the gradients in `given_`, which were checked. Where they are added to is not known
// yet.
std::vector<Tensor> Engine::given_tensors() const {
  std::vector<Tensor> tensors;
  for (std::size_t i = 0; i < size(); ++i) {
    if (given_[i].is_none()) continue;
    const Param& param = now_.params[i];
    const Streams& streams = now_.optimizer.tensors[i].streams;
    Tensor& tensor = tensors.emplace_back();
    tensor.streams.grad = streams.grad;
    tensor.streams.zero_grad = streams.zero_grad;
    tensor.streams.tensor = static_cast<std::uint32_t>(i);
    const bool is_double = param.item_size == sizeof(double);
    tensor.squares = is_double ? kernels_in_use->squares_f64 : kernels_in_use->squares_f32;
    tensor.size = param.size;
    tensor.item_size = param.item_size;
  }
  return tensors;
}

// Whether the gradients in `given_` are not accumulated, as they are not finite; or raises, where
// the settings say so. No sum is made for them.
bool Engine::finds_nonfinite(Source source, int num_threads) {
  check_gradients(now_, source);
  std::vector<Tensor> tensors = given_tensors();
  const Tensor* found = nullptr;
  without_gil(total_elements(tensors), [&] { found = find_nonfinite(tensors, num_threads); });
  if (!found) return false;
  if (static_cast<Nonfinite>(own_settings_.nonfinite) == Nonfinite::raise) {
    const std::string place = std::to_string(gathered_ + left_out_ + 1);
    fail_value(Label(labels_, found->streams.tensor, Role::grad), "finite values",
               "an infinity or NaN in micro-batch " + place + " since the last step");
  }
  return true;
}

void Engine::leave_out(int num_threads) {
  std::vector<Tensor> tensors = given_tensors();
  without_gil(total_elements(tensors), [&]() noexcept { zero_gradients(tensors, num_threads); });
  ++left_out_;
}

bool Engine::accumulate(py::handle grads, int num_threads, py::handle exchange) {
  const OneAtATime guard(busy_, "accumulate");
  const Cleared cleared(given_);
  read_own_settings();
  Source source = Source::bound;
  if (grads.is_none()) {
    take_bound("grads: expected gradients, got none, and none are bound");
  } else {
    source = Source::given;
    collect(grads);
  }
  if (std::ranges::all_of(given_, [](const py::object& grad) { return grad.is_none(); })) {
    return true;
  }
  const bool looks = static_cast<Nonfinite>(own_settings_.nonfinite) != Nonfinite::propagate;
  if (looks && finds_nonfinite(source, num_threads)) {
    if (!exchange.is_none()) exchange(true);
    leave_out(num_threads);
    return false;
  }
  std::vector<py::object> sums(size());
  for (std::size_t i = 0; i < size(); ++i) {
    if (given_[i].is_none()) continue;
    const py::object& sum = now_.arrays[i].sum;
    sums[i] = sum.is_none() ? callbacks->new_sum(now_.params[i].array, allocator(i)) : sum;
  }
  check_gradients(now_, source);
  Memory memory;  // of our own; what else can overlap it is looked at below
  std::vector<Tensor> tensors = given_tensors();
  for (Tensor& tensor : tensors) {
    const std::size_t i = tensor.streams.tensor;
    const Label label(labels_, i, Role::state, "accumulated");
    tensor.streams.param = {check_state(sums[i], label, now_.params[i], memory)};
  }
  if (!state_alloc_.is_none()) check_new_sums(sums);
  if (!exchange.is_none() && exchange(false).cast<bool>()) [[unlikely]] {
    leave_out(num_threads);
    return false;
  }
  without_gil(total_elements(tensors),
              [&]() noexcept { onepass::accumulate(tensors, *kernels_in_use, num_threads); });
  for (std::size_t i = 0; i < size(); ++i) {
    if (!sums[i]) continue;
    now_.arrays[i].sum = sums[i];
    ++accumulated_[i];
  }
  ++gathered_;
  return true;
}

// `sums`: those of a call, old and new, that the user's function may have put where others lie.
void Engine::check_new_sums(const std::vector<py::object>& sums) const {
  Arrangement arrangement{now_.params, now_.arrays, {}, {}};
  Memory grads;
  for (std::size_t i = 0; i < size(); ++i) {
    if (!sums[i]) continue;
    arrangement.arrays[i].sum = sums[i];
    grads.add(py::reinterpret_borrow<py::array>(given_[i]), Label(labels_, i, Role::grad));
  }
  check_allocated(arrangement);
  add_allocated(arrangement, grads);
  grads.check_overlap();
}

void Engine::discard_accumulated() {
  const OneAtATime guard(busy_, "discard_accumulated");
  for (OwnedArrays& arrays : now_.arrays) arrays.sum = py::none();
  forget_accumulated();
}

}  // namespace onepass::bindings
