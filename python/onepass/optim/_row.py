"""The kernels' table of rules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onepass import _core
from onepass.optim._factored import Shape, shape_of


@dataclass(frozen=True)
class Row:
    """What the kernels of a rule take and keep."""

    name: str
    states: tuple[str, ...]
    """The arrays of its state, in order."""
    has_sign: tuple[bool, ...]
    """Whether each of them may be negative."""
    in_full: tuple[bool, ...]
    """Whether each of them is kept as it is computed, whatever format the others have."""
    start: tuple[str | None, ...]
    """The hyperparameter that each of them starts from; None: zero."""
    options: tuple[str, ...]
    """The settings that turn on a part of the rule where they are not 0."""
    hyper: tuple[str, ...]
    """The hyperparameters, as numbers."""
    defaults: tuple[float, ...]
    scalars: tuple[str, ...]
    """The numbers of a step."""
    uses_state: tuple[tuple[bool, ...], ...]
    """For each variant, which of the arrays it keeps."""
    factored: bool
    """Whether parameters of two or more axes have variants of their own."""
    shape: tuple[str, ...]
    """What each of the arrays has numbers for in such a parameter: "param", "rows", "columns" or
    "axes"."""
    memory: tuple[str, ...]
    """The numbers that it remembers."""
    memory_start: tuple[float, ...]
    keeps_weights: bool
    """Whether its state has weights, which its first step puts there."""
    full_weights: bool
    """Whether its weights must not be rounded between steps: they would drift apart from others
    that it keeps."""
    sums_over_all: bool
    """Whether its sums are over all arrays of an optimizer, for which it remembers once."""
    n_sums: tuple[int, ...]
    """For each variant, how many sums over the whole array it takes before a step."""
    directed: tuple[bool, ...]
    """For each variant, whether it steps along a direction that is made of the whole array."""

    def variant(self, settings: Mapping[str, Any], shape: Shape = ()) -> int:
        """Return the number of the kernels that go with these settings and a parameter's shape.

        An option is on where its setting is a schedule: the state must not come and go.
        """
        factored = (self.factored and len(shape) > 1) << len(self.options)
        return factored + sum(1 << k for k, name in enumerate(self.options) if settings[name])

    @property
    def own_memory(self) -> tuple[str, ...]:
        """The numbers that it remembers of each parameter, and not of all together."""
        return () if self.sums_over_all else self.memory

    def measures(self, settings: Mapping[str, Any]) -> bool:
        """Return whether a step with these settings depends on sums over the whole array."""
        return self.n_sums[self.variant(settings)] > 0

    def is_directed(self, settings: Mapping[str, Any]) -> bool:
        """Return whether a step with these settings takes a direction."""
        return self.directed[self.variant(settings)]

    def why_whole(self, settings: Mapping[str, Any]) -> str | None:
        """Return why a step with these settings needs whole arrays; None: parts step alone."""
        reasons = {
            "measures whole arrays": self.measures(settings) or self.sums_over_all,
            "takes whole matrices": self.is_directed(settings),
            "keeps numbers of rows and columns": self.factored,
        }
        return next((why for why, is_so in reasons.items() if is_so), None)

    def start_values(self, settings: Mapping[str, Any]) -> list[float]:
        """Return what each of the arrays starts from."""
        return [settings[name] if name else 0.0 for name in self.start]

    def used_states(self, settings: Mapping[str, Any], shape: Shape = ()) -> list[str | None]:
        """Return the names of the arrays in order, None where a parameter of this shape has none.

        That depends on the shape only where the row is `factored`.
        """
        uses = self.uses_state[self.variant(settings, shape)]
        return [name if used else None for name, used in zip(self.states, uses, strict=True)]

    def state_shapes(self, settings: Mapping[str, Any], shape: Shape) -> list[Shape | None]:
        """Return the shapes of the arrays of a parameter of this shape, None where it has none."""
        used = self.used_states(settings, shape)
        kinds = zip(used, self.shape, strict=True)
        return [None if name is None else shape_of(kind, shape) for name, kind in kinds]


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


ROWS = {
    name: Row(name, **{key: _fixed(value) for key, value in row.items()})
    for name, row in _core.rules().items()
}
