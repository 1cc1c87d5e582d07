"""What the command shows and writes: the best trials, the numbers, the pictures."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from onepass._files import write_text
from onepass.lab._arguments import ALL
from onepass.lab._json import finite, write_json
from onepass.lab._page import Block, Shown, read, render
from onepass.lab._spelling import Spelt
from onepass.lab._tables import Column, print_table
from onepass.lab.compare.contenders import contenders
from onepass.lab.compare.losses import loss_of
from onepass.lab.compare.report import state_kept, versions
from onepass.lab.compare.training import STATE_FORMATS, Recipe, Run
from onepass.lab.tune.picture import SHOWN, draw
from onepass.lab.tune.search import Search, diverged

FILES = ("report.html", "results.json")
ROWS, ROWS_OF_PAGE = 5, 20
IN_PYTHON, AGAIN = "the best in Python", "the same trial again"
CAPTION = (
    "Loss and score are those of the validation rows. The best is chosen by this loss, and so "
    "looks better than it is: another seed tells by how much."
)


def print_best(search: Search, remarks: Sequence[str] = ()) -> None:
    """Print the best trials, and what to write to train as in the first of them."""
    rows = [_row(search, trial) for trial in search.ranking[:ROWS]]
    print_table([*describe(search), *remarks], _columns(search), [rows], CAPTION, keys=2)
    if search.ranking:
        best = search.ranking[0]
        print(f"\n{IN_PYTHON}:\n  {python_line(search, best)}")
        print(f"{AGAIN}:\n  {compare_command(search, best)}\n")


def _columns(search: Search) -> list[Column]:
    score = loss_of(search.settings.recipe.table).score_name
    schedule: list[Column] = [("\nschedule", "left")]
    state: list[Column] = [("\nstate", "left")]
    return [
        ("\ntrial", "right"),
        ("\noptimizer", "left"),
        ("\nlr", "right"),
        ("momentum\nor betas", "left"),
        ("weight\ndecay", "right"),
        *(schedule if _varies(search, "schedule") else []),
        ("batch\nsize", "right"),
        ("hidden\nlayers", "left"),
        ("drop-\nout", "right"),
        ("batch\nnorm", "left"),
        *(state if _varies(search, "state_format") else []),
        ("\nloss", "right"),
        (f"\n{score}", "right"),
    ]


def _varies(search: Search, choice: str) -> bool:
    """Return whether a choice has a column: a single value stands above the table."""
    return len(getattr(search.settings, choice)) > 1


def describe(search: Search) -> list[str]:
    """Return what was searched, in a few lines."""
    settings, recipe = search.settings, search.settings.recipe
    pruned = [trial for trial in search.trials if trial.state == TrialState.PRUNED]
    count = sum(map(diverged, pruned))
    rate = "" if _varies(search, "schedule") else f"learning rate {settings.schedule[0]}, "
    state = "" if _varies(search, "state_format") else settings.state_format[0]
    kept = state_kept(replace(recipe, state_format=state)) if state else ""
    return [
        f"{recipe.table.name}: {len(search.trials):,} trials of up to {recipe.epochs:,} epochs, "
        f"{len(pruned) - count:,} of them pruned, {count:,} diverged, seed {settings.seed}",
        f"{rate}a trial's lr is the peak of its schedule; gradient norm clipped to "
        f"{recipe.max_grad_norm:g}{kept}",
    ]


def python_line(search: Search, trial: FrozenTrial) -> str:
    """Return the optimizer of a trial as a program makes it."""
    run, recipe = search.settings.suggest(trial)
    settings = {**run.contender.settings, "max_grad_norm": recipe.max_grad_norm}
    if state_format := STATE_FORMATS[recipe.state_format]:
        settings["state_format"] = state_format
    arguments = [f"{name}={value!r}" for name, value in settings.items()]
    line = f"op.{run.contender.optimizer.__name__}({', '.join(['params', *arguments])})"
    return f"{line}  # lr: the peak of {schedule}" if (schedule := _schedule(run, recipe)) else line


def _schedule(run: Run, recipe: Recipe) -> str | None:
    """Return the schedule of a trial, None where the rate stays as it is."""
    return recipe.schedule if run.contender.is_scheduled else None


def compare_command(search: Search, trial: FrozenTrial) -> str:
    """Return the command that repeats a trial."""
    run, recipe = search.settings.suggest(trial)
    contender, usual = run.contender, contenders()[run.contender.name].hyperparameters
    chosen = {
        name: value
        for name, value in contender.settings.items()
        if name == "lr" or usual[name] != value
    }
    options: dict[str, Sequence[object]] = {
        "data": [recipe.data],
        "hidden": recipe.hidden,
        "batch-norm" if run.batch_norm else "no-batch-norm": [],
        "epochs": [recipe.epochs],
        "batch-size": [recipe.batch_size or ALL],
        "optimizer": [Spelt(contender.name, chosen)],
    }
    if contender.is_scheduled:
        options["schedule"] = [recipe.schedule]
    if recipe.dropout:
        options["dropout"] = [recipe.dropout]
    if STATE_FORMATS[recipe.state_format]:
        options["state-format"] = [recipe.state_format]
    options |= {"seed": [run.seed], "seeds": [1]}
    words = [word for name, values in options.items() for word in (f"--{name}", *values)]
    return shlex.join(["onepass", "compare", *map(str, words)])


def write(search: Search, folder: Path, command: Sequence[str]) -> list[Path]:
    """Write the page, the pictures and the numbers, and return where they are."""
    page, numbers = (folder / name for name in FILES)
    made_by = {"command": shlex.join(command), **versions(), "optuna": version("optuna")}
    write_json(numbers, {**as_dict(search), "made_by": made_by})
    pictures = draw(search.study, folder)
    write_text(page, _page_of(search, pictures, made_by))
    return [page, *pictures, numbers]


def _page_of(search: Search, pictures: Sequence[Path], facts: dict[str, str]) -> str:
    """Return the report as one HTML file."""
    best = search.ranking[:1]
    findings = [
        f"Best of {len(search.trials):,}: trial {trial.number}, {_row(search, trial)[1]}, with a "
        f"validation loss of {trial.value:.3g}."
        for trial in best
    ]
    return render(
        title=f"onepass tune: {search.settings.recipe.table.name}",
        description=describe(search),
        findings=findings or ["No trial was completed."],
        headings=[
            heading.strip().replace("-\n", "").replace("\n", " ") for heading, _ in _columns(search)
        ],
        rows=[_row(search, trial) for trial in search.ranking[:ROWS_OF_PAGE]],
        best=[0],
        caption=CAPTION,
        blocks=[
            Block(heading.capitalize().replace("python", "Python"), words(search, trial))
            for trial in best
            for heading, words in ((IN_PYTHON, python_line), (AGAIN, compare_command))
        ],
        pictures=[
            Shown(path.stem, *SHOWN[path.stem], read(path), f"{SHOWN[path.stem][0]} of the trials")
            for path in pictures
        ],
        facts=facts,
    )


def as_dict(search: Search) -> dict[str, Any]:
    """Return everything as JSON knows it; a loss that is not finite is None."""
    best = search.ranking[0] if search.ranking else None
    return {
        "settings": search.study.user_attrs["settings"],
        "best": best
        and {
            **_trial_as_dict(search, best),
            "python": python_line(search, best),
        },
        "trials": [_trial_as_dict(search, trial) for trial in search.trials],
    }


def _trial_as_dict(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    losses = trial.intermediate_values
    run, recipe = search.settings.suggest(trial)
    return {
        "number": trial.number,
        "state": "diverged" if diverged(trial) else trial.state.name.lower(),
        "optimizer": run.contender.name,
        "lr": run.contender.lr,
        "momentum": run.contender.momentum,
        "betas": run.contender.betas or None,
        "weight_decay": run.contender.hyperparameters.get("weight_decay"),
        "schedule": _schedule(run, recipe),
        "batch_size": recipe.batch_size,
        "hidden": recipe.hidden,
        "dropout": recipe.dropout,
        "batch_norm": run.batch_norm,
        "state_format": recipe.state_format,
        "compare": compare_command(search, trial),
        "validation_loss": [finite(losses[epoch]) for epoch in sorted(losses)],
        "score": trial.user_attrs.get("score"),
    }


def _row(search: Search, trial: FrozenTrial) -> list[str]:
    run, recipe = search.settings.suggest(trial)
    contender, units = run.contender, recipe.hidden
    rates = contender.betas if contender.momentum is None else [contender.momentum]
    return [
        str(trial.number),
        contender.name,
        f"{contender.lr:g}",
        " ".join(f"{rate:g}" for rate in rates) or "-",
        f"{contender.hyperparameters.get('weight_decay', 0):g}",
        *([_schedule(run, recipe) or "-"] if _varies(search, "schedule") else []),
        str(recipe.batch_size or ALL),
        f"{len(units)} of {min(units)}" + (f"-{max(units)}" if min(units) < max(units) else ""),
        f"{recipe.dropout:g}",
        "yes" if run.batch_norm else "no",
        *([recipe.state_format] if _varies(search, "state_format") else []),
        f"{trial.value:.3g}",
        f"{trial.user_attrs['score']:.1%}",
    ]
