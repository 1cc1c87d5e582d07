"""Prints what training loses by keeping state, or weights, in fewer bits.

See bench/README.md for the tasks.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import ml_dtypes
import numpy as np

import onepass as op
from onepass._progress import progress
from onepass._typing import Array
from onepass.lab._arguments import SEED, add_names, integer
from onepass.lab._json import finite, write_json
from onepass.lab.compare.contenders import Contender, contenders
from onepass.lab.compare.network import Network
from onepass.lab.compare.results import Spread
from onepass.lab.compare.schedules import cosine
from onepass.lab.compare.training import Recipe, Run, Training
from problems import MixedUnits, Problem, Text

SEEDS = 5
STEPS = 3000


@dataclass(frozen=True)
class Format:
    """How an optimizer keeps its numbers."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    bf16_weights: bool = False

    def applied_to(self, contender: Contender) -> Contender:
        optimizer = contender.optimizer
        return replace(
            contender,
            optimizer=in_bfloat16(optimizer) if self.bf16_weights else optimizer,
            settings={**contender.settings, **self.settings},
        )


def in_bfloat16(optimizer: type[Any]) -> type[Any]:
    """The optimizer on weights in bfloat16, for a network that computes with them in float32."""

    class InBfloat16:
        defaults, checks, row = optimizer.defaults, optimizer.checks, optimizer.row
        own_average = None

        def __init__(self, params: Array, **settings: Any) -> None:
            self._wide, self._weights = params, params.astype(ml_dtypes.bfloat16)
            self._optimizer = optimizer(self._weights, **settings)
            self._wide[...] = self._weights

        def step(self, grads: Array) -> op.StepInfo:
            info: op.StepInfo = self._optimizer.step(grads)
            self._wide[...] = self._weights
            return info

    return InBfloat16


REFERENCE = "float32"

FORMATS = {
    REFERENCE: Format(),
    "bf16 state": Format({"state_format": "bf16"}),
    "q8 state": Format({"state_format": "q8"}),
    "bf16 weights, master": Format({"rounding": "master"}, bf16_weights=True),
    "bf16 weights, stochastic": Format({"rounding": "stochastic"}, bf16_weights=True),
    "bf16 weights, stochastic, q8 state": Format(
        {"rounding": "stochastic", "state_format": "q8"}, bf16_weights=True
    ),
    "bf16 weights, nearest": Format({"rounding": "nearest"}, bf16_weights=True),
}


Final = tuple[float, float]
"""The loss and the score on the validation rows, at the end of a run."""


def train_compares(data: str, contender: Contender, seed: int, steps: int | None) -> Final:
    """Train `onepass compare`'s network on this data, as the command does."""
    training = Training(Run(contender, batch_norm=True, seed=seed), Recipe(data, steps=steps))
    *_, last = training.epochs()
    return last.validation_loss, last.score


def train(
    make: Callable[[np.random.Generator], Problem],
    contender: Contender,
    seed: int,
    steps: int | None,
) -> Final:
    rng, steps = np.random.default_rng(seed), steps or STEPS
    problem = make(rng)
    network = Network(problem.sizes, rng, problem.loss, batch_norm=False)
    settings = {**contender.settings, "lr": cosine(contender.lr, steps)}
    optimizer = contender.optimizer(network.params, max_grad_norm=problem.max_grad_norm, **settings)
    with np.errstate(over="ignore", invalid="ignore"):  # to diverge is a result, not a warning
        for _ in range(steps):
            _, grad = network.loss_and_grad(*problem.batch(rng))
            optimizer.step(grad)
        parts = [(*network.evaluate(*rows), len(rows[0])) for rows in problem.validation()]
    losses, scores, sizes = zip(*parts, strict=True)
    return float(np.average(losses, weights=sizes)), float(np.average(scores, weights=sizes))


@dataclass(frozen=True)
class Task:
    """What is trained."""

    train: Callable[[Contender, int, int | None], Final]
    """With this contender, from this seed, for so many steps or as many as is usual."""
    rates: Mapping[str, float]
    """By the contender's name."""


