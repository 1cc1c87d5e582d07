"""A BatchNorm layer over the ranks of a communicator: the layer of the whole batch."""

import copy
import pickle

import numpy as np
import pytest

import onepass as op
from batchnorm_cases import exact, read_only
from communicators import Alone, outcomes
from helpers import assert_same_bits, digest
from interrupting import at_each_place

CUTS = {1: [], 2: [7], 3: [0, 5], 4: [7, 10, 10], 7: [1, 2, 3, 3, 4, 11]}
"""Where the rows of a batch of twelve go: ranks with one row and with none are there."""


def rows(array, size, rank):
    return np.ascontiguousarray(np.split(array, CUTS[size])[rank])


def train(layer, batches, size=1, rank=0, residual=None):
    """The results of some steps, and what is left in the layer."""
    results = []
    for x, dy in batches:
        z = None if residual is None else rows(residual, size, rank)
        y = layer.forward(rows(x, size, rank), residual=z)
        back = layer.backward(rows(dy, size, rank))
        results.append([y, *(back if isinstance(back, tuple) else (back,))])
        results[-1] += [layer.weight_grad.copy(), layer.bias_grad.copy()]
    return results, layer.state_dict()


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_ranks_have_the_bits_of_one(rng, dtype, size, axis, momentum):
    """Sums that are exact, about means that are: sixteen values of a channel, in four kinds."""
    shape = (12, 4, 16) if axis == 1 else (12, 16, 4)
    half = exact(rng, (6, *shape[1:]), dtype)
    x = np.concatenate([half, -half])  # a mean of 0, so that products with x less it are exact
    batches = [(x, exact(rng, shape, dtype)), (2 * x, exact(rng, shape, dtype))]
    residual = exact(rng, shape, dtype)
    settings = {"axis": axis, "dtype": dtype, "momentum": momentum, "relu": True}
    expected, state = train(op.BatchNorm(4, **settings), batches, residual=residual)
    found = outcomes(
        size,
        lambda comm: train(
            op.BatchNorm(4, **settings, comm=comm), batches, size, comm.rank, residual
        ),
    )
    for rank in found:
        assert not isinstance(rank, Exception), rank
        assert digest(rank[1]) == digest(state)
    for step, (y, dx, dz, dweight, dbias) in enumerate(expected):
        pieces = [rank[0][step] for rank in found]
        for k, whole in enumerate((y, dx, dz)):
            assert_same_bits(np.concatenate([piece[k] for piece in pieces]), whole)
        for k, whole in ((3, dweight), (4, dbias)):
            np.testing.assert_allclose(
                sum(piece[k].astype(np.float64) for piece in pieces),
                whole,
                rtol=1e-6 if dtype == np.float32 else 1e-13,
                atol=1e-5 if dtype == np.float32 else 1e-13,
            )


@pytest.mark.parametrize("size", CUTS)
def test_any_data_gives_the_outputs_of_one(rng, size):
    shape = (12, 6, 9, 9)
    batches = [
        ((rng.normal(size=shape) + 1e4).astype("f"), rng.normal(size=shape).astype("f"))
        for _ in range(2)
    ]
    expected, state = train(op.BatchNorm(6), batches)
    found = outcomes(size, lambda c: train(op.BatchNorm(6, comm=c), batches, size, c.rank))
    for rank in found:
        assert digest(rank[1]) == digest(found[0][1])  # the same on all
    for name, array in state.items():
        np.testing.assert_allclose(found[0][1][name], array, rtol=2e-7)
    for step, (y, dx, *_) in enumerate(expected):
        pieces = [rank[0][step] for rank in found]
        assert_same_bits(np.concatenate([piece[0] for piece in pieces]), y)
        np.testing.assert_allclose(
            np.concatenate([piece[1] for piece in pieces]), dx, rtol=1e-5, atol=1e-7
        )


def test_two_small_collectives_a_step(rng):
    x = exact(rng, (12, 4, 16), np.float32)

    def work(comm):
        layer = op.BatchNorm(4, comm=comm)
        layer.forward(rows(x, 3, comm.rank))
        after = comm.calls
        layer.backward(rows(x, 3, comm.rank))
        both = comm.calls
        layer.forward(x, training=False)  # each rank for itself
        layer.backward(x)
        return after, both, comm.calls

    assert outcomes(3, work) == [(1, 2, 2)] * 3


