"""What every optimizer shares: parameters, groups, state, the step, the checkpoint."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from onepass import _core, runtime
from onepass._hyperparameters import check_setting, resolve_one
from onepass._memory import state_like
from onepass._typing import Array, Grads, Params, Schedule
from onepass.optim import _checkpoint, _stages, _state, _storage
from onepass.optim._group import Group
from onepass.optim._rule import Rule
from onepass.optim._table import COMPLETED, INDEX, ROWS, SKIPPED, options_of, scalars_of, states_of
from onepass.optim._tree import Leaves, Node, flatten, is_sequence, mirror

AVERAGE = -2
"""Where in a parameter's state the average of the weights stands; the master follows it."""

_ANY, _BOUND, _ZEROED = _core.Gradients.any, _core.Gradients.bound, _core.Gradients.zeroed

_Part = tuple[int, int, int]
"""Of a step: a group, how many steps its parameters have missed, and when their average began."""
_Planned = tuple[Callable[..., tuple[float | None, float, bool]], list[_Part]]
"""What runs a step, and its parts."""


class StepInfo(NamedTuple):
    """What a step reports.

    Attributes
    ----------
    step : int
        How many steps the optimizer has completed, this one included.
    lr : float
        The learning rate it used (of the first group).
    grad_norm : float or None
        The norm of all gradients together, unscaled and not clipped. None where neither
        `max_grad_norm` nor `nonfinite` asks for it.
    clipped : bool
        Whether `max_grad_norm` made the gradients smaller.
    skipped : bool
        Whether the step was left out because a gradient was not finite.
    """

    step: int
    lr: float
    grad_norm: float | None = None
    clipped: bool = False
    skipped: bool = False


