#include "shapes.hpp"

#include <algorithm>

namespace onepass {
namespace {

// The bits of sums over rows and columns depend on these: elements of a tile's line, lines of a
// tile at least, its elements at least, and strips of lines at most.
constexpr std::size_t most_of_line = 2048, least_lines = 64, least_elements = 16384,
                      most_strips = 64;
constexpr std::size_t cache_line = 64;

constexpr std::size_t divide_up(std::size_t a, std::size_t b) noexcept {
  return (a + b - 1) / b;
}

// Where the last axis of a matrix has length 1, its first one takes the place of that, because a
// line should be long.
Matrix matrix_of(const AxesOf& axes) {
  const std::size_t n = axes.sizes.size();
  const std::size_t rows = axes.sizes[n - 2], columns = axes.sizes[n - 1];
  std::size_t batch = 1;
  for (std::size_t k = 0; k + 2 < n; ++k) batch *= axes.sizes[k];
  Matrix m;
  if (axes.f_order) {
    m = {.lines = columns, .length = rows, .width = batch, .rows_along = false};
  } else if (columns == 1) {
    m = {.groups = batch, .lines = 1, .length = rows, .rows_along = false};
  } else {
    m = {.groups = batch, .lines = rows, .length = columns};
  }
  m.segment = std::min(m.length, std::max<std::size_t>(1, most_of_line / m.width));
  m.n_segments = divide_up(m.length, m.segment);
  m.strip = std::max({least_lines, divide_up(least_elements, m.segment * m.width),
                      divide_up(m.lines, most_strips)});
  m.n_strips = divide_up(m.lines, m.strip);
  m.n_tiles = m.groups * m.n_strips * m.n_segments;
  const std::size_t elements = std::min(m.strip, m.lines) * m.segment * m.width;
  m.tiles_at_once = divide_up(least_elements, elements);
  return m;
}

}  // namespace

void ShapedState::lay_out(const AxesOf& axes, std::span<const Shape> shapes,
                          std::size_t item_size) {
  if (std::ranges::find(shapes, Shape::rows) != shapes.end()) {
    matrix_ = matrix_of(axes);
    const std::size_t along = matrix_.groups * matrix_.lines * matrix_.width,
                      across = matrix_.groups * matrix_.length * matrix_.width;
    rows_.resize((matrix_.rows_along ? along : across) * item_size);
    columns_.resize((matrix_.rows_along ? across : along) * item_size);
    matrix_.opened_rows = rows_.data();
    matrix_.opened_columns = columns_.data();
  }
  if (std::ranges::find(shapes, Shape::axes) != shapes.end()) {
    // In the order of memory, but axes of length 1 come first: the last one should be long.
    sizes_.clear(), places_.clear();
    for (const bool is_long : {false, true}) {
      for (std::size_t i = 0; i < axes.sizes.size(); ++i) {
        const std::size_t axis = !axes.order.empty() ? axes.order[i]
                                 : axes.f_order      ? axes.sizes.size() - 1 - i
                                                     : i;
        if ((axes.sizes[axis] != 1) != is_long) continue;
        sizes_.push_back(axes.sizes[axis]);
        std::size_t place = 0;
        for (std::size_t before = 0; before < axis; ++before) place += axes.sizes[before];
        places_.push_back(place);
      }
    }
    axes_ = {.rank = sizes_.size(), .sizes = sizes_.data(), .places = places_.data()};
    for (const std::size_t size : sizes_) axes_.total += size;
    n_copies_ = 0;
  }
}

void ShapedState::prepare(const AxesOf& axes, std::span<const Shape> shapes, std::size_t item_size,
                          int threads, Streams& streams) {
  if (axes != known_ || item_size != item_size_) {
    known_ = {};  // until it is laid out
    lay_out(axes, shapes, item_size);
    known_ = axes;
    item_size_ = item_size;
  }
  const auto n_copies = static_cast<std::size_t>(threads);
  if (axes_.rank != 0 && n_copies_ < n_copies) {
    const std::size_t bytes = divide_up(axes_.total * item_size, cache_line) * cache_line;
    n_copies_ = 0;
    numbers_.resize(n_copies * bytes);
    copies_ = std::make_unique<Axes::Copy[]>(n_copies + 1);  // behind the last: never used
    for (std::size_t i = 0; i < n_copies; ++i) copies_[i].numbers = &numbers_[i * bytes];
    axes_.copies = copies_.get();
    n_copies_ = n_copies;
  }
  for (std::size_t k = 0; k < shapes.size(); ++k) {
    if (shapes[k] == Shape::axes) {
      streams.state[k].axes = &axes_;
    } else if (shapes[k] != Shape::param) {
      streams.state[k].matrix = &matrix_;
    }
  }
}

std::size_t ShapedState::n_sums() const noexcept {
  const Matrix& m = matrix_;
  return m.groups * m.width * (m.n_segments * m.lines + m.n_strips * m.length);
}

void ShapedState::use(double* sums) noexcept {
  matrix_.along = sums;
  matrix_.across = sums + matrix_.n_segments * matrix_.groups * matrix_.lines * matrix_.width;
}

}  // namespace onepass
