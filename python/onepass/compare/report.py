"""What the command shows and writes: the progress bar, the table, the picture, the numbers."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from onepass import runtime
from onepass.compare.network import count_parameters
from onepass.compare.training import Comparison, Result, Show, layer_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GOAL = 0.95
SECONDS_BETWEEN_FRAMES = 0.1
# Okabe and Ito's colours, which the colour-blind can tell apart, but for the yellow, too light for
# lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--")  # in turn, so that one of two lines that coincide shows the other
NAMES = {True: "with batch norm", False: "without batch norm"}


@contextmanager
def progress(runs: int, steps: int) -> Iterator[Callable[[str], Show]]:
    """Show one progress bar over all runs; begin each by calling the result with its name."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
    )
    # Drawn between the steps that are timed: a thread of its own would take time from them.
    bar = Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal)
    task = bar.add_task("", total=runs * steps)
    done = -steps
    drawn = 0.0

    def begin(name: str) -> Show:
        nonlocal done
        done += steps
        bar.update(task, description=name)
        return show

    def show(step: int) -> None:
        nonlocal drawn
        bar.update(task, completed=done + step)
        if perf_counter() - drawn > SECONDS_BETWEEN_FRAMES:
            bar.refresh()
            drawn = perf_counter()

    with bar:
        yield begin
        bar.update(task, description="done", completed=runs * steps)


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
        caption="Loss and accuracy are measured on the whole training and validation split, "
        f"every {f'{every} steps' if every > 1 else 'step'}. The times do not include that.",
        caption_justify="left",
        collapse_padding=True,  # for 80 columns
    )
    table.add_column("\noptimizer")
    table.add_column("batch\nnorm")
    for heading in (
        "\nlr",
        "train\nloss",
        "validation\naccuracy",
        f"steps to\n{GOAL:.0%}",
        "ms in the\noptimizer",
        "ms\nin all",
    ):
        table.add_column(heading, justify="right")
    for result in comparison.results:
        first = result.batch_norm == comparison.variants[0]
        table.add_row(*_row(result, first))
    Console().print(table)


def write(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write the picture and the numbers, and return where they are."""
    picture, numbers = folder / "loss.png", folder / "results.json"
    _draw(comparison, picture)
    text = json.dumps(as_dict(comparison), indent=2, allow_nan=False)
    numbers.write_text(text + "\n", encoding="utf-8")
    return picture, numbers


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return everything as JSON knows it; what a diverged run has no number for is None."""
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
        f"batch size {budget.batch_size:,}, seed {budget.seed}"
    )


def _row(result: Result, first: bool) -> tuple[str, ...]:
    """Return the cells; what the rows of one contender share stands in its first."""
    final, steps = result.final, result.steps_to(GOAL)
    return (
        result.contender.name if first else "",
        "yes" if result.batch_norm else "no",
        f"{result.contender.lr:g}" if first else "",
        "diverged" if final is None else f"{final.train_loss:.2g}",
        "-" if final is None else f"{final.validation_accuracy:.1%}",
        "-" if steps is None else f"{steps:,}",
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
        "optimizer_seconds": result.optimizer_seconds,
        "total_seconds": result.total_seconds,
        "curve": {
            "step": [point.step for point in curve],
            "train_loss": [point.train_loss for point in curve],
            "validation_accuracy": [point.validation_accuracy for point in curve],
        },
    }


def _draw(comparison: Comparison, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    variants = comparison.variants
    figure = Figure(figsize=(4 * len(variants) + 3.5, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    panels = figure.subplots(ncols=len(variants), sharey=True, squeeze=False)[0]
    layers = "-".join(map(str, layer_sizes(comparison.split)))
    for axes, variant in zip(panels, variants, strict=True):
        _draw_curves(axes, [r for r in comparison.results if r.batch_norm == variant])
        axes.set_title(f"digits, {layers} {NAMES[variant]}")
        axes.set_xlabel(f"step (batches of {comparison.budget.batch_size:,})")
    panels[0].set_ylabel("training loss (cross-entropy)")
    if any(result.diverged_at is not None for result in comparison.results):
        panels[0].plot([], [], "kx", label="diverged")  # for the legend
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path)


def _draw_curves(axes: "Axes", results: Sequence[Result]) -> None:
    styles = zip(cycle(COLOURS), cycle(DASHES), strict=False)
    for result, (colour, dashes) in zip(results, styles, strict=False):
        axes.plot(
            [point.step for point in result.curve],
            [point.train_loss for point in result.curve],
            label=f"{result.contender.name}, lr {result.contender.lr:g}",
            color=colour,
            linestyle=dashes,
            zorder=3 if dashes == "--" else 2,
        )
        if result.diverged_at is not None:
            axes.plot(*result.curve[-1][:2], "x", color=colour)  # where it ends
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
