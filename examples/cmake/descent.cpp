// Descends Rosenbrock's valley in a C++ loop without the GIL: by Adam, whose functions the
// extension fetches from the installed onepass, and by AddSign, a rule of one's own on the headers.
//
//   pip install .
//   python -c "import descent, numpy as np; x = np.zeros(10); descent.adam(x, 2000, 0.02);
//   print(x)"
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include <onepass/capi.h>
#include <onepass/update.hpp>

namespace py = pybind11;

namespace {

using Vector = std::vector<double>;
using Array = py::array_t<double, py::array::c_style>;

const onepass_api* api = nullptr;  // as long as the process lives

// Of the sum over i of 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2.
void find_gradient(const double* x, Vector& grad) {
  grad.assign(grad.size(), 0);
  for (std::size_t i = 0; i + 1 < grad.size(); ++i) {
    const double above = x[i + 1] - x[i] * x[i];
    grad[i] += -400 * x[i] * above - 2 * (1 - x[i]);
    grad[i + 1] += 200 * above;
  }
}

template <class Step>
void descend(Array& x, std::int64_t steps, const Step& step) {
  double* const param = x.mutable_data();
  Vector grad(static_cast<std::size_t>(x.size()));
  const py::gil_scoped_release release;
  for (std::int64_t t = 1; t <= steps; ++t) {
    find_gradient(param, grad);
    step(t, param, grad);
  }
}

void adam(Array x, std::int64_t steps, double lr) {
  const std::int32_t rule = api->rule("adam");
  Vector settings(api->count(rule, ONEPASS_SETTINGS)), scalars(api->count(rule, ONEPASS_SCALARS));
  api->defaults(rule, settings.data());
  api->set(rule, settings.data(), "lr", lr);
  Vector exp_avg(x.size()), exp_avg_sq(x.size());
  descend(x, steps, [&](std::int64_t t, double* param, Vector& grad) {
    api->scalars(rule, t, settings.data(), nullptr, scalars.data());
    const std::int32_t code =
        api->update(rule, 0, ONEPASS_F64, grad.size(), param, grad.data(), exp_avg.data(),
                    exp_avg_sq.data(), nullptr, nullptr, scalars.data(), nullptr, 1);
    if (code != ONEPASS_OK) throw std::runtime_error(api->message(code));
  });
}

// Bello et al., "Neural optimizer search with reinforcement learning", ICML 2017.
template <class T>
struct AddSign {
  static constexpr onepass::State states[] = {{"exp_avg"}};
  T lr, beta, one_minus_beta;

  void operator()(T& param, T grad, T& exp_avg) const noexcept {
    exp_avg = beta * exp_avg + one_minus_beta * grad;
    param -= lr * (1 + onepass::sign(grad) * onepass::sign(exp_avg)) * grad;
  }
};

void addsign(Array x, std::int64_t steps, double lr) {
  const AddSign<double> rule{.lr = lr, .beta = 0.9, .one_minus_beta = 1 - 0.9};
  Vector exp_avg(x.size());
  descend(x, steps, [&](std::int64_t, double* param, Vector& grad) {
    const onepass::Streams streams{
        .param = {param}, .grad = {grad.data()}, .state = {{exp_avg.data()}}};
    onepass::update<onepass::DoubleState>(streams, 0, grad.size(), rule, {});
  });
}

}  // namespace

PYBIND11_MODULE(descent, module) {
  api = onepass_import();
  if (!api) throw py::error_already_set();
  module.def("adam", &adam, py::arg("x").noconvert(), py::arg("steps"), py::arg("lr"));
  module.def("addsign", &addsign, py::arg("x").noconvert(), py::arg("steps"), py::arg("lr"));
}
