"""scikit-learn's `MLPClassifier` and `MLPRegressor`, trained by onepass's kernels.

They take every optimizer of onepass as ``optimizer=``. Without one they take scikit-learn's own
steps: those of ``"adam"`` within rounding, those of ``"sgd"`` to the bit.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from onepass import kernels
from onepass._extras import require
from onepass._typing import Array
from onepass.optim import Optimizer, registry
from onepass.optim._tree import Node, filled

require("sklearn", sklearn="scikit-learn")

import sklearn  # noqa: E402
from sklearn import neural_network  # noqa: E402
from sklearn.neural_network import _multilayer_perceptron, _stochastic_optimizers  # noqa: E402
from sklearn.utils._param_validation import StrOptions  # noqa: E402

__all__ = ["MLPClassifier", "MLPRegressor", "patch", "unpatch"]

_OVERRIDDEN = ("_fit", "_fit_stochastic", "_update_no_improvement_count")
"""Methods of scikit-learn's that `_Network` overrides, or relies on to assign `_optimizer`."""

_missing = [
    name
    for name in _OVERRIDDEN
    if not hasattr(_multilayer_perceptron.BaseMultilayerPerceptron, name)
]
if _missing:
    raise ImportError(
        f"scikit-learn: expected a version whose networks have {', '.join(_OVERRIDDEN)}, got "
        f"{sklearn.__version__} without {', '.join(_missing)}"
    )


_Layout = tuple[Node, list[int]]
"""The structure of an optimizer's parameters, and the place of each among the network's."""


def _like(arrays: list[Array], params: list[Array]) -> list[Array]:
    """Return arrays in the parameters' dtypes and orders: themselves, where they are so already."""
    return [
        array.astype(param.dtype, order="F" if param.flags.fnc else "C", copy=False)
        for array, param in zip(arrays, params, strict=True)
    ]


def _narrowed(grads: list[Array], params: list[Array]) -> list[Array]:
    """Return gradients in the parameters' dtypes.

    scikit-learn makes float64 ones beside float32 weights where the targets are not float32.
    """
    pairs = zip(grads, params, strict=True)
    return [grad.astype(param.dtype, copy=False) for grad, param in pairs]


class AdamOptimizer(_stochastic_optimizers.AdamOptimizer):
    """scikit-learn's Adam, with a native step on its own arrays."""

    ms: list[Array]
    vs: list[Array]

    def update_params(self, params: list[Array], grads: list[Array]) -> None:
        """Update parameters in place."""
        if max(self.beta_1, self.beta_2) >= 1:  # the kernel refuses it
            super().update_params(params, grads)
            return
        self.ms, self.vs = _like(self.ms, params), _like(self.vs, params)
        kernels.adam(
            params,
            _narrowed(grads, params),
            self.ms,
            self.vs,
            step=self.t + 1,
            lr=self.learning_rate_init,
            betas=(self.beta_1, self.beta_2),
            eps=self.epsilon,
            eps_hat=True,
        )
        self.t += 1
        corrections = np.sqrt(1 - self.beta_2**self.t), 1 - self.beta_1**self.t
        self.learning_rate = self.learning_rate_init * corrections[0] / corrections[1]


class SGDOptimizer(_stochastic_optimizers.SGDOptimizer):
    """scikit-learn's SGD, with a native step."""

    buffers: list[Array]
    """The velocities with the other sign: the kernel subtracts what scikit-learn adds."""

    @property
    def velocities(self) -> list[Array]:
        """Copies, as scikit-learn has them."""
        return [-buffer for buffer in self.buffers]

    @velocities.setter
    def velocities(self, velocities: list[Array]) -> None:
        self.buffers = [-velocity for velocity in velocities]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes of scikit-learn's class, too."""
        for name, value in state.items():
            setattr(self, name, value)

    def update_params(self, params: list[Array], grads: list[Array]) -> None:
        """Update parameters in place."""
        if self.momentum >= 1:  # the kernel refuses it
            super().update_params(params, grads)
            return
        state = []
        if self.momentum > 0:
            self.buffers = _like(self.buffers, params)
            state.append(self.buffers)
        kernels.sgd(
            params,
            _narrowed(grads, params),
            *state,
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=bool(self.nesterov and state),
            form="sutskever",
        )


