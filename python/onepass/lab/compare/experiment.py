"""All runs of a comparison, one after another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from onepass._progress import Show
from onepass.lab import search
from onepass.lab.compare.contenders import Contender
from onepass.lab.compare.journal import Journal
from onepass.lab.compare.results import Comparison, Entry, Result, Tried, choose
from onepass.lab.compare.training import Recipe, Run

RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The learning rates that `tune` tries."""
FACTORS = (0.5, 2.0, 3.0)
"""The multiples of the best of these rates that `tune` tries next."""
SEEDS_A_RATE = 3
"""With how many seeds `tune` trains each rate. These seeds are not reported.

A seed's split leaves few validation rows (36 of the wines), so a single seed chooses by luck.
"""


@dataclass
class Experiment:
    """What is to be compared, and as much of it as has been done."""

    recipe: Recipe
    contenders: Sequence[Contender]
    variants: Sequence[bool]
    """Whether there is BatchNorm, for each of one or two variants."""
    seeds: Sequence[int]
    tune: bool
    """Whether each contender first looks for its learning rate, with a run's budget a seed."""
    remarks: Sequence[str] = ()
    """Remarks for the report on what was asked for."""

    def __post_init__(self) -> None:  # noqa: D105
        self.entries = [
            Entry(contender, batch_norm)
            for contender, batch_norm in product(self.contenders, self.variants)
        ]
        self._done = 0

    @property
    def total(self) -> int:
        """The number of runs."""
        trials = SEEDS_A_RATE * (len(RATES) + len(FACTORS)) if self.tune else 0
        return len(self.entries) * (len(self.seeds) + trials)

    @property
    def comparison(self) -> Comparison:
        """What has been done so far."""
        begun = [entry for entry in self.entries if entry.results]
        planned = len(self.entries) * len(self.seeds)
        return Comparison(self.recipe, begun, planned, self.remarks)

    def run(self, journal: Journal, show: Show) -> None:
        """Do all runs that the journal does not know."""
        # Seed by seed, so that an interrupted comparison has some runs of every contender.
        for seed in self.seeds:
            for entry in self.entries:
                if self.tune and seed == self.seeds[0]:
                    self._tune(entry, journal, show)
                run = Run(entry.contender, entry.batch_norm, seed)
                entry.results.append(self._result(run, journal, show))

    def _tune(self, entry: Entry, journal: Journal, show: Show) -> None:
        """Look for the learning rate, on seeds that are not reported."""
        first = max(self.seeds) + 1

        def train(lr: float) -> float:
            results: list[Result] = []
            for seed in range(first, first + SEEDS_A_RATE):
                run = Run(entry.contender.with_lr(lr), entry.batch_norm, seed)
                results.append(self._result(run, journal, show))
                if results[-1].final is None:
                    break
            self._done += SEEDS_A_RATE - len(results)
            entry.tried.append(Tried(lr, results))
            loss = entry.tried[-1].loss
            return math.nan if loss is None else loss

        try:
            search.learning_rate(train, RATES, factors=FACTORS)
        except ValueError:
            if len(entry.tried) < len(RATES) or choose(entry.tried):
                raise
        if (chosen := choose(entry.tried)) is not None:  # else the contender keeps its own
            entry.contender = entry.contender.with_lr(chosen.lr)

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
