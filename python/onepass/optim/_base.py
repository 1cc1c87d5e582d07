"""What every optimizer shares: parameters, groups, state, the step, the checkpoint."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from itertools import repeat
from typing import Any, Literal, NamedTuple

import numpy as np

from onepass import _core
from onepass._files import Place
from onepass._hyperparameters import check_setting, resolve_one
from onepass._memory import state_like
from onepass._quiet import quiet
from onepass._typing import Array, Grads, Params, Schedule
from onepass.optim import _checkpoint, _foreign, _stages, _state, _storage
from onepass.optim._rule import Rule
from onepass.optim._settled import AVERAGE_PLACE, Settled, allocated, settle, unsettled
from onepass.optim._table import COMPLETED, INDEX, ROWS, SKIPPED, scalars_of
from onepass.optim._tree import Leaves, Node, flatten, is_sequence, mirror

_ANY, _BOUND, _ZEROED = _core.Gradients.any, _core.Gradients.bound, _core.Gradients.zeroed

_OPTIONS = (*_stages.CHECKS, *_stages.GROUP_CHECKS, "grads", "copy_to")
"""What every optimizer takes besides its hyperparameters."""

_Part = tuple[int, int, int]
"""Of a step: a group, how many steps its parameters have missed, and when their average began."""
_Planned = tuple[Callable[..., tuple[float | None, float, bool]], list[_Part], list[Any]]
"""What runs a step, its parts, and the states that it was planned with."""


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
        checked = check_setting(_stages.CHECKS, self.name, value)
        instance.__dict__["_planned"] = None
        instance.__dict__[self.name] = checked


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
    clear_grads : bool
        Put zeros into the gradients once they are used, also where the step is skipped. They must
        be writable then, and lie in memory as their parameters do. (`zero_grad` is PyTorch's
        method.)
    grads : like the parameters, optional
        Gradients for `bind`.
    seed : int in [0, 2**53)
        Of the random bits that stochastic rounding takes; they are a function of it, of the
        parameter's step and of the element's place (`onepass.formats.random_bits`).
    copy_to : like the parameters, optional
        Arrays of float16 or ``ml_dtypes.bfloat16``, in the layout of the parameters, which are
        float32. They are the weights, rounded to nearest, for a model that computes in fewer bits:
        written here, by `load_state_dict`, and by each step that moves the parameter. None in it
        leaves that parameter without a copy. What you write into a parameter yourself, and what
        `averaged` and `lookahead` show, is not copied.
    max_grad_value : float > 0, or schedule, optional
        What the absolute value of a gradient's element may be. Groups may differ in it, and in
        what follows.
    ema_decay : float in [0, 1), or schedule, optional
        The :math:`\beta` of an exponential moving average of the weights, which `averaged` shows.
        It begins as the weights after its first step, as in PyTorch. It is kept in float64, 8 bytes
        a parameter, and rounded when it is shown: with a decay of 0.9999 a step adds a
        ten-thousandth of the difference between weight and average, which float32 often rounds
        away.
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
    max_grad_norm, nonfinite, clear_grads, seed
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
      stops moving after some 10,000.
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
    clear_grads = _Checked()
    seed = _Checked()

    def __init__(
        self,
        params: Params,
        *,
        max_grad_norm: float | Schedule | None = None,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        clear_grads: bool = False,
        grads: Grads = None,
        copy_to: Grads = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        _foreign.check_names(type(self), settings, _OPTIONS)
        self.max_grad_norm, self.nonfinite, self.clear_grads = max_grad_norm, nonfinite, clear_grads
        self.seed = seed
        for name, default in _stages.GROUP_DEFAULTS.items():
            settings.setdefault(name, default)
        leaves = Leaves()
        members: list[list[int]] = []
        self._shape: Node
        self.param_groups = []
        self._grouped = _is_groups(params)
        if self._grouped:
            self._shape = [
                self._add_group({**settings, **group}, leaves, members, f"[{number}]['params']")
                for number, group in enumerate(params)
            ]
        else:
            self._shape = self._add_group({**settings, "params": params}, leaves, members, "")
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
        empty = (None,) * (len(ROWS[self.row]["states"]) + 2)
        zeros = [0] * len(self._params)
        self._settled = unsettled(members, [empty] * len(self._params), zeros)
        self._bound: list[Any] | None = None
        self._planned: _Planned | None = None  # the next step, if it takes the bound gradients
        self._shown: _core.Shown | None = None
        self._shown_indices: list[int] = []
        self._settled = allocated(self)
        if grads is not None:
            self.bind(grads)
        self._commit()

    def _add_group(
        self, group: Mapping[str, Any], leaves: Leaves, members: list[list[int]], label: str
    ) -> Node:
        settings = {k: v for k, v in group.items() if k != "params"}
        _foreign.check_names(type(self), settings, _stages.GROUP_CHECKS)
        settings = {k: check_setting(self.group_checks, k, v) for k, v in settings.items()}
        self._check_together(settings)
        first = len(leaves.arrays)
        shape = flatten(group["params"], leaves, label)
        members.append(list(range(first, len(leaves.arrays))))
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
        if type(grad_scale) is not float or grad_scale != 1.0:
            grad_scale = _stages.GRAD_SCALE("grad_scale", grad_scale)
        completed = self._counters.item(COMPLETED)
        settled = settle(self, completed)
        groups = settled.groups
        max_norm = self.__dict__["max_grad_norm"]
        if callable(max_norm):
            max_norm = resolve_one(_stages.CHECKS, "max_grad_norm", max_norm, completed)
        run, parts, _ = self._plan_step(grads, settled)
        scalars = []
        for number, missed, begun in parts:
            step, known, weight = completed + 1 - missed, groups[number], 0.0
            values = known.values
            if _stages.averages(values):
                weight = _stages.average_weight(step, step - begun, values)
            seed = self.__dict__["seed"]
            scalars.append(scalars_of(type(self), values, known.constants, weight, seed, step))
        nonfinite = _stages.NONFINITE[self.__dict__["nonfinite"]]
        now, commit = self._settled, None
        if settled.seen is not now.seen or settled.states is not now.states:
            commit = [(self.__dict__, {"_settled": settled})]
        # Moves parameters, state, averages and counters and puts the settings in force in one call,
        # or raises before it does.
        norm, coefficient, skipped = run(
            scalars, num_threads, grad_scale, max_norm, nonfinite, commit
        )
        lr, clipped = groups[0].values["lr"], coefficient < 1 and not skipped
        # Calling the class takes twice as long.
        return tuple.__new__(StepInfo, (completed + (not skipped), lr, norm, clipped, skipped))

    def accumulate(self, grads: Grads = None, *, num_threads: int | None = None) -> None:
        """Add gradients to a sum, which the next `step()` takes and sets back to zero.

        For the mean of n batches, ``opt.step(grad_scale=n)``. The sums take one more array per
        parameter, and are part of `state_dict`. With `clear_grads` the gradients are zeroed here.

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
        leaves = self._bound if grads is None else self._mirror(grads)
        assert leaves is not None
        taking = [index for index, leaf in enumerate(leaves) if leaf is not None]
        if not taking:
            return
        sums = list(self._sums)
        for index in taking:
            if sums[index] is None:
                sums[index] = state_like(self._params[index])
        jobs: list[_core.Job] = [(_core.add, 0, taking, False)]
        states: list[tuple[Any, ...]] = [()] * len(leaves)
        counters = self._gathered
        kind = _ZEROED if self.clear_grads else _ANY
        given = (self._labels, sums, leaves, states, jobs, kind, counters, None)
        commit = [(self.__dict__, {"_sums": sums, "_planned": None})]
        _core.run(given, [_stages.PLAIN], num_threads, commit=commit)

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
        settled = self._settled  # after loading, state may be in other formats than the groups ask
        known = all(group.needs is not None for group in settled.groups)
        planned = self._plan_bound(bound, settled if known else allocated(self))
        gathered = self._gathered.item(COMPLETED)
        self.__dict__.update(_bound=bound, _planned=None if gathered else planned)

    def zero_grad(self) -> None:
        """Put zeros into the bound gradients: PyTorch's method, for a backward pass that adds.

        With ``clear_grads=True`` each step does it, in the pass in which it reads them.

        Raises
        ------
        TypeError, ValueError
            If none are bound, or one of them cannot be written. Then nothing has changed.
        """
        if self._bound is None:
            raise TypeError("zero_grad: expected gradients that are bound (grads=), got none")
        grads = [grad for grad in self._bound if grad is not None]
        for label, grad in zip(self._labels, self._bound, strict=True):
            if grad is not None and not grad.flags.writeable:
                raise ValueError(f"grads{label}: expected a writable array, got a read-only one")
        # A native loop, which no interrupt leaves half way.
        deque(map(np.ndarray.fill, grads, repeat(0)), maxlen=0)

    def _plan_step(self, grads: Grads, settled: Settled) -> _Planned:
        if grads is None and (planned := self._planned) and planned[2] is settled.states:
            return planned
        gathered = self._gathered.item(COMPLETED)
        if grads is not None:
            if gathered:
                raise ValueError("grads: expected none after accumulate, got some")
            kind = _ZEROED if self.clear_grads else _ANY
            return self._plan_once(self._mirror(grads), settled, kind)
        if gathered:
            counts = self._gathered[:COMPLETED].tolist()
            sums = [a if n else None for a, n in zip(self._sums, counts, strict=True)]
            return self._plan_once(sums, settled, _ZEROED)
        if self._bound is None:
            raise ValueError(
                "grads: expected gradients, as none are bound or accumulated, got none"
            )
        planned = self.__dict__["_planned"] = self._plan_bound(self._bound, settled)
        return planned

    def _plan_bound(self, grads: list[Any], settled: Settled) -> _Planned:
        given, parts = self._given(grads, settled, _ZEROED if self.clear_grads else _BOUND)
        return _core.Plan(given).run, parts, settled.states  # checks everything

    def _plan_once(self, grads: list[Any], settled: Settled, kind: _core.Gradients) -> _Planned:
        # After it the parameters may have unequal step counts; a stored plan assumes the old ones.
        self.__dict__["_planned"] = None
        given, parts = self._given(grads, settled, kind)
        run = partial(_core.run, given)  # checks everything when it is called
        return run, parts, settled.states

    def _given(
        self, grads: list[Any], settled: Settled, kind: _core.Gradients
    ) -> "tuple[_core.Given, list[_Part]]":
        """Return everything that a step with these gradients touches, and its parts."""
        *steps, completed, _ = self._counters.tolist()
        jobs: list[_core.Job] = []
        parts = []
        for number, (members, _, _, _, needs) in enumerate(settled.groups):
            assert needs is not None
            taking = [i for i in members if grads[i] is not None]
            for alike in _alike(taking, steps, settled.average_from):
                stochastic = needs.rounding == "stochastic"
                jobs.append((INDEX[self.row], needs.options, alike, stochastic))
                first = alike[0]
                parts.append((number, completed - steps[first], settled.average_from[first]))
        counters = (self._counters, self._gathered)
        states = settled.states
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
        _, states, average_from, _ = self._settled
        averages = {index: state[AVERAGE_PLACE] for index, state in enumerate(states)}
        chosen = [
            index
            for index, average in averages.items()
            if average is not None and self._counters.item(index) > average_from[index]
        ]
        if not chosen and not any(_stages.averages(group) for group in self.param_groups):
            raise ValueError("ema_decay: expected it, or swa_start, for averaged, got None")
        return self._show(chosen, [averages[index] for index in chosen])

    @quiet
    def _show(self, indices: list[int], values: list[Any]) -> AbstractContextManager[None]:
        labels = [self._labels[index] for index in indices]
        params = [self._params[index] for index in indices]
        self._shown = shown = _core.Shown(labels, params, _storage.shown(values, params))
        self._shown_indices = indices
        return shown

    def _of_the_run(self, index: int) -> Array:
        """Return a parameter as the run has it, also while other weights are shown."""
        if self._shown is None or not self._shown.active or index not in self._shown_indices:
            return self._params[index]
        return self._shown.saved(self._shown_indices.index(index))

    def _opened(self, index: int, settled: Settled) -> list[Any]:
        """Return a parameter and its state in the dtype that the rule computes with."""
        param, (*state, _, master) = self._params[index], settled.states[index]
        has_sign = ROWS[self.row]["has_sign"]
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
        if self._shown is not None and self._shown.active:
            self._check_not_shown("copy")
        return {**self.__dict__, "_shown": None, "_planned": None}

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out because a gradient was not finite."""
        return int(self._counters[SKIPPED])

    def _commit(self, *updates: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Change attributes and write the copies of the parameters, so that they go together.

        One native call, so that not even an interrupt sees a part of it.
        """
        _core.commit(updates, self._labels, self._params, self._copies)

    def __setattr__(self, name: str, value: Any) -> None:
        is_own = name == "param_groups" or name[0] == "_" or hasattr(type(self), name)
        if not is_own or name == "zero_grad":  # a setting once; now it would hide the method
            raise AttributeError(_foreign.no_attribute(type(self), name))
        object.__setattr__(self, name, value)

    def _mirror(self, grads: Grads) -> list[Any]:
        leaves: list[Any] = []
        tree: Any = grads
        if self._grouped and _is_groups(tree):  # the gradients of groups may stand in groups too
            tree = [group["params"] for group in tree]
        mirror(self._shape, tree, leaves)
        return leaves

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything a run needs to continue, apart from the parameters.

        Returns
        -------
        dict
            ``{"state": {key: {"step": t, name: array, ...}}, "param_groups": [...],
            "step_options": {...}}``, PyTorch's layout and names, but for the last: `max_grad_norm`,
            `nonfinite`, `clear_grads`, `seed` and `skipped_steps`. Beside the rule's arrays, which
            stand as they are kept, are ``"average"``, with ``"averaged"``, its steps, ``"master"``
            and ``"accumulated"``. A key is the parameter's dotted path (``"0.w"``) where a
            mapping is anywhere in the structure, else its index. A group holds its
            hyperparameters, the keys of its parameters and ``"step"``, the steps completed. A
            schedule is code and stands there as None, or as the list of the memories in it (see
            `onepass.schedules`).

            Where settings were changed since the last step so that it will keep other arrays,
            ``"state"`` has those, and ``"unsettled"`` has the arrays as they are: the change may
            still be taken back.
        """
        return _state.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the run that `state_dict` was taken from.

        Takes PyTorch's own dictionaries too (its CPU tensors as NumPy arrays). Hyperparameters
        and step options are taken over; where this optimizer has a schedule, the schedule stays,
        and takes over the memory that was saved with one. State that was saved in another format
        than its group's is rounded to nearest by the next step. Load 16-bit parameters before: a
        master must fit. The copies of `copy_to` are written.

        Raises
        ------
        TypeError, ValueError
            If anything in it does not fit this optimizer. Then nothing has changed.
        """
        self._check_not_shown("load_state_dict")
        self._commit(*_state.loaded(self, state_dict))

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
