"""Line searches: the step size by arithmetic, the points to the bit, no trace of trials."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers import FORMATS, assert_same_bits
from onepass.line_search import backtracking, best_of

SEARCHES = [best_of([8.0, 0.5, 3.0, 0.1]), backtracking(8.0, rho=0.3)]
IDS = ["best_of", "backtracking"]
every_search = pytest.mark.parametrize("search", SEARCHES, ids=IDS)

moderate = st.floats(0.01, 100)


class Quadratic:
    """The loss 1/2 a w**2, which remembers where it was asked."""

    def __init__(self, a, w, dtype=np.float64):
        self.a, self.w = a, np.array([w], dtype)
        self.asked = []

    def __call__(self):
        self.asked.append(self.w.copy())
        return 0.5 * self.a * self.w.item() ** 2

    @property
    def grad(self):
        return self.a * self.w


@given(a=moderate, w=moderate, etas=st.lists(moderate, min_size=1, max_size=6, unique=True))
def test_best_of_takes_what_is_closest_to_the_exact_step(a, w, etas):
    """The loss at eta is 1/2 a w**2 (1 - eta a)**2: the best is closest to 1 / a."""
    distances = {eta: abs(1 - eta * a) for eta in [0, *etas]}
    best, *others = sorted(distances, key=distances.get)
    assume(all(distances[eta] > distances[best] + 1e-9 for eta in others))
    loss = Quadratic(a, w)
    info = best_of(etas)(loss.w, loss.grad, loss)
    assert info.eta == best
    assert info.evaluations == len(etas) + 1 == len(loss.asked)
    assert info.loss == pytest.approx(0.5 * a * w**2 * (1 - best * a) ** 2, rel=1e-6, abs=1e-9)


@given(
    a=moderate,
    w=moderate,
    eta=moderate,
    rho=st.floats(0.1, 0.9),
    c=st.floats(1e-4, 0.9),
)
def test_backtracking_takes_the_first_that_fulfils_armijo(a, w, eta, rho, c):
    """1/2 a w**2 (1 - eta a)**2 <= 1/2 a w**2 - c eta (a w)**2 where eta <= 2 (1 - c) / a."""
    limit = 2 * (1 - c) / a
    shrunk = [eta * rho**k for k in range(200)]
    assume(all(abs(e / limit - 1) > 1e-6 for e in shrunk))
    trials = next(k for k, e in enumerate(shrunk) if e <= limit) + 1
    loss = Quadratic(a, w)
    info = backtracking(eta, rho=rho, c=c, max_trials=200)(loss.w, loss.grad, loss)
    assert info.eta == shrunk[trials - 1]
    assert info.evaluations == trials + 1 == len(loss.asked)
    loss = Quadratic(a, w)
    info = backtracking(eta, rho=rho, c=c, max_trials=trials)(loss.w, loss.grad, loss)
    assert info.eta == shrunk[trials - 1]
    if trials > 1:
        loss = Quadratic(a, w)
        info = backtracking(eta, rho=rho, c=c, max_trials=trials - 1)(loss.w, loss.grad, loss)
        assert (info.eta, info.evaluations) == (0, trials)
        assert loss.w == w


def trees(dtype):
    """Parameters and gradients of one structure, as a list and under names."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    values = st.floats(-100, 100, width=np.dtype(dtype).itemsize * 8)
    pair = shapes.flatmap(
        lambda shape: st.tuples(*[hnp.arrays(dtype, shape, elements=values)] * 2, st.booleans())
    )
    return st.lists(pair, min_size=1, max_size=4)


@pytest.mark.parametrize("up", [False, True], ids=["grads", "direction"])
@every_search
@given(data=st.data(), dtype=st.sampled_from(FORMATS))
def test_the_accepted_point_and_every_trial_are_one_step_from_the_start(search, up, data, dtype):
    pairs = data.draw(trees(dtype))
    starts, grads, in_fortran = zip(*pairs, strict=True)
    orders = ["F" if fortran else "C" for fortran in in_fortran]
    params = [start.copy(order) for start, order in zip(starts, orders, strict=True)]
    names = [f"p{i}" for i in range(len(pairs))]
    # A direction downhill of another length than the gradients'.
    ahead = [np.asarray(-2 * g if up else -g) for g in grads]
    assume(not up or sum((g.astype(float) ** 2).sum() for g in grads) > 0)
    seen = []

    def loss():
        seen.append([param.copy() for param in params])
        return sum(float((param.astype(float) ** 2).sum()) for param in params)

    def tree(arrays):
        return {"layer": dict(zip(names, arrays, strict=True))}

    info = search(tree(params), tree(grads), loss, direction=tree(ahead) if up else None)

    def at(eta):
        return [
            start + dtype(eta) * d if eta else start for start, d in zip(starts, ahead, strict=True)
        ]

    tried = search.etas if isinstance(search, best_of) else [8.0 * 0.3**k for k in range(30)]
    for eta, points in zip([0, *tried], seen, strict=False):
        for point, expected in zip(points, at(eta), strict=True):
            assert_same_bits(point, expected)
    for param, expected in zip(params, at(info.eta), strict=True):
        assert_same_bits(param, expected)
    assert info.loss == sum(float((p.astype(float) ** 2).sum()) for p in params)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@every_search
