"""Every option of a step beside every other, and beside all that a run can go through.

Where two features meet is where most faults were. The table must name every option that there is,
so that a new one is met by all the others.
"""

import itertools
import math

import numpy as np
import pytest

import onepass as op
from helpers import RICHEST, accepts, digest, fresh_state
from onepass import optim

N = 4200  # large enough for 8-bit state


# Each option, switched on in ways that matter to others.
OPTIONS = {
    "max_grad_norm": [{"max_grad_norm": 0.5}],
    "skip_grad_norm": [{"skip_grad_norm": 1000.0}],
    "max_grad_norm_each": [{"max_grad_norm_each": 0.25}],
    "max_grad_value": [{"max_grad_value": 0.1}],
    "nonfinite": [{"nonfinite": "skip"}, {"nonfinite": "raise"}],
    "clear_grads": [{"clear_grads": True}],
    "ema_decay": [{"ema_decay": 0.9}],
    "ema_warmup": [{"ema_decay": 0.9, "ema_warmup": True}],
    "swa_start": [{"swa_start": 2}],
    "average_every": [{"ema_decay": 0.9, "average_every": 2}, {"swa_start": 2, "average_every": 2}],
    "average_dtype": [{"ema_decay": 0.9, "average_dtype": "float32"}],
    "lookahead_every": [{"lookahead_every": 2}],
    "lookahead_weight": [{"lookahead_every": 3, "lookahead_weight": 0.75}],
    "state_format": [{"state_format": "bf16"}, {"state_format": "q8"}],
    "rounding": [{"rounding": "stochastic"}, {"rounding": "nearest"}],
    "cautious_weight_decay": [{"cautious_weight_decay": True, "weight_decay": 0.1}],
    "seed": [{"seed": 7}],
    "overrides": [{"overrides": {"half": {"weight_decay": 0.2, "lr_scale": 0.5}}}],
    "grads": [{"grads": True}],
    "copy_to": [{"copy_to": True}],
    "state_alloc": [{"state_alloc": True}],
}


def test_every_option_is_in_the_table():
    assert set(OPTIONS) == set(optim._settings.StepOptions.__annotations__)


def together(first, second):
    """Both, where they go together."""
    options = {**first, **second}
    return options if accepts(RICHEST, options) else None


PAIRS = [
    pair
    for a, b in itertools.combinations(OPTIONS, 2)
    for first in OPTIONS[a]
    for second in OPTIONS[b]
    if (pair := together(first, second))
]


class Run:
    """A float32 and a float16 parameter, and one that never has a gradient, with such options.

    The first one has its axes in neither C nor F order, where the rule has no need of these, and a
    gradient in float64.
    """

    def __init__(self, options, start=None, cls=RICHEST):
        rng = np.random.default_rng(0)
        shapes = {"w": ((15, 20, 14), "f4"), "half": ((N,), "f2"), "frozen": ((5,), "f4")}
        self.params = start or {
            name: rng.normal(size=shape).astype(dtype) for name, (shape, dtype) in shapes.items()
        }
        if not start and "rows" not in cls.row.shape:
            self.params["w"] = self.params["w"].transpose(2, 0, 1)
        options = dict(options)
        grad_dtypes = {"w": np.float64, "half": np.float16}
        self.bound = {
            name: None if name == "frozen" else np.zeros_like(param, grad_dtypes[name])
            for name, param in self.params.items()
        }
        self.copies = {
            name: np.zeros_like(param, np.float16) if param.dtype == np.float32 else None
            for name, param in self.params.items()
        }
        self.is_bound = options.pop("grads", False)
        if self.is_bound:
            options["grads"] = self.bound
        self.has_copies = options.pop("copy_to", False)
        if self.has_copies:
            options["copy_to"] = self.copies
        if options.get("state_alloc"):
            options["state_alloc"] = self.in_one_buffer
        self.opt = cls(self.params, lr=0.05, **options)

    def in_one_buffer(self, name, shape, dtype):
        """State where nothing else is aligned, in memory that held something."""
        size = math.prod(shape) * dtype.itemsize
        buffer = np.full(size + 2 * dtype.itemsize, 0xA5, np.uint8)
        flat = buffer[dtype.itemsize : dtype.itemsize + size].view(dtype)
        param = self.params[name.partition(".")[0]]
        if param.ndim != len(shape):
            return flat.reshape(shape)
        axes = np.argsort(param.strides)[::-1]  # the farthest elements first, as its order has them
        return flat.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))

    def grads(self, step, *, finite=True, spike=False):
        rng = np.random.default_rng(step)
        grads = dict(self.bound)
        for name, grad in self.bound.items():
            if grad is not None:
                grads[name] = np.empty_like(grad)  # in the parameter's order
                grads[name][...] = rng.normal(size=grad.shape)
        if not finite:
            grads["w"][0, 0] = np.nan
        if spike:
            grads["w"] *= 100  # its norm was about 65
        return grads

    def step(self, number, way="given", *, finite=True, spike=False, **how):
        grads = self.grads(number, finite=finite, spike=spike)
        if way == "accumulated":
            if self.opt.nonfinite == "skip":
                assert not self.opt.accumulate(self.grads(number, finite=False))
            assert self.opt.accumulate(grads)
            return self.opt.step(**how)
        if not self.is_bound:
            return self.opt.step(grads, **how)
        for name, grad in self.bound.items():
            if grad is not None:
                grad[...] = grads[name]
        return self.opt.step(**how)

    def whole(self):
        copies = self.copies if self.has_copies else None
        return digest(self.params, copies, self.opt.state_dict(), self.opt.skipped_steps)

    def resumed(self, options, path):
        """The run as another process goes on with it."""
        self.opt.save(path)
        start = {name: param.copy(order="K") for name, param in self.params.items()}
        other = Run(options, start)
        other.opt.load(path)
        return other


