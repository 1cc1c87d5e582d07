#include "values.hpp"

#include <utility>

namespace onepass {
namespace {

template <class T>
void load_as(const char* first, std::ptrdiff_t stride, std::size_t n, double* to) noexcept {
  if (stride == sizeof(T)) {  // the usual case, and many times as fast
    const T* const values = reinterpret_cast<const T*>(first);
#pragma omp simd
    for (std::size_t c = 0; c < n; ++c) to[c] = static_cast<double>(values[c]);
    return;
  }
  for (std::size_t c = 0; c < n; ++c) {
    const char* at = first + static_cast<std::ptrdiff_t>(c) * stride;
    to[c] = static_cast<double>(*reinterpret_cast<const T*>(at));
  }
}

}  // namespace

void* Workspace::take_bytes(std::size_t bytes, std::size_t past) {
  bytes = (bytes + line - 1) / line * line;
  if (bytes > left_) {
    const std::size_t size = std::max(bytes, min_block);
    void* const made = ::operator new(sizeof(Block) + size, std::align_val_t{line});
    last_ = new (made) Block{last_};
    next_ = reinterpret_cast<std::byte*>(last_ + 1);
    left_ = size;
  }
  std::byte* const taken = next_;
  next_ += bytes;
  left_ -= bytes;
  return taken + past;
}

void Workspace::free_blocks() noexcept {
  while (last_) ::operator delete(std::exchange(last_, last_->before), std::align_val_t{line});
}

void PerChannel::load(double* to, std::size_t n, std::size_t begin) const noexcept {
  if (!data) {
    std::fill_n(to, n, value);
    return;
  }
  const char* first = static_cast<const char*>(data) + static_cast<std::ptrdiff_t>(begin) * stride;
  if (is_float) {
    load_as<float>(first, stride, n, to);
  } else {
    load_as<double>(first, stride, n, to);
  }
}

}  // namespace onepass
