"""`op.shard`: any number of processes take the steps of one, to the bit.

The processes are threads here (communicators.py); tests/hosts/mpi has MPI's.
"""

import copy
import itertools
import math
import pickle
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onepass as op
from communicators import Communicator, Interrupted, communicators, on_ranks, outcomes
from helpers import CASES, accepts, assert_same_bits, case_id, digest, one_of_each, shape_of_state
from onepass import formats
from onepass._shard import sharded as sharded_module
from onepass._shard.cut import BLOCK, Cut, Layout

BF16 = ml_dtypes.bfloat16
RANKS = (1, 2, 3, 4, 7)
SHARDED = [case for case in CASES if not case[0].row.why_whole({**case[0].defaults, **case[1]})]
REFUSED = [cls for cls in op.optim.registry.values() if cls.row.why_whole(cls.defaults)]
SIZES = {"w": (130, 260), "few": (5,), "none": (0,), "b": (BLOCK + 300,), "one": ()}
"""3 blocks of which the last one is short, then 1, 0, 2 and 1."""


def tree(rng, dtype=np.float32, sizes=SIZES):
    """Parameters or gradients; the first lies in Fortran's order."""
    arrays = {k: np.asarray(rng.normal(size=shape)).astype(dtype) for k, shape in sizes.items()}
    arrays["w"] = np.asfortranarray(arrays["w"])
    return arrays


def batches(seed, steps, ranks, dtype=np.float32):
    """The gradients of each step and rank."""
    rng = np.random.default_rng(seed)
    return [[tree(rng, dtype) for _ in range(ranks)] for _ in range(steps)]


def one_process(make, params, steps):
    """A single process that accumulates the ranks' gradients in order: optimizer and infos."""
    opt = make(params)
    infos = []
    for of_ranks in steps:
        for grads in of_ranks:
            opt.accumulate(grads)
        infos.append(opt.step(grad_scale=len(of_ranks)))
    return opt, infos


def sharded(make, params, steps, then=lambda *_: None):
    """What many processes come to: for each its parameters, infos, state and what `then` says."""
    ranks = len(steps[0])

    def body(comm: Communicator):
        own = copy.deepcopy(params)
        opt = make(op.shard(own, comm))
        infos = [opt.step(of_ranks[comm.rank]) for of_ranks in steps]
        return own, infos, opt.state_dict(), then(opt, own)

    return on_ranks(ranks, body)


def check_same(make, params, steps):
    """All processes have what a single one has."""
    before = copy.deepcopy(params)
    opt, infos = one_process(make, params, steps)
    expected = digest(params, opt.state_dict())
    for own, own_infos, state, _ in sharded(make, before, steps):
        np.testing.assert_equal([tuple(i) for i in own_infos], [tuple(i) for i in infos])
        for key, array in params.items():
            assert_same_bits(own[key], array)
            assert own[key].flags.f_contiguous == array.flags.f_contiguous
        assert digest(own, state) == expected


FORMATS = {
    "float64": (np.float64, {}),
    "q8": (np.float32, {"state_format": "q8"}),
    "bf16 state": (np.float32, {"state_format": "bf16"}),
    "bfloat16, master": (BF16, {}),
    "bfloat16, stochastic, q8": (BF16, {"rounding": "stochastic", "state_format": "q8"}),
    "float16, nearest": (np.float16, {"rounding": "nearest"}),
}
STAGES = {
    "clip": {"max_grad_norm": 1.0},
    "skip": {"skip_grad_norm": 1e-3},
    "measured": {"max_grad_norm": math.inf},
    "value": {"max_grad_value": 0.1},
    "ema": {"ema_decay": 0.9, "ema_warmup": True},
    "swa": {"swa_start": 2, "average_dtype": "float32"},
    "lookahead": {"lookahead_every": 2},
    "schedule": {"lr": lambda step: 0.1 / (step + 1), "max_grad_norm": lambda step: 1.0 + step},
    "pair": {"betas": (lambda step: 0.9 - 0.1 * step, 0.99)},
    "overrides": {"overrides": [op.no_decay_1d, {"b": {"lr": 0.5, "ema_decay": 0.5}}]},
}


