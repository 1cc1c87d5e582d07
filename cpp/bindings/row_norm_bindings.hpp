#pragma once

namespace onepass::bindings {

void bind_row_norm();

}  // namespace onepass::bindings
