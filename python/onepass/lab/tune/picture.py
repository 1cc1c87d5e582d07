"""Optuna's plots of a study, made readable."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from onepass.lab._picture import COLOURS, LogScale, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS = "validation loss"

COLUMNS = 4
"""How many panels the picture of the slices has beside each other."""


def draw(study: optuna.Study, folder: Path) -> list[Path]:
    """Draw what the complete trials allow, and return where it is."""
    from matplotlib import pyplot as plt

    params = _varied(study)
    if not any(map(_is_shared(study), params)):  # fewer than two trials
        return []
    paths = [folder / f"{name}.png" for name in _PLOTS]
    for path, plot in zip(paths, _PLOTS.values(), strict=True):
        with _pyplot():
            figure = plot(study, params)
            save_png(figure, path, dpi=150, bbox_inches="tight")
            plt.close(figure)
    return paths


@contextmanager
def _pyplot() -> Iterator[None]:
    """Let Optuna use pyplot without a display, and leave its backend and styles as they were."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    backend = mpl.get_backend()
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.simplefilter("ignore")  # its plots are experimental, few trials tell little
        plt.switch_backend("agg")
        try:
            yield
        finally:
            mpl.use(backend, force=False)


def _history(study: optuna.Study, _params: Sequence[str]) -> "Figure":
    """Draw the loss of each trial, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    axes = plots.plot_optimization_history(study, target_name=LOSS)
    _rescale(axes, _scale(study))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = {"complete trial": axes.collections[0], "best so far": axes.lines[0]}
    shown |= _draw_left(axes, study)
    axes.legend(list(shown.values()), list(shown))
    axes.set_xlabel("trial")
    return _tidy([axes], "loss of each trial", 7, 4)


def _left(study: optuna.Study) -> list[tuple[int, float]]:
    """Return number and last loss of each trial that was pruned before its end."""
    trials = study.get_trials(states=(TrialState.PRUNED,))
    ends = [(t.number, t.intermediate_values[max(t.intermediate_values)]) for t in trials]
    return [(number, loss) for number, loss in ends if math.isfinite(loss)]


def _draw_left(axes: "Axes", study: optuna.Study) -> dict[str, Any]:
    """Draw where the trials stood that were pruned, at the top if above, and return the label."""
    if not (left := _left(study)):
        return {}
    numbers, losses = np.array(left).T
    top = axes.get_ylim()[1]
    (marks,) = axes.plot(numbers, np.minimum(losses, top), "x", color="0.6", ms=5, zorder=1)
    return {"pruned trial": marks}


def _importances(study: optuna.Study, params: Sequence[str]) -> "Figure":
    """Draw how much it matters which value a parameter has that all trials have."""
    shared = list(filter(_is_shared(study), params))
    axes = plots.plot_param_importances(study, params=shared, target_name=LOSS)
    axes.legend().remove()
    axes.set(xlabel="share of the variation", ylabel="")
    return _tidy([axes], f"importance of each parameter for the {LOSS}", 7, 3.5)


def _slices(study: optuna.Study, params: Sequence[str]) -> "Figure":
    """Draw the loss against each parameter."""
    drawn = plots.plot_slice(study, list(params), target_name=LOSS)
    panels = list(drawn) if isinstance(drawn, np.ndarray) else [drawn]
    for axes in panels:
        _rescale(axes, _scale(study))
        name = axes.get_xlabel()
        if name in ("optimizer", "state_format", "schedule"):
            names = [text.get_text().strip("'") for text in axes.get_xticklabels()]
            size = 10 if len(names) <= 8 else 6
            axes.set_xticks(axes.get_xticks(), names, rotation=60, ha="right", fontsize=size)
        elif name == "layers":
            axes.locator_params("x", integer=True)
    return _in_rows(panels)


def _in_rows(panels: Sequence["Axes"]) -> "Figure":
    """Move the panels of the slices, which Optuna has put into one row, into several."""
    from matplotlib.ticker import MaxNLocator

    rows = math.ceil(len(panels) / COLUMNS)
    height = 1.2 + 3.1 * rows
    figure = _tidy(panels, "loss against each parameter", 12, height)
    grid = figure.add_gridspec(
        rows, COLUMNS, left=0.07, right=0.9, bottom=1 / height, top=1 - 0.5 / height
    )
    grid.update(hspace=0.5, wspace=0.08)
    *_, colours = figure.axes
    colours.set_ylabel("trial")
    colours.yaxis.set_major_locator(MaxNLocator(integer=True))
    colours.set_position((0.92, 1 / height, 0.015, 1 - 1.5 / height))
    for number, axes in enumerate(panels):
        axes.set_subplotspec(grid[number // COLUMNS, number % COLUMNS])
        first = number % COLUMNS == 0
        axes.tick_params(axis="y", which="both", labelleft=first)
        axes.set_ylabel(LOSS if first else "")
    return figure


def _parallel(study: optuna.Study, params: Sequence[str]) -> "Figure":
    """Draw each trial as a line through the parameters that all have."""
    from matplotlib.ticker import MaxNLocator

    drawn, params = _scale(study), list(filter(_is_shared(study), params))

    def log_loss(trial: FrozenTrial) -> float:
        return math.log10(drawn.fit(math.nan if trial.value is None else trial.value))

    axes = plots.plot_parallel_coordinate(
        study, params, target=log_loss, target_name=f"log10 {LOSS}"
    )
    axes.tick_params(axis="x", rotation=0)
    (lines,) = axes.collections
    lines.set_cmap("viridis")
    _mark_best(axes, lines)
    names = [label.get_text() for label in axes.get_xticklabels()]
    if "layers" in names:  # of which there are no halves; the axis of the losses is the first
        scale = axes.figure.axes[names.index("layers") - len(names)]
        scale.yaxis.set_major_locator(MaxNLocator(integer=True))
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
    for scale in axes.figure.axes:
        for label in scale.get_yticklabels():
            label.set_bbox(behind)
            label.set_fontsize(8)  # a long name ends before the next scale
    return _tidy([axes], "each trial as a line", 2 + 2 * len(params), 5)


def _mark_best(axes: "Axes", lines: Any) -> None:
    """Draw the line of the smallest loss once more, above the others."""
    from matplotlib.collections import LineCollection

    best = int(np.argmin(lines.get_array()))
    marked = [lines.get_segments()[best]]
    axes.add_collection(LineCollection(marked, colors=COLOURS[1], lw=2.5, zorder=5))


_PLOTS: Mapping[str, Callable[[optuna.Study, Sequence[str]], "Figure"]] = {
    "history": _history,
    "importances": _importances,
    "slices": _slices,
    "parallel": _parallel,
}


SHOWN = {
    "history": ("History", "The loss of each trial, and the best so far."),
    "importances": ("Importances", "How much of the loss's variation each choice explains."),
    "slices": ("Slices", "The loss against each choice by itself; later trials are darker."),
    "parallel": ("Parallel lines", "Each trial is a line through its choices; the best is orange."),
}
"""What a page says of each picture: a heading, and a note."""


def _scale(study: optuna.Study) -> LogScale:
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    return LogScale([trial.value for trial in trials if trial.value is not None])


def _rescale(axes: "Axes", scale: LogScale) -> None:
    """Make the axis of the losses logarithmic, and move to it what has no place there."""
    for line in axes.lines:
        line.set_ydata(scale.fit(line.get_ydata()))
    for points in axes.collections:
        x, y = np.ma.filled(points.get_offsets(), np.nan).T
        points.set_offsets(np.stack((x, scale.fit(y)), axis=-1))
    scale.draw(axes)


def _varied(study: optuna.Study) -> list[str]:
    """Return the parameters of which there is more than one value to draw.

    Of the units in each layer, those of the first stand for all.
    """
    values: dict[str, set[object]] = {}
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        for name, value in trial.params.items():
            if name == "units_1" or not name.startswith("units_"):
                values.setdefault(name, set()).add(value)
    return [name for name, distinct in values.items() if len(distinct) > 1]


def _is_shared(study: optuna.Study) -> Callable[[str], bool]:
    """Return a function that tells whether all trials have a parameter."""
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    return lambda name: all(name in trial.params for trial in trials)


def _tidy(panels: Sequence["Axes"], title: str, width: float, height: float) -> "Figure":
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(width, height)
    for axes in panels:
        axes.set_facecolor("white")
        axes.grid(which="major", color="#e5e5e5")
        axes.grid(which="minor", axis="y", color="#e5e5e5")  # but no stripes of rates
        axes.set_title("", loc="left")
        axes.set_title("")
    if len(panels) > 1:
        figure.suptitle(title)
    else:
        panels[0].set_title(title)
    return figure