class TestLikeOneProcess:
    @pytest.mark.parametrize("case", one_of_each(SHARDED, lambda case: case[0]), ids=case_id)
    def test_every_class(self, case):
        cls, options = case
        params = tree(np.random.default_rng(0))
        check_same(lambda p: cls(p, weight_decay=0.0, **options), params, batches(1, 3, 3))

    @pytest.mark.parametrize("ranks", RANKS)
    @pytest.mark.parametrize("stage", STAGES)
    def test_every_stage(self, stage, ranks):
        options = {"weight_decay": 0.01, **STAGES[stage]}
        params = tree(np.random.default_rng(0))
        check_same(lambda p: op.AdamW(p, **options), params, batches(2, 3, ranks))

    @pytest.mark.parametrize("ranks", RANKS)
    @pytest.mark.parametrize("kept", FORMATS)
    def test_every_format(self, kept, ranks):
        """Random bits are those of the element's place in the whole parameter."""
        dtype, options = FORMATS[kept]
        params = tree(np.random.default_rng(0), dtype)
        steps = batches(3, 3, ranks, np.float32 if dtype == np.float64 else dtype)
        options = {"ema_decay": 0.9, "lookahead_every": 2, "max_grad_norm": 5.0, **options}
        check_same(partial(op.Adam, **options), params, steps)

    @pytest.mark.parametrize(
        "case",
        one_of_each(
            [c for c in SHARDED if accepts(c[0], {**c[1], "state_format": "q8"})],
            lambda case: shape_of_state(*case),
        ),
        ids=case_id,
    )
    @pytest.mark.parametrize("kept", ["q8", "bf16"])
    def test_every_kind_of_state_in_fewer_bits(self, case, kept):
        cls, options = case
        params = {"v": np.ones(2 * BLOCK + 300, np.float32)}
        rng = np.random.default_rng(4)
        steps = [
            [{"v": rng.normal(size=params["v"].size).astype(np.float32)} for _ in range(3)]
            for _ in range(2)
        ]
        check_same(lambda p: cls(p, state_format=kept, **options), params, steps)

    @pytest.mark.parametrize("ranks", RANKS)
    def test_one_flat_array(self, ranks):
        rng = np.random.default_rng(5)
        for size, dtype in itertools.product((0, 5, BLOCK, 5 * BLOCK + 1), (np.float32, BF16)):
            params = {"flat": rng.normal(size=size).astype(dtype)}
            steps = [
                [{"flat": rng.normal(size=size).astype(dtype)} for _ in range(ranks)]
                for _ in range(2)
            ]
            check_same(lambda p: op.AdamW(p, max_grad_norm=1.0), params, steps)

    def test_gradients_travel_in_pieces(self, monkeypatch):
        monkeypatch.setattr("onepass._shard.wire._MOST_BYTES", 4096)
        params = tree(np.random.default_rng(0))
        check_same(lambda p: op.Adam(p, max_grad_norm=1.0), params, batches(6, 2, 3))
        one = {"flat": np.ones(3 * BLOCK + 5, np.float32)}
        steps = [[{"flat": np.full_like(one["flat"], r)} for r in (1, 2)]]
        check_same(op.Adam, one, steps)

    @pytest.mark.parametrize("sizes", [{"flat": 400_000}, {"a": 300_000, "b": 100_001}])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_pieces_of_five_ranks(self, dtype, sizes, monkeypatch):
        """A fifth of the bytes that all may send is no whole number of elements."""
        monkeypatch.setattr("onepass._shard.wire._MOST_OF_ALL", 1 << 18)
        rng = np.random.default_rng(0)
        params = {key: np.ones(size, dtype) for key, size in sizes.items()}
        of_ranks = [{k: rng.normal(size=p.size).astype(dtype) for k, p in params.items()}] * 5
        check_same(op.SGD, params, [of_ranks])

    def test_other_layouts_and_dtypes_of_gradients(self):
        params = tree(np.random.default_rng(0))
        steps = batches(7, 2, 2, np.float64)
        for of_ranks in steps:
            for grads in of_ranks:
                grads["w"] = np.ascontiguousarray(grads["w"])[:, ::-1]
                grads["b"] = grads["b"].astype(np.float16)
                grads["few"] = None
        check_same(lambda p: op.Adam(p, max_grad_norm=1.0), params, steps)

    def test_groups_and_sequences(self):
        rng = np.random.default_rng(8)
        arrays = [rng.normal(size=n).astype(np.float32) for n in (BLOCK + 1, 7, 300)]
        grads = [[rng.normal(size=a.size).astype(np.float32) for a in arrays] for _ in range(3)]

        def groups(a):
            return [{"params": a[:2], "lr": 0.5}, {"params": {"x": a[2]}, "weight_decay": 0.1}]

        def structured(g):
            return [g[:2], {"x": g[2]}]

        whole = [a.copy() for a in arrays]
        one = op.AdamW(groups(whole))
        for g in grads:
            one.accumulate(structured(g))
        one.step(grad_scale=3)

        def body(comm):
            own = [a.copy() for a in arrays]
            opt = op.AdamW(op.shard(groups(own), comm))
            opt.step(structured(grads[comm.rank]))
            assert digest(opt.state_dict()) == digest(one.state_dict())
            for mine, theirs in zip(own, whole, strict=True):
                assert_same_bits(mine, theirs)

        on_ranks(3, body)

    def test_grad_scale_and_accumulate(self):
        """Batches are added up over the ranks first, and then one after the other."""
        steps = batches(9, 3, 2)
        params = tree(np.random.default_rng(0))
        before = copy.deepcopy(params)
        one = op.Adam(params, max_grad_norm=1.0)
        for a, b in steps:
            sums = {key: (0 + a[key] + b[key]) for key in a}
            one.accumulate(sums)
        expected = one.step(grad_scale=3 * 2)

        def body(comm):
            own = copy.deepcopy(before)
            opt = op.Adam(op.shard(own, comm), max_grad_norm=1.0)
            for of_ranks in steps:
                assert opt.accumulate(of_ranks[comm.rank])
            assert opt.step(grad_scale=3) == expected
            assert digest(own, opt.state_dict()) == digest(params, one.state_dict())

        on_ranks(2, body)

    @given(
        st.lists(st.integers(0, 3 * BLOCK), min_size=1, max_size=4), st.integers(1, 5), st.data()
    )
    @settings(max_examples=15)
    def test_any_sizes(self, sizes, ranks, data):
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        params = {str(i): rng.normal(size=n).astype(np.float32) for i, n in enumerate(sizes)}
        steps = [
            [{k: rng.normal(size=p.size).astype(np.float32) for k, p in params.items()}] * ranks
        ]
        check_same(lambda p: op.Adam(p, max_grad_norm=1.0), params, steps)


