// The C interface: the rules by name, the numbers of a step, and the table of all functions.
#include "capi.hpp"

#include <array>
#include <iterator>
#include <string_view>
#include <type_traits>

#include "dispatch.hpp"
#include "parallel.hpp"

namespace onepass::capi {
namespace {

constexpr std::size_t first_common = max_hyper + max_options;
static_assert(max_scalars <= ONEPASS_MOST_NUMBERS && max_memory <= ONEPASS_MOST_NUMBERS);
static_assert(max_hyper + std::size(common_settings) <= ONEPASS_MOST_NUMBERS);

// Where a rule's settings stand among the numbers of Settings, in the order in which C has them.
struct Places {
  std::size_t n = 0;
  std::uint8_t at[ONEPASS_MOST_NUMBERS] = {};
};

Places find_places(const RuleRow& rule) noexcept {
  Places places;
  for (std::size_t k = 0; k < rule.hyper.size(); ++k) {
    places.at[places.n++] = static_cast<std::uint8_t>(k);
  }
  for (std::size_t k = 0; k < std::size(common_settings); ++k) {
    const std::string_view name = common_settings[k];
    const auto is_name = [=](const char* other) { return name == other; };
    // What a tensor's formats say in C is no setting there.
    const bool is_format = name == "state_format" || name == "rounding";
    if (is_format || std::ranges::any_of(rule.hyper, is_name)) continue;
    places.at[places.n++] = static_cast<std::uint8_t>(first_common + k);
  }
  return places;
}

constexpr std::size_t most_rules = 64;

std::size_t count_rules() noexcept {
  const KernelTable* const table = kernels();
  return table ? std::min(table->rules.size(), most_rules) : 0;
}

// Found once, because it takes longer than the numbers of a step. Nothing of it ends with the
// process, because other threads may still be there.
const Places& places_of(std::int32_t rule) noexcept {
  static const auto found = [] {
    std::array<Places, most_rules> of_rules;
    for (std::size_t k = 0; k < count_rules(); ++k) {
      of_rules[k] = find_places(*kernels()->rules[k]);
    }
    return of_rules;
  }();
  static_assert(std::is_trivially_destructible_v<decltype(found)>);
  return found[static_cast<std::size_t>(rule)];
}

const char* name_of(const RuleRow& rule, std::size_t place) noexcept {
  return place < max_hyper ? rule.hyper[place] : common_settings[place - first_common];
}

std::int32_t size_of(std::span<const char* const> names) noexcept {
  return static_cast<std::int32_t>(names.size());
}

std::span<const char* const> names_of(const RuleRow& rule, std::int32_t what) noexcept {
  if (what == ONEPASS_STATES) return rule.states;
  if (what == ONEPASS_OPTIONS) return rule.options;
  if (what == ONEPASS_MEMORY) return rule.memory;
  return {};
}

}  // namespace

const KernelTable* kernels() noexcept {
  try {
    return isa_in_use().kernels;
  } catch (...) {
    return nullptr;
  }
}

const RuleRow* find_rule(std::int32_t rule) noexcept {
  const bool is_there = rule >= 0 && static_cast<std::size_t>(rule) < count_rules();
  return is_there ? kernels()->rules[static_cast<std::size_t>(rule)] : nullptr;
}

std::int32_t traits(const RuleRow& rule, const Variant& variant) noexcept {
  std::int32_t found = 0;
  if (variant.n_sums) found |= ONEPASS_TRAIT_MEASURES;
  if (variant.direct_f64) found |= ONEPASS_TRAIT_DIRECTED;
  if (rule.factored) found |= ONEPASS_TRAIT_SHAPED;
  if (rule.sums_over_all) found |= ONEPASS_TRAIT_TOGETHER;
  if (found == 0 && !rule.keeps_weights) found |= ONEPASS_TRAIT_ROWS;
  return found;
}

std::size_t product(const std::int64_t* sizes, std::int32_t n) noexcept {
  std::size_t product = 1;
  bool is_empty = false, is_large = false;
  for (std::int32_t k = 0; k < n; ++k) {
    const auto size = static_cast<std::size_t>(sizes[k]);
    is_empty = is_empty || size == 0;
    is_large = is_large || sizes[k] < 0 || (size && product > most_elements / size);
    product = is_large || is_empty ? 1 : product * size;
  }
  return is_empty ? 0 : is_large ? SIZE_MAX : product;
}

std::size_t elements_of(Shape shape, const std::int64_t* sizes, std::int32_t n) noexcept {
  const std::size_t all = product(sizes, n);
  if (all == SIZE_MAX || shape == Shape::param) return all;
  if (shape == Shape::rows) return product(sizes, n - 1);
  if (shape == Shape::columns) {
    const std::size_t before = product(sizes, n - 2), columns = product(sizes + n - 1, 1);
    return before && columns > most_elements / before ? SIZE_MAX : before * columns;
  }
  std::size_t sum = 0;
  for (std::int32_t k = 0; k < n; ++k) sum += static_cast<std::size_t>(sizes[k]);
  return sum;
}

Group make_group(std::int32_t rule, std::int32_t options, const double* settings) noexcept {
  const RuleRow& row = *find_rule(rule);
  Group group(row);
  for (std::size_t k = 0; k < row.options.size(); ++k) {
    group.settings.options[k] = static_cast<double>(options >> k & 1);
  }
  if (!settings) return group;
  const Places& places = places_of(rule);
  for (std::size_t i = 0; i < places.n; ++i) {
    group.settings.hyper.data()[places.at[i]] = settings[i];
  }
  return group;
}

}  // namespace onepass::capi