class StochasticOptimizer(_stochastic_optimizers.SGDOptimizer):
    """An optimizer of onepass, called as scikit-learn calls its own.

    From scikit-learn's SGD it has ``learning_rate="adaptive"`` and ``"invscaling"``, and no more.
    """

    opt: Optimizer | None
    """None after unpickling, until weights come that it may hold: a model that was loaded with
    ``joblib.load(mmap_mode="r")`` predicts, and its arrays cannot be written."""

    saved: tuple[dict[str, Any], list[Array]]
    """What stands in a pickle for `opt`: its `state_dict`; and its weights, if it averages them."""

    def __init__(
        self,
        make: str | Callable[..., Any],
        params: list[Array],
        learning_rate_init: float,
        lr_schedule: str,
        power_t: float,
    ) -> None:
        super().__init__([], learning_rate_init, lr_schedule, power_t=power_t)
        self.make = registry[make] if isinstance(make, str) else make
        opt, self.places, self.layout = self._made(params)
        self.opt = opt
        self.starts = [group["lr"] for group in opt.param_groups]
        self.rate_in_force = self.learning_rate
        if lr_schedule != "constant" and any(map(callable, self.starts)):
            expected = "'constant' beside an optimizer whose lr is a schedule"
            raise ValueError(f"learning_rate: expected {expected}, got {lr_schedule!r}")
        try:
            opt.averaged()
        except ValueError:
            self.averages = False
        else:
            self.averages = True

    def _made(self, params: list[Array]) -> tuple[Optimizer, list[list[int]], _Layout]:
        """Return an optimizer of the arrays, each group's places among these, and its structure."""
        given = getattr(self.make, "keywords", {})  # those of a functools.partial
        rate = {} if "lr" in given else {"lr": self.learning_rate_init}
        # A copy, since a schedule may remember: every fit begins with a fresh one.
        opt = deepcopy(self.make)(list(params), **rate)
        if not isinstance(opt, Optimizer):
            expected = "a function that returns an optimizer of onepass"
            raise TypeError(f"optimizer: expected {expected}, got one that returns {opt!r}")
        index = {id(param): place for place, param in enumerate(params)}
        places = [[index.get(id(p), -1) for p in group["params"]] for group in opt.param_groups]
        if any(-1 in group for group in places):
            expected = "an optimizer of the arrays that it is called with"
            raise ValueError(f"optimizer: expected {expected}, got one of others")
        now = opt._engine.contents()
        return opt, places, (now["shape"], [index[id(param)] for param in now["params"]])

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, without what must be able to write."""
        if self.opt is None:
            return self.__dict__
        weights = [array for _, array in self.arrays()] if self.averages else []
        return {**self.__dict__, "opt": None, "saved": (self.opt.state_dict(), weights)}

    def arrays(self) -> Iterator[tuple[int, Array]]:
        """Yield the weights that the optimizer holds, each after its place among all."""
        if self.opt is None:
            return
        for places, group in zip(self.places, self.opt.param_groups, strict=True):
            yield from zip(places, group["params"], strict=True)

    def holds(self, params: list[Array]) -> bool:
        """Return whether the optimizer's weights are these very arrays."""
        return self.opt is not None and all(params[k] is array for k, array in self.arrays())

    def hold(self, params: list[Array]) -> Optimizer:
        """Return the optimizer, of these arrays from now on.

        They are others after early stopping, in a copy, and where the user has replaced them.
        """
        if self.opt is None or not self.holds(params):
            state = self.saved[0] if self.opt is None else self.opt.state_dict()
            opt, places, layout = self._made(params)
            opt.load_state_dict(state)
            self.opt, self.places, self.layout = opt, places, layout
        return self.opt

    def update_params(self, params: list[Array], grads: list[Array]) -> None:
        """Update parameters in place."""
        opt = self.hold(params)
        if self.learning_rate != self.rate_in_force:
            for group, start in zip(opt.param_groups, self.starts, strict=True):
                share = start / self.learning_rate_init  # 1.0, unless it was given its own rate
                group["lr"] = self.learning_rate * share
            self.rate_in_force = self.learning_rate
        grads = _narrowed(grads, params)
        shape, places = self.layout
        opt.step(filled(shape, iter([grads[place] for place in places])))

    # What `_Network` does where the weights to predict with are others than those that descend.

    def shown(self, weights: list[Array]) -> list[Array]:
        """Return copies of the weights, with the average in place of those that are averaged."""
        assert self.opt is not None
        with self.opt.averaged():
            return [array.copy() for array in weights]

    def hidden(self, weights: list[Array]) -> list[Array] | None:
        """Return the weights that descend, where `weights` are what `shown` returned; else None."""
        descending = list(weights)
        if self.opt is None:
            for place, array in zip(chain(*self.places), self.saved[1], strict=True):
                descending[place] = np.array(array)
            self.hold(descending)
        for place, array in self.arrays():
            descending[place] = array
        pairs = zip(weights, self.shown(descending), strict=True)
        return descending if all(np.array_equal(*pair) for pair in pairs) else None