RULES = {name: contenders()[name].lr for name in ("Momentum", "Adagrad", "AdamW")}
"""Who trains, at which learning rate where the task has no other."""

TASKS = {
    "digits": Task(partial(train_compares, "digits"), RULES),
    "diabetes": Task(partial(train_compares, "diabetes"), RULES),
    "text": Task(partial(train, Text), RULES | {"Momentum": 0.3, "AdamW": 0.002}),
    "mixed units": Task(
        partial(train, MixedUnits), {name: RULES[name] for name in ("Adagrad", "AdamW")}
    ),
}


@dataclass(frozen=True)
class Result:
    """How a run ended; what is not finite is None."""

    task: str
    optimizer: str
    format: str
    seed: int
    loss: float | None
    score: float | None
    seconds: float


def main() -> None:
    options = parse(sys.argv[1:])
    print(markdown(measure(options)))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add_names(parser, "--task", TASKS, "what to train")
    add_names(parser, "--optimizer", RULES, "what to train it with")
    add_names(parser, "--format", FORMATS, f"what to hold against {REFERENCE}")
    add("--seeds", type=integer(1), default=SEEDS, metavar="N", help="default: %(default)s")
    usual = f"20 epochs on compare's data, {STEPS} on others"
    add("--steps", type=integer(1), metavar="N", help=f"of each run; default: {usual}")
    add("--json", type=Path, metavar="FILE", help="write how the runs ended, after each of them")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> list[Result]:
    seeds = range(SEED, SEED + options.seeds)
    tasks, names = options.task or TASKS, options.optimizer or RULES
    formats = dict.fromkeys([REFERENCE, *(options.format or FORMATS)])
    runs = [run for run in product(seeds, tasks, names, formats) if run[2] in TASKS[run[1]].rates]
    results: list[Result] = []
    with progress(len(runs), "runs") as show:
        for seed, task, name, form in runs:
            show(len(results), f"{task}, {name}, {form}")
            results.append(train_once(task, name, form, seed, options.steps))
            if options.json:
                write_json(options.json, [asdict(result) for result in results])
    return results


def train_once(task: str, name: str, form: str, seed: int, steps: int | None) -> Result:
    """Train once. The seed alone decides the split, the first weights and the batches."""
    contender = contenders()[name].with_lr(TASKS[task].rates[name])
    start = perf_counter()
    loss, score = TASKS[task].train(FORMATS[form].applied_to(contender), seed, steps)
    return Result(task, name, form, seed, finite(loss), finite(score), perf_counter() - start)


HEADINGS = ("task", "optimizer", "format", "loss", "its difference", "score", "its difference")


def markdown(results: Sequence[Result]) -> str:
    """Return the table: means over the seeds ± standard deviations, differences seed by seed."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.task, result.optimizer, result.format), []).append(result)
    lines = [HEADINGS, (*["---"] * 3, *["--:"] * 4)]
    lines += [
        (*labels, *_cells(group, groups[*labels[:2], REFERENCE]))
        for labels, group in groups.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(own: Sequence[Result], reference: Sequence[Result]) -> Iterator[str]:
    for name in ("loss", "score"):
        values, others = ([getattr(result, name) for result in group] for group in (own, reference))
        pairs = zip(values, others, strict=True)
        differences = [None if None in pair else pair[0] - pair[1] for pair in pairs]
        yield _spread(values)
        yield "" if own is reference else _spread(differences, sign="+")


def _spread(values: Sequence[float | None], sign: str = "") -> str:
    """Return the mean and deviation of those that are known, and how many runs diverged."""
    known = [value for value in values if value is not None]
    diverged = f" ({len(values) - len(known)} diverged)" if len(known) < len(values) else ""
    spread = Spread.of(known)
    if spread is None:
        return f"-{diverged}"
    digits = 4 if abs(spread.mean) < 100 else 1
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:{sign}.{digits}f}{deviation}{diverged}"


if __name__ == "__main__":
    main()
