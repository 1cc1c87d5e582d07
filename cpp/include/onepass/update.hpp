// THE loop: one pass over a parameter, its gradient, its state and its average. It knows no rule.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

#include "onepass/formats.hpp"
#include "onepass/rule.hpp"
#include "onepass/shaped.hpp"

namespace onepass::inline ONEPASS_ISA {

// Elements per tile (where something is rounded, a tile is a block), and how many bytes ahead of a
// tile the loop prefetches. Both measured: bench/NOTES.md.
inline constexpr std::size_t tile_size = 64;
inline constexpr std::size_t prefetch_bytes = 1024;
inline constexpr std::size_t min_elements_to_align = 512;
inline constexpr std::size_t cache_line = 64;
// In every step of this many, subnormal numbers in state and average become zero. Done in each
// step, it would cost Adam 12 to 35 % (bench/NOTES.md).
inline constexpr std::uint64_t flush_every = 64;

// What surrounds the rule in a step, whichever it is, in this order: the gradient is scaled and
// clipped, the weights decay, the rule; then the weights that decay after it do so, Lookahead
// brings them back towards the slow weights, and their average moves.
template <class T>
struct Stages {
  T scale{1};               // the gradient's factor: clip coefficient / grad_scale, < 0 to maximize
  double weight_decay = 0;  // coupled: grad += weight_decay * param, rounded to T
  T shrink{1};              // decoupled: param *= shrink, which is 1 - lr * decay
  T max_value = std::numeric_limits<T>::infinity();  // the gradient's elements are clipped to it
  double average_weight = 0, average_rest = 1;       // of the weights and of the old average
  bool flushes = false;  // whether subnormal numbers in state and average become zero
  T late_shrink{1};  // proximal decay: param *= late_shrink after the rule, 1 / (1 + lr * decay)
  T cautious{0};     // lr * decay where only those weights decay that the rule brings nearer to 0
  bool begins_slow = false;  // whether the slow weights become those that the step begins with
  T slow_weight{0};  // 0, or where to, from the slow weights to the new ones, the weights move
};

// The number of elements before `p` reaches a cache line, at most n.
template <class T>
inline std::size_t elements_to_alignment(const T* p, std::size_t n) noexcept {
  const std::size_t past = reinterpret_cast<std::uintptr_t>(p) % cache_line;
  return past ? std::min(n, (cache_line - past) / sizeof(T)) : 0;
}

// Prefetches what lies ahead of elements [begin, begin + n). Square root and division fill the
// core's reorder buffer, so that too few loads are in flight to keep the memory busy; prefetches
// add some. The address may lie beyond the end: a prefetch never faults.
//
// What only prefetches is inlined by force: GCC leaves out a call of it, as of any function without
// an effect.
[[gnu::always_inline]] inline void prefetch(const void* data, std::size_t begin, std::size_t n,
                                            std::size_t item_size) noexcept {
#if defined(__GNUC__)
  const char* const p = static_cast<const char*>(data) + begin * item_size + prefetch_bytes;
  for (std::size_t i = 0; i < n * item_size; i += cache_line) __builtin_prefetch(p + i);
#else
  (void)data, (void)begin, (void)n, (void)item_size;
#endif
}
template <class T>
[[gnu::always_inline]] inline void prefetch(const Stored& array, std::size_t begin,
                                            std::size_t n) noexcept {
  prefetch(array.data, begin, n, item_size<T>(array));
}

// Sets subnormal numbers to zero. An average that shrinks towards zero would stay subnormal for
// ever, and processors take many times as long over such numbers. This is a loop of its own,
// because the compiler makes the rule's loop slower where it is a part of that.
template <class T>
[[gnu::noinline]] void flush(T* values, std::size_t n) noexcept {
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) {  // NaN stays NaN
    values[i] = std::fabs(values[i]) < std::numeric_limits<T>::min() ? T(0) : values[i];
  }
}

// Which weight decay the loop of the rule does. Any other comes before it, in prepare_tile.
enum class Decay { none, coupled, decoupled };

