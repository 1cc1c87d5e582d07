"""The results of runs, and their statistics over seeds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import mean, median, stdev

from onepass.lab.compare.contenders import Contender
from onepass.lab.compare.training import Measurement, Recipe, Run


@dataclass(frozen=True)
class Result:
    """What became of one run."""

    run: Run
    curve: Sequence[Measurement]
    """The measurements, up to the last one with a finite loss."""
    diverged_at: int | None
    """The step at whose measurement a loss was no longer finite."""

    @classmethod
    def of(cls, run: Run, measurements: Sequence[Measurement]) -> "Result":
        """Return the result of a run that is over."""
        last = measurements[-1]
        if not last.diverged:
            return cls(run, measurements, None)
        return cls(run, measurements[:-1], last.step)

    @property
    def final(self) -> Measurement | None:
        """The last measurement, or None for a run that diverged."""
        return self.curve[-1] if self.diverged_at is None else None

    def steps_to(self, score: float) -> int | None:
        """Return the first measured step with this score, None if there is none."""
        return next((point.step for point in self.curve if point.score >= score), None)

    @property
    def clipped_share(self) -> float | None:
        """The share of the curve's steps whose gradient was clipped, None where it has no step."""
        steps = self.curve[-1].step
        return sum(point.clipped for point in self.curve) / steps if steps else None


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, the standard deviation if there are several, and the median."""

    mean: float
    deviation: float | None
    median: float
    """What one slow run does not move."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Return the spread of these values, None if there are none."""
        if not values:
            return None
        return cls(mean(values), stdev(values) if len(values) > 1 else None, median(values))


@dataclass(frozen=True, eq=False)
class Tried:
    """A learning rate that a contender tried."""

    lr: float
    results: Sequence[Result]
    """One result per seed; fewer if a run diverged, after which no other is run."""

    @property
    def losses(self) -> list[float] | None:
        """The validation loss that each run ends with, None where one diverged."""
        finals = [result.final for result in self.results]
        if not finals or None in finals:
            return None
        return [final.validation_loss for final in finals if final is not None]

    @property
    def loss(self) -> float | None:
        """The mean of the losses."""
        return None if self.losses is None else mean(self.losses)

    @property
    def standard_error(self) -> float:
        """The standard error of the mean over the seeds."""
        return _standard_error(self.losses or [])

    def is_as_good_as(self, best: "Tried") -> bool:
        """Whether it is no worse than the best rate within noise.

        Its mean may be larger by one standard error of the best rate's mean, and by one standard
        error of the difference itself: rates have their seeds in common, so a difference that all
        seeds agree on is no noise, however much the seeds differ.
        """
        if self.losses is None or best.losses is None:
            return False
        excess = [mine - other for mine, other in zip(self.losses, best.losses, strict=True)]
        return mean(excess) <= min(best.standard_error, _standard_error(excess))


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


def best_of(tried: Iterable[Tried]) -> Tried | None:
    """Return the rate with the smallest mean loss, None where all diverged."""
    ranked = [(each.loss, each.lr, each) for each in tried if each.loss is not None]
    return min(ranked, default=(None, None, None))[-1]


def choose(tried: Sequence[Tried]) -> Tried | None:
    """Return the smallest rate that is as good as the best one within noise, None if all diverged.

    That is the one-standard-error rule, of L. Breiman, J. Friedman, R. Olshen and C. Stone,
    "Classification and Regression Trees", 1984, section 3.4.3; T. Hastie, R. Tibshirani and
    J. Friedman, "The Elements of Statistical Learning", 2nd edition, 2009, section 7.10.
    """
    if (best := best_of(tried)) is None:
        return None
    return min((each for each in tried if each.is_as_good_as(best)), key=lambda each: each.lr)


@dataclass
class Entry:
    """A contender with BatchNorm or without, and its results."""

    contender: Contender
    batch_norm: bool
    results: list[Result] = field(default_factory=list)
    """One result per seed."""
    tried: list[Tried] = field(default_factory=list)
    """The learning rates that the contender chose its own from."""

    @property
    def is_at_the_edge(self) -> bool:
        """Whether its rate, or the best one, is the lowest or the highest that it tried."""
        rates = [each.lr for each in self.tried]
        best = best_of(self.tried)
        return best is not None and not {best.lr, self.contender.lr}.isdisjoint(
            (min(rates), max(rates))
        )

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return sum(result.diverged_at is not None for result in self.results)

    def spread(self, value: Callable[[Result], float | None]) -> Spread | None:
        """Return the mean over the runs that have such a value."""
        values = [value(result) for result in self.results]
        return Spread.of([value for value in values if value is not None])

    def steps_to(self, score: float) -> list[int | None]:
        """Return each run's steps to this score, None for those that did not reach it."""
        return [result.steps_to(score) for result in self.results]

    def final(self, value: Callable[[Measurement], float]) -> Spread | None:
        """Return the mean of the final values of the runs that did not diverge."""
        return self.spread(lambda result: None if result.final is None else value(result.final))


@dataclass(frozen=True)
class Comparison:
    """All results, and what they have in common."""

    recipe: Recipe
    entries: Sequence[Entry]
    planned: int
    """How many runs there are when the comparison is whole."""
    remarks: Sequence[str] = ()
    """Remarks on what was asked for."""

    @property
    def done(self) -> int:
        """How many runs there are."""
        return sum(len(entry.results) for entry in self.entries)

    @property
    def variants(self) -> list[bool]:
        """With BatchNorm or without, in the order of the results."""
        return list(dict.fromkeys(entry.batch_norm for entry in self.entries))

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        seeds = (result.run.seed for entry in self.entries for result in entry.results)
        return list(dict.fromkeys(seeds))
