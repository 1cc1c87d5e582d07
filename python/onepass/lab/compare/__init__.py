"""`onepass compare`: one network, one data set, one budget, every optimizer, several seeds."""

import argparse
import sys
from dataclasses import asdict

from onepass._extras import require
from onepass._progress import progress
from onepass.lab._arguments import (
    add_names,
    add_out,
    chosen,
    integer,
    one_of,
    positive,
    positive_or_inf,
)
from onepass.lab._json import finite
from onepass.lab.compare import report
from onepass.lab.compare.contenders import FIRST_SEED, contenders
from onepass.lab.compare.data import DATA
from onepass.lab.compare.experiment import RATES, SEEDS_A_RATE, Experiment
from onepass.lab.compare.journal import Journal
from onepass.lab.compare.schedules import SCHEDULES
from onepass.lab.compare.training import Recipe


def add_command(parser: argparse.ArgumentParser) -> None:
    """Make a parser this command's: its options, and what it runs."""
    _add_recipe(parser)
    option = parser.add_argument
    add_names(parser, "--optimizer", contenders(), "which to train, in this order")
    rate = parser.add_mutually_exclusive_group().add_argument
    rate("--lr", type=positive, help="a learning rate for all; by default each has its own")
    rate(
        "--tune",
        action="store_true",
        help=f"let each find its learning rate first, from {RATES[0]:g} to {RATES[-1]:g} and then "
        f"about the best: by the mean loss over {SEEDS_A_RATE} other seeds, with the same budget "
        "for each, and within noise (one standard error) the smallest rate",
    )
    option(
        "--seed",
        type=integer(0, 2**64 - 1),
        default=FIRST_SEED,
        help="the first seed, of the split, the weights and the batches (default: %(default)s)",
    )
    option(
        "--seeds",
        type=integer(1, 10**6),
        default=3,
        metavar="N",
        help="how many seeds to train with, from the first on (default: %(default)s)",
    )
    option(
        "--no-batch-norm",
        dest="batch_norm",
        action="store_false",
        help="leave out the runs with BatchNorm; by default there are both",
    )
    add_out(parser, "onepass-compare", "the report, the picture, the numbers and the log")
    option(
        "--resume",
        action="store_true",
        help="go on with what was interrupted; the other options must be as they were",
    )
    parser.set_defaults(run=run, refuse=parser.error)  # for errors that only the folder shows


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    option, default = parser.add_argument, Recipe()
    add_data(parser)
    option(
        "--hidden",
        nargs="+",
        type=integer(1, 10**6),
        default=default.hidden,
        metavar="UNITS",
        help=f"units of each hidden layer (default: {' '.join(map(str, default.hidden))})",
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
        type=_batch_size,
        default=default.batch_size,
        help="rows a step, or all; 1 leaves out the runs with BatchNorm, which needs 2 "
        "(default: %(default)s)",
    )
    option(
        "--schedule",
        type=one_of(SCHEDULES),
        default=default.schedule,
        metavar="NAME",
        help=f"the learning rate's, one of {', '.join(SCHEDULES)} (default: %(default)s)",
    )
    option(
        "--max-grad-norm",
        type=positive_or_inf,
        default=default.max_grad_norm,
        metavar="C",
        help="clip the gradient's norm to C; inf measures it only (default: %(default)s)",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option of the data."""
    parser.add_argument(
        "--data",
        type=one_of(DATA),
        default=Recipe().data,
        metavar="NAME",
        help=f"one of {', '.join(DATA)} (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Train, print the table, write the report; return the exit code."""
    require(
        "compare",
        sklearn="scikit-learn",
        threadpoolctl="threadpoolctl",
        matplotlib="matplotlib",
        rich="rich",
        jinja2="jinja2",
    )
    experiment = _experiment(args)
    try:
        journal = Journal(args.out, _settings(experiment), resume=args.resume)
    except ValueError as error:
        args.refuse(str(error))
    try:
        with progress(experiment.total, "runs") as show:
            experiment.run(journal, show)
    except KeyboardInterrupt:
        if experiment.comparison.entries:
            report.write(experiment.comparison, args.out, args.command_line)
        print("repeat the command with --resume to go on", file=sys.stderr)
        raise
    written = report.write(experiment.comparison, args.out, args.command_line)
    journal.finish()  # until the report is there, --resume can write it
    report.print_table(experiment.comparison)
    for path in written:
        print(path)
    return 0


def _experiment(args: argparse.Namespace) -> Experiment:
    recipe = Recipe(
        data=args.data,
        hidden=tuple(args.hidden),
        epochs=args.epochs,
        steps=args.steps,
        seconds=args.seconds,
        batch_size=args.batch_size,
        schedule=args.schedule,
        max_grad_norm=args.max_grad_norm,
    )
    known = contenders()
    taking_part = [known[name] for name in chosen(args.optimizer, known)]
    if args.lr is not None:
        taking_part = [contender.with_lr(args.lr) for contender in taking_part]
    return Experiment(
        recipe,
        taking_part,
        # One row has no variance to normalise with.
        variants=(True, False) if args.batch_norm and recipe.batch_size != 1 else (False,),
        seeds=range(args.seed, args.seed + args.seeds),
        tune=args.tune,
    )


def _settings(experiment: Experiment) -> dict[str, object]:
    """Return the settings that two comparisons must share for one to go on from the other."""
    return {
        **asdict(experiment.recipe),
        "max_grad_norm": finite(experiment.recipe.max_grad_norm),
        "optimizers": [[c.name, c.lr] for c in experiment.contenders],
        "batch_norm": list(experiment.variants),
        "seeds": list(experiment.seeds),
        "tune": experiment.tune,
    }


def _batch_size(text: str) -> int | None:
    if text.lower() == "all":
        return None
    try:
        return integer(1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(str(error).replace(", got", " or all, got")) from None
