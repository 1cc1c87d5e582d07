"""Training: one contender, from a seed's weights, on its batches, until the budget is used up."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onepass._typing import Schedule
from onepass.lab.compare.contenders import Contender
from onepass.lab.compare.data import Data, Split, data
from onepass.lab.compare.losses import loss_of
from onepass.lab.compare.network import Network
from onepass.lab.compare.schedules import SCHEDULES
from onepass.optim import StepInfo
from onepass.schedules import ReduceOnPlateau

STATE_FORMATS = {"float32": None, "bf16": "bf16", "q8": "q8"}
"""The optimizers' `state_format` by the names that the commands give them."""
STEPS_OF_A_BUDGET_IN_SECONDS = 10_000
"""With a budget of seconds, the time is mapped onto this many steps of the schedule."""


@dataclass(frozen=True)
class Recipe:
    """What all runs of a comparison have in common."""

    data: str = "digits"
    """The name of the data set, one of `DATA`, or the path of a file."""
    hidden: tuple[int, ...] = (128, 64)
    """The units of each hidden layer."""
    dropout: float = 0.0
    """The share of each hidden layer's outputs that training leaves out."""
    epochs: int = 20
    """A run's budget as passes over the training rows."""
    steps: int | None = None
    """The budget in steps, instead of epochs."""
    seconds: float | None = None
    """The budget in seconds of training alone."""
    batch_size: int | None = 64
    """Rows per step; None for all of them."""
    schedule: str = "cosine"
    """The name of the schedule, one of `SCHEDULES`."""
    max_grad_norm: float = 1.0
    """The norm that gradients are clipped to; infinity measures the norm and clips nothing."""
    state_format: str = "float32"
    """What the optimizers' state is kept in, one of `STATE_FORMATS`."""

    @property
    def table(self) -> Data:
        """The data."""
        return data(self.data)

    def layer_sizes(self, split: Split) -> tuple[int, ...]:
        """Return the sizes of the network's layers, inputs and outputs included."""
        return split.train_inputs.shape[1], *self.hidden, self.table.classes or 1

    def all_steps(self, rows: int) -> int:
        """Return how many steps a run on so many rows may take if the budget is not in seconds."""
        return self.steps or self.epochs * self.steps_per_epoch(rows)

    def steps_per_epoch(self, rows: int) -> int:
        """Return how many batches `rows` make."""
        return len(self._starts(rows))

    def batches(self, rows: int, rng: np.random.Generator) -> list[npt.NDArray[np.intp]]:
        """Return the rows of each batch of an epoch; the last one has what is left."""
        return np.split(rng.permutation(rows), self._starts(rows)[1:])

    def _starts(self, rows: int) -> range:
        size = self.batch_size or rows
        alone = size > 1 and rows % size == 1  # it joins the batch before: BatchNorm needs two
        return range(0, rows - alone, size)


@dataclass(frozen=True)
class Run:
    """One training: the contender with its learning rate, with BatchNorm or not, and the seed."""

    contender: Contender
    batch_norm: bool
    seed: int
    """The seed of the split, the weights and the batches."""


class Measurement(NamedTuple):
    """How good the network was after an epoch, and how its steps went."""

    epoch: int
    step: int
    """The number of steps so far."""
    train_loss: float
    """The loss on all training rows; not finite if the run has diverged."""
    validation_loss: float
    score: float
    """The score on the validation rows."""
    grad_norm: float | None
    """The median norm over the epoch's steps, before clipping; None before the first step."""
    lr: float | None
    """The learning rate of the last step; None before the first."""
    clipped: int
    """How many of the epoch's steps had their gradient clipped."""
    gradient_seconds: float
    """The time spent in all forward and backward passes so far."""
    update_seconds: float
    """The time spent in all optimizer steps so far."""

    @property
    def diverged(self) -> bool:
        """Whether a loss is no longer finite."""
        return not (math.isfinite(self.train_loss) and math.isfinite(self.validation_loss))

    @property
    def seconds(self) -> float:
        """The time spent in training so far; measuring is not part of it."""
        return self.gradient_seconds + self.update_seconds


