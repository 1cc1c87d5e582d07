"""The error surfaces, the paths down them, and what the lectures say of these."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onepass as op
from onepass import surface
from onepass.lab.surface import SURFACES, claims, descend, sparse_neuron, walkers
from onepass.lab.surface.claims import momentum
from onepass.lab.surface.walking import SEARCHERS

NEURON, SPARSE = SURFACES["neuron"], SURFACES["sparse"]


@pytest.fixture(params=SURFACES.values(), ids=SURFACES.keys())
def each(request):
    return request.param


def neuron_loss(w, b, pairs):
    """The lecture's, in plain Python numbers."""
    return sum(0.5 * (y - 1 / (1 + math.exp(-(w * x + b)))) ** 2 for x, y in pairs)


class TestSurfaces:
    def test_gradient_is_that_of_the_loss(self, each, rng):
        points = rng.uniform(*np.transpose(each.window), size=(50, 2))
        step = 1e-6 * np.eye(2)
        differences = [(each.loss(points + h) - each.loss(points - h)) / 2e-6 for h in step]
        scale = np.abs(each.gradient(points)).max()
        np.testing.assert_allclose(
            each.gradient(points), np.transpose(differences), rtol=1e-5, atol=1e-8 * scale
        )

    def test_any_shape_of_points(self, each, rng):
        points = rng.uniform(-2, 2, size=(3, 4, 2))
        assert each.loss(points).shape == (3, 4)
        assert each.gradient(points).shape == (3, 4, 2)
        # a sum over 100 points may be taken in another order
        one = points[1, 2]
        assert each.loss(one) == pytest.approx(each.loss(points)[1, 2], rel=1e-13)
        np.testing.assert_allclose(each.gradient(one), each.gradient(points)[1, 2], rtol=1e-12)

    def test_minima(self, each):
        assert each.minima
        for minimum in each.minima:
            assert each.loss(minimum) == pytest.approx(0, abs=1e-30)
            np.testing.assert_allclose(each.gradient(minimum), 0, atol=1e-14)

    def test_the_window_shows_start_and_minima(self, each):
        lows, highs = np.transpose(each.window)
        for point in (each.start, *each.minima):
            assert (lows < point).all()
            assert (point < highs).all()

    @pytest.mark.parametrize(
        ("name", "point", "loss"),
        [
            ("ravine", (-5, 1), 25 / 2 + 50 / 2),
            ("saddle", (0, 0), 0.25),
            ("saddle", (2, 3), 2 + 64 / 4),
            ("rosenbrock", (-1.2, 1), 24.2),  # Rosenbrock (1960)
            ("beale", (1, 1), 1.5**2 + 2.25**2 + 2.625**2),
            ("beale", (2, -1), (1.5 - 4) ** 2 + 2.25**2 + (2.625 - 4) ** 2),
        ],
    )
    def test_values(self, name, point, loss):
        assert SURFACES[name].loss(point) == pytest.approx(loss, rel=1e-14)

    def test_the_gradient_of_some_rows(self):
        """Of one of the lecture's points, in plain numbers, times the number of points."""
        w, b, (x, y) = -0.5, 0.25, (2.5, 0.9)
        f = 1 / (1 + math.exp(-(w * x + b)))
        delta = (f - y) * f * (1 - f)
        found = NEURON.batch_gradient((w, b), np.array([1]))
        np.testing.assert_allclose(found, [2 * delta * x, 2 * delta], rtol=1e-12)

    @pytest.mark.parametrize("size", [1, 7, 50, 100])
    def test_batches_are_the_whole_gradient_on_average(self, size, rng):
        point = rng.normal(size=2)
        batches = np.split(rng.permutation(100), range(size, 100, size))
        parts = [SPARSE.batch_gradient(point, rows) * len(rows) / 100 for rows in batches]
        np.testing.assert_allclose(sum(parts), SPARSE.gradient(point), rtol=1e-12)

    def test_the_saddle_is_one(self):
        np.testing.assert_array_equal(SURFACES["saddle"].gradient((0, 0)), 0)
        along_x, along_y = SURFACES["saddle"].loss([(0.1, 0), (0, 0.1)])
        assert along_y < SURFACES["saddle"].loss((0, 0)) < along_x

    @given(w=st.floats(-6, 6), b=st.floats(-6, 6))
    def test_the_neuron_is_the_lectures(self, w, b):
        expected = neuron_loss(w, b, [(0.5, 0.2), (2.5, 0.9)])
        assert NEURON.loss((w, b)) == pytest.approx(expected, rel=1e-9, abs=1e-15)

    def test_the_neurons_minimum_fits_both_points(self):
        ((w, b),) = NEURON.minima
        assert 1 / (1 + math.exp(-(w * 0.5 + b))) == pytest.approx(0.2, rel=1e-14)
        assert 1 / (1 + math.exp(-(w * 2.5 + b))) == pytest.approx(0.9, rel=1e-14)

    def test_far_from_everything_nothing_overflows(self):
        assert np.isfinite(NEURON.loss([(1e6, -1e6), (-1e6, 1e6)])).all()

    def test_eighty_of_a_hundred_points_say_nothing_about_w(self):
        """With all of w's weight on x = 0 the loss does not depend on it."""
        rng = np.random.default_rng(7)
        x = rng.normal(size=100)
        x[rng.permutation(100)[:80]] = 0
        assert (x == 0).sum() == 80
        y = [1 / (1 + math.exp(-(2 * each + 1))) for each in x]
        expected = neuron_loss(-1, 0.5, list(zip(x, y, strict=True)))
        assert sparse_neuron(7).loss((-1, 0.5)) == pytest.approx(expected, rel=1e-12)
        assert SPARSE.loss((0, 3)) == sparse_neuron(0).loss((0, 3))


