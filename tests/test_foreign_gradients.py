"""Gradients that are another library's arrays: read through NumPy, and never written."""

import array

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onepass as op
from helpers import RICHEST, assert_same_bits, digest, fresh_state, peak_of


class ByArray:
    """What JAX, pandas and others offer."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


class WithoutCopyKeyword(ByArray):
    """PyTorch's method knows no `copy`."""

    def __array__(self, dtype=None):
        return self.values


class ByDLPack:
    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class ByBuffer(array.array):
    """A vector of float32 in a buffer, which NumPy reads before it calls `__array__`."""

    def __array__(self, dtype=None, copy=None):
        raise NotImplementedError


class Raising:
    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


FOREIGN = (ByArray, WithoutCopyKeyword, ByDLPack)


@pytest.fixture(params=FOREIGN, ids=lambda cls: cls.__name__)
def foreign(request):
    return request.param


GRAD_DTYPES = (np.float16, np.float32, ml_dtypes.bfloat16, np.float64)


@st.composite
def gradients(draw):
    """A gradient of any dtype and layout, and the dtype and order of its parameter."""
    param_dtype = draw(st.sampled_from([np.float32, np.float64]))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    flat = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(2, *shape))
    grad = flat.astype(draw(st.sampled_from(GRAD_DTYPES)))
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed", "read-only"]))
    if layout == "strided":
        grad = np.stack([grad, grad], axis=-1)[0, ..., 1]
    elif layout == "reversed":
        grad = np.asarray(grad[(0, *[slice(None, None, -1)] * len(shape))])
    else:
        grad = np.array(grad[0], order="F" if layout == "F" else "C")
        grad.flags.writeable = layout != "read-only"
    return param_dtype, draw(st.sampled_from("CF")), grad


@given(gradients(), st.sampled_from(FOREIGN))
def test_a_step_is_that_of_the_array(drawn, wrap):
    """Of any dtype, shape, layout and protocol."""
    dtype, order, grad = drawn
    if wrap is ByDLPack and (grad.dtype == ml_dtypes.bfloat16 or not grad.flags.writeable):
        return  # NumPy gives away neither
    params = [np.ones(grad.shape, dtype, order) for _ in range(2)]
    for param, given_ in zip(params, (grad, wrap(grad)), strict=True):
        opt = op.Adam(param, lr=0.1, ema_decay=0.5)
        opt.step(given_)
        opt.accumulate(given_)
        opt.step()
    assert_same_bits(*params)


def wrapped(grads, wrap):
    return [None if grad is None else wrap(grad) for grad in grads]


SETTINGS = {"max_grad_norm": 0.5, "ema_decay": 0.9, "nonfinite": "skip", "weight_decay": 0.1}


def test_every_way_to_step(optimizer, foreign, rng):
    """Beside all stages: with all gradients foreign, some, or a dictionary of them."""
    grads = [rng.normal(size=(4, 3)), rng.normal(size=5), rng.normal(size=(4, 3)).T[::-1]]
    twins = []
    for wrap in (np.asarray, foreign):
        params = [np.ones(grad.shape) for grad in grads]
        opt = optimizer(params, lr=0.1, **SETTINGS)
        info = opt.step(wrapped(grads, wrap), grad_scale=2)
        opt.step([None, wrap(grads[1]), grads[2]])
        opt.accumulate(wrapped(grads, wrap))
        opt.accumulate([wrap(grads[0]), None, None])
        opt.step(grad_scale=2)
        assert opt.step([grads[0], wrap(np.full(5, np.nan)), grads[2]]).skipped
        twins.append((opt, info))
    assert digest(twins[0]) == digest(twins[1])


def test_structures(foreign):
    layers = [{"w": np.ones((2, 3)), "b": np.zeros(3)}]
    opt = op.SGD(layers, lr=1.0)
    opt.step([{"w": foreign(np.ones((2, 3))), "b": foreign(np.ones(3))}])
    assert (layers[0]["w"] == 0).all()
    assert (layers[0]["b"] == -1).all()
    single = np.zeros((2, 3))
    op.SGD(single, lr=1.0).step(foreign(np.ones((2, 3))))
    assert (single == -1).all()
    groups = [{"params": np.zeros(3)}, {"params": {"b": np.zeros(2)}}]
    op.SGD(groups, lr=1.0).step([foreign(np.ones(3)), {"b": foreign(np.ones(2))}])
    assert (groups[1]["params"]["b"] == -1).all()


