"""The step of every class here: PyTorch's optimizer around it, our kernels inside."""

import ctypes
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.autograd.graph import increment_version
from torch.optim import optimizer as host

from onepass import _capi, optim
from onepass._hyperparameters import Maybe, Whole, as_numbers
from onepass._quiet import quiet
from onepass.optim import StepInfo
from onepass.optim._settings import CHECKS, DEFAULTS, averages
from onepass.torch import _tensors
from onepass.torch._plan import Plan, Unfit, plain
from onepass.torch._tensors import AVERAGE, MASTER, SLOW

OPTIONS = {**DEFAULTS, "num_threads": None}
"""What belongs to the whole optimizer, beyond PyTorch."""

MEASURING = ("max_grad_norm", "skip_grad_norm", "nonfinite")
"""The options with which a step measures the gradients' norm."""

_OPTION_CHECKS = {**CHECKS, "num_threads": Maybe(Whole(low=1, below=257))}


@cache
def _team() -> int | None:
    """Return the address of what runs work on PyTorch's own threads, where that is to be found.

    After a backward pass these still spin on the cores that other threads would need.
    """
    try:
        found = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # no OpenMP of this kind, or not such a system
        return None
    return ctypes.cast(found, ctypes.c_void_p).value


class Option:
    """What belongs to the whole optimizer, as an attribute that is checked."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: "Native | None", owner: type) -> Any:
        return self if instance is None else instance._options[self.name]

    def __set__(self, instance: "Native", value: Any) -> None:
        instance._options[self.name] = _OPTION_CHECKS[self.name](self.name, plain(value))
        instance._plan = None


class Native(torch.optim.Optimizer):
    """Overrides the step of the class behind it, and keeps all else.

    Parameters, groups, state and files are PyTorch's. What the kernels do not take goes to
    PyTorch's own step, where there is one, and is counted in `fallbacks`.
    """

    cls: ClassVar[type[optim.Optimizer]]
    """Our class of the same name, which has the rule."""
    beyond: ClassVar[Mapping[str, Any]]
    """The settings of groups that PyTorch's class lacks, with their defaults."""
    host: ClassVar[type[torch.optim.Optimizer] | None]
    """PyTorch's class, where it has one."""
    arguments: ClassVar[inspect.Signature]
    """The arguments that PyTorch's own constructor has, too."""

    max_grad_norm = Option()
    skip_grad_norm = Option()
    nonfinite = Option()
    clear_grads = Option()
    seed = Option()
    num_threads = Option()

    def __init__(self, params: Any, *args: Any, **settings: Any) -> None:
        self._options: dict[str, Any] = {}
        for name, value in OPTIONS.items():
            setattr(self, name, settings.pop(name, value))
        self._given = {n: settings.pop(n, value) for n, value in self.beyond.items()}
        self._forget()
        if self.host is None:
            given = self.arguments.bind(params, *args, **settings)
            given.apply_defaults()
            settings = {n: v for n, v in given.arguments.items() if n in self.cls.checks}
            super().__init__(params, settings)
        else:
            super().__init__(params, *args, **settings)
        self.defaults.update(self._given)

    def _forget(self) -> None:
        """Begin as nothing had been stepped yet."""
        self._plan: Plan | None = None
        self._last: Plan | StepInfo | None = None
        self._shown = False
        self._lock = Lock()  # two threads that step at once would pull the plan from each other
        self.fallbacks: Counter[str] = Counter()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as PyTorch does."""
        if isinstance(param_group, dict):
            for name, value in self._given.items():
                param_group.setdefault(name, value)
            # PyTorch's own settings are PyTorch's to check.
            ours = self._given if self.host else {**self.defaults, **self._given}
            for name in ours:
                self._check(name, param_group.get(name, ours[name]))
        super().add_param_group(param_group)

    def _check(self, name: str, value: Any) -> None:
        if not (name == "rounding" and value is None and self.host):
            self.cls.group_checks[name](name, plain(value))

    # A step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; return what the closure returns, which computes the loss anew."""
        if self._has_hooks():
            return _hooked_step(self) if closure is None else _hooked_step(self, closure)
        return self._take_step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # for PyTorch, which would wrap it else

    def _has_hooks(self) -> bool:
        has_some = bool(
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or host._global_optimizer_pre_hooks
            or host._global_optimizer_post_hooks
            or profiler._is_profiler_enabled
        )
        # PyTorch wraps the step of somebody's subclass, and has called them by now.
        return has_some and type(self).step is Native.step

    def _take_step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._shown:
            raise RuntimeError(
                "step: expected the block of averaged() to be over, got a step in it"
            )
        try:
            with self._lock:
                self._step_natively()
        except (Unfit, _capi.Overlap) as why:
            self._plan = None
            self._fall_back(why)
        except BaseException:
            self._plan = self._last = None
            raise
        return loss

    def _fall_back(self, why: Exception) -> None:
        error = why.error if isinstance(why, Unfit) else why
        if self.host is None or self._asks_for_more():
            raise error from None
        self.fallbacks[why.why if isinstance(why, Unfit) else "shared memory"] += 1
        step = self.host.step
        if getattr(step, "hooked", False):  # the hooks are ours to call
            step = step.__wrapped__
        step(self)
        self._last = None

    def _asks_for_more(self) -> bool:
        """Return whether a setting is in use that PyTorch's step does not know."""
        of_groups = (
            group.get(name, value) != value
            for group in self.param_groups
            for name, value in self.beyond.items()
        )
        options = {**self._options, "num_threads": None, "seed": 0}
        return options != OPTIONS or any(of_groups)

    def _step_natively(self) -> None:
        if torch.compiler.is_compiling():
            raise Unfit("compiling", error=RuntimeError("step: expected no compiler around it"))
        groups, state = self.param_groups, self.state
        plan = self._plan
        if not plan or not plan.is_as_before(groups, state) or plan.read_settings(groups):
            plan = self._plan = Plan(self.cls, groups, state)
            self._write_options(plan.step.call)
        copies = plan.read_grads()
        plan.step.call.threads = self._options["num_threads"] or torch.get_num_threads()
        # torch.amp's scaler may leave these to a step that calls itself fused.
        scale = self.__dict__.get("grad_scale")
        if scale is not None or plan.step.call.grad_scale != 1.0:
            plan.step.call.grad_scale = 1.0 if scale is None else float(scale)
        if self.__dict__.get("found_inf"):
            self._skip(plan)
        else:
            plan.run(groups)
            self._commit(plan, copies)
        plan.let_go()

    def _write_options(self, call: _capi.Call) -> None:
        numbers = as_numbers(CHECKS, self._options)
        call.max_norm = self._options["max_grad_norm"] or 0.0
        call.skip_norm = self._options["skip_grad_norm"] or 0.0
        call.nonfinite = int(numbers["nonfinite"])
        call.zero_grad = self._options["clear_grads"]
        call.seed = self._options["seed"]
        call.parallel = _team()

    def _skip(self, plan: Plan) -> None:
        """Leave out a step whose gradients the scaler has found not to be finite."""
        if self._options["clear_grads"]:
            for param in plan.params:
                param.grad.zero_()
        completed, lr = plan.completed(), plan.lr()
        self._last = StepInfo(completed, lr, skipped=True, skip_reason="nonfinite")

    def _commit(self, plan: Plan, copies: list[int]) -> None:
        """Make PyTorch see what the step has done."""
        skipped = bool(plan.step.result.skipped)
        if not skipped:
            plan.commit(self.state)
            increment_version(plan.params)
        if self._options["clear_grads"]:
            increment_version(plan.grads)
            for i in copies:
                plan.params[i].grad.zero_()
        self._last = plan

    @property
    def last_step(self) -> StepInfo | None:
        """What the last step reports; None before the first, and where PyTorch's step ran."""
        plan = self._last
        if not isinstance(plan, Plan):
            return plan
        result, options = plan.step.result, self._options
        each = any(values["max_grad_norm_each"] is not None for values in plan.settings)
        measures = each or any(options[name] != DEFAULTS[name] for name in MEASURING)
        norm = result.norm if measures else None
        d = None if math.isnan(result.d) else result.d
        reason = _capi.SKIP_REASONS[result.skipped]
        skipped = reason is not None
        completed, lr = plan.completed(), plan.lr()
        return StepInfo(completed, lr, norm, bool(result.clipped), skipped, d, reason)

    # Copies, files, other weights

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles take: what PyTorch's has, and our options."""
        return {**super().__getstate__(), "_options": self._options, "_given": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore them; a file of PyTorch's has none of our settings."""
        if "_options" in state:
            self._forget()
        given = state.get("_given") or self._given
        for group in state["param_groups"]:
            for name, value in given.items():
                group.setdefault(name, value)
        _find(self.cls, state)
        super().__setstate__(state)
        self._plan = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run that a file was taken from, one of PyTorch's own class too.

        State that is not in its parameter's dtype stays as it was saved.
        """
        # A hook, so that it sees what hooks of others have made of the file.
        hook = self.register_load_state_dict_pre_hook(_hide)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Show the average of the weights in the parameters while the block runs.

        It is that of `ema_decay` or `swa_start`, else the rule's own (ASGD, schedule-free).
        Leaving the block restores the parameters; it takes a copy of them.

        Raises
        ------
        ValueError
            If no group keeps an average, or in a block of `averaged`.
        """
        shown = [
            (param, average)
            for group in self.param_groups
            for param in group["params"]
            if (average := self._average(param, group)) is not None
        ]
        may = self.cls.own_average or any(averages(group) for group in self.param_groups)
        if self._shown or not may:
            expected = "no block of averaged() around it" if self._shown else "it, or swa_start"
            raise ValueError(f"ema_decay: expected {expected}, for averaged, got None")
        saved = [param.detach().clone() for param, _ in shown]
        self._shown = True
        try:
            with torch.no_grad():
                for param, average in shown:
                    param.copy_(average)
            yield
        finally:
            with torch.no_grad():
                for (param, _), before in zip(shown, saved, strict=True):
                    param.copy_(before)
            self._shown = False

    def _average(self, param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
        state = self.state.get(param) or {}
        if AVERAGE in state:
            return state[AVERAGE]
        if not self.cls.own_average or "step" not in state:
            return None
        arrays = {
            name: _tensors.stored(state[name], param, _tensors.full(param), has_sign).numpy()
            for name, has_sign in zip(self.cls.row.states, self.cls.row.has_sign, strict=True)
            if isinstance(state.get(name), Tensor)
        }
        weights = state.get(MASTER, param).detach().to(_tensors.full(param)).numpy()
        own = {name: plain(group[name]) for name in self.cls.group_checks if name in group}
        settings = {**self.cls.defaults, **own}
        return torch.from_numpy(quiet(self.cls.own_average)(weights, settings, arrays))


_hooked_step = torch.optim.Optimizer.profile_hook_step(Native._take_step)


class _Kept:
    """A tensor that PyTorch's `load_state_dict` does not cast to its parameter's dtype."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _hide(optimizer: Native, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Put what has not its parameter's dtype out of PyTorch's reach, which would cast it."""
    groups = zip(optimizer.param_groups, state_dict["param_groups"], strict=False)
    params = {
        key: param
        for group, saved in groups
        for key, param in zip(saved["params"], group["params"], strict=False)
    }
    names = {*optimizer.cls.row.states, *_own_names(optimizer.cls)}

    def hidden(key: Any, name: str, value: Any) -> Any:
        is_tensor = isinstance(value, Tensor) and key in params and name in names
        return _Kept(value) if is_tensor and value.dtype != params[key].dtype else value

    state = {
        key: {name: hidden(key, name, value) for name, value in entry.items()}
        if isinstance(entry, dict)
        else entry
        for key, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _find(cls: type[optim.Optimizer], state: dict[str, Any]) -> None:
    """Take it out again: cast what is PyTorch's, as that does, and leave the rest."""
    own = _own_names(cls)
    for group in state["param_groups"]:
        for param in group["params"]:
            is_ours = group["state_format"] is not None
            is_ours |= param.dtype in _tensors.SMALL and group["rounding"] is not None
            entry = state["state"].get(param, {})
            for name, value in entry.items():
                if isinstance(value, _Kept):
                    stays = is_ours or name in own or value.tensor.dtype == torch.uint8
                    dtype = value.tensor.dtype if stays else param.dtype
                    entry[name] = value.tensor.to(param.device, dtype)


def _own_names(cls: type[optim.Optimizer]) -> set[str]:
    """Return the names of state that has a dtype of its own."""
    return {AVERAGE, MASTER, SLOW, *cls.row.own_memory, *cls.saved_scalars}
