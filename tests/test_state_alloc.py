"""State that a function of the user's makes: where it lies, and that it is the same state."""

# ruff: noqa: ARG002, ARG005
# What state_alloc is given is more than these functions look at.

import copy
import itertools
import math
import mmap
import os
import pickle
import tempfile

import numpy as np
import pytest

import onepass as op
from helpers import RICHEST, accepts, assert_same_bits, digest
from interrupting import at_each_place
from onepass import optim

N = 4200  # large enough for 8-bit state


class Pool:
    """Gives arrays that held something, and remembers all that was asked for."""

    def __init__(self, order="C"):
        self.order = order
        self.asked = []
        self.made = {}

    def __call__(self, name, shape, dtype):
        self.asked.append((name, shape, dtype))
        size = math.prod(shape)
        # One element past where anything is aligned, inside a guard.
        whole = np.full((size + 2) * dtype.itemsize, 0xA5, np.uint8).view(dtype)
        self.made[name] = whole[1 : size + 1].reshape(shape, order=self.order)
        return self.made[name]

    def names(self):
        return [name for name, _, _ in self.asked]

    def check_guards(self):
        for array in self.made.values():
            base = array.base.view(np.uint8) if array.size else np.full(2, 0xA5, np.uint8)
            assert (base[: array.itemsize] == 0xA5).all()
            assert (base[-array.itemsize :] == 0xA5).all()


def weights(order="C"):
    rng = np.random.default_rng(0)
    matrix = np.asarray(rng.normal(size=(60, 70)).astype("f4"), order=order)
    return {
        "layer": {"w": matrix},
        "half": np.asarray(rng.normal(size=(60, 70)), "f2", order=order),
    }


def gradients(step):
    rng = np.random.default_rng(step)
    shape = (60, 70)
    return {
        "layer": {"w": rng.normal(size=shape).astype("f4")},
        "half": rng.normal(size=shape).astype("f2"),
    }


def run(cls, params, steps=range(4), opt=None, **options):
    opt = opt or cls(params, lr=0.01, **options)
    for step in steps:
        if step == 2:
            opt.accumulate(gradients(step))
            opt.step()
        else:
            opt.step(gradients(step))
    return opt


@pytest.mark.parametrize("order", "CF")
def test_every_rule_steps_as_with_state_of_numpys(every_class, order):
    chosen = {"ema_decay": 0.9, "lookahead_every": 2, "weight_decay": 0.1, "state_format": "q8"}
    options = {}
    for name, value in chosen.items():
        if accepts(every_class, {**options, name: value}):
            options[name] = value
    if not every_class.row.full_weights:
        options["rounding"] = "master"
    params = weights(order)
    plain = weights(order)
    if every_class.row.full_weights:
        params.pop("half"), plain.pop("half")
    pool = Pool(order)
    results = []
    for own, extra in ((params, {"state_alloc": pool}), (plain, {})):
        opt = every_class(own, lr=0.01, **options, **extra)
        for step in range(3):
            grads = {name: gradients(step)[name] for name in own}
            if step == 1:
                opt.accumulate(grads)
                opt.step()
            else:
                opt.step(grads)
        results.append(digest(own, opt.state_dict()))
    assert results[0] == results[1]
    pool.check_guards()


def test_every_array_is_asked_for_by_name_shape_and_dtype():
    pool, params = Pool(), weights()
    opt = run(RICHEST, params, state_alloc=pool, ema_decay=0.9, lookahead_every=3)
    states = [name for name in RICHEST.state_names() if name]
    f4, f8 = np.dtype("f4"), np.dtype("f8")
    expected = {(f"{key}.{name}", (60, 70), f4) for key in ("layer.w", "half") for name in states}
    for key in ("layer.w", "half"):
        expected |= {(f"{key}.average", (60, 70), f8), (f"{key}.slow", (60, 70), f4)}
        expected |= {(f"{key}.accumulated", (60, 70), f4)}
    expected |= {("half.master", (60, 70), f4)}
    assert set(pool.asked) == expected
    assert len(pool.asked) == len(expected)  # each once
    # And there the state is.
    for key, entry in opt.state_dict()["state"].items():
        for name in (*states, "average", "slow"):
            assert_same_bits(pool.made[f"{key}.{name}"], entry[name])


