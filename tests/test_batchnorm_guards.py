"""Guards of BatchNorm: failures that change nothing, interrupts, memory that moves."""

import copy
import inspect
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import onepass as op
from batchnorm_cases import FUNCTIONS, Problem, arrays, read_only
from helpers import digest
from interrupting import at_each_place
from onepass.batchnorm import functional, reference

# Arguments by keyword


@pytest.mark.parametrize(
    "name", functional.__all__ if hasattr(functional, "__all__") else FUNCTIONS
)
def test_only_the_batch_has_a_position(rng, name):
    """In PyTorch's order, the running statistics would be taken for weight and bias."""
    called = getattr(op, f"batch_norm_{name}")
    parameters = inspect.signature(called).parameters.values()
    batch = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert batch == (["dy", "x"] if "backward" in name else ["x"])
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters)[len(batch) :])
    p = arrays(rng)
    before = digest(p)
    running = np.zeros(4, np.float32), np.ones(4, np.float32)
    with pytest.raises(TypeError, match="positional argument"):
        called(*[p[which] for which in batch], *running, p["weight"], p["bias"])
    assert digest(p) == before
    assert digest(running) == digest((np.zeros(4, np.float32), np.ones(4, np.float32)))


# Settings

TWO_VALUES = {"eps": (1e-5, 0.5), "axis": (1, -1), "relu": (False, True)}


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        (name, setting)
        for name in FUNCTIONS
        for setting in TWO_VALUES
        if setting in inspect.signature(getattr(op, f"batch_norm_{name}")).parameters
    ],
)
def test_a_setting_counts_for_the_call_that_has_it(rng, name, setting):
    p = arrays(rng, (4, 4, 4))

    def result(value):
        return digest(FUNCTIONS[name](p, **{setting: value}))

    one, other = TWO_VALUES[setting]
    first, second = result(one), result(other)
    assert first != second
    for value, expected in ((one, first), (other, second), (other, second), (one, first)):
        assert result(value) == expected
        assert result(np.array(value)[()]) == expected  # the same as a scalar of NumPy


def test_a_number_that_changes_is_checked_each_time(rng):
    class Changing(float):
        now = 0.5

        def __float__(self):
            return self.now

    p, eps = arrays(rng), Changing(0.25)
    assert digest(FUNCTIONS["infer"](p, eps=eps)) == digest(FUNCTIONS["infer"](p, eps=0.5))
    Changing.now = 0.125
    assert digest(FUNCTIONS["infer"](p, eps=eps)) == digest(FUNCTIONS["infer"](p, eps=0.125))
    Changing.now = -1.0
    for _ in range(2):
        with pytest.raises(ValueError, match="eps: expected a finite number > 0"):
            FUNCTIONS["infer"](p, eps=eps)


# The floating-point error state


def everything(rng):
    """All that is public, on numbers that overflow, underflow, and divide 0 by 0."""
    results = []
    for dtype in (np.float32, np.float64):
        info = np.finfo(dtype)
        x = rng.normal(size=(20, 4, 3)).astype(dtype)
        x[:, 1], x[:3, 2], x[0, 3] = info.tiny, info.max, np.inf
        strided = np.repeat(x, 2, axis=0)[::2]
        p = {**arrays(rng, (20, 4, 3), dtype), "x": strided}
        p["dy"][4:9] *= info.max / 8
        p["var"][0] = 0
        p["running"] = {"running_mean": np.zeros(4, "f"), "running_var": np.ones(4, "f")}
        for function in FUNCTIONS.values():
            results.append(function(p, relu=True, residual=p["dy"]))
        problem = Problem(rng, (20, 4, 3), 1, dtype, lambda *_, x=x: x, residual=True)
        statistics = reference.statistics(problem.last(x), 1e-5)
        for frozen in (False, True):
            results += problem.expected_gradients(
                statistics.mean, statistics.invstd, relu=True, frozen=frozen
            )
        results.append(problem.expected_y(statistics.mean, statistics.invstd, relu=True))
        results.append(reference.running(np.full(4, info.max, dtype), statistics.var * 4, 0.5))
        bn = op.BatchNorm(4, dtype=dtype, relu=True)
        for training in (True, False, True):
            results += [bn.forward(strided, training, residual=p["dy"]), *bn.backward(p["dy"])]
        y, context = bn.forward(strided, mask=x[:, 0] < 1, context=True)
        results += [
            y,
            bn.backward(p["dy"], context=context, accumulate=True),
            bn.weight_grad.copy(),
        ]
        results.append(bn.fold_into(np.full((4, 2), info.max, dtype), np.full(4, info.max)))
        other = op.BatchNorm(4, dtype=dtype)
        other.load_state_dict({**bn.state_dict(), "bias": np.full(4, info.tiny / 2)})
        results += [repr(bn), other.state_dict(), bn.reset_running_stats()]
    return digest(results)


