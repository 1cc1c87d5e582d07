"""Settings by name: they are read and checked here, and groups are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import numpy as np

from onepass._hyperparameters import Check, Number, Whole, check_setting
from onepass._typing import Array, Overrides
from onepass.optim import _foreign
from onepass.optim._rule import Rule
from onepass.optim._settings import GROUP_CHECKS
from onepass.optim._tree import Leaves, is_sequence
from onepass.schedules._base import BaseSchedule
from onepass.schedules._phases import scaled

LR_SCALE = "lr_scale"
"""What overrides may have besides the settings of a group: a factor of the learning rate."""

_SCALE = Number()
_RATE = Number(above=0.0, high=1.0)
_DEPTH = Whole()
_MOST_NAMES = 8
"""How many names a message lists."""

_Settings: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class ByPattern:
    """Checked settings by patterns; the first pattern that a parameter's name matches counts."""

    label: str
    settings: Mapping[str, _Settings]

    def of(self, cls: type[Rule], name: str, array: Array) -> _Settings:  # noqa: ARG002
        """Return those of a parameter."""
        for pattern, settings in self.settings.items():
            if fnmatchcase(name, pattern):
                return settings
        return {}

    def first_matched(self, names: Sequence[str]) -> dict[str, int]:
        """Return the place of the first of these names that each pattern counts for, if any."""
        first: dict[str, int] = {}
        for place, name in enumerate(names):
            for pattern in self.settings:
                if fnmatchcase(name, pattern):
                    first.setdefault(pattern, place)
                    break
        return first

    def check_matched(self, names: Sequence[str]) -> None:
        """Raise ValueError where a pattern matches none of these names."""
        for pattern in self.settings:
            if not any(fnmatchcase(name, pattern) for name in names):
                expected = f"a match among the names {some_names(names)}"
                raise ValueError(f"{self.label}[{pattern!r}]: expected {expected}, got none")


@dataclass(frozen=True)
class ByFunction:
    """Settings that a function of a parameter's name and array returns."""

    label: str
    function: Callable[[str, Array], Mapping[str, Any] | None]

    def of(self, cls: type[Rule], name: str, array: Array) -> _Settings:
        """Return those of a parameter, checked."""
        found = self.function(name, array)
        return {} if found is None else _checked(cls, f"{self.label}({name!r})", found)


Override: TypeAlias = ByPattern | ByFunction


def read_overrides(cls: type[Rule], given: Overrides, label: str = "overrides") -> list[Override]:
    """Return what `overrides=` says, checked, in its order."""
    if given is None:
        return []
    if isinstance(given, Mapping):
        settings = {
            pattern: _checked(cls, f"{label}[{pattern!r}]", value)
            for pattern, value in _patterns(label, given)
        }
        return [ByPattern(label, settings)]
    if callable(given):
        return [ByFunction(label, given)]
    if is_sequence(given):
        each = enumerate(given)
        return [one for i, part in each for one in read_overrides(cls, part, f"{label}[{i}]")]
    expected = "a mapping of patterns to settings, a function of name and array, or a list of these"
    raise TypeError(f"{label}: expected {expected}, got {given!r}")


def by_name(cls: type[Rule], name: str, given: Mapping[str, Any]) -> ByPattern:
    """Return the values of one setting that is given as a mapping of patterns."""
    settings = {
        pattern: {name: check_setting(cls.group_checks, name, value, f"{name}[{pattern!r}]")}
        for pattern, value in _patterns(name, given)
    }
    return ByPattern(name, settings)


