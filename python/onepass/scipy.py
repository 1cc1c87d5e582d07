"""The optimizers as methods of `scipy.optimize.minimize`.

There is one function for each optimizer, under its name in lower case: `adam`, `sgd`, `lion` and so
on. Pass it as ``method=``. They are for noisy objectives; `onepass.minimize` does the work. There
is none for `Muon`, which steps matrices, while SciPy's points are vectors. `onepass.minimize` takes
points of any shape.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onepass._descent import INTERRUPTED, Iterate
from onepass._hyperparameters import Fixed
from onepass._minimize import NOT_HERE, minimize
from onepass._typing import Array
from onepass.optim import Optimizer, _foreign, registry
from onepass.optim._settings import DEFAULTS, GROUP_DEFAULTS

try:
    from scipy.optimize import OptimizeResult, OptimizeWarning, _optimize
except ImportError as error:
    needed = "onepass.scipy: needs SciPy: python -m pip install scipy"
    raise ImportError(needed, name=error.name) from error

_MEMOIZED: Any = getattr(_optimize, "MemoizeJac", ())
"""The class that SciPy makes of a function that returns the gradient, too."""
_METHODS = {rule: cls for rule, cls in registry.items() if not cls.row.is_directed(cls.defaults)}

__all__ = list(_METHODS)

_OF_MINIMIZE = {
    name: parameter.default
    for name, parameter in inspect.signature(minimize).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in ("optimizer", "bounds", "callback")
}


class Method(Protocol):
    """What `scipy.optimize.minimize` takes as its `method`."""

    def __call__(
        self,
        fun: Callable[..., Any],
        x0: Any,
        args: Any = (),
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., object] | None = None,
        **options: Any,
    ) -> Any: ...


def _make_method(cls: type[Optimizer]) -> Method:
    defaults = _defaults(cls)

    def method(
        fun: Callable[..., Any],
        x0: Any,
        args: Any = (),
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., object] | None = None,
        **options: Any,
    ) -> Any:
        if hess is not None or hessp is not None:
            text = f"Method {cls.rule} does not use Hessian information (hess)."
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        if unknown := [name for name in options if name not in (*defaults, *NOT_HERE)]:
            names = ", ".join(f"{name}{_foreign.hint(name, defaults)}" for name in unknown)
            warnings.warn(f"Unknown solver options: {names}", OptimizeWarning, stacklevel=3)
        if not (constraints is None or np.shape(constraints) == (0,)):
            raise ValueError(f"constraints: expected none but bounds, got {constraints!r}")
        x0 = np.atleast_1d(x0)
        if x0.ndim != 1:
            raise ValueError(f"x0: expected one dimension, got shape {x0.shape}")
        points: list[Array] = []
        given = {name: value for name, value in options.items() if name not in unknown}
        disp, return_all = given.pop("disp", False), given.pop("return_all", False)
        found = minimize(
            _joined(fun, jac, args, points if return_all else None),
            x0,
            optimizer=cls,
            bounds=bounds,
            callback=_told(callback),
            **_translated(given),
        )
        if found.status == INTERRUPTED.status:  # basinhopping would go on with a result
            raise KeyboardInterrupt
        result = OptimizeResult(vars(found))
        if return_all:
            result.allvecs = points[: found.nit + 1]  # but for the average
        if disp:
            if not found.success:
                warnings.warn(found.message, OptimizeWarning, stacklevel=3)
            _print(result)
        return result

    kinds = inspect.Parameter
    own = inspect.signature(method).parameters.values()
    named = [kinds(name, kinds.KEYWORD_ONLY, default=value) for name, value in defaults.items()]
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*(p for p in own if p.kind is not p.VAR_KEYWORD), *named]
    )
    method.__name__ = method.__qualname__ = cls.rule
    method.__doc__ = _DOC.format(cls=cls.__name__, rule=cls.rule)
    return method


def _defaults(cls: type[Optimizer]) -> dict[str, Any]:
    """Return the options of a class's method, with their defaults."""
    own = {n: v for n, v in cls.defaults.items() if not isinstance(cls.checks[n], Fixed)}
    settings = {**own, "weight_decay": 0.0, **DEFAULTS, **GROUP_DEFAULTS}
    settings = {name: value for name, value in settings.items() if name not in NOT_HERE}
    of_scipy = {"disp": False, "return_all": False, "tol": None}
    return {**settings, **_OF_MINIMIZE, **of_scipy}


def _translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return SciPy's options as `minimize` calls them."""
    given = dict(options)
    if (tol := given.pop("tol", None)) is not None:
        given.setdefault("gtol", tol)
    maxiter = given.get("maxiter", ())
    if maxiter is None:
        del given["maxiter"]
    elif isinstance(maxiter, float) and math.isfinite(maxiter):  # SciPy's compare with it
        given["maxiter"] = math.ceil(maxiter)
    return given


