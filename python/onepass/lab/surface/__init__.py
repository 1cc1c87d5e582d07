"""The toy of a typical course: error surfaces of two parameters, and optimizers' paths down them.

`onepass surface` draws them. `SURFACES` has the surfaces by name, `descend` runs an optimizer
down one, `draw` draws such paths, and `picture` does both, for your own surface too. `walkers` has
the optimizers of the course, `random_search` and `grid_search` are there to be beaten, and
`onepass.surface.claims` measures what the course says about the paths.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from onepass._extras import require
from onepass._progress import Show, progress
from onepass.lab._arguments import (
    ALL,
    add_names,
    add_out,
    add_seed,
    batch_size,
    chosen,
    finite,
    integer,
    one_of,
    positive,
)
from onepass.lab._folders import add_force, refuse_what_is_there
from onepass.lab._spelling import optimizer
from onepass.lab.surface import claims, report
from onepass.lab.surface.animation import ANIMATIONS, FRAMES, animate
from onepass.lab.surface.batches import save_batches
from onepass.lab.surface.descent import (
    Trajectory,
    check_start,
    descend,
    grid_search,
    random_search,
)
from onepass.lab.surface.drawing import Picture, draw, picture
from onepass.lab.surface.surfaces import SURFACES, Surface, sparse_neuron
from onepass.lab.surface.walking import LONGEST, Walker, walker, walkers

__all__ = [
    "SURFACES",
    "Surface",
    "Trajectory",
    "Walker",
    "claims",
    "descend",
    "draw",
    "grid_search",
    "picture",
    "random_search",
    "sparse_neuron",
    "walkers",
]


FEW = ("SGD", "Momentum", "Nesterov", "Adagrad", "RMSprop", "Adam", "AdamW")
"""Which optimizers the pictures show if none is named: all of them hide each other."""
STOCHASTIC = ("SGD", "Momentum", "Nesterov")
"""Which optimizers the pictures of mini-batches show if none is named."""


def add_command(parser: argparse.ArgumentParser) -> None:
    """Make a parser this command's: its options, and what it runs."""
    option = parser.add_argument
    add_names(parser, "--surface", SURFACES, "which to draw")
    add_names(
        parser,
        "--optimizer",
        walkers(),
        "which to run, in this order, each with settings or without, as in 'SGD(momentum=0.5)'",
        optimizer,
        FEW,
    )
    option("--steps", type=integer(1), default=500, help="of each (default: %(default)s)")
    option(
        "--start",
        nargs=2,
        type=finite,
        metavar=("X", "Y"),
        help="where all begin, which the picture then shows; by default each surface has its own",
    )
    option(
        "--lr",
        nargs="+",
        type=positive,
        help="for all of them, one or several; by default each surface has its own",
    )
    option(
        "--line-search",
        action="store_true",
        help="plain descent too whose step sizes are found anew in every step: best_of and "
        f"backtracking, up to {LONGEST:g} times the rate",
    )
    option(
        "--batch-size",
        nargs="+",
        type=batch_size,
        metavar="N",
        help="of surfaces with data, a picture with a column for each of these, where gradients "
        f"are of so many rows, or {ALL}; by default of {', '.join(STOCHASTIC)}",
    )
    add_seed(parser, "of the rows' order and of the random search")
    option(
        "--animate",
        type=one_of(suffix[1:] for suffix in ANIMATIONS),
        metavar=f"{{{','.join(suffix[1:] for suffix in ANIMATIONS)}}}",
        help="write an animation too: a picture file, or a page for the browser",
    )
    add_out(parser, "onepass-surface", "the pictures")
    add_force(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Draw surface by surface, print the table, and return the exit code.

    When interrupted, what is finished is on disk, and in the table.
    """
    surfaces = [SURFACES[name] for name in chosen(args.surface, SURFACES)]
    if args.batch_size:
        surfaces = _with_data(args, surfaces)
    _check_start(args, surfaces)
    for name in chosen(args.optimizer, walkers()):
        try:
            walker(name)
        except (ValueError, TypeError) as error:
            args.refuse(f"argument --optimizer: {name}: {error}")
    require("surface", matplotlib="matplotlib", rich="rich")
    suffix = "-batches.png" if args.batch_size else ".png"
    names = [args.out / f"{surface.name}{suffix}" for surface in surfaces]
    animations = [path.with_suffix(f".{args.animate}") for path in names if args.animate]
    refuse_what_is_there(args, [*names, *animations])
    args.out.mkdir(parents=True, exist_ok=True)  # first, so that an error costs no work
    contests: list[report.Contest] = []
    written: list[Path] = []
    try:
        _draw_all(args, surfaces, contests, written)
    finally:
        if contests:
            report.print_table(contests)
        for path in written:
            print(path)
    return 0


def _with_data(args: argparse.Namespace, surfaces: Sequence[Surface]) -> list[Surface]:
    """Return the surfaces that have data, all of those that were named."""
    for option in ("animate", "line_search"):
        if getattr(args, option):
            name = option.replace("_", "-")
            args.refuse(f"argument --{name}: not allowed with argument --batch-size")
    able = [surface for surface in surfaces if surface.rows]
    if args.surface and ALL not in args.surface and len(able) < len(surfaces):
        names = ", ".join(each.name for each in SURFACES.values() if each.rows)
        got = next(surface.name for surface in surfaces if not surface.rows)
        args.refuse(f"argument --surface: expected one of {names} with --batch-size, got {got}")
    return able


def _check_start(args: argparse.Namespace, surfaces: Sequence[Surface]) -> None:
    for surface in surfaces:
        try:
            check_start(surface, args.start or surface.start)
        except ValueError as error:
            args.refuse(f"argument --{error}")


def _draw_all(
    args: argparse.Namespace,
    surfaces: Sequence[Surface],
    contests: list[report.Contest],
    written: list[Path],
) -> None:
    """Draw each surface, adding to both lists what is done as soon as it is."""
    if args.batch_size:
        _draw_batches(args, surfaces, contests, written)
        return
    optimizers = chosen(args.optimizer, walkers()) if args.optimizer else FEW
    pictures = 1 + (FRAMES if args.animate else 0)
    with progress(len(surfaces) * pictures, "pictures") as show:
        for number, surface in enumerate(surfaces):
            contest = report.contest(
                surface,
                optimizers,
                args.start,
                args.steps,
                args.lr,
                line_search=args.line_search,
                seed=args.seed,
            )
            contests.append(contest)
            path = args.out / f"{surface.name}.png"
            Picture(surface, contest.labels, contest.searches, contest.remarks).save(path)
            written.append(path)
            done = number * pictures + 1
            show(done, surface.name)
            if args.animate:
                path = path.with_suffix(f".{args.animate}")
                animate(contest, path, partial(_show_frame, show, done, surface.name))
                written.append(path)


def _draw_batches(
    args: argparse.Namespace,
    surfaces: Sequence[Surface],
    contests: list[report.Contest],
    written: list[Path],
) -> None:
    """Draw the surfaces' pictures with a column for each batch size."""
    optimizers = chosen(args.optimizer, walkers()) if args.optimizer else STOCHASTIC
    with progress(len(surfaces), "pictures") as show:
        for number, surface in enumerate(surfaces, 1):
            sizes = [size if size and size < surface.rows else None for size in args.batch_size]
            columns = [
                report.contest_of_batches(
                    surface,
                    optimizers,
                    args.start,
                    args.steps,
                    args.lr,
                    batch_size=size,
                    seed=args.seed,
                )
                for size in dict.fromkeys(sizes)
            ]
            contests += columns
            path = args.out / f"{surface.name}-batches.png"
            save_batches(surface, {each.title: each.labels for each in columns}, path)
            written.append(path)
            show(number, surface.name)


def _show_frame(show: Show, before: int, name: str, frames: int) -> None:
    show(before + frames, name)
