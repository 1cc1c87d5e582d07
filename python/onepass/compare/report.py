"""What the command shows and writes: the progress bar, the table, the numbers."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onepass import runtime
from onepass.compare.network import count_parameters
from onepass.compare.picture import NAMES, draw
from onepass.compare.training import Budget, Comparison, Result, layer_sizes

GOAL = 0.95


def print_table(comparison: Comparison) -> None:
    """Print one row a result."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    every = comparison.budget.measure_every(comparison.split)
    table = Table(
        box=SIMPLE_HEAD,
        title=_title(comparison),
        title_justify="left",
        caption="\nLoss and accuracy are measured on the whole training and validation split, "
        f"every {f'{every} steps' if every > 1 else 'step'}. The times do not include that.",
        caption_justify="left",
        collapse_padding=True,  # this and the next two for 80 columns
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("\noptimizer")
    table.add_column("batch\nnorm")
    for heading in (
        "\nlr",
        "train\nloss",
        "validation\naccuracy",
        f"steps\nto {GOAL:.0%}",
        "steps\nclipped",
        "ms in\nupdates",
        "ms in\nall",
    ):
        table.add_column(heading, justify="right")
    for result in comparison.results:
        first = result.batch_norm == comparison.variants[0]
        table.add_row(*_row(result, first))
    Console().print(table)


def write(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write the picture and the numbers, and return where they are."""
    picture, numbers = folder / "loss.png", folder / "results.json"
    draw(comparison, picture)
    text = json.dumps(as_dict(comparison), indent=2, allow_nan=False)
    numbers.write_text(text + "\n", encoding="utf-8")
    return picture, numbers


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return everything as JSON knows it; what has no number, or an infinite one, is None."""
    budget, split = comparison.budget, comparison.split
    sizes = layer_sizes(split)
    return {
        "data": {
            "name": "digits",
            "train": len(split.train_labels),
            "validation": len(split.validation_labels),
        },
        "network": {"sizes": sizes, "dtype": "float32"},
        "budget": {
            "epochs": budget.epochs,
            "batch_size": budget.batch_size,
            "seed": budget.seed,
            "max_grad_norm": _finite(budget.max_grad_norm),
            "schedule": budget.schedule,
            "steps": budget.steps(split),
            "measure_every": budget.measure_every(split),
        },
        "runtime": runtime.info(),
        "results": [_result_as_dict(result, sizes) for result in comparison.results],
    }


def _title(comparison: Comparison) -> str:
    budget, split = comparison.budget, comparison.split
    sizes = layer_sizes(split)
    networks = "".join(
        f"network {'-'.join(map(str, sizes))} {NAMES[variant]}: "
        f"{count_parameters(sizes, variant):,} parameters\n"
        for variant in comparison.variants
    )
    return (
        f"digits: {len(split.train_labels):,} images to train on, "
        f"{len(split.validation_labels):,} to validate\n"
        f"{networks}"
        f"{budget.steps(split):,} steps each: epochs {budget.epochs:,}, "
        f"batch size {budget.batch_size:,}, seed {budget.seed}\n"
        f"learning rate {budget.schedule}, gradient norm {_clipping(budget)}\n"
    )


def _clipping(budget: Budget) -> str:
    limit = budget.max_grad_norm
    return f"clipped to {limit:g}" if math.isfinite(limit) else "not clipped"


def _row(result: Result, first: bool) -> tuple[str, ...]:
    """Return the cells; what the rows of one contender share stands in its first."""
    final, steps, clipped = result.final, result.steps_to(GOAL), result.clipped_share
    return (
        result.contender.name if first else "",
        "yes" if result.batch_norm else "no",
        f"{result.contender.lr:g}" if first else "",
        "diverged" if final is None else f"{final.train_loss:.2g}",
        "-" if final is None else f"{final.validation_accuracy:.1%}",
        "-" if steps is None else f"{steps:,}",
        "-" if clipped is None else f"{clipped:.1%}",
        f"{1e3 * result.optimizer_seconds:,.1f}",
        f"{1e3 * result.total_seconds:,.0f}",
    )


def _result_as_dict(result: Result, sizes: Sequence[int]) -> dict[str, Any]:
    final, curve = result.final, result.curve
    return {
        "name": result.contender.name,
        "batch_norm": result.batch_norm,
        "parameters": count_parameters(sizes, result.batch_norm),
        "optimizer": result.contender.optimizer.__name__,
        "hyperparameters": result.contender.hyperparameters,
        "lr": result.contender.lr,
        "diverged_at": result.diverged_at,
        "train_loss": None if final is None else final.train_loss,
        "validation_accuracy": None if final is None else final.validation_accuracy,
        f"steps_to_{100 * GOAL:.0f}": result.steps_to(GOAL),
        "clipped_share": result.clipped_share,
        "optimizer_seconds": result.optimizer_seconds,
        "total_seconds": result.total_seconds,
        "curve": {
            "step": [point.step for point in curve],
            "train_loss": [point.train_loss for point in curve],
            "validation_accuracy": [point.validation_accuracy for point in curve],
            "grad_norm": [_finite(point.grad_norm) for point in curve],
            "lr": [point.lr for point in curve],
            "clipped": [point.clipped for point in curve],
        },
    }


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