def test_what_the_loss_raises_leaves_no_trace(search, error, dtype):
    """Whichever evaluation raises, also in values that arithmetic would not bring back."""
    quiet_nan = np.array([0x7FC12345], np.uint32).view(np.float32).astype(dtype)
    start = np.concatenate([np.array([1e8, -0.0, 3, np.inf], dtype), quiet_nan])
    other = np.array(2.0, dtype)
    for failing in range(3):
        params = [start.copy(), other.copy()]
        grads = [np.array([1e-8, 1, 3, 0, 0], dtype), np.array(2.0, dtype)]
        evaluations = 0

        def loss(params=params, failing=failing):
            nonlocal evaluations
            params[0][2] += evaluations  # a loss that spoils what it reads
            if evaluations == failing:
                raise error
            evaluations += 1
            return math.inf if evaluations > 1 else 1.0

        with pytest.raises(error):
            search(params, grads, loss)
        assert params[0].tobytes() == start.tobytes()
        assert params[1].tobytes() == other.tobytes()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_search
def test_trials_that_are_not_finite_are_rejected(search, bad):
    start = np.array([1.0, -0.0])
    w = start.copy()
    calls = iter([1.0])
    info = search(w, np.array([1.0, 1.0]), lambda: next(calls, bad))
    assert info.eta == 0
    assert info.loss == 1
    assert info.evaluations == (5 if isinstance(search, best_of) else 31)
    assert w.tobytes() == start.tobytes()
    w = np.array([1.0])
    info = search(w, w.copy(), lambda: w.item() ** 2 if abs(w.item()) <= 1 else bad)
    assert info.eta == {best_of: 0.5, backtracking: 8 * 0.3**2}[type(search)]


def test_where_nothing_improves_the_start_is_kept():
    w = np.array([1.0])
    assert best_of([3.0, 2.0])(w, w.copy(), lambda: w.item() ** 2) == (0, 1, 3)  # at 2: equal
    assert w == 1


def test_of_equal_losses_the_first_counts():
    w = np.array([1.0])
    assert best_of([1.5, 0.5])(w, w.copy(), lambda: abs(w.item())).eta == 1.5
    assert w == -0.5


@every_search
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_start_must_be_finite(search, bad):
    w = np.array([1.0])
    with pytest.raises(ValueError, match=f"^loss: expected a finite number at .*, got {bad}$"):
        search(w, np.ones(1), lambda: bad)
    assert w == 1


@every_search
@pytest.mark.parametrize("wrong", [None, "far", [1.0, 2.0], 1j])
def test_the_loss_must_be_a_number(search, wrong):
    with pytest.raises(TypeError, match="^loss: expected it to return a number, got"):
        search(np.ones(1), np.ones(1), lambda: wrong)


def test_structures():
    """Gradients left out, in another layout, or from a generator."""
    a, b, c = np.ones((2, 3)), np.ones(4, np.float32), np.array(1.0)
    wide = np.ones((3, 4))[:, ::2].T  # neither C nor F
    info = best_of([0.5])([a, [b, c]], iter([wide, (None, np.float64(1.0))]), a.sum)
    assert info.eta == 0.5
    assert (a == 0.5).all()
    assert (b == 1).all()
    assert c == 0.5
    direction = [-np.ones((2, 3)), [None, None]]
    grads = [np.ones((2, 3)), [None, np.float64(1.0)]]
    info = backtracking(0.5)([a, [b, c]], grads, a.sum, direction=direction)
    assert info == (0.5, 0, 2)
    assert (b == 1).all()
    assert c == 0.5


