"""Any optimizer: its steps, its rate, and what is refused."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
from sklearn.base import clone
from sklearn_networks import (
    KINDS,
    SMALL,
    assert_same_weights,
    chosen,
    copied,
    fit,
    partial_fit,
    recording,
    weights,
)

import onepass as op
from helpers import assert_same_bits
from onepass.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize(("ours", "dtype"), KINDS)
def test_every_class_steps_as_it_does_alone(ours, dtype, every_class):
    log = {}
    optimizer = chosen(recording(every_class, log))
    network = fit(ours(**SMALL, optimizer=optimizer, learning_rate_init=0.01), dtype)
    opt = every_class(log["params"], lr=0.01)
    for grads in log["grads"]:
        opt.step(grads)
    assert len(log["grads"]) == 4 * 4
    if opt.own_average:
        with opt.averaged():
            expected = copy.deepcopy(opt.param_groups)
    else:
        expected = opt.param_groups
    expected = [array for group in expected for array in group["params"]]
    ordered = weights(network)
    if optimizer is not chosen(every_class) and len(opt.param_groups) > 1:
        ordered.sort(key=np.ndim)  # as `in_groups` does
    for a, b in zip(ordered, expected, strict=True):
        assert_same_bits(a, b)


def test_every_class_has_a_name(every_class):
    by_name = MLPClassifier(**{**SMALL, "max_iter": 1}, optimizer=every_class.rule)
    if every_class.row.is_directed(every_class.defaults):  # it wants vectors in another group
        with pytest.raises(ValueError, match=r"^params\[3\]: expected at least 2 dimensions"):
            fit(by_name)
        return
    by_class = clone(by_name).set_params(optimizer=every_class)
    assert_same_weights(fit(by_name), fit(by_class))


STAGES = [
    {"max_grad_norm": 0.1, "nonfinite": "skip"},
    {"lookahead_every": 3},
    {"weight_decay": 0.1, "cautious_weight_decay": True},
    {"clear_grads": True, "max_grad_value": 1e-3},
    {"weight_decay": 0.1, "overrides": [{"1": {"lr_scale": 0.5}}, op.no_decay_1d]},
]


@pytest.mark.parametrize("stages", STAGES, ids=" ".join)
def test_stages_of_a_step(stages, dtype):
    log = {}
    optimizer = partial(recording(op.AdamW, log), **stages)
    network = fit(MLPClassifier(**SMALL, optimizer=optimizer), dtype)
    opt = op.AdamW(log["params"], lr=1e-3, **stages)
    for grads in log["grads"]:
        opt.step(grads)
    for a, b in zip(weights(network), log["params"], strict=True):
        assert_same_bits(a, b)


def test_state_in_fewer_bits():
    """Of an array of at least 4,096 elements."""
    settings = {**SMALL, "hidden_layer_sizes": (700,), "max_iter": 2}
    small = fit(MLPClassifier(**settings, optimizer=partial(op.AdamW, state_format="bf16")), "f4")
    full = fit(MLPClassifier(**settings, optimizer=op.AdamW), "f4")
    assert any((a != b).any() for a, b in zip(weights(small), weights(full), strict=True))
    assert len(pickle.dumps(small)) < len(pickle.dumps(full))


def test_groups_and_arrays_that_are_left_out():
    """Weight decay of matrices alone, and a first layer that stays as it is."""

    def optimizer(params, lr):
        matrices = params[1 : len(params) // 2]
        vectors = params[len(params) // 2 :]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors}]
        return op.SGD(groups, lr=lr)

    decayed, plain = (
        MLPClassifier(**{**SMALL, "batch_size": 60}, optimizer=given, learning_rate_init=0.1)
        for given in (optimizer, op.SGD)
    )
    start = partial_fit(clone(plain).set_params(learning_rate_init=1e-300))  # moves nothing
    partial_fit(decayed), partial_fit(plain)
    assert_same_bits(decayed.coefs_[0], start.coefs_[0])
    for k in (1, 2):
        # The decay is coupled: the gradient has 0.1 times the weights more.
        expected = plain.coefs_[k] - 0.1 * 0.1 * start.coefs_[k]
        np.testing.assert_allclose(decayed.coefs_[k], expected, rtol=1e-13)
    for a, b in zip(decayed.intercepts_, plain.intercepts_, strict=True):
        assert_same_bits(a, b)


# The rate.


def rates(optimizer, **settings):
    """The rate of every step of 5 epochs, of 4 batches each."""
    seen = []

    class Seen(op.SGD):
        def step(self, grads=None, **options):
            info = super().step(grads, **options)
            seen.append([info.lr, *(group["lr"] for group in self.param_groups)])
            return info

    given = partial(optimizer, Seen)
    fit(MLPClassifier(**{**SMALL, "max_iter": 5}, optimizer=given, **settings))
    return seen


def flat(cls, params, **settings):
    return cls(params, **settings)


def test_the_rate_is_learning_rate_init():
    assert rates(flat, learning_rate_init=0.03) == [[0.03, 0.03]] * 20


def test_adaptive_divides_the_rate_by_five():
    """As of every second epoch, where none is good enough: in the proportion of the groups."""
    settings = {"learning_rate": "adaptive", "tol": 1e9, "n_iter_no_change": 1}
    by_epoch = [row[0] for row in rates(flat, learning_rate_init=0.5, **settings)][::4]
    # The first epoch is better than infinity, the next two are not.
    assert by_epoch == [0.5, 0.5, 0.5, 0.1, 0.1]

    def twice(cls, params, lr):
        return cls([{"params": params[:2]}, {"params": params[2:], "lr": 2 * lr}], lr=lr)

    for _, one, two in rates(twice, learning_rate_init=0.5, **settings):
        assert two == 2 * one


def test_invscaling_lowers_the_rate_after_each_epoch():
    by_epoch = [row[0] for row in rates(flat, learning_rate_init=0.5, learning_rate="invscaling")]
    assert by_epoch == [0.5 / (60 * (k // 4) + 1) ** 0.5 if k >= 4 else 0.5 for k in range(20)]


def test_a_rate_of_its_own():
    def fixed(cls, params, lr):
        assert lr == 1e-3
        return cls(params, lr=0.25)

    assert rates(fixed) == [[0.25, 0.25]] * 20
    own = MLPClassifier(**SMALL, optimizer=partial(op.SGD, lr=0.25), learning_rate_init=9.0)
    by_setting = MLPClassifier(**SMALL, optimizer=op.SGD, learning_rate_init=0.25)
    assert_same_weights(fit(own), fit(by_setting))
    halved = MLPClassifier(**SMALL, optimizer=partial(op.SGD, lr=op.schedules.constant(0.25)))
    assert_same_weights(fit(halved), fit(by_setting))


def test_a_schedule_counts_batches_and_refuses_another():
    schedule = op.schedules.step_decay(0.5, every=8)

    def scheduled(cls, params, lr):
        return cls(params, lr=schedule)

    assert [row[0] for row in rates(scheduled)] == [0.5] * 8 + [0.25] * 8 + [0.125] * 4
    with pytest.raises(
        ValueError, match="^learning_rate: expected 'constant' beside .*, got 'adap"
    ):
        rates(scheduled, learning_rate="adaptive")


class Halving:
    """A schedule that remembers how often it was called."""

    def __init__(self):
        self.rate = 1.0

    def __call__(self, _):
        self.rate /= 2
        return self.rate


def test_every_fit_begins_with_a_fresh_schedule():
    network = MLPClassifier(**SMALL, optimizer=partial(op.SGD, lr=Halving()))
    first = copied(fit(network))
    for a, b in zip(weights(fit(network)), first, strict=True):
        assert_same_bits(a, b)
    assert network.optimizer.keywords["lr"].rate == 1.0  # a parameter is never changed


# What is refused.


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"optimizer": 3}, ValueError, "'optimizer' parameter of MLPClassifier must be"),
        ({"optimizer": "nonsense"}, ValueError, "'adamw'"),
        ({"optimizer": op.SGD(np.ones(2))}, ValueError, "'optimizer' parameter"),
        (
            {"optimizer": op.AdamW, "solver": "lbfgs"},
            ValueError,
            r"^optimizer: expected None beside solver='lbfgs', got <class 'onepass",
        ),
        (
            {"optimizer": lambda _, lr: lr},
            TypeError,
            "^optimizer: expected a function that returns an optimizer of onepass, got .* 0.001",
        ),
        (
            {"optimizer": lambda params, **_: op.SGD(copy.deepcopy(params))},
            ValueError,
            "^optimizer: expected an optimizer of the arrays that it is called with, got",
        ),
        ({"optimizer": partial(op.AdamW, weight_decay=-1)}, ValueError, "^weight_decay: expected"),
        ({"optimizer": partial(op.AdamW, nonsense=1)}, TypeError, "nonsense"),
    ],
)
def test_what_is_refused(settings, error, words):
    with pytest.raises(error, match=words):
        fit(MLPClassifier(**SMALL, **settings))


def test_partial_fit_of_lbfgs_stays_refused():
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")
    with pytest.raises(ValueError, match="^optimizer: expected None"):
        partial_fit(MLPRegressor(solver="lbfgs", optimizer=op.AdamW))


def test_documentation(check_documentation):
    check_documentation("sklearn")