// The stages before the loop of the rule: scales and clips the gradient, and does the weight decay
// that the loop itself does not do. NaN stays NaN.
template <Decay in_loop, class T>
inline void prepare_tile(T* prepared, const T* grad, T* param, std::size_t n,
                         const Stages<T>& stages) noexcept {
  const T max_value = stages.max_value, shrink = stages.shrink;
  const T weight_decay = static_cast<T>(stages.weight_decay);
  T scale = stages.scale;
  if (max_value < std::numeric_limits<T>::infinity()) {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) {
      const T g = scale * grad[i];
      prepared[i] = g > max_value ? max_value : g < -max_value ? -max_value : g;
    }
    grad = prepared;
    scale = 1;
  }
  if (in_loop != Decay::coupled && stages.weight_decay != 0) {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) prepared[i] = scale * grad[i] + weight_decay * param[i];
  } else if (grad != prepared) {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) prepared[i] = scale * grad[i];
  }
  if (in_loop != Decay::decoupled && shrink != 1) {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) param[i] *= shrink;
  }
}

// Whether prepare_tile has anything to do.
template <Decay in_loop, class T>
inline bool must_prepare(const Stages<T>& stages) noexcept {
  return stages.max_value < std::numeric_limits<T>::infinity() ||
         (in_loop != Decay::coupled && stages.weight_decay != 0) ||
         (in_loop != Decay::decoupled && stages.shrink != 1);
}

// The decays that come after the rule: the proximal one, and the cautious one, which takes part of
// the weight that was, `before`, where the rule has moved it towards 0.
template <class T>
[[gnu::noinline]] void decay_late(T* param, const T* before, std::size_t n,
                                  const Stages<T>& stages) noexcept {
  const T late_shrink = stages.late_shrink, cautious = stages.cautious;
  if (late_shrink != 1) {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) param[i] *= late_shrink;
  }
  if (cautious == 0) return;
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) {
    const T was = before[i], is = param[i];
    const bool nearer = ((was > 0) & (is < was)) | ((was < 0) & (is > was));
    param[i] = is - (nearer ? cautious * was : T(0));
  }
}

// The end of a round of Lookahead. The slow weights are the parameter then, and are written when
// the next round begins.
template <class T>
[[gnu::noinline]] void look_ahead(T* param, const T* slow, std::size_t n, T weight) noexcept {
#pragma omp simd
  for (std::size_t i = 0; i < n; ++i) param[i] = slow[i] + weight * (param[i] - slow[i]);
}

// The format of a rule's k-th state; NotThere where the rule does not use it. State of another
// shape is always kept in full.
template <class Rule, template <bool> class State, std::size_t k>
using Kept = std::conditional_t<
    !Rule::states[k].used, NotThere,
    std::conditional_t<Rule::states[k].in_full, Plain<typename State<true>::Value>,
                       State<Rule::states[k].has_sign>>>;

// A rule that steps along a direction made of the whole tensor.
template <class Rule>
concept Directed = requires { requires Rule::is_directed; };

template <class Rule, std::size_t k>
constexpr bool has_own_shape = Rule::states[k].used && Rule::states[k].shape != Shape::param;

// Reads a rule's k-th state from element `begin` on; a state of another shape, as it was opened.
template <class Rule, template <bool> class State, std::size_t k, class T>
auto reader_of(const Streams& streams, std::size_t begin, const Shaped<Rule, T>& shaped) noexcept {
  if constexpr (has_own_shape<Rule, k>) {
    return typename Plain<T>::Reader{shaped.template values<k>()};
  } else {
    return Kept<Rule, State, k>::reader(streams.state[k], begin);
  }
}

// The same, in the pass that writes: state in place is read by the pointer that it is written by.
// If that were taken from `streams` again, Clang would ask at run time whether the two overlap;
// they do, and so it would run the loop that is not vectorised.
template <class Rule, template <bool> class State, std::size_t k, class T>
auto reader_of(const Streams& streams, std::size_t begin, const Shaped<Rule, T>& shaped,
               [[maybe_unused]] const T* state) noexcept {
  if constexpr (!has_own_shape<Rule, k> && std::is_same_v<Kept<Rule, State, k>, Plain<T>>) {
    return typename Plain<T>::Reader{state};
  } else {
    return reader_of<Rule, State, k>(streams, begin, shaped);
  }
}