class Training:
    """A run under way, which can stop after any epoch and go on later from its state."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self.run, self.recipe = run, recipe
        self._split = recipe.table.load(run.seed)
        self._rows = len(self._split.train_inputs)
        self.network = Network(
            recipe.layer_sizes(self._split),
            np.random.default_rng(run.seed),
            loss_of(recipe.table),
            batch_norm=run.batch_norm,
            dropout=recipe.dropout,
        )
        self._lr = self._schedule() if run.contender.is_scheduled else run.contender.lr
        settings = {
            "max_grad_norm": recipe.max_grad_norm,
            "state_format": STATE_FORMATS[recipe.state_format],
            **run.contender.settings,
            "lr": self._lr,
        }
        params, self._grads = _as_seen_by(run.contender, self.network)
        self.optimizer = run.contender.optimizer(params, **settings)
        self.last: Measurement | None = None
        self._gradient_seconds = self._update_seconds = 0.0

    def go_on_from(self, last: Measurement) -> None:
        """Go on after a measurement, network and optimizer being as they were then."""
        self.last = last
        self._gradient_seconds, self._update_seconds = last.gradient_seconds, last.update_seconds

    def epochs(self) -> Iterator[Measurement]:
        """Train epoch by epoch; the first measurement is that of the untrained network."""
        # scikit-learn needs it, so it comes with it
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        # Products this small gain nothing from threads, and wait for them long where a core is
        # taken. And a run that diverges is a result, not a warning.
        with threadpool_limits(1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
            if self.last is None:
                self.last = Measurement(0, 0, *self._evaluate(), None, None, 0, 0.0, 0.0)
                yield self.last
            while not self.done:
                self.last = self._epoch(self.last)
                yield self.last

    @property
    def done(self) -> bool:
        """Whether the budget is used up, or the run has diverged."""
        return self.last is not None and (self.last.diverged or self.spent(self.last) >= 1)

    def spent(self, now: Measurement) -> float:
        """Return which share of the budget is used."""
        return self._share(now.step)

    def _epoch(self, before: Measurement) -> Measurement:
        split, epoch = self._split, before.epoch + 1
        infos: list[StepInfo] = []
        # Each epoch has generators of its own, so that a run can go on from any; and dropout has
        # another one than the batches, so that these are the same with it and without.
        rng, dropout_rng = (
            np.random.default_rng((self.run.seed, epoch, *more)) for more in ((), (1,))
        )
        for rows in self.recipe.batches(self._rows, rng):
            start = perf_counter()
            inputs, targets = split.train_inputs[rows], split.train_targets[rows]
            self.network.loss_and_grad(inputs, targets, dropout_rng)
            middle = perf_counter()
            infos.append(self.optimizer.step(self._grads))
            self._gradient_seconds += middle - start
            self._update_seconds += perf_counter() - middle
            if self._share(before.step + len(infos)) >= 1:
                break
        train_loss, validation_loss, score = self._evaluate()
        if isinstance(self._lr, ReduceOnPlateau):
            self._lr.report(validation_loss)
        norms = [info.grad_norm for info in infos if info.grad_norm is not None]
        return Measurement(
            epoch,
            before.step + len(infos),
            train_loss,
            validation_loss,
            score,
            # The norm of a single step says little, since it is that of a few rows.
            grad_norm=median(norms),
            lr=infos[-1].lr,
            clipped=sum(info.clipped for info in infos),
            gradient_seconds=self._gradient_seconds,
            update_seconds=self._update_seconds,
        )

    def _share(self, steps: int) -> float:
        """Return which share of the budget so many steps and the time so far have used."""
        if self.recipe.seconds is not None:
            return self._seconds / self.recipe.seconds
        return steps / self.recipe.all_steps(self._rows)

    def _evaluate(self) -> tuple[float, float, float]:
        split, network = self._split, self.network
        averages = self.optimizer.own_average  # the weights that its training is for
        with self.optimizer.averaged() if averages else nullcontext():
            train_loss, _ = network.evaluate(split.train_inputs, split.train_targets)
            return train_loss, *network.evaluate(split.validation_inputs, split.validation_targets)

    def _schedule(self) -> Schedule:
        recipe = self.recipe
        make, peak = SCHEDULES[recipe.schedule], self.run.contender.lr
        if recipe.seconds is None:
            return make(peak, recipe.all_steps(self._rows))
        steps = STEPS_OF_A_BUDGET_IN_SECONDS
        lr, seconds = make(peak, steps), recipe.seconds
        if isinstance(lr, ReduceOnPlateau):
            return lr
        return lambda _: lr(int(steps * self._seconds / seconds))

    @property
    def _seconds(self) -> float:
        return self._gradient_seconds + self._update_seconds


def _as_seen_by(contender: Contender, network: Network) -> tuple[Any, Any]:
    """Return the network's parameters and gradients in the structure that a rule is given."""
    row, settings = contender.optimizer.row, contender.hyperparameters
    if row.is_directed(settings):  # it steps matrices, and leaves the rest to AdamW
        (matrices, rest), grads = (
            [[array for array in arrays if (array.ndim > 1) == many] for many in (True, False)]
            for arrays in (network.arrays, network.grad_arrays)
        )
        return [{"params": matrices}, {"params": rest, "use_muon": False}], grads
    if row.measures(settings) or row.factored:  # it is to see each layer, its norm and its axes
        return network.arrays, network.grad_arrays
    return network.params, network.grads
