// The C interface: batch normalisation, checked before the first write.
#include <cmath>
#include <cstddef>
#include <iterator>
#include <span>

#include "batchnorm.hpp"
#include "capi.hpp"
#include "inference.hpp"
#include "overlap.hpp"

namespace onepass::capi {
namespace {

struct Range {
  std::uintptr_t begin, end;
  bool is_written;
  bool written() const { return is_written; }
};

// The size of the struct in the first version of this interface.
constexpr std::size_t first_size = offsetof(onepass_batch_norm, reserved) + sizeof(std::int32_t);

// A call: its arrays, checked, and the loops run with them.
class Call {
 public:
  std::int32_t read(const onepass_batch_norm* given, Operation operation);
  std::int32_t train();
  std::int32_t infer();
  std::int32_t backward();

 private:
  std::int32_t check_numbers() const;
  std::int32_t check_arrays(Operation operation);
  std::int32_t check_overlap();
  std::int32_t note(const void* array, std::size_t n, std::size_t item_size, bool is_written);
  // Whether none of the variances that the caller gives is negative.
  bool are_variances() const noexcept;

  PerChannel channels(const void* array, double absent) const noexcept {
    return {array, static_cast<std::ptrdiff_t>(channel_size_), channel_size_ == sizeof(float),
            absent};
  }
  double* load(const void* array, double absent = 0) {
    double* const values = workspace_.take<double>(layout_.channels);
    channels(array, absent).load(values, layout_.channels);
    return values;
  }
  void store(std::span<const double> values, void* to) const noexcept;
  bool can_hold(std::span<const double> values, double factor) const noexcept;
  void move_running(const double* mean, const double* var) noexcept;

  template <class T>
  Arrays<T> arrays() const noexcept {
    const auto as = [](const void* array) { return static_cast<T*>(const_cast<void*>(array)); };
    return {as(bn_.x), as(bn_.residual), as(bn_.dy), as(bn_.out), as(bn_.dresidual), false};
  }
  // Calls body(arrays, table of loops), not for an array without elements.
  template <class Body>
  void with_arrays(const Body& body) {
    if (layout_.size() == 0) return;
    const auto run_on = [&]<class T>(T) { body(arrays<T>(), batch_norm_table<T>(*kernels_)); };
    if (bn_.format == ONEPASS_BF16) return run_on(StoredBFloat16{});
    if (bn_.format == ONEPASS_F16) return run_on(StoredFloat16{});
    if (bn_.format == ONEPASS_F64) return run_on(double{});
    run_on(float{});
  }
  template <class Body>
  void run(Operation operation, const Body& body) {
    const Affine affine{load(bn_.weight, 1), load(bn_.bias, 0)};
    with_arrays([&](const auto& arrays, const auto& table) {
      using T = std::remove_pointer_t<decltype(arrays.out)>;
      BatchNorm<T> batch_norm(table, layout_, threads_, arrays, affine, operation, bn_.relu != 0);
      body(batch_norm);
    });
  }