def test_the_error_state_changes_nothing():
    expected = everything(np.random.default_rng(1))
    with np.errstate(all="raise"):
        assert everything(np.random.default_rng(1)) == expected


# A call that raises has never been


def fortran(array):
    return np.asfortranarray(np.ones((6, 4, 5), array.dtype))


FORWARDS = {
    "training": lambda bn, x: bn.forward(x, 1),
    "mask": lambda bn, x: bn.forward(x, mask=x[:, 0]),
    "context": lambda bn, x: bn.forward(x, context=x),
    "x": lambda bn, x: bn.forward(x.tolist()),
    "x's dtype": lambda bn, x: bn.forward(x.astype(np.float64)),
    "x's channels": lambda bn, x: bn.forward(x[:, :3]),
    "x's axes": lambda bn, x: bn.forward(x[0, :, 0]),
    "one value": lambda bn, x: bn.forward(x[:1, :, :1]),
    "out is x": lambda bn, x: bn.forward(x, out=x),
    "out's shape": lambda bn, x: bn.forward(x, out=x[:2].copy()),
    "out's layout": lambda bn, x: bn.forward(x, out=fortran(x)),
    "out in evaluation": lambda bn, x: bn.forward(x, False, read_only(x)),
    "residual's dtype": lambda bn, x: bn.forward(x, residual=x.astype(np.float64)),
    "residual's shape": lambda bn, x: bn.forward(x, False, residual=x[:2]),
    "residual is out": lambda bn, x: bn.forward(x, out=(z := x.copy()), residual=z),
}
SETTINGS = {
    "eps": (-1.0, "1e-5", np.nan),
    "momentum": (2.0, "0.1"),
    "axis": (7, 0.5),
    "relu": (1,),
    "unbiased_running_var": (None,),
    "nonfinite": ("raise", 1),
    "num_threads": (0, 1.0),
    "weight": (np.ones(3, "f"), np.ones(4), [1.0] * 4),
    "bias": (np.ones((1, 4), "f"),),
    "running_mean": (None, np.ones(3), read_only(np.ones(4, "f")), np.ones(4, int)),
    "running_var": (None, np.broadcast_to(np.ones(1, "f"), 4)),
    "num_batches_tracked": (np.array(-1), np.array(2**53), np.zeros(1, int), np.array(1.0), 1),
}
BACKWARDS = {
    "dy": lambda bn, dy: bn.backward(dy.tolist()),
    "dy's shape": lambda bn, dy: bn.backward(dy[:2]),
    "dy's dtype": lambda bn, dy: bn.backward(dy.astype(np.float64)),
    "out": lambda bn, dy: bn.backward(dy, [1.0]),
    "out's layout": lambda bn, dy: bn.backward(dy, fortran(dy)),
    "read-only out": lambda bn, dy: bn.backward(dy, read_only(dy)),
    "context of a backward": lambda bn, dy: bn.backward(dy, context=bn),
    "accumulate": lambda bn, dy: bn.backward(dy, accumulate=None),
}
BACKWARD_SETTINGS = {
    "num_threads": (0,),
    "weight": (np.ones(3, "f"),),
    "weight_grad": (np.ones(3, "f"), np.ones(4), read_only(np.ones(4, "f")), 1.0),
    "bias_grad": (np.ones((4, 1), "f"), [1.0] * 4),
}


def failures():
    """Everything that a forward or a backward of the layer refuses, and the settings around it."""
    for name, call in FORWARDS.items():
        yield pytest.param({}, call, id=f"forward: {name}")
    for name, call in BACKWARDS.items():
        yield pytest.param({}, call, id=f"backward: {name}")
    for settings, call in (
        (SETTINGS, lambda bn, x: bn.forward(x)),
        (BACKWARD_SETTINGS, lambda bn, x: bn.backward(x)),
    ):
        for name, values in settings.items():
            for value in values:
                yield pytest.param({name: value}, call, id=f"{name} = {value}")


def run_on(bn, p):
    """What a training would see next."""
    results = [bn.backward(p["dy"]), bn.forward(p["dy"]), bn.backward(p["x"])]
    return digest(results, bn.state_dict(), bn.weight_grad, bn.bias_grad)


