"""What a rule remembers besides arrays: it moves when a step does, and belongs to a parameter."""

import math

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, fresh_state, one_of_each, run_reference, saved_entry

REMEMBERING = one_of_each(
    [cls for cls in op.optim.registry.values() if cls.row.memory], lambda cls: len(cls.row.memory)
)
OF_EACH = [cls for cls in REMEMBERING if cls.row.own_memory]
"""Those that remember something of each parameter, and not of all together."""
N = 20


@pytest.fixture(params=REMEMBERING, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


@pytest.fixture(params=OF_EACH, ids=lambda cls: cls.__name__)
def own(request):
    return request.param


def memory_of(opt, key=0):
    entry = saved_entry(opt, key)
    return [entry.get(name) for name in opt.row.memory]


def numbers(rng, *shape):
    return rng.normal(size=shape)


def test_it_is_the_references(cls, rng):
    start, grads = numbers(rng, N), list(numbers(rng, 5, N))
    opt = cls(start.copy())
    for grad in grads:
        opt.step(grad)
    expected = run_reference(cls, {}, start, grads)
    assert memory_of(opt) == [float(number) for number in expected[-len(cls.row.memory) :]]
    assert memory_of(opt) != list(cls.row.memory_start)


def test_a_step_that_is_skipped_or_raises_leaves_it(cls, rng):
    params, bad = [numbers(rng, N), numbers(rng, N)], np.full(N, np.nan)
    opt = cls(params, nonfinite="skip")
    opt.step([numbers(rng, N)] * 2)
    before = memory_of(opt)
    assert opt.step([numbers(rng, N), bad]).skipped
    assert memory_of(opt) == before
    opt.nonfinite = "raise"
    with pytest.raises(ValueError, match="finite"):
        opt.step([numbers(rng, N), bad])
    with pytest.raises(ValueError, match="shape"):
        opt.step([numbers(rng, N), numbers(rng, N + 1)])
    opt.param_groups[0]["lr"] = lambda _: -1.0
    with pytest.raises(ValueError, match="lr"):
        opt.step([numbers(rng, N)] * 2)
    assert memory_of(opt) == before


def test_a_skipped_step_that_would_have_changed_the_arrays_leaves_it(own):
    param = np.ones(5000, np.float32)
    opt = own(param, nonfinite="skip")
    opt.step(np.ones_like(param))
    before = memory_of(opt)
    opt.param_groups[0]["state_format"] = "bf16"
    assert memory_of(opt) == before
    assert opt.step(np.full_like(param, np.inf)).skipped
    assert memory_of(opt) == before
    opt.step(np.ones_like(param))
    twin = own(np.ones_like(param))
    for _ in range(2):
        twin.step(np.ones_like(param))
    assert memory_of(opt) == memory_of(twin) != before


def test_a_parameter_that_misses_steps_keeps_its_own(own, rng):
    """Also where the numbers of steps are the same, and the settings then were not."""
    starts, grads = numbers(rng, 3, N), list(numbers(rng, 4, N))
    params = [start.copy() for start in starts]
    first, then = ({"lr": 0.1, "betas": (0.5, 0.9)}, {"lr": 0.05, "betas": (0.8, 0.9)})
    opt = own(params, **first)
    opt.step([grads[0], None, None])
    opt.param_groups[0].update(then)
    opt.step([None, grads[1], None])
    assert memory_of(opt, 0) != memory_of(opt, 1)
    opt.step([grads[2], grads[2], grads[2]])

    one = (starts[0], *fresh_state(own, {}, starts[0]))
    one = own.reference_step(one[0], grads[0], *one[1:], step=1, **first)
    one = own.reference_step(one[0], grads[2], *one[1:], step=2, **then)
    two = run_reference(own, then, starts[1], [grads[1], grads[2]])
    three = run_reference(own, then, starts[2], [grads[2]])
    for i, expected in enumerate((one, two, three)):
        assert_same_bits(params[i], expected[0])
        assert memory_of(opt, i) == [float(x) for x in expected[-len(own.row.memory) :]]


def test_resuming_is_bitwise_after_settings_have_changed(cls, tmp_path, rng):
    """It cannot be computed anew from the settings of now."""
    whole, grads = cls(numbers(rng, N), betas=(0.5, 0.9)), numbers(rng, 4, N)
    whole.step(grads[0])
    whole.param_groups[0]["betas"] = (0.9, 0.99)
    whole.step(grads[1])
    whole.save(tmp_path / "run.npz")
    resumed = cls(whole.param_groups[0]["params"][0].copy())
    resumed.load(tmp_path / "run.npz")
    assert memory_of(resumed) == memory_of(whole)
    for grad in grads[2:]:
        whole.step(grad)
        resumed.step(grad)
    assert memory_of(resumed) == memory_of(whole)
    assert_same_bits(resumed.param_groups[0]["params"][0], whole.param_groups[0]["params"][0])


def test_parameters_that_are_added_begin_with_the_start(own, rng):
    old, new, grad = numbers(rng, N), numbers(rng, N), numbers(rng, N)
    opt, alone = own(old), own(new.copy())
    opt.step(grad)
    before = memory_of(opt)
    opt.add_param_group({"params": [new]})
    assert memory_of(opt) == before
    opt.step([None, [grad]])
    alone.step(grad)
    assert memory_of(opt, 1) == memory_of(alone)


@pytest.mark.parametrize("value", [None, 10**400, "1", True, np.ones(2), 1j])
def test_a_saved_number_that_is_no_number(own, value, rng):
    opt = own(numbers(rng, N))
    opt.step(numbers(rng, N))
    saved, before = opt.state_dict(), memory_of(opt)
    saved["state"][0][own.row.memory[0]] = value
    words = rf"^state\[0\]\['{own.row.memory[0]}'\]: expected a number, got "
    with pytest.raises(ValueError, match=words):
        opt.load_state_dict(saved)
    del saved["state"][0][own.row.memory[0]]
    with pytest.raises(ValueError, match=words + "None"):
        opt.load_state_dict(saved)
    assert memory_of(opt) == before


class TestKernels:
    def arrays(self, cls, rng):
        param = numbers(rng, N)
        return [param, numbers(rng, N), *fresh_state(cls, {}, param)]

    def refuse(self, cls, arrays, error, words):
        before = [np.copy(a) if isinstance(a, np.ndarray) else a for a in arrays]
        with pytest.raises(error, match=rf"^{words}"):
            getattr(op.kernels, cls.rule)(*arrays, step=1)
        for array, was in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(array, was)

    @pytest.mark.parametrize(
        ("bad", "error", "words"),
        [
            (None, TypeError, "a NumPy array, got NoneType"),
            (1.0, TypeError, "a NumPy array, got float"),
            (np.ones((), np.float32), TypeError, "dtype float64, got float32"),
            (np.ones((), ">f8"), TypeError, "dtype float64, got"),
            (np.ones(2), ValueError, r"an array of one element, got \(2,\)"),
            (np.ones(0), ValueError, r"an array of one element, got \(0,\)"),
            (np.broadcast_to(1.0, 1), ValueError, "a writable array"),
            (np.zeros(9, np.uint8)[1:].view(np.float64), ValueError, "data aligned"),
        ],
    )
    def test_a_bad_array(self, cls, bad, error, words, rng):
        arrays = self.arrays(cls, rng)
        arrays[-1] = bad
        self.refuse(cls, arrays, error, f"{cls.row.memory[-1]}: expected {words}")

    def test_arrays_that_lie_where_others_do(self, cls, rng):
        arrays = self.arrays(cls, rng)
        arrays[-1] = arrays[0][3:4]
        self.refuse(cls, arrays, ValueError, ".*: expected memory of its own, got an overlap")

    def test_one_array_for_two_parameters(self, own, rng):
        arrays = [[a, b] for a, b in zip(self.arrays(own, rng), self.arrays(own, rng), strict=True)]
        arrays[-1][1] = arrays[-1][0]
        with pytest.raises(ValueError, match=r"\]: expected memory of its own, got the same"):
            getattr(op.kernels, own.rule)(*arrays, step=1)

    def test_left_out(self, cls, rng):
        arrays = self.arrays(cls, rng)[: -len(cls.row.memory)]
        self.refuse(cls, arrays, TypeError, f"{cls.row.memory[0]}: expected a NumPy array")
        expected = "a list" if cls.row.own_memory else "a NumPy array"
        lists = [[a] for a in arrays]
        self.refuse(cls, lists, TypeError, f"{cls.row.memory[0]}: expected {expected}")

    def test_a_list_of_another_length(self, own, rng):
        arrays = [[a] for a in self.arrays(own, rng)]
        arrays[-1] = []
        self.refuse(own, arrays, ValueError, f"{own.row.memory[-1]}: expected a list of 1")

    @pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
    @pytest.mark.parametrize("usual", [True, False])
    def test_it_moves_with_the_step(self, cls, shape, usual, rng):
        arrays = self.arrays(cls, rng)
        n = len(cls.row.memory)
        arrays[-n:] = [np.reshape(a, shape).copy() for a in arrays[-n:]]
        arrays[1] = arrays[1] if usual else np.repeat(arrays[1], 2)[::2]
        expected = run_reference(cls, {}, arrays[0], [arrays[1]] * 2)
        kernel = getattr(op.kernels, cls.rule)
        kernel(*arrays, step=1)
        before = [a.copy() for a in arrays]
        nan = np.full_like(arrays[1], np.nan, subok=False)
        kernel(arrays[0], nan, *arrays[2:], step=2, nonfinite="skip")
        for array, was in zip(arrays, before, strict=True):
            assert_same_bits(array, was)
        kernel(*arrays, step=2)
        for array, wanted in zip([arrays[0], *arrays[2:]], expected, strict=True):
            assert_same_bits(array.reshape(wanted.shape), wanted)

    def test_lists_with_numbers_of_their_own(self, own, rng):
        """Also 0.0 beside -0.0, which are equal and have other bits."""
        for last in (0.25, -0.0):
            arrays = [[a, b] for a, b in zip(*(self.arrays(own, rng) for _ in "ab"), strict=True)]
            n = len(own.row.memory)
            for of_both in arrays[-n:]:
                of_both[0][...], of_both[1][...] = 0.0, last
            expected = [own.reference_step(*of_one, step=3) for of_one in zip(*arrays, strict=True)]
            getattr(op.kernels, own.rule)(*arrays, step=3)
            for i, of_one in enumerate(expected):
                for actual, wanted in zip([arrays[0], *arrays[2:]], of_one, strict=True):
                    assert_same_bits(actual[i], wanted)

    def test_the_step_cannot_be_left_out(self, cls, rng):
        """Though with a rate of 0 nothing else depends on it."""
        with pytest.raises(TypeError, match="^step: expected the number of this step"):
            getattr(op.kernels, cls.rule)(*self.arrays(cls, rng), lr=0.0)

    def test_the_reference_names_what_is_no_array(self, cls, rng):
        arrays = self.arrays(cls, rng)
        words = f"^{cls.row.memory[-1]}: expected an array of one element, got "
        for bad in (None, 1.0, np.ones(2)):
            with pytest.raises(ValueError, match=words):
                cls.reference_step(*arrays[:-1], bad, step=1)
        with pytest.raises(ValueError, match="^state: expected at most"):
            cls.reference_step(*arrays, arrays[-1], step=1)

    def test_none_leaves_it(self, own, rng):
        arrays = [[a, b] for a, b in zip(self.arrays(own, rng), self.arrays(own, rng), strict=True)]
        arrays[1][0] = None
        getattr(op.kernels, own.rule)(*arrays, step=1)
        for start, (left, moved) in zip(
            own.row.memory_start, arrays[-len(own.row.memory) :], strict=True
        ):
            assert left == start
            assert moved != start


def test_the_product_of_nadams_momenta():
    """What it is, with betas that change, and once it has vanished."""
    w = np.ones(1)
    opt = op.NAdam(w, betas=(0.5, 0.999), momentum_decay=math.inf)
    opt.step(np.ones(1))
    opt.param_groups[0]["betas"] = (0.25, 0.999)
    opt.step(np.ones(1))
    assert memory_of(opt) == [0.125]
    opt.param_groups[0]["betas"] = (0.5, 0.999)
    for _ in range(1100):  # 2**-1075 is 0 in double
        opt.step(np.ones(1))
    assert memory_of(opt) == [0.0]
    assert np.isfinite(w)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_resumes_too(bad, tmp_path):
    """It spreads into a norm that is remembered, as it does into arrays."""
    w = np.ones((2, 3))
    opt, resumed = op.NovoGrad(w[0]), op.NovoGrad(w[1])
    opt.step(np.array([1.0, bad, 1.0]))
    w[1] = w[0]
    opt.save(tmp_path / "run.npz")
    resumed.load(tmp_path / "run.npz")
    assert not np.isfinite(memory_of(resumed)).any()
    for each in (opt, resumed):
        each.step(np.ones(3))
    assert_same_bits(w[1], w[0])
