// The kernels of one rule for one instruction set. CMakeLists.txt compiles this once for each pair,
// after the rule's header; ONEPASS_RULE is the rule's name, ONEPASS_RULE_ROW its row in rules.def.
#include "make_row.hpp"

namespace onepass::inline ONEPASS_ISA {
namespace {

// The row as a type. Before the options' names stands an empty one, because a rule without options
// would make an empty array.
namespace row {
#define RULE(title, Rule, ...)                                                \
  struct title {                                                              \
    static constexpr const char* name = #title;                               \
    static constexpr const char* options[] = {"" __VA_OPT__(, ) __VA_ARGS__}; \
    template <std::size_t n_options>                                          \
    static constexpr RuleRow make() {                                         \
      return make_row<Rule, n_options>(name, options + 1);                    \
    }                                                                         \
  };
ONEPASS_RULE_ROW
#undef RULE
}  // namespace row

using Row = row::ONEPASS_RULE;

}  // namespace

#define ONEPASS_ROW_NAME(rule) rule##_row
#define ONEPASS_ROW(rule) ONEPASS_ROW_NAME(rule)
extern const RuleRow ONEPASS_ROW(ONEPASS_RULE);
constinit const RuleRow ONEPASS_ROW(ONEPASS_RULE) = Row::make<std::size(Row::options) - 1>();

}  // namespace onepass::inline ONEPASS_ISA