@pytest.mark.parametrize(("settings", "call"), list(failures()))
def test_a_call_that_raises_has_never_been(rng, settings, call):
    p = arrays(rng)
    bn, other = op.BatchNorm(4), op.BatchNorm(4)
    for one in (bn, other):
        one.forward(p["x"])
    kept = {name: getattr(bn, name) for name in settings}
    vars(bn).update(settings)
    given, before = p["dy"].copy(), digest(p, settings)
    with pytest.raises((TypeError, ValueError), match=r"^\w+: expected "):
        call(bn, given)
    assert digest(p, settings) == before
    assert digest(given) == digest(p["dy"])
    vars(bn).update(kept)
    assert run_on(bn, p) == run_on(other, p)


def test_reading_leaves_no_trace(rng):
    p = arrays(rng)
    bn, other = op.BatchNorm(4), op.BatchNorm(4)
    for one in (bn, other):
        one.forward(p["x"])
    reads = [
        bn.state_dict,
        lambda: repr(bn),
        lambda: copy.copy(bn),
        lambda: copy.deepcopy(bn),
        lambda: pickle.dumps(bn),
        lambda: bn.fold_into(np.ones((4, 2), np.float32)),
    ]
    kept = digest(vars(bn))
    for read in reads:
        result = read()
        assert digest(vars(bn)) == kept
        if isinstance(result, dict):
            for array in result.values():
                array[...] = 7
    assert run_on(bn, p) == run_on(other, p)


# Interrupts


def load(bn, p):
    state = {name: np.full_like(array, 3) for name, array in bn.state_dict().items()}
    bn.load_state_dict(state)


CALLS = {
    "forward": lambda bn, p: bn.forward(p["dy"]),
    "evaluation": lambda bn, p: bn.forward(p["dy"], training=False),
    "masked": lambda bn, p: bn.forward(p["dy"], mask=p["x"][:, 0] < 1),
    "backward": lambda bn, p: bn.backward(p["dy"]),
    "load": load,
    "reset": lambda bn, _: bn.reset_running_stats(),
}
FORWARD_CALLS = ("forward", "evaluation", "masked")


@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_anywhere_leaves_all_or_nothing(rng, name):
    p = arrays(rng)

    def fresh():
        bn = op.BatchNorm(4, momentum=None)
        bn.forward(p["x"])
        return bn

    def seen(bn):
        return digest(bn.state_dict(), bn.weight_grad, bn.bias_grad)

    done = fresh()
    before = seen(done)
    CALLS[name](done, p)
    after = seen(done)
    # What backward may return: the gradient of the forward that was the last one, or nothing.
    gradients = {before: {digest(fresh().backward(p["dy"]))}}
    if name in FORWARD_CALLS:
        gradients.setdefault(after, set()).add(digest(done.backward(p["dy"])))
    tried = []

    def attempt():
        tried.append(fresh())
        return lambda: CALLS[name](tried[-1], p)

    for where, _ in at_each_place(attempt):
        bn = tried[-1]
        found = seen(bn)
        assert found in (before, after), where
        try:
            dx = digest(bn.backward(p["dy"]))
        except RuntimeError:
            assert name in {*FORWARD_CALLS, "backward"}, where
        else:
            assert name in ("load", "reset") or dx in gradients[found], where
        bn.forward(p["x"])
        bn.backward(p["dy"])
    assert seen(tried[-1]) == after
    assert len(tried) > 3


# Memory that moves


def survives(code):
    """Run it in a process of its own, which must not crash."""
    script = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def test_code_that_runs_in_the_checks_cannot_move_memory():
    """A subclass whose hooks resize all arrays of the call, in each place in turn."""
    out = survives("""
        import numpy as np
        import onepass as op

        n, rows = 300_000, 8  # so large that what is freed is gone

        class Evil(np.ndarray):
            victims, ran = (), 0

            def run(self):
                Evil.ran += 1
                for victim in Evil.victims:
                    try:
                        victim.resize(2_000_000 // max(victim.ndim, 1), refcheck=False)
                        victim.resize(1, refcheck=False)
                    except ValueError:
                        pass  # it is held

            @property
            def __class__(self):
                self.run()
                return Evil

            def __array_function__(self, *arguments):
                self.run()
                return super().__array_function__(*arguments)

            def __array_finalize__(self, other):
                self.run()

        def arrays():
            names = ("dy", "x", "residual", "out")
            whole = {name: np.ones((rows, n), np.float32) for name in names}
            whole["x"][::2] = 3
            vectors = ("weight", "bias", "running_mean", "running_var", "mean", "var")
            return whole | {name: np.ones(n, np.float32) for name in vectors}

        CALLS = {
            op.batch_norm_train: "x weight bias running_mean running_var residual out",
            op.batch_norm_infer: "x mean var weight bias residual out",
            op.batch_norm_backward: "dy x saved_mean saved_invstd weight bias residual out",
            op.batch_norm_infer_backward: "dy x mean var weight bias residual out",
        }
        for function, names in CALLS.items():
            names = names.split()
            for evil in names:
                given = arrays()
                given |= {"saved_mean": given.pop("mean"), "saved_invstd": given.pop("var")} \\
                    if "saved_mean" in names else {}
                given = {name: given[name] for name in names}
                if evil in ("residual", "dy"):  # then it is copied
                    given[evil] = np.asfortranarray(given[evil])
                given[evil] = given[evil].view(Evil)
                Evil.victims = [array for name, array in given.items() if name != evil]
                batch = [given.pop(name) for name in ("dy", "x") if name in given]
                try:
                    function(*batch, **given, relu=True)
                except (TypeError, ValueError):
                    pass
                Evil.victims = ()
        print(Evil.ran)
    """)
    assert int(out) > 20