// A reader of numbers that stand four to a word (q8.hpp).
template <class Reader>
concept InWords = Reader::in_words;

// Runs the rule over a tile. Reads state by `readers`, and writes it to `state`. `direction`: null
// where the rule is not directed.
template <Decay decay, class Rule, class T, std::size_t... K, class... Reader>
inline void update_tile(T* param, const T* grad, [[maybe_unused]] const T* direction,
                        [[maybe_unused]] T* const* state, std::size_t n, const Rule rule,
                        const T scale, const Stages<T>& stages, std::index_sequence<K...>,
                        const Reader... readers) noexcept {
  [[maybe_unused]] const T weight_decay = static_cast<T>(stages.weight_decay);
  [[maybe_unused]] const T shrink = stages.shrink;
  const auto write = [&]<std::size_t k>([[maybe_unused]] std::size_t i, [[maybe_unused]] T value) {
    constexpr Shape shape = Rule::states[k].shape;
    if constexpr (Rule::states[k].used && shape != Shape::rows && shape != Shape::columns) {
      state[k][i] = value;
    }
  };
  // Always inlined, however large it is, or the loops would not be vectorised.
  const auto step = [&](std::size_t row, std::size_t column) __attribute__((always_inline)) {
    const std::size_t i = row * row_size + column;
    T g = scale * grad[i];
    if constexpr (decay == Decay::coupled) g += weight_decay * param[i];
    [&](auto... values) {
      if constexpr (decay == Decay::decoupled) param[i] *= shrink;
      if constexpr (Directed<Rule>) {
        rule(param[i], g, direction[i], values...);
      } else {
        rule(param[i], g, values...);
      }
      (write.template operator()<K>(i, values), ...);
    }(T(readers(row, column))...);
  };
  // The caller has proved that no two arrays overlap.
  if constexpr (!(InWords<Reader> || ...)) {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) step(0, i);
  } else if (n == block_size) {  // the constants of the loop are made once for four rows
#pragma omp simd
    for (std::size_t i = 0; i < row_size; ++i) {
      step(0, i);
      step(1, i);
      step(2, i);
      step(3, i);
    }
  } else {
    for (std::size_t row = 0; row * row_size < n; ++row) {
      const std::size_t columns = std::min(row_size, n - row * row_size);
#pragma omp simd
      for (std::size_t i = 0; i < columns; ++i) step(row, i);
    }
  }
}

// Moves an average towards the parameter, interpolating from the nearer of the two, in the
// average's type. Where `rest` is 0, nothing of the old average stays, not even a NaN.
template <class Average, class T>
[[gnu::noinline]] void average_tile(Average* average, const T* param, std::size_t n,
                                    const Stages<T>& stages) noexcept {
  const auto weight = static_cast<Average>(stages.average_weight);
  const auto rest = static_cast<Average>(stages.average_rest);
  if (stages.average_rest == 0) {
    std::copy_n(param, n, average);
  } else if (stages.average_weight < stages.average_rest) {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) average[i] += weight * (param[i] - average[i]);
  } else {
#pragma omp simd
    for (std::size_t i = 0; i < n; ++i) average[i] = param[i] - rest * (param[i] - average[i]);
  }
}

// Calls body(average) with the average in its type: of doubles, unless it is to be the parameter's,
// because float32 loses what a step adds to a long average, a part in 10^4 of a small difference.
template <class T, class Body>
inline void with_average(const Streams& streams, const Body& body) noexcept {
  if (streams.average_is_double) {
    body(static_cast<double*>(streams.average));
  } else {
    body(static_cast<T*>(streams.average));
  }
}

