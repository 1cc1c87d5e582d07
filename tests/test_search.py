"""Choosing a learning rate: what is tried, what is found, and that a range test leaves no trace."""

import math

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, digest
from onepass.lab.search import LearningRates, RangeTest, Trial, learning_rate, range_test

COARSE = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


def best_at(best):
    """A loss that grows with the distance from one rate, on a log scale."""
    return lambda lr: abs(math.log10(lr / best))


def test_the_lectures_grids():
    told = []
    found = learning_rate(best_at(0.1), on_trial=told.append)
    assert [trial.lr for trial in told] == [*COARSE, 0.05, 0.2, 0.3]
    assert [trial.grid for trial in told] == ["coarse"] * 5 + ["fine"] * 3
    assert found.trials == tuple(sorted(told))
    assert found.best == Trial(0.1, 0.0, "coarse")
    assert all(trial.loss == best_at(0.1)(trial.lr) for trial in told)


@pytest.mark.parametrize(("best", "finds"), [(0.18, 0.2), (0.06, 0.05), (5e-5, 5e-5), (2.9, 3.0)])
def test_the_finer_grid_refines(best, finds):
    found = learning_rate(best_at(best))
    assert found.best == (finds, best_at(best)(finds), "fine")


def test_gradient_descent_on_a_parabola():
    """With curvature a, ten steps multiply the loss by (1 - eta a)**20: 1 / a is the best."""

    def train(lr):
        w = np.array([1.0])
        opt = op.SGD(w, lr)
        for _ in range(10):
            opt.step(5 * w)
        return 2.5 * w.item() ** 2

    found = learning_rate(train)
    assert found.best.lr == 0.2
    for lr, loss, _ in found.trials:
        assert loss == pytest.approx(2.5 * (1 - 5 * lr) ** 20, rel=1e-9, abs=1e-30)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rates_that_diverge_rank_last(bad):
    found = learning_rate(lambda lr: 1e9 + lr if lr < 0.2 else bad)
    assert found.best.lr == 5e-5
    assert [t.lr for t in found.trials if not math.isfinite(t.loss)] == [1.0]
    with pytest.raises(ValueError, match="^rates: expected one that does not diverge, got"):
        learning_rate(lambda _: bad)


def test_a_rate_is_tried_once():
    tried = []

    def train(lr):
        tried.append(lr)
        return best_at(0.1)(lr)

    learning_rate(train, [0.1, 0.2, 0.1], factors=(2, 3))
    assert tried == [0.1, 0.2, 0.3]


def test_of_equal_losses_the_smallest_rate_is_best():
    assert learning_rate(lambda _: 1.0, [1.0, 0.1], factors=()).best.lr == 0.1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_the_training_raises_comes_out_after_what_was_tried(error):
    told = []

    def train(lr):
        if len(told) == 6:
            raise error
        return best_at(0.1)(lr)

    with pytest.raises(error):
        learning_rate(train, on_trial=told.append)
    assert [trial.lr for trial in told] == [*COARSE, 0.05]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"rates": []}, ValueError, "rates: expected at least one, got none"),
        ({"rates": [0.1, 0.0]}, ValueError, r"rates\[1\]: expected a finite number > 0"),
        ({"rates": [0.1], "factors": [-1]}, ValueError, r"factors\[0\]: "),
        ({"rates": ["0.1"]}, TypeError, r"rates\[0\]: "),
    ],
)
def test_grids_that_make_no_sense(arguments, error, words):
    with pytest.raises(error, match=f"^{words}"):
        learning_rate(lambda _: pytest.fail("trained"), **arguments)


def test_the_training_must_return_a_number():
    with pytest.raises(TypeError, match="^train: expected it to return a number, got None"):
        learning_rate(lambda _: None)


class Parabola:
    """The loss 1/2 w**2 of one weight, its optimizer, and the rates it was asked at."""

    def __init__(self, start=1.0, **settings):
        self.w = np.array([start])
        self.opt = op.SGD(self.w, **settings)
        self.rates = []

    def __call__(self):
        self.rates.append(self.opt.param_groups[0]["lr"])
        return 0.5 * self.w.item() ** 2, self.w.copy()


def losses_of_the_parabola(lrs):
    w, losses = 1.0, []
    for lr in lrs:
        losses.append(0.5 * w**2)
        w -= lr * w
    return np.array(losses)


