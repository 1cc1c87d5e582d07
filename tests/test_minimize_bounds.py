"""Bounds of `minimize`: no evaluation is out of them."""

import math
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from helpers import assert_same_bits
from minimize_cases import points_of, quadratic, scripted
from onepass.optim import registry


class TestBounds:
    def test_the_minimum_of_each_element_is_its_bound(self):
        bounds = [(2, 5), (None, -3), (None, 1), (None, None)]
        found = op.minimize(quadratic, np.zeros(4), lr=0.1, bounds=bounds, maxiter=2000)
        assert found.success
        assert np.abs(found.x - [2, -3, 1, 0]).max() < 1e-4
        assert_same_bits(found.x[:3], np.array([2.0, -3.0, 1.0]))

    def test_two_spellings(self):
        low, high = [-1, -math.inf, 0, 0.5], [1, 1, 2, 0.5]
        in_pairs = list(zip(low, high, strict=True))
        pairs = op.minimize(quadratic, np.zeros(4), lr=0.1, bounds=in_pairs)
        in_arrays = SimpleNamespace(lb=low, ub=high)
        arrays = op.minimize(quadratic, np.zeros(4), lr=0.1, bounds=in_arrays)
        assert_same_bits(pairs.x, arrays.x)
        assert pairs.x[3] == 0.5

    def test_an_object_may_have_one_bound_for_all(self):
        bounds = SimpleNamespace(lb=-0.5, ub=np.full((2, 2), 0.5))
        found = op.minimize(quadratic, np.zeros((2, 2)), lr=0.1, bounds=bounds)
        assert np.abs(found.x - [[0.5, -0.5], [0.5, 0]]).max() < 1e-4

    def test_no_momentum_gathers_at_a_bound(self):
        grads = iter([1.0] * 10 + [-1.0, 0.0])
        options = {"optimizer": "sgd", "lr": 0.25, "momentum": 0.5, "gtol": None}
        found, iterates = points_of(
            lambda x: (0.0, np.full_like(x, next(grads))),
            [0.0],
            bounds=[(0, 9)],
            maxiter=11,
            point="last",
            **options,
        )
        assert not any(iterate.x.any() for iterate in iterates[:-1])
        assert found.x == 0.25

    def test_the_gradient_at_a_bound_is_no_slope(self):
        found = op.minimize(lambda x: (x.sum(), np.ones(2)), [1.0, 1.0], bounds=[(1, 2), (1, 1)])
        assert (found.nit, found.success) == (0, True)

    def test_an_average_is_moved_into_them(self):
        """SGD goes from 1 to -1, which is moved to 0; the mean of before that is outside."""
        options = {"optimizer": "sgd", "lr": 2.0, "swa_start": 1, "bounds": [(0, None)]}
        found = op.minimize(scripted(2, 1, 0), [1.0], maxiter=1, point="averaged", **options)
        assert found.x == 0

    bound = st.none() | st.floats(-10, 10)

    @settings(max_examples=100)
    @given(
        cls=st.sampled_from([c for c in registry.values() if not c.row.is_directed(c.defaults)]),
        pairs=st.lists(st.tuples(bound, bound), min_size=4, max_size=4),
        x0=st.lists(st.floats(-20, 20), min_size=4, max_size=4),
        lr=st.sampled_from([0.01, 0.5, 1.0]),
    )
    def test_nothing_is_ever_out_of_bounds(self, cls, pairs, x0, lr):
        bounds = [(a, b) if None in (a, b) or a <= b else (b, a) for a, b in pairs]
        low = np.array([-math.inf if a is None else a for a, _ in bounds])
        high = np.array([math.inf if b is None else b for _, b in bounds])

        def inside(x):
            assert ((low <= x) & (x <= high)).all()
            return quadratic(x)

        start = np.array(x0)
        found = op.minimize(
            inside,
            start,
            optimizer=cls,
            lr=lr,
            maxiter=8,
            bounds=bounds,
            callback=lambda iterate: inside(iterate.x),
        )
        inside(found.x)
        assert_same_bits(start, np.array(x0))
        assert found.fun <= quadratic(np.clip(start, low, high))[0]
