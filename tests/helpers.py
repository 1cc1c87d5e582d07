"""What the tests share: the cases they iterate, and equality of bits."""

import hashlib
import math
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from onepass import optim
from onepass.optim import Optimizer
from onepass.optim._settings import GROUP_DEFAULTS

# Every class with each of its own cases, alone and with what all classes share.
SHARED: tuple[Mapping[str, Any], ...] = ({}, {"weight_decay": 0.1, "maximize": True})


def accepts(cls: type[Optimizer], settings: Mapping[str, Any]) -> bool:
    """Whether a class takes these settings together: Rprop takes no weight decay and no format."""
    try:
        cls._check_together({**cls.defaults, **GROUP_DEFAULTS, **settings})
    except ValueError:
        return False
    return True


CASES = [
    (cls, settings)
    for cls in optim.registry.values()
    for case in cls.cases
    for shared in SHARED
    if accepts(cls, settings := {**case, **shared})
]


def moves_rows(cls: type[Optimizer], settings: Mapping[str, Any]) -> bool:
    """Whether rows of a parameter can move alone: the rule needs nothing of the whole of it."""
    row, values = cls.row, {**cls.defaults, **settings}
    needs_all = row.measures(values) or row.is_directed(values)
    return not (needs_all or row.keeps_weights or row.factored)