def averages(losses, beta):
    """The mean of the losses so far, weighted by powers of beta."""
    weights = [beta ** np.arange(t, -1, -1.0) for t in range(len(losses))]
    return np.array([w @ losses[: len(w)] / w.sum() for w in weights])


def test_curve_of_a_range_test():
    task = Parabola()
    curve = range_test(task.opt, task, steps=50, low=1e-4, high=1.0, beta=0.9)
    lrs = [1e-4 * 1e4 ** (t / 49) for t in range(50)]
    losses = losses_of_the_parabola(lrs)
    np.testing.assert_allclose(curve.lrs, lrs, rtol=1e-12)
    assert curve.lrs.tolist() == task.rates
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-9)
    np.testing.assert_allclose(curve.smoothed, averages(losses, 0.9), rtol=1e-9)
    assert not curve.diverged


@pytest.mark.parametrize("factor", [2.0, 4.0])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_a_range_test_ends_where_the_loss_has_risen_too_far(factor, beta):
    """Beyond the rate 2 the parabola's loss grows without end."""
    smoothed = averages(losses_of_the_parabola(np.geomspace(1e-3, 1e3, 60)), beta)
    end = next(t for t in range(60) if smoothed[t] > factor * smoothed[: t + 1].min())
    task = Parabola()
    curve = range_test(task.opt, task, steps=60, low=1e-3, high=1e3, diverge=factor, beta=beta)
    assert curve.diverged
    assert len(curve.lrs) == len(curve.losses) == len(curve.smoothed) == end + 1


def test_one_bad_batch_does_not_end_a_range_test():
    losses = iter([1.0] * 10 + [9.0] + [1.0] * 9)  # the average rises to 1 + 8 * 0.146
    opt = op.SGD(np.ones(1))
    assert not range_test(opt, lambda: (next(losses), np.ones(1)), steps=20).diverged


@pytest.mark.parametrize(
    ("make", "fractions"),
    [
        (lambda p: op.SGD(p, lr={"a": 1.0, "b": 2.0, "c": 0.5}), (0.5, 1, 0.25)),
        (lambda p: op.SGD(p, 8.0, overrides=op.layer_decay(0.5, ["c", "b", "a"])), (1, 0.5, 0.25)),
        (
            lambda p: op.SGD(p, lambda _: 8.0, overrides={"b": {"lr_scale": 0.5}, "c": {"lr": 4}}),
            (1, 0.5, 0.5),
        ),
        (lambda p: op.SGD(p, overrides={"b": {"lr": 0.0}}), (1, 0, 1)),
        (lambda p: op.SGD(p, lr=0.0), (1, 1, 1)),
    ],
    ids=["by pattern", "layer decay", "scale of a schedule", "one of 0", "all of 0"],
)
def test_groups_keep_their_fractions_of_the_largest_rate(make, fractions):
    params = {name: np.ones(1) for name in "abc"}
    opt = make(params)
    grads = dict.fromkeys(params, np.ones(1))
    seen = []

    def loss_and_grads():
        rates = {}
        for group in opt.param_groups:
            for name, param in params.items():
                if any(param is own for own in group["params"]):
                    rates[name] = group["lr"]
        seen.append([rates[name] for name in params])
        return 1.0, grads

    curve = range_test(opt, loss_and_grads, steps=5)
    assert seen == [[lr * fraction for fraction in fractions] for lr in curve.lrs]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_a_range_test(bad):
    def run(losses):
        given = iter(losses)
        return range_test(op.SGD(np.ones(1)), lambda: (next(given), np.ones(1)), steps=9)

    curve = run([3.0, 2.0, 1.0, bad])
    assert curve.diverged
    assert curve.losses.tolist() == [3, 2, 1]
    assert run([1.0] * 8 + [bad]).diverged
    assert not run([1.0] * 9).diverged
    for too_early in ([bad], [1.0, bad]):
        with pytest.raises(ValueError, match=f"^loss_and_grads: expected a finite .*, got {bad}"):
            run(too_early)


def test_a_negative_loss_is_no_divergence():
    given = iter([-1.0, -2.0, -2.5, -7.0, -6.0, -5.0])
    curve = range_test(
        op.SGD(np.ones(1)), lambda: (next(given), np.ones(1)), steps=6, beta=0, diverge=1.25
    )
    assert curve.losses.tolist() == [-1, -2, -2.5, -7, -6, -5]  # -7 + 0.25 * 7 = -5.25
    assert curve.diverged


