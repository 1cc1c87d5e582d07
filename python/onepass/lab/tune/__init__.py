"""`onepass tune`: Optuna's search over optimizer, learning rate, momentum, batch size and width."""

import argparse
import sys

from onepass._extras import require
from onepass._progress import progress
from onepass.lab._arguments import add_names, add_out, chosen, integer, positive
from onepass.lab.compare import add_data
from onepass.lab.compare.contenders import contenders
from onepass.lab.compare.training import Recipe

TRIALS = 50


def add_command(parser: argparse.ArgumentParser) -> None:
    """Make a parser this command's: its options, and what it runs."""
    option, default = parser.add_argument, Recipe()
    add_data(parser)
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
    option(
        "--seed",
        type=integer(0, 2**64 - 1),
        default=0,
        help="of the search, the split, the weights and the batches (default: %(default)s)",
    )
    add_out(parser, "onepass-tune", "the study, its pictures and the numbers")
    option(
        "--resume",
        action="store_true",
        help="go on with the study in the folder, with more trials if you like; data, epochs, "
        "optimizers and seed must be as they were",
    )
    parser.set_defaults(run=run, refuse=parser.error)  # for errors that only the folder shows


def run(args: argparse.Namespace) -> int:
    """Search, print the best, write the pictures and the numbers; return the exit code."""
    require("tune", optuna="optuna", sklearn="scikit-learn", matplotlib="matplotlib", rich="rich")
    from onepass.lab.tune import report
    from onepass.lab.tune.search import Search, Settings, quiet

    optimizers = tuple(chosen(args.optimizer, contenders()))
    settings = Settings(args.data, args.epochs, optimizers, args.seed)
    with quiet():
        try:
            search = Search(settings, args.out, resume=args.resume)
        except ValueError as error:
            args.refuse(str(error))
        try:
            unit = "seconds" if args.seconds else "trials"
            budget = getattr(args, unit)
            with progress(budget, unit) as show:
                search.run(show, **{unit: budget})
        except KeyboardInterrupt:
            report.write(search, args.out, args.command_line)
            print("repeat the command with --resume to go on", file=sys.stderr)
            raise
        report.print_best(search)
        for path in report.write(search, args.out, args.command_line):
            print(path)
    return 0