// Rounds and writes a block of the state, and of the parameter if that is rounded too, each array
// by random bits of its own. The maximum of a block is a chain of dependent comparisons: the maxima
// of all arrays are computed first, interleaved, and the parameter is written while they arrive.
template <class Rule, template <bool> class State, class T, std::size_t... K>
inline void close_block(const Streams& streams, std::size_t begin, std::size_t n, bool flushes,
                        T (*values)[block_size], const std::uint64_t* keys,
                        std::index_sequence<K...>) noexcept {
  constexpr std::size_t n_states = sizeof...(K);
  const auto bits = [&](std::size_t k) {
    return block_bits(*streams.random, keys[k], streams.first_block + begin / block_size);
  };
  const auto measure = [&]<std::size_t k>() {
    using Codec = Kept<Rule, State, k>;
    if constexpr (!Codec::in_place) {
      if (flushes) flush(values[k], n);
      std::fill(values[k] + n, values[k] + block_size, T(0));
      Codec::measure(values[k], streams.state[k], begin);
    }
  };
  const auto close_state = [&]<std::size_t k>() {
    using Codec = Kept<Rule, State, k>;
    if constexpr (!Codec::in_place) Codec::close(values[k], n, streams.state[k], begin, bits(k));
  };
  (measure.template operator()<K>(), ...);
  close(values[n_states], n, streams.param, begin, bits(n_states));
  (close_state.template operator()<K>(), ...);
}

template <template <bool> class State, Decay decay, class T, class Rule, std::size_t... K>
void update(const Streams& streams, std::size_t begin, std::size_t end, const Rule& rule,
            const Stages<T>& stages, std::index_sequence<K...> all) noexcept {
  constexpr std::size_t n_states = sizeof...(K);
  alignas(cache_line) T scratch[n_states + 1][block_size];
  alignas(cache_line) T opened[block_size], prepared[block_size], before[block_size];
  const bool averages = streams.average && stages.average_weight != 0;
  const bool looks = stages.begins_slow || stages.slow_weight != 0;
  T* slow = looks ? static_cast<T*>(streams.slow) : nullptr;
  const bool prepares = must_prepare<decay>(stages);
  const bool decays_late = stages.late_shrink != 1 || stages.cautious != 0;
  const bool ahead = streams.prefetch_ahead;
  [[maybe_unused]] Shaped<Rule, T> shaped(streams, begin);
  std::uint64_t keys[n_states + 1] = {};  // for the random bits of each state, then the parameter
  for (std::size_t k = 0; streams.random && k <= n_states; ++k) {
    keys[k] = array_key(*streams.random, std::uint64_t{streams.tensor} * (n_states + 1) + k);
  }

  // A short first tile brings every later one onto cache lines: state lies at the parameter's own
  // offset, so all streams align at once.
  const auto* first = static_cast<const T*>(streams.param.data) + begin;
  std::size_t n = !streams.random && end - begin >= min_elements_to_align
                      ? elements_to_alignment(first, end - begin)
                      : 0;
  // To open state of another shape takes longer for each tile.
  constexpr bool is_shaped = Shaped<Rule, T>::has_matrix || Shaped<Rule, T>::has_axes;
  const std::size_t tile = streams.random || is_shaped ? block_size : tile_size;
  if (n == 0) n = std::min(end - begin, tile);

  for (; begin < end; begin += n, n = std::min(end - begin, tile)) {
    const auto open_state = [&]<std::size_t k>() -> T* {
      using Codec = Kept<Rule, State, k>;
      if constexpr (!Rule::states[k].used) {
        return nullptr;
      } else if constexpr (has_own_shape<Rule, k>) {
        return scratch[k];
      } else {
        if (ahead) [[unlikely]]
          prefetch(streams.state[k].data, begin, n, sizeof(typename Codec::Item));
        if constexpr (Codec::in_place) return static_cast<T*>(streams.state[k].data) + begin;
        return scratch[k];
      }
    };
    T* const state[] = {open_state.template operator()<K>()...};
    T* param = open(streams.param, begin, n, scratch[n_states]);
    if constexpr (std::is_same_v<T, float>) {
      if (streams.follows) [[unlikely]]
        streams.copy.codec->follow(streams.copy, begin, n, param);
    }
    if (stages.begins_slow) [[unlikely]]
      std::memcpy(slow + begin, param, n * sizeof(T));
    if (ahead) [[unlikely]]
      prefetch<T>(streams.grad, begin, n);
    const T* grad = open(streams.grad, begin, n, opened);
    if (prepares) [[unlikely]]
      prepare_tile<decay>(prepared, grad, param, n, stages);
    if (stages.cautious != 0) [[unlikely]]
      std::memcpy(before, param, n * sizeof(T));
    shaped.open(n);
    const T* direction = nullptr;
    if constexpr (Directed<Rule>) {
      static_assert(n_states <= direction_place);
      if (ahead) [[unlikely]]
        prefetch(streams.state[direction_place].data, begin, n, sizeof(T));
      direction = static_cast<const T*>(streams.state[direction_place].data) + begin;
    }
    update_tile<decay>(param, prepares ? prepared : grad, direction, state, n, rule,
                       prepares ? T{1} : stages.scale, stages, all,
                       reader_of<Rule, State, K>(streams, begin, shaped, state[K])...);
    shaped.close(state, n);
    if (decays_late) [[unlikely]]
      decay_late(param, before, n, stages);
    if (stages.slow_weight != 0) [[unlikely]]
      look_ahead(param, slow + begin, n, stages.slow_weight);
    // Earlier, there would be too many prefetches at once.
    if (ahead) [[unlikely]]
      prefetch<T>(streams.param, begin, n);
    if (averages) [[unlikely]] {
      with_average<T>(streams, [&](auto* average) noexcept {
        if (ahead) [[unlikely]]
          prefetch(average, begin, n, sizeof(*average));
        average_tile(average + begin, param, n, stages);
      });
    }
    if (streams.copy.data) [[unlikely]]
      close(param, n, streams.copy, begin, {});
    if (streams.random) {
      close_block<Rule, State>(streams, begin, n, stages.flushes, scratch, keys, all);
    }
    if (streams.zero_grad) [[unlikely]] {
      const std::size_t size = item_size<T>(streams.grad);
      std::memset(static_cast<char*>(streams.grad.data) + begin * size, 0, n * size);
    }
  }
}