using namespace onepass;
using namespace onepass::capi;

int32_t onepass_abi(void) {
  return ONEPASS_ABI;
}
const char* onepass_version(void) {
  return ONEPASS_VERSION;
}
const char* onepass_isa(void) {
  return kernels() ? isa_in_use().name : "";
}

const char* onepass_message(int32_t code) {
  static constexpr const char* messages[] = {
      "all is well",
      "no rule has this number",
      "the rule has no such option",
      "an array is NULL that must be there, or there that must not be",
      "an array does not begin at a multiple of its items' size",
      "the format does not exist, or not for this array",
      "two arrays share memory, and one of them is written",
      "sizes that do not go together, or are too large",
      "the tensor has no such row",
      "rows cannot move alone with this rule, or with these settings",
      "a number that is not one of those that there are",
      "the rule steps along a direction, which is not there",
      "a gradient has an infinity or a NaN",
      "there is not enough memory",
      "ONEPASS_ISA names no instruction set that runs here",
      "the rule has no setting of this name",
      "groups that must share their rule, or the settings of this rule, do not",
  };
  static_assert(std::size(messages) == ONEPASS_DISAGREE + 1);
  const bool is_code = code >= 0 && static_cast<std::size_t>(code) < std::size(messages);
  return is_code ? messages[code] : "no such code";
}

int32_t onepass_threads(void) {
  return default_threads();
}
void onepass_set_threads(int32_t threads) {
  if (threads >= 1) set_default_threads(threads);
}

int32_t onepass_rules(void) {
  return static_cast<int32_t>(count_rules());
}
const char* onepass_rule_name(int32_t rule) {
  const RuleRow* const row = find_rule(rule);
  return row ? row->name : nullptr;
}
int32_t onepass_rule(const char* name) {
  for (int32_t rule = onepass_rules(); name && rule-- > 0;) {
    if (std::string_view(name) == onepass_rule_name(rule)) return rule;
  }
  return -1;
}

int32_t onepass_count(int32_t rule, int32_t what) {
  const RuleRow* const row = find_rule(rule);
  if (!row) return 0;
  if (what == ONEPASS_SETTINGS) return static_cast<int32_t>(places_of(rule).n);
  const int32_t n_memory = size_of(row->memory);
  if (what != ONEPASS_SCALARS) return size_of(names_of(*row, what));
  return static_cast<int32_t>(shared_scalars) + size_of(row->scalars) + n_memory;
}

const char* onepass_name(int32_t rule, int32_t what, int32_t i) {
  const RuleRow* const row = find_rule(rule);
  if (!row || i < 0) return nullptr;
  const auto place = static_cast<std::size_t>(i);
  if (what == ONEPASS_SETTINGS) {
    const Places& places = places_of(rule);
    return place < places.n ? name_of(*row, places.at[place]) : nullptr;
  }
  const auto names = names_of(*row, what);
  return place < names.size() ? names[place] : nullptr;
}

int32_t onepass_index(int32_t rule, int32_t what, const char* name) {
  for (int32_t i = 0; name; ++i) {
    const char* const found = onepass_name(rule, what, i);
    if (!found) break;
    if (std::string_view(name) == found) return i;
  }
  return -1;
}

int32_t onepass_traits(int32_t rule, int32_t options) {
  const RuleRow* const row = find_rule(rule);
  return row && are_options(*row, options) ? traits(*row, find_variant(*row, options, 0)) : 0;
}

