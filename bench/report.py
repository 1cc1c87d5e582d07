"""What was measured, and its tables: for the terminal, and in GitHub's Markdown for the docs."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median

from rich.console import Console, JustifyMethod
from rich.table import Table

from formats import FLOAT32, FORMATS, Format
from full_step import EXTRA_ARRAYS, STAGES
from onepass.lab.bench import figures

PAGE = 220
"""Characters of a line where no terminal says how many."""


@dataclass(frozen=True)
class Row:
    """The times of one case on one workload: seconds per call, one a round, per contender.

    Of BatchNorm a case is an operation and a workload an array.
    """

    case: str
    workload: str
    layout: str
    situation: str
    tensors: int
    elements: int
    bytes: int
    isa: str
    torch_form: str | None
    formats: dict[str, dict[str, int]]
    """Of the contenders that have a format, what they count bytes of."""
    seconds: dict[str, list[float]]

    @property
    def arrays_moved(self) -> float:
        """Bytes that the case must move, in arrays of float32."""
        return self.bytes / (4 * self.elements)

    def microseconds(self, name: str) -> str:
        found = figures.microseconds(self.seconds, name)
        return "-" if found is None else f"{found:,.1f}"

    def ratio(self, name: str, to: str) -> str:
        """How many times as long as `to` the contender took; with a question mark if unsteady."""
        return str(figures.ratio(self.seconds, name, to) or "-")

    def bandwidth(self) -> str:
        return f"{self.bytes / median(self.seconds['onepass']) / 1e9:.1f}"

    def torch(self) -> str:
        return f"{self.ratio('torch', 'onepass')} {self.torch_form or ''}".rstrip()


Column = Callable[[Row], str]
WORKLOAD: dict[str, Column] = {"workload": lambda row: row.workload}


@dataclass(frozen=True)
class Report:
    """Rows under a title. A column is a heading and the text of a row's cell."""

    title: str
    columns: dict[str, Column]
    rows: Sequence[Row]
    n_labels: int  # leading columns that hold text

    def table(self) -> Table:
        table = Table(title=self.title, title_justify="left")
        for number, heading in enumerate(self.columns):
            justify: JustifyMethod = "left" if number < self.n_labels else "right"
            table.add_column(heading, justify=justify, no_wrap=True)
        for row, following in pairwise([*self.rows, None]):
            ends = following is not None and following.workload != row.workload
            table.add_row(*self._cells(row), end_section=ends)
        return table

    def markdown(self) -> str:
        rules = ["---" if n < self.n_labels else "--:" for n in range(len(self.columns))]
        lines = [list(self.columns), rules, *(self._cells(row) for row in self.rows)]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(x)} |" for x in lines), ""])

    def _cells(self, row: Row) -> list[str]:
        return [cell(row) for cell in self.columns.values()]


def steps(rows: Sequence[Row]) -> Report:
    """The table of steps."""
    labels = {**WORKLOAD, **_labels(rows)}
    return Report("opt.step, float32", labels | _rulers(rows, "µs a step"), rows, len(labels))


def batch_norm(rows: Sequence[Row]) -> Report:
    """The table of BatchNorm's operations."""
    layout: dict[str, Column] = {"layout": lambda row: row.layout}
    labels = {**WORKLOAD, **layout, **_labels(rows, "operation")}
    columns = labels | _rulers(rows, "µs a call")
    for small in ("bfloat16", "float16"):
        columns[f"float32 / {small}"] = lambda row, small=small: row.ratio("onepass", small)
        columns[f"torch / onepass, {small}"] = lambda row, small=small: row.ratio(
            f"torch {small}", small
        )
    return Report("Batch norm, float32 and 16 bits", columns, rows, len(labels))


def training(rows: Sequence[Row]) -> Report:
    """The table of small calls, back to back and as a training has them."""
    labels = {**WORKLOAD, **_labels(rows), "situation": lambda row: row.situation}
    columns: dict[str, Column] = {
        **labels,
        "µs a step": lambda row: row.microseconds("onepass"),
        "bound, µs": lambda row: row.microseconds("bound"),
        "schedule, µs": lambda row: row.microseconds("schedule"),
        "kernel, µs": lambda row: row.microseconds("kernel"),
    }
    if any("np.add" in row.seconds for row in rows):
        columns["kernel / np.add"] = lambda row: row.ratio("kernel", "np.add")
    if any("in place" in row.seconds for row in rows):
        columns["NumPy in place / onepass"] = lambda row: row.ratio("in place", "onepass")
        columns["/ bound"] = lambda row: row.ratio("in place", "bound")
        columns["/ schedule"] = lambda row: row.ratio("in place", "schedule")
    if _has_torch(rows):
        columns["torch / onepass"] = Row.torch
        columns["foreach / onepass"] = lambda row: row.ratio("foreach", "onepass")
    return Report("Small calls, float32", columns, rows, len(labels))