class TestDescend:
    def test_path(self):
        """The ravine under plain descent: x shrinks by 1 - lr, y by 1 - 50 lr, each step."""
        path = descend(SURFACES["ravine"], lambda w: op.SGD(w, lr=0.01), (2, 4), steps=30)
        steps = np.arange(31)
        expected = np.stack((2 * 0.99**steps, 4 * 0.5**steps), axis=-1)
        np.testing.assert_allclose(path.points, expected, rtol=1e-12)
        np.testing.assert_allclose(path.losses, (expected**2 @ [1, 50]) / 2, rtol=1e-12)

    def test_lookahead_is_nesterovs(self):
        """The lecture's Nesterov, in plain numbers."""
        w, u = np.array(NEURON.start), np.zeros(2)
        expected = [w]
        for _ in range(40):
            u = 0.9 * u + NEURON.gradient(w - 0.9 * u)
            w = w - u
            expected.append(w)
        path = walkers()["Nesterov"].descend(NEURON, steps=40)  # the surface's lr is 1
        np.testing.assert_allclose(path.points, expected, rtol=1e-9)

    def test_who_can_descend(self):
        names = list(walkers())
        assert names[:4] == ["SGD", "Momentum", "Nesterov", "RMSprop"]
        assert {cls.__name__ for cls in op.optim.registry.values()} <= set(names)
        w = np.zeros(2)
        assert walkers()["Momentum"].make(w, lr=0.5).param_groups[0]["momentum"] == 0.9
        assert walkers()["RMSprop"].make(w, lr=0.5).param_groups[0]["alpha"] == 0.9

    @pytest.mark.parametrize("name", walkers())
    def test_everyone_gets_down(self, each, name):
        """At the surface's rate, or one of another size, where a rule reads its rate otherwise."""
        walker = walkers()[name]
        rates = (factor * walker.lr(each) for factor in (1, 10, 100, 0.1))
        paths = (walker.descend(each, steps=500, lr=lr) for lr in rates)
        path = next(path for path in paths if path.losses[-1] < 0.2 * path.losses[0])
        np.testing.assert_array_equal(path.points[0], each.start)
        expected = each.loss(path.points)  # a power of many may be rounded otherwise
        np.testing.assert_allclose(path.losses, expected, rtol=1e-12, atol=1e-25)
        assert len(path.losses) == 501

    @pytest.mark.parametrize("size", [1, 30])
    def test_each_row_comes_once_in_a_sweep(self, size):
        """A step of plain descent tells which rows it saw: they explain it."""
        path = walkers()["SGD"].descend(SPARSE, steps=8, lr=0.02, batch_size=size, seed=3)
        order = np.random.default_rng(3)
        batches = [
            rows
            for _ in range(8)
            for rows in np.split(order.permutation(100), range(size, 100, size))
        ]
        for i, step in enumerate(np.diff(path.points, axis=0)):
            expected = -0.02 * SPARSE.batch_gradient(path.points[i], batches[i])
            np.testing.assert_allclose(step, expected, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(path.losses, SPARSE.loss(path.points), rtol=1e-12)

    @pytest.mark.parametrize("name", ["SGD", "Nesterov", "Adam"])
    def test_a_batch_of_all_rows_is_no_batch(self, name):
        walker = walkers()[name]
        whole = walker.descend(SPARSE, steps=30)
        for size in (100, 1000):
            path = walker.descend(SPARSE, steps=30, batch_size=size)
            np.testing.assert_allclose(path.points, whole.points, rtol=1e-9)

    def test_the_seed_decides_the_order(self):
        first, again, other = (
            walkers()["Nesterov"].descend(SPARSE, steps=20, batch_size=1, seed=seed)
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(first.points, again.points)
        assert (first.points[-1] != other.points[-1]).any()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"batch_size": 0}, "batch_size: expected an integer >= 1, got 0"),
            ({"batch_size": 1, "seed": -1}, "seed: expected an integer >= 0, got -1"),
        ],
    )
    def test_bad_batches(self, options, words):
        with pytest.raises(ValueError, match=f"^{words}"):
            descend(NEURON, op.SGD, **options)

    def test_batches_of_a_formula(self):
        words = "^batch_size: expected None, as there are no data, got 2"
        with pytest.raises(ValueError, match=words):
            descend(SURFACES["ravine"], op.SGD, batch_size=2)

    def test_start_and_rate(self):
        path = walkers()["SGD"].descend(SURFACES["ravine"], (1, 0), steps=1, lr=0.25)
        np.testing.assert_array_equal(path.points, [(1, 0), (0.75, 0)])

    def test_the_start_is_not_written_to(self):
        start = np.array([1.0, 1.0])
        descend(NEURON, op.Adam, start)
        np.testing.assert_array_equal(start, 1)

    def test_divergence_ends_the_path(self):
        path = descend(SURFACES["rosenbrock"], lambda w: op.SGD(w, lr=1.0), steps=100)
        assert 1 < len(path.losses) < 101
        assert np.isfinite(path.points).all()
        assert np.isfinite(path.losses).all()

    def test_steps_to(self):
        path = surface.Trajectory(np.zeros((4, 2)), np.array([4.0, 2.0, 3.0, 1.0]))
        assert [path.steps_to(goal) for goal in (5, 4, 3, 2, 1.5, 0)] == [0, 0, 1, 1, 3, None]

    @pytest.mark.parametrize("start", [(1,), (1, 2, 3), ((1, 2),), (1, math.nan), "ab", (1, "x")])
    def test_bad_start(self, start):
        with pytest.raises(ValueError, match=r"^start: expected two finite numbers, got "):
            descend(NEURON, op.SGD, start)

    def test_start_with_no_finite_loss(self):
        with pytest.raises(ValueError, match=r"^start: expected a point with a finite loss, got "):
            descend(SURFACES["ravine"], op.SGD, (1e200, 0))

    @pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (2.5, TypeError)])
    def test_bad_steps(self, steps, error):
        with pytest.raises(error, match=rf"^steps: expected an integer >= 1, got {steps}"):
            descend(NEURON, op.SGD, steps=steps)


