"""`onepass tune`: Optuna's search for an optimizer, its settings, and the network's."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from onepass._extras import require
from onepass._progress import progress
from onepass.lab._arguments import (
    ALL,
    add_names,
    add_out,
    add_range,
    add_seed,
    batch_size,
    chosen,
    complete,
    fraction,
    integer,
    non_negative,
    one_of,
    positive,
)
from onepass.lab._folders import (
    ARGUMENTS,
    SETTINGS,
    add_resume,
    command_line,
    resumed,
    to_go_on,
)
from onepass.lab._json import write_json
from onepass.lab.compare import MOST_LAYERS, NEEDS, who_can
from onepass.lab.compare.contenders import contenders
from onepass.lab.compare.data import DATA, OPTION, known
from onepass.lab.compare.schedules import SCHEDULES
from onepass.lab.compare.training import STATE_FORMATS, Recipe
from onepass.lab.tune.space import Settings

TRIALS = 50


def add_command(parser: argparse.ArgumentParser) -> None:
    """Make a parser this command's: its options, and what it runs."""
    option, default = parser.add_argument, Recipe()
    complete(
        option(
            "-d",
            "--data",
            nargs="+",
            action="extend",
            type=known(ALL),
            metavar="NAME",
            help=f"one of {OPTION} (default: {default.data}); several or {ALL} with --each",
        ),
        (*DATA, ALL),
    )
    budget = parser.add_mutually_exclusive_group().add_argument
    budget(
        "--trials",
        type=integer(1),
        default=TRIALS,
        metavar="N",
        help="how many trainings, those before --resume included (default: %(default)s)",
    )
    budget("--seconds", type=positive, help="begin no trial later than this, instead of --trials")
    option(
        "--epochs",
        type=integer(1),
        default=default.epochs,
        help="of a trial, passes over the training rows (default: %(default)s)",
    )
    add_names(parser, "--optimizer", contenders(), "which to choose from")
    _add_space(parser)
    option(
        "--each",
        action="store_true",
        help="give every optimizer trials of its own, train as in the best of them with three "
        "other seeds, and print a table of the scores; --trials and --seconds are for each",
    )
    add_seed(parser, "of the search, the split, the weights and the batches")
    add_out(parser, "onepass-tune", "the study, its pictures and the numbers")
    add_resume(parser, "; --trials and --seconds may be others")
    parser.set_defaults(run=run, refuse=parser.error)  # for errors that only the folder shows