// Flushes the state that is kept in place. Other formats are flushed before they are encoded.
template <template <bool> class State, class Rule, std::size_t... K>
void flush_state(const Streams& streams, std::size_t begin, std::size_t n,
                 std::index_sequence<K...>) noexcept {
  const auto flush_one = [&]<std::size_t k>() {
    using Codec = Kept<Rule, State, k>;
    if constexpr (Rule::states[k].used && Codec::in_place && !has_own_shape<Rule, k>) {
      flush(static_cast<typename Codec::Value*>(streams.state[k].data) + begin, n);
    }
  };
  (flush_one.template operator()<K>(), ...);
}

// Updates elements [begin, end). An average with an average_weight of 0 stays as it is. `decay` is
// the weight decay that the rule's loop does, the fastest one; each choice gives the same bits. But
// Decay::coupled is for weights that do decay so: it would make 0 * infinity, a NaN, of others.
template <template <bool> class State, Decay decay = Decay::decoupled, class Rule>
void update(const Streams& streams, std::size_t begin, std::size_t end, const Rule& rule,
            const Stages<typename State<true>::Value>& stages) noexcept {
  constexpr std::size_t n_states = std::size(Rule::states);
  static_assert(n_states <= max_states);
  constexpr auto all = std::make_index_sequence<n_states>{};
  update<State, decay>(streams, begin, end, rule, stages, all);
  if (!stages.flushes) return;
  flush_state<State, Rule>(streams, begin, end - begin, all);
  const bool averages = streams.average && stages.average_weight != 0;
  if (averages && stages.average_rest != 0) {  // not a copy of the weights
    with_average<typename State<true>::Value>(
        streams, [&](auto* average) noexcept { flush(average + begin, end - begin); });
  }
}

}  // namespace onepass::inline ONEPASS_ISA