class TestLineSearchers:
    def test_the_best_of_the_multiples(self):
        """Down the ravine's floor, where a step of eta leaves (1 - eta)² of the loss: lr 0.1."""
        path = SEARCHERS["best_of"].descend(SURFACES["ravine"], (1, 0), steps=3, lr=0.1)
        np.testing.assert_array_equal(path.points, [(1, 0), (0, 0), (0, 0), (0, 0)])
        assert path.losses.tolist() == [0.5, 0, 0, 0]  # 1 is 10 times 0.1
        assert path.evaluations == 3 * 6  # the start and five step sizes each

    def test_the_first_half_that_is_good_enough(self):
        """By 4, 2 and 1 the floor's 1 would come to -3, -1 and 0: 2 gains nothing, 1 all."""
        path = SEARCHERS["backtracking"].descend(SURFACES["ravine"], (1, 0), steps=1, lr=0.4)
        np.testing.assert_array_equal(path.points, [(1, 0), (0, 0)])
        assert path.evaluations == 4

    @pytest.mark.parametrize("name", SEARCHERS)
    def test_it_never_climbs(self, each, name):
        path = SEARCHERS[name].descend(each, steps=60)
        assert (np.diff(path.losses) <= 0).all()
        np.testing.assert_allclose(path.losses, each.loss(path.points), rtol=1e-12, atol=1e-300)
        assert path.losses[-1] < 0.3 * path.losses[0]


