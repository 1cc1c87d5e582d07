"""What a step needs of parameters and their state, for as long as nothing about these changes."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onepass import _capi, _core
from onepass._hyperparameters import as_numbers
from onepass._quiet import quiet
from onepass.optim import Optimizer
from onepass.optim._settings import GROUP_DEFAULTS, averages
from onepass.torch import _tensors
from onepass.torch._tensors import (
    AVERAGE,
    AVERAGE_FROM,
    FORMATS,
    MASTER,
    SLOW,
    STATE_FORMATS,
    STRIDES,
)

Groups = list[dict[str, Any]]
State = dict[Tensor, dict[str, Any]]

try:
    _EXCHANGE = Tensor.__dlpack_c_exchange_api__
except AttributeError:
    raise ImportError(
        f"onepass.torch: expected a PyTorch whose tensors have DLPack's exchange functions, "
        f"as 2.13 does, got {torch.__version__}"
    ) from None


class Unfit(Exception):  # noqa: N818
    """Something is not for our kernels: why, and what to raise where PyTorch's step will not do."""

    def __init__(self, why: str, index: int = 0, got: str = "", error: Any = None) -> None:
        super().__init__(why)
        expected = "a dense tensor in the CPU's memory, of a dtype that the kernels take"
        self.why = why
        self.error = error or ValueError(f"params[{index}]: expected {expected}, got {got}")


def plain(value: Any) -> Any:
    """Return a setting without tensors, which schedulers may put there."""
    if isinstance(value, Tensor):
        return value.item()
    is_list = isinstance(value, tuple | list) or getattr(value, "ndim", 0) == 1
    return tuple(map(plain, value)) if is_list else value


@_core.native
def other_items(parts: list[Any], items: list[Any]) -> list[int] | None:
    """Return the places of those items that are other objects.

    The parts are lists, or dicts whose items are their keys and values in turn. None if there are
    more or fewer items, or other keys.
    """
    raise NotImplementedError


def _items(dicts: Iterable[dict[Any, Any]]) -> list[Any]:
    """Return what `other_items` compares with."""
    return [thing for each in dicts for item in each.items() for thing in item]


