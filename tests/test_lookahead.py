"""Lookahead, and clipping by each array's own norm: the stages beside their sources."""

import itertools
import pickle

import numpy as np
import pytest

import onepass as op
from helpers import RICHEST, SMALL_FORMATS, assert_same_bits, digest

optax = pytest.importorskip("optax", reason="optax is not installed")
import jax  # noqa: E402

SHAPES = [(7, 5), (11,), ()]


def random(rng, shapes=SHAPES):
    return [np.asarray(rng.normal(size=shape)) for shape in shapes]


def adam_beside_lookahead(rng, every, weight, steps):
    """Our weights and optax's, after so many steps."""
    ours = random(rng)
    opt = op.Adam(ours, 0.01, lookahead_every=every, lookahead_weight=weight)
    with jax.enable_x64(True):
        fast = [jax.numpy.asarray(param.copy()) for param in ours]
        theirs = optax.LookaheadParams.init_synced(fast)
        transformation = optax.lookahead(optax.adam(0.01), every, weight)
        state = transformation.init(theirs)
        for _ in range(steps):
            grads = random(rng)
            opt.step(grads)
            updates, state = transformation.update(grads, state, theirs)
            theirs = optax.apply_updates(theirs, updates)
        return ours, [np.asarray(param) for param in theirs.fast]


