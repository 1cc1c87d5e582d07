#include "rows.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <type_traits>

#include "parallel.hpp"

namespace onepass {
namespace {

// Elements that a thread adds up at a time; for fewer than two times as many none is woken.
constexpr std::size_t piece_size = 16384;
constexpr std::size_t tile_size = 256;

// A row of the tensor, and the place of a row of the gradient that is for it.
struct Place {
  std::size_t row, place;
};

// In the order of the rows, and for the same row in the order given. A stable sort by a digit at a
// time: its work grows with the index, and not with the tensor.
std::vector<Place> sorted(std::span<const std::int64_t> index) {
  constexpr std::size_t bits = 8, digits = std::size_t{1} << bits;
  std::vector<Place> places(index.size()), moved(index.size());
  std::size_t largest = 0;
  for (std::size_t i = 0; i < index.size(); ++i) {
    places[i] = {static_cast<std::size_t>(index[i]), i};
    largest = std::max(largest, places[i].row);
  }
  for (std::size_t shift = 0; shift < 8 * sizeof largest && largest >> shift != 0; shift += bits) {
    const auto digit = [=](const Place& each) { return each.row >> shift & (digits - 1); };
    std::array<std::size_t, digits + 1> begin{};
    for (const Place& each : places) ++begin[digit(each) + 1];
    for (std::size_t k = 1; k < digits; ++k) begin[k] += begin[k - 1];
    for (const Place& each : places) moved[begin[digit(each)]++] = each;
    places.swap(moved);
  }
  return places;
}

template <class T>
void copy_or_add(T* to, const T* from, std::size_t n, bool is_first) noexcept {
  if (is_first) {
    std::copy_n(from, n, to);
  } else {
    for (std::size_t i = 0; i < n; ++i) to[i] += from[i];
  }
}

// Adds up rows of a gradient, at these places.
template <class T>
void add_up(const Stored& grad, std::span<const Place> places, std::size_t width, T* sum) noexcept {
  for (const Place& each : places) {
    const std::size_t first = each.place * width;
    const bool is_first = &each == places.data();
    if (!grad.codec) {
      copy_or_add(sum, static_cast<const T*>(grad.data) + first, width, is_first);
      continue;
    }
    T opened[tile_size];
    for (std::size_t i = 0; i < width; i += tile_size) {
      const std::size_t n = std::min(width - i, tile_size);
      if constexpr (std::is_same_v<T, float>) {
        grad.codec->open(grad, first + i, n, opened);
      } else {
        grad.codec->open_f64(grad, first + i, n, opened);
      }
      copy_or_add(sum + i, opened, n, is_first);
    }
  }
}

}  // namespace

void Rows::join(Tensor& tensor, int threads) {
  if (std::adjacent_find(index.begin(), index.end(), std::greater_equal<>()) == index.end()) return;
  const std::vector<Place> places = sorted(index);
  std::vector<std::size_t> begin;  // of each row's places
  index.clear();
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (i > 0 && places[i].row == places[i - 1].row) continue;
    begin.push_back(i);
    index.push_back(static_cast<std::int64_t>(places[i].row));
  }
  begin.push_back(places.size());
  sums = std::make_unique_for_overwrite<std::byte[]>(elements() * tensor.item_size);
  const Stored grad = tensor.streams.grad;
  const auto add_all = [&]<class T>(T* to) noexcept {
    const std::size_t at_a_time =
        std::max<std::size_t>(1, piece_size / std::max<std::size_t>(1, width));
    const std::size_t pieces = (index.size() + at_a_time - 1) / at_a_time;
    const bool is_small = places.size() * width < 2 * piece_size;
    parallel_for(pieces, is_small ? 1 : threads, [&](std::size_t piece) noexcept {
      const std::size_t end = std::min((piece + 1) * at_a_time, index.size());
      for (std::size_t k = piece * at_a_time; k < end; ++k) {
        const std::span<const Place> of_one(places.data() + begin[k], begin[k + 1] - begin[k]);
        add_up<T>(grad, of_one, width, to + k * width);
      }
    });
  };
  if (tensor.item_size == sizeof(double)) {
    add_all(reinterpret_cast<double*>(sums.get()));
  } else {
    add_all(reinterpret_cast<float*>(sums.get()));
  }
  tensor.streams.grad = {sums.get()};
}

}  // namespace onepass
