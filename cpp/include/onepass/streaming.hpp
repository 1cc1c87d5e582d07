// Stores that go past the caches, for an output too large to be found there again: a store that
// goes through them first reads the line that it overwrites.
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

// Streamed stores are not ordered with others: before another thread is told, they must be done.
inline void finish_streaming() noexcept {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Writes the rows of a panel: elements_of(channel)(i, column) is element i of `out`, the channel
// counted from the panel's first. To stream, a row goes in tiles of two lines, whose values stay in
// registers: more at once, and stores wait for stores. Measured: bench/NOTES.md.
template <class T, class ElementsOf>
inline void write_rows(T* out, const Panel& panel, bool stream,
                       const ElementsOf& elements_of) noexcept {
  constexpr std::size_t line = cache_line / sizeof(T), tile = 2 * line;
  constexpr std::size_t min_aligned = 4 * line;
  for (std::size_t r = 0; r < panel.rows; ++r) {
    const auto element = elements_of(r * panel.channel_step);
    const auto write = [&](T* to, std::size_t i, std::size_t j, std::size_t n) {
#pragma omp simd
      for (std::size_t k = 0; k < n; ++k) to[k] = element(i + k, j + k);
    };
    const std::size_t row = r * panel.stride;
    const bool align = stream || panel.width >= min_aligned;
    std::size_t j = align ? elements_to_alignment(out + row, panel.width) : 0;
    if (j > 0) write(out + row, row, 0, j);
    if (stream) {
      alignas(cache_line) T buffer[tile];
      const auto stream_next = [&](std::size_t n) {
        write(buffer, row + j, j, n);
        stream_lines(out + row + j, buffer, n);
        j += n;
      };
      while (panel.width - j >= tile) stream_next(tile);
      if (const std::size_t n = (panel.width - j) / line * line) stream_next(n);
    }
    if (j < panel.width) write(out + row + j, row + j, j, panel.width - j);
  }
  if (stream) finish_streaming();
}

}  // namespace onepass::inline ONEPASS_ISA