class Plan:
    """A step of the parameters that have a gradient now."""

    def __init__(self, cls: type[Optimizer], groups: Groups, state: State) -> None:
        self.cls = cls
        self._is_directed, self._sums_over_all = any(cls.row.directed), cls.row.sums_over_all
        lists = [group["params"] for group in groups]
        self._lengths = list(map(len, lists))
        self._everywhere = [p for params in lists for p in params]
        self._grads = [p.grad for p in self._everywhere]
        self._missing = [grad is None for grad in self._grads]
        owners = [number for number, params in enumerate(lists) for _ in params]
        found = [i for i, is_missing in enumerate(self._missing) if not is_missing]
        self._places = found
        self.params = [self._everywhere[i] for i in found]
        self._owners = [owners[i] for i in found]
        self.step = _capi.Step(cls, len(groups), [f"params[{i}]" for i in found])
        self._names = [name for name in cls.group_checks if any(name in g for g in groups)]
        self.settings: list[dict[str, Any]] = [{} for _ in groups]
        self._items_of_groups: list[Any] = []
        self._owners_of_items: list[int] = []
        self._may_change = True
        self.read_settings(groups)
        self._add_params()
        self._add_state(state)
        self._addresses, self._steps_before = (self.step.tensors[n] for n in ("grad", "steps"))
        self._copied: list[int] = []
        self._own_entries: list[Any] = []
        self._items_of_state: list[Any] = [object()]  # nothing is like it
        self._tensors: list[Tensor] = []
        self._has_looked = False
        self._looks_of_grads, self._looks = (_core.Looks(_EXCHANGE) for _ in range(2))

    # What may change between steps, looked at in every one

    def is_as_before(self, groups: Groups, state: State) -> bool:
        """Return whether parameters, and their state, are what they were."""
        lists = [group["params"] for group in groups]
        if list(map(len, lists)) != self._lengths:
            return False
        if other_items(lists, self._everywhere) != []:
            return False
        self._grads = [p.grad for p in self._everywhere]
        if [grad is None for grad in self._grads] != self._missing:
            return False
        # By value, since to look a parameter up takes a Python call.
        if other_items([state, *self._own_entries], self._items_of_state) != []:
            return False
        return self._looks.same(self._tensors)

    def read_settings(self, groups: Groups) -> bool:
        """Take over what has changed; return whether the state must be another one."""
        places = None if self._may_change else other_items(groups, self._items_of_groups)
        if places == []:
            return False
        _check_mode(groups)
        other_state = False
        for number, given in enumerate(self._find_settings(groups, places)):
            before = self.settings[number]
            new = {name: plain(value) for name, value in given.items()}
            changed = {name: new[name] for name in new if new[name] != before.get(name, before)}
            if changed:
                new = {**before, **changed}
                self._check(changed, new)
                self.step.set(number, _ours(changed))
                if changed.keys() - {"lr"}:  # which no state depends on
                    other_state |= self._kind_of_state(before) != self._kind_of_state(new)
                self.settings[number] = new
        return other_state

    def _find_settings(self, groups: Groups, places: list[int] | None) -> list[dict[str, Any]]:
        """Return those of each group that may have changed: at these places, or all."""
        found: list[dict[str, Any]] = [{} for _ in groups]
        if places is None:
            found = [{name: group.get(name) for name in self._names} for group in groups]
            self._items_of_groups = _items(groups)
            self._owners_of_items = [n for n, each in enumerate(groups) for _ in _items([each])]
        else:  # a scheduler's, in every step
            for place in places:
                number, name = self._owners_of_items[place], self._items_of_groups[place - 1]
                self._items_of_groups[place] = value = groups[number][name]
                if name in self._names:
                    found[number][name] = value
        values = chain.from_iterable(map(dict.values, found))
        self._may_change = any(map(_may_change, values))
        return found

    def read_grads(self) -> list[int]:
        """Take the gradients as they are now; return the places of those that had to be copied."""
        grads = self.grads = [grad for grad in self._grads if grad is not None]
        alike = self._has_looked and self._looks_of_grads.read(grads, self._addresses)
        if not alike or any(map(Tensor.is_neg, grads)):
            self._check_grads(grads)
        for i in self._copied:
            grads[i] = torch.empty_like(self.params[i], dtype=grads[i].dtype).copy_(grads[i])
            self._addresses[i] = grads[i].data_ptr()
        return self._copied

    def _check_grads(self, grads: list[Tensor]) -> None:
        for place, param, grad in zip(self._places, self.params, grads, strict=True):
            _check_grad(place, param, grad)
        order = [p.stride() for p in self.params]
        self._copied = [i for i, grad in enumerate(grads) if grad.stride() != order[i]]
        self.step.tensors["grad_format"] = [FORMATS[grad.dtype] for grad in grads]
        self._looks_of_grads.remember(grads)
        self._has_looked = self._looks_of_grads.read(grads, self._addresses)

    def _check(self, changed: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        for name, value in _ours(changed).items():
            try:
                self.cls.group_checks[name](name, value)
            except (TypeError, ValueError) as error:
                raise Unfit(name, error=error) from None
        if changed.keys() - {"lr"}:
            try:
                self.cls._check_together({**self.cls.defaults, **_ours(values)})
            except ValueError as error:
                raise Unfit("settings", error=error) from None

    def _kind_of_state(self, settings: Mapping[str, Any]) -> Any:
        """Return what decides which state a parameter keeps."""
        values = {**self.cls.defaults, **GROUP_DEFAULTS, **settings}
        kept = averages(values), values["lookahead_every"] is None
        formats = values["state_format"], values["average_dtype"], values["rounding"]
        return self.cls.row.variant(values), formats, kept

    # How it is made

    def _add_params(self) -> None:
        table = self.step.tensors
        table["group"] = self._owners
        self._shapes = []
        for i, param in enumerate(self.params):
            values, place = self.settings[self._owners[i]], self._places[i]
            if why := _tensors.unfit(param):
                raise Unfit(why, place, f"a {why}")
            if param.dtype in _tensors.SMALL and values["rounding"] is None:
                raise Unfit("16-bit parameters without rounding=", place, f"{param.dtype}")
            if param.dtype == torch.float64 and (kept := values["state_format"]) is not None:
                expected = "None beside float64 parameters"
                raise TypeError(f"state_format: expected {expected}, got {kept!r}")
            if not _tensors.is_dense(param):
                raise Unfit("not dense", place, f"strides {param.stride()}")
            shaped = self.cls.row.factored or self.cls.row.is_directed(_ours(values))
            f_order = not param.is_contiguous()
            if shaped and f_order and not param.permute(*range(param.ndim)[::-1]).is_contiguous():
                raise Unfit("order of axes", place, f"strides {param.stride()}")
            shape = np.array(param.shape, np.int64)
            self._shapes.append(shape)
            row = table[i]
            row["size"], row["ndim"], row["f_order"] = param.numel(), param.ndim, f_order
            row["shape"] = shape.ctypes.data
            row["format"], row["param"] = FORMATS[param.dtype], param.data_ptr()
            row["nearest"] = values["rounding"] == "nearest"

    def _add_state(self, state: State) -> None:
        cls, row, table = self.cls, self.cls.row, self.step.tensors
        self._new: State = {}
        n = len(self.params)
        self.steps = np.zeros(n, _dtype_of_steps())
        self.memory = np.zeros((max(1, n), max(1, len(row.memory))))
        for i, param in enumerate(self.params):
            values = self.settings[self._owners[i]]
            before = state.get(param) or {}
            try:
                settled = _tensors.settle(cls, {**cls.defaults, **_ours(values)}, param, before)
            except ValueError as error:
                label = f"params[{self._places[i]}]"
                raise Unfit(
                    "state of another shape", error=ValueError(f"{label}: {error}")
                ) from None
            self.steps[i] = _tensors.steps_of(before, cls.step_if_missing)
            settled["step"] = _scalar(self.steps, i)
            for k, name in enumerate(row.own_memory):
                self.memory[i, k] = before.get(name, row.memory_start[k])
                settled[name] = _scalar(self.memory[i], k)
            for name in cls.saved_scalars:
                settled[name] = before.get(name, torch.zeros((), dtype=torch.float64))
            self._write_row(table[i], settled)
            if row.memory:
                table["memory"][i] = self.memory[i].ctypes.data
            self._new[param] = settled

    def _write_row(self, row: Any, settled: Mapping[str, Any]) -> None:
        for k, name in enumerate(self.cls.row.states):
            if (kept := settled.get(name)) is not None:
                row["state"][k] = kept.data_ptr()
                row["state_format"] = max(row["state_format"], STATE_FORMATS.get(kept.dtype, 0))
        for name, column in ((AVERAGE, "average"), (SLOW, "slow")):
            if name in settled:
                row[column] = settled[name].data_ptr()
        row["average_from"] = settled.get(AVERAGE_FROM, 0)
        if MASTER in settled:
            row["copy"], row["copy_format"] = row["param"], row["format"]
            row["param"], row["format"] = settled[MASTER].data_ptr(), _capi.F32
            row["is_master"] = True

    # The step

    def run(self, groups: Groups) -> None:
        """Take the step. What it raises has changed nothing."""
        if self._sums_over_all:
            names = zip(self.cls.row.memory, self.cls.row.memory_start, strict=True)
            self.memory[0] = [groups[0].get(name, start) for name, start in names]
        _core.count_step(self.steps, self._steps_before)
        try:
            directions = self._make_directions() if self._is_directed else None
        except BaseException:
            self.steps -= 1
            raise
        try:
            self.step.run()
        except Exception:  # it was refused; an interrupt comes when all has moved
            self.steps -= 1
            raise
        finally:
            if self._sums_over_all:
                for group in groups:
                    group.update(zip(self.cls.row.memory, self.memory[0].tolist(), strict=True))
        del directions
        if self.step.result.skipped:
            self.steps -= 1

    def commit(self, state: State) -> None:
        """Let the optimizer's state be that of this plan."""
        for param, settled in self._new.items():
            entry = state.setdefault(param, {})
            for name in (*self.cls.row.states, AVERAGE, AVERAGE_FROM, MASTER, SLOW, STRIDES):
                if name not in settled and entry.get(name) is not None:
                    del entry[name]
            entry.update(settled)
        if self._new:
            self._remember(state)
        self._new = {}
        if self.cls.saved_scalars:
            self._write_saved(state)

    def completed(self) -> int:
        """Return how many steps the parameter with the most of them has completed."""
        return int(self.steps.max(initial=0))

    def lr(self) -> float:
        """Return the learning rate of the first group."""
        return float(self.settings[0]["lr"]) if self.settings else 0.0

    def let_go(self) -> None:
        """Keep no gradient alive until the next step."""
        self.grads = self._grads = []

    def _remember(self, state: State) -> None:
        """Remember what is_as_before compares with."""
        self._own_entries = [state[p] for p in self.params]
        self._items_of_state = _items([state, *self._own_entries])
        # A count that somebody has moved elsewhere is not worth a look in every step.
        kept = chain.from_iterable(map(dict.values, self._own_entries))
        arrays = (each for each in kept if isinstance(each, Tensor) and each.ndim)
        self._tensors = [*self.params, *arrays]
        self._looks.remember(self._tensors)

    def _write_saved(self, state: State) -> None:
        """Write numbers of the coming step that PyTorch keeps in the state."""
        for param, owner, steps in zip(self.params, self._owners, self.steps, strict=True):
            values = {**self.cls.defaults, **self.settings[owner]}
            scalars = self.cls.scalars(int(steps) + 1, values)
            for name in self.cls.saved_scalars:
                state[param][name].fill_(scalars[name])

    def _make_directions(self) -> dict[int, Tensor]:
        """Make the directions that the step goes along, where the rule has some."""
        cls, made = self.cls, dict[int, Tensor]()
        values = [{**cls.defaults, **_ours(settings)} for settings in self.settings]
        for i, (param, owner) in enumerate(zip(self.params, self._owners, strict=True)):
            if cls.row.is_directed(values[owner]):
                made[i] = torch.empty_like(param, dtype=_tensors.full(param))
                self.step.tensors["direction"][i] = made[i].data_ptr()
        if made:
            norms = self.step.direct()
            numbers = [as_numbers(cls.checks, each) for each in values]
            if not self.step.result.skipped:
                quiet(cls.finish_directions)(
                    [
                        (d.numpy(), float(norms[i]), numbers[self._owners[i]])
                        for i, d in made.items()
                    ]
                )
        return made


def _check_mode(groups: Groups) -> None:
    for group in groups:
        for name in ("capturable", "differentiable"):
            if group.get(name):
                raise Unfit(name, error=ValueError(f"{name}: expected False, got True"))


def _check_grad(place: int, param: Tensor, grad: Tensor) -> None:
    if why := _tensors.unfit(grad):
        raise Unfit(f"gradient: {why}", place, f"a gradient that is a {why}")
    if grad.shape != param.shape:
        got = f"a gradient of shape {tuple(grad.shape)}"
        raise Unfit("gradient of another shape", place, got)


def _may_change(value: Any) -> bool:
    """Return whether a setting may be changed in place: a tensor, a list."""
    if isinstance(value, tuple):
        return any(map(_may_change, value))
    return isinstance(value, Tensor | list) or hasattr(value, "ndim")


def _ours(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as our classes have them, which know no rounding of PyTorch's."""
    return {n: "master" if n == "rounding" and v is None else v for n, v in values.items()}


def _dtype_of_steps() -> Any:
    return np.float64 if torch.get_default_dtype() == torch.float64 else np.float32


def _scalar(numbers: Any, i: int) -> Tensor:
    """Return a number of an array as a tensor without axes, which shares its memory."""
    return torch.from_numpy(numbers[i : i + 1])[0]