_OURS = {
    _stochastic_optimizers.AdamOptimizer: AdamOptimizer,
    _stochastic_optimizers.SGDOptimizer: SGDOptimizer,
}


class _Network:
    """What both networks add to scikit-learn's."""

    optimizer: Any
    solver: str
    coefs_: list[Array]
    intercepts_: list[Array]

    @property
    def _optimizer(self) -> Any:
        try:
            return self.__dict__["_optimizer"]
        except KeyError:
            raise AttributeError("_optimizer") from None  # hasattr is how it is looked for

    @_optimizer.setter
    def _optimizer(self, theirs: Any) -> None:
        """Keep ours in the place of the one that scikit-learn has just made."""
        if self.optimizer is not None:
            settings = vars(self)
            ours: Any = StochasticOptimizer(
                self.optimizer,
                self.coefs_ + self.intercepts_,
                settings["learning_rate_init"],
                settings["learning_rate"],
                settings["power_t"],
            )
        elif type(theirs) in _OURS:
            ours = _OURS[type(theirs)].__new__(_OURS[type(theirs)])
            for name, value in vars(theirs).items():
                setattr(ours, name, value)
        else:
            ours = theirs
        self.__dict__["_optimizer"] = ours

    def _fit(self, X: Any, y: Any, *, incremental: bool = False, **keywords: Any) -> Any:  # noqa: N803
        if self.optimizer is not None and self.solver == "lbfgs":
            raise ValueError(
                f"optimizer: expected None beside solver='lbfgs', got {self.optimizer!r}"
            )
        if incremental:
            self._hide_average()
        try:
            fitted = super()._fit(X, y, incremental=incremental, **keywords)  # type: ignore[misc]
        finally:
            self._show_average()
        ours = (*_OURS.values(), StochasticOptimizer)
        if self.solver != "lbfgs" and not isinstance(self.__dict__.get("_optimizer"), ours):
            expected = "a version that trains its networks by `_optimizer`"
            raise RuntimeError(f"scikit-learn: expected {expected}, got {sklearn.__version__}")
        return fitted

    def _update_no_improvement_count(
        self, early_stopping: bool, *args: Any, **keywords: Any
    ) -> None:
        """Let early stopping judge, and keep, the weights that will be shown."""
        averaging = self._averaging() if early_stopping else None
        opt = averaging.opt if averaging else None
        with opt.averaged() if opt else nullcontext():
            super()._update_no_improvement_count(early_stopping, *args, **keywords)  # type: ignore[misc]

    def _averaging(self) -> StochasticOptimizer | None:
        """Return the optimizer, if it keeps other weights than those to predict with."""
        used = self.__dict__.get("_optimizer")
        return used if isinstance(used, StochasticOptimizer) and used.averages else None

    def _show_average(self) -> None:
        """Let `coefs_` and `intercepts_` be the average; the optimizer keeps its own weights."""
        averaging = self._averaging()
        if averaging and averaging.holds(weights := self.coefs_ + self.intercepts_):
            self._set_weights(averaging.shown(weights))

    def _hide_average(self) -> None:
        """Go on from the optimizer's weights; begin anew where the user has changed the average."""
        averaging = self._averaging()
        if averaging is None:
            return
        descending = averaging.hidden(self.coefs_ + self.intercepts_)
        if descending is None:
            del self.__dict__["_optimizer"]
        else:
            self._set_weights(descending)

    def _set_weights(self, weights: list[Array]) -> None:
        layers = len(self.coefs_)
        self.coefs_, self.intercepts_ = weights[:layers], weights[layers:]