@pytest.mark.parametrize("options", PAIRS, ids=lambda pair: "-".join(map(str, pair.items())))
class TestPairs:
    def test_a_whole_life(self, options, tmp_path):
        """Steps, one that is not finite, blocks, searches, saving: none changes what comes out.

        Nor do the norms that one of them reports.
        """
        run, twin = Run(options), Run(options)
        for number in range(5):
            if number == 2 and options.get("nonfinite") != "raise":
                infos = [
                    run.step(number, finite=False, stats=True),
                    twin.step(number, finite=False),
                ]
                skips = options.get("nonfinite") == "skip" or "skip_grad_norm" in options
                assert infos[0].skip_reason == ("nonfinite" if skips else None)
                assert run.whole() == twin.whole()
                continue
            if number == 1 and "skip_grad_norm" in options:
                infos = [each.step(number, spike=True) for each in (run, twin)]
                assert infos[0].skip_reason == "grad_norm"
            way = "accumulated" if number == 3 else "given"
            info = run.step(number, way, stats=True)
            assert info._replace(stats=None) == twin.step(number, way)
            assert list(info.stats) == ["w", "half"]
            assert all(stats.update_norm != 0 for stats in info.stats.values())
            expected = twin.whole()
            self.disturb(run, expected)
            run = run.resumed(options, tmp_path / "run.npz")
            assert run.whole() == expected

    def test_turn_by_turn(self, options, tmp_path):
        """A parameter at a time, saved in the middle of a round: the step of all, or an error."""
        run, twin = Run(options), Run(options)
        refused = {"max_grad_norm", "skip_grad_norm"} & options.keys() or options.get(
            "nonfinite"
        ) == "skip"
        before = run.whole()
        for number in range(3):
            grads = run.grads(number)
            if refused:
                with pytest.raises(ValueError, match="with step_one"):
                    run.opt.step_one("half", grads["half"])
                assert run.whole() == before
                return
            twin.step(number)
            for name in ("half", "frozen", "w"):
                run.opt.step_one(name, grads[name])
                if name == "frozen":
                    run = run.resumed(options, tmp_path / "run.npz")
            assert run.whole() == twin.whole()

    def disturb(self, run, expected):
        """All that must leave no trace."""
        opt = run.opt
        if options_average(opt):
            outside = digest(opt.state_dict())
            with opt.averaged():
                assert digest(opt.state_dict()) == outside
        grads = run.grads(9)
        op.search.range_test(opt, lambda: (1.0, grads), steps=2)
        assert run.whole() == expected
        losses = iter([1.0, 2.0])  # the trial is no better
        copies = run.copies if run.has_copies else None
        search = op.line_search.best_of([1e-3])
        search(run.params, grads, lambda: next(losses), copy_to=copies)
        assert run.whole() == expected

    def test_a_copy_is_the_weights_rounded(self, options):
        run = Run({**options, "copy_to": True})
        for number in range(4):
            for name, copy in run.copies.items():
                if copy is not None:
                    np.testing.assert_array_equal(copy, run.params[name].astype(np.float16))
            finite = number != 2 or options.get("nonfinite") == "raise"
            run.step(number, finite=finite)


def options_average(opt):
    return optim._settings.averages(opt.param_groups[0])


@pytest.mark.parametrize("options", PAIRS, ids=lambda pair: "-".join(map(str, pair.items())))
def test_the_callers_error_state_changes_nothing(options):
    """Nor does any of it raise there, with numbers that are tiny in 16 bits, and huge ones."""
    results = []
    for state in ("ignore", "raise"):
        run = Run(options)
        for param in run.params.values():
            np.multiply(param, np.float16(1e-5), out=param)
            param.flat[:2] = 6e4
        with np.errstate(all=state):
            for number in range(3):
                run.step(number)
                if options_average(run.opt):
                    with run.opt.averaged():
                        saved = run.opt.state_dict()
                    run.opt.load_state_dict(saved)
            run.opt.param_groups[0]["state_format"] = None
            run.opt.param_groups[0]["rounding"] = "nearest"
            run.step(3)
        results.append(run.whole())
    assert results[0] == results[1]


def test_the_oracle_does_not_see_the_callers_error_state(case):
    cls, settings = case
    values = np.array([1e-40, 3e38, 0.0, np.inf, np.nan, 1e-20], np.float32)
    results = []
    for state in ("ignore", "raise"):
        with np.errstate(all=state):
            kept = fresh_state(cls, settings, values)
            results.append(digest(cls.reference_step(values, values[::-1], *kept, **settings)))
    assert results[0] == results[1]