class TestCut:
    @given(st.lists(st.integers(0, 10 * BLOCK), min_size=1, max_size=5), st.integers(1, 9))
    def test_all_is_shared_out_evenly_in_order(self, sizes, ranks):
        cut = Cut(tuple(sizes), ranks)
        for index, size in enumerate(sizes):
            parts = [cut.part(rank, index) for rank in range(ranks)]
            assert parts[0].start == 0
            assert parts[-1].stop == size
            for a, b in itertools.pairwise(parts):
                assert a.stop == b.start
                assert b.start % BLOCK == 0 or b.start == size
        blocks = cut.n_blocks(range(len(sizes)))
        assert max(blocks) - min(blocks) <= 1
        assert sum(blocks) == sum(-(-size // BLOCK) for size in sizes)

    @given(st.lists(st.integers(0, 3 * BLOCK), min_size=1, max_size=4), st.integers(1, 5))
    def test_codes_and_scales_of_8_bits(self, sizes, ranks):
        cut = Cut(tuple(sizes), ranks)
        for index, size in enumerate(sizes):
            for kind, unit in (("codes", formats.BLOCK), ("scales", 1)):
                lengths = [
                    max(part.stop - part.start, 0)
                    for part in (cut.part(rank, index, kind) for rank in range(ranks))
                ]
                assert sum(lengths) == -(-size // formats.BLOCK) * unit
        assert sum(Layout(cut, [(0, "elements", 4)]).nbytes) >= 4 * sizes[0]

    def test_layouts_are_made_once(self):
        """For 1,000 ranks that takes longer than a step of a small model."""
        (comm,) = communicators(1)
        w = {"a": np.ones(3, np.float32), "b": np.ones(5, np.float32)}
        opt = op.Adam(op.shard(w, comm))
        for _ in range(3):
            opt.step({key: array.copy() for key, array in w.items()})
        assert opt._wire._layout.cache_info().misses == 1  # gradients lie as parameters do

    def test_state_is_a_part(self):
        """With 1,000 ranks and 8 blocks, most have nothing."""
        cut = Cut((8 * BLOCK,), 1000)
        assert sum(cut.n_blocks([0])) == 8
        flat = np.ones(4 * BLOCK, np.float32)

        def body(comm):
            opt = op.Adam(op.shard(flat.copy(), comm))
            opt.step(flat)
            kept = opt._engine.contents()["progress"]["kept"][0]
            return [a.size for a in kept if a is not None]

        assert on_ranks(4, body) == [[BLOCK, BLOCK]] * 4


class TestVerdicts:
    def steps(self, bad):
        steps = batches(10, 3, 3)
        steps[1][2]["b"][3] = bad
        return steps

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_one_rank_skips_all(self, bad):
        """As a single process of the sums does."""
        params = tree(np.random.default_rng(0))
        before = copy.deepcopy(params)
        one = op.Adam(params, nonfinite="skip")
        infos = []
        for of_ranks in self.steps(bad):
            sums = {key: sum(grads[key] for grads in of_ranks) for key in params}
            infos.append(one.step(sums, grad_scale=3))
        assert [info.skipped for info in infos] == [False, True, False]
        for own, own_infos, state, skipped in sharded(
            partial(op.Adam, nonfinite="skip"),
            before,
            self.steps(bad),
            lambda opt, _: opt.skipped_steps,
        ):
            np.testing.assert_equal([tuple(i) for i in own_infos], [tuple(i) for i in infos])
            assert digest(own, state) == digest(params, one.state_dict())
            assert skipped == 1

    def test_it_spreads(self):
        params = tree(np.random.default_rng(0))
        check_same(op.Adam, params, self.steps(np.nan))

    def test_one_rank_raises_on_all(self):
        params = tree(np.random.default_rng(0))
        steps = self.steps(np.nan)

        def body(comm):
            own = copy.deepcopy(params)
            opt = op.Adam(op.shard(own, comm), nonfinite="raise")
            opt.step(steps[0][comm.rank])
            before = digest(own, opt.state_dict())
            with pytest.raises(ValueError, match="finite") as caught:
                opt.step(steps[1][comm.rank])
            assert digest(own, opt.state_dict()) == before
            assert opt.step(steps[2][comm.rank]).step == 2
            return str(caught.value)

        texts = on_ranks(3, body)
        assert texts[2] == "grads['b']: expected finite values, got an infinity or NaN"
        got = "an infinity or NaN in grads['b'] on rank 2"
        assert set(texts[:2]) == {f"step: expected finite gradients on all ranks, got {got}"}

    @pytest.mark.parametrize("bad_steps", [[1], [0, 2], [0, 1, 2]])
    def test_one_rank_leaves_out_what_all_accumulate(self, bad_steps):
        """As a single process of the sums does, its loss scaler included."""
        params, steps = tree(np.random.default_rng(0)), batches(17, 3, 3)
        for step in bad_steps:
            steps[step][2]["b"][3] = np.inf
        before = copy.deepcopy(params)

        def summed(of_ranks):
            return {key: sum(grads[key] for grads in of_ranks) for key in params}

        one = op.SGD(params, lr=0.5, momentum=0.5, nonfinite="skip")
        added = [one.accumulate(summed(of_ranks)) for of_ranks in steps]
        assert added == [step not in bad_steps for step in range(3)]
        scaler = op.LossScaler(init_scale=4.0)
        expected = tuple(scaler.step(one, grad_scale=3))
        scaler.update()

        def body(comm):
            own = copy.deepcopy(before)
            opt = op.SGD(op.shard(own, comm), lr=0.5, momentum=0.5, nonfinite="skip")
            assert [opt.accumulate(of_ranks[comm.rank]) for of_ranks in steps] == added
            mine = op.LossScaler(init_scale=4.0)
            np.testing.assert_equal(tuple(mine.step(opt)), expected)
            mine.update()
            assert mine.get_scale() == scaler.get_scale() == 2.0
            assert digest(own, opt.state_dict()) == digest(params, one.state_dict())

        on_ranks(3, body)

    def test_one_rank_raises_where_all_accumulate(self):
        params = tree(np.random.default_rng(0))
        steps = self.steps(np.nan)

        def body(comm):
            opt = op.Adam(op.shard(copy.deepcopy(params), comm), nonfinite="raise")
            assert opt.accumulate(steps[0][comm.rank])
            before = digest(opt.state_dict())
            with pytest.raises(ValueError, match="error on rank 2|finite values") as caught:
                opt.accumulate(steps[1][comm.rank])
            assert digest(opt.state_dict()) == before
            with pytest.raises(ValueError, match="error on rank|finite values"):  # their sum is not
                opt.accumulate({key: np.full_like(p, 3e38) for key, p in params.items()})
            assert digest(opt.state_dict()) == before
            assert opt.step().step == 1
            return str(caught.value)

        *_, last = on_ranks(3, body)
        assert last == "grads['b']: expected finite values, got an infinity or NaN"

    def test_a_sum_that_overflows(self):
        def body(comm):
            w = np.ones(3, np.float32)
            opt = op.SGD(op.shard(w, comm), nonfinite="raise")
            with pytest.raises(ValueError, match="expected a finite sum over all ranks"):
                opt.step(np.full(3, 3e38, np.float32))
            np.testing.assert_array_equal(w, 1)

        on_ranks(2, body)


class TestErrors:
    def check(
        self, act: Callable[[Any, int], Any], mine: str, theirs: str, make=op.Adam, **options
    ):
        """`act` fails on rank 1 alone, and so on all; nothing has changed, and all go on."""
        params = tree(np.random.default_rng(0))
        (first,), (last,) = batches(11, 2, 1)

        def body(comm):
            own = copy.deepcopy(params)
            opt = make(op.shard(own, comm), **options)
            opt.step(first)
            before = digest(own, opt.state_dict())
            with pytest.raises((ValueError, TypeError)) as caught:
                act(opt, comm.rank)
            assert digest(own, opt.state_dict()) == before
            assert opt.step(last).step == 2
            return str(caught.value)

        texts = on_ranks(3, body)
        assert mine in texts[1]
        for text in (texts[0], texts[2]):
            assert theirs in text

    THEIRS = "step: expected arguments that all ranks can take, got an error on rank 1"

    def grads(self, rank, **changed):
        (grads,) = batches(12, 1, 1)[0]
        return {**grads, **changed} if rank == 1 else grads

    def test_a_shape(self):
        self.check(
            lambda opt, rank: opt.step(self.grads(rank, few=np.ones(6, np.float32))),
            "grads['few']: expected the parameter's shape (5,), got (6,)",
            self.THEIRS,
        )

    def test_a_dtype_that_no_gradient_has(self):
        self.check(
            lambda opt, rank: opt.step(self.grads(rank, few=np.ones(5, int))),
            "grads['few']: expected dtype",
            self.THEIRS,
        )

    def test_a_structure(self):
        self.check(
            lambda opt, rank: opt.step(self.grads(rank, more=np.ones(5))), "grads", self.THEIRS
        )

    def test_none_at_all(self):
        self.check(
            lambda opt, rank: opt.step(None if rank == 1 else self.grads(rank)),
            "grads: expected gradients, got none, and none are accumulated",
            self.THEIRS,
        )

    @pytest.mark.parametrize("scale", [0.0, "1", math.nan])
    def test_a_scale(self, scale):
        self.check(
            lambda opt, rank: opt.step(self.grads(rank), grad_scale=scale if rank == 1 else 1.0),
            "grad_scale",
            self.THEIRS,
        )

    @pytest.mark.parametrize("call", ["step", "accumulate"])
    @pytest.mark.parametrize("bad", [-1, 0, False])
    def test_threads(self, bad, call):
        self.check(
            lambda opt, rank: getattr(opt, call)(
                self.grads(rank), num_threads=bad if rank == 1 else 1
            ),
            "num_threads",
            self.THEIRS.replace("step", call),
        )

    def test_a_schedule_that_raises(self):
        """The engine calls it, after the gradients were exchanged."""
        failing = {}

        def lr(step):
            if failing.get("now"):
                raise ValueError("lr: mine")
            return 0.1

        def act(opt, rank):
            if rank == 1:
                failing["now"] = True
                opt.param_groups[0]["lr"] = lr
            else:
                opt.param_groups[0]["lr"] = lambda _: 0.1
            try:
                opt.step(self.grads(rank))
            finally:
                failing.clear()

        params = tree(np.random.default_rng(0))

        def body(comm):
            own = copy.deepcopy(params)
            opt = op.Adam(op.shard(own, comm))
            before = digest(own)
            with pytest.raises(ValueError, match="mine|error on rank 1"):
                act(opt, comm.rank)
            assert digest(own) == before
            assert opt.step(self.grads(0)).step == 1

        on_ranks(3, body)

    def test_kinds_that_differ(self):
        other = "expected the same parameters, settings and kinds of gradients on all ranks"
        for changed in ({"few": np.ones(5)}, {"few": None}):
            self.check(lambda opt, rank, c=changed: opt.step(self.grads(rank, **c)), other, other)

    def test_schedules_are_each_process_own(self):
        """Their code lies at other addresses."""

        def body(comm):
            w = np.ones(3, np.float32)
            opt = op.Adam(op.shard(w, comm), lr=lambda _: 0.1, betas=(lambda _: 0.5, 0.9))
            assert opt.step(w.copy()).step == 1

        on_ranks(3, body)

    def test_settings_that_differ(self):
        def body(comm):
            w = np.ones(3, np.float32)
            opt = op.Adam(op.shard(w, comm))
            opt.param_groups[0]["lr"] = 0.1 * (1 + comm.rank)
            with pytest.raises(ValueError, match="the same parameters, settings and kinds"):
                opt.step(w.copy())
            np.testing.assert_array_equal(w, 1)

        on_ranks(2, body)

    def test_schedules_are_the_same_where_their_memories_are(self):
        def body(comm):
            w = np.ones(3, np.float32)
            lr = op.schedules.ReduceOnPlateau(0.1)
            opt = op.Adam(op.shard(w, comm), lr=lr, betas=(lambda _: 0.5, 0.999))
            lr.report(1.0)
            assert opt.step(w.copy()).step == 1
            before = w.copy()
            lr.report(float(comm.rank))
            with pytest.raises(ValueError, match="the same parameters, settings and kinds"):
                opt.step(w.copy())
            assert_same_bits(w, before)

        on_ranks(2, body)

    def test_parameters_that_differ(self):
        def body(comm):
            with pytest.raises(ValueError, match="Adam: expected the same parameters"):
                op.Adam(op.shard(np.ones(3 + comm.rank), comm))

        on_ranks(2, body)

    @pytest.mark.parametrize("call", ["step", "accumulate"])
    @pytest.mark.parametrize("dtype", [np.float32, BF16])
    def test_weights_that_differ(self, dtype, call):
        """In the last element, which another process steps; NaNs are the same as themselves."""

        def body(comm):
            w = {"few": np.full(3, np.nan).astype(dtype), "w": np.ones(BLOCK + 3, dtype)}
            opt = op.Adam(op.shard(w, comm))
            w["w"][-1] = comm.rank  # after the constructor: that is where people fill them
            grads = {key: np.ones_like(array) for key, array in w.items()}
            before = digest(w, opt.state_dict())
            with pytest.raises(ValueError, match=f"{call}: expected the same weights .* rank") as e:
                getattr(opt, call)(grads)
            assert digest(w, opt.state_dict()) == before
            w["w"][-1] = 0  # as comm.Bcast does
            getattr(opt, call)(grads)
            assert "comm.Bcast" in str(e.value)

        on_ranks(2, body)

    def test_weights_that_differ_after_load(self):
        def body(comm):
            w = np.ones(3, np.float32)
            opt = op.Adam(op.shard(w, comm))
            opt.step(w.copy())
            opt.load_state_dict(opt.state_dict())
            w[0] += comm.rank
            with pytest.raises(ValueError, match="step: expected the same weights"):
                opt.step(w.copy())

        on_ranks(2, body)

    def test_a_constructor_that_fails_on_one_rank(self):
        def body(comm):
            with pytest.raises((TypeError, ValueError)) as caught:
                op.Adam(op.shard(np.ones(3), comm), lr=-1.0 if comm.rank else 0.1)
            return str(caught.value)

        first, second = on_ranks(2, body)
        assert second.startswith("lr: expected")
        assert first == "Adam: expected arguments that all ranks can take, got an error on rank 1"

    def test_within_a_block(self):
        self.check(
            self.step_in_block,
            "step: expected after the block",
            self.THEIRS,
            ema_decay=0.5,
        )

    @pytest.mark.parametrize("show", ["averaged", "lookahead"])
    def test_a_block_within_a_block(self, show):
        def act(opt, rank):
            block = getattr(opt, show)()
            if rank != 1:
                getattr(opt, show)()
                return
            with block:
                getattr(opt, show)()

        self.check(
            act,
            f"{show}: expected after the block",
            self.THEIRS.replace("step", show),
            make=partial(op.SGD, momentum=0.9, form="sutskever", ema_decay=0.5),
        )

    def test_a_schedule_that_raises_in_lookahead(self):
        def body(comm):
            fails = [False]

            def momentum(step):
                if fails[0]:
                    raise ValueError("momentum: mine")
                return 0.9

            w = np.ones(3, np.float32)
            opt = op.SGD(op.shard(w, comm), momentum=momentum, form="sutskever")
            opt.step(w.copy())
            fails[0] = comm.rank == 1
            with pytest.raises(ValueError, match="momentum: mine|lookahead: .* error on rank 1"):
                opt.lookahead()
            fails[0] = False
            with opt.lookahead():
                pass
            assert opt.step(w.copy()).step == 2

        on_ranks(2, body)

    def step_in_block(self, opt, rank):
        block = opt.averaged()
        if rank != 1:
            opt.step(self.grads(rank))
            return
        with block:
            opt.step(self.grads(rank))


class TestInterrupts:
    CALLS = (
        lambda opt, _: opt.step(np.ones(9000, np.float32)),
        lambda opt, _: opt.accumulate(np.ones(9000, np.float32)),
        lambda opt, _: opt.state_dict(),
        lambda opt, path: opt.save(path / f"{id(opt)}.npz"),
        lambda opt, _: opt.averaged(),
    )

    @pytest.mark.parametrize(("culprit", "error"), [(0, KeyboardInterrupt), (1, MemoryError)])
    @pytest.mark.parametrize("call", CALLS, ids=["step", "accumulate", "state", "save", "averaged"])
    def test_after_a_call_that_ended_on_one_rank_alone_it_sends_no_more(
        self, call, culprit, error, tmp_path
    ):
        """Else the others would take the next call's messages for those that they wait for."""
        for count in itertools.count():
            was_interrupted = False

            def body(comm, count=count):
                nonlocal was_interrupted
                own = Interrupted(comm, error)
                opt = op.Adam(op.shard(np.ones(9000, np.float32), own), ema_decay=0.9)
                opt.step(np.ones(9000, np.float32))
                if comm.rank == culprit:
                    own.left = count
                try:
                    call(opt, tmp_path)
                except error:
                    was_interrupted = True
                    sent = comm.calls
                    for other in self.CALLS:
                        with pytest.raises(RuntimeError, match="expected all ranks in the same ca"):
                            other(opt, tmp_path)
                    assert comm.calls == sent
                    raise

            found = outcomes(3, body)
            if not was_interrupted:
                break
            assert isinstance(found.pop(culprit), error)
            for other in found:
                assert other is None or isinstance(other, threading.BrokenBarrierError)
        assert count > 1
        assert found == [None] * 3

    @pytest.mark.parametrize("name", ["state_like", "checkpoint.to_gather"])
    def test_memory_that_one_rank_lacks_is_an_error_on_all(self, name, monkeypatch):
        """Of sums and of whole arrays: it is taken before the ranks agree."""

        def body(comm):
            w = np.ones(9000, np.float32)
            opt = op.Adam(op.shard(w, comm))
            for call in (lambda: opt.step(np.ones_like(w)), opt.state_dict):
                lacks.rank = comm.rank
                before = digest(w)
                with suppress(MemoryError, ValueError):
                    call()
                    continue
                assert digest(w) == before
                lacks.rank = None
                call()
            lacks.rank = None
            return digest(w, opt.state_dict())

        lacks = threading.local()
        *_, attribute = name.split(".")
        owner = sharded_module.checkpoint if "." in name else sharded_module
        real = getattr(owner, attribute)

        def scarce(*args):
            if getattr(lacks, "rank", None) == 1:
                raise MemoryError
            return real(*args)

        monkeypatch.setattr(owner, attribute, scarce)
        assert len(set(on_ranks(3, body))) == 1

    def test_one_process_goes_on(self):
        """Nobody waits for it."""
        (comm,) = communicators(1)
        own, w = Interrupted(comm, KeyboardInterrupt), np.ones(3)
        opt = op.SGD(op.shard(w, own), lr=1.0)
        opt.step(np.ones(3))
        own.left = 1
        with pytest.raises(KeyboardInterrupt):
            opt.step(np.ones(3))
        assert opt.step(np.ones(3)).step == 2
        np.testing.assert_array_equal(w, -1)


class TestRefusals:
    (comm,) = communicators(1)

    @pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
    def test_rules_that_need_whole_arrays(self, cls):
        with pytest.raises(ValueError, match="op.shard: expected a rule that steps parts alone"):
            cls(op.shard(np.ones((3, 3)), self.comm))

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"max_grad_norm_each": 1.0}, "max_grad_norm_each: expected None beside op.shard"),
            ({"clear_grads": True}, "clear_grads: expected False beside op.shard"),
            ({"grads": np.ones(3)}, "grads: expected None beside op.shard"),
            ({"copy_to": np.ones(3, np.float16)}, "copy_to: expected None beside op.shard"),
        ],
    )
    def test_arguments(self, options, match):
        with pytest.raises(ValueError, match=match):
            op.Adam(op.shard(np.ones(3, np.float32), self.comm), **options)

    def test_settings_that_come_later(self):
        w = np.ones(3)
        opt = op.Adam(op.shard(w, self.comm))
        for owner, name, value in (
            (opt.param_groups[0], "max_grad_norm_each", 1.0),
            (opt._engine.own, "clear_grads", True),
        ):
            before = owner[name]
            owner[name] = value
            with pytest.raises(ValueError, match=name):
                opt.step(np.ones(3))
            owner[name] = before
        np.testing.assert_array_equal(w, 1)

    @pytest.mark.parametrize(
        "call",
        [
            lambda opt: opt.step_rows({}),
            lambda opt: opt.step_one("0", np.ones(3)),
            lambda opt: opt.bind(np.ones(3)),
            lambda opt: opt.zero_grad(),
            lambda opt: opt.add_param_group({"params": np.ones(3)}),
            lambda opt: opt.step(np.ones(3), stats=True),
            lambda opt: opt.step(np.ones(3), exchange=lambda sums: sums),
        ],
    )
    def test_calls(self, call):
        w = np.ones(3)
        opt = op.Adam(op.shard(w, self.comm))
        with pytest.raises(ValueError, match="expected .*op.shard"):
            call(opt)
        np.testing.assert_array_equal(w, 1)

    @pytest.mark.parametrize("call", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_no_copy(self, call):
        with pytest.raises(TypeError, match="Adam: expected no copy of it"):
            call(op.Adam(op.shard(np.ones(3), self.comm)))

    @pytest.mark.parametrize("missing", ["rank", "size", "Allgatherv", "Alltoallv"])
    def test_what_is_no_communicator(self, missing):
        names = {"rank": 0, "size": 1, "Allgatherv": print, "Alltoallv": print}
        del names[missing]
        with pytest.raises(TypeError, match=f"comm: expected .* with {missing}, got Fake"):
            op.shard(np.ones(3), type("Fake", (), names)())

    def test_a_range_test(self):
        opt = op.Adam(op.shard(np.ones(3), self.comm))
        with pytest.raises(ValueError, match="^optimizer: expected one without op.shard"):
            op.search.range_test(opt, lambda: (1.0, np.ones(3)))

    def test_a_parameter_with_gaps(self):
        with pytest.raises(ValueError, match="without gaps"):
            op.Adam(op.shard(np.ones(6)[::2], self.comm))


class TestOtherWeights:
    @pytest.mark.parametrize(
        ("make", "show"),
        [
            (lambda p: op.AdamW(p, ema_decay=0.9), "averaged"),
            (op.AdamWScheduleFree, "averaged"),
            (lambda p: op.SGD(p, momentum=0.9, form="sutskever"), "lookahead"),
        ],
        ids=["ema", "schedule-free", "lookahead"],
    )
    @pytest.mark.parametrize("ranks", [1, 3])
    def test_they_are_those_of_one_process(self, make, show, ranks):
        params, steps = tree(np.random.default_rng(0)), batches(13, 2, ranks)
        before = copy.deepcopy(params)
        opt, _ = one_process(make, params, steps)
        with getattr(opt, show)():
            expected = copy.deepcopy(params)

        def look(opt, own):
            state = digest(opt.state_dict())
            after = digest(own)
            with getattr(opt, show)():
                seen = copy.deepcopy(own)
                assert digest(opt.state_dict()) == state  # of the run, also in the block
            assert digest(own) == after
            return seen

        for own, _, _, seen in sharded(make, before, steps, look):
            for key in params:
                assert_same_bits(seen[key], expected[key])
                assert_same_bits(own[key], params[key])


CHECKPOINTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "everything": {"ema_decay": 0.9, "lookahead_every": 2, "max_grad_norm": 1.0, "seed": 3},
    "q8": {"state_format": "q8"},
    "bf16": {"state_format": "bf16", "swa_start": 1},
}