def _constructor(host: Any) -> Callable[..., None]:
    """Return a constructor that takes `optimizer` besides what the host's takes."""

    def __init__(self: Any, *args: Any, optimizer: Any = None, **settings: Any) -> None:  # noqa: N807
        host.__init__(self, *args, **settings)
        self.optimizer = optimizer

    theirs = inspect.signature(host.__init__)
    ours = inspect.Parameter("optimizer", inspect.Parameter.KEYWORD_ONLY, default=None)
    __init__.__signature__ = theirs.replace(  # type: ignore[attr-defined]
        parameters=[*theirs.parameters.values(), ours]
    )
    return __init__


_CONSTRAINTS = {"optimizer": [StrOptions(set(registry)), callable, None]}


class MLPClassifier(_Network, neural_network.MLPClassifier):
    r"""scikit-learn's `MLPClassifier`, trained by onepass, with any of its optimizers.

    Parameters, attributes and methods are scikit-learn's, and `optimizer` besides. Without it,
    ``solver="adam"`` and ``solver="sgd"`` take scikit-learn's steps, in one native call for a
    batch.

    Parameters
    ----------
    *settings
        All of ``sklearn.neural_network.MLPClassifier``.
    optimizer : None, class of onepass, its name, or callable
        What steps in the place of `solver`. `onepass.AdamW` or ``"adamw"`` takes its settings from
        its own defaults; ``functools.partial(onepass.AdamW, weight_decay=0.1)`` gives others, the
        stages of a step among them (`max_grad_norm`, `ema_decay`, `lookahead_every`, see
        `onepass.Optimizer`). It is called with the list ``[*coefs_, *intercepts_]`` and
        ``lr=learning_rate_init``, and returns an optimizer of these arrays, or of groups of them,
        which may leave some out. Each `fit` makes a new one; `partial_fit` goes on with the one
        that it has.

    Raises
    ------
    ValueError, TypeError
        In `fit`: if `optimizer` is none of these, or does not return an optimizer of the arrays
        that it was called with; if it stands beside ``solver="lbfgs"``; if `learning_rate` is not
        "constant" beside an optimizer whose own `lr` is a schedule. And what the optimizer raises.

    Notes
    -----
    With `optimizer`, `learning_rate_init`, `learning_rate` and `power_t` set the rate, as with
    ``solver="sgd"``: ``"adaptive"`` divides it by 5 where the loss no longer falls. `momentum`,
    `nesterovs_momentum`, `beta_1`, `beta_2` and `epsilon` are the solver's, and are not read.
    A `functools.partial` that has an `lr` of its own, a number or a schedule, keeps it. A schedule
    counts batches.

    Where the optimizer averages the weights (`ema_decay`, `swa_start`, `onepass.ASGD`, the
    schedule-free ones), `coefs_` and `intercepts_` are the average after `fit` and `partial_fit`,
    and early stopping judges the average. `partial_fit` then goes on from the weights that the
    optimizer kept, or, where you have changed `coefs_` or `intercepts_`, begins anew from these.
    `loss_` and `loss_curve_` are those of the weights that descend.

    Float64 gradients of float32 weights are rounded to float32. scikit-learn computes them if
    targets or sample weights are float64.

    Differs from

    * scikit-learn: with ``solver="sgd"`` in nothing, to the bit, where gradients have the dtype of
      the weights. A step of ``solver="adam"`` is within a rounding of scikit-learn's, which
      averages :math:`(1 - \beta_2) \cdot g^2`, and ours :math:`((1 - \beta_2) \cdot g) \cdot g`.
    * `onepass.Adam`: ``solver="adam"`` is its second form, ``eps_hat=True``.

    Examples
    --------
    >>> from functools import partial
    >>> import onepass as op
    >>> from onepass.sklearn import MLPClassifier
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X, y = load_iris(return_X_y=True)
    >>> adamw = partial(op.AdamW, weight_decay=0.1, max_grad_norm=1.0)
    >>> network = MLPClassifier(optimizer=adamw, learning_rate_init=0.01, random_state=0)
    >>> make_pipeline(StandardScaler(), network).fit(X, y).score(X, y) > 0.95
    True
    """

    _parameter_constraints: ClassVar = {
        **neural_network.MLPClassifier._parameter_constraints,
        **_CONSTRAINTS,
    }
    __init__ = _constructor(neural_network.MLPClassifier)


