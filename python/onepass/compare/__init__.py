"""`onepass compare`: one network, one data set, one budget, every optimizer."""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from onepass._arguments import integer, one_of, positive, positive_or_inf
from onepass._extras import require
from onepass._progress import Show, progress
from onepass.compare import report
from onepass.compare.contenders import contenders
from onepass.compare.data import digits
from onepass.compare.training import SCHEDULES, Budget, Comparison, train


def add_command(parser: argparse.ArgumentParser) -> None:
    """Make a parser this command's: its options, and what it runs."""
    option = parser.add_argument
    default = Budget()
    option(
        "--optimizer",
        nargs="+",
        action="extend",
        type=one_of(contenders()),
        metavar="NAME",
        help=f"which to train, in this order; all of them by default: {', '.join(contenders())}",
    )
    option(
        "--epochs",
        type=integer(1),
        default=default.epochs,
        help="passes over the training images (default: %(default)s)",
    )
    option(
        "--batch-size",
        type=integer(1),
        default=default.batch_size,
        help="images a step (default: %(default)s)",
    )
    option("--lr", type=positive, help="for all of them; by default each has its own")
    option(
        "--schedule",
        type=one_of(SCHEDULES),
        default=default.schedule,
        metavar=f"{{{','.join(SCHEDULES)}}}",
        help="of the learning rate: as it is, or a warm-up to it, then a cosine down to a tenth "
        "(default: %(default)s)",
    )
    option(
        "--max-grad-norm",
        type=positive_or_inf,
        default=default.max_grad_norm,
        metavar="C",
        help="clip the gradient's norm to C; inf measures it only (default: %(default)s)",
    )
    option(
        "--seed",
        type=integer(0),
        default=default.seed,
        help="of the split, the weights and the batches (default: %(default)s)",
    )
    option(
        "--out",
        type=Path,
        default=Path("onepass-compare"),
        metavar="FOLDER",
        help="where the picture and the numbers go (default: %(default)s)",
    )
    option(
        "--no-batch-norm",
        dest="batch_norm",
        action="store_false",
        help="train without BatchNorm only; by default with it and without",
    )
    parser.set_defaults(run=run, refuse=parser.error)  # for what takes two arguments to see


def run(args: argparse.Namespace) -> int:
    """Train, print the table, write the picture and the numbers; return the exit code."""
    if args.batch_norm and args.batch_size == 1:
        args.refuse(
            "argument --batch-size: expected an integer >= 2 with batch norm "
            "(--no-batch-norm allows 1), got '1'"
        )
    require("compare", sklearn="scikit-learn", matplotlib="matplotlib", rich="rich")
    args.out.mkdir(parents=True, exist_ok=True)  # if that fails, then before the training
    known = contenders()
    chosen = {name: known[name] for name in args.optimizer or known}
    if args.lr is not None:
        chosen = {name: contender.with_lr(args.lr) for name, contender in chosen.items()}
    budget = Budget(args.epochs, args.batch_size, args.seed, args.max_grad_norm, args.schedule)
    split = digits(np.random.default_rng(args.seed))
    runs = list(product(chosen.values(), (True, False) if args.batch_norm else (False,)))
    results = []
    with progress(len(runs) * budget.steps(split), "steps") as show:
        for number, (contender, batch_norm) in enumerate(runs):
            before = number * budget.steps(split)
            shown = partial(_show_run, show, before, contender.name)
            results.append(train(contender, split, budget, shown, batch_norm=batch_norm))
    comparison = Comparison(budget, split, results)
    report.print_table(comparison)
    for path in report.write(comparison, args.out):
        print(path)
    return 0


def _show_run(show: Show, before: int, name: str, step: int) -> None:
    show(before + step, name)