def test_state_of_another_shape():
    pool = Pool()
    op.Adafactor(np.ones((3, 4), np.float32), state_alloc=pool)
    assert [(name, shape) for name, shape, _ in pool.asked] == [
        ("0.row_var", (3, 1)),
        ("0.col_var", (1, 4)),
    ]


def test_an_index_is_the_name_where_there_is_none_and_codes_are_bytes():
    pool = Pool()
    opt = op.SGD([np.ones(N, np.float32)], lr=1.0, momentum=0.9, state_alloc=pool)
    opt.param_groups[0]["state_format"] = "q8"
    saved = digest(opt.state_dict())
    assert len(pool.asked) == 1  # a copy for the dictionary is none of the user's
    opt.step([np.ones(N, np.float32)])
    codes = op.formats.q8_size(N)
    assert pool.asked == [
        ("0.momentum_buffer", (N,), np.dtype("f4")),
        ("0.momentum_buffer", (codes,), np.dtype("u1")),
    ]
    assert digest(opt.state_dict()) != saved


class TestFiles:
    def test_state_in_a_mapped_file(self, tmp_path):
        def in_a_file(name, shape, dtype):
            return np.memmap(tmp_path / name, dtype, "w+", shape=shape)

        params, plain = weights(), weights()
        opt = run(RICHEST, params, state_alloc=in_a_file)
        twin = run(RICHEST, plain)
        assert digest(params, opt.state_dict()) == digest(plain, twin.state_dict())
        name = next(filter(None, RICHEST.state_names()))
        found = np.fromfile(tmp_path / f"layer.w.{name}", np.float32).reshape(60, 70)
        assert_same_bits(found, opt.state_dict()["state"]["layer.w"][name])

    def test_state_in_pages_of_a_pool(self):
        """An anonymous map, in which arrays follow each other; as huge pages are had."""
        memory, used = mmap.mmap(-1, 1 << 20), 0

        def from_the_pool(name, shape, dtype):
            nonlocal used
            begin, used = used, used + -(-math.prod(shape) * dtype.itemsize // 64) * 64
            return np.frombuffer(memory, dtype, math.prod(shape), begin).reshape(shape)

        params, plain = weights(), weights()
        opt, twin = run(RICHEST, params, state_alloc=from_the_pool), run(RICHEST, plain)
        assert digest(params, opt.state_dict()) == digest(plain, twin.state_dict())

    @pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="not on this system")
    def test_files_without_a_name(self, tmp_path):
        """What the documentation shows; a format that changes takes another file."""

        def alloc(name, shape, dtype):
            with tempfile.TemporaryFile(dir=tmp_path) as file:
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * dtype.itemsize)
                return np.memmap(file, dtype, "r+", shape=shape)

        params, plain = weights(), weights()
        opt, twin = run(RICHEST, params, state_alloc=alloc), run(RICHEST, plain)
        for each in (opt, twin):
            each.param_groups[0]["state_format"] = "q8"
        run(RICHEST, params, opt=opt), run(RICHEST, plain, opt=twin)
        assert digest(params, opt.state_dict()) == digest(plain, twin.state_dict())


