"""Prodigy: one estimate for all arrays, held to its authors' package and to its equations."""

import contextlib
import io
import math
import pickle

import numpy as np
import pytest

import onepass as op
from helpers import assert_same_bits, digest

SHAPES = [(7, 5), (11,), (), (3, 4, 2)]
MEMORY = ("d", "d_max", "d_numerator")


def random(rng, shapes=SHAPES):
    return [np.asarray(rng.normal(size=shape)) for shape in shapes]


def memory_of(opt):
    return [opt.state_dict()["param_groups"][0][name] for name in MEMORY]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "decouple": False, "betas": (0.5, 0.9), "beta3": 0.7, "eps": 1e-3},
        {"use_bias_correction": True, "growth_rate": 1.3, "d0": 1e-3},
        {"safeguard_warmup": True, "d_coef": 2.0, "lr": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["noise", "descent"])
def test_a_hundred_steps_are_the_authors(settings, kind, rng):
    torch = pytest.importorskip("torch")
    authors = pytest.importorskip("prodigyopt", reason="prodigyopt is not installed")
    ours = random(rng)
    theirs = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in ours]
    opt = op.Prodigy(ours, **settings)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        optimizer = authors.Prodigy(theirs, **settings)
    for _ in range(100):
        grads = random(rng)
        if kind == "descent":  # to 3, so that the estimate grows by several orders
            grads = [param - 3 for param in ours]
        grads = [np.array(grad) for grad in grads]
        info = opt.step(grads)
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = torch.from_numpy(grad.copy())
        optimizer.step()
    group = optimizer.param_groups[0]
    assert info.d == memory_of(opt)[0]
    np.testing.assert_allclose(memory_of(opt), [group[name] for name in MEMORY], rtol=1e-9)
    for param, tensor in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(param, tensor.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_by_hand():
    """Two weights, in plain numbers, from the paper's equations."""
    w = [np.array([4.0]), np.array([-2.0])]
    opt = op.Prodigy(w, betas=(0.5, 0.75), d0=0.125, eps=0.01)
    start, weights = (4.0, -2.0), [4.0, -2.0]
    m, v, s, d, d_max, numerator = [0.0] * 2, [0.0] * 2, [0.0] * 2, 0.125, 0.125, 0.0
    beta3 = math.sqrt(0.75)
    for _ in range(12):
        grads = [2 * weight for weight in weights]
        info = opt.step([np.array([grad]) for grad in grads])
        numerator *= beta3
        for i, g in enumerate(grads):
            numerator += d / 0.125 * d * g * (start[i] - weights[i])
            m[i] = 0.5 * m[i] + 0.5 * d * g
            v[i] = 0.75 * v[i] + 0.25 * d * d * g * g
            s[i] = beta3 * s[i] + d / 0.125 * d * g
        found = numerator / sum(map(abs, s))
        new = d_max = max(d_max, found)  # as it may grow by any factor
        for i in range(2):
            weights[i] -= d * m[i] / (math.sqrt(v[i]) + new * 0.01)
        d = new
        assert info.d == pytest.approx(d, rel=1e-13)
        np.testing.assert_allclose([w[0].item(), w[1].item()], weights, rtol=1e-12)
    assert d > 0.2  # it has grown


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_arrays_are_one_vector(threads, dtype, rng):
    """To the bit, where the arrays end with blocks of the sums."""
    block = 16_384
    start = rng.normal(size=3 * block).astype(dtype)
    whole, parts = start.copy(), np.split(start.copy(), [block])
    one, many = op.Prodigy(whole, d0=1e-2), op.Prodigy(parts, d0=1e-2)
    for _ in range(6):
        grad = (whole - 2).astype(dtype)
        first = one.step(grad)
        second = many.step(np.split(grad, [block]), num_threads=threads)
        assert first == second
    assert first.d > 1e-2
    assert_same_bits(np.concatenate(parts), whole)


def test_every_number_of_threads(dtype, rng):
    shapes = [(40_000,), (3, 5), (0,), (), (300, 70)]
    start, results = random(rng, shapes), []
    for threads in (1, 2, 4):
        params = [param.astype(dtype) for param in start]
        opt = op.Prodigy(params, max_grad_norm=30.0)
        for _ in range(4):
            opt.step([param - dtype(1) for param in params], num_threads=threads)
        results.append(digest(params, opt.state_dict()))
    assert len(set(results)) == 1


def test_groups_share_the_estimate_and_differ_in_decay(rng):
    params = random(rng)
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr": 0.0}]
    before = [param.copy() for param in params[2:]]
    opt = op.Prodigy(groups)
    for _ in range(5):
        opt.step([[param - 3 for param in params[:2]], random(rng)[2:]])
    for param, was in zip(params[2:], before, strict=True):
        assert_same_bits(param, was)
    alone = op.Prodigy([param.copy() for param in params[:2]], weight_decay=0.1)
    assert memory_of(alone) == [0.0] * 3
    first, second = opt.state_dict()["param_groups"]
    assert [first[name] for name in MEMORY] == [second[name] for name in MEMORY]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("lr", (1.0, 0.5), "lr: expected the same in all groups, or 0, got 1.0 and 0.5"),
        ("d0", (1e-6, 1e-3), "d0: expected the same in all groups, got 1e-06 and 0.001"),
        ("beta3", (None, 0.5), "beta3: expected the same in all groups, got nan and 0.5"),
    ],
)
def test_groups_that_differ_in_what_they_share(name, values, words, rng):
    params = random(rng)
    groups = [{"params": [params[i]], name: value} for i, value in enumerate(values)]
    opt = op.Prodigy(groups)
    before = digest(params, opt.state_dict())
    with pytest.raises(ValueError, match=f"^{words}"):
        opt.step([[np.ones_like(param)] for param in params[:2]])
    assert digest(params, opt.state_dict()) == before