def fixture_with_everything(optimizer):
    """An optimizer with groups, a schedule, an average, a sum of gradients, and some steps."""
    params = [np.array([1.0, -0.0, 3.0]), np.arange(4.0).reshape(2, 2).T, np.float32([5.0])]
    opt = optimizer(
        [{"params": params[:1], "lr": lambda step: 0.1 / (1 + step)}, {"params": params[1:]}],
        lr=0.2,
        ema_decay=0.9,
        max_grad_norm=1.0,
        nonfinite="raise",
    )
    grads = [[np.ones(3)], [np.ones((2, 2)), None]]
    for _ in range(2):
        opt.step(grads)
    return opt, params, grads


@pytest.mark.parametrize("failing", [None, 0, 1, 7])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_range_test_leaves_no_trace(optimizer, failing, error):
    opt, params, grads = fixture_with_everything(optimizer)
    twin, twin_params, _ = fixture_with_everything(optimizer)
    groups = opt.param_groups
    before, calls = digest(opt), []

    def loss_and_grads():
        calls.append(digest(opt))
        if len(calls) - 1 == failing:
            raise error
        return 1.0, [[np.ones(3)], [np.full((2, 2), 1e300), np.ones(1, np.float32)]]

    if failing is None:
        range_test(opt, loss_and_grads, steps=10)
    else:
        with pytest.raises(error):
            range_test(opt, loss_and_grads, steps=10)
    assert digest(opt) == before
    assert len(set(calls)) == len(calls) > (failing or 0)  # it did step
    assert opt.param_groups is groups
    assert callable(groups[0]["lr"])
    assert groups[1]["lr"] == 0.2
    assert opt.nonfinite == "raise"
    for _ in range(2):
        opt.step(grads)
        twin.step(grads)
    assert digest(opt) == digest(twin)
    for param, other in zip(params, twin_params, strict=True):
        assert_same_bits(param, other)


def test_bound_gradients_are_taken():
    w, grad = np.array([2.0]), np.zeros(1)
    opt = op.SGD(w, lr=0.5, momentum=0.5, grads=grad)

    def loss_and_grads():
        grad[...] = w
        return 0.5 * w.item() ** 2, None

    curve = range_test(opt, loss_and_grads, low=1.0, high=2.0, steps=3, beta=0)
    # w = 2; v = 2, w = 0; v = 1, w = -sqrt(2)
    np.testing.assert_allclose(curve.losses, [2, 0, 1])
    assert w == 2
    grad[...] = 1
    opt.step()
    assert w == 1.5


@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
def test_a_limit_on_the_norm_does_not_hide_where_the_loss_rises(nonfinite):
    """Every step beyond the rate 2 makes the gradient larger, which a training would leave out."""
    curves = []
    for limit in (None, 1.5):
        w = np.ones(1)
        opt = op.SGD(w, skip_grad_norm=limit, nonfinite=nonfinite)
        curves.append(range_test(opt, lambda w=w: (w.item() ** 2 / 2, w.copy()), beta=0))
        assert (w, opt.skip_grad_norm, opt.nonfinite) == (1, limit, nonfinite)
    assert all(curve.diverged for curve in curves)
    np.testing.assert_array_equal(curves[0].losses, curves[1].losses)


def test_accumulated_gradients_are_taken():
    task = Parabola()

    def loss_and_grads():
        loss, grads = task()
        task.opt.accumulate(grads)
        return loss, None

    curve = range_test(task.opt, loss_and_grads, steps=20, high=1.0)
    np.testing.assert_allclose(curve.losses, losses_of_the_parabola(curve.lrs), rtol=1e-9)
    with pytest.raises(
        ValueError, match="^grads: expected gradients, got none, and none are bound or acc"
    ):
        task.opt.step()


def test_the_gradient_may_be_taken_at_the_look_ahead_point():
    task = Parabola(momentum=0.9, form="sutskever")

    def loss_and_grads():
        with task.opt.lookahead():
            return task()

    lrs = np.geomspace(1e-3, 1e-1, 20)
    curve = range_test(task.opt, loss_and_grads, steps=20, low=1e-3, high=1e-1)
    w, v, losses = 1.0, 0.0, []
    for lr in lrs:
        ahead = w - 0.9 * v
        losses.append(0.5 * ahead**2)
        v = 0.9 * v + lr * ahead
        w -= v
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-9)
    assert task.w == 1