def _add_space(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of what is searched, each of which can be one value alone."""

    def add_choices(
        option: str, kind: Callable[[str], object], default: Sequence[object], what: str
    ) -> argparse.Action:
        said = " ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in default)
        return parser.add_argument(
            option,
            nargs="+",
            type=kind,
            default=default,
            metavar="X",
            help=f"{what}: one or several to choose from (default: {said})",
        )

    add_range(parser, "--lr", positive, Settings.lr, "the learning rate, at its peak")
    schedules = f"the learning rate's, of {', '.join(SCHEDULES)}"
    complete(add_choices("--schedule", one_of(SCHEDULES), Settings.schedule, schedules), SCHEDULES)
    add_choices(
        "--weight-decay", non_negative, Settings.weight_decay, "for optimizers that have it"
    )
    add_range(
        parser, "--layers", integer(1, MOST_LAYERS), Settings.layers, "how many hidden layers"
    )
    add_choices("--units", integer(1, 10**6), Settings.units, "of each hidden layer by itself")
    add_range(parser, "--dropout", fraction, Settings.dropout, "the share that dropout leaves out")
    add_choices("--batch-size", batch_size, Settings.batch_size, f"rows a step, or {ALL}")
    parser.add_argument(
        "--batch-norm",
        action=argparse.BooleanOptionalAction,
        help="only trials with BatchNorm, or only without; by default that is searched too",
    )
    what = f"what the optimizer's state is kept in, of {', '.join(STATE_FORMATS)}"
    add_choices("--state-format", one_of(STATE_FORMATS), Settings.state_format, what)


def run(args: argparse.Namespace) -> int:
    """Search, print the best, write the pictures and the numbers; return the exit code."""
    require("tune", optuna="optuna", **NEEDS)
    from onepass.lab.tune.search import quiet

    if args.resume:
        args = resumed(args)
    data = chosen(args.data, DATA) if args.data else [Recipe().data]
    if len(data) > 1 and not args.each:
        args.refuse(f"argument --data: expected one name without --each, got {' '.join(data)}")
    names = [Recipe(data=each).table.name for each in data]
    if len(set(names)) < len(names):
        args.refuse(f"argument --data: expected files of different names, got {' '.join(data)}")
    settings, remarks = _settings(args, data[0])
    with quiet():
        written = (
            _run_each(args, settings, data, remarks)
            if args.each
            else _run_one(args, settings, remarks)
        )
    for path in written:
        print(path)
    return 0


def _run_one(args: argparse.Namespace, settings: Settings, remarks: list[str]) -> list[Path]:
    """Search over all optimizers, print the best trials, and return what has been written."""
    from onepass.lab.tune import report
    from onepass.lab.tune.search import Search

    try:
        search = Search(settings, args.out, resume=args.resume, force=args.force)
    except ValueError as error:
        args.refuse(str(error))
    _remember(args)
    unit, budget = _budget(args)
    try:
        with progress(budget, unit) as show:
            search.run(show, **{unit: budget})
    except KeyboardInterrupt:
        report.write(search, args.out, command_line("tune", args))
        print(to_go_on("tune", args.out), file=sys.stderr)
        raise
    report.print_best(search, remarks)
    return report.write(search, args.out, command_line("tune", args))


def _run_each(
    args: argparse.Namespace, settings: Settings, data: Sequence[str], remarks: list[str]
) -> list[Path]:
    """Search for each optimizer by itself, print the table, and return what has been written."""
    from onepass.lab.tune import each

    try:
        searches = list(
            each.studies(settings, data, args.out, resume=args.resume, force=args.force)
        )
    except ValueError as error:
        args.refuse(str(error))
    _remember(args)
    unit, budget = _budget(args)
    outcomes = []
    try:
        with progress(budget * len(searches), unit) as show:
            for outcome in each.run(searches, show, budget={unit: budget}):
                outcomes.append(outcome)
    except KeyboardInterrupt:
        print(to_go_on("tune", args.out), file=sys.stderr)
        raise
    each.print_outcomes(outcomes, remarks)
    return each.write(outcomes, args.out, command_line("tune", args))


def _remember(args: argparse.Namespace) -> None:
    """Keep the options in the folder, so that the study can be resumed by its name alone."""
    write_json(args.out / SETTINGS, {ARGUMENTS: list(args.words)})


def _budget(args: argparse.Namespace) -> tuple[str, float]:
    unit = "seconds" if args.seconds else "trials"
    return unit, getattr(args, unit)


def _settings(args: argparse.Namespace, data: str) -> tuple[Settings, list[str]]:
    """Return what to search, and a remark if some optimizers cannot take part."""
    if args.batch_norm and 1 in args.batch_size:
        args.refuse("argument --batch-norm: expected a --batch-size of 2 or more, got 1")
    names = chosen(args.optimizer, contenders())
    able, remarks = who_can(names, args.state_format, args.refuse)
    settings = Settings(
        data=data,
        content=Recipe(data=data).table.digest,
        epochs=args.epochs,
        optimizers=tuple(contender.name for contender in able),
        seed=args.seed,
        lr=args.lr,
        layers=args.layers,
        units=tuple(dict.fromkeys(args.units)),
        dropout=args.dropout,
        batch_size=tuple(dict.fromkeys(args.batch_size)),
        batch_norm=Settings.batch_norm if args.batch_norm is None else (args.batch_norm,),
        state_format=tuple(dict.fromkeys(args.state_format)),
        schedule=tuple(dict.fromkeys(args.schedule)),
        weight_decay=tuple(dict.fromkeys(args.weight_decay)),
    )
    return settings, remarks
