"""Parameters and state that do not fit into memory: a step reads them from a file, and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import get_ident
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onepass._files import Place
from onepass._hyperparameters import Whole
from onepass._stream.arguments import Source, checked, described, rule_of
from onepass._stream.file import DamagedError
from onepass._stream.opening import check_system, described_by, make, opened, place
from onepass._stream.pipe import Pipe
from onepass._stream.step import Opened, Step
from onepass.optim import Optimizer, StepInfo, _storage
from onepass.optim._reference import BLOCK

_CHUNK = 1 << 22

_told: list[bool] = []
_WARNING = (
    "onepass: a Stream is changed in place. A crash or a power cut within a step leaves a file "
    "that cannot be continued, and that says so; go back to a checkpoint() then. (Said once.)"
)


class Stream:
    r"""Parameters and an optimizer's state in a file, stepped chunk by chunk through a few buffers.

    For models that do not fit into memory. A chunk has so many parameters and all state that
    belongs to them, one after the other in the file. A step reads chunks ahead, updates each with
    `onepass.kernels`, and writes it behind the next ones, past the page cache where the file system
    allows that. It takes as long as the disk takes for the bytes; fewer bits are therefore what
    makes it fast: AdamW on float32 moves 24 bytes for each parameter, on bfloat16 with
    ``state_format="q8"`` 8 bytes.

    `Stream.create` makes the file, and ``Stream(path)`` opens it, also in another process.

    Parameters
    ----------
    path : str or path
        A file that `create` or `checkpoint` has made. One process has it at a time.
    direct : bool
        Go past the page cache, which would only lose what others need: no chunk is read again
        before all others have been. On file systems without it (tmpfs) the cache is used.

    Attributes
    ----------
    path : Path
    size : int
        How many parameters there are.
    dtype : dtype
        Theirs.
    completed, skipped_steps : int
        The steps that were done, and those that were skipped.
    settings : dict
        The values that `create` was given, defaults included.
    direct : bool
        Whether the page cache is left alone.

    Raises
    ------
    ValueError
        If the file is no stream, is damaged, was left within a step, or is open elsewhere.
    OSError
        If it cannot be read or written.

    Notes
    -----
    **What a step does not promise here.** Everywhere else a step that fails has changed nothing.
    Here parameters are replaced in the file as they are computed: a crash, a lack of power or a
    disk that fails within a step leaves some chunks after it and some before. The file then says
    so when it is opened, and cannot be continued. `checkpoint` copies it between steps, whole or
    not at all. An interrupt (Ctrl-C) waits until the step is done. Where a function for the
    gradients raises, the chunks that were not stepped yet are stepped by the next call of `step`.

    The results of float32 and float64, the norm included, are those of the class on one flat array,
    bit for bit. Where numbers are rounded stochastically, chunk `i` takes the random bits of
    ``seed + i`` and is the result of `onepass.kernels` on that chunk with this seed.

    Differs from

    * The class on memory-mapped arrays (`numpy.memmap` and ``state_alloc=``): that is simpler, and
      a step that raises changes nothing. It is slower where the files do not fit into the page
      cache, since each page fault stops the thread that needs the page.
    * DeepSpeed's ZeRO-Infinity, which has a file for each tensor and pinned buffers for a GPU.

    Rules that measure whole arrays (`LAMB`, `LARS`, `NovoGrad`, `Prodigy`, `Adafactor`), take
    matrices (`Muon`) or keep numbers of rows and columns (`SM3`) are refused, as are schedules
    (give the value of a setting to `step`), masters in float32 and `max_grad_norm_each`.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import onepass as op
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = folder.name + "/weights.stream"
    >>> with op.Stream.create(path, np.ones(100_000, np.float32), "adamw", lr=0.1) as stream:
    ...     info = stream.step(np.ones(100_000, np.float32))
    >>> with op.Stream(path) as stream:  # in another process, on another day
    ...     info = stream.step(np.ones(100_000, np.float32), lr=0.05)
    ...     print(info.step, stream.read("param", 0, 3).round(5))
    2 [0.84855 0.84855 0.84855]
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], *, direct: bool = True) -> None:
        check_system()
        self.path = Path(path)
        self._raw = self.path.open("r+b", buffering=0)
        try:
            self._now = opened(self._raw)
            self._pipe = Pipe(self.path, self._now.file.layout(0).nbytes, direct)
        except DamagedError as error:
            self._raw.close()
            raise ValueError(f"path: {error}, in {os.fspath(path)!r}") from None
        except BaseException:
            self._raw.close()
            raise
        self._runner = ThreadPoolExecutor(1, "onepass-step")
        self._stepper: int | None = None
        """The thread that steps."""
        self._running: Future[StepInfo] | None = None
        self._unfinished: Step | None = None
        self._is_torn = False

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        params: Source,
        rule: str | type[Optimizer],
        *,
        size: int | None = None,
        dtype: npt.DTypeLike | None = None,
        chunk: int = _CHUNK,
        direct: bool = True,
        **settings: Any,
    ) -> Self:
        """Make a file with these parameters and fresh state, and open it.

        Parameters
        ----------
        path : str or path
            A file that is not there yet.
        params : flat ndarray, or function
            The parameters, of float32, float64, float16 or ``ml_dtypes.bfloat16``; `onepass.pack`
            makes a flat array of many. ``params(begin, end)`` returns those of a chunk, for what
            does not fit into memory; then `size` and `dtype` are needed.
        rule : str or class
            A rule's name, or its class: ``"adamw"`` or `onepass.AdamW`.
        size, dtype
            Of all parameters; needed where `params` is a function.
        chunk : int
            Parameters of a chunk, rounded up to a multiple of 16,384. Four chunks are in memory at
            a time, with their state.
        direct : bool
            See `Stream`.
        **settings
            The rule's hyperparameters, and the settings of a step but for `max_grad_norm_each`: see
            `onepass.Optimizer`. `rounding` is "stochastic" or "nearest", as in `onepass.kernels`.

        Returns
        -------
        Stream

        Raises
        ------
        FileExistsError
            If the file is there.
        OSError
            If the disk has less space than the stream takes. Then nothing was written.
        TypeError, ValueError
            If an argument is not as it must be. In all these cases no file is left.
        """
        check_system()
        owner = rule_of(rule)
        kind, size = described(params, size, dtype)
        chunk = -(-Whole(low=1)("chunk", chunk) // BLOCK) * BLOCK
        values = checked(owner, kind, settings)
        header = {
            "rule": owner.rule,
            "size": size,
            "dtype": kind.name,
            "chunk": min(chunk, -(-size // BLOCK) * BLOCK),
            "settings": values,
        }
        made = Path(path)
        raw = made.open("x+b", buffering=0)
        try:
            with raw:
                make(made, direct, described_by(raw, header), params)
                described_by(raw, header).file.write_header(header)  # until now it is no stream
            stream = cls(path, direct=direct)
        except BaseException:
            made.unlink()
            raise
        if not _told:
            _told.append(True)
            print(_WARNING, file=sys.stderr)
        return stream

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return self._now.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self._now.dtype

    @property
    def settings(self) -> dict[str, Any]:
        """The values that `create` was given, defaults included."""
        return dict(self._now.settings)

    @property
    def direct(self) -> bool:
        """Whether the page cache is left alone."""
        return self._pipe.direct

    @property
    def completed(self) -> int:
        """How many steps were done."""
        return self._now.progress.completed

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out: see `StepInfo.skip_reason`."""
        return self._now.progress.skipped

    def step(
        self,
        grads: Source,
        *,
        grad_scale: float = 1.0,
        num_threads: int | None = None,
        **settings: Any,
    ) -> StepInfo:
        """Step all parameters, chunk by chunk, in the file.

        Parameters
        ----------
        grads : flat ndarray, or function
            All gradients, of a dtype that `Optimizer.step` takes; a memory-mapped array will do.
            ``grads(begin, end)`` returns those of a chunk, in any order, and is called in another
            thread. Their common norm is not known then: `max_grad_norm` and `skip_grad_norm` must
            be None, and `nonfinite` "propagate".
        grad_scale, num_threads
            As for `Optimizer.step`.
        **settings
            Values for this step, ``lr=schedule(stream.completed)``, say. They must ask for the
            state that is there.

        Returns
        -------
        StepInfo

        Raises
        ------
        TypeError, ValueError
            If an argument is not as it must be; where `grads` is an array nothing has changed then.
        Exception
            What `grads` raises where it is a function. Some chunks have been stepped by then; the
            next call steps the others.
        OSError
            If the disk fails. The stream cannot be continued then.
        """
        self._settle()
        now = self._now
        values = checked(now.cls, now.dtype, {**now.settings, **settings})
        _check_same_state(now, values)
        step = Step(now, values, grads, grad_scale, num_threads)
        if self._unfinished is not None:
            step.finish(self._unfinished)
        elif (skipped := step.skipped()) is not None:
            return skipped
        running = self._running = self._runner.submit(self._run, step)
        interrupt: KeyboardInterrupt | None = None
        while not running.done():
            try:
                running.exception()
            except KeyboardInterrupt as error:  # raised once the step is done
                interrupt = error
        if interrupt is not None:
            raise interrupt
        return running.result()

    def _run(self, step: Step) -> StepInfo:
        """Step the chunks that are left; this runs in a thread of its own."""
        self._stepper = get_ident()
        now = self._now
        if not now.progress.stepping:
            now.progress = now.file.write_progress(replace(now.progress, stepping=True))
        done, error, self._is_torn = self._pipe.run(
            sorted(step.left), partial(place, now.file), step.change
        )
        step.left -= done
        self._unfinished = step
        if error is not None:
            raise error
        after = replace(
            now.progress,
            completed=now.progress.completed + 1,
            stepping=False,
            memory=step.memory,
        )
        now.progress = now.file.write_progress(after)
        self._unfinished = None
        assert step.info is not None
        return step.info._replace(grad_norm=step.norm, clipped=step.clipped)

    def read(
        self, name: str = "param", begin: int = 0, end: int | None = None
    ) -> npt.NDArray[np.floating[Any]]:
        """Return a part of the parameters, or of an array of state by its name.

        Parameters
        ----------
        name : str
            ``"param"``, a name of the class's `state_names`, ``"average"`` or ``"slow"``. State in
            fewer bits is widened.
        begin, end : int
            Of the part; all by default, which must fit into memory.

        Returns
        -------
        ndarray

        Raises
        ------
        ValueError
            If there is no such array or no such part.
        """
        self._settle(finished=True)
        known = self._now.file.layout(0).segments
        if name not in known:
            raise ValueError(f"name: expected one of {', '.join(known)}, got {name!r}")
        end = self.size if end is None else end
        begin, end = Whole()("begin", begin), Whole()("end", end)
        if not begin <= end <= self.size:
            expected = f"0 <= begin <= end <= {self.size}"
            raise ValueError(f"begin, end: expected {expected}, got {begin} and {end}")
        row, parts = self._now.cls.row, {}
        signs = dict(zip(row.states, row.has_sign, strict=True))

        def take(chunk: int, data: npt.NDArray[np.uint8]) -> None:
            arrays = self._now.file.layout(chunk).arrays(data)
            self._now.file.check_chunk(data, chunk, self.completed)
            array = arrays[name]
            if name in signs:
                array = _storage.opened(array, arrays["param"], signs[name])
            first = chunk * self._now.chunk
            parts[chunk] = array[max(begin - first, 0) : end - first].copy()

        chunks = range(begin // self._now.chunk, -(-end // self._now.chunk))
        places = partial(place, self._now.file)
        _, error, _ = self._pipe.run(chunks, places, take, write=False)
        if error is not None:
            raise error
        dtype = known[name].dtype
        wide = np.dtype(np.float32) if name in signs and dtype.itemsize < 4 else dtype
        return np.concatenate([np.empty(0, wide), *(parts[chunk] for chunk in chunks)])

    def checkpoint(self, path: Place) -> None:
        """Copy the stream to another file, atomically; ``Stream(path)`` continues from there.

        The path holds the old file or the whole new one. Where a file system can share blocks (XFS,
        Btrfs), this takes no time and no space.

        Raises
        ------
        OSError
            If it cannot be written. Then the path holds what it held.
        """
        self._settle(finished=True)
        self._now.file.copy_to(path)

    def close(self) -> None:
        """Close the file; a step that is running is done before."""
        if self._raw.closed:
            return
        self._runner.shutdown()
        self._pipe.close()
        self._raw.close()

    def __enter__(self) -> Self:
        """Return the stream."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def __reduce__(self) -> Any:
        """Refuse to be copied: a copy would write into the same file."""
        raise TypeError("Stream: expected no copy of it (checkpoint copies the file), got one")

    def __repr__(self) -> str:
        """Return the file, its size and the rule."""
        name = self._now.cls.__name__
        return f"Stream({str(self.path)!r}, {name} of {self.size:,} {self.dtype.name})"

    def _settle(self, *, finished: bool = False) -> None:
        """Wait for a step that an interrupt has left alone; raise where a call makes no sense."""
        if self._raw.closed:
            raise ValueError("Stream: expected one that is open, got a closed one")
        if self._running is not None and not self._running.done():
            if get_ident() == self._stepper:
                raise ValueError("Stream: expected one step at a time, got a call within one")
            self._running.exception()
        if self._is_torn:
            expected = "whole chunks, got one that is half written (take a checkpoint)"
            raise ValueError(f"Stream: expected {expected}")
        if finished and self._unfinished is not None:
            expected = "a call of step that finishes the last one, got another"
            raise ValueError(f"Stream: expected {expected}")


def _check_same_state(now: Opened, values: Mapping[str, Any]) -> None:
    """Raise where settings ask for other arrays than there are."""
    row, shape = now.cls.row, (now.size,)
    if row.used_states(values, shape) != row.used_states(now.settings, shape):
        raise ValueError("settings: expected some that use the state that there is, got others")
    # How often an average was entered is not kept, but follows from the last two.
    fixed = ("state_format", "rounding", "average_dtype", "average_every", "swa_start")
    for name in (*fixed, "lookahead_every", "ema_decay"):
        is_fixed = name in fixed
        got, then = values[name], now.settings[name]
        if got != then and (is_fixed or (got is None) != (then is None)):
            raise ValueError(f"{name}: expected {then!r}, as the stream was made, got {got!r}")