def test_rows(foreign):
    tables = [np.zeros((5, 2)) for _ in range(4)]
    index, values = np.array([3, 1, 3]), np.arange(6.0).reshape(3, 2)
    expected = np.array([[0, 0], [-2, -3], [0, 0], [-4, -6], [0, 0]])
    op.SGD(tables[0], lr=1.0).step_rows((foreign(index), foreign(values)))
    op.SGD({"e": tables[1]}, lr=1.0).step_rows({"e": (index, foreign(values[:, ::1]))})
    op.kernels.sgd(tables[2], foreign(values), rows=foreign(index), lr=1.0)
    op.kernels.sgd([tables[3]], [foreign(values)], rows=[foreign(index)], lr=1.0)
    for table in tables:
        assert_same_bits(table, expected.astype(float))
    whole = np.zeros((5, 2))
    op.SGD({"e": whole}, lr=1.0).step_rows({"e": foreign(np.ones((5, 2)))})
    assert (whole == -1).all()


def test_free_functions(optimizer, foreign, rng):
    kernel = getattr(op.kernels, optimizer.rule)
    grads = [rng.normal(size=(3, 4)), rng.normal(size=7)]
    twins = []
    for wrap in (np.asarray, foreign):
        params = [np.ones(grad.shape) for grad in grads]
        states = [fresh_state(optimizer, {}, param) for param in params]
        lists = [None if of[0] is None else list(of) for of in zip(*states, strict=True)]
        kernel(params, wrapped(grads, wrap), *lists, step=1, lr=0.1, max_grad_norm=0.5)
        kernel(params[0], wrap(grads[0]), *states[0], step=2, lr=0.1)
        twins.append((params, states))
    assert digest(twins[0]) == digest(twins[1])


def test_what_else_takes_gradients(foreign):
    w = np.array([3.0, -4.0])
    twin, search = w.copy(), op.line_search.backtracking()
    found = search(w, foreign(2 * w), lambda: w @ w, direction=foreign(-w))
    assert found == search(twin, 2 * twin, lambda: twin @ twin, direction=-twin)
    assert_same_bits(w, twin)
    opt, scaler = op.SGD(w := np.zeros(2), lr=1.0, nonfinite="skip"), op.LossScaler()
    scaler.step(opt, foreign(scaler.scale(np.ones(2))))
    assert (w == -1).all()


def test_a_buffer_is_read():
    w = np.zeros(3, np.float32)
    op.SGD(w, lr=1.0).step(ByBuffer("f", [1, 2, 3]))
    assert_same_bits(w, np.array([-1, -2, -3], np.float32))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numpys_scalars_are_gradients_of_parameters_without_axes(kind):
    w = np.ones((), kind)
    op.SGD(w, lr=1.0).step(np.square(kind(2)))
    op.kernels.sgd(w, kind(1), lr=1.0)
    assert w == -4


def test_what_lies_as_its_parameter_is_not_copied(foreign):
    n = 1_000_000
    w, grad = [np.zeros(n, np.float32) for _ in range(2)], [np.ones(n, np.float32)] * 2
    opt = op.SGD(w, lr=1.0)
    opt.step(grads := wrapped(grad, foreign))
    peak = peak_of(lambda: (opt.step(grads), op.kernels.sgd(w, grads, lr=1.0)))
    assert (w[0] == -3).all()
    assert peak < n


# What is refused. Nothing changes then, and the next step is as if the call had not been.


def make():
    params = [np.ones(4, np.float32), np.ones((2, 3), np.float32)]
    return RICHEST(params, lr=0.1, ema_decay=0.5)


def good():
    return [np.full(4, 0.5, np.float32), np.full((2, 3), 0.5, np.float32)]


def refuse(call, error, match):
    opt = make()
    opt.step(good())
    before = digest(opt)
    with pytest.raises(error, match=match) as caught:
        call(opt)
    assert digest(opt) == before
    twin = make()
    for each in (twin, twin, opt):
        each.step(good())
    assert digest(opt) == digest(twin)
    return caught.value


WRONG = {
    "another dtype": (
        np.ones(4, complex),
        TypeError,
        "expected dtype float32, float64, float16 or",
    ),
    "integers": (
        np.ones(4, int),
        TypeError,
        "expected dtype float32, float64, float16 or bfloat16",
    ),
    "objects": (np.ones(4, object), TypeError, "expected dtype float32.*, got object"),
    "another shape": (np.ones(3, np.float32), ValueError, r"expected the parameter's shape \(4,\)"),
    "a mask": (np.ma.ones(4, np.float32), TypeError, "expected an array without a mask"),
    "a list": (
        [0.5] * 4,
        TypeError,
        "that NumPy can read, got ByArray, whose __array__ returns list",
    ),
    "None": (None, TypeError, "that NumPy can read, got ByArray, whose __array__ returns NoneT"),
}


