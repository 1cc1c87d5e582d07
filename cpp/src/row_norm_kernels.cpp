// The loops of row_norm.hpp as a table. Compiled once per instruction set, into a namespace of its
// own.
#include "kernels.hpp"
#include "onepass/row_norm.hpp"

namespace onepass::inline ONEPASS_ISA {
namespace {

template <class T>
constexpr RowNormLoops<T> loops{row_moments<T>,
                                run_sums<T>,
                                row_and_column_sums<T>,
                                {normalize_rows<ForAll, T>, normalize_rows<PerColumn, T>},
                                {row_input_gradient<ForAll, T>, row_input_gradient<PerColumn, T>}};

}  // namespace

extern const RowNormTable row_norm_table;
const RowNormTable row_norm_table{loops<float>, loops<double>};

}  // namespace onepass::inline ONEPASS_ISA
