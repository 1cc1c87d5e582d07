"""The report as one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onepass.lab import _page
from onepass.lab._page import Shown, drawn
from onepass.lab.compare.losses import loss_of
from onepass.lab.compare.picture import NAMES, draw_rates, draw_times
from onepass.lab.compare.results import Comparison, Entry, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Means over the seeds at the end of the runs, ± the standard deviation; of runs that did not "
    "diverge. Steps to a score are those of the seeds that reached it. Loss and score are measured "
    "after every epoch, on all training and validation rows; the times are those of one run, "
    "without that, and medians over the seeds."
)
MOST_NAMES = 8


def render(
    comparison: Comparison,
    curves: "Figure",
    description: Sequence[str],
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    facts: Mapping[str, Any],
) -> str:
    """Return the page."""
    best = best_of(comparison)
    pictures = [
        Shown(
            "curves",
            "Curves",
            "Lines are means over the seeds, bands reach from the lowest to the highest. Point at "
            "a curve, or at its name below, and the others fade.",
            drawn(curves),
            "Training loss, validation score, gradient norm and learning rate of each optimizer "
            "against the steps",
        ),
        Shown(
            "times",
            "Where the time went",
            "",
            drawn(draw_times(comparison)),
            "Microseconds a step for gradient and update, a bar for each optimizer",
        ),
    ]
    if any(choose(entry.tried) for entry in comparison.entries):
        rates = Shown(
            "rates",
            "How the learning rates were chosen",
            "Each point is the mean over seeds that are not among those above, a whole run each, "
            "with a standard error to each side; what diverged is left out. Chosen, with a ring, "
            "is the smallest rate that is as good as the best within one standard error.",
            drawn(draw_rates(comparison)),
            "Validation loss against learning rate for each optimizer",
        )
        pictures.insert(1, rates)
    return _page.render(
        title=f"onepass compare: {comparison.recipe.table.name}",
        description=description,
        findings=_findings(comparison, best),
        headings=headings,
        rows=rows,
        best=[comparison.entries.index(entry) for entry in best],
        caption=CAPTION,
        pictures=pictures,
        facts=facts,
    )


def best_of(comparison: Comparison) -> list[Entry]:
    """Return who has the highest mean score, several if they share it; none if all diverged."""
    scores = [(_score(entry), entry) for entry in comparison.entries]
    top = max((score.mean for score, _ in scores if score), default=None)
    return [entry for score, entry in scores if score and score.mean == top]


def _score(entry: Entry) -> Any:
    return entry.final(lambda end: end.score)


def _findings(comparison: Comparison, best: Sequence[Entry]) -> list[str]:
    """Return what is to be seen, in two sentences."""
    if not best:
        return ["Every run diverged."]
    name, top = loss_of(comparison.recipe.table).score_name, _score(best[0])
    said = [f"Highest validation {name}: {_names(best)}, {top.mean:.1%}."]
    if top.deviation is not None:
        near = [
            entry
            for entry in comparison.entries
            if entry not in best and (s := _score(entry)) and s.mean >= top.mean - top.deviation
        ]
        said.append(
            f"No more than one standard deviation over the seeds ({100 * top.deviation:.1f}) "
            f"below it: {_names(near) or 'none'}."
        )
    return [" ".join(said)]


def _names(entries: Sequence[Entry]) -> str:
    names = [f"{entry.contender.name} {NAMES[entry.batch_norm]}" for entry in entries]
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