def _joined(
    fun: Callable[..., Any], jac: Any, args: Any, points: list[Array] | None
) -> Callable[[Array], tuple[float, Array]]:
    """Return value and gradient as one function, which adds its points to a list."""
    if jac is not True and not callable(jac):
        hint = "lambda x: scipy.optimize.approx_fprime(x, fun) is one, for a function without noise"
        raise TypeError(f"jac: expected True or a callable, got {jac!r} ({hint})")
    given = args if isinstance(args, tuple) else (args,)
    if isinstance(fun, _MEMOIZED):  # it answers an equal point from memory, where noise is wanted
        fun, jac = fun.fun, True

    def fun_and_grad(x: Array) -> tuple[float, Array]:
        if points is not None:
            points.append(x)
        value = fun(x.copy(), *given)
        value, grad = value[:2] if jac is True else (value, jac(x.copy(), *given))
        if np.size(value) != 1:
            raise TypeError(f"fun: expected it to return a number, got {value!r}")
        grad = np.atleast_1d(grad)
        if grad.shape != x.shape:
            raise ValueError(f"jac: expected it to return shape {x.shape}, got {grad.shape}")
        return np.asarray(value).item(), grad

    return fun_and_grad


def _told(callback: Callable[..., object] | None) -> Callable[[Iterate], object] | None:
    """Return a callback of `minimize` that tells one of SciPy's, of which there are two kinds."""
    if callback is None:
        return None
    told = callback
    try:
        names = set(inspect.signature(told).parameters)
    except (TypeError, ValueError):  # one of C, without a signature
        names = set()
    if names == {"intermediate_result"}:
        return lambda point: told(intermediate_result=OptimizeResult(point._asdict()))
    return lambda point: told(point.x.copy())


def _print(result: Any) -> None:
    print(result.message)
    print(f"         Current function value: {result.fun:f}")
    print(f"         Iterations: {result.nit:d}")
    print(f"         Function evaluations: {result.nfev:d}")
    print(f"         Gradient evaluations: {result.njev:d}")


_DOC = """`onepass.{cls}` for noisy objectives; on smooth ones L-BFGS-B needs far fewer evaluations.

Pass it to SciPy, do not call it: ``scipy.optimize.minimize(fun, x0, jac=True,
method=onepass.scipy.{rule}, options={{"lr": 0.01, "maxiter": 10_000}})``.

Parameters
----------
fun, x0, args, jac
    As for ``scipy.optimize.minimize``. The gradient is required: `jac` is True or a callable.
hess, hessp
    Not used; a warning says so.
bounds : sequence of (low, high), or scipy.optimize.Bounds, optional
    No evaluation is out of bounds; see `onepass.minimize`.
constraints
    Must be empty.
callback : callable, optional
    ``callback(x)``, or ``callback(intermediate_result)``, whose argument must have exactly that
    name. If it raises StopIteration, the run ends.
disp : bool
    Print how the run ended; warn if it was no success.
return_all : bool
    Keep all points, as `allvecs` of the result.
tol : float >= 0, optional
    Another name of `gtol`.
**options
    Those of `onepass.minimize`, and the settings of `onepass.{cls}`. An unknown name is a warning,
    as in SciPy's own methods.

Returns
-------
scipy.optimize.OptimizeResult
    It has all attributes of a `onepass.MinimizeResult`.

Raises
------
TypeError, ValueError
    ``<argument>: expected ..., got ...`` if an argument is not as it must be, or the gradient is
    missing. Finite differences of noisy values are useless; for a function without noise use
    ``scipy.optimize.approx_fprime``.

Notes
-----
`onepass.minimize` says when a run ends. Differs from

* SciPy's methods: there is no line search, so the rate, `lr`, must suit the problem; there are no
  finite differences in place of a gradient; the result is the best of all points, unless `point`
  says otherwise.
* `onepass.minimize`: Ctrl-C raises KeyboardInterrupt, since a caller such as
  ``scipy.optimize.basinhopping`` would go on if it got a result.

Examples
--------
>>> from scipy.optimize import minimize
>>> import onepass.scipy
>>> def fun(x):
...     return (x**2).sum(), 2 * x
>>> method = onepass.scipy.{rule}
>>> result = minimize(fun, [3.0, -4.0], jac=True, method=method, options={{"lr": 0.1}})
>>> bool(result.fun < 25)
True
"""

globals().update({rule: _make_method(cls) for rule, cls in _METHODS.items()})

if TYPE_CHECKING:

    def __getattr__(name: str) -> Method: ...
