// The ruler that the benchmarks hold every step against: the same arrays read and written, and one
// addition for each; before that, the arrays that passes before a step read. Nothing but the
// benchmarks uses it.
#include "ruler.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "gil.hpp"
#include "tensors.hpp"
#include "threads.hpp"

namespace onepass::bindings {
namespace {

class CopyLimit {
 public:
  CopyLimit(const py::list& params, const py::list& grads, const py::list& states,
            const py::list& reads) {
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
    for (const py::handle pass : reads) add_pass(pass.cast<py::list>());
    sums_.resize(total_blocks(tensors_) * max_sums);
  }
  CopyLimit(const CopyLimit&) = delete;
  CopyLimit& operator=(const CopyLimit&) = delete;

  void run(py::handle num_threads) {
    const int threads = resolve_num_threads(num_threads.ptr());
    for (Pass& pass : passes_) measure(pass.tensors, pass.how.data(), sums_, threads);
    step(tensors_, threads);
  }

 private:
  struct Pass {
    std::vector<Tensor> tensors;
    std::vector<Measuring> how;
  };

  // `read`: of each tensor, the arrays of its own shape and dtype that a pass reads.
  void add_pass(const py::list& read) {
    Pass& pass = passes_.emplace_back();
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const auto arrays = read[i].cast<std::vector<py::array>>();
      const std::size_t n = arrays.size();
      Tensor& tensor = pass.tensors.emplace_back(tensors_[i]);
      tensor.streams = {};
      tensor.streams.param.data = const_cast<void*>(arrays[0].data());  // which a pass only reads
      tensor.streams.grad.data = const_cast<void*>(arrays[std::min<std::size_t>(1, n - 1)].data());
      for (std::size_t k = 2; k < n; ++k) {
        tensor.streams.state[k - 2].data = const_cast<void*>(arrays[k].data());
      }
      const Variant& variant = kernels_in_use->copy_limit->variants[n > 2 ? n - 2 : 0];
      const bool is_double = tensor.item_size == sizeof(double);
      pass.how.push_back({.measure = find_measure(variant, is_double, plain_state)});
    }
    kept_.append(read);
  }

  py::list kept_;
  std::vector<Tensor> tensors_;
  std::vector<Pass> passes_;
  std::vector<double> sums_;
  std::array<double, max_scalars> scalars_{};
};

}  // namespace

void bind_ruler(py::module_& m) {
  py::class_<CopyLimit>(m, "CopyLimit", "What the benchmarks hold every step against.")
      .def(py::init<const py::list&, const py::list&, const py::list&, const py::list&>(),
           py::arg("params"), py::arg("grads"), py::arg("states"), py::arg("reads") = py::list(),
           py::call_guard<InCall>())
      .def("run", &CopyLimit::run, py::arg("num_threads"), py::call_guard<InCall>(),
           "Read what each pass before reads; then read all, and write all but the gradients.");
}

}  // namespace onepass::bindings