class TestSearches:
    @given(n=st.integers(1, 400))
    def test_grid(self, n):
        tried = surface.grid_search(NEURON, n)
        side = math.isqrt(n)
        assert tried.points.shape == (side * side, 2)
        assert len(np.unique(tried.points, axis=0)) == side * side
        width = 12 / side  # each point in the middle of a square of this width
        assert tried.points.min() == pytest.approx(-6 + width / 2)
        assert tried.points.max() == pytest.approx(6 - width / 2)
        np.testing.assert_array_equal(tried.losses, NEURON.loss(tried.points))

    def test_random(self, rng):
        tried = surface.random_search(NEURON, 10_000, rng)
        assert tried.points.shape == (10_000, 2)
        assert (np.abs(tried.points) <= 6).all()
        # each quarter of the square holds 2500 of them, give or take five standard deviations
        quarters = (tried.points > 0) @ [1, 2]
        deviation = math.sqrt(10_000 * 0.25 * 0.75)
        assert (np.abs(np.bincount(quarters) - 2500) < 5 * deviation).all()
        np.testing.assert_array_equal(tried.losses, NEURON.loss(tried.points))

    @pytest.mark.parametrize(("n", "error"), [(0, ValueError), (True, TypeError)])
    def test_bad_number(self, n, error, rng):
        for search in (surface.grid_search, lambda s, n: surface.random_search(s, n, rng)):
            with pytest.raises(error, match=rf"^n: expected an integer >= 1, got {n}"):
                search(NEURON, n)

    @pytest.mark.parametrize("name", ["SGD", "Momentum", "Nesterov", "Adam"])
    def test_are_beaten(self, name):
        last = walkers()[name].descend(NEURON, steps=500).losses[-1]
        assert last < surface.grid_search(NEURON, 500).losses.min()
        for seed in range(10):
            rng = np.random.default_rng(seed)
            assert last < surface.random_search(NEURON, 500, rng).losses.min()


