// The ruler that the benchmarks hold every step against: the same arrays read and written, and one
// addition for each. Nothing but the benchmarks uses it.
#include "ruler.hpp"

#include <limits>
#include <vector>

#include "gil.hpp"
#include "tensors.hpp"
#include "threads.hpp"

namespace onepass::bindings {
namespace {

class CopyLimit {
 public:
  CopyLimit(const py::list& params, const py::list& grads, const py::list& states) {
    Memory memory;
    for (std::size_t i = 0; i < params.size(); ++i) {
      const Param param = check_param(params[i], Label("param", Role::param));
      Parameter known;
      Tensor& tensor = tensors_.emplace_back();
      start_layout(param, i, tensor, known);
      const Label label("grad", Role::grad);
      tensor.streams.grad =
          stored(check_grad_in_place(grads[i], label, param, memory).array.data(), plain);
      const auto own = states[i].cast<py::list>();
      for (std::size_t k = 0; k < own.size(); ++k) {
        const Label name("state", Role::state);
        tensor.streams.state[k] = {check_state(own[k], name, param, memory)};
        kept_.append(own[k]);
      }
      const Variant& variant = kernels_in_use->copy_limit->variants[own.size()];
      tensor.kernel = find_kernel(variant, known.is_double, plain_state, false);
      tensor.scalars = scalars_.data();
      tensor.size = param.size;
    }
    kept_.append(params);
    kept_.append(grads);
    scalars_[grad_scale] = scalars_[shrink] = scalars_[late_shrink] = scalars_[step_number] = 1;
    scalars_[max_grad_value] = std::numeric_limits<double>::infinity();
  }
  CopyLimit(const CopyLimit&) = delete;
  CopyLimit& operator=(const CopyLimit&) = delete;

  void run(py::handle num_threads) { step(tensors_, resolve_num_threads(num_threads.ptr())); }

 private:
  py::list kept_;
  std::vector<Tensor> tensors_;
  std::array<double, max_scalars> scalars_{};
};

}  // namespace

void bind_ruler(py::module_& m) {
  py::class_<CopyLimit>(m, "CopyLimit", "What the benchmarks hold every step against.")
      .def(py::init<const py::list&, const py::list&, const py::list&>(), py::arg("params"),
           py::arg("grads"), py::arg("states"), py::call_guard<InCall>())
      .def("run", &CopyLimit::run, py::arg("num_threads"), py::call_guard<InCall>(),
           "Read all, and write all but the gradients.");
}

}  // namespace onepass::bindings