WRONG = {
    "no function": (3, TypeError, "state_alloc: expected a function or None, got int"),
    "no array": (lambda n, s, d: [0.0] * 4, TypeError, "expected a NumPy array, got list"),
    "masked": (lambda n, s, d: np.ma.zeros(s, d), TypeError, "without a mask"),
    "dtype": (lambda n, s, d: np.zeros(s, "f8"), TypeError, "expected dtype float32, got float64"),
    "byte order": (
        lambda n, s, d: np.zeros(s, d.newbyteorder()),
        TypeError,
        "expected dtype float32, got >f4",
    ),
    "shape": (lambda n, s, d: np.zeros(24, d), ValueError, r"expected shape \(4, 6\), got \(24,\)"),
    "read-only": (
        lambda n, s, d: np.broadcast_to(d.type(0), s),
        ValueError,
        "expected a writable array, got a read-only one",
    ),
    "order": (
        lambda n, s, d: np.zeros(s, d, order="F"),
        ValueError,
        r"expected an array in C order, as its parameter, got strides \(4, 16\)",
    ),
    "strides": (lambda n, s, d: np.zeros((8, 6), d)[::2], ValueError, "in C order"),
    "misaligned": (
        lambda n, s, d: np.zeros(24 * 4 + 1, np.uint8)[1:].view(d).reshape(s),
        ValueError,
        "expected data aligned to its item size, got a misaligned array",
    ),
    "its own error": (lambda n, s, d: {}[n], KeyError, "w.momentum_buffer"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_as_asked_for_is_refused_and_nothing_has_changed(wrong):
    alloc, error, words = WRONG[wrong]
    named = r"state_alloc\['w'\]\['momentum_buffer'\]: "
    match = words if wrong in ("no function", "its own error") else f"^{named}.*{words}"
    params = {"w": np.ones((4, 6), np.float32)}
    with pytest.raises(error, match=match):
        op.SGD(params, lr=1.0, momentum=0.9, state_alloc=alloc)
    if wrong == "no function":
        return
    # The same in a step that needs an array, in accumulate and in load_state_dict.
    source = op.SGD(params, lr=1.0, momentum=0.9)
    source.step({"w": np.ones((4, 6), np.float32)})
    saved = source.state_dict()
    opt = op.SGD(params, lr=1.0, state_alloc=alloc)  # needs none
    before = digest(params, opt.state_dict())
    if wrong != "its own error":
        match = match.replace("momentum_buffer", "accumulated")
    else:
        match = "w.accumulated"
    with pytest.raises(error, match=match):
        opt.accumulate({"w": np.ones((4, 6), np.float32)})
    assert digest(params, opt.state_dict()) == before
    match = match.replace("accumulated", "momentum_buffer")
    with pytest.raises(error, match=match):
        opt.load_state_dict(saved)
    assert digest(params, opt.state_dict()) == before
    opt.param_groups[0]["momentum"] = 0.9
    before = digest(params, opt.state_dict())
    with pytest.raises(error, match=match):
        opt.step({"w": np.ones((4, 6), np.float32)})
    assert digest(params, opt.state_dict()) == before


class TestOverlaps:
    buffer = np.zeros(100, np.float32)

    def alloc(self, name, shape, dtype):
        return self.buffer[: math.prod(shape)].reshape(shape)

    def make(self, params, **options):
        return op.SGD(params, lr=1.0, momentum=0.9, state_alloc=self.alloc, **options)

    @pytest.mark.parametrize("offset", [-1, 0, 3])
    def test_a_parameter(self, offset):
        whole = np.ones(30, np.float32)
        state = whole[5 + offset : 15 + offset]
        with pytest.raises(ValueError, match=r"^state_alloc\['momentum_buffer'\]: .*params"):
            op.SGD(whole[5:15], lr=1.0, momentum=0.9, state_alloc=lambda n, s, d: state)

    def test_a_copy(self):
        copied = self.buffer[2:7].view(np.float16)
        with pytest.raises(
            ValueError, match=r"(state_alloc|copy_to).*: expected memory of its own"
        ):
            self.make(np.ones(10, np.float32), copy_to=copied)

    def test_other_state(self):
        with pytest.raises(ValueError, match=r"^state_alloc\[[01]\].*the same memory as state_all"):
            self.make([np.ones(5, np.float32), np.ones(5, np.float32)])

    def test_a_sum(self):
        w = np.ones(5, np.float32)
        opt = self.make(w)
        with pytest.raises(ValueError, match=r"state_alloc.*: expected memory of its own"):
            opt.accumulate(w.copy())

    def test_bound_gradients(self):
        w = np.ones(5, np.float32)
        with pytest.raises(ValueError, match=r"(state_alloc|grads).*: expected memory of its own"):
            self.make(w, grads=self.buffer[3:8])
        opt = op.SGD(w, lr=1.0, state_alloc=self.alloc, grads=self.buffer[3:8])
        opt.param_groups[0]["momentum"] = 0.9
        with pytest.raises(ValueError, match=r"(state_alloc|grads).*: expected memory of its own"):
            opt.step()

    def test_gradients(self):
        w = np.ones(5, np.float32)
        opt = self.make(w)
        for grad in (self.buffer[:5], self.buffer[4:9]):
            for call in (opt.step, opt.bind, opt.accumulate):
                with pytest.raises(ValueError, match=r"expected memory of its own"):
                    call(grad)
        opt.step(self.buffer[5:10])  # beside it
        late = op.SGD(w, lr=1.0, state_alloc=self.alloc)
        late.param_groups[0]["momentum"] = 0.9  # the step itself makes the state
        with pytest.raises(ValueError, match=r"expected memory of its own"):
            late.step(self.buffer[:5])
        late.param_groups[0]["momentum"] = 0.0
        late.step(self.buffer[:5])  # there is no state there

    def test_rows(self):
        table = np.ones((2, 5), np.float32)
        opt = self.make(table)
        with pytest.raises(ValueError, match=r"expected memory of its own"):
            opt.step_rows((np.array([1]), self.buffer[5:10].reshape(1, 5)))

    def test_a_group_that_is_added(self):
        opt = self.make(np.ones(5, np.float32))
        with pytest.raises(ValueError, match=r"(state_alloc|params).*: expected memory of its own"):
            opt.add_param_group({"params": self.buffer[3:8]})


class TestLoading:
    def source(self, **options):
        params = weights()
        opt = run(RICHEST, params, ema_decay=0.9, lookahead_every=3, **options)
        opt.accumulate(gradients(7))
        return params, opt.state_dict()

    def target(self, params, pool, **options):
        own = copy.deepcopy(params)
        return own, RICHEST(
            own, lr=0.01, ema_decay=0.9, lookahead_every=3, state_alloc=pool, **options
        )

    @pytest.mark.parametrize("state_format", [None, "bf16", "q8"])
    def test_it_writes_into_the_arrays_that_there_are(self, state_format, tmp_path):
        params, saved = self.source(state_format=state_format)
        pool = Pool()
        own, opt = self.target(params, pool, state_format=state_format)
        opt.accumulate(gradients(0))
        made, asked = dict(pool.made), len(pool.asked)
        opt.load_state_dict(saved)
        assert len(pool.asked) == asked
        assert digest(opt.state_dict()) == digest(saved)
        for key, entry in saved["state"].items():
            for name, value in entry.items():
                if isinstance(value, np.ndarray):
                    assert_same_bits(made[f"{key}.{name}"], value)
        # Both go on alike, and a file does the same.
        twin = RICHEST(params, lr=0.01)
        twin.load_state_dict(saved)
        opt.save(tmp_path / "run.npz")
        opt.load(tmp_path / "run.npz")
        opt.step(), twin.step()
        assert digest(own, opt.state_dict()) == digest(params, twin.state_dict())
        assert len(pool.asked) == asked

    def test_it_asks_anew_where_the_format_differs(self):
        params, saved = self.source(state_format="q8")
        pool = Pool()
        _, opt = self.target(params, pool)
        pool.asked.clear()
        opt.load_state_dict(saved)
        states = [name for name in RICHEST.state_names() if name]
        codes = (op.formats.q8_size(N),)
        sums = [(f"{key}.accumulated", (60, 70)) for key in ("layer.w", "half")]
        expected = [(f"{key}.{n}", codes) for key in ("layer.w", "half") for n in states]
        assert {(name, shape) for name, shape, _ in pool.asked} == {*sums, *expected}
        assert digest(opt.state_dict()) == digest(saved)

    def test_unsettled_state(self):
        params = weights()
        opt = run(RICHEST, params)
        opt.param_groups[0]["state_format"] = "q8"
        saved = opt.state_dict()
        assert "unsettled" in saved
        own, pool = copy.deepcopy(params), Pool()
        other = RICHEST(own, lr=0.01, state_alloc=pool)
        asked = len(pool.asked)
        other.load_state_dict(saved)
        assert len(pool.asked) == asked
        opt.step(gradients(5)), other.step(gradients(5))
        assert digest(own, other.state_dict()) == digest(params, opt.state_dict())

    def test_one_that_fails_writes_nothing(self):
        params, saved = self.source()
        pool = Pool()
        _, opt = self.target(params, pool)
        made = list(pool.made.values())
        before = digest(opt.state_dict(), made)
        saved["state"]["half"]["average"] = np.zeros(3)  # the last parameter's
        with pytest.raises(ValueError, match="average"):
            opt.load_state_dict(saved)
        assert digest(opt.state_dict(), made) == before

    def test_an_interrupt_leaves_the_old_state_or_the_new(self):
        params, saved = self.source()
        loaded, runs = digest(saved), []

        def attempt():
            _, opt = self.target(params, Pool())
            opt.accumulate(gradients(1))
            runs.append((opt, digest(opt.state_dict())))
            return lambda: opt.load_state_dict(saved)

        for where, _ in at_each_place(attempt):
            opt, before = runs.pop()
            assert before != loaded
            assert digest(opt.state_dict()) in (before, loaded), where
        opt, _ = runs.pop()
        assert digest(opt.state_dict()) == loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_a_copy_has_memory_of_its_own(copied, tmp_path):
    def in_a_file(name, shape, dtype):
        return np.memmap(tmp_path / name, dtype, "w+", shape=shape)

    opt = run(RICHEST, weights(), state_alloc=in_a_file)
    before = digest(opt.state_dict())
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = copied(opt)
    assert digest(other.state_dict()) == before
    other.param_groups[0]["ema_decay"] = 0.9
    run(RICHEST, None, opt=other)
    assert digest(opt.state_dict()) == before
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_range_test_leaves_it_alone():
    pool, params = Pool(), weights()
    opt = run(RICHEST, params, state_alloc=pool)
    before, asked = digest(params, opt.state_dict(), list(pool.made.values())), len(pool.asked)
    op.search.range_test(opt, lambda: (1.0, gradients(0)), steps=2)
    assert digest(params, opt.state_dict(), list(pool.made.values())) == before
    assert len(pool.asked) == asked


def test_a_group_that_is_added_has_its_state_there_too():
    pool = Pool()
    w, v = np.ones(3, np.float32), np.ones(4, np.float32)
    opt = op.SGD(w, lr=1.0, momentum=0.9, state_alloc=pool)
    opt.add_param_group({"params": v})
    opt.step([w.copy(), v.copy()])
    assert pool.names()[-1] == "1.momentum_buffer"
    assert_same_bits(pool.made["1.momentum_buffer"], np.ones(4, np.float32))


def test_the_array_cannot_be_resized_below_the_optimizer():
    made = []

    def alloc(name, shape, dtype):
        made.append(np.zeros(shape, dtype))
        return made[-1]

    op_ = op.SGD(np.ones(3, np.float32), lr=1.0, momentum=0.9, state_alloc=alloc)
    with pytest.raises(ValueError, match="resize"):
        made[0].resize(1000)
    op_.step(np.ones(3, np.float32))
    assert_same_bits(made[0], np.ones(3, np.float32))


def test_a_step_inside_the_function_is_refused():
    w = np.ones(3, np.float32)
    opt = None

    def alloc(name, shape, dtype):
        if opt is not None:
            opt.step(np.ones(3, np.float32))
        return np.zeros(shape, dtype)

    opt = op.SGD(w, lr=1.0, state_alloc=alloc)
    opt.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="step: expected one thread at a time"):
        opt.step(np.ones(3, np.float32))
    assert_same_bits(w, np.ones(3, np.float32))


def test_minimize_does_not_take_it():
    with pytest.raises(TypeError, match="state_alloc"):
        op.minimize(lambda x: (x @ x, 2 * x), np.ones(3), state_alloc=Pool())


def test_it_is_documented_where_all_options_are():
    assert "state_alloc" in optim._settings.StepOptions.__annotations__
    assert "state_alloc" in op.Optimizer.__doc__


@pytest.mark.parametrize("clear_grads", [False, True])
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_what_is_not_accumulated_asks_for_no_sum_and_touches_none(nonfinite, clear_grads):
    pool, params = Pool(), weights()
    opt = op.Adam(params, state_alloc=pool, nonfinite=nonfinite, clear_grads=clear_grads)

    def left_out():
        grads = gradients(0)
        grads["layer"]["w"][0, 0] = np.inf
        if nonfinite == "skip":
            assert not opt.accumulate(grads)
            return
        with pytest.raises(ValueError, match="micro-batch"):
            opt.accumulate(grads)

    left_out()
    assert not any("accumulated" in name for name in pool.names())
    assert opt.accumulate(gradients(1))
    asked = list(pool.asked)
    for key, grad in (("layer.w", gradients(1)["layer"]["w"]), ("half", gradients(1)["half"])):
        sums = pool.made[f"{key}.accumulated"]
        assert_same_bits(sums, grad.astype("f4"))
    left_out()
    assert_same_bits(pool.made["layer.w.accumulated"], gradients(1)["layer"]["w"])
    assert pool.asked == asked
    twin = weights()
    op.Adam(twin).step(gradients(1))
    opt.step()
    assert digest(params) == digest(twin)
    pool.check_guards()


def test_the_average_in_another_dtype_is_asked_for_anew():
    pool, params, twin = Pool(), weights(), weights()
    opts = [op.Adam(params, ema_decay=0.5, state_alloc=pool), op.Adam(twin, ema_decay=0.5)]
    for dtype in ("float32", "float64"):
        for opt in opts:
            opt.step(gradients(0))
            opt.param_groups[0]["average_dtype"] = dtype
            opt.step(gradients(1))
        assert digest(params, opts[0].state_dict()) == digest(twin, opts[1].state_dict())
        saved = opts[0].state_dict()
        assert_same_bits(pool.made["half.average"], saved["state"]["half"]["average"])
    dtypes = [dtype.name for name, _, dtype in pool.asked if name == "half.average"]
    assert dtypes == ["float64", "float32", "float64"]
    place = pool.made["half.average"]
    opts[0].load_state_dict(saved)
    opts[0].step(gradients(2))
    assert_same_bits(place, opts[0].state_dict()["state"]["half"]["average"])
    pool.check_guards()


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("state_format", [None, "q8"])
def test_state_in_the_order_of_its_parameter(axes, state_format):
    shape, back = (12, 20, 18), np.argsort(axes)

    def made():
        rng = np.random.default_rng(0)
        flat = rng.normal(size=[shape[axis] for axis in axes]).astype("f4")
        return flat.transpose(back)  # of this shape, in that order of the axes

    def alloc(name, shape, dtype):
        if len(shape) == 1:
            return np.empty(shape, dtype)
        return np.empty([shape[axis] for axis in axes], dtype).transpose(back)

    results = []
    for extra in ({}, {"state_alloc": alloc}):
        param, grad = made(), made()
        opt = op.Adam(param, ema_decay=0.9, state_format=state_format, **extra)
        opt.accumulate(grad)
        opt.step()
        opt.load_state_dict(opt.state_dict())
        opt.step(grad)
        results.append(digest(param, opt.state_dict()))
    assert results[0] == results[1]


def test_state_in_another_order_of_axes_is_refused():
    param = np.ones((2, 3, 4), np.float32).transpose(1, 0, 2)
    expected = r"^state_alloc\['exp_avg'\]: expected an array in the order \[1, 0, 2\] of axes"
    with pytest.raises(ValueError, match=expected):
        op.Adam(param, state_alloc=np_empty)


def np_empty(name, shape, dtype):
    return np.empty(shape, dtype)


def test_settings_by_name_and_turns_of_single_parameters():
    options = {"overrides": {"half": {"lr": 0.1, "ema_decay": 0.5}}}
    results = []
    for extra in ({}, {"state_alloc": Pool()}):
        params = weights()
        opt = op.Adam(params, **options, **extra)
        for step in range(3):
            grads = gradients(step)
            opt.step_one("half", grads["half"], stats=True)
            opt.step_one("layer.w", grads["layer"]["w"])
        results.append(digest(params, opt.state_dict()))
    assert results[0] == results[1]
    asked = extra["state_alloc"].names()
    assert "half.average" in asked
    assert "layer.w.average" not in asked
