"""What every optimizer shares: parameters, groups, state, the step, the checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import repeat
from typing import Any, Literal, cast

import numpy as np

from onepass import _core
from onepass._hyperparameters import Flag, check_setting
from onepass._quiet import quiet
from onepass._typing import (
    Array,
    Exchange,
    Grads,
    Overrides,
    OwnArrays,
    Params,
    RowGrads,
    Schedule,
    StateAlloc,
)
from onepass.optim import _foreign, _rule, _storage
from onepass.optim._arrays import Kept, arrange
from onepass.optim._maker import GATHERED, Allocator, Maker
from onepass.optim._overrides import ByPattern, by_name, check_matched, read_overrides, split
from onepass.optim._owner import Owner, OwnSetting
from onepass.optim._settings import (
    CHECKS,
    GRAD_SCALE,
    GROUP_CHECKS,
    GROUP_DEFAULTS,
    OWN_FIELDS,
    averages,
)
from onepass.optim._tree import Leaves, Node, flatten, is_groups, leaves_like, listed
from onepass.optim.step_info import StepInfo, new_stats
from onepass.schedules._base import BaseSchedule

_OPTIONS = (*CHECKS, *GROUP_CHECKS, "overrides", "grads", "copy_to", "state_alloc")
"""What every optimizer takes besides its hyperparameters."""


class Optimizer(Owner):
    r"""Base of the optimizers: gradient in, parameters updated in place.

    Every optimizer takes, besides its hyperparameters, what else belongs to a step. All of it
    happens in PyTorch's order and in one pass over memory, before which only norms and the check of
    `nonfinite` read the gradients:

    1. the gradients are divided by `grad_scale`: :math:`g \leftarrow g / s`;
    2. where one of them is not finite, `nonfinite` decides for all of them; where their common norm
       is above `skip_grad_norm`, the step is left out;
    3. their common norm is clipped, :math:`g \leftarrow g \min(1, c / (\|g\| + 10^{-6}))`, then
       that of each array by itself, then each element, :math:`g \leftarrow \max(\min(g, c), -c)`;
    4. the weights decay and the rule steps, or the other way round where the decay depends on it;
       where a round of Lookahead ends, the weights go back towards those with which it began,
       :math:`w \leftarrow s + \alpha (w - s)`;
    5. the average of the weights moves, :math:`a \leftarrow \beta_t a + (1 - \beta_t) w`;
    6. the weights are copied in fewer bits, the gradients are zeroed, and what is kept in fewer
       bits is rounded.

    Parameters
    ----------
    params : ndarray, sequence or mapping of them, or list of groups
        Arrays without gaps: their elements fill one piece of memory, in any order of the axes.
        They may be nested. Any collection with an order counts as a sequence (a generator, or
        ``params.values()``, but not a set). The names in a mapping are strings or integers. See
        the optimizers.
    max_grad_norm : float > 0, or schedule, optional
        The Euclidean norm that all gradients together may have, over all groups; ``math.inf``
        measures it and clips nothing.
    skip_grad_norm : float > 0, or schedule, optional
        The Euclidean norm of all gradients together, over all groups, after the division by
        `grad_scale` and before clipping, above which the step is left out, as
        ``nonfinite="skip"`` leaves one out. So a damaged batch moves neither weights nor moments.
        The limit does not depend on the norms before: see the examples for one that follows their
        median. A norm that is not finite is above every limit, unless `nonfinite` is "raise". Where
        a schedule gives None, there is no limit.
    nonfinite : {"propagate", "skip", "raise"}
        What an infinity or a NaN in a gradient does: spread, as in NumPy; leave parameters, state
        and step counts as they are, and add one to `skipped_steps`; or raise ValueError, with
        nothing changed. `accumulate` does the same with the gradients that it is to add.
    clear_grads : bool
        Put zeros into the gradients once they are used, also where the step is skipped. They must
        be writable then, and lie in memory as their parameters do. (`zero_grad` is PyTorch's
        method.)
    overrides : mapping, callable, or sequence of them, optional
        Settings by name; the gradients keep the structure of the parameters. It is one of

        * a mapping of patterns to settings, ``{"*.b": {"weight_decay": 0.0}}``. The first pattern
          that matches a parameter's name counts (`fnmatch.fnmatchcase`: ``*`` matches dots too). A
          pattern that matches no name is a ValueError.
        * a function that is called once with each name and array, and returns settings or None,
          such as `onepass.no_decay_1d`. The optimizer can be pickled if its functions can.
        * a sequence of these: ``[op.no_decay_1d, op.layer_decay(...)]`` does both. Where two of
          them give the same setting of a parameter, the first one counts.

        The settings are those that a group may have, and ``"lr_scale"``, a factor of the learning
        rate, whether that is a number or a schedule. A parameter's name is its key in `state_dict`,
        as text: its dotted path, ``"layers.0.w"``, or its index, ``"2"``, if the structure has no
        names. A single array is ``"0"``. In `param_groups` each set of overridden settings is a
        group of its own, after the group of the parameters without any.

        A single setting of groups may also be a mapping of patterns to values,
        ``weight_decay={"*.w": 0.1}``: a parameter that matches none of them has the default of the
        class. A group of a list may have ``"overrides"`` for the names in it. If several of these
        give the same setting of a parameter, the group's ``"overrides"`` count first, then
        `overrides`, and then the setting itself.
    grads : like the parameters, optional
        Gradients for `bind`.
    seed : int in [0, 2**53)
        The seed of stochastic rounding. The random bits are a function of it, of the parameter's
        step and of the element's place (`onepass.formats.random_bits`).
    copy_to : like the parameters, optional
        Arrays of float16 or ``ml_dtypes.bfloat16``, in the layout of the parameters, which are
        float32. They are the weights, rounded to nearest, for a model that computes in fewer bits:
        written here, by `load_state_dict`, and by each step that moves the parameter. None in it
        leaves that parameter without a copy. What you write into a parameter yourself, and what
        `averaged` and `lookahead` show, is not copied.
    state_alloc : function, optional
        ``state_alloc(name, shape, dtype)`` makes each array that is kept between steps, for state
        in huge pages, in shared memory, in a file (`numpy.memmap`) or in a pool of another
        library's. It returns an array of this shape and dtype, which may hold anything: aligned,
        writable, contiguous in the order of its parameter, and in memory that no other array has.
        A `name` is the parameter's key, as `state_dict` has it, a point, and the array's name:
        ``"encoder.w.exp_avg"``, ``"0.average"``. The function is called when the optimizer is made
        and where a changed setting, `accumulate` or `load_state_dict` asks for an array that is not
        there yet; then perhaps again for a name that it knows, and the earlier array stays in use
        if the call fails. What is made is never resized, and must stay where it is while the
        optimizer lives. Arrays for a single step, and those of `state_dict`, are NumPy's; so is all
        state of a copy and of an unpickled optimizer, since it cannot share the original's.
    max_grad_norm_each : float > 0, or schedule, optional
        The norm that each array's gradient may have by itself, :math:`g_i \leftarrow g_i
        \min(1, c / (\|g_i\| + 10^{-6}))`; after `max_grad_norm`, where both are given. Groups may
        differ in it, and in what follows.
    max_grad_value : float > 0, or schedule, optional
        What the absolute value of a gradient's element may be.
    ema_decay : float in [0, 1], or schedule, optional
        The :math:`\beta` of an exponential moving average of the weights, which `averaged` shows.
        It begins as the weights after its first step, as in PyTorch. Where a schedule returns 1,
        the average stays as it is, and is neither read nor written. (None means that there is no
        average any more; the next one begins anew.)
    ema_warmup : bool
        Let the decay begin small: :math:`\beta_t = \min(\beta, (1 + t) / (10 + t))` in the
        :math:`t`-th step of the average.
    swa_start : int >= 1, optional
        Stochastic weight averaging: the plain mean of the weights after this step and all later
        ones, :math:`\beta_t = 1 - 1 / (t - t_0 + 1)`; before it, the weights themselves.
    average_every : int >= 1
        Let only the weights of every :math:`k`-th step enter the average: with `ema_decay` those of
        the steps :math:`k, 2k, 3k \dots`, with `swa_start` those of :math:`t_0, t_0 + k, t_0 + 2k
        \dots`, once an epoch, say, or where a cyclic learning rate is lowest. Before the first of
        these steps the average is the weights themselves. In the formulas above, :math:`t` counts
        the weights that have entered. A step whose weights do not enter neither reads nor writes
        the average. (`swa_every`, its name elsewhere, is the same setting.)
    average_dtype : {"float64", "float32"}
        The dtype in which the average is kept and computed: it takes 8 bytes a parameter, or 4,
        as in PyTorch's ``AveragedModel``. With a decay of 0.9999, or in a mean of thousands of
        steps, a step adds a ten-thousandth of the difference between weight and average or less,
        which float32 often rounds away; up to a decay of about 0.999, float32 will do. The average
        is rounded to the parameter's dtype when it is shown. That of a float64 parameter is always
        float64.
    lookahead_every : int >= 1, optional
        Lookahead: in every so-many-th step of a parameter, its weights go a part of the way from
        where the round began, the slow weights :math:`s`, to where it ends, and the next round
        begins there: :math:`w \leftarrow s + \alpha (w - s)`. The paper's is 5. The slow weights
        take one more array, written once a round and read once. The rule's own state goes on. A
        round begins with the weights as they are, also where you have changed them.
    lookahead_weight : float in [2**-126, 1]
        The :math:`\alpha` of Lookahead.
    state_format : {None, "bf16", "q8"}
        How the rule's arrays are kept between steps: as the rule computes with them, or in
        bfloat16, or in 8 bits (`onepass.formats.q8_encode`), rounded stochastically, since to the
        nearest a :math:`\beta` of 0.999 would change nothing in so few bits. Not beside float64. A
        parameter of fewer than 4,096 elements keeps its arrays in float32.
    rounding : {"master", "stochastic", "nearest"}
        How the weights of a parameter in float16 or bfloat16 are kept. The average of the weights
        is taken before they are rounded.

        * "master": in float32, as state; the parameter is this master, rounded to nearest. Where
          somebody has changed an element of the parameter in place, the master follows.
        * "stochastic": in the parameter alone, rounded stochastically, so that small steps count on
          average.
        * "nearest": in the parameter alone, rounded to nearest, so that small steps are lost.

    cautious_weight_decay : bool
        Where the weight decay is decoupled: let only those weights decay that the step brings
        nearer to 0, :math:`w \leftarrow w - u - \eta \lambda w \,[u w > 0]` with :math:`u` the
        rule's step. So the decay never works against the loss.

    Attributes
    ----------
    param_groups : list of mappings
        The settings of each group, with ``"params"``. What is in a mapping may be changed between
        steps, and counts from the coming step on. A value is checked and converted when it is
        assigned, as the constructor does it; of a list of betas its numbers are taken then. Whether
        settings go together is for the step to check, so that they may be changed one by one. A
        setting cannot be removed, nor a mapping or its ``"params"`` replaced; `add_param_group`
        adds a group. With `overrides` there may be more groups than you have given.
    max_grad_norm, skip_grad_norm, nonfinite, clear_grads, seed
        As above; they may be set between steps, and are checked when they are.
    skipped_steps : int
        How many steps were skipped, for either reason; `StepInfo.skip_reason` has that of each.

    Notes
    -----
    A subclass states its rule's name (``class Adam(Optimizer, rule="adam")``), the range of each
    hyperparameter, the numbers of a step (`scalars`) and the rule in NumPy (`reference`). The last
    two are what the kernels are held to; these compute their own numbers, in C++. So a subclass of
    such a class that defines `checks`, `check_together`, `scalars` or `reference` is a TypeError.

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
    * Keras: ``exclude_from_weight_decay`` takes parts of names; `overrides` take patterns. Its
      `clipnorm` is `max_grad_norm_each`, without the :math:`10^{-6}`, its
      `global_clipnorm` `max_grad_norm`; only one of them may be given there.
    * timm's Lookahead begins the slow weights at the end of the first round, so that this round
      changes nothing; the paper's begins, as here, with the first step. `SGD.lookahead` is another
      thing: it shows the weights at which Nesterov's momentum takes its gradient.
    * optax: masks and ``multi_transform`` take trees of labels, where `overrides` take names.
      `apply_if_finite` takes steps with gradients that are not finite after so many of them in a
      row. `skip_large_updates` is for `MultiSteps`: it leaves each batch whose squared norm is too
      large out of the sum, and does not look at the sum.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
    networks", ICML 2013, arXiv:1211.5063 (clipping by the norm).
    S. Gupta et al., "Deep learning with limited numerical precision", ICML 2015, arXiv:1502.02551
    (stochastic rounding).
    T. Dettmers et al., "8-bit optimizers via block-wise quantization", ICLR 2022, arXiv:2110.02861.
    L. Chen et al., "Cautious weight decay", 2025, arXiv:2510.12402.
    M. R. Zhang et al., "Lookahead optimizer: k steps forward, 1 step back", NeurIPS 2019,
    arXiv:1907.08610.
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

    Leave out a step whose norm is above ten times the median of the last hundred:

    >>> from collections import deque
    >>> from statistics import median
    >>> opt = op.SGD(w, lr=0.1, max_grad_norm=float("inf"))  # measures from the first step on
    >>> norms = deque(maxlen=100)
    >>> for size in (1.0, 2.0, 3.0, 1000.0, 2.0):
    ...     info = opt.step(np.array([size, 0.0]))
    ...     if info.skipped:
    ...         print(f"left out: {info.skip_reason} {info.grad_norm}")
    ...     norms.append(info.grad_norm)
    ...     opt.skip_grad_norm = 10 * median(norms)
    left out: grad_norm 1000.0
    >>> opt.skip_grad_norm, opt.skipped_steps
    (20.0, 1)
    """

    max_grad_norm = OwnSetting()
    skip_grad_norm = OwnSetting()
    nonfinite = OwnSetting()
    clear_grads = OwnSetting()
    seed = OwnSetting()

    def __init__(
        self,
        params: Params,
        *,
        max_grad_norm: float | Schedule | None = None,
        skip_grad_norm: float | Schedule | None = None,
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        clear_grads: bool = False,
        overrides: Overrides = None,
        grads: OwnArrays = None,
        copy_to: OwnArrays = None,
        state_alloc: StateAlloc | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        settings = _foreign.renamed(settings)
        _foreign.check_names(type(self), settings, _OPTIONS)
        own = {
            "max_grad_norm": max_grad_norm,
            "skip_grad_norm": skip_grad_norm,
            "nonfinite": nonfinite,
            "clear_grads": clear_grads,
            "seed": seed,
        }
        own = {name: check_setting(CHECKS, name, value) for name, value in own.items()}
        if state_alloc is not None and not callable(state_alloc):
            got = type(state_alloc).__name__
            raise TypeError(f"state_alloc: expected a function or None, got {got}")
        self._made_with = self._checked({**GROUP_DEFAULTS, **settings})
        self._overrides = read_overrides(type(self), overrides)
        leaves = Leaves()
        groups: list[_core.Settings] = []
        shape: Node
        params = listed(params, "params")
        grouped = is_groups(params)
        if grouped:
            shape = [
                self._add_group(group, leaves, groups, f"[{number}]['params']")
                for number, group in enumerate(params)
            ]
        else:
            shape = self._add_group({"params": params}, leaves, groups, "")
        if not leaves.arrays:
            raise ValueError("params: expected at least one array, got none")
        check_matched([*self._overrides, *self._made_with.values()], leaves.keys)
        copies = [None] * len(leaves.arrays)
        engine = _core.Engine(
            self._owned(
                {
                    "fields": self._fields,
                    "groups": groups,
                    "own": OWN_FIELDS.settings(own),
                    "shape": shape,
                    "grouped": grouped,
                    "labels": leaves.labels,
                    "keys": list(leaves.keys),
                    "params": leaves.arrays,
                    "group_of": leaves.group_of,
                    "state_alloc": state_alloc,
                    "copies": copies if copy_to is None else leaves_like(shape, grouped, copy_to),
                    "bound": None if grads is None else leaves_like(shape, grouped, grads),
                }
            )
        )
        self._commit(engine)

    def _owned(self, contents: dict[str, Any]) -> dict[str, Any]:
        """Return what the engine is made of: all parameters here, parts in a sharded optimizer."""
        return contents

    def _checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings of a group; of one that is given by name, its values by pattern."""
        return {
            name: by_name(type(self), name, value)
            if isinstance(value, Mapping)
            else check_setting(self.group_checks, name, value)
            for name, value in settings.items()
        }

    def _add_group(
        self,
        group: Mapping[str, Any],
        leaves: Leaves,
        groups: list[_core.Settings],
        label: str,
    ) -> Node:
        """Append the arrays of a group to `leaves`, and to `groups` those that it comes to."""
        settings = {k: v for k, v in group.items() if k not in ("params", "overrides")}
        settings = _foreign.renamed(settings)
        _foreign.check_names(type(self), settings, (*GROUP_CHECKS, "overrides"))
        settings = self._checked(settings)
        own = read_overrides(type(self), group.get("overrides"))
        first = len(leaves.arrays)
        shape = flatten(group["params"], leaves, label)
        check_matched([*own, *settings.values()], list(leaves.keys)[first:])
        settings = {**self._made_with, **settings}
        named = [value for value in settings.values() if isinstance(value, ByPattern)]
        defaults = {**self.defaults, **GROUP_DEFAULTS}
        base = {k: defaults[k] if isinstance(v, ByPattern) else v for k, v in settings.items()}
        overrides = [*own, *self._overrides, *named]
        leaves.group_of += [0] * (len(leaves.arrays) - first)
        for values, places in split(type(self), base, overrides, leaves, first):
            for place in places:
                leaves.group_of[place] = len(groups)
            arrays = tuple(leaves.arrays[place] for place in places)
            groups.append(self._fields.settings({"params": arrays, **values}))
        return shape

    # One step

    @_core.native
    def step(
        self,
        grads: Grads = None,
        *,
        grad_scale: float = 1.0,
        stats: bool = False,
        exchange: Exchange | None = None,
        num_threads: int | None = None,
    ) -> StepInfo:
        """Update the parameters in place.

        Parameters
        ----------
        grads : like the parameters, optional
            The gradients, in the structure of the parameters. Each has its parameter's shape, any
            strides, and the dtype float64, float32, float16 or ``ml_dtypes.bfloat16``. For a
            float64 parameter it is widened exactly. For any other one, float64 is rounded to the
            nearest float32 (and becomes infinite if it is too large), and 16 bits are widened. An
            array may be another library's, a JAX array or a PyTorch tensor, say, if NumPy can read
            it (``__array__``, ``__dlpack__``): it is read where it lies, or as that library copies
            it. For a parameter of shape () it may be a Python number. None in the place of a
            gradient leaves that parameter, its state, its average and its step alone. If `grads` is
            left out, the gradients are those that `accumulate` has summed, else those that were
            bound.
        grad_scale : float in [2**-126, 2**128)
            What the gradients are divided by: the loss scale, or how many were accumulated. They
            are not modified.
        stats : bool
            Report for each parameter the norms of its gradient, its update and its weights, and
            the share of zeros in the gradient: see `StepInfo.stats`. They are computed in the same
            pass over memory.
        exchange : function, optional
            Make this step one of many processes that have a part of the parameters each, so that
            norm, clipping and skipping go by all gradients. ``exchange(sums)`` is called when
            everything here is checked and measured, and nothing is written. It is given the sums of
            squares of this process' gradients before the division by `grad_scale`: a vector of
            float64 with one for each 16,384 elements of each parameter, in order. It returns such a
            vector with those of all processes, its own among them (fewer are an error), which must
            be the same on all of them. Where neither norm nor verdict is asked for
            (`max_grad_norm`, `skip_grad_norm`, `max_grad_norm_each`, `nonfinite`), the vector that
            it gets is empty, and it returns one that nobody reads. Where their total is 0, out of
            range or not finite, it is called once more, with sums in units of :math:`2^{600}` or
            :math:`2^{-600}`. If it raises, this process has changed nothing. See the page on scale.
        num_threads : int, optional
            Threads for this step; the default is `onepass.get_num_threads()`. The result is the
            same for any number.

        Returns
        -------
        StepInfo

        Raises
        ------
        TypeError, ValueError
            If an array, or what a schedule or `exchange` returns, is not as it must be, if settings
            do not go together, if another mapping stands in `param_groups`, or if `exchange` is
            given to `Prodigy`, whose own sums over all arrays it does not exchange. Then nothing
            has changed.

        Examples
        --------
        Two processes, one after the other here, with a half of the weights each. The first one is
        told what the second one will find:

        >>> import numpy as np
        >>> import onepass as op
        >>> halves = np.ones(2), np.ones(2)
        >>> grads = np.array([3.0, 0.0]), np.array([0.0, 4.0])
        >>> for half, grad in zip(halves, grads):
        ...     opt = op.SGD(half, lr=1.0, max_grad_norm=2.5)
        ...     info = opt.step(grad, exchange=lambda sums: np.array([9.0, 16.0]))
        ...     print(info.grad_norm, half.round(6))
        5.0 [-0.5  1. ]
        5.0 [ 1. -1.]
        """
        raise NotImplementedError

    @_core.native
    def step_rows(
        self, grads: RowGrads, *, grad_scale: float = 1.0, num_threads: int | None = None
    ) -> StepInfo:
        """Update some rows of parameters in place: those of an embedding table that a batch used.

        Only the rows named, of the first axis, are read and written, in the parameter and in its
        state. They move as `step` would move them, to the bit, with their gradients' sums where a
        row is named more than once. All other rows keep what they have: they do not decay, and no
        momentum moves them. This is called *lazy*. The parameter's step counts each call that names
        it, an index without rows included, and bias corrections go by that count for every row.

        Parameters
        ----------
        grads : mapping, or pair
            From a parameter's key, as `state_dict` has it (its dotted path, or its index if the
            structure has no names; where a name is an integer, the integer will do too), to a pair
            (index, values): a 1-D array of integers in [0, rows), in any order, and an array of
            shape ``(len(index), *param.shape[1:])``, of a dtype that `step` takes. Values for the
            same row are summed in the dtype that the rule computes in, in the order in which they
            stand. Where the parameter is a single array, the pair will do. A key may also have a
            whole gradient, in the place of a pair: so one call, with one norm and one count, steps
            a model. Parameters that are not named, or named with None, are left alone.
        grad_scale, num_threads
            As for `step`.

        Returns
        -------
        StepInfo
            Its `grad_norm` is the norm of the sums, each row's once, in the rows' order.

        Raises
        ------
        TypeError, ValueError
            As in `step`; where a parameter whose rows are named does not lie in C order; and where
            rows alone have no meaning: beside `ema_decay`, `swa_start`, `lookahead_every`,
            `state_format`, `clear_grads` and ``rounding="stochastic"`` of 16 bits, and for rules
            that measure whole arrays or average all weights. Then nothing has changed.

        Notes
        -----
        Differs from

        * PyTorch: `torch.optim.SparseAdam` is ``Adam(eps_hat=True)`` here. It sums the values in an
          order of its own, and knows no stage of a step. Of its other optimizers `SGD` and
          `Adagrad` take sparse gradients.
        * A `step` whose gradient is 0 in all other rows, which moves these too.

        Examples
        --------
        >>> import numpy as np
        >>> import onepass as op
        >>> table = np.zeros((5, 2))
        >>> opt = op.SGD({"embedding": table}, lr=1.0)
        >>> index, values = np.array([3, 1, 3]), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> info = opt.step_rows({"embedding": (index, values)})
        >>> table
        array([[ 0.,  0.],
               [-3., -4.],
               [ 0.,  0.],
               [-6., -8.],
               [ 0.,  0.]])
        """
        raise NotImplementedError

    @_core.native
    def step_one(
        self,
        name: str | int,
        grad: Any,
        *,
        grad_scale: float = 1.0,
        stats: bool = False,
        num_threads: int | None = None,
    ) -> StepInfo:
        """Update one parameter in place, as soon as the backward pass has its gradient.

        You can let go of its gradient before you compute the next one, so that a model's gradients
        take the memory of the largest one. Once each parameter has had its turn, parameters and
        state are, to the bit, as after one `step` with all gradients.

        The turns of all parameters are a *round*. `StepInfo.step` and schedules count rounds, and
        the schedules are called in a round's first turn. A round ends with the last parameter's
        turn. It also ends if a parameter is given that has had its turn, or if `step` or
        `step_rows` is called, unless that step is skipped. So a parameter that never has a gradient
        need not be named. Between two turns everything else works as between two steps: a
        checkpoint continues the round. A setting that is assigned counts from the coming turn on;
        the schedules are then called again.

        Parameters
        ----------
        name : str or int
            The parameter's key, as `state_dict` has it: its dotted path, or its index if the
            structure has no names.
        grad : ndarray, or None
            Its whole gradient, as `step` takes one: if the array is used in two places, the sum
            over both. None leaves the parameter alone, but counts as its turn.
        grad_scale, stats, num_threads
            As for `step`.

        Returns
        -------
        StepInfo
            Its `grad_norm`, with `max_grad_norm_each` or ``nonfinite="raise"``, is this gradient's.

        Raises
        ------
        TypeError, ValueError
            As in `step`, and with whatever needs all gradients at once: `max_grad_norm`,
            `skip_grad_norm`, ``nonfinite="skip"``, gradients that were accumulated, and `Prodigy`.
            Then this call has changed nothing.

        Notes
        -----
        Differs from

        * PyTorch: there you make an optimizer for each parameter, which a hook steps
          (``register_post_accumulate_grad_hook``); each has its own schedule and checkpoint.
        * Keras and optax: they have no such step.

        Examples
        --------
        >>> import numpy as np
        >>> import onepass as op
        >>> params = {"first": np.ones(2), "last": np.ones(2)}
        >>> opt = op.SGD(params, lr=0.5)
        >>> opt.step_one("last", np.array([1.0, 2.0])).step
        1
        >>> opt.step_one("first", np.array([2.0, 0.0])).step
        1
        >>> params
        {'first': array([0., 1.]), 'last': array([0.5, 0. ])}
        >>> opt.step_one("last", np.array([1.0, 2.0])).step
        2
        """
        raise NotImplementedError

    @_core.native
    def accumulate(self, grads: Grads = None, *, num_threads: int | None = None) -> bool:
        """Add gradients to a sum, which the next `step()` takes and sets back to zero.

        For the mean of n batches, ``opt.step(grad_scale=n)``. The sums take one more array per
        parameter, in the dtype that its rule computes in, and are part of `state_dict`. With
        `clear_grads` the gradients are zeroed here.

        If a gradient is not finite, `nonfinite` decides as it does in a step. "propagate" adds the
        gradients. "skip" leaves out all gradients of this call, and the step takes those of the
        other calls; if every call was left out, the step is skipped. "raise" raises an error, which
        names the array and the number of the call since the last step. The last two take a pass
        over the gradients before the first sum is written.

        To divide by the number of calls that were added, pass ``grad_scale=max(n, 1)``, because
        `grad_scale` may not be 0.

        Parameters
        ----------
        grads, num_threads
            As for `step`; left out, the gradients are those that were bound.

        Returns
        -------
        bool
            Whether they were added; False where they were left out.

        Raises
        ------
        TypeError, ValueError
            If a gradient is not as it must be. Then nothing has changed.

        Examples
        --------
        >>> import numpy as np
        >>> import onepass as op
        >>> w = np.zeros(1)
        >>> opt = op.SGD(w, lr=1.0, nonfinite="skip")
        >>> n = sum(opt.accumulate(np.array([g])) for g in (1.0, np.nan, 3.0))
        >>> info = opt.step(grad_scale=max(n, 1))
        >>> n, w
        (2, array([-2.]))
        """
        raise NotImplementedError

    def discard_accumulated(self) -> None:
        """Forget the gradients that `accumulate` has summed, and those that it left out."""
        self._engine.discard_accumulated()

    def bind(self, grads: OwnArrays) -> None:
        """Check gradients once, and take them in every later `step()` that is given none.

        The arrays are read where they are, so fill them in place. Such a step costs one native
        call.

        Parameters
        ----------
        grads : like the parameters, or None
            In the structure of the parameters; None in it leaves that parameter alone. An array
            must lie in memory as its parameter does, and be NumPy's own. None alone binds none any
            more.

        Raises
        ------
        TypeError, ValueError
            If a gradient is not as it must be. Then those bound before stay.
        """
        self._engine.bind(grads)

    def zero_grad(self) -> None:
        """Put zeros into the bound gradients: PyTorch's method, for a backward pass that adds.

        With ``clear_grads=True`` each step does it, in the pass in which it reads them.

        Raises
        ------
        TypeError, ValueError
            If none are bound, or one of them cannot be written. Then nothing has changed.
        """
        contents = self._engine.contents()
        if contents["bound"] is None:
            raise TypeError("zero_grad: expected gradients that are bound (grads=), got none")
        grads = [grad for grad in contents["bound"] if grad is not None]
        for label, grad in zip(contents["labels"], contents["bound"], strict=True):
            if grad is not None and not grad.flags.writeable:
                raise ValueError(f"grads{label}: expected a writable array, got a read-only one")
        # A native loop, which no interrupt leaves half way.
        deque(map(np.ndarray.fill, grads, repeat(0)), maxlen=0)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters, which begin with their first step: PyTorch's method.

        From now on gradients are a list with an item for each group, as they are for an optimizer
        that was made of groups: what was one structure before is its first item. Gradients that
        were bound are bound no longer. The new parameters have no `copy_to`.

        Parameters
        ----------
        param_group : mapping
            ``"params"``, and the settings in which the group differs from what the optimizer was
            made with. The optimizer's `overrides` apply to it too, after its own; their patterns
            need not match a name here.

        Raises
        ------
        TypeError, ValueError
            If an array or a setting is not as it must be. Then nothing has changed.
        """
        self._check_outside("add_param_group")
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise TypeError(f"param_group: expected a mapping with 'params', got {param_group!r}")
        engine = self._engine
        now = engine.contents()
        groups, before = list(now["groups"]), len(now["groups"])
        leaves = Leaves(
            list(now["params"]),
            dict.fromkeys(now["keys"]),
            list(now["labels"]),
            list(now["group_of"]),
        )
        shapes = now["shape"] if now["grouped"] else [now["shape"]]
        first = len(leaves.arrays)
        shape = self._add_group(param_group, leaves, groups, f"[{len(shapes)}]['params']")
        added = len(leaves.arrays) - first
        if not added:
            raise ValueError("params: expected at least one array, got none")
        self._check_outside("add_param_group")  # a function among `overrides` may have done much
        if self._engine is not engine:
            expected = "overrides that leave the optimizer as it is"
            raise ValueError(f"param_group: expected {expected}, got others")
        now = engine.contents()
        progress = now["progress"]
        nothing = (None,) * (len(self.row.states) + 3)
        for name, value in {
            "steps": 0,
            "average_from": 0,
            "entered": 0,
            "memory": progress["memory"][0]
            if self.row.sums_over_all
            else list(self.row.memory_start),
            "accumulated": 0,
            "had_turn": False,
            "kept": nothing,
            "sums": None,
        }.items():
            progress[name] += [value] * added
        engine = _core.Engine(
            {
                **now,
                "groups": groups,
                "shape": [*shapes, shape],
                "grouped": True,
                "labels": leaves.labels,
                "keys": list(leaves.keys),
                "params": leaves.arrays,
                "group_of": leaves.group_of,
                "copies": [*now["copies"], *[None] * added],
                "bound": None,
            }
        )
        for group in groups[before:]:
            _storage.check_format(group["state_format"], group["params"])
        self._engine = engine

    def averaged(self) -> AbstractContextManager[None]:
        """Show the average of the weights in the parameters while the block runs.

        Of `ASGD` without `ema_decay` and `swa_start`, and of the schedule-free optimizers, it is
        the rule's own average. Use it at once: ``with opt.averaged(): ...``. Leaving the block,
        also by an exception, restores the parameters to the bit; it takes a copy of them. A
        parameter without an average, or not stepped since it has one, stays as it is.

        Raises
        ------
        ValueError
            If no group keeps an average, or the block is entered twice.
        """
        return self._show("averaged", self._averages)

    def _averages(self) -> tuple[list[int], list[Any]]:
        now = self._engine.contents()
        progress, groups = now["progress"], self.param_groups
        done = zip(progress["kept"], progress["steps"], progress["average_from"], strict=True)
        shown = {}
        for index, (kept, steps, begun) in enumerate(done):
            average = kept[len(self.row.states)]
            if average is not None and steps > begun:
                shown[index] = average
            elif average is None and self.own_average and steps:
                group = groups[now["group_of"][index]]
                shown[index] = self._own_average(now["params"][index], group, kept)
        if not (shown or self.own_average or any(map(averages, self.param_groups))):
            raise ValueError("ema_decay: expected it, or swa_start, for averaged, got None")
        return list(shown), list(shown.values())

    @quiet
    def _own_average(self, param: Array, group: Mapping[str, Any], kept: Kept) -> Array:
        *state, _, master, _ = kept
        named = dict(zip(self.row.states, state, strict=True))
        assert self.own_average
        return self.own_average(_storage.weights(param, master), group, named)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute that there is."""
        is_own = name[0] == "_" or hasattr(type(self), name)
        if not is_own or name == "zero_grad":  # a setting once; now it would hide the method
            raise AttributeError(_foreign.no_attribute(type(self), name))
        object.__setattr__(self, name, value)


registry = cast("dict[str, type[Optimizer]]", _rule.registry)
"""Every optimizer class, by the name of its rule."""


def _new_sum(param: Array, allocator: Allocator | None) -> Array:
    """Return zeros to which gradients are added."""
    return Maker(param, allocator)(GATHERED)


@quiet
def _direct(rule: str, directions: Sequence[tuple[Array, float, Mapping[str, float]]]) -> None:
    """Make the directions of a step: see `Rule.finish_directions`."""
    registry[rule].finish_directions(directions)


_core.set_callbacks(
    step_info=StepInfo,
    mirror=leaves_like,
    arrange=arrange,
    new_sum=_new_sum,
    direct=_direct,
    stats=new_stats,
    grad_scale=GRAD_SCALE,
    stats_flag=Flag(),
    schedule_call=BaseSchedule.__call__,
)