class _Checked:
    """An attribute of an optimizer that is checked when it is set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: "Optimizer | None", owner: type) -> Any:
        return self if instance is None else instance.__dict__[self.name]

    def __set__(self, instance: "Optimizer", value: Any) -> None:
        instance.__dict__[self.name] = check_setting(_stages.CHECKS, self.name, value)
        instance._planned = None


class Optimizer(Rule):
    r"""Base of the optimizers: gradient in, parameters updated in place.

    Every optimizer takes, besides its hyperparameters, what else belongs to a step. All of it
    happens in the same pass over memory, in PyTorch's order:

    1. the gradients are divided by `grad_scale`: :math:`g \leftarrow g / s`;
    2. where one of them is not finite, `nonfinite` decides for all of them;
    3. their common norm is clipped, :math:`g \leftarrow g \min(1, c / (\|g\| + 10^{-6}))`, then
       each element, :math:`g \leftarrow \max(\min(g, c), -c)`;
    4. the weights decay and the rule steps;
    5. the average of the weights moves, :math:`a \leftarrow \beta_t a + (1 - \beta_t) w`;
    6. the weights are copied in fewer bits, the gradients are zeroed, and what is kept in fewer
       bits is rounded.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        See the optimizers.
    max_grad_norm : float > 0, or schedule, optional
        The Euclidean norm that all gradients together may have, over all groups; ``math.inf``
        measures it and clips nothing.
    nonfinite : {"propagate", "skip", "raise"}
        What an infinity or a NaN in a gradient does: spread, as in NumPy; leave parameters, state
        and step counts as they are, and count up `skipped_steps`; or raise ValueError, with
        nothing changed.
    zero_grad : bool
        Put zeros into the gradients once they are used, also where the step is skipped. They must
        be writable then, and lie in memory as their parameters do.
    grads : like the parameters, optional
        Gradients for `bind`.
    seed : int in [0, 2**53)
        Of the random bits that stochastic rounding takes; they are a function of it, of the
        parameter's step and of the element's place (`onepass.formats.random_bits`).
    copy_to : like the parameters, optional
        Arrays of float16 or ``ml_dtypes.bfloat16``, in the layout of the parameters, which are
        float32. Each step writes the new weights there too, rounded to nearest, for a model that
        computes in fewer bits. None in it leaves that parameter without a copy. What `averaged`
        and `lookahead` show is not copied.
    max_grad_value : float > 0, or schedule, optional
        What the absolute value of a gradient's element may be. Groups may differ in it, and in
        what follows.
    ema_decay : float in [0, 1), or schedule, optional
        The :math:`\beta` of an exponential moving average of the weights, which `averaged` shows.
        It begins as the weights after its first step, as in PyTorch. It is kept in float64, 8 bytes
        a parameter, and rounded when it is shown: of a small difference a decay of 0.9999 adds a
        part in 10,000 in a step, for which float32 has no bits.
    ema_warmup : bool
        Let the decay begin small: :math:`\beta_t = \min(\beta, (1 + t) / (10 + t))` in the
        :math:`t`-th step of the average.
    swa_start : int >= 1, optional
        Stochastic weight averaging: the plain mean of the weights after this step and all later
        ones, :math:`\beta_t = 1 - 1 / (t - t_0 + 1)`; before it, the weights themselves. Kept in
        float64 too, so that it is the mean of however many steps.
    state_format : {None, "bf16", "q8"}
        How the rule's arrays are kept between steps: as the rule computes with them, or in
        bfloat16, or in 8 bits (`onepass.formats.q8_encode`), rounded stochastically, since to the
        nearest a :math:`\beta` of 0.999 would change nothing in so few bits. Not beside float64. A
        parameter of fewer than 4,096 elements keeps its arrays in float32.
    rounding : {"master", "stochastic", "nearest"}
        What becomes of the weights of a parameter in float16 or bfloat16: a master in float32 is
        kept as state, and the parameter is that, rounded to nearest (where somebody has changed an
        element in place, the master follows); or the parameter is all there is, rounded
        stochastically, so that small steps count on average, or to nearest, so that they are lost.
        The average of the weights is of those before they are rounded.

    Attributes
    ----------
    param_groups : list of dict
        The hyperparameters, with ``"params"``; they may be changed between steps.
    max_grad_norm, nonfinite, zero_grad, seed
        As above; they may be set between steps.
    skipped_steps : int
        How many steps were skipped.

    Notes
    -----
    A subclass states its rule's name (``class Adam(Optimizer, rule="adam")``), the range of each
    hyperparameter, the numbers of a step (`scalars`) and the rule in NumPy (`reference`).

    The result is the same bits for any number of threads, the norm included, and equals
    `reference_step`. A step that raises has changed nothing; an interrupt never leaves half of one.

    Not safe for concurrent use of one instance; different instances may step from different
    threads.

    Differs from

    * PyTorch: there each of these is a call of its own and another pass over memory. The norm is
      taken in double here. ``torch.optim.swa_utils.AveragedModel`` averages parameters without a
      gradient too, and in the weights' own dtype: called in every step, its mean of float32 weights
      stops moving after some 10,000. `zero_grad` is a setting, not a method.
    * PyTorch and others, where gradients have vanished: averages that shrink towards zero stay
      among the subnormal numbers there, over which processors take many times as long. Here, in
      every 64th step of a parameter, what the rule keeps, and the average of the weights, becomes
      zero where it is smaller than the smallest normal number (float32 :math:`2^{-126}`, float64
      :math:`2^{-1022}`); the step itself still takes what was there. With no epsilon at all, Adam
      and RMSprop then divide 0 by 0, as they do where the first gradient is 0.
    * PyTorch, in fewer bits: state has the parameter's dtype, there is no master (that is
      ``torch.amp``'s, which keeps the parameters in float32), and rounding is to nearest.
    * bitsandbytes: see `onepass.formats.q8_encode`.
    * Keras: its `clipnorm` is per variable.
    * optax: `apply_if_finite` accepts what is not finite after so many errors in a row.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, arXiv:1211.5063 (clipping by the norm).
    S. Gupta et al., "Deep learning with limited numerical precision", ICML 2015, arXiv:1502.02551
    (stochastic rounding).
    T. Dettmers et al., "8-bit optimizers via block-wise quantization", ICLR 2022, arXiv:2110.02861.
    P. Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI
    2018, arXiv:1803.05407 (SWA).

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> w = np.array([3.0, 4.0])
    >>> opt = op.SGD(w, lr=1.0, max_grad_norm=1.0, ema_decay=0.5)
    >>> info = opt.step(np.array([30.0, 40.0]))
    >>> info.grad_norm, info.clipped
    (50.0, True)
    >>> w.round(6)
    array([2.4, 3.2])
    >>> with opt.averaged():
    ...     print(w.round(6))
    [2.4 3.2]
    """

    param_groups: list[dict[str, Any]]
    max_grad_norm = _Checked()
    nonfinite = _Checked()
    zero_grad = _Checked()
    seed = _Checked()

    def __init__(
        self,
        params: Params,
        *,
        max_grad_norm: float | Schedule | None = None,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        zero_grad: bool = False,
        grads: Grads = None,
        copy_to: Grads = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self.max_grad_norm, self.nonfinite, self.zero_grad = max_grad_norm, nonfinite, zero_grad
        self.seed = seed
        for name, default in _stages.GROUP_DEFAULTS.items():
            settings.setdefault(name, default)
        leaves = Leaves()
        self._shape: Node
        self._groups: list[Group] = []
        self.param_groups = []
        self._grouped = _is_groups(params)
        if self._grouped:
            self._shape = [
                self._add_group({**settings, **group}, leaves, f"[{number}]['params']")
                for number, group in enumerate(params)
            ]
        else:
            self._shape = self._add_group({**settings, "params": params}, leaves, "")
        if not leaves.arrays:
            raise ValueError("params: expected at least one array, got none")
        # Per parameter its copy in fewer bits.
        self._copies = None if copy_to is None else self._mirror(copy_to)
        _core.check_params(leaves.labels, leaves.arrays, self._copies)
        self._params: list[Array] = leaves.arrays
        self._labels = leaves.labels
        self._keys = list(leaves.keys)
        # Per parameter its completed steps, then the optimizer's own and those it has skipped; and
        # how often gradients were accumulated. The native calls move them.
        self._counters = np.zeros(len(self._params) + 2, np.int64)
        self._gathered = np.zeros_like(self._counters)
        self._sums: list[Array | None] = [None] * len(self._params)  # the sums of them
        # Per parameter the rule's arrays in order, the average of the weights and their master in
        # float32, None where no option has asked for one.
        self._state: list[tuple[Any, ...]] = [
            (None,) * (len(ROWS[self.rule]["states"]) + 2) for _ in self._params
        ]
        # Per group what the user had set when it was looked at last.
        self._seen: list[dict[str, Any] | None] = [None] * len(self._groups)
        self._has_schedules = False
        self._average_from = [0] * len(self._params)  # the steps before each average began
        self._bound: list[Any] | None = None
        self._planned: _Planned | None = None  # the next step, if it takes the bound gradients
        self._shown: _core.Shown | None = None
        self._check_groups()
        for number, group in enumerate(self.param_groups):
            self._allocate(number, group)
        if grads is not None:
            self.bind(grads)

    def _add_group(self, group: Mapping[str, Any], leaves: Leaves, label: str) -> Node:
        settings = {k: v for k, v in group.items() if k != "params"}
        settings = {k: check_setting(self.group_checks, k, v) for k, v in settings.items()}
        self._check_together(settings)
        first = len(leaves.arrays)
        shape = flatten(group["params"], leaves, label)
        self._groups.append(Group(list(range(first, len(leaves.arrays)))))
        self.param_groups.append({"params": tuple(leaves.arrays[first:]), **settings})
        return shape

    # One step

    def step(
        self, grads: Grads = None, *, grad_scale: float = 1.0, num_threads: int | None = None
    ) -> StepInfo:
        """Update the parameters in place.

        Parameters
        ----------
        grads : like the parameters, optional
            The gradients, in the structure of the parameters, each of its parameter's shape, and
            float64 beside float64, else float32, float16 or ``ml_dtypes.bfloat16``; with any
            strides.
            None in it leaves that parameter, its state, its average and its step alone. Left out,
            the gradients are those that `accumulate` has summed, else those that were bound.
        grad_scale : float in [2**-126, 2**128)
            What the gradients are divided by: the loss scale, or how many were accumulated. They
            are not modified.
        num_threads : int, optional
            Threads for this step; the default is `onepass.get_num_threads()`. The result is the
            same for any number.

        Returns
        -------
        StepInfo

        Raises
        ------
        TypeError, ValueError
            If an array or a hyperparameter is not as it must be. Then nothing has changed.
        """
        if self._shown is not None:
            self._check_not_shown("step")
        threads = runtime.resolve_num_threads(num_threads)
        if type(grad_scale) is not float or grad_scale != 1.0:
            grad_scale = _stages.GRAD_SCALE("grad_scale", grad_scale)
        completed = self._counters.item(COMPLETED)
        self._settle(completed)
        max_norm = self.__dict__["max_grad_norm"]
        if callable(max_norm):
            max_norm = resolve_one(_stages.CHECKS, "max_grad_norm", max_norm, completed)
        run, parts = self._plan_step(grads)
        scalars = []
        for number, missed, begun in parts:
            now, known, weight = completed + 1 - missed, self._groups[number], 0.0
            values = known.values
            if known.averages:
                weight = _stages.average_weight(now, now - begun, values)
            seed = self.__dict__["seed"]
            scalars.append(scalars_of(type(self), values, known.constants, weight, seed, now))
        nonfinite = _stages.NONFINITE[self.__dict__["nonfinite"]]
        # Moves parameters, state, averages and counters in one call, or raises before it does.
        norm, coefficient, skipped = run(scalars, threads, grad_scale, max_norm, nonfinite)
        lr, clipped = self._groups[0].values["lr"], coefficient < 1 and not skipped
        # Calling the class takes twice as long.
        return tuple.__new__(StepInfo, (completed + (not skipped), lr, norm, clipped, skipped))

    def accumulate(self, grads: Grads = None, *, num_threads: int | None = None) -> None:
        """Add gradients to a sum, which the next `step()` takes and sets back to zero.

        For the mean of n batches, ``opt.step(grad_scale=n)``. The sums take one more array per
        parameter, and are part of `state_dict`. With `zero_grad` the gradients are zeroed here.

        Parameters
        ----------
        grads, num_threads
            As for `step`; left out, the gradients are those that were bound.

        Raises
        ------
        TypeError, ValueError
            If a gradient is not as it must be. Then nothing has changed.
        """
        if grads is None and self._bound is None:
            raise ValueError("grads: expected gradients, as none are bound, got none")
        threads = runtime.resolve_num_threads(num_threads)
        leaves = self._bound if grads is None else self._mirror(grads)
        assert leaves is not None
        taking = [index for index, leaf in enumerate(leaves) if leaf is not None]
        for index in taking:
            if self._sums[index] is None:
                self._sums[index] = state_like(self._params[index])
        self._planned = None
        # The rule that adds the gradient to the parameter, on the sums.
        jobs: list[_core.Job] = [(_core.copy_limit, 0, taking, False)]
        states: list[tuple[Any, ...]] = [()] * len(leaves)
        counters = self._gathered
        kind = _ZEROED if self.zero_grad else _ANY
        given = (self._labels, self._sums, leaves, states, jobs, kind, counters, None)
        _core.run(given, [_stages.PLAIN], threads)

    def discard_accumulated(self) -> None:
        """Forget the gradients that `accumulate` has summed."""
        self.__dict__.update(
            _sums=[None] * len(self._params), _gathered=np.zeros_like(self._gathered)
        )

    def bind(self, grads: Grads) -> None:
        """Check gradients once, and take them in every later `step()` that is given none.

        The arrays are read where they are, so fill them in place. Such a step costs one native
        call.

        Parameters
        ----------
        grads : like the parameters, or None
            In the structure of the parameters; None in it leaves that parameter alone. An array
            must lie in memory as its parameter does. None alone binds none any more.

        Raises
        ------
        TypeError, ValueError
            If a gradient is not as it must be. Then those bound before stay.
        """
        if grads is None:
            self.__dict__.update(_bound=None, _planned=None)
            return
        bound = self._mirror(grads)
        planned = self._plan_bound(bound)
        gathered = self._gathered.item(COMPLETED)
        self.__dict__.update(_bound=bound, _planned=None if gathered else planned)

    def _plan_step(self, grads: Grads) -> _Planned:
        if grads is None and self._planned is not None:
            return self._planned
        gathered = self._gathered.item(COMPLETED)
        if grads is not None:
            if gathered:
                raise ValueError("grads: expected none after accumulate, got some")
            return self._plan_once(self._mirror(grads), _ZEROED if self.zero_grad else _ANY)
        if gathered:
            counts = self._gathered[:COMPLETED].tolist()
            sums = [a if n else None for a, n in zip(self._sums, counts, strict=True)]
            return self._plan_once(sums, _ZEROED)
        if self._bound is None:
            raise ValueError(
                "grads: expected gradients, as none are bound or accumulated, got none"
            )
        self._planned = self._plan_bound(self._bound)
        return self._planned

    def _plan_bound(self, grads: list[Any]) -> _Planned:
        given, parts = self._given(grads, _ZEROED if self.zero_grad else _BOUND)
        return _core.Plan(given).run, parts  # checks everything

    def _plan_once(self, grads: list[Any], kind: _core.Gradients) -> _Planned:
        self._planned = None  # it takes for granted that its parameters step together
        given, parts = self._given(grads, kind)
        return partial(_core.run, given), parts  # checks everything when it is called

    def _given(self, grads: list[Any], kind: _core.Gradients) -> "tuple[_core.Given, list[_Part]]":
        """Return everything that a step with these gradients touches, and its parts."""
        *steps, completed, _ = self._counters.tolist()
        jobs: list[_core.Job] = []
        parts = []
        for number, group in enumerate(self._groups):
            taking = [i for i in group.members if grads[i] is not None]
            for alike in _alike(taking, steps, self._average_from):
                stochastic = group.formats[1] == "stochastic"
                jobs.append((INDEX[self.rule], group.options, alike, stochastic))
                first = alike[0]
                parts.append((number, completed - steps[first], self._average_from[first]))
        counters = (self._counters, self._gathered)
        states: list[tuple[Any, ...]] = self._state
        if self._copies is not None:
            pairs = zip(states, self._copies, strict=True)
            states = [(*state, copy) for state, copy in pairs]
        return (self._labels, self._params, grads, states, jobs, kind, *counters), parts

    def averaged(self) -> AbstractContextManager[None]:
        """Show the average of the weights in the parameters while the block runs.

        Use it at once: ``with opt.averaged(): ...``. Leaving the block, also by an exception,
        restores the parameters to the bit; it takes a copy of them. A parameter without an average,
        or not stepped since it has one, stays as it is.

        Raises
        ------
        ValueError
            If no group keeps an average, or the block is entered twice.
        """
        self._check_not_shown("averaged")
        chosen = [
            index
            for group in self._groups
            for index in group.members
            if group.averages and self._counters.item(index) > self._average_from[index]
        ]
        if not any(group.averages for group in self._groups):
            raise ValueError("ema_decay: expected it, or swa_start, for averaged, got None")
        return self._show(chosen, [self._state[index][AVERAGE] for index in chosen])

    def _show(self, indices: list[int], values: list[Any]) -> AbstractContextManager[None]:
        labels = [self._labels[index] for index in indices]
        params = [self._params[index] for index in indices]
        self._shown = _core.Shown(labels, params, _storage.shown(values, params))
        return self._shown

    def _opened(self, index: int) -> list[Any]:
        """Return a parameter and its state in the dtype that the rule computes with."""
        param, (*state, _, master) = self._params[index], self._state[index]
        has_sign = ROWS[self.rule]["has_sign"]
        return [
            _storage.weights(param, master),
            *(_storage.opened(a, param, sign) for a, sign in zip(state, has_sign, strict=True)),
        ]

    def _check_not_shown(self, name: str) -> None:
        if self._shown is not None:
            if self._shown.active:
                expected = "after the block that shows other weights"
                raise ValueError(f"{name}: expected {expected}, got a call inside it")
            self._shown.outdate()
            self._shown = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles take."""
        self._check_not_shown("copy")
        return {**self.__dict__, "_shown": None, "_planned": None}

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out because a gradient was not finite."""
        return int(self._counters[SKIPPED])

    def _settle(self, completed: int) -> None:
        """Let the groups have their checked values for the coming step, and the state for it."""
        try:
            seen = self.param_groups == self._seen
        except ValueError:  # a setting is an array
            seen = False
        if not seen:  # the user has set something
            self._check_groups()
            self._resolve([self.group_checks] * len(self._groups), completed)
            for number, group in enumerate(self.param_groups):
                now = self._groups[number].values
                self._seen[number] = {k: v if callable(v) else now[k] for k, v in group.items()}
        elif self._has_schedules:
            self._resolve([known.schedules for known in self._groups], completed)

    def _resolve(self, names: Iterable[Iterable[str]], completed: int) -> None:
        """Let the groups have the values of these settings, once all are known to be good."""
        resolved = []
        for group, known, own in zip(self.param_groups, self._groups, names, strict=True):
            new = {n: resolve_one(self.group_checks, n, group[n], completed) for n in own}
            values = {"params": group["params"], **known.values, **new}
            schedules = {name: value for name, value in group.items() if callable(value)}
            self._check_together({**values, **schedules})
            resolved.append((values, list(schedules)))
        for number, known in enumerate(self._groups):
            self._allocate(number, resolved[number][0])
            known.values, known.schedules = resolved[number]
            known.constants = _stages.constants(known.values, decoupled=self.decoupled)
        self._has_schedules = any(known.schedules for known in self._groups)

    def _check_groups(self) -> None:
        """Raise if the groups are not those it was made with, or cannot be kept as they ask."""
        if len(self.param_groups) != len(self._groups):
            got = len(self.param_groups)
            raise ValueError(f"param_groups: expected {len(self._groups)} groups, got {got}")
        for number in range(len(self._groups)):
            self._check_group(number)

    def _check_group(self, number: int) -> None:
        group, members = self.param_groups[number], self._groups[number].members
        unknown = group.keys() - self.group_checks.keys() - {"params"}
        missing = self.group_checks.keys() - group.keys()
        if unknown or missing:
            got = f"unknown {sorted(unknown)}" if unknown else f"no {sorted(missing)}"
            raise ValueError(f"param_groups[{number}]: expected the hyperparameters, got {got}")
        own = [self._params[index] for index in members]
        given = group.get("params", ())
        if len(given) != len(own) or any(a is not b for a, b in zip(given, own, strict=True)):
            raise ValueError(f"param_groups[{number}]: expected the parameters it was made with")
        _storage.check_format(group["state_format"], own)

    def _mirror(self, grads: Grads) -> list[Any]:
        leaves: list[Any] = []
        tree: Any = grads
        if self._grouped and _is_groups(tree):  # the gradients of groups may stand in groups too
            tree = [group["params"] for group in tree]
        mirror(self._shape, tree, leaves)
        return leaves

    def _allocate(self, number: int, values: Mapping[str, Any]) -> None:
        """Give a group's parameters the state that its options use and they lack."""
        group, known = self.param_groups[number], self._groups[number]
        options, averages = options_of(type(self), group, values), _stages.averages(group)
        formats = group["state_format"], group["rounding"]
        if (options, averages, formats) == (known.options, known.averages, known.formats):
            return
        names = states_of(type(self), options)
        begins = averages and not known.averages
        for index in known.members:
            param, (*state, average, master) = self._params[index], self._state[index]
            if not averages:
                average = None
            elif begins:
                average = state_like(param, dtype=np.float64)  # the first step writes it
                self._average_from[index] = self._counters.item(index)
            if not _storage.needs_master(param, group):
                master = None
            elif master is None:
                master = _storage.master_of(param)
            self._state[index] = (*self._kept(param, state, names, group), average, master)
        known.options, known.averages, known.formats = options, averages, formats
        self._planned = self._seen[number] = None

    def _kept(
        self, param: Array, state: list[Any], names: list[str | None], group: Mapping[str, Any]
    ) -> Iterable[Any]:
        """Yield the rule's arrays in the group's format, new ones where it lacks some."""
        value, state_format = self.initial_state(group), group["state_format"]
        for array, name, has_sign in zip(state, names, ROWS[self.rule]["has_sign"], strict=True):
            if array is not None and not _storage.is_kept_as(array, param, state_format):
                now = _storage.opened(array, param, has_sign)
                yield _storage.keep(now, param, state_format, has_sign)
            elif array is None and name:
                yield _storage.fresh(param, value, state_format, has_sign)
            else:
                yield array

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything a run needs to continue, apart from the parameters.

        Returns
        -------
        dict
            ``{"state": {key: {"step": t, name: array, ...}}, "param_groups": [...],
            "step_options": {...}}``, PyTorch's layout and names, but for the last: `max_grad_norm`,
            `nonfinite`, `zero_grad`, `seed` and `skipped_steps`. Beside the rule's arrays, which
            stand as they are kept, are ``"average"``, with ``"averaged"``, its steps, ``"master"``
            and ``"accumulated"``. A key is the
            parameter's name in a mapping (dotted where nested), else its index. A group holds its
            hyperparameters, the keys of its parameters and ``"step"``, the steps completed. A
            schedule is code and stands there as None, or as the list of the memories in it (see
            `onepass.schedules`).
        """
        return _state.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the run that `state_dict` was taken from.

        Takes PyTorch's own dictionaries too (its CPU tensors as NumPy arrays). Hyperparameters
        and step options are taken over; where this optimizer has a schedule, the schedule stays,
        and takes over the memory that was saved with one. State that was saved in another format
        than its group's is rounded to nearest. Load 16-bit parameters before: a master must fit.

        Raises
        ------
        TypeError, ValueError
            If anything in it does not fit this optimizer. Then nothing has changed.
        """
        _state.load_state_dict(self, state_dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict()` to a file, atomically: the path holds the old file or the new one.

        The file is NumPy's ``.npz``, with no pickle in it. The parameters are not part of it.
        """
        _checkpoint.write(path, self.rule, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from a file that `save` wrote; bit for bit the run that wrote it.

        Raises
        ------
        ValueError, TypeError
            If the file is damaged, no checkpoint, or not of such an optimizer. Then nothing has
            changed.
        """
        self.load_state_dict(_checkpoint.read(path, self.rule))

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            settings = [
                f"{name}={_show(value)}"
                for name, value in group.items()
                if name in self.checks or value != _stages.GROUP_DEFAULTS.get(name, value)
            ]
            size = sum(param.size for param in group["params"])
            params = f"params={len(group['params'])} arrays of {size:,} elements"
            groups.append(", ".join([params, *settings]))
        own = [
            f"{name}={_show(self.__dict__[name])}"
            for name, default in _stages.DEFAULTS.items()
            if self.__dict__[name] != default
        ]
        if len(groups) == 1:
            return f"{type(self).__name__}({', '.join([*groups, *own])})"
        lines = "".join(f"    {line},\n" for line in [*(f"{{{g}}}" for g in groups), *own])
        return f"{type(self).__name__}(\n{lines})"


def _alike(members: list[int], steps: list[int], begun: list[int]) -> Iterable[list[int]]:
    """Group parameters by the steps they and their averages have done: mostly all the same."""
    if not members:
        return []
    first = members[0]
    if steps.count(steps[first]) == len(steps) == begun.count(begun[first]):
        return [members]
    groups: dict[tuple[int, int], list[int]] = {}
    for index in members:
        groups.setdefault((steps[index], begun[index]), []).append(index)
    return groups.values()


def _is_groups(params: Any) -> bool:
    return (
        is_sequence(params)
        and len(params) > 0
        and all(isinstance(group, Mapping) and "params" in group for group in params)
    )


def _show(value: Any) -> str:
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)
