// Stores that bypass the caches, for an output that would be evicted before anybody reads it: an
// ordinary store first reads the line that it overwrites.
#pragma once

#include <algorithm>
#include <cstddef>

#include "onepass/panels.hpp"
#include "onepass/update.hpp"

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace onepass::inline ONEPASS_ISA {

// Copies whole cache lines to a line's start, bypassing the caches where the processor can.
template <class T>
inline void stream_lines(T* to, const T* from, std::size_t n) noexcept {
#if defined(__AVX512F__)
  for (std::size_t i = 0; i < n; i += 64 / sizeof(T)) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
  }
#elif defined(__SSE2__)
  for (std::size_t i = 0; i < n; i += 16 / sizeof(T)) {
    const auto* quarter = reinterpret_cast<const __m128i*>(from + i);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_load_si128(quarter));
  }
#else
  std::copy_n(from, n, to);
#endif
}

// Waits for streamed stores, which are not ordered with others: they must be done before another
// thread is told of them.
inline void finish_streaming() noexcept {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Writes n elements, from element i in column j on. Those of 16 bits are written tile by tile.
template <class T, class Element>
[[gnu::always_inline]] inline void write_run(T* to, std::size_t i, std::size_t j, std::size_t n,
                                             const Element& element) noexcept {
  if constexpr (is_narrow<T>) {
    element.write(to, i, j, n);
  } else {
#pragma omp simd
    for (std::size_t k = 0; k < n; ++k) to[k] = element(i + k, j + k);
  }
}

// Streams the rows of a panel, two cache lines at a time: their values stay in registers, and with
// more lines at once stores wait for stores. If rows are contiguous, the line that a row ends in is
// streamed when the next row has completed it. Measured: bench/NOTES.md.
template <class T, class ElementsOf>
inline void stream_rows(T* out, const Panel& panel, const ElementsOf& elements_of) noexcept {
  constexpr std::size_t line = cache_line / sizeof(T), tile = 2 * line;
  const std::size_t width = panel.width;
  const bool contiguous = panel.stride == width && width >= line;
  alignas(cache_line) T shared_line[line];
  std::size_t begun = 0;  // elements of shared_line that are written
  for (std::size_t r = 0; r < panel.rows; ++r) {
    const auto element = elements_of(r * panel.channel_step);
    const std::size_t row = r * panel.stride;
    std::size_t j = elements_to_alignment(out + row, width);
    write_run(begun > 0 ? shared_line + begun : out + row, row, 0, j, element);
    if (begun > 0) stream_lines(out + row - begun, shared_line, line);
    const auto stream_next = [&](std::size_t n) {
      alignas(cache_line) T buffer[tile];
      write_run(buffer, row + j, j, n, element);
      stream_lines(out + row + j, buffer, n);
      j += n;
    };
    while (width - j >= tile) stream_next(tile);
    if (width - j >= line) stream_next(line);
    begun = contiguous && r + 1 < panel.rows ? width - j : 0;
    write_run(begun > 0 ? shared_line : out + row + j, row + j, j, width - j, element);
  }
  finish_streaming();
}

// The same for elements of 16 bits. They are computed in tiles wherever a line begins, because
// short runs up to the next line would take longer than the rest, and are staged until many lines
// are whole: a line that is read back right after stores that straddle it waits for these.
template <class T, class ElementsOf>
inline void stream_narrow_rows(T* out, const Panel& panel, const ElementsOf& elements_of) noexcept {
  constexpr std::size_t line = cache_line / sizeof(T), tile = 4 * line;
  constexpr std::size_t most = 8 * tile;
  const std::size_t width = panel.width;
  const bool contiguous = panel.stride == width;
  alignas(cache_line) T staged[most + tile];
  std::size_t begun = 0;  // elements that are staged
  for (std::size_t r = 0; r < panel.rows; ++r) {
    const auto element = elements_of(r * panel.channel_step);
    const std::size_t row = r * panel.stride;
    std::size_t j = 0;
    if (begun == 0) {
      j = elements_to_alignment(out + row, width);
      write_run(out + row, row, 0, j, element);
    }
    const auto stream_staged = [&] {
      const std::size_t whole = begun / line * line;
      stream_lines(out + row + j - begun, staged, whole);
      begun -= whole;
      std::copy_n(staged + whole, begun, staged);
    };
    while (j < width) {
      const std::size_t n = std::min(tile, width - j);
      write_run(staged + begun, row + j, j, n, element);
      begun += n;
      j += n;
      if (begun >= most) stream_staged();
    }
    if (contiguous && r + 1 < panel.rows) continue;
    stream_staged();
    std::copy_n(staged, begun, out + row + width - begun);
    begun = 0;
  }
  finish_streaming();
}

// Writes the rows of a panel: elements_of(channel)(i, column) is element i of `out`. Channels are
// counted from the panel's first.
template <class T, class ElementsOf>
inline void write_rows(T* out, const Panel& panel, bool stream,
                       const ElementsOf& elements_of) noexcept {
  constexpr std::size_t min_aligned = 4 * cache_line / sizeof(T);
  if constexpr (is_narrow<T>) {
    constexpr std::size_t longest_short_row = 256;
    if (stream) return stream_narrow_rows(out, panel, elements_of);
    if (panel.stride == panel.width && panel.width <= longest_short_row) {
      return elements_of(0).write_short_rows(out, panel);
    }
  } else {
    if (stream) return stream_rows(out, panel, elements_of);
  }
  for (std::size_t r = 0; r < panel.rows; ++r) {
    const auto element = elements_of(r * panel.channel_step);
    const std::size_t row = r * panel.stride;
    const bool align = !is_narrow<T> && panel.width >= min_aligned;
    const std::size_t j = align ? elements_to_alignment(out + row, panel.width) : 0;
    if (j > 0) write_run(out + row, row, 0, j, element);
    write_run(out + row + j, row + j, j, panel.width - j, element);
  }
}

}  // namespace onepass::inline ONEPASS_ISA
