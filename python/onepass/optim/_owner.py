"""What an optimizer's engine owns, as Python sees it: copies, pickles and checkpoints."""

import copyreg
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import starmap
from operator import call
from typing import Any, Self

import numpy as np

from onepass import _core
from onepass._files import Place
from onepass._hyperparameters import schedules_in
from onepass._memory import Order, order_of
from onepass._quiet import quiet
from onepass._typing import Array
from onepass.optim import _checkpoint, _state, _storage
from onepass.optim._arrays import Kept, arrange
from onepass.optim._overrides import ByPattern, Override, identity, some_names
from onepass.optim._rule import Rule
from onepass.optim._settings import DEFAULTS, GROUP_DEFAULTS, OWN_FIELDS
from onepass.schedules._base import whole


class OwnSetting:
    """A setting of the whole optimizer, as an attribute."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: "Owner | None", owner: type) -> Any:
        return self if instance is None else instance._engine.own[self.name]

    def __set__(self, instance: "Owner", value: Any) -> None:
        instance._engine.own[self.name] = value


class Owner(Rule, _core.Base):
    """The part of an optimizer that reads its engine, and replaces it as a whole."""

    _made_with: dict[str, Any]
    """The settings of groups that the constructor was given, defaults included."""
    _overrides: list[Override]
    """The overrides of the constructor; groups that are added take them, too."""

    def __new__(cls, params: Any = None, *_: Any, **__: Any) -> Self:
        """Return an optimizer, of a subclass where the parameters are those of `onepass.shard`."""
        made_of = getattr(type(params), "_optimizer_class", None)
        made: Self = super().__new__(cls if made_of is None else made_of(cls))
        return made

    @property
    def param_groups(self) -> list[_core.Settings]:
        """The groups' settings, each with ``"params"``; they may be changed between steps."""
        return self._engine.groups

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out: see `StepInfo.skip_reason`."""
        skipped: int = self._engine.contents()["progress"]["skipped"]
        return skipped

    @quiet
    def _show(
        self, name: str, find: Callable[[], tuple[list[int], list[Any]]]
    ) -> AbstractContextManager[None]:
        """Return the block of the method `name`; `find` says what it shows in which parameters."""
        self._check_outside(name)
        indices, values = find()
        now = self._engine.contents()
        labels = [now["labels"][index] for index in indices]
        params = [now["params"][index] for index in indices]
        shown = _core.Shown(labels, params, _storage.shown(values, params))
        self._engine.shown = shown, indices
        return shown

    def _of_the_run(self) -> list[Array]:
        """Return the parameters as the run has them, also while other weights are shown."""
        params: list[Array] = list(self._engine.contents()["params"])
        shown, indices = self._engine.shown or (None, [])
        if shown is not None and shown.active:
            for place, index in enumerate(indices):
                params[index] = shown.saved(place)
        return params

    def _coming(self) -> list[Kept]:
        """Return each parameter's arrays as the coming step will arrange them."""
        now = self._engine.contents()
        progress, groups = now["progress"], self.param_groups
        params = self._of_the_run()
        sizes = [size for _, size in now["parts"] or ()] or [None] * len(params)
        each = zip(now["group_of"], params, progress["kept"], progress["steps"], sizes, strict=True)
        return [
            arrange(self.row.name, groups[number], param, kept, steps, whole_size=size)
            for number, param, kept, steps, size in each
        ]

    def _check_outside(self, name: str) -> None:
        self._engine.check_outside(name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what copies and pickles take."""
        return copyreg.__newobj__, (type(self),), self.__getstate__()  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, and what the engine is made of."""
        self._check_outside("copy")
        contents = self._engine.contents()
        del contents["fields"]
        contents["state_alloc"] = None  # a copy in the same file or pool would be no copy
        contents["groups"] = list(map(dict, contents["groups"]))
        contents["own"] = dict(contents["own"])
        # A schedule that was replaced may be one that has no copy.
        now, values = contents["groups"][0], (v for g in contents["groups"] for v in g.values())
        schedules = (each for value in values for each in schedules_in(value))
        in_force = {id(part) for schedule in schedules for part in whole(schedule)}

        def kept(value: Any, found: Any) -> Any:
            return value if in_force.issuperset(map(id, schedules_in(value))) else found

        def kept_by_pattern(given: ByPattern) -> ByPattern:
            place_of = given.first_matched(list(map(str, contents["keys"])))
            settings = {}
            for pattern, own in given.settings.items():
                settings[pattern] = own
                if pattern in place_of:
                    of_group = contents["groups"][contents["group_of"][place_of[pattern]]]
                    settings[pattern] = {k: kept(v, of_group.get(k)) for k, v in own.items()}
            return ByPattern(given.label, settings)

        made_with = {
            name: kept_by_pattern(value) if isinstance(value, ByPattern) else kept(value, now[name])
            for name, value in self._made_with.items()
        }
        overrides = [
            kept_by_pattern(each) if isinstance(each, ByPattern) else each
            for each in self._overrides
        ]
        contents["orders"] = list(map(order_of, contents["params"]))
        own = {"_made_with": made_with, "_overrides": overrides, "_engine": contents}
        return {**self.__dict__, **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore them."""
        own = dict(state)
        contents = dict(own.pop("_engine"))
        self._follow(contents.pop("orders", None), contents)
        contents["fields"] = self._fields
        contents["groups"] = list(map(self._fields.settings, contents["groups"]))
        contents["own"] = OWN_FIELDS.settings(contents["own"])
        self.__dict__.update(own)
        self._engine = _core.Engine(contents)

    def _follow(self, orders: list[Order] | None, contents: dict[str, Any]) -> None:
        """Bring 8-bit codes into their parameters' order, of which a pickle knows C and F alone."""
        kept = contents["progress"]["kept"]
        for index, (param, order) in enumerate(zip(contents["params"], orders or (), strict=False)):
            if order != order_of(param):
                kept[index] = tuple(
                    _storage.laid_out_again(array, param, has_sign, order)
                    for array, has_sign in zip(
                        kept[index], (*self.row.has_sign, *[True] * 3), strict=True
                    )
                )

    def _commit(
        self,
        engine: "_core.Engine",
        *updates: tuple[dict[str, Any], dict[str, Any]],
        writes: _state.Writes | None = None,
    ) -> None:
        """Put an engine in force, change attributes, write state and the copies of the parameters.

        One native call, so that not even an interrupt sees a part of it.
        """
        contents = engine.contents()
        arrays = contents["labels"], contents["params"], contents["copies"]
        commit = _core.commit, [(self, engine), *updates], *arrays
        if writes:
            _core.check_params(*arrays)  # what could fail, before the first write
        into = [(np.ndarray.__setitem__, array, ..., values) for array, values in writes or ()]
        deque(starmap(call, [*into, commit]), maxlen=0)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything a run needs to continue, apart from the parameters.

        Returns
        -------
        dict
            ``{"state": {key: {"step": t, name: array, ...}}, "param_groups": [...],
            "step_options": {...}}``, PyTorch's layout and names, but for the last: `max_grad_norm`,
            `skip_grad_norm`, `nonfinite`, `clear_grads`, `seed` and `skipped_steps`, and between
            `accumulate` and the next step ``"gathered"`` and ``"left_out"``, how many calls were
            added and how many were not. Beside the rule's arrays, which
            stand as they are kept, are ``"average"``, with ``"averaged"``, its steps, ``"master"``,
            ``"slow"`` and ``"accumulated"``. A key is the parameter's dotted path (``"0.w"``) where
            a mapping is anywhere in the structure (names that are integers are text in it), else
            its index. A group holds its hyperparameters, the keys of its parameters and ``"step"``,
            the steps completed; between two turns of `step_one` also ``"round"``, what that goes on
            with. A schedule is code and stands there as None, or as the list of the memories in it
            (see `onepass.schedules`).

            Where settings were changed since the last step so that it will keep other arrays,
            ``"state"`` has those, and ``"unsettled"`` has the arrays as they are: the change may
            still be taken back.
        """
        return _state.state_dict(type(self), self._engine, self._of_the_run(), self._coming())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the run that `state_dict` was taken from.

        Takes PyTorch's own dictionaries too (its CPU tensors as NumPy arrays). Hyperparameters
        and step options are taken over; where this optimizer has a schedule, the schedule stays,
        and takes over the memory that was saved with one. State that was saved in another format
        than its group's is rounded to nearest by the next step. Load 16-bit parameters before: a
        master must fit. The copies of `copy_to` are written. Arrays that `state_alloc` has made
        are written where they are, and new ones are asked for where they do not fit.

        Raises
        ------
        TypeError, ValueError
            If anything in it does not fit this optimizer. Then nothing has changed.
        """
        self._check_outside("load_state_dict")
        engine, updates, writes = _state.loaded(type(self), self._engine, state_dict)
        self._commit(engine, *updates, writes=writes)

    def save(self, path: Place) -> None:
        """Write `state_dict()` to a file, atomically: the path holds the old file or the new one.

        The file is NumPy's ``.npz``, with no pickle in it. The parameters are not part of it.

        Parameters
        ----------
        path : str, path or binary file
            What a symbolic link points to is replaced, not the link; a device is written to; a FIFO
            or a socket is an error. A file that is open already (as `numpy.save` takes it) is
            written to where it stands, and nothing is promised about it where that fails.

        Raises
        ------
        OSError, TypeError, ValueError
            If it cannot be written. Then the path holds what it held.
        """
        _checkpoint.write(path, self.rule, self.state_dict())

    def load(self, path: Place) -> None:
        """Continue from a file that `save` wrote; bit for bit the run that wrote it.

        Parameters
        ----------
        path : str, path or binary file
            A file that is open already must be able to seek.

        Raises
        ------
        ValueError, TypeError
            If the file is damaged, no checkpoint, or not of such an optimizer. Then, and where it
            cannot be read (OSError) or memory is short (MemoryError), nothing has changed.
        """
        self.load_state_dict(_checkpoint.read(path, self.rule))

    def __repr__(self) -> str:
        """Return the groups' sizes and settings, and the settings that differ from the defaults.

        What all groups share stands below them.
        """
        groups, now = self.param_groups, self._engine.contents()
        shown = [
            name
            for name in self.group_checks
            if name in self.checks or any(g[name] != GROUP_DEFAULTS[name] for g in groups)
        ]
        shared = [name for name in shown if len({identity(g[name]) for g in groups}) == 1]
        lines = []
        for group, places in zip(groups, _state.places_of(now), strict=True):
            size = sum(param.size for param in group["params"])
            params = f"params={len(places)} arrays of {size:,} elements"
            if len(groups) > 1:
                params += f" ({some_names([now['keys'][place] for place in places])})"
            lines.append([params, *_texts({n: group[n] for n in shown if n not in shared})])
        own = {name: v for name, v in self._engine.own.items() if v != DEFAULTS[name]}
        rest = _texts({**{name: groups[0][name] for name in shared}, **own})
        if len(groups) == 1:
            return f"{type(self).__name__}({', '.join([*lines[0], *rest])})"
        each = "".join(f"    {{{', '.join(line)}}},\n" for line in lines)
        return f"{type(self).__name__}(\n{each}    {', '.join(rest)},\n)"


def _texts(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name}={_text(value)}" for name, value in settings.items()]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)
