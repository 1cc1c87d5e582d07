"""`onepass bench`: a short comparison on the machine at hand; what it times, `bench/` times too."""

import argparse
import json
from pathlib import Path
from typing import Any

from onepass._extras import require
from onepass._progress import progress
from onepass.lab._arguments import add_out, integer, positive
from onepass.lab._folders import add_force, refuse_what_is_there
from onepass.lab._json import write_json
from onepass.lab._tables import Column, print_table
from onepass.runtime import get_num_threads, set_num_threads

SECONDS = 3.0
WRITTEN = ("bench.json", "speed.png", "speed-dark.png")
CAPTION = (
    "Medians of rounds in which all take turns, in one process and with the same number of "
    "threads; optax has as many as XLA likes. A question mark: the rounds disagree, as something "
    "else runs on the machine."
)


def add_command(parser: argparse.ArgumentParser) -> None:
    """Make a parser this command's: its options, and what it runs."""
    option = parser.add_argument
    option(
        "--seconds",
        type=positive,
        default=SECONDS,
        help="of timing for each row, more if needed (default: %(default)g)",
    )
    option(
        "--threads",
        type=integer(1, 4096),
        metavar="N",
        help="of everybody (default: as many as onepass takes)",
    )
    option("--quick", action="store_true", help="a look: small arrays only")
    option(
        "--draw",
        type=Path,
        metavar="FILE",
        help="measure nothing: show and draw what stands in this JSON file",
    )
    add_out(parser, "onepass-bench", "the numbers and the pictures")
    add_force(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write numbers and pictures; return the exit code."""
    require("bench", matplotlib="matplotlib", rich="rich", threadpoolctl="threadpoolctl")
    written = [args.out / name for name in WRITTEN[bool(args.draw) :]]
    refuse_what_is_there(args, written)
    args.out.mkdir(parents=True, exist_ok=True)
    saved = _read(args) if args.draw else _measure(args)
    from onepass.lab.bench import picture, plan

    rows = plan.from_dict(saved)
    if not args.draw:
        write_json(written[0], saved)
    _print(saved["machine"], rows)
    picture.save(rows, saved["machine"], args.out)
    for path in written:
        print(path)
    return 0


def _read(args: argparse.Namespace) -> Any:
    from onepass.lab.bench import plan

    try:
        saved = json.loads(args.draw.read_text(encoding="utf-8"))
        if plan.from_dict(saved) and {"machine", "threads"} <= set(saved["machine"]):
            return saved
        raise ValueError
    except (ValueError, KeyError, TypeError):
        args.refuse(f"argument --draw: expected numbers of onepass bench, got {args.draw}")


def _measure(args: argparse.Namespace) -> Any:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    from onepass.lab.bench import plan

    before = get_num_threads()
    try:
        if args.threads:
            set_num_threads(args.threads)
        with (
            threadpool_limits(get_num_threads(), user_api="blas"),
            progress(plan.count(small=args.quick), "rows") as show,
        ):
            return plan.as_dict(plan.rows(show, seconds=args.seconds, small=args.quick))
    finally:
        if args.threads:
            set_num_threads(before)


def _print(machine: dict[str, str], rows: Any) -> None:
    from onepass.lab.bench import figures
    from onepass.lab.bench.picture import duration

    columns: list[Column] = [
        ("\nwhat", "left"),
        ("\n", "left"),
        ("\nwho", "left"),
        ("\ntime", "right"),
        ("times\nonepass's", "right"),
    ]
    sections = [
        [
            (
                row.what if first else "",
                row.how if first else "",
                name,
                duration((figures.microseconds(row.seconds, name) or 0) / 1e6),
                str(figures.ratio(row.seconds, name, "onepass")),
            )
            for first, name in zip((True, *[False] * len(row.seconds)), row.seconds, strict=False)
        ]
        for row in rows
    ]
    meaning = {row.how: row.words for row in rows if row.words}
    words = " ".join(f"{how.capitalize()}: {words}." for how, words in meaning.items())
    lines = [f"{name}: {value}" for name, value in machine.items()]
    print_table(lines, columns, sections, f"{CAPTION} {words}", keys=3)
