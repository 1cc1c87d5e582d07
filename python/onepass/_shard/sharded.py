"""`onepass.shard`, and what an optimizer of its result does in another way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NoReturn
from zlib import crc32

import numpy as np

from onepass import _core
from onepass._communicator import Shares, check_comm
from onepass._files import Place
from onepass._memory import order_of, raveled, state_like
from onepass._quiet import quiet
from onepass._shard import checkpoint
from onepass._shard.cut import Cut, octets
from onepass._shard.wire import Asked, Flat, Wire
from onepass._typing import Array, Exchange, Grads, Params
from onepass.optim import Optimizer, StepInfo, _checkpoint, _state, _storage
from onepass.optim._settings import GRAD_SCALE
from onepass.optim._tree import filled, leaves_like
from onepass.schedules._base import remembering

_NOT_HERE: dict[str, Any] = {"copy_to": None, "grads": None, "clear_grads": False}
"""Arguments that a sharded optimizer does not take, and what they must be."""


class Sharded:
    """Parameters that many processes have, and how these reach each other: see `shard`."""

    def __init__(self, params: Params, comm: Shares) -> None:
        self.params, self.comm = params, comm

    @staticmethod
    @cache
    def _optimizer_class(asked: type[Optimizer]) -> type[Optimizer]:
        """Return the class of an optimizer of this class that is made of sharded parameters."""
        if issubclass(asked, ShardedOptimizer):
            return asked
        body = {"__doc__": asked.__doc__, "__module__": asked.__module__}
        return type(asked.__name__, (ShardedOptimizer, asked), body)


def shard(params: Params, comm: Shares) -> Sharded:
    r"""Share an optimizer's work and state out over the processes of a communicator (ZeRO-1).

    ``op.AdamW(op.shard(params, comm), lr=...)`` is an optimizer whose state, averages and masters
    are one part in :math:`R` on each of :math:`R` processes. All of them keep all parameters and
    compute gradients of their own, each for its part of a batch. ``opt.step(grads)`` adds these up,
    steps each part where its state is, and brings the new parameters to all processes. It is the
    step of a single process with the mean of the gradients, :math:`g = \frac{1}{R} \sum_r g_r`,
    added in the order of the ranks: the same bits for any :math:`R`.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        As an optimizer takes them, and the same on all processes. One flat array (`onepass.pack`)
        is sent from where it is; of several the parts are copied together first.
    comm : ``mpi4py.MPI.Comm``, or the like
        Anything with mpi4py's `rank`, `size`, `Allgatherv` and `Alltoallv`. (In `Allgatherv` the
        first argument may be None, which mpi4py takes for ``MPI.IN_PLACE``.)

    Returns
    -------
    Sharded
        For the constructor of an optimizer, and nothing else.

    Raises
    ------
    TypeError
        If `comm` is no such communicator.

    Notes
    -----
    The constructor and these methods are *collective*: all processes must call them, in the same
    order: `step`, `accumulate`, `averaged` (and `SGD.lookahead`), `state_dict`, `load_state_dict`,
    `save` and `load`. Settings are changed on all processes alike.

    * An argument that is wrong on one process is an error on all of them; nothing is written then.
      So is a gradient that is not finite with ``nonfinite="raise"``. Norm, clipping and skipping go
      by the mean over all processes.
    * All processes must begin with the same weights: initialise them with the same seed, or send
      those of one process to all with ``comm.Bcast``. The first step, and the first one after
      `load`, compares checksums, and raises an error on all processes where they differ.
    * All processes must have the same settings and gradients of the same dtypes; parameters whose
      gradient is None must be so on all of them.
    * Blocks of 16,384 elements of all parameters, one parameter after the other, are shared out
      evenly. Nothing is padded: a process may have a part of a parameter, and none at all.
    * Gradients travel in the dtype in which they are given, and are added in float32 or float64;
      parameters in their own.
    * `accumulate` adds up the gradients of all processes, and then adds them to the sum, which is
      sharded as state is. With ``nonfinite="skip"`` all processes leave out gradients of which one
      process has some that are not finite.
    * `state_dict` returns everything on each process, and `save` writes, on process 0, the file
      that a single process would write; `load` reads it on any number of processes. For a moment
      `save` takes the memory of one whole array on each of them, and `load` that of the file.
    * Rules that measure whole arrays (`LAMB`, `LARS`, `NovoGrad`, `Prodigy`, `Adafactor`), take
      matrices (`Muon`) or keep numbers of rows and columns (`SM3`) are refused, as are
      `max_grad_norm_each`, `copy_to`, `clear_grads`, bound gradients, ``stats=True``, `step_rows`,
      `step_one` and `add_param_group`. Such an optimizer cannot be copied or pickled.
    * Where a process ends or is interrupted within a call, the others wait for ever: run
      ``python -m mpi4py``, so that an error which nobody catches ends all of them. Where it is
      caught, every later call raises RuntimeError on that process.

    Differs from

    * DeepSpeed's ZeRO, Megatron's distributed optimizer and PyTorch's ``ZeroRedundancyOptimizer``:
      the sums do not depend on the number of processes, files do not either, and nothing is
      padded. There steps overlap with the backward pass; here they do not.

    References
    ----------
    S. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models",
    SC 2020, arXiv:1910.02054.

    Examples
    --------
    One process; more of them run the same program under ``mpiexec``:

    >>> import numpy as np
    >>> import onepass as op
    >>> class Alone:  # in the place of MPI.COMM_WORLD
    ...     rank, size = 0, 1
    ...     def Allgatherv(self, sent, received):
    ...         if sent is not None:
    ...             received[0][:] = sent
    ...     def Alltoallv(self, sent, received):
    ...         received[0][: sent[0].size] = sent[0]
    >>> w = np.ones(4, np.float32)
    >>> opt = op.AdamW(op.shard(w, Alone()), lr=0.1, weight_decay=0)
    >>> opt.step(np.array([1, -1, 1, -1], np.float32)).step
    1
    >>> w
    array([0.9, 1.1, 0.9, 1.1], dtype=float32)
    """
    check_comm(comm, "Allgatherv", "Alltoallv")
    return Sharded(params, comm)


class ShardedOptimizer(Optimizer):
    """What an optimizer does in another way where its state is shared out over processes.

    Its engine has parts of the parameters, as vectors; `_wholes` are the parameters.
    """

    _wire: Wire
    _cut: Cut
    _wholes: list[Array]
    _sums: list[Array | None]
    """Where gradients of this process' parts are added up."""
    _has_same_weights = False
    """Whether the processes have found that they have the same weights."""

    def __init__(self, params: Sharded, *args: Any, **settings: Any) -> None:
        self._wire = Wire(params.comm)

        def make() -> tuple[None, object]:
            for name, value in _NOT_HERE.items():
                if settings.get(name, value) is not value:
                    got = type(settings[name]).__name__
                    raise ValueError(f"{name}: expected {value} beside op.shard, got {got}")
            super(ShardedOptimizer, self).__init__(params.params, *args, **settings)
            now = self._engine.contents()
            kinds = [(array.shape, array.dtype.name, order_of(array)) for array in self._wholes]
            return None, (type(self).__name__, now["keys"], kinds, self._settings())

        self._wire.agree(type(self).__name__, make)

    def _owned(self, contents: dict[str, Any]) -> dict[str, Any]:
        """Return what the engine of this rank's parts is made of."""
        params = contents["params"]
        _core.check_params(contents["labels"], params)
        self._wholes = [np.asarray(param) for param in params]
        self._cut = Cut(tuple(param.size for param in params), self._wire.size)
        self._sums = [None] * len(params)
        self._check_settings(contents["groups"])
        parts = [
            (self._cut.part(self._wire.rank, index).start, param.size)
            for index, param in enumerate(params)
        ]
        pieces = [self._own(index, flat(param)) for index, param in enumerate(self._wholes)]
        return {**contents, "params": pieces, "parts": parts}

    def _own(self, index: int, whole: Flat) -> Flat:
        """Return this rank's part of a flat array."""
        return whole[self._cut.part(self._wire.rank, index)]

    def _check_settings(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise where settings ask for what parts of arrays cannot do."""
        for group in groups:
            if why := self.row.why_whole(group):
                expected = "a rule that steps parts alone"
                raise ValueError(
                    f"op.shard: expected {expected}, got {type(self).__name__} ({why})"
                )
            if group["max_grad_norm_each"] is not None:
                expected = "None beside op.shard, where arrays are cut"
                got = group["max_grad_norm_each"]
                raise ValueError(f"max_grad_norm_each: expected {expected}, got {got!r}")

    def _settings(self) -> object:
        """Return what must be the same on all ranks, of a schedule only its memory."""
        mappings = [self._engine.own, *self._engine.groups]
        return [[(k, _said(v)) for k, v in each.items() if k != "params"] for each in mappings]

    # One step

    def step(
        self,
        grads: Grads = None,
        *,
        grad_scale: float = 1.0,
        stats: bool = False,
        exchange: Exchange | None = None,
        num_threads: int | None = None,
    ) -> StepInfo:
        """Add up the gradients of all processes, and step: see `onepass.shard`. Collective."""

        def attempt() -> tuple[list[Flat | None] | None, object]:
            self._check_outside("step")
            if stats or exchange is not None:
                name, got = ("stats", "True") if stats else ("exchange", "a function")
                expected = "False" if stats else "None"
                raise ValueError(f"{name}: expected {expected} beside op.shard, got {got}")
            GRAD_SCALE("grad_scale", grad_scale)
            _check_threads(num_threads)
            given = self._read(grads, takes_none=True)
            if given is not None:
                self._make_sums(given)
            return given, self._kinds(given, grad_scale)

        with self._wire.together("step"):
            given = self._wire.agree("step", attempt)
            self._agree_on_weights("step")
            sums = None if given is None else self._reduced(given, num_threads)
            moved = self._gathered() if given is None else _there(given)
            asked = Asked(self._wire, "step", self._cut.n_blocks(moved))
            try:
                scale = grad_scale * self._wire.size
                info = super().step(sums, grad_scale=scale, exchange=asked, num_threads=num_threads)
            except BaseException:
                asked.give_up()
                if not asked.is_finite:
                    self._fail_nonfinite(given)
                raise
            if not info.skipped:
                self._share([(index, flat(self._wholes[index])) for index in moved])
            return info

    def accumulate(self, grads: Grads = None, *, num_threads: int | None = None) -> bool:
        """Add up the gradients of all processes, for the next `step()`. Collective."""

        def attempt() -> tuple[list[Flat | None], object]:
            self._check_outside("accumulate")
            _check_threads(num_threads)
            given = self._read(grads)
            assert given is not None
            if self.nonfinite == "raise":
                self._check_finite(given)
            self._make_sums(given)
            return given, self._kinds(given)

        with self._wire.together("accumulate"):
            given = self._wire.agree("accumulate", attempt)
            self._agree_on_weights("accumulate")
            if not _there(given):
                return True
            sums = self._reduced(given, num_threads)
            asked = Asked(self._wire, "accumulate", [1] * self._wire.size)

            def are_left_out(here: bool) -> bool:
                return bool(asked(np.array([here], float)).any())

            try:
                return self._engine.accumulate_with_others(sums, are_left_out, num_threads)
            except BaseException:
                asked.give_up()
                raise

    def _agree_on_weights(self, name: str) -> None:
        """Raise where another process has other weights: else a step would mix them.

        Looked at once, as all have what a step has written.
        """
        if self._has_same_weights:
            return
        expected = "the same weights on all ranks (by comm.Bcast, or the same seed)"
        self._wire.agree(
            name, lambda: (None, [crc32(octets(flat(w)).data) for w in self._wholes]), expected
        )
        self._has_same_weights = True

    def _read(self, grads: Grads, *, takes_none: bool = False) -> list[Flat | None] | None:
        """Return the gradients as vectors in their parameters' order; None: accumulated ones."""
        now = self._engine.contents()
        self._check_settings(now["groups"])
        if now["own"]["clear_grads"]:
            raise ValueError("clear_grads: expected False beside op.shard, got True")
        # Gradients that were left out come with a checkpoint.
        has_sum = any(now["progress"][name] for name in _state.GATHERINGS)
        if grads is None:
            if has_sum and takes_none:
                return None
            nor_before = ", and none are accumulated" if takes_none else ""
            raise ValueError(f"grads: expected gradients, got none{nor_before}")
        if has_sum and takes_none:
            raise ValueError("grads: expected none after accumulate, got some")
        leaves = leaves_like(now["shape"], now["grouped"], grads)
        return [
            None if grad is None else _flat_gradient(grad, whole, f"grads{label}")
            for grad, whole, label in zip(leaves, self._wholes, now["labels"], strict=True)
        ]

    def _kinds(self, given: list[Flat | None] | None, grad_scale: float = 1.0) -> object:
        """Return what must be the same on all ranks in a call with these gradients."""
        kinds = None if given is None else [None if g is None else g.dtype.name for g in given]
        return kinds, float(grad_scale), self._settings()

    def _make_sums(self, given: list[Flat | None]) -> None:
        """Make what gradients are added up in, while all ranks can still raise together."""
        pieces = self._engine.contents()["params"]
        for index in _there(given):
            if self._sums[index] is None:
                self._sums[index] = state_like(pieces[index])

    def _reduced(self, given: list[Flat | None], num_threads: int | None) -> Any:
        """Return the sums of all ranks' gradients, of this rank's parts, as the engine has them."""
        now = self._engine.contents()
        there = _there(given)
        grads = [(index, given[index]) for index in there]
        sums = [self._sums[index] for index in there]
        self._wire.reduce(self._cut, grads, sums, num_threads)  # type: ignore[arg-type]
        leaves = [None if g is None else s for g, s in zip(given, self._sums, strict=True)]
        return filled(now["shape"], iter(leaves))

    def _check_finite(self, given: list[Flat | None]) -> None:
        labels = self._engine.contents()["labels"]
        for grad, label in zip(given, labels, strict=True):
            if grad is not None and not _is_finite(grad):
                expected = "finite values"
                raise ValueError(f"grads{label}: expected {expected}, got an infinity or NaN")

    def _gathered(self) -> list[int]:
        """Return the parameters whose gradients were accumulated."""
        counts = self._engine.contents()["progress"]["accumulated"]
        return [index for index, count in enumerate(counts) if count]

    def _fail_nonfinite(self, given: list[Flat | None] | None) -> None:
        """Raise what says which rank's gradients were not finite; all ranks are here.

        Of accumulated gradients nobody knows: then the engine's own error goes on.
        """
        if given is None:
            self._wire.settle()
            return
        own = [i for i, grad in enumerate(given) if grad is not None and not _is_finite(grad)]
        first = own[0] if own else -1
        found = self._wire.tell(np.array([first], np.int64), [1] * self._wire.size)
        self._wire.settle()
        labels = self._engine.contents()["labels"]
        if own:
            raise ValueError(
                f"grads{labels[first]}: expected finite values, got an infinity or NaN"
            )
        ranks = np.flatnonzero(found >= 0)
        if not ranks.size:
            expected = "a finite sum over all ranks"
            raise ValueError(f"grads: expected {expected}, got an infinity or NaN")
        rank = int(ranks[0])
        got = f"an infinity or NaN in grads{labels[found[rank]]} on rank {rank}"
        raise ValueError(f"step: expected finite gradients on all ranks, got {got}")

    def _share(self, arrays: Sequence[tuple[int, Flat]]) -> None:
        self._wire.share(self._cut, [(index, "elements", array) for index, array in arrays])

    # Other weights, and checkpoints

    @quiet
    def _show(
        self, name: str, find: Callable[[], tuple[list[int], list[Any]]]
    ) -> AbstractContextManager[None]:
        now = self._engine.contents()

        def attempt() -> tuple[tuple[list[int], list[Array], list[Array]], object]:
            self._check_outside(name)
            indices, values = find()
            wholes = [self._wholes[index] for index in indices]
            pieces = [now["params"][index] for index in indices]
            shown = [np.empty_like(whole) for whole in wholes]
            owned = _storage.shown(values, pieces)
            for index, array, own in zip(indices, shown, owned, strict=True):
                self._own(index, flat(array))[:] = own
            return (indices, wholes, shown), indices

        with self._wire.together(name):
            indices, wholes, shown = self._wire.agree(name, attempt)
            self._share([(i, flat(array)) for i, array in zip(indices, shown, strict=True)])
            block = _core.Shown([now["labels"][index] for index in indices], wholes, shown)
            self._engine.shown = block, indices
            return block

    def _of_the_run(self) -> list[Array]:
        wholes = list(self._wholes)
        shown, indices = self._engine.shown or (None, [])
        if shown is not None and shown.active:
            for place, index in enumerate(indices):
                wholes[index] = shown.saved(place)
        return [
            self._own(index, raveled(whole, order_of(self._wholes[index])))
            for index, whole in enumerate(wholes)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what a single process would, on each of them: see `Optimizer`. Collective."""

        def attempt() -> tuple[Any, object]:
            own = super(ShardedOptimizer, self).state_dict()
            parts = checkpoint.parts_of(own, self._engine.contents()["keys"])
            made = checkpoint.to_gather(parts, self._wire, self._cut, self._wholes)
            return (own, parts, *made), 0

        with self._wire.together("state_dict"):
            own, parts, found, shared = self._wire.agree("state_dict", attempt)
            self._wire.share(self._cut, shared)
            return checkpoint.whole(own, parts, found, self._wholes)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the run that a `state_dict` was taken from, on any number of processes.

        Collective.
        """
        self._load("load_state_dict", lambda: state_dict)

    def save(self, path: Place) -> None:
        """Write the file that a single process would write, on process 0. Collective."""
        with self._wire.together("save"):
            own = self._wire.agree("save", lambda: (super(ShardedOptimizer, self).state_dict(), 0))
            parts = checkpoint.parts_of(own, self._engine.contents()["keys"])
            checkpoint.save(path, self.rule, own, parts, self._wire, self._cut, self._wholes)

    def load(self, path: Place) -> None:
        """Continue from a file that `save` wrote, here or on one process. Collective.

        Each process reads the whole file, and keeps its part.
        """
        self._load("load", lambda: _checkpoint.read(path, self.rule))

    def _load(self, name: str, read: Any) -> None:
        def attempt() -> tuple[Any, object]:
            self._check_outside(name)
            saved = read()
            now = self._engine.contents()
            own = checkpoint.cut(saved, now, self._cut, self._wire.rank, self._wholes)
            return _state.loaded(type(self), self._engine, own), checkpoint.described(saved)

        with self._wire.together(name):
            engine, updates, writes = self._wire.agree(name, attempt)
            self._commit(engine, *updates, writes=writes)
            self._has_same_weights = False

    # What there is no meaning for, or not yet

    def step_rows(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: there is no such step here."""
        _refuse("step_rows")

    def step_one(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: there is no such step here."""
        _refuse("step_one")

    def bind(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: gradients are given to `step`."""
        _refuse("bind")

    def zero_grad(self) -> NoReturn:
        """Raise: no gradients are bound."""
        _refuse("zero_grad")

    def add_param_group(self, *_: Any, **__: Any) -> NoReturn:
        """Raise: all parameters are there from the beginning."""
        _refuse("add_param_group")

    def __getstate__(self) -> NoReturn:
        """Raise: a communicator has no copy."""
        raise TypeError(f"{type(self).__name__}: expected no copy of it (save it), got one")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name}: expected an optimizer without op.shard, got one with it")


def _said(value: Any) -> object:
    """Return a setting as another process can compare it: of a schedule only what it remembers."""
    if isinstance(value, tuple):
        return [_said(each) for each in value]
    if callable(value):
        return "a schedule", [dict(each.state_dict()) for each in remembering(value)]
    return value


def _check_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        _core.check_num_threads(num_threads)


def flat(array: Array) -> Flat:
    """Return a view of an array without gaps: a vector in the order of memory."""
    return raveled(array, order_of(array))


def _flat_gradient(grad: Any, whole: Array, label: str) -> Flat:
    array = _core.readable(label, grad, whole)
    if array.shape != whole.shape:
        expected = f"the parameter's shape {whole.shape}"
        raise ValueError(f"{label}: expected {expected}, got {array.shape}")
    return np.ascontiguousarray(raveled(np.asarray(array), order_of(whole)))


def _is_finite(grad: Flat) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.isfinite(grad).all())


def _there(given: Sequence[Flat | None]) -> list[int]:
    return [index for index, grad in enumerate(given) if grad is not None]
