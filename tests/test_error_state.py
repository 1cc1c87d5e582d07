"""No result depends on `numpy.seterr`, and nothing warns: overflow and underflow are results."""

import inspect
from itertools import product

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import digest
from onepass import ema, formats, init, line_search, schedules, search

N = 600


def numbers(kind, dtype="f4"):
    """Numbers whose sums, products and roundings leave the range of a format."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    largest, normal, subnormal = info.max, info.smallest_normal, info.smallest_subnormal
    some = {
        "ordinary": rng.uniform(0.5, 1, N),
        "subnormal": rng.integers(0, 1000, N).astype(dtype) * subnormal,
        "huge": rng.uniform(0.5, 1, N).astype(dtype) * largest,
        "mixed": [largest, normal, 1, 0, -0.0, subnormal, 1e-6, 1e-3],
        "not finite": [np.inf, np.nan, 1, normal, largest, -np.inf],
    }
    return np.resize(np.asarray(some[kind], dtype), N)


KINDS = ("ordinary", "subnormal", "huge", "mixed", "not finite")


def small(kind):
    return [np.abs(numbers(kind)).astype(dtype) for dtype in (np.float16, ml_dtypes.bfloat16)]


def codes(kind):
    return [formats.q8_encode(np.abs(numbers(kind)), signed=True)]


def loss_and_grads(kind):
    grad = numbers(kind)
    return [lambda: (float(abs(grad[0])), grad)]


# What to give to a parameter: by its name, or by that of the function and its own. Those that have
# a default and stand nowhere here are left to it.
ARGUMENTS = {
    "narrow.dtype": lambda _: [np.float16, ml_dtypes.bfloat16],
    "q8_check.codes": codes,
    "codes": codes,
    "values": lambda kind: [np.abs(numbers(kind))],
    "bits": lambda _: [None, formats.random_bits(1, 2, 3, N)],
    "signed": lambda _: [True, False],
    "seed": lambda _: [2**53 - 1],
    "step": lambda _: [1],
    "array": lambda _: [2],
    "size": lambda _: [N],
    "elements": lambda _: [N],
    "picture.series": lambda kind: [numbers(kind, "f8")[:20]],
    "picture.beta": lambda _: [0.9],
    "series": lambda kind: [numbers(kind, dtype) for dtype in ("f2", "f4", "f8")],
    "beta": lambda _: [0.0, 5e-324, 0.9, 1 - 2**-53],
    "bias_correction": lambda _: [True, False],
    "n": lambda _: [2000],
    "window": lambda _: [3],
    "path": lambda _: ["picture.png"],
    "shape": lambda _: [(3, 4)],
    "rng": lambda _: [np.random.default_rng(0)],
    "gain": lambda _: [1.0, 1e-320, 1e-40, 1e300],
    "dtype": lambda _: [np.float32, np.float64],
    "lr": lambda _: [1e308, 5e-324],
    "peak": lambda _: [1e308, 5e-324],
    "value": lambda _: [1e308, 5e-324],
    "average.initial": lambda _: [0.0],
    "warmup.initial": lambda _: [0.0, 5e-324],
    "initial": lambda _: [1e308, 5e-324],
    "rate": lambda _: [1e308, 5e-324],
    "steps": lambda _: [20],
    "every": lambda _: [1],
    "decay": lambda _: [2],
    "warmup": lambda _: [2],
    "power": lambda _: [1e308, 5e-324],
    "div_factor": lambda _: [5e-324, 1e308],
    "final_div_factor": lambda _: [5e-324, 1e308],
    "then": lambda _: [schedules.constant(5e-324)],
    "scaled.schedule": lambda _: [schedules.constant(1e308), schedules.constant(5e-324)],
    "factor": lambda _: [1e-320, 1e300],
    "schedules": lambda _: [[schedules.constant(1e308), schedules.exponential(5e-324, 1e-320)]],
    "piecewise.boundaries": lambda _: [[5, 9]],
    "factors": lambda _: [[1e308, 1e308], [1e-300, 1e-300]],
    "learning_rate.factors": lambda _: [[1e300, 1e-300]],
    "boundaries": lambda _: [[5]],
    "eta": lambda _: [1e308, 5e-324],
    "etas": lambda _: [[1e308, 1.0, 5e-324]],
    "train": lambda _: [lambda lr: lr],
    "rates": lambda _: [[1e-320, 1e-4, 1e300]],
    "range_test.low": lambda _: [5e-324],
    "range_test.high": lambda _: [1e308],
    "optimizer": lambda kind: [op.SGD(numbers(kind))],
    "loss_and_grads": loss_and_grads,
    "outputs": lambda kind: [numbers(kind, dtype) for dtype in ("f2", "f4", "f8")],
    "params": lambda kind: [[numbers(kind)], {"w": numbers(kind, "f8")}],
}


def use(made, kind):
    """Call what a call made, where that is a function itself, and read what can be read off it."""
    if isinstance(made, schedules._base.BaseSchedule):
        return [made(step) for step in (0, 1, 2, 5, 19, 20, 10**6)]
    if isinstance(made, line_search.LineSearch):
        w, slope = numbers(kind), numbers("ordinary")
        return [
            made(w, slope, lambda: 1.0),
            outcome(lambda: made(w, numbers(kind), lambda: float(abs(w[0])))),
            w,
        ]
    if isinstance(made, search.LearningRates | search.RangeTest):
        if kind == "mixed":
            made.picture("picture.png")
        return [getattr(made, name) for name in dir(made) if name[0] != "_" and name != "picture"]
    return made


def outcome(call):
    """What a call returns, or what it complains of."""
    try:
        return call()
    except (TypeError, ValueError) as error:
        return repr(error)


def functions():
    for module in (ema, formats, init, line_search, schedules, search):
        names = getattr(module, "__all__", [name for name in vars(module) if name[0] != "_"])
        for name in names:
            thing = getattr(module, name)
            is_own = getattr(thing, "__module__", "").startswith(module.__name__)
            # What a function returns is looked at where that is called.
            is_result = thing in (search.LearningRates, search.RangeTest)
            is_result = is_result or hasattr(thing, "_fields") or inspect.isabstract(thing)
            if is_own and callable(thing) and not is_result:
                yield name, thing
    yield "pack", op.pack
    yield "scale", op.LossScaler(2.0**127).scale
    yield "LossScaler", lambda: op.LossScaler(2.0**-126).get_scale()


FUNCTIONS = dict(functions())


def arguments(name, kind):
    """Yield keyword arguments, all that go together; anew, for whoever changes them."""
    chosen = {}
    for parameter, about in inspect.signature(FUNCTIONS[name]).parameters.items():
        known = ARGUMENTS.get(f"{name}.{parameter}", ARGUMENTS.get(parameter))
        if known is not None:
            chosen[parameter] = known(kind)
        elif about.default is about.empty:
            pytest.fail(f"expected {parameter!r} of {name} in ARGUMENTS, got no entry")
    for values in product(*chosen.values()):
        yield dict(zip(chosen, values, strict=True))


def results(name, kind, state):
    with np.errstate(all="ignore"):
        given = list(arguments(name, kind))
    with np.errstate(all=state, call=lambda *_: pytest.fail("an error that is a result")):
        return [
            digest(outcome(lambda keywords=keywords: use(FUNCTIONS[name](**keywords), kind)))
            for keywords in given
        ]


# A picture takes a second.
CASES = [(n, kind) for n in FUNCTIONS for kind in KINDS if n != "picture" or kind == "mixed"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_results_do_not_depend_on_the_error_state(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draws = name in ("picture", "learning_rate", "range_test")
    expected = results(name, kind, "ignore")
    for state in ("raise",) if draws else ("raise", "warn", "call"):
        assert results(name, kind, state) == expected, state


def test_the_functions_of_the_user_keep_the_users():
    """What a loss of the user's does with overflows is the user's to choose."""

    def loss():
        return float(np.float32(3e38) * np.float32(10))

    def train(_):
        return loss()

    opt = op.SGD(np.ones(3))
    calls = (
        lambda: line_search.best_of([1.0])(np.ones(3), np.ones(3), loss),
        lambda: line_search.backtracking()(np.ones(3), np.ones(3), loss),
        lambda: search.learning_rate(train),
        lambda: search.range_test(opt, lambda: (loss(), np.ones(3))),
    )
    for call in calls:
        with np.errstate(all="raise"), pytest.raises(FloatingPointError):
            call()