class TestCheckpoints:
    @pytest.mark.parametrize("kept", CHECKPOINTS)
    @pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["float32", "bfloat16"])
    def test_any_number_of_ranks_goes_on(self, kept, dtype, tmp_path):
        """4, 2, 1 and 3 ranks, one after the other; the files are those of one process."""
        params = tree(np.random.default_rng(0), dtype)
        ours = copy.deepcopy(params)
        make = partial(op.AdamW, **CHECKPOINTS[kept])
        one = make(params)
        path = tmp_path / "ours"
        for number, ranks in enumerate((4, 2, 1, 3)):
            ((*grads,),) = batches(number, 1, ranks, dtype)
            for g in grads:
                one.accumulate(g)
            one.step(grad_scale=ranks)
            theirs = tmp_path / f"theirs{number}"
            one.save(theirs)

            def body(comm, grads=grads, number=number, begun=ours):
                own = copy.deepcopy(begun)
                opt = make(op.shard(own, comm))
                if number:
                    opt.load(path)
                opt.step(grads[comm.rank])
                opt.save(path)
                return own

            ours, *others = on_ranks(ranks, body)
            assert path.read_bytes() == theirs.read_bytes()
            assert digest(ours) == digest(params)
            assert all(digest(other) == digest(ours) for other in others)

    def test_a_dictionary(self):
        params, steps = tree(np.random.default_rng(0)), batches(14, 2, 2)
        before = copy.deepcopy(params)
        one, _ = one_process(op.Adam, params, steps[:1])
        saved = one.state_dict()
        for grads in steps[1]:
            one.accumulate(grads)
        one.step(grad_scale=2)
        middle, *_ = sharded(op.Adam, before, steps[:1])[0]

        def body(comm):
            own = copy.deepcopy(middle)
            opt = op.Adam(op.shard(own, comm))
            opt.load_state_dict(saved)
            opt.step(steps[1][comm.rank])
            assert digest(own, opt.state_dict()) == digest(params, one.state_dict())

        on_ranks(2, body)

    def test_gradients_that_were_left_out(self):
        """The coming step is skipped, as on a single process."""
        w = np.ones(3, np.float32)
        one = op.Adam(w, nonfinite="skip")
        assert not one.accumulate(np.full(3, np.nan))
        saved = one.state_dict()
        expected = one.step()
        assert expected.skipped

        def body(comm):
            own = np.ones(3, np.float32)
            opt = op.Adam(op.shard(own, comm))
            opt.load_state_dict(saved)
            with pytest.raises(ValueError, match="expected none after accumulate"):
                opt.step(own.copy())
            np.testing.assert_equal(tuple(opt.step()), tuple(expected))
            assert digest(own, opt.state_dict()) == digest(w, one.state_dict())
            assert opt.step(own.copy()).step == 1

        on_ranks(2, body)

    def test_a_dictionary_of_pytorch_and_a_scalar(self):
        """There a step is an array of no axes, as the parameter is here."""
        ones = {name: np.array(1, np.float32) for name in ("exp_avg", "exp_avg_sq")}
        of_one = {"step": np.array(3.0), **ones}
        one, many = np.array(1, np.float32), np.array(1, np.float32)
        for opt in (op.Adam(one), op.Adam(op.shard(many, *communicators(1)))):
            opt.load_state_dict({**opt.state_dict(), "state": {0: of_one}})
            assert opt.step(1.0).step == 1
        assert_same_bits(many, one)

    def test_settings_that_were_changed_and_sums(self):
        """State that the coming step will replace, and gradients that were accumulated."""
        params, steps = tree(np.random.default_rng(0)), batches(15, 2, 1)
        before = copy.deepcopy(params)
        one, _ = one_process(op.Adam, params, steps[:1])
        one.param_groups[0]["amsgrad"] = True
        one.param_groups[0]["state_format"] = "bf16"
        one.accumulate({k: v + v for k, v in steps[1][0].items()})
        expected = one.state_dict()
        assert "unsettled" in expected

        def body(comm):
            own = copy.deepcopy(before)
            opt = op.Adam(op.shard(own, comm))
            opt.step(steps[0][0], grad_scale=1)
            opt.param_groups[0]["amsgrad"] = True
            opt.param_groups[0]["state_format"] = "bf16"
            opt.accumulate(steps[1][0])
            saved = opt.state_dict()
            other = op.Adam(op.shard(copy.deepcopy(own), comm))
            other.load_state_dict(saved)
            assert digest(other.state_dict()) == digest(saved)
            return saved

        for saved in on_ranks(2, body):
            assert saved.keys() == expected.keys()
            assert digest(saved["unsettled"]) == digest(expected["unsettled"])
            np.testing.assert_array_equal(
                saved["state"]["b"]["accumulated"], expected["state"]["b"]["accumulated"]
            )

    def test_state_alloc(self):
        """It makes the arrays of this rank's part, and is asked again by nothing."""

        def body(comm):
            asked = []

            def alloc(name, shape, dtype):
                asked.append((name, shape))
                return np.empty(shape, dtype)

            w = np.ones(3 * BLOCK, np.float32)
            opt = op.Adam(op.shard({"w": w}, comm), state_alloc=alloc)
            opt.step({"w": w.copy()})
            opt.load_state_dict(opt.state_dict())
            opt.step({"w": w.copy()})
            return asked

        found = on_ranks(2, body)
        assert found == [[("w.exp_avg", (n,)), ("w.exp_avg_sq", (n,))] for n in (BLOCK, 2 * BLOCK)]

    def test_state_alloc_that_fails_as_gradients_are_accumulated(self):
        """On one rank: none has added anything then."""

        def body(comm):
            full = [comm.rank == 1]

            def alloc(name, shape, dtype):
                if name == "0.accumulated" and full[0]:
                    raise ValueError("no space")
                return np.empty(shape, dtype)

            w, grad = np.ones(3 * BLOCK, np.float32), np.full(3 * BLOCK, 2.0, np.float32)
            opt = op.SGD(op.shard(w, comm), lr=1.0, state_alloc=alloc)
            before = digest(opt.state_dict())
            with pytest.raises(ValueError, match="no space|error on rank 1"):
                opt.accumulate(grad)
            assert digest(opt.state_dict()) == before
            with pytest.raises(ValueError, match="and none are accumulated"):
                opt.step()
            full[0] = False
            assert opt.accumulate(grad)
            opt.step()
            np.testing.assert_array_equal(w, -1)

        on_ranks(2, body)

    @pytest.mark.parametrize("break_on", [0, 1])
    def test_a_file_that_cannot_be_written_or_read(self, break_on, tmp_path):
        def body(comm):
            w = np.ones(3, np.float32)
            opt = op.Adam(op.shard(w, comm))
            opt.step(w.copy())
            before = digest(opt.state_dict())
            with pytest.raises((OSError, ValueError)) as caught:
                opt.save(tmp_path / "no folder" / "file")
            texts = [str(caught.value)]
            opt.save(tmp_path / "file")
            place = tmp_path / ("missing" if comm.rank == break_on else "file")
            with pytest.raises((OSError, ValueError)) as caught:
                opt.load(place)
            assert digest(opt.state_dict()) == before
            assert opt.step(w.copy()).step == 2
            return [*texts, str(caught.value)]

        texts = on_ranks(2, body)
        assert "No such file" in texts[0][0]
        assert "expected a path that rank 0 can write" in texts[1][0]
        assert "No such file" in texts[break_on][1]
        assert "load: expected arguments that all ranks can take" in texts[1 - break_on][1]

    def test_files_that_differ(self, tmp_path):
        def body(comm):
            w = np.ones(3, np.float32)
            opt = op.Adam(op.shard(w, comm))
            for n in range(2):
                opt.step(w.copy())
                opt.save(tmp_path / str(n))
            with pytest.raises(ValueError, match="got others on rank"):
                opt.load(tmp_path / str(comm.rank))

        on_ranks(2, body)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda s: s["state"]["b"].update(exp_avg=np.zeros(3, np.float32)),
            lambda s: s["state"]["b"].pop("exp_avg"),
            lambda s: s["param_groups"].clear(),
            lambda s: s.pop("state"),
            lambda s: s["state"].update(more={}),
            lambda s: s["state"]["b"].update(step=-1),
        ],
    )
    def test_what_does_not_fit(self, damage):
        def body(comm):
            own = tree(np.random.default_rng(0))
            opt = op.Adam(op.shard(own, comm))
            opt.step(batches(16, 1, 1)[0][0])
            before = opt.state_dict()
            saved = copy.deepcopy(before)
            damage(saved)
            with pytest.raises((ValueError, TypeError)):
                opt.load_state_dict(saved)
            assert digest(opt.state_dict()) == digest(before)

        on_ranks(2, body)


def test_what_the_class_says():
    (comm,) = communicators(1)
    opt = op.AdamW(op.shard({"w": np.ones(3)}, comm), lr=0.1)
    assert isinstance(opt, op.AdamW)
    assert type(opt).__name__ == "AdamW"
    assert repr(opt) == repr(op.AdamW({"w": np.ones(3)}, lr=0.1))
    assert opt.param_groups[0]["params"][0].shape == (3,)


def test_no_rank_waits_for_one_that_fails_elsewhere():
    """A thread's barrier breaks as a job ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def body(comm):
            opt = op.Adam(op.shard(np.ones(3), comm))
            if comm.rank == 1:
                raise KeyError("elsewhere")
            opt.step(np.ones(3))

        first, second = outcomes(2, body)
    assert isinstance(second, KeyError)
    assert isinstance(first, Exception)