def test_code_that_runs_in_the_checks_cannot_move_what_an_array_is_a_part_of():
    survives("""
        import numpy as np
        import onepass as op

        owner = np.ones(4_000_000, np.float32)

        class Evil(np.ndarray):
            @property
            def __class__(self):
                try:
                    owner.resize(1, refcheck=False)
                except ValueError:
                    pass  # it is held
                return Evil

        x = owner[:3_200_000].reshape(8, 400_000)[:, :300_000]
        dy = np.ones(x.shape, np.float32).view(Evil)
        ones = np.ones(300_000)
        op.batch_norm_infer_backward(dy, x, mean=ones, var=ones)
        assert owner.size == 4_000_000
        owner.resize(1, refcheck=False)  # and afterwards it is not
    """)


def test_another_thread_cannot_move_memory():
    """While a large call runs without the GIL."""
    out = survives("""
        import threading, time
        import numpy as np
        import onepass as op

        lengths = 900_000, 1_000_000  # what is cut off is gone
        arrays = [np.ones((lengths[0], 4), np.float32) for _ in range(3)]
        moved, going = 0, True

        def move():
            global moved
            while going:
                for length in lengths:
                    time.sleep(0.001)
                    for array in arrays:
                        try:
                            array.resize((length, 4), refcheck=False)
                            moved += 1
                        except ValueError:
                            pass  # it is held

        thread = threading.Thread(target=move)
        thread.start()
        done, statistics = 0, {"mean": np.ones(4), "var": np.ones(4)}
        for _ in range(3000):
            dy, x, out = arrays
            try:
                op.batch_norm_train(x, residual=dy, out=out)
                op.batch_norm_infer_backward(dy, x, **statistics, out=out)
                done += 1
            except ValueError:
                pass  # their shapes differ
            if done == 40:
                break
        going = False
        thread.join()
        print(moved)
    """)
    assert int(out) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, and sets a limit")
def test_without_memory_nothing_has_changed():
    """Wherever it runs out: for the result, for a copy, for the sums."""
    out = survives("""
        import resource
        from pathlib import Path
        import numpy as np
        import onepass as op

        op.set_num_threads(1)
        n = 250_000
        x = np.arange(3 * n, dtype=np.float64).reshape(3, n) / n
        copied, out = np.asfortranarray(x), np.zeros_like(x)
        mean, var = np.zeros(n), np.ones(n)
        statistics = {"mean": mean, "var": var}
        _, *saved = op.batch_norm_train(x)
        saved = dict(zip(("saved_mean", "saved_invstd"), saved))
        layer = op.BatchNorm(n, dtype=np.float64)
        state = op.BatchNorm(n, dtype=np.float64, momentum=None).state_dict()
        state["weight"] += 1

        def train(**options):
            op.batch_norm_train(x, running_mean=mean, running_var=var, **options)

        calls = [
            train,
            lambda: train(out=out),
            lambda: train(residual=copied, out=out),
            lambda: op.batch_norm_infer(x, **statistics, out=out, residual=copied),
            lambda: op.batch_norm_backward(x, x, **saved, out=out),
            lambda: op.batch_norm_infer_backward(copied, x, **statistics, out=out),
            lambda: layer.load_state_dict(state),
        ]

        def fails(call, spare):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            limit = pages * resource.getpagesize() + spare
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            try:
                call()
            except MemoryError:
                return True
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            return False

        failures = 0
        for call in calls:
            mean[:], var[:], out[:] = 0, 1, 0
            for spare in range(0, 100_000_000, 1_500_000):
                if not fails(call, spare):
                    break
                failures += 1
                assert not (mean.any() or (var != 1).any() or out.any() or layer.weight[0] != 1)
            else:
                raise AssertionError("there was never enough memory")
        print(failures)
    """)
    assert int(out) > 10