def shape_of_state(cls: type[Optimizer], settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the loop sees of a rule: which arrays it keeps, and of what kind."""
    row, values = cls.row, {**cls.defaults, **settings}
    if row.measures(values):
        return ("measures",)
    arrays = zip(row.used_states(values), row.has_sign, row.in_full, strict=True)
    return tuple((sign, in_full) for name, sign, in_full in arrays if name)


def kind_of_state(cls: type[Optimizer]) -> tuple[bool, ...]:
    """What the engine sees of a class: whether it keeps anything, in full, and begun elsewhere."""
    used = [name is not None for name in cls.state_names()]
    of_used = zip(used, cls.row.in_full, cls.row.start, strict=True)
    in_full, begun = zip(
        *[(u and full, bool(u and start)) for u, full, start in of_used], strict=True
    )
    return any(used), any(in_full), any(begun)


def peak_of(call: Callable[[], Any]) -> int:
    """How many bytes are allocated at once while a call runs."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def one_of_each(things: Iterable[Any], key: Callable[[Any], Any]) -> list[Any]:
    """The first thing of each kind.

    Tests of the loop and of the engine take these, tests of values and options all of them: else
    there would be as many tests as rules times properties of the engine.
    """
    found: dict[Any, Any] = {}
    for thing in things:
        found.setdefault(key(thing), thing)
    return list(found.values())


MOST = {"state_format": "q8", "rounding": "stochastic", "ema_decay": 0.9}
"""Options of a step that some classes refuse: Rprop a format, schedule-free ones the others."""


Shape = tuple[int, ...]


def state_names(
    cls: type[Optimizer], settings: Mapping[str, Any], shape: Shape = (1,)
) -> list[str]:
    """The state that these settings use for a parameter of a shape, a vector by default."""
    return [name for name in cls.row.used_states({**cls.defaults, **settings}, shape) if name]


def how_much_it_measures(case: tuple[type[Optimizer], Mapping[str, Any]]) -> tuple[int, int]:
    """How many sums a case takes, and beside how many arrays."""
    cls, settings = case
    row, values = cls.row, {**cls.defaults, **settings}
    n_sums = row.n_sums[row.variant(values)]
    return n_sums, len(state_names(cls, settings)) if n_sums else 0


# Of those that take all options: every test of the loop and of the engine takes them. Of those that
# measure, the one that measures most.
# State of another shape has tests of its own, in test_factored.py.
SHAPES = one_of_each(
    sorted(
        [
            case
            for case in CASES
            if accepts(case[0], {**case[1], **MOST}) and not case[0].row.factored
        ],
        key=how_much_it_measures,
        reverse=True,
    ),
    lambda case: (shape_of_state(*case), SHARED[1].keys() <= case[1].keys()),
)
# Of each kind, one that measures and remembers numbers too, where there is one; none that only
# measures.
KINDS = one_of_each(
    sorted(
        [cls for cls in optim.registry.values() if accepts(cls, MOST)],
        key=lambda cls: (not (cls.row.memory and any(cls.row.n_sums)), all(cls.row.n_sums)),
    ),
    kind_of_state,
)


def case_id(case: tuple[type[Optimizer], Mapping[str, Any]]) -> str:
    cls, settings = case
    return cls.__name__ + "".join(f"-{k}={v}" for k, v in settings.items())


FORMATS = (np.float32, np.float64)
RICHEST = max(
    optim.registry.values(),
    key=lambda cls: (accepts(cls, {"cautious_weight_decay": True}), len(cls.state_names())),
)
"""A class with every option of a step and much state, for tests of what all share and take long."""
SMALL_FORMATS = (np.float16, ml_dtypes.bfloat16)


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Equality to the bit, -0.0 and subnormals included. Any NaN equals any other."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    unsigned = np.dtype(f"u{actual.dtype.itemsize}")
    same = np.ascontiguousarray(actual).view(unsigned) == np.ascontiguousarray(expected).view(
        unsigned
    )
    same |= np.isnan(actual) & np.isnan(expected)
    assert same.all(), f"{(~same).sum()} of {same.size} differ"


def shaped(cls: type[Optimizer], settings: Mapping[str, Any], array: np.ndarray) -> np.ndarray:
    """The array as such a class takes it: where the step is a matrix's, one of the same elements.

    As nearly square as their number lets it be; in place, so that a view still is one.
    """
    if array.ndim >= 2 or not cls.row.is_directed({**cls.defaults, **settings}):
        return array
    n = array.size
    rows = next(d for d in range(max(math.isqrt(n), 1), 0, -1) if n % d == 0)
    return array.reshape(rows, n // rows)


def kept_names(cls: type[Optimizer], settings: Mapping[str, Any], shape: Shape = (1,)) -> list[str]:
    """The same, and what the rule remembers: in the order in which kernels take them."""
    return [*state_names(cls, settings, shape), *cls.row.memory]


def entry_names(
    cls: type[Optimizer], settings: Mapping[str, Any], shape: Shape = (1,)
) -> list[str]:
    """What a parameter's saved state has, in PyTorch's order."""
    own = cls.row.own_memory
    return ["step", *own, *cls.saved_scalars, *state_names(cls, settings, shape)]


def saved_entry(opt: Optimizer, key: Any = 0) -> dict[str, Any]:
    """What is saved of a parameter, and of all together."""
    saved = opt.state_dict()
    of_all = {name: saved["param_groups"][0].get(name) for name in opt.row.memory}
    return {**of_all, **saved["state"].get(key, {})}


def format_of(cls: type[Optimizer], k: int, kept: Any) -> Any:
    """The format of a rule's k-th array where state is kept in this one; None: as computed."""
    return None if signs_of(cls)[k] is None or cls.row.in_full[k] else kept


def signs_of(cls: type[Optimizer]) -> tuple[bool | None, ...]:
    """Whether what a rule keeps may be negative; None of a number that it remembers."""
    return (*cls.row.has_sign, *[None] * len(cls.row.memory))


def fresh_state(cls: type[Optimizer], settings: Mapping[str, Any], param: np.ndarray) -> list[Any]:
    """State as before the first step, None where the settings use none; then the rule's memory."""
    values = {**cls.defaults, **settings}
    shapes = cls.row.state_shapes(values, param.shape)
    order: Any = "C" if param.flags.c_contiguous else "F"
    arrays = [
        None if shape is None else np.full_like(param, start, shape=shape, order=order)
        for shape, start in zip(shapes, cls.row.start_values(values), strict=True)
    ]
    return arrays + [np.array(start) for start in cls.memory_start().values()]


def run_reference(
    cls: type[Optimizer], settings: Mapping[str, Any], param: np.ndarray, grads: Any
) -> tuple[Any, ...]:
    """The parameter and the state after one reference step a gradient."""
    arrays: tuple[Any, ...] = (param.copy(), *fresh_state(cls, settings, param))
    with np.errstate(all="ignore"):
        for t, grad in enumerate(grads, start=1):
            arrays = cls.reference_step(arrays[0], grad, *arrays[1:], step=t, **settings)
    return arrays


def misaligned(array: np.ndarray) -> np.ndarray:
    """Return a copy that begins a byte past where it should."""
    room = np.empty(array.nbytes + 1, np.uint8)[1:]
    copy = room.view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert not copy.flags.aligned
    return copy


def set_in_place(array: np.ndarray, attribute: str, value: Any) -> None:
    """Do what NumPy 2.5 advises against, since a user's code still may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        setattr(array, attribute, value)


def digest(*things: Any) -> str:
    """A hash of arrays, optimizers and whatever holds them. Any NaN equals any other."""
    hasher = hashlib.sha256()

    def add(thing: Any) -> None:
        if isinstance(thing, Optimizer):
            add(thing.state_dict())
            add([g["params"] for g in thing.param_groups])
        elif isinstance(thing, np.ndarray) and thing.dtype != object:
            is_float = thing.dtype.kind in "fc" or thing.dtype == ml_dtypes.bfloat16
            if is_float and (is_nan := np.isnan(thing)).any():
                thing = np.where(is_nan, thing.dtype.type(np.nan), thing)
            hasher.update(f"{thing.dtype}{thing.shape}".encode() + thing.tobytes())
        elif isinstance(thing, Mapping):
            for key, value in thing.items():
                hasher.update(repr(key).encode())
                add(value)
        elif isinstance(thing, list | tuple):
            for value in thing:
                add(value)
        else:
            hasher.update(repr(thing).encode())

    add(things)
    return hasher.hexdigest()