class MLPRegressor(_Network, neural_network.MLPRegressor):
    """scikit-learn's `MLPRegressor`, trained by onepass, with any of its optimizers.

    Parameters, attributes and methods are scikit-learn's, and `optimizer` besides.

    Parameters
    ----------
    *settings
        All of ``sklearn.neural_network.MLPRegressor``.
    optimizer : None, class of onepass, its name, or callable
        As for `MLPClassifier`, which also says what is raised, and what differs.

    Examples
    --------
    >>> from onepass.sklearn import MLPRegressor
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> X, y = X / X.std(axis=0), (y - y.mean()) / y.std()
    >>> settings = {"early_stopping": True, "random_state": 0}
    >>> network = MLPRegressor(optimizer="prodigy", learning_rate_init=1.0, **settings)
    >>> network.fit(X, y).score(X, y) > 0.5
    True
    """

    _parameter_constraints: ClassVar = {
        **neural_network.MLPRegressor._parameter_constraints,
        **_CONSTRAINTS,
    }
    __init__ = _constructor(neural_network.MLPRegressor)


def patch() -> None:
    """Let scikit-learn's own networks train with our steps of "adam" and "sgd".

    It replaces scikit-learn's private classes ``AdamOptimizer`` and ``SGDOptimizer``, for code that
    imports these, or that makes networks out of your reach. Call it first, before such code is
    imported and before anything is fitted: a model that was fitted before cannot be pickled until
    `unpatch`. Differs from sklearnex's ``patch_sklearn``: the networks stay scikit-learn's own.

    Examples
    --------
    >>> import onepass.sklearn
    >>> onepass.sklearn.patch()
    >>> from sklearn.neural_network import MLPRegressor
    >>> type(MLPRegressor(max_iter=300).fit([[0.0], [1.0]], [0.0, 1.0])._optimizer)
    <class 'onepass.sklearn.AdamOptimizer'>
    >>> onepass.sklearn.unpatch()
    """
    _install(*_OURS.values())


def unpatch() -> None:
    """Give scikit-learn its own classes back: undo `patch`."""
    _install(*_OURS)


def _install(adam: type, sgd: type) -> None:
    for module in (_stochastic_optimizers, _multilayer_perceptron):
        module.AdamOptimizer, module.SGDOptimizer = adam, sgd