@pytest.mark.parametrize(("every", "weight"), [(5, 0.5), (3, 0.8), (1, 0.5)])
def test_a_hundred_steps_are_optax(every, weight, rng):
    for ours, theirs in zip(*adam_beside_lookahead(rng, every, weight, 100), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_by_hand():
    """Steps of 1 by plain descent, halfway back at the end of each round of two."""
    w = np.array([8.0])
    opt = op.SGD(w, lr=1.0, lookahead_every=2, lookahead_weight=0.5)
    seen = []
    for _ in range(5):
        opt.step(np.array([1.0]))
        seen.append(w.item())
    assert seen == [7.0, 7.0, 6.0, 6.0, 5.0]


def test_a_round_begins_with_the_weights_as_they_are():
    """Weights may be loaded after the optimizer is made, and between rounds."""
    w = np.array([100.0])
    opt = op.SGD(w, lr=1.0, lookahead_every=2)
    for start in (8.0, -3.0):
        w[:] = start
        for _ in range(2):
            opt.step(np.array([1.0]))
        assert w == start - 1


def test_switching_it_on_within_a_round_begins_one_there():
    w = np.array([8.0])
    opt = op.SGD(w, lr=1.0)
    for number in range(8):
        opt.param_groups[0]["lookahead_every"] = 5 if number >= 6 else None
        opt.step(np.array([1.0]))
    assert w == 0.0
    opt.step(np.array([1.0])), opt.step(np.array([1.0]))  # the tenth step ends the round
    assert w == 2.0 + 0.5 * (-2.0 - 2.0)


def test_a_parameter_without_a_gradient_counts_its_own_steps():
    w = [np.array([8.0]), np.array([8.0])]
    opt = op.SGD(w, lr=1.0, lookahead_every=2)
    opt.step([np.array([1.0]), None])
    opt.step([np.array([1.0]), np.array([1.0])])
    assert (w[0].item(), w[1].item()) == (7.0, 7.0)
    opt.step([None, np.array([1.0])])
    assert (w[0].item(), w[1].item()) == (7.0, 7.0)


@pytest.mark.parametrize("way", ["dictionary", "file", "pickle"])
@pytest.mark.parametrize("steps", range(4))
def test_a_run_resumes_anywhere_in_a_round(way, steps, dtype, rng, tmp_path):
    settings = {"lookahead_every": 3, "ema_decay": 0.9, "lr": 0.1}
    params = [param.astype(dtype) for param in random(rng)]
    grads = [[grad.astype(dtype) for grad in random(rng)] for _ in range(steps + 4)]
    opt = RICHEST(params, **settings)
    for given in grads[:steps]:
        opt.step(given)
    copies = [param.copy() for param in params]
    other = RICHEST(copies, **settings)
    if way == "dictionary":
        other.load_state_dict(opt.state_dict())
    elif way == "file":
        opt.save(tmp_path / "run.npz")
        other.load(tmp_path / "run.npz")
    else:
        other = pickle.loads(pickle.dumps(opt))
        copies = list(other.param_groups[0]["params"])
    for given in grads[steps:]:
        opt.step(given), other.step(given)
    assert digest(params, opt.state_dict()) == digest(copies, other.state_dict())


@pytest.mark.parametrize("small", SMALL_FORMATS)
def test_the_slow_weights_are_the_masters(small, rng):
    """A float32 optimizer beside it, of which the parameter is the rounding."""
    wide = [param.astype(np.float32) for param in random(rng)]
    wide = [param.astype(small).astype(np.float32) for param in wide]
    narrow = [param.astype(small) for param in wide]
    settings = {"lr": 0.1, "lookahead_every": 2, "lookahead_weight": 0.25}
    one, other = RICHEST(wide, **settings), RICHEST(narrow, **settings)
    for _ in range(5):
        grads = [grad.astype(np.float32) for grad in random(rng)]
        one.step(grads), other.step(grads)
        for a, b in zip(wide, narrow, strict=True):
            assert_same_bits(b, a.astype(small))


def test_the_average_takes_the_weights_after_it():
    w = np.array([8.0])
    opt = op.SGD(w, lr=1.0, lookahead_every=2, ema_decay=0.5)
    opt.step(np.array([1.0])), opt.step(np.array([1.0]))
    with opt.averaged():
        assert w == 0.5 * 7.0 + 0.5 * 7.0  # 6.5 if it took 6


def test_a_skipped_step_ends_no_round():
    w = np.array([8.0])
    opt = op.SGD(w, lr=1.0, lookahead_every=2, nonfinite="skip")
    for grad in (1.0, np.nan, 1.0):
        opt.step(np.array([grad]))
    assert w == 7.0


def test_schedule_free_optimizers_refuse_it():
    words = "^lookahead_every: expected None for SGDScheduleFree .*, got 5$"
    with pytest.raises(ValueError, match=words):
        op.SGDScheduleFree(np.ones(3), lookahead_every=5)


class TestEachNorm:
    def test_by_hand(self):
        """Norms of 5 and 0.5, of which 1 is left of the first; PyTorch's formula."""
        w = [np.zeros(2), np.zeros(2)]
        opt = op.SGD(w, lr=1.0, max_grad_norm_each=1.0)
        info = opt.step([np.array([3.0, 4.0]), np.array([0.3, 0.4])])
        assert info.clipped
        np.testing.assert_allclose(info.grad_norm, np.sqrt(25.25), rtol=1e-15)
        np.testing.assert_allclose(w[0], np.array([-3.0, -4.0]) / (5 + 1e-6), rtol=1e-15)
        np.testing.assert_array_equal(w[1], [-0.3, -0.4])

    def test_it_is_torchs_clipping_of_each(self, rng):
        torch = pytest.importorskip("torch")
        params = random(rng)
        theirs = [torch.nn.Parameter(torch.from_numpy(param.copy())) for param in params]
        opt = op.SGD(params, lr=0.1, momentum=0.9, max_grad_norm_each=0.5)
        optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
        for scale in (1.0, 0.01, 100.0):
            grads = [np.asarray(scale * grad) for grad in random(rng)]
            opt.step(grads)
            for param, grad in zip(theirs, grads, strict=True):
                param.grad = torch.from_numpy(grad.copy())
                torch.nn.utils.clip_grad_norm_([param], 0.5)
            optimizer.step()
            for ours, param in zip(params, theirs, strict=True):
                np.testing.assert_allclose(ours, param.detach().numpy(), rtol=1e-13)

    def test_it_comes_after_the_common_norm(self):
        """A common norm of 10 to 5 halves both; then 3 of 4 is left of the first."""
        w = [np.zeros(1), np.zeros(1)]
        opt = op.SGD(w, lr=1.0, max_grad_norm=5.0, max_grad_norm_each=3.0)
        opt.step([np.array([8.0]), np.array([6.0])])
        np.testing.assert_allclose([w[0].item(), w[1].item()], [-3.0, -3.0], rtol=1e-6)

    def test_groups_may_differ(self):
        w = [np.zeros(1), np.zeros(1), np.zeros(1)]
        groups = [{"params": w[0], "max_grad_norm_each": 2.0}, {"params": w[1:]}]
        opt = op.SGD(groups, lr=1.0)
        opt.step([np.array([8.0]), [np.array([8.0]), np.array([6.0])]])
        np.testing.assert_allclose(w[0], -2.0, rtol=1e-6)
        assert (w[1].item(), w[2].item()) == (-8.0, -6.0)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_blocks_and_threads(self, threads, dtype, rng):
        """Norms over more than one block, between arrays without a gradient and empty ones."""
        shapes = [(40_000,), (3,), (0,), (17_000,), (5,)]
        params = [np.zeros(shape, dtype) for shape in shapes]
        grads = [grad.astype(dtype) for grad in random(rng, shapes)]
        grads[1] = None
        opt = op.SGD(params, lr=1.0, max_grad_norm_each=1.5)
        opt.step(grads, num_threads=threads)
        for param, grad in itertools.islice(zip(params, grads, strict=True), 3, 5):
            norm = np.sqrt(np.square(grad.astype(np.float64)).sum())
            factor = min(1, 1.5 / (norm + 1e-6))
            np.testing.assert_allclose(param, -factor * grad, rtol=3e-7)
        assert not params[1].any()

    def test_where_squares_overflow(self):
        w = [np.zeros(2), np.zeros(1)]
        opt = op.SGD(w, lr=1.0, max_grad_norm_each=1.0)
        opt.step([np.array([3e200, 4e200]), np.array([0.5])])
        np.testing.assert_allclose(w[0], [-0.6, -0.8], rtol=1e-15)
        assert w[1] == -0.5

    def test_one_array_that_is_not_finite_leaves_the_others(self):
        w = [np.zeros(1), np.zeros(1)]
        opt = op.SGD(w, lr=1.0, max_grad_norm_each=1.0)
        opt.step([np.array([np.nan]), np.array([0.5])])
        assert np.isnan(w[0]).all()
        assert w[1] == -0.5
