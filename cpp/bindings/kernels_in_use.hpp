#pragma once

#include "kernels.hpp"

namespace onepass::bindings {

// Those of the instruction set that was chosen. Set once, at import.
inline const KernelTable* kernels_in_use = nullptr;

}  // namespace onepass::bindings
