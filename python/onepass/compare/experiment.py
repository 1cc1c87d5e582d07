"""All runs of a comparison, one after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from onepass import search
from onepass._progress import Show
from onepass.compare.contenders import Contender
from onepass.compare.journal import Journal
from onepass.compare.results import Comparison, Entry, Result
from onepass.compare.training import Recipe, Run

RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The learning rates that `tune` tries."""
FACTORS = (0.5, 2.0, 3.0)
"""The multiples of the best of them that it tries then."""


@dataclass
class Experiment:
    """What is to be compared, and as much of it as has been done."""

    recipe: Recipe
    contenders: Sequence[Contender]
    variants: Sequence[bool]
    """With BatchNorm, without, or both."""
    seeds: Sequence[int]
    tune: bool
    """Whether each contender first looks for its learning rate, with a run's budget a trial."""

    def __post_init__(self) -> None:  # noqa: D105
        self.entries = [
            Entry(contender, batch_norm)
            for contender, batch_norm in product(self.contenders, self.variants)
        ]
        self._done = 0

    @property
    def total(self) -> int:
        """The number of runs."""
        return len(self.entries) * (len(self.seeds) + self.tune * (len(RATES) + len(FACTORS)))

    @property
    def comparison(self) -> Comparison:
        """What has been done so far."""
        begun = [entry for entry in self.entries if entry.results]
        return Comparison(self.recipe, begun, planned=len(self.entries) * len(self.seeds))

    def run(self, journal: Journal, show: Show) -> None:
        """Do all runs that the journal does not know."""
        # Seed by seed, so that one that is interrupted has something of everybody.
        for seed in self.seeds:
            for entry in self.entries:
                if self.tune and seed == self.seeds[0]:
                    self._tune(entry, journal, show)
                run = Run(entry.contender, entry.batch_norm, seed)
                entry.results.append(self._result(run, journal, show))

    def _tune(self, entry: Entry, journal: Journal, show: Show) -> None:
        """Look for the learning rate, on a seed that is not reported."""

        def train(lr: float) -> float:
            run = Run(entry.contender.with_lr(lr), entry.batch_norm, max(self.seeds) + 1)
            entry.tried.append(self._result(run, journal, show))
            final = entry.tried[-1].final
            return float("nan") if final is None else final.validation_loss

        try:
            found = search.learning_rate(train, RATES, factors=FACTORS)
        except ValueError:  # all of them diverge: the contender's own stays
            if any(result.final for result in entry.tried):
                raise
        else:
            entry.contender = entry.contender.with_lr(found.best.lr)

    def _result(self, run: Run, journal: Journal, show: Show) -> Result:
        measurements = journal.measurements(run)
        if measurements is None:
            training, measurements = journal.take_up(run, self.recipe)
            for measurement in training.epochs():
                measurements.append(measurement)
                journal.add(training)
                show(self._done + training.spent(measurement), run.contender.name)
        self._done += 1
        return Result.of(run, measurements)