@pytest.mark.parametrize(("values", "error", "match"), WRONG.values(), ids=WRONG)
def test_what_it_returns_is_checked(values, error, match):
    wrong = [ByArray(values), good()[1]]
    refuse(lambda opt: opt.step(wrong), error, rf"^grads\[0\]: .*{match}")
    refuse(lambda opt: opt.accumulate(wrong), error, rf"^grads\[0\]: .*{match}")
    w = [np.ones(4, np.float32), np.ones((2, 3), np.float32)]
    with pytest.raises(error, match=rf"^grad\[0\]: .*{match}"):
        op.kernels.sgd(w, wrong, lr=1.0)
    with pytest.raises(error, match=rf"^grad: .*{match}"):
        op.kernels.sgd(w[0], wrong[0], lr=1.0)
    assert (w[0] == 1).all()


def test_none_of_one_parameter_is_no_gradient():
    with pytest.raises(TypeError, match="^grad: expected a NumPy array, got NoneType"):
        op.kernels.sgd(np.ones(3), None, lr=1.0)


REFUSALS = [TypeError, ValueError, RuntimeError, BufferError, AttributeError, NotImplementedError]


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_its_library_says_is_passed_on(kind):
    """In one line, under the argument's name, and whole as the error's cause."""
    said = kind("It is on a GPU.\nMore about that.")
    grads = [good()[0], Raising(said)]
    match = (
        r"^grads\[1\]: expected an array that NumPy can read, got Raising, "
        r"which says: It is on a GPU.$"
    )
    for call in (lambda opt: opt.step(grads), lambda opt: opt.accumulate(grads)):
        error = refuse(call, TypeError, match)
        assert error.__cause__ is said
    with pytest.raises(TypeError, match=r"^grads\[1\]: expected an array that NumPy can read"):
        op.SGD(np.ones((2, 3)), lr=1.0).step_rows((np.array([1]), Raising(said)))
    with pytest.raises(TypeError, match="^grad: .* got Raising$"):
        op.kernels.sgd(np.ones(3), Raising(kind()), lr=1.0)


@pytest.mark.parametrize("kind", [ZeroDivisionError, MemoryError, KeyboardInterrupt, OSError])
def test_other_errors_are_what_they_were(kind):
    error = kind("mine")
    assert refuse(lambda opt: opt.step([Raising(error), None]), kind, "^mine$") is error


def test_an_error_of_dlpack_is_passed_on():
    class OnAGpu(ByDLPack):
        def __dlpack__(self, **options):
            raise BufferError("it is on a GPU")

    grads = [OnAGpu(good()[0]), None]
    refuse(lambda opt: opt.step(grads), TypeError, r"^grads\[0\]: .* OnAGpu, which says: it is on")


def test_memory_of_a_parameter_is_refused(foreign):
    refuse(
        lambda opt: opt.step([foreign(opt.param_groups[0]["params"][0]), None]),
        ValueError,
        r"^grads\[0\]: expected memory of its own, got the same memory as params\[0\]",
    )


IN_LATER_STEPS = "expected a NumPy array, as later steps read it again, got "


def test_what_is_bound_is_numpys(foreign):
    name = foreign.__name__
    grads = [foreign(grad) for grad in good()]
    refuse(lambda opt: opt.bind(grads), TypeError, rf"^grads\[0\]: {IN_LATER_STEPS}{name}$")
    with pytest.raises(TypeError, match=rf"^grads: {IN_LATER_STEPS}{name}"):
        op.SGD(np.ones(4), grads=foreign(np.ones(4)))


def test_what_is_cleared_is_numpys(foreign):
    """Else a copy might be cleared."""
    match = "expected a NumPy array, as clear_grads=True writes it, got " + foreign.__name__
    w, grad = np.ones(4), np.ones(4)
    opt = op.SGD(w, lr=1.0, clear_grads=True)
    for call in (opt.step, opt.accumulate):
        with pytest.raises(TypeError, match=f"^grads: {match}$"):
            call(foreign(grad))
    with pytest.raises(TypeError, match=f"^grad: {match}$"):
        op.kernels.sgd(w, foreign(grad), lr=1.0, clear_grads=True)
    assert (w == 1).all()
    assert (grad == 1).all()


