"""Prints the tables of docs/performance.md: onepass against the copy limit, NumPy and PyTorch.

See bench/README.md for how to read them.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.progress import Progress
from threadpoolctl import threadpool_limits

import formats
import full_step
import onepass as op
import report
import training
from onepass.lab.bench import batch_norm, contenders
from onepass.lab.bench.machine import machine
from onepass.lab.bench.timing import Situation, alternate
from onepass.lab.bench.workloads import (
    BATCHES,
    OPERATIONS,
    WORKLOADS,
    Batch,
    Case,
    Operation,
    Workload,
    cases,
)
from report import Row

Results = dict[str, list[Row]]
"""By the name of the table."""

SECONDS = 3.0
QUICK_SECONDS = 0.2
QUICK_ELEMENTS = 2_000_000
QUICK_SITUATIONS = ("hot", "sweep")


def main() -> None:
    options = parse(sys.argv[1:])
    op.set_num_threads(options.threads)
    header = machine(("torch", "bitsandbytes"))
    if options.each_isa:
        header["isa"] = "each that this machine runs"
    print("".join(f"{name}: {value}\n" for name, value in header.items()), flush=True)
    with threadpool_limits(options.threads, user_api="blas"):  # those of NumPy's products
        results = measure_each_isa(sys.argv[1:]) if options.each_isa else measure(options)
    for name, rows in results.items():
        report.show(getattr(report, name)(rows), options.markdown)
    if options.json:
        tables = {name: [asdict(row) for row in rows] for name, rows in results.items()}
        options.json.write_text(json.dumps({"machine": header, **tables}, indent=1) + "\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    elements = {work.name: work.elements for work in (*WORKLOADS.values(), *BATCHES)}
    add("--table", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    rules = list(op.optim.registry)
    add("--rule", nargs="+", choices=rules, default=rules, help="no matter to batch_norm")
    add("--workload", "--size", nargs="+", choices=elements, help="default: all")
    situations = list(training.SITUATIONS)
    add("--situation", nargs="+", choices=situations, help="of training's rows; default: all")
    add("--threads", type=int, help="of everybody; default: onepass.get_num_threads()")
    add("--seconds", type=float, help=f"for each row, more if needed; default: {SECONDS:g}")
    add("--quick", action="store_true", help="a look: little time, small workloads")
    add("--each-isa", action="store_true", help="one row for each instruction set")
    add("--markdown", action="store_true", help="print the tables as GitHub's Markdown")
    add("--json", type=Path, metavar="FILE", help="write what was measured, round by round")
    options = parser.parse_args(arguments)
    if options.seconds is None:
        options.seconds = QUICK_SECONDS if options.quick else SECONDS
    if options.situation is None:
        options.situation = QUICK_SITUATIONS if options.quick else situations
    if options.workload is None:
        most = QUICK_ELEMENTS if options.quick else math.inf
        options.workload = [name for name, size in elements.items() if size <= most]
    return options


def measure(options: argparse.Namespace) -> Results:
    chosen = cases(options.rule)
    steps = [WORKLOADS[name] for name in options.workload if name in WORKLOADS]
    batches = [batch for batch in BATCHES if batch.name in options.workload]
    work: list[tuple[str, Case | Operation, Workload, str]] = []
    work += [
        ("steps", case, workload, "hot")
        for workload in steps
        for case in chosen
        if case.cls.row.factored or "matrix" not in workload.name
    ]
    work += [
        ("training", case, workload, situation)
        for workload in steps
        for situation in training.SITUATIONS_OF.get(workload.name, ())
        if situation in options.situation
        for case in chosen
    ]
    whole = [workload for workload in steps if workload.name in ("mlp", "resnet50", "3e7")]
    take_all = [case for case in chosen if case.accepts(full_step.ALL)]
    work += [("full_step", case, workload, "hot") for workload in whole for case in take_all]
    large = [workload for workload in steps if workload.name in ("1e6", "3e7")]
    work += [("formats", case, workload, "hot") for workload in large for case in chosen]
    work += [
        ("batch_norm", operation, batch, "hot") for batch in batches for operation in OPERATIONS
    ]
    work = [item for item in work if item[0] in options.table]
    work = [item for item in work if isinstance(item[1], Operation) or item[1].takes(item[2])]
    results: Results = {name: [] for name in TABLES}
    # Drawn by hand between the rows: a thread that draws would take its time from the contenders.
    with Progress(console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("timing", total=len(work))
        for table, case, workload, situation in work:
            progress.update(task, description=f"{workload.name}, {case}", refresh=True)
            row = measure_row(TABLES[table], case, workload, situation, options.seconds)
            results[table].append(row)
            progress.advance(task)
    return results


def measure_row(
    make: Callable[[Any, Any], dict[str, Any]],
    case: Case | Operation,
    workload: Workload,
    situation: str,
    seconds: float,
) -> Row:
    rivals = make(case, workload)  # their arrays end with this call
    before = getattr(rivals.get("onepass"), "before", None)
    timed_in = Situation(before, hot=False) if before else training.SITUATIONS[situation]()
    return Row(
        case=str(case),
        workload=workload.name,
        layout=workload.layout,
        situation=situation,
        tensors=len(workload.shapes),
        elements=workload.elements,
        bytes=np.dtype(np.float32).itemsize
        * (
            case.elements_moved(workload)
            if isinstance(case, Case)
            else workload.elements * case.arrays_moved
        ),
        isa=op.runtime.info()["isa"],
        torch_form=getattr(rivals.get("torch"), "form", None),
        formats={name: rival.bytes for name, rival in rivals.items() if hasattr(rival, "bytes")},
        seconds=alternate({name: rival.step for name, rival in rivals.items()}, seconds, timed_in),
    )


def step_rivals(case: Case, workload: Workload) -> dict[str, Any]:
    return {name: rival(case, workload) for name, rival in contenders.rivals(case).items()}


def norm_rivals(operation: Operation, batch: Batch) -> dict[str, Any]:
    return batch_norm.rivals(operation, batch, (ml_dtypes.bfloat16, np.float16))


TABLES = {
    "steps": step_rivals,
    "training": training.rivals,
    "full_step": full_step.rivals,
    "formats": formats.rivals,
    "batch_norm": norm_rivals,
}
"""By name, the contenders of a table; report.py has its columns."""


def measure_each_isa(arguments: Sequence[str]) -> Results:
    """The instruction set is chosen at import: one process for each that this machine runs."""
    arguments = [argument for argument in arguments if argument != "--each-isa"]
    measured = []
    for isa in (isa for isa, runs in op.runtime.info()["isas"].items() if runs):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "results.json"
            command = [sys.executable, __file__, *arguments, "--json", str(file)]
            env = os.environ | {"ONEPASS_ISA": isa}
            subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
            measured.append(json.loads(file.read_text()))
    tables = {name: [m[name] for m in measured] for name in TABLES}
    return {
        # Row by row, the instruction sets below each other.
        name: [Row(**fields) for same in zip(*tables[name], strict=True) for fields in same]
        for name in tables
    }


if __name__ == "__main__":
    main()
