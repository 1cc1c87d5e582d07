"""What `onepass bench` times: a few rows that say how a step and BatchNorm do on this machine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from onepass._progress import Show
from onepass.lab.bench import batch_norm, compiled, contenders
from onepass.lab.bench.machine import machine
from onepass.lab.bench.situations import SITUATIONS
from onepass.lab.bench.timing import alternate
from onepass.lab.bench.workloads import OPERATIONS, WORKLOADS, Case, Workload, batches
from onepass.optim import AdamW

PACKAGES = ("torch", "jax", "optax", "numba")
COLD = "sweep"
"""The situation of the cold rows: a sum over more memory than the caches hold comes before."""

STEPS = {"mlp": "AdamW, 10 arrays, 8,282 numbers", "1e6": "AdamW, 1 array, 1,000,000 numbers"}
HEAT = {
    "hot": ("hot", "steps back to back"),
    COLD: ("cold", "after a sum over 64 MB, as in training"),
}
IMAGES = (32, 64, 56, 56)
FEW_IMAGES = (4, 64, 14, 14)
PASSES = {"train": "forward", "backward": "backward"}
"""BatchNorm's operations that are timed, and what a reader calls them."""


@dataclass(frozen=True)
class Row:
    """The times of one thing that all contenders do."""

    what: str
    how: str
    """Two words at most."""
    words: str
    """What these words mean; empty where they say it."""
    seconds: Mapping[str, Sequence[float]]
    """Seconds that a call takes: one value a round, for each contender."""


def rows(show: Show, *, seconds: float, small: bool = False) -> list[Row]:
    """Time everything, each row for so many seconds; `small` arrays only for a look."""
    found = []
    jobs = list(_jobs(small=small))
    for number, (what, situation, make) in enumerate(jobs):
        show(number, what.partition(",")[0])
        steps = {name: rival.step for name, rival in make().items()}
        how, words = HEAT.get(situation, (situation, ""))
        timed_in = SITUATIONS[situation]() if situation in SITUATIONS else SITUATIONS["hot"]()
        found.append(Row(what, how, words, alternate(steps, seconds, timed_in)))
    show(len(jobs), "done")
    return found


def count(*, small: bool = False) -> int:
    """Return how many rows there are."""
    return sum(1 for _ in _jobs(small=small))


def _jobs(*, small: bool) -> Iterator[tuple[str, str, Any]]:
    """Yield what is timed, its situation, and a function that makes the contenders by name."""
    for name, what in STEPS.items():
        for situation in HEAT:
            if not (small and name == "1e6"):
                yield what, situation, partial(steppers, WORKLOADS[name])
    shape = FEW_IMAGES if small else IMAGES
    batch = batches(shape)[0]
    what = f"BatchNorm, {shape[0]} images of {'x'.join(map(str, shape[1:]))}"
    for operation in OPERATIONS:
        if operation.name in PASSES:
            yield what, PASSES[operation.name], partial(_normalisers, operation, batch)


def steppers(workload: Workload) -> dict[str, Any]:
    """Return who steps this workload by AdamW, by name, onepass first."""
    case = Case(AdamW)
    made: dict[str, Any] = {"onepass": contenders.Onepass(case, workload)}
    made |= {name: make(case, workload) for name, make in compiled.installed().items()}
    if contenders.torch_form(case):
        made["torch"] = contenders.Torch(case, workload)
    made["NumPy, out="] = contenders.InPlace(case, workload)
    made["NumPy"] = contenders.NumPy(case, workload)
    return made


def _normalisers(operation: Any, batch: Any) -> dict[str, Any]:
    made = batch_norm.rivals(operation, batch)
    del made["copy limit"]
    made["NumPy, out="] = made.pop("NumPy")  # which it is, with the patience for it
    return made


def as_dict(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the times, and what they depend on, as JSON knows them."""
    return {"machine": machine(PACKAGES), "rows": [asdict(row) for row in rows]}


def from_dict(saved: Mapping[str, Any]) -> list[Row]:
    """Return the rows of `as_dict`."""
    return [Row(**row) for row in saved["rows"]]
