"""A study for every optimizer by itself, and the table of what the best trials come to."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onepass._progress import Show
from onepass.lab._json import write_json
from onepass.lab._tables import Column, print_table
from onepass.lab.compare.data import data as data_of
from onepass.lab.compare.losses import loss_of
from onepass.lab.compare.report import percent, versions
from onepass.lab.compare.results import Result, Spread
from onepass.lab.compare.training import Training
from onepass.lab.tune.report import as_dict, compare_command, describe
from onepass.lab.tune.search import Search
from onepass.lab.tune.space import Settings

SEEDS = 3
"""With how many seeds the best trial is trained again. The search has seen none of them."""
CAPTION = (
    "Means over the seeds, ± the standard deviation. Loss and score are those of the validation "
    "rows; an optimizer's settings and its network are those of the best of its own trials."
)


@dataclass
class Outcome:
    """The study of one optimizer on one data set, and its best trial with other seeds."""

    search: Search
    results: Sequence[Result]
    """One result for each seed; none where every trial diverged."""

    @property
    def name(self) -> str:
        """The optimizer's name."""
        return self.search.settings.optimizers[0]

    @property
    def loss(self) -> Spread | None:
        """The validation loss of the runs that did not diverge."""
        finals = [result.final for result in self.results]
        return Spread.of([final.validation_loss for final in finals if final is not None])

    @property
    def score(self) -> Spread | None:
        """The score of the runs that did not diverge."""
        finals = [result.final for result in self.results]
        return Spread.of([final.score for final in finals if final is not None])


def studies(
    settings: Settings, data: Sequence[str], folder: Path, *, resume: bool, force: bool = False
) -> Iterator[Search]:
    """Yield the study of each optimizer on each data set, begun or, to resume, taken up again."""
    folders = {
        (each, name): folder / data_of(each).name / name
        for each in data
        for name in settings.optimizers
    }
    there = {key for key, path in folders.items() if (path / "study.log").exists()}
    if resume and not there:
        raise ValueError(f"--resume: expected a study, got none in {folder}")
    for (each, name), path in folders.items():
        own = replace(settings, data=each, content=data_of(each).digest, optimizers=(name,))
        yield Search(own, path, resume=resume and (each, name) in there, force=force)


def run(
    searches: Sequence[Search], show: Show, *, budget: Mapping[str, float]
) -> Iterator[Outcome]:
    """Yield the outcome of each study once it has used its budget, of trials or of seconds."""
    (whole,) = budget.values()
    for number, search in enumerate(searches):
        before = number * whole

        def shown(done: float, name: str, before: float = before) -> None:
            show(before + done, name)

        search.run(shown, **budget)
        yield Outcome(search, list(_train_best(search)))


def _train_best(search: Search) -> Iterator[Result]:
    """Yield the results of the best trial with other seeds."""
    if search.ranking:
        run, recipe = search.settings.suggest(search.ranking[0])
        for seed in range(run.seed + 1, run.seed + 1 + SEEDS):
            again = replace(run, seed=seed)
            yield Result.of(again, list(Training(again, recipe).epochs()))


def print_outcomes(outcomes: Sequence[Outcome], remarks: Sequence[str]) -> None:
    """Print a row for each optimizer, with two columns for each data set."""
    data = list(dict.fromkeys(outcome.search.settings.data for outcome in outcomes))
    columns: list[Column] = [("\noptimizer", "left")]
    for each in data:
        table = next(o for o in outcomes if o.search.settings.data == each).search.settings.recipe
        score = loss_of(table.table).score_name
        columns += [("\nloss", "right"), (f"{table.table.name}\n{score}", "right")]
    rows: dict[str, list[str]] = {}
    for outcome in outcomes:
        loss = "diverged" if outcome.loss is None else f"{outcome.loss.mean:z.2g}"
        lost = SEEDS - sum(result.final is not None for result in outcome.results)
        if outcome.loss is not None and lost:
            loss += f" ({lost} div.)"
        rows.setdefault(outcome.name, []).extend((loss, percent(outcome.score, 1)))
    trials = [len(outcome.search.trials) for outcome in outcomes]
    settings = outcomes[0].search.settings
    first, last = settings.seed + 1, settings.seed + SEEDS
    lines = [
        f"{_span(trials)} trials of up to {settings.epochs:,} epochs for each optimizer and data "
        f"set, seed {settings.seed}; the best trained again with the seeds {first} to {last}",
        *describe(outcomes[0].search)[1:],
        *remarks,
    ]
    cells = [[name, *row] for name, row in rows.items()]
    print_table(lines, columns, [cells], CAPTION)
    print()


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def write(outcomes: Sequence[Outcome], folder: Path, command: Sequence[str]) -> list[Path]:
    """Write the numbers, and return where they are."""
    numbers = folder / "results.json"
    made_by = {"command": shlex.join(command), **versions(), "optuna": version("optuna")}
    write_json(numbers, {"studies": list(map(_as_dict, outcomes)), "made_by": made_by})
    return [numbers]


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    ranking = outcome.search.ranking
    finals = [(result.run.seed, result.final) for result in outcome.results]
    return {
        **as_dict(outcome.search),
        "compare": compare_command(outcome.search, ranking[0]) if ranking else None,
        "again": [
            {
                "seed": seed,
                "validation_loss": None if final is None else final.validation_loss,
                "score": None if final is None else final.score,
            }
            for seed, final in finals
        ],
    }