@pytest.mark.parametrize("direction", [[1.0, -1.0], [3.0, 1.0], [0.0, 0.0]])
def test_a_direction_must_descend(direction):
    """Against the gradient (1, 1): at a right angle, uphill, and nowhere."""
    w = np.ones(2)
    asked = []
    with pytest.raises(ValueError, match="^direction: expected one of descent, got a slope of"):
        backtracking()(w, np.ones(2), lambda: asked.append(1), direction=np.array(direction))
    assert (w == 1).all()
    assert not asked


def test_where_the_gradient_is_zero_nothing_moves():
    w = np.array([1.0, -0.0])
    for search in SEARCHES:
        info = search(w, np.zeros(2), lambda: 7.0)
        assert info.loss == 7
        assert w.tobytes() == np.array([1.0, -0.0]).tobytes()


@pytest.mark.parametrize("bad", [[math.nan, 1], [math.inf, 1], [1e200, 1]])
def test_a_slope_must_be_finite(bad):
    with pytest.raises(ValueError, match="^grads: expected a finite slope"):
        backtracking()(np.ones(2), np.array(bad), lambda: 1.0)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize(("c", "eta"), [(0.4, 1.0), (0.6, 0.0)])
def test_the_slope_is_summed_in_double(size, c, eta):
    """The loss falls half as fast as gradients say whose square float32 cannot hold."""
    w = np.zeros(1, np.float32)
    grad = np.full(1, size, np.float32)
    info = backtracking(c=c)(w, grad, lambda: 0.5 * float(grad[0]) * w.item())
    assert info.eta == eta


def bad_arguments():
    ones = np.ones(3)
    frozen = np.ones(3)
    frozen.flags.writeable = False
    return {
        "shape": (ones, np.ones(2), ValueError, r"^grads: expected shape \(3,\), got \(2,\)"),
        "name": ({"a": ones}, {"b": ones}, ValueError, "^grads: expected the names"),
        "shape of a name": ({"a": ones}, {"a": np.ones(2)}, ValueError, r"^grads\['a'\]: "),
        "dtype": (ones, np.ones(3, complex), TypeError, "^grads.*dtype float32.*, got complex"),
        "overlap": (ones, ones, ValueError, "memory"),
        "list": ([1.0], [1.0], TypeError, r"^params\[0\]: expected"),
        "read-only": (frozen, ones, ValueError, "^params: expected"),
        "none": ([], [], ValueError, "^params: expected at least one array"),
        "groups": ([{"params": ones, "lr": 1.0}], [ones], TypeError, r"^params\[0\]\['lr'\]: "),
    }


@every_search
@pytest.mark.parametrize("what", bad_arguments())
def test_bad_arguments_change_nothing(search, what):
    params, grads, error, words = bad_arguments()[what]
    with pytest.raises(error, match=words):
        search(params, grads, lambda: 1.0)
    for array in [params, *(params.values() if isinstance(params, dict) else ())]:
        assert not isinstance(array, np.ndarray) or (array == 1).all()


@every_search
def test_a_bad_direction_is_named(search):
    w = np.ones(3)
    with pytest.raises(ValueError, match="^direction: expected shape"):
        search(w, np.ones(3), lambda: 1.0, direction=np.ones(4))
    assert (w == 1).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: best_of([]), ValueError, "etas: expected at least one"),
        (lambda: best_of([1.0, 0.0]), ValueError, r"etas\[1\]: expected a finite number > 0"),
        (lambda: best_of([math.inf]), ValueError, r"etas\[0\]: "),
        (lambda: best_of(["1"]), TypeError, r"etas\[0\]: "),
        (lambda: backtracking(0.0), ValueError, "eta: "),
        (lambda: backtracking(rho=1.0), ValueError, r"rho: expected a number in \(0, 1\)"),
        (lambda: backtracking(c=0.0), ValueError, "c: "),
        (lambda: backtracking(max_trials=0), ValueError, "max_trials: expected an integer >= 1"),
        (lambda: backtracking(max_trials=2.0), TypeError, "max_trials: "),
    ],
)
def test_settings_that_make_no_sense(make, error, words):
    with pytest.raises(error, match=f"^{words}"):
        make()


def test_every_step_down_rosenbrocks_valley_fulfils_armijo():
    w = np.array([-1.2, 1.0])

    def loss():
        x, y = w
        return 100 * (y - x**2) ** 2 + (1 - x) ** 2

    before = loss()
    for _ in range(200):
        x, y = w
        grad = np.array([-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)])
        eta, after, _ = backtracking(c=0.1)(w, grad, loss)
        assert eta > 0
        assert after == loss() <= before - 0.1 * eta * (grad @ grad) * (1 - 1e-12)
        before = after