class TestClaims:
    def test_guesses(self):
        """Three of the six are as printed; the docstring says what the others are."""
        expected = ["0.0731", "0.1481", "0.0217", "0.0029", "0.0003", "0.0000"]
        printed = ["0.0730", "0.1481", "0.0214", "0.0028", "0.0003", "0.0000"]
        for guess, figure, lecture in zip(claims.guesses(), expected, printed, strict=True):
            loss = neuron_loss(guess.w, guess.b, [(0.5, 0.2), (2.5, 0.9)])
            assert guess.loss == pytest.approx(loss, rel=1e-10)
            assert f"{loss:.4f}" == figure
            assert guess.printed == lecture
            assert guess.holds == (figure == lecture)

    def test_printed_losses_are_those_of_guesses_near_by(self):
        offsets = np.linspace(-0.005, 0.005, 41)
        for guess in claims.guesses():
            near = NEURON.loss(np.stack(np.meshgrid(guess.w + offsets, guess.b + offsets), -1))
            assert near.min() < float(guess.printed) + 1e-4  # further digits cut off
            assert near.max() >= float(guess.printed)

    def test_momentum_passes_plain_descent_on_the_plateau(self):
        steps = claims.steps_across_the_plateau()
        assert steps["Nesterov"] <= steps["Momentum"] < steps["SGD"] / 3
        # and from farther out, where plain descent has not arrived after 1000 steps
        for start in ((-4, -4), (-4, 0)):
            steps = claims.steps_across_the_plateau(start)
            assert steps["SGD"] is None
            assert steps["Momentum"] < 500

    def test_but_momentum_may_pass_the_minimum_too(self):
        steps = claims.steps_across_the_plateau((0, -4), goal=0.001)
        assert steps["Momentum"] is None
        assert steps["SGD"] < 100
        paths = [walkers()[name].descend(NEURON, (0, -4), 1000) for name in ("Momentum", "SGD")]
        assert f"{paths[0].losses[-1]:.0g}" == "0.005"
        assert f"{paths[1].losses[-1]:.0e}" == "1e-11"

    @pytest.mark.parametrize("start", [NEURON.start, (-4, -4), (-2, 4), (4, 4), (-4, 0)])
    @pytest.mark.parametrize("lr", [0.5, 1.0])
    def test_nesterovs_u_turns_are_shorter(self, start, lr):
        heavy, nesterov = (claims.u_turns(start, lr)[n] for n in ("Momentum", "Nesterov"))
        assert nesterov.overshoot < heavy.overshoot
        assert nesterov.length < 0.8 * heavy.length

    def test_but_at_half_the_rate_they_reach_as_far(self):
        heavy, nesterov = (claims.u_turns(lr=0.5)[n] for n in ("Momentum", "Nesterov"))
        assert (f"{nesterov.overshoot:.2f}", f"{heavy.overshoot:.2f}") == ("2.30", "2.31")

    def test_u_turn_of_a_path_drawn_by_hand(self):
        """A rise on the plateau, down to within 1 of the minimum, past it to 3, and back to it."""
        points = np.array([(-6.0, 0), (-5, 0), (-5.5, 0), (-1, 0), (3, 0), (0, 0)])
        path = surface.Trajectory(points, (points**2).sum(axis=-1))
        assert momentum._u_turn(path, (0, 0)) == claims.UTurn(step=3, overshoot=3, length=4 + 3)

    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("steps", [1, 3, 5])
    def test_adagrad_moves_along_w_where_the_feature_is_sparse(self, seed, steps):
        moved = claims.first_steps_on_sparse(sparse_neuron(seed), steps)
        assert moved["Adagrad"].ratio == pytest.approx(1, abs=0.05)
        for name in ("SGD", "Momentum", "Nesterov"):
            assert moved[name].ratio < 0.25

    def test_but_the_others_go_no_less_far_along_w(self):
        moved = claims.first_steps_on_sparse()
        for name in ("SGD", "Momentum", "Nesterov"):
            assert moved[name].w > moved["Adagrad"].w
            assert moved[name].b > 8 * moved["Adagrad"].b

    def test_adagrads_rate_dies_and_rmsprops_does_not(self):
        rates = claims.effective_rates()
        assert (np.diff(rates["Adagrad"], axis=0) < 0).all()
        assert (rates["Adagrad"][-1] < 0.1 * rates["Adagrad"][0]).all()
        assert (rates["RMSprop"][-1] > rates["RMSprop"][0]).all()
        assert (rates["RMSprop"].min(axis=0) > rates["Adagrad"].min(axis=0)).all()

    def test_effective_rate_of_a_constant_gradient(self):
        """lr / sqrt(t) for AdaGrad; for RMSProp lr / sqrt(1 - 0.9^t), which comes to rest at lr."""
        slope = surface.Surface(
            name="slope", function=lambda x, y: x + y,
            slope=lambda x, y: (np.ones_like(x), np.ones_like(y)),
            start=(0.0, 0.0), window=((-1, 1), (-1, 1)),
        )  # fmt: skip
        rates = claims.effective_rates(slope, steps=50, lr=0.5)
        t = np.arange(1, 51)[:, None] * np.ones(2)
        np.testing.assert_allclose(rates["Adagrad"], 0.5 / np.sqrt(t), rtol=1e-7)
        np.testing.assert_allclose(rates["RMSprop"], 0.5 / np.sqrt(1 - 0.9**t), rtol=1e-6)

    def test_rmsprop_ends_to_and_fro(self):
        paths = [walkers()[n].descend(SPARSE, steps=1000, lr=0.1) for n in ("RMSprop", "Adagrad")]
        rmsprop, adagrad = (path.losses[-200:] for path in paths)
        assert {f"{loss:.3f}" for loss in rmsprop} == {"0.006"}
        assert (np.diff(adagrad) < 0).all()
        assert f"{adagrad[-1]:.3f}" == "0.007"

    def test_in_a_valley_momentum_is_far_lower(self):
        """Down the floor plain descent leaves (1 - lr)² a step of x² / 2; twice 25 y² is gone."""
        plain, heavy, nesterov = claims.losses_in_a_valley().values()
        assert plain.loss == plain.highest == pytest.approx(0.5 * 0.995**200, rel=1e-9)
        assert f"{2 * plain.loss:.2f}" == "0.37"
        assert f"{2 * heavy.loss:.1e}" == "1.5e-05"
        assert nesterov.loss == nesterov.highest < 1e-4 * plain.loss
        assert f"{heavy.highest:.0e}" == "5e-04"

    def test_but_not_whatever_the_rate_nor_across_the_valley(self):
        plain, heavy, _ = claims.losses_in_a_valley(lr=0.025).values()
        assert (f"{plain.loss:.3f}", f"{heavy.highest:.4f}") == ("0.003", "0.0009")
        plain, heavy, _ = claims.losses_in_a_valley((0, 1), lr=0.025).values()
        assert plain.loss == pytest.approx(25 * 0.25**200, rel=1e-9)  # y times 1 - 50 lr
        assert f"{heavy.highest:.4f}" == "0.0009"

    @pytest.mark.parametrize("lr", [0.004, 0.005, 0.01, 0.025, 0.05])
    def test_the_swing_of_momentum_falls_as_fast_at_any_rate(self, lr):
        """Its roots are a complex pair of the size sqrt(0.9): 100 steps leave 0.9^100."""
        first = SURFACES["ravine"].loss((0, 1))
        reached = claims.losses_in_a_valley((0, 1), lr)["Momentum"]
        assert 0.5 * 0.9**100 < reached.highest / first < 5 * 0.9**100

    def test_after_stochastic_steps_plain_descent_is_far_off(self):
        losses = claims.losses_of_stochastic_steps()
        assert all(each.shape == (10,) for each in losses.values())
        first = NEURON.loss(NEURON.start)
        assert (losses["SGD"] > 0.98 * first).all()
        assert (losses["Momentum"] < 0.04 * first).all()
        assert (losses["Nesterov"] < 0.02 * first).all()

    def test_but_not_on_the_sparse_surface(self):
        losses = claims.losses_of_stochastic_steps(SPARSE, lr=SPARSE.lr)
        for name, (low, high) in {"SGD": ("1.0", "2.2"), "Momentum": ("0.0", "4.9")}.items():
            assert (f"{losses[name].min():.1f}", f"{losses[name].max():.1f}") == (low, high)
        losses = claims.losses_of_stochastic_steps(SPARSE, lr=0.1)
        assert losses["SGD"].max() < 0.4
        assert min(losses["Momentum"].min(), losses["Nesterov"].min()) > 3

    def test_a_rate_of_ten_crosses_the_plateau(self):
        found = claims.high_rates_on_the_plateau()
        assert [found[lr].steps for lr in (1, 10, 30, 100)] == [113, 14, 26, None]
        assert (found[1].rises, found[10].rises) == (0, 1)
        assert found[10].last < found[1].last < 1e-10
        assert f"{found[30].last:.3f}" == "0.005"

    def test_line_searches_take_fewer_steps(self, each):
        costs = claims.line_searches_beside_plain_descent(each)
        plain = costs["SGD"].steps or 3027
        steps = [costs[name].steps for name in SEARCHERS]
        assert all(1.7 < plain / count < 10.5 for count in steps)
        backtracking = costs["backtracking"].steps + costs["backtracking"].evaluations
        assert (backtracking < plain) == (each.name not in ("ravine", "rosenbrock"))
        assert costs["best_of"].evaluations == 6 * costs["best_of"].steps

    def test_plain_descent_in_rosenbrocks_valley(self):
        valley = SURFACES["rosenbrock"]
        path = walkers()["SGD"].descend(valley, steps=3100)
        assert path.steps_to(valley.loss(valley.start) / 1e3) == 3027

    def test_adams_cumulated_gradient(self, each):
        found = claims.adam_beside_rmsprop(each)
        rmsprop, without, adam = found.values()
        assert adam.last < 0.01 * min(rmsprop.last, without.last)
        if each.name == "rosenbrock":
            assert rmsprop.steps is without.steps is None
            assert adam.steps == 132
        else:
            assert 17 <= rmsprop.steps <= 28
            assert rmsprop.steps < without.steps
            assert 40 <= adam.steps <= 65

    def test_the_first_steps_of_adam_and_rmsprop(self):
        """RMSProp divides by the root of 0.1 of the square, Adam by the corrected one's."""
        slope = surface.Surface(
            name="slope", function=lambda x, y: x + y,
            slope=lambda x, y: (np.ones_like(x), np.ones_like(y)),
            start=(0.0, 0.0), window=((-1, 1), (-1, 1)),
        )  # fmt: skip
        moved = {
            name: -walkers()[name].descend(slope, steps=1, lr=1.0).points[1, 0]
            for name in ("RMSprop", "Adam")
        }
        assert moved == pytest.approx({"RMSprop": math.sqrt(10), "Adam": 1}, rel=1e-6)
