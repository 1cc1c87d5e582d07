// The sum of what many processes have sent.
#include "fold.hpp"

#include <vector>

#include "arrays.hpp"
#include "gil.hpp"
#include "tensors.hpp"
#include "threads.hpp"

namespace onepass::bindings {
namespace {

void fold(py::handle sums, const py::list& parts, py::handle num_threads) {
  const Param param = check_param(sums, Label("sums", Role::param));
  const int threads = resolve_num_threads(num_threads.ptr());
  Memory memory;
  std::vector<Checked> checked;  // keeps copies alive
  std::vector<Stored> stored_parts;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Label label("parts", Role::input, static_cast<std::ptrdiff_t>(i));
    checked.push_back(check_grad(parts[i], label, param, memory));
    stored_parts.push_back(stored(checked.back().array.data(), checked.back().format));
  }
  Tensor sum;
  Parameter known;
  start_layout(param, 0, sum, known);
  sum.size = param.size;
  without_gil(param.size * parts.size(),
              [&]() noexcept { onepass::fold(sum, stored_parts, *kernels_in_use, threads); });
}

}  // namespace

void bind_fold(py::module_& m) {
  m.def("fold", &fold, py::arg("sums"), py::arg("parts"), py::arg("num_threads") = py::none(),
        py::call_guard<InCall>(),
        "Write the sum of some vectors, in their order, into one of float32 or float64.");
}

}  // namespace onepass::bindings
