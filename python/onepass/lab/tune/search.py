"""The study: how a trial is judged, and how the study is kept on disk."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from onepass._progress import Show
from onepass.lab._folders import occupied
from onepass.lab.compare.journal import check_same_settings
from onepass.lab.compare.training import Measurement, Training
from onepass.lab.tune.space import Settings

WARMUP_SHARE = 0.2
"""The share of a trial's epochs in which it is not pruned: a slow start may still win."""


class Search:
    """A study in a folder: every epoch of every trial is on disk as soon as it is over.

    A trial that was interrupted is forgotten. Interrupted and resumed or not, the same settings
    make the same trials.

    Parameters
    ----------
    settings : Settings
    folder : Path
    resume : bool
        Go on with the folder's study; else it must hold none.
    force : bool
        Replace the folder's study.
    """

    def __init__(
        self, settings: Settings, folder: Path, *, resume: bool, force: bool = False
    ) -> None:
        self.settings = settings
        log = folder / "study.log"
        is_there = log.exists() and log.stat().st_size > 0
        if resume and not is_there:
            raise ValueError(f"--resume: expected a study, got none in {folder}")
        if is_there and force:
            log.unlink()
            is_there = False
        if is_there and not resume:
            raise ValueError(occupied(folder, "a study", resume=True))
        folder.mkdir(parents=True, exist_ok=True)
        if is_there:
            _drop_half_a_line(log)
        open_study = optuna.load_study if resume else optuna.create_study
        self.study = open_study(
            storage=JournalStorage(JournalFileBackend(str(log))),
            study_name="onepass tune",
            pruner=optuna.pruners.MedianPruner(
                n_warmup_steps=math.ceil(WARMUP_SHARE * settings.epochs)
            ),
        )
        self._agree_on(settings)
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):  # when it was killed
            self.study.tell(trial.number, state=TrialState.FAIL)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials that are over, completed or pruned."""
        return self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))

    @property
    def ranking(self) -> list[FrozenTrial]:
        """The completed trials, the best first."""
        complete = self.study.get_trials(states=(TrialState.COMPLETE,))
        return sorted(complete, key=lambda trial: (trial.value, trial.number))

    def run(self, show: Show, *, trials: float = math.inf, seconds: float = math.inf) -> None:
        """Try until there are so many trials, or for so many seconds."""
        start, finished = perf_counter(), len(self.trials)

        def objective(trial: Trial) -> float:
            run, recipe = self.settings.suggest(trial)
            training = Training(run, recipe)
            for measurement in training.epochs():
                trials_done = finished + training.spent(measurement)
                seconds_done = min(perf_counter() - start, seconds)
                show(trials_done if trials < math.inf else seconds_done, run.contender.name)
                _report(trial, measurement, training.done)
            trial.set_user_attr("score", measurement.score)
            return measurement.validation_loss

        while finished < trials and perf_counter() - start < seconds:
            # Each trial has a sampler of its own: a common one would begin anew with every resume.
            seed = np.random.SeedSequence((self.settings.seed, finished)).generate_state(1).item()
            self.study.sampler = optuna.samplers.TPESampler(seed=seed)
            self.study.optimize(objective, n_trials=1)
            finished += 1

    def _agree_on(self, settings: Settings) -> None:
        asked = asdict(settings)
        if saved := self.study.user_attrs.get("settings"):
            check_same_settings(asked, saved)
        self.study.set_user_attr("settings", json.loads(json.dumps(asked)))


def _drop_half_a_line(log: Path) -> None:
    """Cut off what a process that was killed has begun to write."""
    written = log.read_bytes()
    whole = written.rfind(b"\n") + 1
    if whole < len(written):
        with log.open("r+b") as file:
            file.truncate(whole)


def diverged(trial: FrozenTrial) -> bool:
    """Return whether the loss of a trial became infinite or NaN."""
    losses = trial.intermediate_values
    return not math.isfinite(losses[max(losses)])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from writing a line per trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _report(trial: Trial, measurement: Measurement, last: bool) -> None:
    """Tell the study about an epoch, and end the trial if it is not worth another."""
    loss = math.nan if measurement.diverged else measurement.validation_loss
    trial.report(loss, measurement.epoch)
    if not math.isfinite(loss) or (not last and trial.should_prune()):
        raise optuna.TrialPruned
