"""What the command shows and writes: the table, the numbers, the page."""

import math
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onepass import runtime
from onepass._files import write_text
from onepass.lab._json import finite, write_json
from onepass.lab._picture import save_png
from onepass.lab._tables import Column
from onepass.lab._tables import print_table as print_rows
from onepass.lab.compare import page
from onepass.lab.compare.experiment import SEEDS_A_RATE
from onepass.lab.compare.losses import loss_of
from onepass.lab.compare.network import count_parameters
from onepass.lab.compare.picture import NAMES, draw_curves
from onepass.lab.compare.results import Comparison, Entry, Result, Spread, choose
from onepass.lab.compare.training import STATE_FORMATS, Measurement, Recipe
from onepass.optim._storage import SMALL

FILES = ("report.html", "curves.png", "results.json")
PACKAGES = ("numpy", "scikit-learn", "matplotlib")


def print_table(comparison: Comparison) -> None:
    """Print one row an entry."""
    headings: list[Column] = [
        (heading, "left" if number < 2 else "right")
        for number, (heading, _) in enumerate(columns(comparison))
    ]
    print_rows(describe(comparison), headings, [rows(comparison)], page.CAPTION, keys=2)


def columns(comparison: Comparison) -> list[tuple[str, Callable[[Entry], str]]]:
    """Return the headings of the table, and what stands below them."""
    goal, loss = comparison.recipe.table.goal, loss_of(comparison.recipe.table)
    return [
        ("\noptimizer", lambda entry: entry.contender.name),
        ("batch\nnorm", lambda entry: "yes" if entry.batch_norm else "no"),
        ("\nlr", lambda entry: f"{entry.contender.lr:g}"),
        ("train\nloss", _loss),
        (f"validation\n{loss.score_name}", lambda entry: percent(entry.final(_score), 1)),
        (f"steps\nto {goal:.0%}", lambda entry: _steps_to(entry, goal)),
        ("steps\nclipped", lambda entry: percent(entry.spread(_clipped_share))),
        ("ms in\nupdates", lambda entry: _time(entry.final(_update_ms), 1)),
        ("ms in\nall", lambda entry: _time(entry.final(_all_ms))),
    ]


def rows(comparison: Comparison) -> list[list[str]]:
    """Return the table's cells."""
    return [[cell(entry) for _, cell in columns(comparison)] for entry in comparison.entries]


def describe(comparison: Comparison) -> list[str]:
    """Return what was compared, in a few lines."""
    recipe, seeds = comparison.recipe, comparison.seeds
    split = recipe.table.load(seeds[0])
    train, validation = len(split.train_inputs), len(split.validation_inputs)
    sizes = recipe.layer_sizes(split)
    dropout = f", dropout {recipe.dropout:g}" if recipe.dropout else ""
    networks = [
        f"network {'-'.join(map(str, sizes))} {NAMES[variant]}{dropout}: "
        f"{count_parameters(sizes, variant):,} parameters"
        for variant in comparison.variants
    ]
    steps = recipe.steps_per_epoch(train)
    size = f"batch size {min(recipe.batch_size or train, train):,}: {steps:,} steps an epoch"
    rates = f"learning rate {recipe.schedule}"
    if any(entry.tried for entry in comparison.entries):
        rates += f", its peak chosen on {SEEDS_A_RATE} other seeds"
    interrupted = [f"interrupted: {comparison.done} of {comparison.planned} runs"]
    return [
        f"{recipe.table.name}: {train:,} {recipe.table.rows} to train on, "
        f"{validation:,} to validate",
        *networks,
        f"{_budget(recipe)} each, {size}, {_seeds(seeds)}",
        f"{rates}, gradient norm {_clipping(recipe.max_grad_norm)}{state_kept(recipe)}",
        *_remarks(comparison),
        *(interrupted if comparison.done < comparison.planned else []),
    ]


def _remarks(comparison: Comparison) -> list[str]:
    """Return remarks on what a reader may not expect."""
    tuned = [entry for entry in comparison.entries if entry.tried]
    edge = [entry for entry in tuned if entry.is_at_the_edge]
    lost = [entry for entry in tuned if choose(entry.tried) is None]
    remarks = [*comparison.remarks]
    if comparison.recipe.batch_size == 1:
        remarks.append("no runs with batch norm: a batch of one row has no variance")
    for words, entries in (
        ("at the edge of the learning rates tried, so others may be better", edge),
        ("diverged at every learning rate tried, so trained at its own", lost),
    ):
        if entries:
            remarks.append(f"warning: {words}: {', '.join(map(_name, entries))}")
    return remarks


def state_kept(recipe: Recipe) -> str:
    """Return a remark on the state's format, if it is not float32."""
    if STATE_FORMATS[recipe.state_format] is None:
        return ""
    return f", state in {recipe.state_format} where an array has {SMALL:,} numbers or more"


def _name(entry: Entry) -> str:
    return f"{entry.contender.name} {NAMES[entry.batch_norm]} ({entry.contender.lr:g})"