def test_gradients_of_zero_move_nothing():
    w = np.ones(3)
    opt = op.Prodigy(w, weight_decay=0.5)
    assert opt.step(np.zeros(3)).d == 1e-6
    np.testing.assert_array_equal(w, 1.0)
    opt.step(np.ones(3))
    assert (w < 1).all()


def test_weights_may_be_loaded_after_the_optimizer_is_made(rng):
    start, grads = rng.normal(size=5), rng.normal(size=(3, 5))
    w, other = np.zeros(5), start.copy()
    late, early = op.Prodigy(w), op.Prodigy(other)
    w[:] = start
    for grad in grads:
        late.step(grad), early.step(grad)
    assert_same_bits(w, other)


def test_an_array_without_a_gradient_and_one_that_is_added(rng):
    params = random(rng)
    opt = op.Prodigy(params[:2])
    for _ in range(6):
        opt.step([params[0] - 3, None])
    known = memory_of(opt)
    assert known[0] > 1e-6
    opt.add_param_group({"params": [params[2]]})
    assert memory_of(opt) == known
    info = opt.step([[None, params[1] - 3], [None]])
    assert info.d >= known[0]


@pytest.mark.parametrize("way", ["dictionary", "file", "pickle"])
def test_a_run_resumes_with_its_estimate(way, rng, tmp_path):
    params = random(rng)
    opt = op.Prodigy(params, d0=1e-3)
    for _ in range(5):
        opt.step([np.asarray(param - 3) for param in params])
    copies = [param.copy() for param in params]
    other = op.Prodigy(copies)
    if way == "dictionary":
        other.load_state_dict(opt.state_dict())
    elif way == "file":
        opt.save(tmp_path / "run.npz")
        other.load(tmp_path / "run.npz")
    else:
        other = pickle.loads(pickle.dumps(opt))
        copies = list(other.param_groups[0]["params"])
    assert memory_of(other) == memory_of(opt)
    for _ in range(3):
        opt.step([np.asarray(param - 3) for param in params])
        other.step([np.asarray(param - 3) for param in copies])
    assert digest(params, opt.state_dict()) == digest(copies, other.state_dict())


@pytest.mark.parametrize("value", [None, "1", True])
def test_a_saved_estimate_that_is_no_number(value, rng):
    opt = op.Prodigy(params := random(rng))
    opt.step([np.ones_like(param) for param in params])
    saved, before = opt.state_dict(), digest(opt.state_dict())
    saved["param_groups"][0]["d"] = value
    with pytest.raises(ValueError, match=r"^param_groups\[0\]\['d'\]: expected a number, got"):
        opt.load_state_dict(saved)
    assert digest(opt.state_dict()) == before


def test_a_skipped_step_leaves_the_estimate_and_says_it(rng):
    params = random(rng)
    opt = op.Prodigy(params, nonfinite="skip", d0=1e-3)
    assert opt.step([np.full_like(param, np.nan) for param in params]).d is None  # not begun
    for _ in range(4):
        info = opt.step([np.asarray(param - 3) for param in params])
    before = memory_of(opt)
    skipped = opt.step([np.full_like(param, np.inf) for param in params])
    assert (skipped.skipped, skipped.d) == (True, info.d)
    assert memory_of(opt) == before


def test_the_free_function_takes_one_estimate_for_all(dtype, rng):
    params = [param.astype(dtype) for param in random(rng)]
    opt = op.Prodigy([param.copy() for param in params], d0=1e-3)
    states = [[np.zeros_like(param) for param in params] for _ in op.Prodigy.state_names()]
    memory = [np.array(start) for start in op.Prodigy.memory_start().values()]
    for step in range(1, 5):
        grads = [np.asarray(param - dtype(3)) for param in params]
        info = op.kernels.prodigy(params, grads, *states, *memory, step=step, d0=1e-3)
        assert info == opt.step(grads)
    assert [number.item() for number in memory] == memory_of(opt)
    assert info.d == memory[0] > 1e-3
    for ours, theirs in zip(params, opt.param_groups[0]["params"], strict=True):
        assert_same_bits(ours, theirs)


def test_other_optimizers_report_none():
    assert op.Adam(w := np.ones(2)).step(w.copy()).d is None
