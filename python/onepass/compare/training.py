"""Training: each contender from the same weights, on the same batches, with the same budget."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onepass._typing import Schedule
from onepass.compare.contenders import Contender
from onepass.compare.data import Split
from onepass.compare.network import Network
from onepass.optim import StepInfo

HIDDEN = (128, 64)
CLASSES = 10
MEASUREMENTS_PER_EPOCH = 4  # together they cost about as much as the training

Show = Callable[[int], object]
"""Told after each measurement how many steps are done."""


def constant(lr: float, _steps: int) -> float:
    """Return the learning rate as it is."""
    return lr


def cosine(peak: float, steps: int) -> Schedule:
    """Return a linear warm-up to the peak, then a cosine's half wave down to a tenth of it."""
    warmup = math.ceil(steps / 20)

    def lr(completed: int) -> float:
        step = completed + 1
        if step <= warmup:
            return peak * step / warmup
        progress = (step - warmup) / (steps - warmup)
        return peak * (0.55 + 0.45 * math.cos(math.pi * progress))

    return lr


SCHEDULES: Mapping[str, Callable[[float, int], float | Schedule]] = {
    "constant": constant,
    "cosine": cosine,
}
"""What becomes of a learning rate over a number of steps."""


@dataclass(frozen=True)
class Budget:
    """What each contender gets."""

    epochs: int = 20
    batch_size: int = 64
    seed: int = 0
    max_grad_norm: float = 1.0
    """Infinity measures the norm and clips nothing."""
    schedule: str = "cosine"
    """One of `SCHEDULES`."""

    def steps(self, split: Split) -> int:
        """Return the steps of one contender."""
        return self.epochs * self._steps_per_epoch(split)

    def measure_every(self, split: Split) -> int:
        """Return the steps from one measurement to the next."""
        return max(1, self._steps_per_epoch(split) // MEASUREMENTS_PER_EPOCH)

    def batches(self, split: Split, rng: np.random.Generator) -> Iterator[npt.NDArray[np.intp]]:
        """Yield the rows of each batch; an epoch's last one has what is left."""
        for _ in range(self.epochs):
            order = rng.permutation(len(split.train_labels))
            yield from np.split(order, self._starts(split)[1:])

    def _steps_per_epoch(self, split: Split) -> int:
        return len(self._starts(split))

    def _starts(self, split: Split) -> range:
        """Return where each batch of an epoch begins."""
        rows = len(split.train_labels)
        alone = rows % self.batch_size == 1  # joins the batch before: one row has no variance
        return range(0, rows - alone, self.batch_size)


class Measurement(NamedTuple):
    """How good the network was after so many steps, and how the last ones went."""

    step: int
    train_loss: float
    """On the whole training split."""
    validation_accuracy: float
    grad_norm: float | None = None
    """Median over the steps since the last measurement, before clipping; None at step 0."""
    lr: float | None = None
    """Of the last step; None at step 0."""
    clipped: int = 0
    """How many of the steps since the last measurement had their gradient clipped."""


@dataclass(frozen=True)
class Result:
    """What became of one contender."""

    contender: Contender
    batch_norm: bool
    curve: Sequence[Measurement]
    """From step 0 to the last, or to the last one with a finite loss."""
    diverged_at: int | None
    """The step at whose measurement the loss was no longer finite."""
    optimizer_seconds: float
    total_seconds: float
    """Of the training, without the measurements."""

    @property
    def final(self) -> Measurement | None:
        """The last measurement, or None for a run that diverged."""
        return self.curve[-1] if self.diverged_at is None else None

    def steps_to(self, accuracy: float) -> int | None:
        """Return the first measured step with this validation accuracy, None if there is none."""
        reached = (point.step for point in self.curve if point.validation_accuracy >= accuracy)
        return next(reached, None)

    @property
    def clipped_share(self) -> float | None:
        """The share of the curve's steps whose gradient was clipped, None where it has no step."""
        steps = self.curve[-1].step
        return sum(point.clipped for point in self.curve) / steps if steps else None


@dataclass(frozen=True)
class Comparison:
    """All results, and what they have in common."""

    budget: Budget
    split: Split
    results: Sequence[Result]

    @property
    def variants(self) -> list[bool]:
        """With BatchNorm or without, in the order of the results."""
        return list(dict.fromkeys(result.batch_norm for result in self.results))


def layer_sizes(split: Split) -> tuple[int, ...]:
    """Return the sizes of the network's layers, pixels and classes included."""
    return split.train_images.shape[1], *HIDDEN, CLASSES


def train(
    contender: Contender, split: Split, budget: Budget, show: Show, *, batch_norm: bool
) -> Result:
    """Train one contender until the budget is used up, or the loss is found not finite."""
    # scikit-learn needs it, so it comes with it
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    weights, order = np.random.default_rng(budget.seed).spawn(2)  # the same for each contender
    network = Network(layer_sizes(split), weights, batch_norm=batch_norm)
    steps, every = budget.steps(split), budget.measure_every(split)
    settings = {**contender.settings, "lr": SCHEDULES[budget.schedule](contender.lr, steps)}
    optimizer = contender.optimizer(network.params, max_grad_norm=budget.max_grad_norm, **settings)
    infos: list[StepInfo] = []  # since the last measurement
    diverged_at = None
    optimizer_seconds = total_seconds = 0.0
    # Products this small gain nothing from threads, and wait for them long where a core is taken.
    # And a run that diverges is a result, not a warning.
    with threadpool_limits(1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
        curve = [_measure(network, split, 0, infos)]
        for step, rows in enumerate(budget.batches(split, order), start=1):
            start = perf_counter()
            _, grad = network.loss_and_grad(split.train_images[rows], split.train_labels[rows])
            before = perf_counter()
            infos.append(optimizer.step(grad))
            after = perf_counter()
            optimizer_seconds += after - before
            total_seconds += after - start
            if step % every == 0 or step == steps:
                measurement = _measure(network, split, step, infos)
                if not math.isfinite(measurement.train_loss):
                    diverged_at = step
                    break
                curve.append(measurement)
                infos.clear()
                show(step)
    return Result(contender, batch_norm, curve, diverged_at, optimizer_seconds, total_seconds)


def _measure(network: Network, split: Split, step: int, infos: Sequence[StepInfo]) -> Measurement:
    norms = [info.grad_norm for info in infos if info.grad_norm is not None]
    return Measurement(
        step,
        network.loss(split.train_images, split.train_labels),
        network.accuracy(split.validation_images, split.validation_labels),
        # One step's norm says little: it is that of a few images.
        grad_norm=median(norms) if norms else None,
        lr=infos[-1].lr if infos else None,
        clipped=sum(info.clipped for info in infos),
    )