def _patterns(label: str, given: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for pattern, value in given.items():
        if not isinstance(pattern, str):
            raise TypeError(f"{label}: expected patterns that are strings, got {pattern!r}")
        yield pattern, value


def _checked(cls: type[Rule], label: str, given: Any) -> _Settings:
    """Return settings in their plain types, or raise."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{label}: expected a mapping of settings, got {given!r}")
    checks: dict[str, Check] = {**cls.group_checks, LR_SCALE: _SCALE}
    given = _foreign.renamed(given)
    _foreign.check_names(cls, given, (*GROUP_CHECKS, LR_SCALE), label)
    return {
        name: check_setting(checks, name, value, f"{label}[{name!r}]")
        for name, value in given.items()
    }


def check_matched(given: Iterable[Any], keys: Iterable[str | int]) -> None:
    """Raise ValueError where an override has a pattern that matches none of these parameters."""
    names = [str(key) for key in keys]
    for override in given:
        if isinstance(override, ByPattern):
            override.check_matched(names)


def split(
    cls: type[Rule], base: _Settings, overrides: Sequence[Override], leaves: Leaves, first: int
) -> list[tuple[_Settings, list[int]]]:
    """Return the groups of the leaves from `first` on: settings, and the places of the leaves.

    First is the group of the leaves without overrides, if there are any. Then comes a group for
    each set of overridden settings, in the order in which the leaves have them.
    """
    names = [str(key) for key in leaves.keys]
    groups: dict[Any, tuple[_Settings, list[int]]] = {(): (base, [])}
    for index, array in enumerate(leaves.arrays[first:], first):
        found: _Settings = {}
        # The engine refuses a leaf that is no array, with its own message.
        for override in overrides if isinstance(array, np.ndarray) else ():
            found = {**override.of(cls, names[index], array), **found}
        if found.get(LR_SCALE) == 1:
            del found[LR_SCALE]
        key = tuple(sorted((name, identity(value)) for name, value in found.items()))
        if key not in groups:
            groups[key] = _overridden(cls, base, found, names[index]), []
        groups[key][1].append(index)
    has_others = len(groups) > 1 and not groups[()][1]
    return list(groups.values())[has_others:]


def some_names(names: Sequence[str | int]) -> str:
    """Return the first of these names, for a message."""
    shown = [str(name) for name in names[:_MOST_NAMES]]
    return ", ".join(shown if len(names) <= _MOST_NAMES else [*shown, "..."])


def identity(value: Any) -> Any:
    """Return a key that is equal for equal values, and for functions only if they are the same."""
    if isinstance(value, tuple):
        return tuple(map(identity, value))
    if not callable(value) or isinstance(value, BaseSchedule):
        with suppress(TypeError):  # a part of it cannot be hashed
            hash(value)
            return value
    return "this one", id(value)


def _overridden(cls: type[Rule], base: _Settings, found: _Settings, name: str) -> _Settings:
    settings = {**base, **found}
    factor = settings.pop(LR_SCALE, 1.0)
    if factor != 1:
        rate = settings["lr"]
        settings["lr"] = scaled(rate, factor) if callable(rate) else factor * rate
    try:
        cls._check_together(settings)
    except ValueError as error:
        raise ValueError(f"overrides: for {name!r}, {error}") from None
    return settings


def no_decay_1d(name: str, array: Array) -> Mapping[str, Any] | None:  # noqa: ARG001
    """Give arrays of fewer than two axes, such as biases and norms, no weight decay.

    This is for ``overrides=``. In most recipes only the matrices decay.

    Parameters
    ----------
    name : str
        The parameter's name.
    array : ndarray
        The parameter.

    Returns
    -------
    mapping or None
        The setting for an array of fewer than two axes; None for any other.

    Notes
    -----
    Differs from

    * PyTorch: there nanoGPT and others sort the parameters into groups by ``p.dim() >= 2``.
    * optax: there the `mask` of ``add_decayed_weights`` does this.
    * timm: its ``param_groups_weight_decay`` leaves out names that end in ``.bias`` as well; write
      ``overrides=[{"*.bias": {"weight_decay": 0.0}}, op.no_decay_1d]``.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> params = {"w": np.ones((2, 2)), "b": np.ones(2)}
    >>> opt = op.AdamW(params, lr=0.1, weight_decay=0.1, overrides=op.no_decay_1d)
    >>> info = opt.step({"w": np.zeros((2, 2)), "b": np.zeros(2)})
    >>> params["w"][0, 0].item(), params["b"][0].item()
    (0.99, 1.0)
    """
    return {"weight_decay": 0.0} if array.ndim < 2 else None


@dataclass(frozen=True)
class _ByDepth:
    rate: float
    depth: Callable[[str], int | None]

    def __call__(self, name: str, array: Array) -> Mapping[str, float] | None:  # noqa: ARG002
        depth = self.depth(name)
        return None if depth is None else _scale(self.rate, _DEPTH(f"layers({name!r})", depth))


def _scale(rate: float, depth: int) -> dict[str, float]:
    return {LR_SCALE: rate**depth}


def layer_decay(
    rate: float, layers: Sequence[str | Sequence[str]] | Callable[[str], int | None]
) -> Overrides:
    r"""Let lower layers learn more slowly, each at a fraction of the rate of the layer above.

    This is for ``overrides=``, where training continues from weights that are trained already.
    Layer :math:`k`, counted from 0 at the top, has the rate :math:`\eta_k = \eta \, \gamma^k`.

    Parameters
    ----------
    rate : float in (0, 1]
        :math:`\gamma`; BEiT fine-tunes with 0.65 to 0.85.
    layers : sequence of patterns, or callable
        The layers from the bottom to the top, each a pattern of names or several patterns. A
        parameter belongs to the first layer that it matches; if it matches none, its rate stays as
        it is. Instead it may be a function of a name that returns how many layers are above it (0
        for the top), or None if the rate is to stay as it is.

    Returns
    -------
    mapping or callable
        What `overrides` takes. It scales whatever the rate is, a number or a schedule, by the
        setting ``"lr_scale"``.

    Raises
    ------
    TypeError, ValueError
        ``<argument>: expected ..., got ...``

    Notes
    -----
    Differs from

    * PyTorch: there you make the groups yourself, in a loop.
    * BEiT, timm: their ``layer_decay`` counts from the bottom, and a parameter in no block is at
      the top. The rates are the same.

    References
    ----------
    H. Bao, L. Dong, S. Piao and F. Wei, "BEiT: BERT pre-training of image transformers", ICLR 2022,
    arXiv:2106.08254.
    J. Howard and S. Ruder, "Universal language model fine-tuning for text classification", ACL
    2018, arXiv:1801.06146 (as "discriminative fine-tuning").

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> params = {name: np.ones(1) for name in ("embed.w", "block.w", "head.w")}
    >>> decay = op.layer_decay(0.5, layers=["embed.*", "block.*", "head.*"])
    >>> opt = op.SGD(params, lr=0.1, overrides=decay)
    >>> [(group["lr"], group["params"][0] is params["head.w"]) for group in opt.param_groups]
    [(0.1, True), (0.025, False), (0.05, False)]
    """
    rate = _RATE("rate", rate)
    if callable(layers):
        return _ByDepth(rate, layers)
    if not is_sequence(layers):
        raise TypeError(f"layers: expected a sequence of patterns or a function, got {layers!r}")
    scales: dict[str, Mapping[str, float]] = {}
    for i, layer in enumerate(layers):
        for pattern in layer if is_sequence(layer) else [layer]:
            if not isinstance(pattern, str):
                raise TypeError(f"layers[{i}]: expected patterns that are strings, got {pattern!r}")
            if pattern in scales:
                raise ValueError(f"layers[{i}]: expected each pattern once, got {pattern!r} again")
            scales[pattern] = _scale(rate, len(layers) - 1 - i)
    return scales
