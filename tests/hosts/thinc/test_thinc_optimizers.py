"""onepass.thinc does what Thinc's own optimizer does."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thinc import optimizers as theirs
from thinc.api import NumpyOps, Relu, Softmax, chain, registry
from thinc_steps import (
    RULES,
    STEPS,
    forbid_thincs_step,
    gradients,
    run,
    state,
    weights,
)

import onepass.thinc as ours
from helpers import assert_same_bits

PLAIN = {"beta1": 0.0, "beta2": 0.0}
OURS = [
    {},
    {"L2": 0.01},
    {"L2": 0.1, "L2_is_weight_decay": False, "grad_clip": 0.0},
    {"grad_clip": 0.0, "use_averages": False},
    {"beta1": 0.5, "beta2": 0.6, "eps": 1e-3, "grad_clip": 100.0},
    PLAIN,
    {"L2": 5.0, "grad_clip": 0.3},
    {"learn_rate": 0.0, "L2": 0.1},
    {**PLAIN, "L2": 5.0, "grad_clip": 0.5},
    {**PLAIN, "L2": 0.1, "L2_is_weight_decay": False, "grad_clip": 0.0},
    {"beta1": 0.9, "beta2": 0.0},
]
"""Settings whose steps are ours."""


@pytest.mark.parametrize("given", OURS, ids=str)
def test_steps_are_thincs_but_for_rounding(given, monkeypatch):
    given = {"learn_rate": (rate := 0.01), **given}
    expected = theirs.Optimizer(**given)
    want = run(expected, weights(), gradients())
    forbid_thincs_step(monkeypatch)
    optimizer = ours.Optimizer(**given)
    got = run(optimizer, weights(), gradients())

    # Each step rounds weights of about 4 a few times, and the rate of the decay to 1 - rate once;
    # a clipped gradient is shorter by 1e-6 / norm, and what follows from it by as much.
    eps = np.finfo(np.float32).eps
    bound = STEPS * (4 * eps * 4 + rate * 1e-6 / (given.get("grad_clip", 1.0) or 1.0))
    for key, array in want.items():
        np.testing.assert_allclose(got[key], array, rtol=0, atol=bound)
    assert dict(optimizer.nr_update) == dict(expected.nr_update)
    assert optimizer.nr_update[3, "late"] == STEPS // 2
    kept = state(optimizer)
    for name, arrays in state(expected).items():
        assert kept[name].keys() == arrays.keys()
        for key, array in arrays.items():
            assert getattr(kept[name][key], "dtype", None) == getattr(array, "dtype", None)
            np.testing.assert_allclose(kept[name][key], array, rtol=1e-4, atol=bound)


@pytest.mark.parametrize(
    "given", [case for case in OURS if case.get("grad_clip") == 0.0 and not case.get("beta1", 1)]
)
def test_descent_is_thincs_to_the_bit(given):
    want = run(theirs.Optimizer(0.1, **given), weights(), gradients())
    got = run(ours.Optimizer(0.1, **given), weights(), gradients())
    for key, array in want.items():
        assert_same_bits(got[key], array)


@pytest.mark.parametrize("make", [ours.Adam, ours.SGD, ours.Lion])
@pytest.mark.parametrize("before", [0, 100_000])
def test_averages_are_thincs_to_the_bit(make, before):
    optimizer, arrays, averages = make(0.1), weights(), {}
    optimizer.nr_update.update(dict.fromkeys(arrays, before))
    for _, key, grad, _ in gradients():
        optimizer(key, arrays[key], grad)
        averages.setdefault(key, np.zeros_like(grad))
        NumpyOps().update_averages(averages[key], arrays[key], optimizer.nr_update[key])
    assert averages.keys() == optimizer.averages.keys()
    for key, average in averages.items():
        assert_same_bits(optimizer.averages[key], average)


def test_arrays_are_updated_in_place():
    for make in (ours.Adam, ours.AdamW, ours.SGD, ours.Lion):
        w, g = np.ones(5, np.float32), np.ones(5, np.float32)
        new, zero = make(0.1)((1, "W"), w, g)
        assert new is w
        assert zero is g
        assert (w < 1).all()


ARRAYS = {
    "usual": lambda a: a,
    "float64": lambda a: a.astype(float),
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


def mostly(usual, *others):
    """Return the usual value half of the time: else every example has something odd."""
    return st.one_of(st.just(usual), st.sampled_from([usual, *others]))


@settings(max_examples=200, derandomize=True)
@given(
    given=st.fixed_dictionaries(
        {
            "learn_rate": mostly(0.1, 1e-3, 0.0, -0.1),
            "L2": mostly(0.1, 0.0, 10.0, 30.0, -0.1),
            "beta1": mostly(0.9, 0.0, 0.5, 1.0, 1.5),
            "beta2": mostly(0.999, 0.0, 0.5, 1.0),
            "eps": mostly(1e-8, 0.1, -0.1),
            "grad_clip": mostly(1.0, 0.0, 5, True, -1.0, float("inf"), float("nan")),
            "use_averages": st.booleans(),
            "use_radam": mostly(False, True),
            "L2_is_weight_decay": st.booleans(),
        }
    ),
    forms=st.tuples(mostly("usual", *ARRAYS), mostly("usual", *ARRAYS)),
    shape=st.sampled_from([(4, 6), (7,), (1,), (0,), (3, 0)]),
)
def test_whatever_is_given_ours_does_what_thincs_does(given, forms, shape):
    """Settings and arrays that do not fit included: these are left to Thinc."""
    rng = np.random.default_rng(0)
    first, grads = rng.normal(size=shape).astype("f"), rng.normal(size=(3, *shape)).astype("f")
    results = []
    for cls in (theirs.Optimizer, ours.Optimizer):
        optimizer, w = cls(**given), ARRAYS[forms[0]](first.copy())
        try:
            with np.errstate(all="ignore"):
                for grad in grads:
                    w, _ = optimizer((1, "W"), w, ARRAYS[forms[1]](grad.copy()))
        except Exception as error:
            results.append((type(error), str(error), dict(optimizer.nr_update)))
        else:
            results.append((w, dict(optimizer.averages or {}), dict(optimizer.nr_update)))
    want, got = results
    assert got[2] == want[2]
    if isinstance(want[0], type):
        assert got == want
        return
    assert got[0].dtype == want[0].dtype
    np.testing.assert_allclose(got[0], want[0], rtol=3e-5, atol=3e-5)
    for key, average in want[1].items():
        np.testing.assert_allclose(got[1][key], average, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"use_radam": True},
        {"L2": 0.1, "L2_is_weight_decay": False},
        {"L2": -0.1},
        {"L2": 400.0},  # at a rate of 0.01, and of a quarter of it, nothing remains of the weights
        {**PLAIN, "L2": 400.0},
    ],
    ids=str,
)
def test_what_is_left_to_thinc_is_thincs_to_the_bit(given):
    want = run(theirs.Optimizer(0.01, **given), weights())
    got = run(ours.Optimizer(0.01, **given), weights())
    for key, array in want.items():
        assert_same_bits(got[key], array)


@pytest.mark.parametrize("given", [{"grad_clip": 0.0}, {}], ids=str)
def test_gradients_of_another_shape_are_broadcast_by_thinc(given):
    grad = np.arange(4, dtype=np.float32)
    want, got = np.ones((2, 3, 4), np.float32), np.ones((3, 4), np.float32)
    theirs.SGD(0.1, **given)((1, "W"), want, grad.copy())
    ours.SGD(0.1, **given)((1, "W"), got, grad.copy())
    assert_same_bits(got, want[0])


def test_a_form_that_thinc_lacks_is_its_error():
    for cls in (theirs.Optimizer, ours.Optimizer):
        w = np.ones(3, np.float32)
        with pytest.raises(NotImplementedError):
            cls(0.1, beta1=0.0, beta2=0.9)((1, "W"), w, w.copy())


def test_gradients_without_elements_do_nothing():
    for name in ours.__all__:
        optimizer = getattr(ours, name)(learn_rate=0.1)
        w, none = np.ones(2, np.float32), np.zeros(0, np.float32)
        same, gradient = optimizer((1, "W"), w, none)
        assert same is w
        assert gradient is none
        assert (w == 1).all()
        assert not optimizer.nr_update


SCHEDULES = {
    "list": lambda: [0.1, 0.02, 0.3],
    "generator": lambda: (0.1 / n for n in range(1, 20)),
    "registered": lambda: registry.schedules.get("decaying.v1")(0.1, 0.02),
}


@pytest.mark.parametrize("setting", ["learn_rate", "L2", "beta1", "eps", "grad_clip"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules_step(setting, schedule, monkeypatch):
    given = {"learn_rate": 0.01, "L2": 0.01}
    want = run(theirs.Optimizer(**{**given, setting: schedule()}), weights())
    forbid_thincs_step(monkeypatch)
    got = run(ours.Optimizer(**{**given, setting: schedule()}), weights())
    for key, array in want.items():
        np.testing.assert_allclose(got[key], array, rtol=1e-4, atol=1e-4)
    constant = run(ours.Optimizer(**given), weights())
    assert any((got[key] != constant[key]).any() for key in got)


@pytest.mark.parametrize("name", ["Adam", "SGD", *RULES])
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))],
    ids=["copy", "pickle"],
)
def test_copies_and_pickles_continue_to_the_bit(name, copied):
    optimizer = getattr(ours, name)(0.01)
    arrays = run(optimizer, weights(), gradients(6))
    other, others = copied(optimizer), {key: array.copy() for key, array in arrays.items()}
    assert type(other) is type(optimizer)
    run(optimizer, arrays, gradients(4, seed=5))
    run(other, others, gradients(4, seed=5))
    for key, array in arrays.items():
        assert_same_bits(others[key], array)
        assert_same_bits(other.averages[key], optimizer.averages[key])


def test_thincs_optimizer_continues_with_ours():
    """State is Thinc's, so that it can be handed over in the midst of a training, and back."""
    whole, first = theirs.Optimizer(0.01), theirs.Optimizer(0.01)
    want = run(whole, run(whole, weights(), gradients(10)), gradients(10, seed=5))
    arrays = run(first, weights(), gradients(10))
    optimizer = ours.Adam(0.01)
    for name, kept in state(first).items():
        getattr(optimizer, name).update(kept)
    got = run(optimizer, arrays, gradients(10, seed=5))
    for key, array in want.items():
        np.testing.assert_allclose(got[key], array, rtol=0, atol=1e-5)


def test_a_model_trains_and_shows_averages():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype("f")
    y = np.eye(2, dtype="f")[(x[:, 0] * x[:, 1] > 0).astype(int)]
    model = chain(Relu(nO=32), Softmax())
    model.initialize(X=x, Y=y)
    optimizer = ours.AdamW(0.01)
    for _ in range(200):
        scores, backprop = model.begin_update(x)
        backprop(scores - y)
        model.finish_update(optimizer)
        optimizer.step_schedules()
    assert (model.predict(x).argmax(1) == y.argmax(1)).mean() > 0.95
    last = model.layers[1].get_param("W")
    assert set(optimizer.averages) == {(node.id, n) for node in model.layers for n in "Wb"}
    with model.use_params(optimizer.averages):
        assert_same_bits(
            model.layers[1].get_param("W"), optimizer.averages[model.layers[1].id, "W"]
        )
    assert model.layers[1].get_param("W") is last