int32_t onepass_uses_state(int32_t rule, int32_t options, int32_t ndim, int32_t state) {
  const RuleRow* const row = find_rule(rule);
  const bool is_there =
      row && are_options(*row, options) && state >= 0 && state < size_of(row->states);
  return is_there && find_variant(*row, options, ndim).uses_state[state];
}

size_t onepass_state_size(int32_t rule, int32_t options, int32_t ndim, const int64_t* shape,
                          int32_t state) {
  if (!onepass_uses_state(rule, options, ndim, state) || (ndim > 0 && !shape)) return 0;
  const RuleRow& row = *find_rule(rule);
  const bool is_shaped = row.factored && ndim > 1;
  const Shape kind = is_shaped ? row.shape[static_cast<std::size_t>(state)] : Shape::param;
  const std::size_t n = elements_of(kind, shape, std::max(ndim, 0));
  return is_size(n) ? n : 0;
}

int32_t onepass_state_start(int32_t rule, int32_t state) {
  const RuleRow* const row = find_rule(rule);
  const bool is_there = row && state >= 0 && state < size_of(row->states);
  return is_there ? row->start[static_cast<std::size_t>(state)] : -1;
}

int32_t onepass_defaults(int32_t rule, double* settings) {
  const RuleRow* const row = find_rule(rule);
  if (!row) return kernels() ? ONEPASS_NO_RULE : ONEPASS_NO_ISA;
  if (!settings) return ONEPASS_NO_ARRAY;
  const Group group(*row);
  const Places& places = places_of(rule);
  for (std::size_t i = 0; i < places.n; ++i) {
    settings[i] = group.settings.hyper.data()[places.at[i]];
  }
  return ONEPASS_OK;
}

int32_t onepass_memory_start(int32_t rule, double* memory) {
  const RuleRow* const row = find_rule(rule);
  if (!row) return kernels() ? ONEPASS_NO_RULE : ONEPASS_NO_ISA;
  if (!memory && !row->memory.empty()) return ONEPASS_NO_ARRAY;
  std::ranges::copy(row->memory_start, memory);
  return ONEPASS_OK;
}

int32_t onepass_set(int32_t rule, double* settings, const char* name, double value) {
  if (!find_rule(rule)) return kernels() ? ONEPASS_NO_RULE : ONEPASS_NO_ISA;
  if (!settings || !name) return ONEPASS_NO_ARRAY;
  const int32_t place = onepass_index(rule, ONEPASS_SETTINGS, name);
  if (place < 0) return ONEPASS_NO_SETTING;
  settings[place] = value;
  return ONEPASS_OK;
}

size_t onepass_bytes(int32_t format, size_t n) {
  if (!is_size(n)) return 0;
  switch (format) {
    case ONEPASS_F64:
      return n * sizeof(double);
    case ONEPASS_BF16:
    case ONEPASS_F16:
      return n * sizeof(std::uint16_t);
    case ONEPASS_Q8:
      return (n + block_size - 1) / block_size * (block_size + 1);
    case 0:
    case ONEPASS_F32:
      return n * sizeof(float);
    default:
      return 0;
  }
}

int32_t onepass_scalars(int32_t rule, int64_t step, const double* settings, const double* memory,
                        double* scalars) {
  const RuleRow* const row = find_rule(rule);
  if (!row) return kernels() ? ONEPASS_NO_RULE : ONEPASS_NO_ISA;
  if (!scalars || (!memory && !row->memory.empty())) return ONEPASS_NO_ARRAY;
  if (step < 1 || step > most_steps) return ONEPASS_BAD_NUMBER;
  const Group group = make_group(rule, 0, settings);
  Parameter param;
  param.steps = step - 1;
  fill_scalars(group, param, memory, 0, 1, scalars);
  return ONEPASS_OK;
}

namespace onepass {
const onepass_api c_api{
    ONEPASS_ABI,
    sizeof(onepass_api),
    ONEPASS_VERSION,
    onepass_isa,
    onepass_message,
    onepass_threads,
    onepass_set_threads,
    onepass_rules,
    onepass_rule_name,
    onepass_rule,
    onepass_count,
    onepass_name,
    onepass_index,
    onepass_traits,
    onepass_uses_state,
    onepass_state_size,
    onepass_state_start,
    onepass_defaults,
    onepass_memory_start,
    onepass_bytes,
    onepass_scalars,
    onepass_update,
    onepass_update_rows,
    onepass_step,
    onepass_direct,
    onepass_batch_norm_train,
    onepass_batch_norm_infer,
    onepass_batch_norm_backward,
    onepass_set,
};
}  // namespace onepass