@pytest.mark.parametrize("size", CUTS)
def test_a_mask_and_contexts_over_the_ranks(rng, size):
    """Each rank has its rows of the mask, some of them no position that counts."""
    shape = (12, 4, 16)
    x, mask = rng.normal(size=(2, *shape)), rng.random((12, 16)) < 0.5
    mask[:2] = False

    def passes(layer, *args):
        forwards = [
            layer.forward(rows(one, *args), mask=rows(mask, *args), context=True) for one in x
        ]
        dxs = [
            layer.backward(y * y, context=context, accumulate=index == 0)
            for index, (y, context) in reversed(list(enumerate(forwards)))
        ]
        grads = np.array([layer.weight_grad, layer.bias_grad])
        return [y for y, _ in forwards] + dxs, grads, layer.state_dict()

    expected, grads, state = passes(op.BatchNorm(4, dtype=np.float64), 1, 0)
    found = outcomes(
        size, lambda comm: passes(op.BatchNorm(4, dtype=np.float64, comm=comm), size, comm.rank)
    )
    for k, whole in enumerate(expected):
        pieces = np.concatenate([rank[0][k] for rank in found])
        np.testing.assert_allclose(pieces, whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(sum(rank[1] for rank in found), grads, rtol=1e-10)
    for rank in found:
        assert digest(rank[2]) == digest(found[0][2])
    np.testing.assert_allclose(found[0][2]["running_var"], state["running_var"], rtol=1e-12)


def test_without_tracking_evaluation_is_a_collective_too(rng):
    x = exact(rng, (12, 4, 16), np.float32)
    expected = op.BatchNorm(4).forward(x)

    def work(comm):
        layer = op.BatchNorm(4, comm=comm, track_running_stats=False)
        return layer.forward(rows(x, 4, comm.rank), training=False)

    assert_same_bits(np.concatenate(outcomes(4, work)), expected)


def unchanged(layer):
    return digest(layer.state_dict(), layer.weight_grad, layer.bias_grad)


BAD = {
    "x": lambda layer, x: layer.forward(x.tolist()),
    "x's dtype": lambda layer, x: layer.forward(x.astype(np.float64)),
    "training": lambda layer, x: layer.forward(x, 1),
    "mask": lambda layer, x: layer.forward(x, mask=np.ones(3, bool)),
    "context of a forward": lambda layer, x: layer.forward(x, context=1),
    "residual": lambda layer, x: layer.forward(x, residual=x[:1, :, :3]),
    "out": lambda layer, x: layer.forward(x, out=x.tolist()),
    "weight": lambda layer, x: (setattr(layer, "weight", np.ones(3, "f")), layer.forward(x)),
    "momentum": lambda layer, x: (setattr(layer, "momentum", 2.0), layer.forward(x)),
    "running_var": lambda layer, x: (
        setattr(layer, "running_var", read_only(np.ones(4, "f"))),
        layer.forward(x),
    ),
    "dy": lambda layer, x: layer.backward(x.tolist()),
    "context": lambda layer, x: layer.backward(x, context=7),
    "accumulate": lambda layer, x: layer.backward(x, accumulate=1),
    "weight_grad": lambda layer, x: (
        setattr(layer, "weight_grad", np.ones(3, "f")),
        layer.backward(x),
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("culprit", [0, 2])
def test_a_bad_argument_on_one_rank_raises_on_every_rank(rng, case, culprit):
    x = exact(rng, (12, 4, 16), np.float32)
    is_backward = case in ("dy", "context", "accumulate", "weight_grad")

    def work(comm):
        layer = op.BatchNorm(4, comm=comm)
        mine, out = rows(x, 3, comm.rank), None
        layer.forward(mine)
        kept = {name: getattr(layer, name) for name in vars(layer)}
        before = unchanged(layer)
        with pytest.raises((TypeError, ValueError, RuntimeError)) as raised:
            if comm.rank == culprit:
                BAD[case](layer, mine)
            elif is_backward:
                layer.backward(mine)
            else:
                out = np.full_like(mine, 7)
                layer.forward(mine, out=out)
        vars(layer).update(kept)
        assert unchanged(layer) == before
        assert out is None or (out == 7).all()
        if comm.rank == culprit:
            assert not isinstance(raised.value, RuntimeError)
        else:
            expected = (
                "comm: expected every rank to take part, got an error before that on rank "
                f"{culprit}; here nothing has changed"
            )
            assert str(raised.value) == expected
        return layer.backward(mine), layer.forward(mine)  # and all goes on

    results = outcomes(3, work)
    alone = op.BatchNorm(4)
    alone.forward(x)
    expected = alone.backward(x), alone.forward(x)
    for k, whole in enumerate(expected):
        for rank in results:
            assert not isinstance(rank, Exception), rank
        found = np.concatenate([rank[k] for rank in results])
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [(1, 0, 0), (0, 0, 0)])
def test_too_few_values_on_all_ranks_together(lengths):
    def work(comm):
        layer = op.BatchNorm(4, comm=comm)
        before = unchanged(layer)
        with pytest.raises(ValueError, match="^x: expected more than one value per channel on all"):
            layer.forward(np.ones((lengths[comm.rank], 4), np.float32))
        assert unchanged(layer) == before

    assert outcomes(3, work) == [None] * 3


def test_a_backward_without_a_forward_is_refused_on_all_ranks():
    def work(comm):
        with pytest.raises(RuntimeError, match="^backward: expected a forward before it"):
            op.BatchNorm(4, comm=comm).backward(np.ones((2, 4), np.float32))

    assert outcomes(2, work) == [None] * 2


def test_one_value_on_each_of_two_ranks(rng):
    x = np.array([[1.0, 2.0], [3.0, 6.0]])

    def work(comm):
        return op.BatchNorm(2, comm=comm, dtype=np.float64).forward(x[comm.rank :][:1])

    expected = op.BatchNorm(2, dtype=np.float64).forward(x)
    assert_same_bits(np.concatenate(outcomes(2, work)), expected)


@pytest.mark.parametrize("comm", [3, "world", object()])
def test_what_is_no_communicator(comm):
    with pytest.raises(TypeError, match="^comm: expected a communicator like mpi4py's, with "):
        op.BatchNorm(4, comm=comm)


def test_state_and_copies(rng):
    x = exact(rng, (12, 4, 16), np.float32)

    def work(comm):
        layer = op.BatchNorm(4, comm=comm)
        layer.forward(rows(x, 2, comm.rank))
        loaded = op.BatchNorm(4)
        loaded.load_state_dict(layer.state_dict())
        copies = [copy.copy(layer), copy.deepcopy(layer)]
        assert all(one.comm is comm for one in copies)
        assert copies[0].weight is layer.weight
        assert copies[1].weight is not layer.weight
        copies[1].forward(rows(x, 2, comm.rank))
        assert repr(layer).endswith(f", comm={comm!r})")
        return loaded.state_dict(), copies[1].num_batches_tracked.item()

    found = outcomes(2, work)
    alone = op.BatchNorm(4)
    alone.forward(x)
    for state, count in found:
        assert digest(state) == digest(alone.state_dict())
        assert count == 2
    assert pickle.loads(pickle.dumps(op.BatchNorm(4))).comm is None


def test_an_interrupt_before_the_exchange_ends_the_pass_on_all_ranks(rng):
    """The other ranks do not wait for ever."""
    x = exact(rng, (12, 4, 16), np.float32)

    class Interrupting(np.ndarray):
        @property
        def __class__(self):
            raise KeyboardInterrupt

    def work(comm):
        layer = op.BatchNorm(4, comm=comm)
        mine = rows(x, 2, comm.rank)
        before = unchanged(layer)
        error = RuntimeError if comm.rank else KeyboardInterrupt
        with pytest.raises(error):
            layer.forward(mine, residual=None if comm.rank else mine.view(Interrupting))
        assert unchanged(layer) == before

    assert outcomes(2, work) == [None] * 2


def test_code_that_runs_in_the_exchange_cannot_move_memory(rng):
    """The arrays of the call are held while the other ranks are waited for."""
    x, tried = np.ones((300, 4), np.float32), []

    class Resizing:
        rank, size = 0, 1

        def Allgather(self, sendbuf, recvbuf):  # noqa: N802
            for array in (x, layer.weight, written):
                with pytest.raises(ValueError, match="cannot resize"):
                    array.resize(1, refcheck=False)
                tried.append(array)
            recvbuf[0] = sendbuf

    layer = op.BatchNorm(4, comm=Resizing())
    written = layer.running_mean
    layer.forward(x)
    written = layer.weight_grad
    layer.backward(x)
    assert len(tried) == 6


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_an_interrupt_anywhere_leaves_all_or_nothing(rng, name):
    x, dy = exact(rng, (12, 4, 16), np.float32), exact(rng, (12, 4, 16), np.float32)

    def fresh():
        layer = op.BatchNorm(4, comm=Alone())
        layer.forward(x)
        return layer

    done = fresh()
    before = unchanged(done)
    getattr(done, name)(dy)
    allowed = {before, unchanged(done)}
    tried = []

    def attempt():
        tried.append(fresh())
        return lambda: getattr(tried[-1], name)(dy)

    for where, _ in at_each_place(attempt):
        layer = tried[-1]
        assert unchanged(layer) in allowed, where
        layer.forward(x)
        layer.backward(dy)
    assert len(tried) > 10
