// Memory that two arrays of a call share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

namespace onepass {

// Sorts ranges of addresses, and returns two that overlap where one of them is written; or nulls. A
// Range has `begin`, `end` (behind the last byte) and `written()`.
template <class Range>
std::pair<const Range*, const Range*> find_overlap(std::span<Range> ranges) {
  const auto before = [](const Range& a, const Range& b) { return a.begin < b.begin; };
  if (!std::is_sorted(ranges.begin(), ranges.end(), before)) {
    std::sort(ranges.begin(), ranges.end(), before);
  }
  const Range* farthest = nullptr;          // of all so far
  const Range* farthest_written = nullptr;  // of those that are written
  for (const Range& range : ranges) {
    const bool written = range.written();
    const Range* const other = written ? farthest : farthest_written;
    if (other && range.begin < other->end) return {other, &range};
    if (!farthest || range.end > farthest->end) farthest = &range;
    if (written && (!farthest_written || range.end > farthest_written->end)) {
      farthest_written = &range;
    }
  }
  return {};
}

}  // namespace onepass
