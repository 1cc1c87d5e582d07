"""What came out of the runs, and what seeds have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from onepass.compare.contenders import Contender
from onepass.compare.training import Measurement, Recipe, Run


@dataclass(frozen=True)
class Result:
    """What became of one run."""

    run: Run
    curve: Sequence[Measurement]
    """From the first measurement to the last, or to the last one with a finite loss."""
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
    """A mean over seeds, and the standard deviation where there are several."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Return that of these values, None where there are none."""
        if not values:
            return None
        return cls(mean(values), stdev(values) if len(values) > 1 else None)


@dataclass
class Entry:
    """A contender with BatchNorm or without, and its results."""

    contender: Contender
    batch_norm: bool
    results: list[Result] = field(default_factory=list)
    """One a seed."""
    tried: list[Result] = field(default_factory=list)
    """The runs that chose its learning rate."""

    @property
    def diverged(self) -> int:
        """How many runs did."""
        return sum(result.diverged_at is not None for result in self.results)

    def spread(self, value: Callable[[Result], float | None]) -> Spread | None:
        """Return the mean over the runs that have such a value."""
        values = [value(result) for result in self.results]
        return Spread.of([value for value in values if value is not None])

    def steps_to(self, score: float) -> list[int | None]:
        """Return each run's steps to this score, None for those that did not reach it."""
        return [result.steps_to(score) for result in self.results]

    def final(self, value: Callable[[Measurement], float]) -> Spread | None:
        """Return the mean over the runs that did not diverge, of what they end with."""
        return self.spread(lambda result: None if result.final is None else value(result.final))


@dataclass(frozen=True)
class Comparison:
    """All results, and what they have in common."""

    recipe: Recipe
    entries: Sequence[Entry]
    planned: int
    """How many runs there are when it is whole."""

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
        """Those of the runs."""
        seeds = (result.run.seed for entry in self.entries for result in entry.results)
        return list(dict.fromkeys(seeds))