  const KernelTable* kernels_ = nullptr;
  onepass_batch_norm bn_{};
  Layout layout_{};
  int threads_ = 1;
  std::size_t item_size_ = sizeof(float), channel_size_ = sizeof(float);
  Range ranges_[20];
  std::size_t n_ranges_ = 0;
  Workspace workspace_;
  double* running_[2] = {};  // room for the running statistics
};

std::int32_t Call::note(const void* array, std::size_t n, std::size_t item_size, bool is_written) {
  if (n == 0) return ONEPASS_OK;
  if (!array) return ONEPASS_NO_ARRAY;
  if (!is_aligned(array, item_size)) return ONEPASS_MISALIGNED;
  const auto begin = reinterpret_cast<std::uintptr_t>(array);
  ranges_[n_ranges_++] = {begin, begin + n * item_size, is_written};
  return ONEPASS_OK;
}

std::int32_t Call::check_numbers() const {
  const auto is_format = [](std::int32_t format) {
    return format == 0 || format == ONEPASS_F32 || format == ONEPASS_F64;
  };
  const bool is_small = bn_.format == ONEPASS_BF16 || bn_.format == ONEPASS_F16;
  if (!(is_format(bn_.format) || is_small) || !is_format(bn_.channel_format)) {
    return ONEPASS_BAD_FORMAT;
  }
  if (!(bn_.eps >= 0) || bn_.momentum < 0 || bn_.momentum > 1 || !is_threads(bn_.threads) ||
      bn_.reserved != 0) {
    return ONEPASS_BAD_NUMBER;
  }
  const std::size_t sizes[] = {bn_.outer, bn_.channels, bn_.inner};
  std::size_t product = 1;
  for (const std::size_t size : sizes) {
    if (size > SIZE_MAX / std::max<std::size_t>(product, 1)) return ONEPASS_BAD_SIZE;
    product *= size;
  }
  return is_size(product) && is_size(bn_.channels) ? ONEPASS_OK : ONEPASS_BAD_SIZE;
}

std::int32_t Call::read(const onepass_batch_norm* given, Operation operation) {
  kernels_ = kernels();
  if (!kernels_) return ONEPASS_NO_ISA;
  if (!given) return ONEPASS_NO_ARRAY;
  if (given->struct_size < first_size) return ONEPASS_BAD_SIZE;
  if (!read_struct(given, given->struct_size, bn_)) return ONEPASS_BAD_SIZE;
  if (const std::int32_t code = check_numbers()) return code;
  if (bn_.eps == 0) bn_.eps = 1e-5;
  if (bn_.momentum == 0) bn_.momentum = 0.1;
  layout_ = {bn_.outer, bn_.channels, bn_.inner};
  threads_ = resolve_threads(bn_.threads);
  const auto size_of = [](std::int32_t format) {
    return format == ONEPASS_F64 ? sizeof(double) : sizeof(float);
  };
  const bool is_small = bn_.format == ONEPASS_BF16 || bn_.format == ONEPASS_F16;
  item_size_ = is_small ? sizeof(std::uint16_t) : size_of(bn_.format);
  channel_size_ = size_of(bn_.channel_format == 0 ? bn_.format : bn_.channel_format);
  if (const std::int32_t code = check_arrays(operation)) return code;
  return check_overlap();
}

std::int32_t Call::check_arrays(Operation operation) {
  const bool trains = operation == Operation::train, back = operation == Operation::backward;
  const bool is_given = operation == Operation::infer || (back && bn_.var);
  const bool has_running = trains && (bn_.running_mean || bn_.running_var);
  if (trains && layout_.channels && layout_.per_channel() < 2) return ONEPASS_BAD_SIZE;
  const void* const over[] = {bn_.x, bn_.residual, back ? bn_.dy : nullptr};
  const bool in_place = bn_.out && std::ranges::find(over, bn_.out) != std::end(over);
  // What train reads, the backward pass needs again.
  if (trains && in_place && layout_.size()) return ONEPASS_OVERLAP;
  std::int32_t code = ONEPASS_OK;
  const auto add = [&](bool is_there, const void* array, std::size_t n, std::size_t item_size,
                       bool is_written) {
    if (is_there && code == ONEPASS_OK) code = note(array, n, item_size, is_written);
  };
  // What the result is written over counts as the result.
  const auto like_x = [&](const void* array, bool is_there, bool is_written = false) {
    const bool is_result = in_place && !is_written && array == bn_.out;
    add(is_there && !is_result, array, layout_.size(), item_size_, is_written);
  };
  const auto per_channel = [&](const void* array, bool is_there, bool is_written = false) {
    add(is_there, array, layout_.channels, channel_size_, is_written);
  };
  const auto doubles = [&](const void* array, bool is_there, bool is_written) {
    add(is_there, array, layout_.channels, sizeof(double), is_written);
  };
  like_x(bn_.x, true);
  like_x(bn_.residual, bn_.residual);
  like_x(bn_.dy, back);
  like_x(bn_.out, true, true);
  like_x(bn_.dresidual, back && bn_.residual, true);
  per_channel(bn_.weight, bn_.weight);
  per_channel(bn_.bias, bn_.bias);
  per_channel(bn_.mean, is_given);
  per_channel(bn_.var, is_given);
  doubles(bn_.batch_mean, trains || (back && !is_given), trains);
  doubles(bn_.batch_invstd, trains || (back && !is_given), trains);
  per_channel(bn_.running_mean, has_running, true);
  per_channel(bn_.running_var, has_running, true);
  per_channel(bn_.weight_grad, back, true);
  per_channel(bn_.bias_grad, back, true);
  add(has_running && bn_.batches, bn_.batches, 1, sizeof(std::int64_t), true);
  if (code != ONEPASS_OK) return code;
  if (has_running && std::isnan(bn_.momentum) && !bn_.batches) return ONEPASS_NO_ARRAY;
  const bool counts = has_running && bn_.batches;
  if (counts && (*bn_.batches < 0 || *bn_.batches >= most_steps)) return ONEPASS_BAD_NUMBER;
  return is_given && !are_variances() ? ONEPASS_BAD_NUMBER : ONEPASS_OK;
}

bool Call::are_variances() const noexcept {
  for (std::size_t c = 0; c < layout_.channels; ++c) {
    double var;
    channels(bn_.var, 0).load(&var, 1, c);
    if (var < 0) return false;
  }
  return true;
}

std::int32_t Call::check_overlap() {
  if (bn_.unchecked) return ONEPASS_OK;
  return find_overlap(std::span(ranges_, n_ranges_)).first ? ONEPASS_OVERLAP : ONEPASS_OK;
}

void Call::store(std::span<const double> values, void* to) const noexcept {
  if (channel_size_ == sizeof(double)) {
    std::ranges::copy(values, static_cast<double*>(to));
  } else {
    std::ranges::transform(values, static_cast<float*>(to),
                           [](double value) { return static_cast<float>(value); });
  }
}

bool Call::can_hold(std::span<const double> values, double factor) const noexcept {
  return std::ranges::all_of(values, [&](double value) {
    const double kept = value * factor;
    return std::isfinite(channel_size_ == sizeof(float) ? static_cast<float>(kept) : kept);
  });
}

void Call::move_running(const double* mean, const double* var) noexcept {
  if (!bn_.running_mean) return;
  const std::size_t n = layout_.channels;
  const auto count = static_cast<double>(layout_.per_channel());
  const double correction = bn_.biased_running_var ? 1.0 : count / (count - 1);
  const std::span<const double> means(mean, n), vars(var, n);
  if (bn_.skip_nonfinite && !(can_hold(means, 1.0) && can_hold(vars, correction))) return;
  if (bn_.batches) ++*bn_.batches;
  const double momentum =
      std::isnan(bn_.momentum) ? 1 / static_cast<double>(*bn_.batches) : bn_.momentum;
  const auto move = [&](void* running, double* room, std::span<const double> batch, double factor) {
    channels(running, 0).load(room, n);
    update_running({room, n}, batch, factor, momentum);
    store({room, n}, running);
  };
  move(bn_.running_mean, running_[0], means, 1.0);
  move(bn_.running_var, running_[1], vars, correction);
}

std::int32_t Call::train() {
  const std::size_t n = layout_.channels;
  double* const var = load(nullptr);
  for (double*& room : running_) room = workspace_.take<double>(n);
  run(Operation::train, [&](auto& batch_norm) noexcept {
    batch_norm.train(bn_.eps, {bn_.batch_mean, bn_.batch_invstd, var});
  });
  move_running(bn_.batch_mean, var);
  return ONEPASS_OK;
}

std::int32_t Call::infer() {
  const PerChannel mean = channels(bn_.mean, 0), var = channels(bn_.var, 1);
  const PerChannel weight = channels(bn_.weight, 1), bias = channels(bn_.bias, 0);
  with_arrays([&](const auto& arrays, const auto&) {
    using T = std::remove_pointer_t<decltype(arrays.out)>;
    Inference<T> inference(*kernels_, layout_, threads_, arrays, bn_.relu != 0);
    inference.run({mean, var, weight, bias, bn_.eps});
  });
  return ONEPASS_OK;
}

std::int32_t Call::backward() {
  const std::size_t n = layout_.channels;
  const bool frozen = bn_.var;
  double* const mean = frozen ? load(bn_.mean) : bn_.batch_mean;
  double* const invstd = frozen ? load(bn_.var) : bn_.batch_invstd;
  if (frozen) kernels_->invert_deviation(invstd, n, bn_.eps);
  double *const weight_grad = load(nullptr), *const bias_grad = load(nullptr);
  run(Operation::backward, [&](auto& batch_norm) noexcept {
    const Statistics statistics{mean, invstd};
    const Gradients gradients{weight_grad, bias_grad};
    if (frozen) {
      batch_norm.infer_backward(statistics, gradients);
    } else {
      batch_norm.backward(statistics, gradients);
    }
  });
  store({weight_grad, n}, bn_.weight_grad);
  store({bias_grad, n}, bn_.bias_grad);
  return ONEPASS_OK;
}

std::int32_t call(const onepass_batch_norm* bn, Operation operation,
                  std::int32_t (Call::*body)()) noexcept {
  return guarded([&] {
    Call made;
    const std::int32_t code = made.read(bn, operation);
    return code == ONEPASS_OK ? (made.*body)() : code;
  });
}

}  // namespace
}  // namespace onepass::capi

int32_t onepass_batch_norm_train(const onepass_batch_norm* bn) {
  using namespace onepass::capi;
  return call(bn, onepass::Operation::train, &Call::train);
}
int32_t onepass_batch_norm_infer(const onepass_batch_norm* bn) {
  using namespace onepass::capi;
  return call(bn, onepass::Operation::infer, &Call::infer);
}
int32_t onepass_batch_norm_backward(const onepass_batch_norm* bn) {
  using namespace onepass::capi;
  return call(bn, onepass::Operation::backward, &Call::backward);
}
