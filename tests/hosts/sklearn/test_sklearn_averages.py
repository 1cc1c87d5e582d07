"""Optimizers that average: the weights to predict with are others than those that descend."""

import copy
from functools import partial

import numpy as np
import pytest
from sklearn_networks import (
    CLASSES,
    SMALL,
    X,
    assert_same_weights,
    copied,
    fit,
    partial_fit,
    recording,
    weights,
)

import onepass as op
from helpers import assert_same_bits
from onepass.sklearn import MLPClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ONE_BATCH = {**SMALL, "batch_size": 60, "learning_rate_init": 0.01}


def trajectory(count, dtype=np.float64, **settings):
    """The weights of a network after each of its first steps."""
    network = MLPClassifier(**ONE_BATCH, **settings)
    return [copied(partial_fit(network, dtype)) for _ in range(count)]


def assert_near(actual, expected, dtype=np.float64):
    """Equal but for the roundings of a mean in float64, and of what is shown."""
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=4 * np.finfo(dtype).eps, atol=1e-15)


def means(arrays):
    """The plain means of the first one, two, ... weights."""
    sums = [np.cumsum(np.array(of_one, np.float64), axis=0) for of_one in zip(*arrays, strict=True)]
    return [[total[k] / (k + 1) for total in sums] for k in range(len(arrays))]


def test_partial_fit_shows_the_mean_and_goes_on_below_it(dtype):
    plain = trajectory(6, dtype, optimizer=op.AdamW)
    shown = trajectory(6, dtype, optimizer=partial(op.AdamW, swa_start=1))
    for actual, expected in zip(shown, means(plain), strict=True):
        assert_near(actual, expected, dtype)


def test_fit_shows_the_mean():
    averaged = fit(MLPClassifier(**ONE_BATCH, optimizer=partial(op.AdamW, swa_start=1)))
    assert averaged.n_iter_ == 4
    # `fit` shuffles its samples anew in each epoch, so the order of sums is another.
    unshuffled = {"shuffle": False, "optimizer": partial(op.AdamW, swa_start=1)}
    averaged = fit(MLPClassifier(**ONE_BATCH, **unshuffled))
    expected = means(trajectory(4, optimizer=op.AdamW, shuffle=False))[-1]
    assert_near(weights(averaged), expected)


def test_ema_of_two_steps():
    first, second = trajectory(2, optimizer=op.SGD)
    shown = trajectory(2, optimizer=partial(op.SGD, ema_decay=0.75))
    assert_near(shown[0], first)
    assert_near(shown[1], [0.75 * a + 0.25 * b for a, b in zip(first, second, strict=True)])


def test_early_stopping_judges_and_keeps_the_mean():
    class Judged(MLPClassifier):
        def _score(self, *args, **keywords):
            self.judged = [*getattr(self, "judged", []), copied(self)]
            return super()._score(*args, **keywords)

    settings = {**ONE_BATCH, "batch_size": 54, "shuffle": False, "early_stopping": True}
    settings.update(max_iter=8, learning_rate_init=0.03)
    plain = fit(Judged(**settings, optimizer=op.AdamW))
    averaged = fit(Judged(**settings, optimizer=partial(op.AdamW, swa_start=1)))
    for actual, expected in zip(averaged.judged, means(plain.judged), strict=True):
        assert_near(actual, expected)
    best = int(np.argmax(averaged.validation_scores_))
    for a, b in zip(weights(averaged), averaged.judged[best], strict=True):
        assert_same_bits(a, b)


def test_schedule_free_shows_its_average():
    """Plain SGD's: z descends, x is the mean of z, and the gradient is taken at y between them."""
    settings = {"optimizer": "sgd_schedulefree", "learning_rate_init": 0.5}
    log = {}
    network = MLPClassifier(**{**ONE_BATCH, **settings})
    network.set_params(optimizer=recording(op.SGDScheduleFree, log), shuffle=False, max_iter=3)
    fit(network)
    z = [array.copy() for array in log["params"]]
    x = [array.copy() for array in z]
    for k, grads in enumerate(log["grads"], start=1):
        z = [a - 0.5 * g for a, g in zip(z, grads, strict=True)]
        x = [b + (a - b) / k for a, b in zip(z, x, strict=True)]
    for a, b in zip(weights(network), x, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_an_average_that_the_user_changes_begins_anew():
    settings = {**ONE_BATCH, "shuffle": False, "optimizer": partial(op.SGD, swa_start=1)}
    network = MLPClassifier(**settings)
    for _ in range(3):
        partial_fit(network)
    network.coefs_[0][0] = 0.5  # in place, too
    other = MLPClassifier(**{**ONE_BATCH, "shuffle": False}, optimizer=op.SGD)
    partial_fit(other)
    start = copied(network)
    other.coefs_, other.intercepts_ = start[:3], start[3:]
    assert_same_weights(partial_fit(network), partial_fit(other))  # the mean of one


def test_a_failed_partial_fit_leaves_the_average_shown():
    network = partial_fit(MLPClassifier(**SMALL, optimizer=partial(op.AdamW, ema_decay=0.9)))
    twin = copy.deepcopy(network)
    with pytest.raises(ValueError, match="NaN"):
        network.partial_fit(np.full_like(X, np.nan), CLASSES)
    assert_same_weights(network, twin)
    assert_same_weights(partial_fit(network), partial_fit(twin))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_interrupt_ends_the_training(early_stopping):
    class Interrupted(op.AdamW):
        def step(self, grads=None, **options):
            info = super().step(grads, **options)
            if info.step == 6:
                raise KeyboardInterrupt
            return info

    settings = {**SMALL, "early_stopping": early_stopping}
    network = MLPClassifier(**settings, optimizer=partial(Interrupted, swa_start=6))
    with pytest.warns(UserWarning, match="interrupted by user"):
        fit(network)
    if not early_stopping:  # the average has begun with the sixth step
        shown, kept = weights(network), [array for _, array in network._optimizer.arrays()]
        for a, b in zip(shown, kept, strict=True):
            assert a is not b
            assert_same_bits(a, b)
    network.predict(X)
