"""How numbers are stored: each format is read and written as NumPy's own conversion does it."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onepass as op
from helpers import SMALL_FORMATS, assert_same_bits, digest
from storage_cases import neighbours

formats = pytest.mark.parametrize("small", SMALL_FORMATS, ids=lambda dtype: dtype.__name__)


@formats
def test_every_gradient_there_is(small):
    """All 65,536, an infinity and a NaN among them; 0 - g is exact."""
    grad = np.arange(2**16, dtype=np.uint16).view(small)
    param = np.zeros(2**16, np.float32)
    op.kernels.sgd(param, grad, lr=1.0)
    with np.errstate(invalid="ignore"):  # NaN that signal
        assert_same_bits(param, np.float32(0) - grad.astype(np.float32))


@formats
def test_norm_of_every_length(small, rng):
    for n in (1, 63, 64, 65, 255, 256, 257, 16_385, 40_000):
        grad = rng.normal(size=n).astype(small)
        norms = [
            op.SGD(np.zeros(n, np.float32), max_grad_norm=1.0).step(each).grad_norm
            for each in (grad, grad.astype(np.float32))
        ]
        assert norms[0] == norms[1]


@formats
@pytest.mark.parametrize("layout", ["strided", "reversed", "Fortran", "misaligned", "0-d"])
def test_any_layout(optimizer, small, layout, rng):
    grad = rng.normal(size=(30, 40)).astype(small)
    given_ = {
        "strided": np.repeat(grad, 2, axis=1)[:, ::2],
        "reversed": grad[::-1].copy()[::-1],
        "Fortran": np.asfortranarray(grad),
        "misaligned": np.frombuffer(b"x" + grad.tobytes(), np.uint8)[1:].view(small),
        "0-d": grad[0, 0],
    }[layout]
    given_ = given_.reshape(grad.shape) if layout == "misaligned" else given_
    param = np.full(np.shape(given_), 0.5, np.float32)
    expected = param.copy()
    optimizer(expected).step(np.asarray(given_).astype(np.float32))
    optimizer(param).step(given_)
    assert_same_bits(param, expected)


@formats
def test_bound_and_accumulated(optimizer, small, rng):
    grads = [rng.normal(size=70).astype(small) for _ in range(4)]
    expected, param = np.ones(70, np.float32), np.ones(70, np.float32)
    wide, opt = optimizer(expected), optimizer(param, clear_grads=True)
    bound = np.zeros(70, small)
    opt.bind(bound)
    for grad in grads[:2]:
        wide.step(grad.astype(np.float32))
        bound[:] = grad
        opt.step()
        assert not bound.any()
    for grad in grads[2:]:
        wide.accumulate(grad.astype(np.float32))
        bound[:] = grad
        opt.accumulate()
        assert not bound.any()
    wide.step(grad_scale=2.0)
    opt.step(grad_scale=2.0)
    assert_same_bits(param, expected)
    assert digest(opt.state_dict()["state"]) == digest(wide.state_dict()["state"])


@formats
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_not_finite(optimizer, small, bad):
    params = [np.ones(300, np.float32), np.ones(300, np.float32)]
    grads = [np.ones(300, np.float32), np.ones(300, small)]
    grads[1][257] = bad
    opt = optimizer(params, nonfinite="raise")
    before = digest(opt)
    with pytest.raises(ValueError, match=r"^grads\[1\]: expected finite values"):
        opt.step(grads)
    assert digest(opt) == before
    opt.nonfinite = "skip"
    assert opt.step(grads).skipped
    np.testing.assert_array_equal(params, 1)


@formats
def test_every_gradient_beside_float64(small):
    every = np.arange(2**16, dtype=np.uint16).view(small)
    param = np.zeros(2**16)
    op.SGD(param, lr=1.0).step(every)
    with np.errstate(invalid="ignore"):  # NaN that signal
        assert_same_bits(param, 0 - every.astype(np.float64))


def test_no_other_format(optimizer):
    param = np.ones(3, np.float32)
    other = ml_dtypes.float8_e4m3fn
    expected = "dtype float32, float64, float16 or bfloat16, got"
    for dtype in (np.complex64, np.int16, other):
        with pytest.raises(TypeError, match=rf"^grads: expected {expected} {np.dtype(dtype)}"):
            optimizer(param).step(np.ones(3).astype(dtype))


@given(
    grad=hnp.arrays(np.uint16, st.integers(0, 300)),
    small=st.sampled_from(SMALL_FORMATS),
    clip=st.one_of(st.none(), st.floats(1e-3, 1e3)),
)
def test_any_bits(grad, small, clip):
    grad = grad.view(small)
    params = [np.ones(grad.size, np.float32) for _ in range(2)]
    with np.errstate(invalid="ignore"):
        wide = grad.astype(np.float32)
    for param, each in zip(params, (grad, wide), strict=True):
        opt = op.AdamW(param, max_grad_value=clip)
        opt.step(each)
        opt.step(each)
    assert_same_bits(*params)


@formats
def test_a_copy_is_rounded_as_numpy_rounds(small):
    """To nearest, ties to even; the step itself changes nothing."""
    param = neighbours(small)
    before, copy = param.copy(), np.ones(param.size, small)
    op.SGD(param, lr=0.0, copy_to=copy).step(np.zeros_like(param))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = before.astype(small)
    assert_same_bits(copy, expected)
    assert_same_bits(param, before)


@given(
    bits=hnp.arrays(np.uint32, st.integers(1, 300)),
    small=st.sampled_from(SMALL_FORMATS),
    threads=st.sampled_from([1, 3]),
)
def test_a_copy_of_any_bits(bits, small, threads):
    param = bits.view(np.float32)
    copy = np.zeros(param.size, small)
    op.SGD(param, lr=0.0, copy_to=copy).step(np.zeros_like(param), num_threads=threads)
    with np.errstate(over="ignore", invalid="ignore"):
        assert_same_bits(copy, param.astype(small))


@formats
@pytest.mark.parametrize("bound", [True, False])
def test_copies_follow_the_weights(case, small, bound, rng):
    """Of those that have one, in every step that is taken; and nothing else changes by it."""
    cls, settings = case
    shapes = [(5_000,), (3, 4), (70,)]
    grads = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    params, plain = ([np.ones(shape, np.float32) for shape in shapes] for _ in range(2))
    params[1], plain[1] = np.asfortranarray(params[1]), np.asfortranarray(plain[1])
    copies = [np.zeros(shapes[0], small), np.zeros(shapes[1], small, order="F"), None]
    options = {**settings, "nonfinite": "skip", "max_grad_norm": 1.0, "ema_decay": 0.5}
    opt, other = cls(params, copy_to=copies, **options), cls(plain, **options)
    if bound:
        grads[1] = np.asfortranarray(grads[1])
        opt.bind(grads)
    for step in range(4):
        grads[0][0] = np.inf if step == 2 else 1.0
        before = digest(copies[:2])
        assert opt.step(None if bound else grads) == other.step(grads)
        assert step != 2 or digest(copies[:2]) == before
        for param, copy in zip(params[:2], copies[:2], strict=True):
            assert_same_bits(copy, param.astype(small))
    for param, without in zip(params, plain, strict=True):
        assert_same_bits(param, without)
    assert digest(opt.state_dict()["state"]) == digest(other.state_dict()["state"])


BAD_COPIES = {
    "float32": (lambda: np.zeros(12, np.float32), TypeError, "float16 or bfloat16, got float32"),
    "other order of bytes": (lambda: np.zeros(12, ">f2"), TypeError, "bfloat16, got >f2"),
    "list": (lambda: 1.0, TypeError, "NumPy array, got float"),
    "shape": (lambda: np.zeros(11, np.float16), ValueError, r"shape \(12,\), got \(11,\)"),
    "strided": (lambda: np.zeros(24, np.float16)[::2], ValueError, "C order.*got strides"),
    "read-only": (
        lambda: np.frombuffer(bytes(24), np.float16),
        ValueError,
        "a writable array, got a read-only one",
    ),
}


@pytest.mark.parametrize(("make", "error", "words"), BAD_COPIES.values(), ids=BAD_COPIES)
def test_bad_copy(optimizer, make, error, words):
    params = {name: np.ones(12, np.float32) for name in "ab"}
    with pytest.raises(error, match=rf"^copy_to\['b'\]: expected .*{words}"):
        optimizer(params, copy_to={"a": np.zeros(12, np.float16), "b": make()})


def test_a_copy_needs_memory_of_its_own_beside_float32(optimizer):
    param = np.ones(12, np.float32)
    with pytest.raises(ValueError, match=r"^copy_to: expected memory of its own, got an overlap"):
        optimizer(param, copy_to=param.view(np.float16)[:12])
    copy = np.zeros(12, np.float16)
    with pytest.raises(ValueError, match=r"^copy_to\[[01]\]: .*the same memory as copy_to"):
        optimizer([param, param.copy()], copy_to=[copy, copy])
    with pytest.raises(TypeError, match=r"^copy_to: expected None beside .* float32, got float16"):
        optimizer(np.ones(12), copy_to=copy)
    with pytest.raises(ValueError, match=r"^grads: expected memory of its own"):
        optimizer(param, copy_to=copy).step(copy)
    opt = optimizer(param, copy_to=copy)
    copy.flags.writeable = False
    before = digest(opt)
    with pytest.raises(ValueError, match=r"^copy_to: expected a writable array"):
        opt.step(np.ones(12, np.float32))
    assert digest(opt) == before


class TestCopiesAreTheWeights:
    """From the moment they are handed over, not from the first step on."""

    @formats
    def test_after_construction(self, optimizer, small):
        params = [np.linspace(-3, 3, 5000, dtype=np.float32), np.ones((3, 4), np.float32, "F")]
        copies = [np.zeros(5000, small), np.zeros((3, 4), small, "F")]
        opt = optimizer(params, copy_to=copies)
        for param, copy in zip(params, copies, strict=True):
            assert_same_bits(copy, param.astype(small))
        opt.step([np.ones_like(params[0]), None])
        for param, copy in zip(params, copies, strict=True):
            assert_same_bits(copy, param.astype(small))

    @formats
    def test_after_loading(self, optimizer, small, tmp_path):
        w, copy = np.ones(5, np.float32), np.zeros(5, small)
        opt = optimizer(w, copy_to=copy)
        opt.step(np.ones(5, np.float32))
        opt.save(tmp_path / "run.npz")
        for load in (
            lambda other: other.load_state_dict(opt.state_dict()),
            lambda other: other.load(tmp_path / "run.npz"),
        ):
            theirs, copied = np.zeros(5, np.float32), np.zeros(5, small)
            other = optimizer(theirs, copy_to=copied)
            theirs[:] = w
            load(other)
            assert_same_bits(copied, w.astype(small))

    @formats
    def test_after_a_skipped_first_step(self, optimizer, small):
        w, copy = np.ones(5, np.float32), np.zeros(5, small)
        opt = optimizer(w, copy_to=copy, nonfinite="skip")
        assert opt.step(np.full(5, np.inf, np.float32)).skipped
        assert_same_bits(copy, w.astype(small))

    def test_a_refused_constructor_writes_nothing(self, optimizer):
        w, copy = np.ones(5, np.float32), np.zeros(5, np.float16)
        with pytest.raises(ValueError, match="grads"):
            optimizer(w, copy_to=copy, grads=np.ones(3, np.float32))
        assert not copy.any()

    def test_a_range_test_steps_the_copies_and_puts_them_back(self):
        """The curve is that of the same loop by hand."""

        def curve(search):
            w, copy = np.zeros(4, np.float32), np.ones(4, np.float16)
            opt = op.SGD(w, lr=0.1, copy_to=copy)

            def loss_and_grads():
                error = copy.astype(np.float32) - np.float32(1.1)
                return float((error * error).sum()), 2 * error

            losses = search(opt, loss_and_grads)
            return losses, w, copy

        def by_hand(opt, loss_and_grads):
            losses = []
            for lr in np.geomspace(1e-3, 10, 20):
                loss, grads = loss_and_grads()
                losses.append(loss)
                opt.param_groups[0]["lr"] = lr
                opt.step(grads)
            return losses

        def searched(opt, loss_and_grads):
            found = op.search.range_test(
                opt, loss_and_grads, steps=20, low=1e-3, high=10, diverge=1e9
            )
            return found.losses.tolist()

        losses, w, copy = curve(searched)
        assert losses == curve(by_hand)[0][: len(losses)]
        assert len(losses) > 10
        assert not w.any()
        assert not copy.any()  # the weights, rounded

    def test_a_line_search_steps_the_copies_and_puts_them_back(self):
        w, copy = np.array([3.0], np.float32), np.zeros(1, np.float16)
        search = op.line_search.best_of([10, 1, 0.1])

        def loss():
            return float(copy[0]) ** 2 / 2

        assert search(w, w.copy(), loss, copy_to=copy).eta == 1.0
        assert (w[0], copy[0]) == (0, 0)
        w[0], copy[0] = 3, 5
        with pytest.raises(ValueError, match="^loss: expected a finite number"):
            search(w, w.copy(), lambda: np.inf, copy_to=copy)
        assert (w[0], copy[0]) == (3, 5)
        found = op.line_search.best_of([1e3])(w, w.copy(), loss, copy_to=copy)
        assert (found.eta, found.loss) == (0, 4.5)
        assert w[0] == 3