def test_a_gradient_that_is_not_finite_is_a_result():
    """Also where the optimizer is told to raise: what diverges ends in the loss."""
    w = np.array([1.0])
    opt = op.SGD(w, nonfinite="raise")
    grads = iter([1.0, 1.0, math.inf, 1.0])
    curve = range_test(opt, lambda: (w.item(), np.array([next(grads)])), steps=9)
    assert curve.diverged
    assert len(curve.losses) == 3
    assert w == 1


def test_inside_a_block_that_shows_other_weights():
    task = Parabola(momentum=0.9)
    with task.opt.lookahead(), pytest.raises(ValueError, match="after the block that shows"):
        range_test(task.opt, task)
    assert task.rates == []
    assert task.w == 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 1}, ValueError, "steps: expected an integer >= 2"),
        ({"low": 0.0}, ValueError, "low: expected a finite number > 0"),
        ({"low": 1.0, "high": 1.0}, ValueError, "high: expected a finite number > 1"),
        ({"high": math.inf}, ValueError, "high: "),
        ({"diverge": 1.0}, ValueError, "diverge: expected a finite number > 1"),
        ({"beta": 1.0}, ValueError, r"beta: expected a number in \[0, 1\)"),
    ],
)
def test_range_tests_that_make_no_sense(arguments, error, words):
    task = Parabola()
    with pytest.raises(error, match=f"^{words}"):
        range_test(task.opt, task, **arguments)
    assert task.rates == []


@pytest.mark.parametrize(
    ("smoothed", "steepest", "lowest"),
    [
        ([20, 19, 10, 10, 9, 5, 4, 3, 2, 8, 9] + [9] * 9, 4, 8),  # 19 to 10: in the first tenth
        ([20, 19, 18, 16, 15, 12, 40, 30, 20, 20] * 2, 4, 5),  # what falls after it rose is no gain
        ([2, 1, 3, 4, 5, 6, 7, 8, 9, 10] * 2, 0, 1),
        ([1, 2, 3, 2], 0, 0),
        ([2, 1], 0, 1),
    ],
)
def test_suggestions(smoothed, steepest, lowest):
    """The steepest fall on the way to the minimum, and a tenth of where that is."""
    lrs = 10.0 ** np.arange(len(smoothed))
    curve = RangeTest(lrs, np.zeros(len(smoothed)), np.array(smoothed, float), diverged=False)
    assert curve.steep == lrs[steepest]
    assert curve.minimum == pytest.approx(lrs[lowest] / 10)


@pytest.mark.parametrize("sign", [1, -1])
def test_pictures(sign, tmp_path):
    pytest.importorskip("matplotlib")
    trials = (Trial(0.1, sign * 2.0, "coarse"), Trial(1.0, math.nan, "fine"))
    values = np.array([3.0, 2.0, 4.0]) * sign
    for number, result in enumerate(
        [
            LearningRates(trials),
            LearningRates(trials[:1]),
            RangeTest(np.array([0.1, 1.0, 10.0]), values, values, diverged=False),
        ]
    ):
        path = tmp_path / f"{number}.png"
        result.picture(path)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_loss_of_zero_is_in_the_picture(tmp_path, monkeypatch):
    """Below the others, which keep their logarithmic scale; so is the ring about the best."""
    pytest.importorskip("matplotlib")
    from onepass.lab.search import picture

    drawn = []
    monkeypatch.setattr(picture, "_finish", lambda figure, _: drawn.append(figure.axes[0]))
    LearningRates((Trial(0.1, 1e-6, "coarse"), Trial(1.0, -0.0, "fine"))).picture("")
    losses = np.array([1.0, 0.0, 1e6])
    RangeTest(np.array([0.1, 1.0, 10.0]), losses, losses, diverged=True).picture("")
    for axes in drawn:
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        for line in axes.lines[:2]:
            assert (np.array(line.get_ydata()) > low).all()
            assert (np.array(line.get_ydata()) < high).all()
        assert [text.get_text() for text in axes.texts] == ["0"]
    (*_, ring) = drawn[0].collections
    assert ring.get_offsets()[0, 1] > drawn[0].get_ylim()[0]