def full_step(rows: Sequence[Row]) -> Report:
    """The table of whole training steps."""
    labels = {**WORKLOAD, **_labels(rows)}
    columns: dict[str, Column] = {
        **labels,
        "bare, µs": lambda row: row.microseconds("bare"),
        **{f"+ {stage}": partial(_added, stage=stage) for stage in STAGES},
        "all, µs": lambda row: row.microseconds("onepass"),
        "all / bare": lambda row: row.ratio("onepass", "bare"),
        "by the bytes": lambda row: f"{1 + EXTRA_ARRAYS / row.arrays_moved:.2f}",
    }
    if _has_torch(rows):
        columns["torch, µs"] = lambda row: row.microseconds("torch")
        columns["torch / onepass"] = Row.torch
    return Report("A whole training step, float32", columns, rows, len(labels))


def formats(rows: Sequence[Row]) -> Report:
    """The table of steps with numbers of fewer bits: a line for each format of a row."""
    labels = {**WORKLOAD, **_labels(rows)}
    labels["parameters"] = lambda row: _format(row).parameters
    labels["gradients"] = lambda row: _format(row).grads
    labels["state"] = lambda row: _format(row).state
    columns: dict[str, Column] = {
        **labels,
        "bytes moved": partial(_bytes, what="moved"),
        "state, bytes": partial(_bytes, what="state"),
        "µs a step": lambda row: row.microseconds("onepass"),
        "onepass / copy limit": lambda row: row.ratio("onepass", "copy limit"),
        "float32 / onepass": lambda row: row.ratio("float32", "onepass"),
    }
    if _has_torch(rows):
        columns["torch / onepass"] = Row.torch
    if any("bitsandbytes" in row.seconds for row in rows):
        columns["bitsandbytes / onepass"] = lambda row: row.ratio("bitsandbytes", "onepass")
    lines = [_in_format(row, name) for row in rows for name in row.formats]
    return Report("A step in each format, bytes per parameter", columns, lines, len(labels))


def _in_format(row: Row, name: str) -> Row:
    """The row of a step in one format, beside the step in float32."""
    times = {
        "onepass": row.seconds[name],
        "copy limit": row.seconds[f"copy limit of {name}"],
        "float32": row.seconds[str(FLOAT32)],
    }
    return replace(row, formats={name: row.formats[name]}, seconds=row.seconds | times)


def _format(row: Row) -> Format:
    (name,) = row.formats
    return next(form for form in FORMATS if str(form) == name)


def _bytes(row: Row, what: str) -> str:
    """Per element, of the row's only format."""
    (counted,) = row.formats.values()
    return f"{counted[what] / row.elements:.2f}"


def _added(row: Row, stage: str) -> str:
    """What a stage costs, of the bare step."""
    value, _, unsteady = row.ratio(stage, "bare").partition("?")
    return f"{100 * (float(value) - 1):.0f} %{'?' * bool(unsteady)}"


def _labels(rows: Sequence[Row], case: str = "rule") -> dict[str, Column]:
    labels: dict[str, Column] = {case: lambda row: row.case}
    if len({row.isa for row in rows}) > 1:
        labels["ISA"] = lambda row: row.isa
    return labels


def _rulers(rows: Sequence[Row], time: str) -> dict[str, Column]:
    """The time, under this heading, and what it is held against."""
    columns: dict[str, Column] = {
        time: lambda row: row.microseconds("onepass"),
        "GB/s": Row.bandwidth,
        "onepass / copy limit": lambda row: row.ratio("onepass", "copy limit"),
        "NumPy / onepass": lambda row: row.ratio("NumPy", "onepass"),
    }
    if _has_torch(rows):
        columns["torch / onepass"] = Row.torch
    return columns


def _has_torch(rows: Sequence[Row]) -> bool:
    return any("torch" in row.seconds for row in rows)


def show(report: Report, markdown: bool) -> None:
    """Print a report, if it has rows."""
    if not report.rows:
        return
    if markdown:
        print(report.markdown())
    else:
        Console(width=None if sys.stdout.isatty() else PAGE).print(report.table(), "")
