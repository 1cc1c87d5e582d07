#include "step.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dispatch.hpp"
#include "parallel.hpp"
#include "pieces.hpp"
#include "rows.hpp"

namespace onepass {
namespace {

// Elements that a thread takes at a time. Measured: bench/NOTES.md.
constexpr std::size_t piece_size = 16384;
// Rows by which an update of rows prefetches ahead.
constexpr std::size_t rows_ahead = 4;
constexpr std::size_t bytes_per_element = 16;  // a float, its gradient and two states

constexpr std::size_t cache_line = 64;

// By how many elements a tensor's first piece is shorter, so that all later pieces begin on cache
// lines of the parameter. Where the tensor is rounded, pieces begin with blocks instead.
std::size_t lead(const Tensor& tensor) noexcept {
  if (tensor.streams.random) return 0;
  return reinterpret_cast<std::uintptr_t>(tensor.streams.param.data) % cache_line /
         tensor.item_size;
}

Range piece(const Tensor& tensor, std::size_t index) noexcept {
  const std::size_t skip = lead(tensor);
  return {index == 0 ? 0 : index * piece_size - skip,
          std::min((index + 1) * piece_size - skip, tensor.size)};
}

// Calls body(tensor, range) for all elements of all tensors, however they are cut.
template <class Body>
void for_each_range(std::span<Tensor> tensors, int threads, const Body& body) noexcept {
  if (threads <= 1 || total_elements(tensors) < 2 * min_elements_per_thread) {
    for (const Tensor& tensor : tensors) {
      if (tensor.size) body(tensor, Range{0, tensor.size});
    }
    return;
  }
  for_each_piece(
      tensors, threads,
      [](const Tensor& t) noexcept { return t.size ? divide_up(t.size + lead(t), piece_size) : 0; },
      [&](const Tensor& tensor, std::size_t index, std::size_t) noexcept {
        body(tensor, piece(tensor, index));
      });
}

// Returns how many elements of the rows' gradient are a piece. Where rows are short, a piece is
// some of them.
std::size_t piece_of(const RowIndex& rows) noexcept {
  return rows.width < piece_size ? piece_size / rows.width * rows.width : piece_size;
}

std::size_t count_pieces(const Tensor& tensor, const Rows& rows) noexcept {
  if (!tensor.size) return 0;
  return rows.are_some ? divide_up(tensor.size, piece_of(rows.view()))
                       : divide_up(tensor.size + lead(tensor), piece_size);
}

std::size_t grad_size(const Tensor& tensor) noexcept {
  const Codec* const codec = tensor.streams.grad.codec;
  return codec ? codec->item_size : tensor.item_size;
}

std::size_t place_of(const RowIndex& rows, std::size_t k) noexcept {
  return static_cast<std::size_t>(rows.rows[k]);
}

// Asks for the next row of an array early, for the processor cannot know where it is. Of a long row
// it finds the rest itself. (Inlined, because GCC leaves out a call that only prefetches.)
[[gnu::always_inline]] inline void prefetch_row(const Stored& array, std::size_t item_size,
                                                const RowIndex& rows, std::size_t k) noexcept {
#if defined(__GNUC__)
  constexpr std::size_t most_bytes = 512;
  const std::size_t bytes = (array.codec ? array.codec->item_size : item_size) * rows.width;
  const char* const row = static_cast<const char*>(array.data) + place_of(rows, k) * bytes;
  for (std::size_t i = 0; array.data && i < std::min(bytes, most_bytes); i += cache_line) {
    __builtin_prefetch(row + i);
  }
#else
  (void)array, (void)item_size, (void)rows, (void)k;
#endif
}

// Steps the rows whose gradients are in this range: those that follow each other in the tensor at
// once. The gradient's address is shifted by as much as its row and the tensor's lie apart.
void step_rows(const Tensor& tensor, const RowIndex& rows, const Range& range) noexcept {
  Streams streams = tensor.streams;
  streams.prefetch_ahead = false;
  const auto grad = reinterpret_cast<std::uintptr_t>(streams.grad.data);
  std::size_t k = range.begin / rows.width;
  for (std::size_t begin = range.begin, end = 0; begin < range.end; begin = end) {
    if (const std::size_t next = k + rows_ahead; next < rows.rows.size()) {
      prefetch_row(streams.param, tensor.item_size, rows, next);
      prefetch_row(streams.copy, tensor.item_size, rows, next);
      for (const Stored& state : streams.state) prefetch_row(state, tensor.item_size, rows, next);
    }
    const std::size_t first = place_of(rows, k) * rows.width + begin - k * rows.width;
    do {
      end = ++k * rows.width;
    } while (end < range.end && rows.rows[k] == rows.rows[k - 1] + 1);
    end = std::min(end, range.end);
    streams.grad.data = reinterpret_cast<void*>(grad + (begin - first) * grad_size(tensor));
    tensor.kernel(streams, first, first + end - begin, tensor.scalars);
  }
}

Range piece_of_rows(const Tensor& tensor, const RowIndex& rows, std::size_t index) noexcept {
  const std::size_t begin = index * piece_of(rows);
  return {begin, std::min(begin + piece_of(rows), tensor.size)};
}

// Fills `sums` block by block.
void sum_squares(std::span<Tensor> tensors, std::span<double> sums, int threads,
                 double unit) noexcept {
  const bool prefetch_ahead = total_elements(tensors) * sizeof(float) > far_for_sums;
  for_each_piece(tensors, threads, count_blocks,
                 [&](const Tensor& tensor, std::size_t index, std::size_t among_all) noexcept {
                   const Range range = block(tensor, index);
                   sums[among_all] = tensor.squares(tensor.streams.grad, range.begin, range.end,
                                                    unit, prefetch_ahead);
                 });
}

double total_of(std::span<const double> sums) noexcept {
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

// The norm by `sum(unit)`, which returns the sum of all squares in units of 1 / unit. `rescales`:
// whether that may be out of range.
template <class Sum>
Norm norm_by(std::span<Tensor> tensors, std::span<const double> sums, bool rescales,
             const Sum& sum) noexcept(noexcept(sum(1))) {
  double unit = 1, total = sum(unit);
  if (rescales && (total < smallest_sum || !std::isfinite(total))) {
    unit = total < smallest_sum ? small_unit : large_unit;
    total = sum(unit);
  }
  Norm found{std::sqrt(total) / unit, unit, nullptr, std::isfinite(total)};
  if (found.is_finite) return found;
  const auto first =
      std::find_if(sums.begin(), sums.end(), [](double s) { return !std::isfinite(s); });
  if (first != sums.end()) {
    found.nonfinite = &tensor_of(tensors, static_cast<std::size_t>(first - sums.begin()));
  }
  return found;
}

// Whether an update of so many bytes comes from beyond the caches of a core.
bool is_far(std::size_t bytes) noexcept {
  if (bytes <= far_for_sums) return false;  // a small step need not look at the limit
  static const std::size_t far = far_for_updates();
  return bytes > far;
}

}  // namespace

std::size_t total_elements(std::span<const Tensor> tensors) noexcept {
  std::size_t total = 0;
  for (const Tensor& tensor : tensors) total += tensor.size;
  return total;
}

void prefetch_if_far(std::span<Tensor> tensors) noexcept {
  const bool prefetch_ahead = is_far(total_elements(tensors) * bytes_per_element);
  for (Tensor& tensor : tensors) tensor.streams.prefetch_ahead = prefetch_ahead;
}

void step(std::span<Tensor> tensors, int threads) noexcept {
  prefetch_if_far(tensors);
  for_each_range(tensors, threads, [](const Tensor& tensor, const Range& range) noexcept {
    tensor.kernel(tensor.streams, range.begin, range.end, tensor.scalars);
  });
}

void step_rows(Tensor& tensor, const RowIndex& rows, int threads) noexcept {
  for_each_piece(
      {&tensor, 1}, threads,
      [&](const Tensor& of) noexcept { return divide_up(of.size, piece_of(rows)); },
      [&](const Tensor& of, std::size_t index, std::size_t) noexcept {
        step_rows(of, rows, piece_of_rows(of, rows, index));
      });
}

void step(std::span<Tensor> tensors, std::span<const Rows> rows, int threads) noexcept {
  if (rows.empty()) return step(tensors, threads);
  const auto rows_of = [&](const Tensor& tensor) noexcept -> const Rows& {
    return rows[static_cast<std::size_t>(&tensor - tensors.data())];
  };
  prefetch_if_far(tensors);
  for_each_piece(
      tensors, threads,
      [&](const Tensor& tensor) noexcept { return count_pieces(tensor, rows_of(tensor)); },
      [&](const Tensor& tensor, std::size_t index, std::size_t) noexcept {
        if (const Rows& own = rows_of(tensor); own.are_some) {
          step_rows(tensor, own.view(), piece_of_rows(tensor, own.view(), index));
        } else {
          const Range range = piece(tensor, index);
          tensor.kernel(tensor.streams, range.begin, range.end, tensor.scalars);
        }
      });
}

void zero_gradients(std::span<Tensor> tensors, int threads) noexcept {
  for_each_range(tensors, threads, [](const Tensor& tensor, const Range& range) noexcept {
    if (!tensor.streams.zero_grad) return;
    const std::size_t item_size = grad_size(tensor);
    std::memset(static_cast<char*>(tensor.streams.grad.data) + range.begin * item_size, 0,
                (range.end - range.begin) * item_size);
  });
}

void measure(std::span<Tensor> tensors, const Measuring* how, std::span<double> sums,
             int threads) noexcept {
  for_each_piece(tensors, threads, count_blocks,
                 [&](const Tensor& tensor, std::size_t index, std::size_t among_all) noexcept {
                   const Measure sum = how[&tensor - tensors.data()].measure;
                   const Range range = block(tensor, index);
                   if (!sum) return;
                   sum(tensor.streams, range.begin, range.end, tensor.scalars,
                       &sums[among_all * max_sums]);
                 });
}

void measure_blocks(const Tensor& tensor, const Measuring& how, std::size_t first,
                    std::span<double> sums, int threads) noexcept {
  parallel_for(sums.size() / max_sums, threads, [&](std::size_t i) noexcept {
    const Range range = block(tensor, first + i);
    how.measure(tensor.streams, range.begin, range.end, tensor.scalars, &sums[i * max_sums]);
  });
}

void sum_tiles(std::span<Tensor> tensors, const ShapedState* shaped, int threads) noexcept {
  prefetch_if_far(tensors);
  const auto shaped_of = [&](const Tensor& tensor) -> const ShapedState& {
    return shaped[&tensor - tensors.data()];
  };
  for_each_piece(
      tensors, threads,
      [&](const Tensor& tensor) noexcept -> std::size_t {
        const ShapedState& own = shaped_of(tensor);
        if (!own.shaping || !own.shaping->sum) return 0;
        return divide_up(own.matrix().n_tiles, own.matrix().tiles_at_once);
      },
      [&](const Tensor& tensor, std::size_t index, std::size_t) noexcept {
        const ShapedState& own = shaped_of(tensor);
        const std::size_t first = index * own.matrix().tiles_at_once;
        const std::size_t last = std::min(first + own.matrix().tiles_at_once, own.matrix().n_tiles);
        own.shaping->sum(tensor.streams, first, last, tensor.scalars);
      });
}

std::size_t count_blocks(const Tensor& tensor) noexcept {
  return divide_up(tensor.size, norm_block);
}

std::size_t total_blocks(std::span<const Tensor> tensors) noexcept {
  std::size_t blocks = 0;
  for (const Tensor& tensor : tensors) blocks += count_blocks(tensor);
  return blocks;
}

Norm norm(std::span<Tensor> tensors, std::span<double> sums, int threads) noexcept {
  const bool doubles = std::any_of(tensors.begin(), tensors.end(),
                                   [](const Tensor& t) { return t.item_size == sizeof(double); });
  return norm_by(tensors, sums, doubles, [&](double unit) noexcept {
    sum_squares(tensors, sums, threads, unit);
    return total_of(sums);
  });
}

Norm norm(std::span<Tensor> tensors, std::span<double> sums, int threads,
          const Exchange& exchange) {
  return norm_by(tensors, sums, true, [&](double unit) {
    sum_squares(tensors, sums, threads, unit);
    return total_of(exchange(sums));
  });
}

}  // namespace onepass
