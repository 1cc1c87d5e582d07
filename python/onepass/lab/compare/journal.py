"""What a comparison has done so far, on disk, so that an interrupted one can go on."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from onepass._files import write_atomically, write_text
from onepass._npz import write_npz
from onepass.lab._folders import ARGUMENTS, SETTINGS, occupied
from onepass.lab._json import finite, write_json
from onepass.lab.compare.training import Measurement, Recipe, Run, Training

SECONDS_BETWEEN_CHECKPOINTS = 1.0

Line = dict[str, Any]


class Journal:
    """A folder with ``log.jsonl``, a line per epoch of every run, and the state of the last run.

    Parameters
    ----------
    folder : Path
    settings : mapping
        What the comparison was asked for. A comparison with other settings cannot go on from it.
    words : sequence of str
        Those of the command, kept so that it can be resumed by its name alone.
    resume : bool
        Go on from what the folder holds.
    force : bool
        Begin anew, whatever the folder holds; else it must hold no unfinished comparison.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        words: Sequence[str],
        *,
        resume: bool,
        force: bool = False,
    ) -> None:
        self._folder = folder
        self._settings = folder / SETTINGS
        self._log = folder / "log.jsonl"
        self._checkpoint = folder / "checkpoint.npz"
        self._saved_at = perf_counter()
        self._lines: dict[str, list[Line]] = {}
        if resume:
            self._read(settings)
        else:
            self._begin({**settings, ARGUMENTS: list(words)}, force=force)

    def finish(self) -> None:
        """Mark the comparison as finished: only the log stays."""
        self._drop_checkpoint()
        self._settings.unlink()

    def measurements(self, run: Run) -> list[Measurement] | None:
        """Return the measurements of a run that is over, None for any other run."""
        lines = self._lines.get(_key(run), [])
        return [_measurement(line) for line in lines] if lines and lines[-1]["done"] else None

    def add(self, training: Training) -> None:
        """Write the line of the epoch just over, and now and then the state."""
        assert training.last is not None
        line = {**_identity(training.run), "done": training.done, **_plain(training.last)}
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.setdefault(_key(training.run), []).append(line)
        if not training.done and perf_counter() - self._saved_at > SECONDS_BETWEEN_CHECKPOINTS:
            self.save(training)

    def save(self, training: Training) -> None:
        """Write what the run needs to go on from where it is."""
        last = training.last
        assert last is not None
        # The checkpoint names the optimizer's file, so that both are of the same step.
        optimizer = self._folder / f"checkpoint-{last.step}.npz"
        training.optimizer.save(optimizer)
        arrays: dict[str, Any] = {
            "run": _key(training.run),
            "epoch": last.epoch,
            "step": last.step,
            **training.network.state_dict(),
        }
        write_atomically(self._checkpoint, lambda file: write_npz(file, arrays))
        for other in self._folder.glob("checkpoint-*.npz"):
            if other != optimizer:
                other.unlink()
        self._saved_at = perf_counter()

    def take_up(self, run: Run, recipe: Recipe) -> tuple[Training, list[Measurement]]:
        """Return a run's training as it was last written, and its measurements so far."""
        training, lines = Training(run, recipe), self._lines.get(_key(run), [])
        try:
            kept = self._restore(training, len(lines))
        except Exception:  # the files are damaged, or gone: the run begins anew
            training, kept = Training(run, recipe), 0
        if kept:
            training.go_on_from(_measurement(lines[kept - 1]))
        if kept < len(lines):  # these epochs will be trained again
            self._lines[_key(run)] = lines[:kept]
            self._rewrite()
        return training, [_measurement(line) for line in lines[:kept]]

    def _restore(self, training: Training, lines: int) -> int:
        """Load the state that was written, and return how many of the run's lines lead to it."""
        if not lines or not self._checkpoint.exists():
            return 0
        with np.load(self._checkpoint, allow_pickle=False) as state:
            known = int(state["epoch"]) + 1
            if state["run"] != _key(training.run) or known > lines:
                return 0
            training.optimizer.load(self._folder / f"checkpoint-{state['step']}.npz")
            training.network.load_state_dict(state)
        return known

    def _begin(self, settings: Mapping[str, Any], *, force: bool) -> None:
        if self._settings.exists() and not force:
            raise ValueError(occupied(self._folder, "an unfinished comparison", resume=True))
        if self._log.exists() and not force:
            raise ValueError(occupied(self._folder, "a comparison"))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._drop_checkpoint()
        self._log.write_bytes(b"")
        write_json(self._settings, settings)

    def _read(self, settings: Mapping[str, Any]) -> None:
        if not self._settings.exists():
            raise ValueError(
                f"--resume: expected an unfinished comparison, got none in {self._folder}"
            )
        check_same_settings(settings, json.loads(self._settings.read_text(encoding="utf-8")))
        for text in self._log.read_text(encoding="utf-8").splitlines(keepends=True):
            if text.endswith("\n"):
                line = json.loads(text)
                self._lines.setdefault(line["run"], []).append(line)
            else:  # a process that was killed may leave a part of a line
                self._rewrite()

    def _rewrite(self) -> None:
        lines = [json.dumps(line) + "\n" for lines in self._lines.values() for line in lines]
        write_text(self._log, "".join(lines))

    def _drop_checkpoint(self) -> None:
        for pattern in ("checkpoint*.npz", ".checkpoint*"):  # whole files and half-written ones
            for path in self._folder.glob(pattern):
                path.unlink()


def check_same_settings(asked: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise ValueError for the first setting that is not as it was saved."""
    for name, value in json.loads(json.dumps(asked)).items():
        if saved.get(name) != value:
            was = saved.get(name)
            raise ValueError(f"--resume: expected {name} as it was, {was}, got {value}")


def _key(run: Run) -> str:
    norm = "batch norm" if run.batch_norm else "no batch norm"
    return f"{run.contender.name}, lr {run.contender.lr!r}, {norm}, seed {run.seed}"


def _identity(run: Run) -> Line:
    contender = run.contender
    return {
        "run": _key(run),
        "optimizer": contender.name,
        "lr_peak": contender.lr,
        "batch_norm": run.batch_norm,
        "seed": run.seed,
    }


def _plain(measurement: Measurement) -> Line:
    """Return a measurement for JSON, which has no numbers that are not finite: these are None."""
    values = measurement._asdict()
    return {
        name: finite(value) if isinstance(value, float) else value for name, value in values.items()
    }


def _measurement(line: Line) -> Measurement:
    values = {name: line[name] for name in Measurement._fields}
    for name in ("train_loss", "validation_loss", "score"):
        values[name] = math.nan if values[name] is None else values[name]
    return Measurement(**values)