def write(comparison: Comparison, folder: Path, command: Sequence[str]) -> list[Path]:
    """Write the page, the picture and the numbers, and return where they are."""
    report, picture, numbers = (folder / name for name in FILES)
    facts = {"command": shlex.join(command), **versions()}
    headings = [heading.strip().replace("\n", " ") for heading, _ in columns(comparison)]
    curves = draw_curves(comparison)
    html = page.render(comparison, curves, describe(comparison), headings, rows(comparison), facts)
    write_text(report, html)
    save_png(curves, picture)
    write_json(numbers, {**as_dict(comparison), "made_by": facts})
    return [report, picture, numbers]


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return everything as JSON knows it; what has no number, or an infinite one, is None."""
    recipe = comparison.recipe
    split = recipe.table.load(comparison.seeds[0])
    sizes = recipe.layer_sizes(split)
    return {
        "data": {
            "name": recipe.table.name,
            "train": len(split.train_inputs),
            "validation": len(split.validation_inputs),
        },
        "network": {"sizes": sizes, "dtype": "float32", "dropout": recipe.dropout},
        "state_format": recipe.state_format,
        "budget": {
            "epochs": recipe.epochs,
            "steps": recipe.steps,
            "seconds": recipe.seconds,
            "batch_size": recipe.batch_size,
            "steps_per_epoch": recipe.steps_per_epoch(len(split.train_inputs)),
            "max_grad_norm": finite(recipe.max_grad_norm),
            "schedule": recipe.schedule,
            "seeds": comparison.seeds,
        },
        "runtime": runtime.info(),
        "entries": [_entry_as_dict(entry, recipe, sizes) for entry in comparison.entries],
    }


def _entry_as_dict(entry: Entry, recipe: Recipe, sizes: Sequence[int]) -> dict[str, Any]:
    contender = entry.contender
    goal = recipe.table.goal
    return {
        "name": contender.name,
        "batch_norm": entry.batch_norm,
        "parameters": count_parameters(sizes, entry.batch_norm),
        "optimizer": contender.optimizer.__name__,
        "hyperparameters": {
            name: finite(value) if isinstance(value, float) else value
            for name, value in contender.hyperparameters.items()
        },
        "lr": contender.lr,
        "tried": [
            {
                "lr": each.lr,
                "validation_loss": each.loss,
                "standard_error": None if each.loss is None else each.standard_error,
                "seeds": [result.run.seed for result in each.results],
            }
            for each in entry.tried
        ],
        "lr_at_the_edge": entry.is_at_the_edge,
        "diverged": entry.diverged,
        "train_loss": _spread(entry.final(lambda m: m.train_loss)),
        "score": _spread(entry.final(_score)),
        "goal_reached": sum(steps is not None for steps in entry.steps_to(goal)),
        "steps_to_goal": _spread(entry.spread(lambda r: r.steps_to(goal))),
        "clipped_share": _spread(entry.spread(_clipped_share)),
        "update_ms": _spread(entry.final(_update_ms)),
        "all_ms": _spread(entry.final(_all_ms)),
        "runs": [_run_as_dict(result) for result in entry.results],
    }


def _run_as_dict(result: Result) -> dict[str, Any]:
    return {
        "seed": result.run.seed,
        "diverged_at": result.diverged_at,
        "curve": {
            name: [finite(getattr(point, name)) for point in result.curve]
            for name in result.curve[0]._fields
        },
    }


def versions() -> dict[str, str]:
    """Return the versions that one must know to repeat a measurement."""
    info = runtime.info()
    return {
        "onepass": info["version"],
        **{package: version(package) for package in PACKAGES},
        "Python": info["python"],
        "compiler": info["compiler"],
        "instruction set": info["isa"],
        "threads": str(info["num_threads"]),
        "machine": platform.platform(),
    }


def _score(point: Measurement) -> float:
    return point.score


def _update_ms(end: Measurement) -> float:
    return 1e3 * end.update_seconds


def _all_ms(end: Measurement) -> float:
    return 1e3 * end.seconds


def _clipped_share(result: Result) -> float | None:
    return None if result.final is None else result.clipped_share


def _steps_to(entry: Entry, goal: float) -> str:
    """Return the mean over the seeds that reached the goal, and how many did if not all."""
    steps = entry.steps_to(goal)
    reached = len(steps) - steps.count(None)
    some = f" ({reached}/{len(steps)})" if 0 < reached < len(steps) else ""
    return _number(entry.spread(lambda result: result.steps_to(goal))) + some


def _loss(entry: Entry) -> str:
    spread = entry.final(lambda m: m.train_loss)
    if spread is None:
        return "diverged"
    if entry.diverged:
        return f"{spread.mean:z.2g} ({entry.diverged} div.)"
    return f"{spread.mean:z.2g}"


def percent(spread: Spread | None, digits: int = 0) -> str:
    """Return a mean as a share, with its deviation where there are digits for it."""
    if spread is None:
        return "-"
    if spread.mean < -10:  # R² has no lower end
        return "< -1000%"
    deviation = ""
    if digits and spread.deviation is not None:
        deviation = f" ±{100 * spread.deviation:.{digits}f}"
    return f"{spread.mean:z.{digits}%}{deviation}"


def _number(spread: Spread | None, digits: int = 0) -> str:
    return "-" if spread is None else f"{spread.mean:,.{digits}f}"


def _time(spread: Spread | None, digits: int = 0) -> str:
    return "-" if spread is None else f"{spread.median:,.{digits}f}"


def _budget(recipe: Recipe) -> str:
    if recipe.seconds is not None:
        return f"{recipe.seconds:g} seconds"
    return f"{recipe.epochs:,} epochs" if recipe.steps is None else f"{recipe.steps:,} steps"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _clipping(limit: float) -> str:
    return f"clipped to {limit:g}" if math.isfinite(limit) else "not clipped"


def _spread(spread: Spread | None) -> dict[str, float | None] | None:
    return None if spread is None else asdict(spread)
