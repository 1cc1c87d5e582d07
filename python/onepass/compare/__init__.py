"""`onepass compare`: one network, one data set, one budget, every optimizer."""

import argparse
import math
import sys
from importlib import import_module
from itertools import product
from pathlib import Path

import numpy as np

from onepass.compare import report
from onepass.compare.contenders import Contender, contenders
from onepass.compare.data import digits
from onepass.compare.training import SCHEDULES, Budget, Comparison, train

_EXTRA = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of the command."""
    option = parser.add_argument
    default = Budget()
    option(
        "--optimizer",
        nargs="+",
        action="extend",
        type=_contender,
        metavar="NAME",
        help=f"which to train, in this order; all of them by default: {', '.join(contenders())}",
    )
    option(
        "--epochs",
        type=_count,
        default=default.epochs,
        help="passes over the training images (default: %(default)s)",
    )
    option(
        "--batch-size",
        type=_count,
        default=default.batch_size,
        help="images a step (default: %(default)s)",
    )
    option("--lr", type=_rate, help="for all of them; by default each has its own")
    option(
        "--schedule",
        type=_schedule,
        default=default.schedule,
        metavar=f"{{{','.join(SCHEDULES)}}}",
        help="of the learning rate: as it is, or a warm-up to it, then a cosine down to a tenth "
        "(default: %(default)s)",
    )
    option(
        "--max-grad-norm",
        type=_norm,
        default=default.max_grad_norm,
        metavar="C",
        help="clip the gradient's norm to C; inf measures it only (default: %(default)s)",
    )
    option(
        "--seed",
        type=_seed,
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
    parser.set_defaults(refuse=parser.error)  # for what takes two arguments to see


def run(args: argparse.Namespace) -> int:
    """Train, print the table, write the picture and the numbers; return the exit code."""
    if args.batch_norm and args.batch_size == 1:
        args.refuse(
            "argument --batch-size: expected an integer >= 2 with batch norm "
            "(--no-batch-norm allows 1), got '1'"
        )
    missing = _missing()
    if missing:
        install = "python -m pip install 'onepass[compare]'"
        print(f"onepass compare needs {', '.join(missing)}: {install}", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)  # if that fails, then before the training
    chosen = {contender.name: contender for contender in args.optimizer or contenders().values()}
    if args.lr is not None:
        chosen = {name: contender.with_lr(args.lr) for name, contender in chosen.items()}
    budget = Budget(args.epochs, args.batch_size, args.seed, args.max_grad_norm, args.schedule)
    split = digits(np.random.default_rng(args.seed))
    runs = list(product(chosen.values(), (True, False) if args.batch_norm else (False,)))
    with report.progress(len(runs), budget.steps(split)) as begin:
        results = [
            train(contender, split, budget, begin(contender.name), batch_norm=batch_norm)
            for contender, batch_norm in runs
        ]
    comparison = Comparison(budget, split, results)
    report.print_table(comparison)
    for path in report.write(comparison, args.out):
        print(path)
    return 0


def _missing() -> list[str]:
    """Return what the extra `compare` would install and is not there."""
    missing = []
    for module, distribution in _EXTRA.items():
        try:
            import_module(module)
        except ImportError:
            missing.append(distribution)
    return missing


# Types of arguments: argparse puts the argument's name before the message of the error.


def _contender(text: str) -> Contender:
    known = contenders()
    for name, contender in known.items():
        if name.lower() == text.lower():
            return contender
    raise argparse.ArgumentTypeError(f"expected one of {', '.join(known)}, got {text!r}")


def _schedule(text: str) -> str:
    if text not in SCHEDULES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(SCHEDULES)}, got {text!r}")
    return text


def _count(text: str) -> int:
    return _integer(text, low=1)


def _seed(text: str) -> int:
    return _integer(text, low=0)


def _integer(text: str, low: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if number < low:
        raise argparse.ArgumentTypeError(f"expected an integer >= {low}, got {text!r}")
    return number


def _rate(text: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number > 0, got {text!r}")
    return number


def _norm(text: str) -> float:
    number = _number(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"expected a number > 0 or inf, got {text!r}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