def test_a_read_only_array_is_not_cleared():
    """As NumPy sees one of JAX."""
    grad = np.ones(4)
    grad.flags.writeable = False
    with pytest.raises(ValueError, match="^grads: expected a writable array, got a read-only one"):
        op.SGD(np.ones(4), lr=1.0, clear_grads=True).step(grad)


def test_what_is_written_is_numpys(foreign):
    array = np.ones(4)
    match = f"expected a NumPy array, got {foreign.__name__}"
    with pytest.raises(TypeError, match=f"^params: {match}"):
        op.SGD(foreign(array), lr=1.0)
    with pytest.raises(TypeError, match=f"^copy_to: {match}"):
        op.SGD(np.ones(4, np.float32), lr=1.0, copy_to=foreign(np.ones(4, np.float16)))
    with pytest.raises(TypeError, match=f"^param: {match}"):
        op.kernels.sgd(foreign(array), array, lr=1.0)
    with pytest.raises(TypeError, match=f"^momentum_buffer: {match}"):
        op.kernels.sgd(np.ones(4), array, foreign(np.ones(4)), lr=1.0, momentum=0.5, step=1)


WITHOUT_A_PROTOCOL = {
    "list": [0.5] * 4,
    "memoryview": memoryview(np.ones(4, np.float32)),
    "array.array": array.array("f", [0.5] * 4),
    "type": ByArray,  # its objects have one
    "float": 0.5,
}


@pytest.mark.parametrize("name", WITHOUT_A_PROTOCOL)
def test_what_has_no_protocol_is_no_gradient(name):
    grads = [WITHOUT_A_PROTOCOL[name], None]
    refuse(
        lambda opt: opt.step(grads), TypeError, rf"^grads\[0\]: expected a NumPy array, got {name}"
    )


# PyTorch's tensors.


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_tensors(torch, dtype, rng):
    values = rng.normal(size=(6, 4)).astype(dtype)
    tensor = torch.from_numpy(values.copy())
    for view in (tensor, tensor.T, tensor[::2], tensor[1], torch.nn.Parameter(tensor).detach()):
        params = [np.ones(view.shape, "float64" if dtype == "float64" else "float32") for _ in "ab"]
        op.AdamW(params[0], lr=0.1).step(view)
        op.AdamW(params[1], lr=0.1).step(np.array(view.tolist(), dtype))
        assert_same_bits(*params)


def test_gradients_of_a_network_of_torch(torch):
    """Its weights are NumPy's, which the optimizer moves and PyTorch sees."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    twin = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    twin.load_state_dict(net.state_dict())
    opt = op.SGD([p.detach().numpy() for p in net.parameters()], lr=0.25)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.25)
    x = torch.arange(12.0).reshape(4, 3) / 12
    for _ in range(5):
        for each in (net, twin):
            each.zero_grad()
            each(x).square().mean().backward()
        opt.step([p.grad for p in net.parameters()])
        theirs.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


REFUSED_BY_TORCH = {
    "that requires grad": (lambda t: t.ones(4, requires_grad=True), "requires grad"),
    "in bfloat16": (lambda t: t.ones(4, dtype=t.bfloat16), "BFloat16"),
    "sparse": (lambda t: t.ones(4).to_sparse(), "to_dense"),
    "conjugate": (lambda t: t.ones(4, dtype=t.complex64).conj(), "conj"),
    "negative": (lambda t: t.ones(4, dtype=t.complex64).conj().imag, "resolve_neg"),
    "on another device": (lambda t: t.ones(4, device="meta"), "cpu"),
}
"""DLPack would give the negative one without its sign, so `__array__` alone is asked."""


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("tensor", "match"), REFUSED_BY_TORCH.values(), ids=REFUSED_BY_TORCH)
def test_a_tensor_that_numpy_cannot_read(torch, tensor, match):
    grads = [tensor(torch), None]
    expected = r"^grads\[0\]: expected an array that NumPy can read, got Tensor, which says: .*"
    refuse(lambda opt: opt.step(grads), TypeError, expected + match)


def test_a_tensor_of_bfloat16_as_the_documentation_reads_it(torch):
    w, grad = np.ones(4, np.float32), torch.full((4,), 0.5, dtype=torch.bfloat16)
    op.SGD(w, lr=1.0).step(grad.view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
    assert (w == 0.5).all()
