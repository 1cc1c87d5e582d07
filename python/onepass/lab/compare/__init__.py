"""`onepass compare`: one network, one data set, one budget, every optimizer, several seeds."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NoReturn

from onepass._extras import require
from onepass._progress import progress
from onepass.lab._arguments import (
    add_names,
    add_out,
    add_seed,
    batch_size,
    chosen,
    complete,
    fraction,
    integer,
    one_of,
    positive,
    positive_or_inf,
)
from onepass.lab._folders import add_resume, command_line, resumed, to_go_on
from onepass.lab._json import finite
from onepass.lab._spelling import optimizer
from onepass.lab.compare import report
from onepass.lab.compare.contenders import Contender, contender, contenders
from onepass.lab.compare.data import DATA, OPTION, known
from onepass.lab.compare.experiment import RATES, SEEDS_A_RATE, Experiment
from onepass.lab.compare.journal import Journal
from onepass.lab.compare.schedules import SCHEDULES
from onepass.lab.compare.training import STATE_FORMATS, Recipe

MOST_LAYERS = 100
NEEDS = {
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "jinja2": "jinja2",
}
"""The modules that are not there without the extra, by the names of their distributions."""


def add_command(parser: argparse.ArgumentParser) -> None:
    """Make a parser this command's: its options, and what it runs."""
    _add_data(parser)
    _add_recipe(parser)
    option = parser.add_argument
    add_names(
        parser,
        "--optimizer",
        contenders(),
        "which to train, in this order, each with settings or without, as in 'SGD(lr=0.1)'",
        optimizer,
    )
    option(
        "--momentum",
        type=fraction,
        metavar="M",
        help="for those that have momentum, instead of their own",
    )
    option(
        "--betas",
        nargs="+",
        type=fraction,
        metavar="B",
        help="for those that have so many, instead of their own",
    )
    rate = parser.add_mutually_exclusive_group().add_argument
    rate("--lr", type=positive, help="a learning rate for all; by default each has its own")
    rate(
        "--tune",
        action="store_true",
        help=f"let each find its learning rate first, from {RATES[0]:g} to {RATES[-1]:g} and then "
        f"about the best: by the mean loss over {SEEDS_A_RATE} other seeds, with the same budget "
        "for each, and within noise (one standard error) the smallest rate",
    )
    add_seed(parser, "the first seed, of the split, the weights and the batches")
    option(
        "--seeds",
        type=integer(1, 10**6),
        default=3,
        metavar="N",
        help="how many seeds to train with, from the first on (default: %(default)s)",
    )
    option(
        "--batch-norm",
        action=argparse.BooleanOptionalAction,
        help="only the runs with BatchNorm, or only those without; by default there are both",
    )
    add_out(parser, "onepass-compare", "the report, the picture, the numbers and the log")
    add_resume(parser)
    parser.set_defaults(run=run, refuse=parser.error)  # for errors that only the folder shows


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    option, default = parser.add_argument, Recipe()
    option(
        "--hidden",
        nargs="+",
        type=integer(1, 10**6),
        default=default.hidden,
        metavar="UNITS",
        help=f"units of each hidden layer (default: {' '.join(map(str, default.hidden))})",
    )
    option(
        "--layers",
        type=integer(1, MOST_LAYERS),
        metavar="N",
        help="how many hidden layers, where --hidden is one number, for all of them",
    )
    option(
        "--dropout",
        type=fraction,
        default=default.dropout,
        metavar="P",
        help="the share of each hidden layer's outputs that training leaves out "
        "(default: %(default)s)",
    )
    budget = parser.add_mutually_exclusive_group().add_argument
    budget(
        "--epochs",
        type=integer(1),
        default=default.epochs,
        help="passes over the training rows (default: %(default)s)",
    )
    budget("--steps", type=integer(1), metavar="N", help="steps of each run, instead of epochs")
    budget("--seconds", type=positive, help="seconds of training for each run, instead of epochs")
    option(
        "--batch-size",
        type=batch_size,
        default=default.batch_size,
        help="rows a step, or all; 1 leaves out the runs with BatchNorm, which needs 2 "
        "(default: %(default)s)",
    )
    complete(
        option(
            "--schedule",
            type=one_of(SCHEDULES),
            default=default.schedule,
            metavar="NAME",
            help=f"the learning rate's, one of {', '.join(SCHEDULES)} (default: %(default)s)",
        ),
        SCHEDULES,
    )
    option(
        "--max-grad-norm",
        type=positive_or_inf,
        default=default.max_grad_norm,
        metavar="C",
        help="clip the gradient's norm to C; inf measures it only (default: %(default)s)",
    )
    option(
        "--state-format",
        type=one_of(STATE_FORMATS),
        default=default.state_format,
        metavar="NAME",
        help="what the optimizers' state is kept in, one of "
        f"{', '.join(STATE_FORMATS)} (default: %(default)s)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option of the data."""
    complete(
        parser.add_argument(
            "-d",
            "--data",
            type=known(),
            default=Recipe().data,
            metavar="NAME",
            help=f"one of {OPTION} (default: %(default)s)",
        ),
        DATA,
    )


def run(args: argparse.Namespace) -> int:
    """Train, print the table, write the report; return the exit code."""
    require("compare", **NEEDS)
    if args.resume:
        args = resumed(args)
    experiment = _experiment(args)
    try:
        settings = _settings(args, experiment)
        journal = Journal(args.out, settings, args.words, resume=args.resume, force=args.force)
    except ValueError as error:
        args.refuse(str(error))
    if args.force:  # what an earlier run has written is not to look like this one's
        for name in report.FILES:
            (args.out / name).unlink(missing_ok=True)
    command = command_line("compare", args)
    try:
        with progress(experiment.total, "runs") as show:
            experiment.run(journal, show)
    except KeyboardInterrupt:
        if experiment.comparison.entries:
            page, *_ = report.write(experiment.comparison, args.out, command)
            print(f"what is done so far is in {page}", file=sys.stderr)
        print(to_go_on("compare", args.out), file=sys.stderr)
        raise
    written = report.write(experiment.comparison, args.out, command)
    journal.finish()  # until the report is there, --resume can write it
    report.print_table(experiment.comparison)
    for path in written:
        print(path)
    return 0


def _experiment(args: argparse.Namespace) -> Experiment:
    if args.layers and len(args.hidden) > 1:
        given = " ".join(map(str, args.hidden))
        args.refuse(f"argument --layers: expected one number of --hidden beside it, got {given}")
    recipe = Recipe(
        data=args.data,
        hidden=tuple(args.hidden) * (args.layers or 1),
        dropout=args.dropout,
        epochs=args.epochs,
        steps=args.steps,
        seconds=args.seconds,
        batch_size=args.batch_size,
        schedule=args.schedule,
        max_grad_norm=args.max_grad_norm,
        state_format=args.state_format,
    )
    variants: tuple[bool, ...] = (True, False) if args.batch_norm is None else (args.batch_norm,)
    if recipe.batch_size == 1:  # one row has no variance to normalise with
        variants = tuple(variant for variant in variants if not variant)
    if not variants:
        args.refuse("argument --batch-norm: expected a --batch-size of 2 or more, got 1")
    names = chosen(args.optimizer, contenders())
    taking_part, remarks = who_can(names, [args.state_format], args.refuse)
    return Experiment(
        recipe,
        _with_settings(args, taking_part),
        variants,
        seeds=range(args.seed, args.seed + args.seeds),
        tune=args.tune,
        remarks=[*remarks, *_said(args)],
    )


def who_can(
    names: Sequence[str], state_formats: Sequence[str], refuse: Callable[[str], NoReturn]
) -> tuple[list[Contender], list[str]]:
    """Return those whose state may be kept in all these formats, and a remark on the others."""
    formats, known = [STATE_FORMATS[name] for name in state_formats], []
    for name in names:
        try:
            known.append(contender(name))
        except (ValueError, TypeError) as error:
            refuse(f"argument --optimizer: {name}: {error}")
    able = [each for each in known if all(each.takes(state_format=name) for name in formats)]
    others = ", ".join(each.name for each in known if each not in able)
    if not able:
        got = " ".join(state_formats)
        refuse(f"argument --state-format: expected float32 for {others}, got {got}")
    return able, [f"without {others}: the state has to be float32"] if others else []


def _said(args: argparse.Namespace) -> list[str]:
    """Return a remark on settings that not all have."""
    settings = {"momentum": args.momentum, "betas": args.betas and " ".join(map(str, args.betas))}
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return [f"{said} where an optimizer has it"] if said else []


def _with_settings(args: argparse.Namespace, taking_part: Sequence[Contender]) -> list[Contender]:
    """Return the contenders with the settings that are for all of them, or for some."""
    if args.momentum is not None and not any(c.momentum for c in taking_part):
        args.refuse("argument --momentum: expected an optimizer that has it, got none")
    if args.betas is not None and not any(len(c.betas) == len(args.betas) for c in taking_part):
        count = len(args.betas)
        args.refuse(f"argument --betas: expected an optimizer that has {count}, got none")
    changed = []
    for each in taking_part:
        settings: dict[str, object] = {} if args.lr is None else {"lr": args.lr}
        if args.momentum is not None and each.momentum:
            settings["momentum"] = args.momentum
        if args.betas is not None and len(each.betas) == len(args.betas):
            settings["betas"] = tuple(args.betas)
        if args.tune and "lr" in each.given:
            got = f"got {each.name}"
            args.refuse(f"argument --optimizer: expected no lr with argument --tune, {got}")
        changed.append(each.with_settings(**settings | dict(each.given)))
        try:
            changed[-1].check()
        except ValueError as error:
            args.refuse(f"{each.name}: {error}")
    return changed


def _settings(args: argparse.Namespace, experiment: Experiment) -> dict[str, object]:
    """Return the settings that two comparisons must share for one to go on from the other."""
    return {
        **asdict(experiment.recipe),
        "content of the data": experiment.recipe.table.digest,
        "max_grad_norm": finite(experiment.recipe.max_grad_norm),
        "optimizers": [[c.name, c.lr] for c in experiment.contenders],
        "momentum": args.momentum,
        "betas": args.betas,
        "batch_norm": list(experiment.variants),
        "seeds": list(experiment.seeds),
        "tune": experiment.tune,
    }
