"""What the command shows and writes: the best trials, the numbers, the pictures."""

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from onepass.lab._json import finite, write_json
from onepass.lab._tables import Column, print_table
from onepass.lab.compare.losses import loss_of
from onepass.lab.compare.report import versions
from onepass.lab.tune.picture import draw
from onepass.lab.tune.search import Search, diverged

ROWS = 5
CAPTION = (
    "The best is chosen by its loss on the validation rows, and so looks better than it is: "
    "another seed tells by how much."
)


def print_best(search: Search) -> None:
    """Print the best trials, and what to write to train as in the first of them."""
    score = loss_of(search.settings.recipe.table).score_name
    columns: list[Column] = [
        ("\ntrial", "right"),
        ("\noptimizer", "left"),
        ("\nlr", "right"),
        ("\nmomentum", "right"),
        ("batch\nsize", "right"),
        ("\nwidth", "right"),
        ("validation\nloss", "right"),
        (f"\n{score}", "right"),
    ]
    print_table(describe(search), columns, [map(_row, search.ranking[:ROWS])], CAPTION)
    if search.ranking:
        best = search.ranking[0]
        print(f"\nthe best in Python:\n  {python_line(search, best)}")
        if command := compare_command(search, best):
            print(f"the same again:\n  {command}")
        print()


def describe(search: Search) -> list[str]:
    """Return what was searched, in a few lines."""
    settings, recipe = search.settings, search.settings.recipe
    pruned = [trial for trial in search.trials if trial.state == TrialState.PRUNED]
    count = sum(map(diverged, pruned))
    return [
        f"{recipe.data}: {len(search.trials):,} trials of up to {recipe.epochs:,} epochs, "
        f"{len(pruned) - count:,} of them pruned, {count:,} diverged, seed {settings.seed}",
        "two hidden layers of this width with batch norm, gradient norm clipped to "
        f"{recipe.max_grad_norm:g}",
        f"learning rate {recipe.schedule}, with the lr below as its peak",
    ]


def python_line(search: Search, trial: FrozenTrial) -> str:
    """Return the optimizer of a trial as a program makes it."""
    run, recipe = search.settings.suggest(trial)
    settings = {**run.contender.settings, "max_grad_norm": recipe.max_grad_norm}
    arguments = [f"{name}={value!r}" for name, value in settings.items()]
    return f"op.{run.contender.optimizer.__name__}({', '.join(['params', *arguments])})"


def compare_command(search: Search, trial: FrozenTrial) -> str | None:
    """Return the command that repeats a trial, None if it has what `onepass compare` cannot set."""
    if "momentum" in trial.params:
        return None
    run, recipe = search.settings.suggest(trial)
    options = {
        "data": [recipe.data],
        "hidden": recipe.hidden,
        "epochs": [recipe.epochs],
        "batch-size": [recipe.batch_size],
        "optimizer": [run.contender.name],
        "lr": [run.contender.lr],
        "seed": [run.seed],
        "seeds": [1],
    }
    words = [word for name, values in options.items() for word in (f"--{name}", *values)]
    return shlex.join(["onepass", "compare", *map(str, words)])


def write(search: Search, folder: Path, command: Sequence[str]) -> list[Path]:
    """Write the pictures and the numbers, and return where they are."""
    numbers = folder / "results.json"
    made_by = {"command": shlex.join(command), **versions(), "optuna": version("optuna")}
    write_json(numbers, {**as_dict(search), "made_by": made_by})
    return [*draw(search.study, folder), numbers]


def as_dict(search: Search) -> dict[str, Any]:
    """Return everything as JSON knows it; a loss that is not finite is None."""
    best = search.ranking[0] if search.ranking else None
    return {
        "settings": search.study.user_attrs["settings"],
        "best": best
        and {
            **_trial_as_dict(best),
            "python": python_line(search, best),
            "compare": compare_command(search, best),
        },
        "trials": [_trial_as_dict(trial) for trial in search.trials],
    }


def _trial_as_dict(trial: FrozenTrial) -> dict[str, Any]:
    losses = trial.intermediate_values
    return {
        "number": trial.number,
        "state": "diverged" if diverged(trial) else trial.state.name.lower(),
        **trial.params,
        "validation_loss": [finite(losses[epoch]) for epoch in sorted(losses)],
        "score": trial.user_attrs.get("score"),
    }


def _row(trial: FrozenTrial) -> list[str]:
    params = trial.params
    return [
        str(trial.number),
        params["optimizer"],
        f"{params['lr']:.2g}",
        f"{params['momentum']:.2g}" if "momentum" in params else "-",
        str(params["batch_size"]),
        str(params["width"]),
        f"{trial.value:.3g}",
        f"{trial.user_attrs['score']:.1%}",
    ]
