"""Calls for rows that are refused: what the message says, and that nothing has changed."""

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import CASES, digest, fresh_state, moves_rows, one_of_each
from interrupting import at_each_place

TABLE = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
INDEX = np.array([3, 1, 3])
VALUES = np.ones((3, 3), np.float32)
REFUSING = one_of_each(
    [case for case in CASES if not moves_rows(*case)], lambda case: (case[0], len(case[1]))
)


def locked(array):
    array.flags.writeable = False
    return array


# What is given as the rows of a table of shape (10, 3), and what the message says.
BAD_ROWS = {
    "a negative number": (
        (np.array([3, -1, 3]), VALUES),
        ValueError,
        r"grads\['a.b'\]\[0\]: expected rows in \[0, 10\), got -1 at 1",
    ),
    "the number of rows": (
        (np.array([3, 1, 10]), VALUES),
        ValueError,
        r"grads\['a.b'\]\[0\]: expected rows in \[0, 10\), got 10 at 2",
    ),
    "a number that wraps around": (
        (np.array([3, 2**64 - 1, 3], np.uint64), VALUES),
        ValueError,
        r"grads\['a.b'\]\[0\]: expected rows in \[0, 10\), got 18446744073709551615 at 1",
    ),
    "a smaller type's": (
        (np.array([3, -128, 3], np.int8), VALUES),
        ValueError,
        r"expected rows in \[0, 10\), got -128 at 1",
    ),
    "flags": (
        (np.ones(3, bool), VALUES),
        TypeError,
        r"grads\['a.b'\]\[0\]: expected an array of integers, got dtype bool",
    ),
    "floats": (
        (INDEX.astype(float), VALUES),
        TypeError,
        "expected an array of integers, got dtype",
    ),
    "dates": ((INDEX.astype("m8[s]"), VALUES), TypeError, "expected an array of integers, got"),
    "a list of numbers": (
        ([3, 1, 3], VALUES),
        TypeError,
        r"grads\['a.b'\]\[0\]: expected a NumPy array, got list",
    ),
    "an index of two axes": (
        (INDEX[:, None], VALUES),
        ValueError,
        r"\['a.b'\]\[0\]: expected an array of one axis, the numbers of rows, got shape \(3, 1\)",
    ),
    "one number": ((np.array(3), VALUES[0]), ValueError, "expected an array of one axis"),
    "fewer values": (
        (INDEX, VALUES[:2]),
        ValueError,
        r"grads\['a.b'\]\[1\]: expected shape \(3, 3\), a row for each in the index, got \(2, 3\)",
    ),
    "narrow values": (
        (INDEX, VALUES[:, :2]),
        ValueError,
        r"expected shape \(3, 3\), .* got \(3, 2\)",
    ),
    "flat values": ((INDEX, VALUES[:, 0]), ValueError, r"expected shape \(3, 3\), .* got \(3,\)"),
    "integers": (
        (INDEX, VALUES.astype(int)),
        TypeError,
        r"grads\['a.b'\]\[1\]: expected dtype float32, float64, float16 or bfloat16, got int64",
    ),
    "no values": ((INDEX, None), TypeError, r"\[1\]: expected a NumPy array, got NoneType"),
    "an index alone": (
        (INDEX,),
        ValueError,
        r"grads\['a.b'\]: expected rows as a pair \(index, values\), got a sequence of 1",
    ),
    "three arrays": (
        (INDEX, VALUES, VALUES),
        ValueError,
        "expected rows as a pair .* sequence of 3",
    ),
    "a whole gradient of another shape": (
        VALUES,
        ValueError,
        r"grads\['a.b'\]: expected the parameter's shape \(10, 3\), got \(3, 3\)",
    ),
    "a string": ("rows", TypeError, r"grads\['a.b'\]: expected a NumPy array, got str"),
}


@pytest.mark.parametrize(("rows", "error", "words"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_are_refused(rows, error, words):
    """Beside rows of another parameter, which are right, and come first."""
    params = {"a": {"a": np.zeros((4, 2), np.float32), "b": TABLE.copy()}}
    opt = op.Adam(params, lr=0.1)
    opt.step_rows({"a.b": (INDEX, VALUES)})
    before = digest(opt)
    good = np.array([1, 1]), np.ones((2, 2), np.float32)
    with pytest.raises(error, match=words):
        opt.step_rows({"a.a": good, "a.b": rows})
    assert digest(opt) == before


BAD_CALLS = {
    "no mapping": (
        lambda opt: opt.step_rows([(INDEX, VALUES)]),
        TypeError,
        r"^grads: expected a mapping of parameters' keys to \(index, values\), got list",
    ),
    "nothing": (
        lambda opt: opt.step_rows(None),
        TypeError,
        "^grads: expected a mapping .* NoneType",
    ),
    "no argument": (lambda opt: opt.step_rows(), TypeError, "grads"),
    "another key": (
        lambda opt: opt.step_rows({"a": (INDEX, VALUES), "b": (INDEX, VALUES)}),
        ValueError,
        r"^grads: expected keys among \['a'\], got 'b'",
    ),
    "an index for a name": (
        lambda opt: opt.step_rows({0: (INDEX, VALUES)}),
        ValueError,
        r"^grads: expected keys among \['a'\], got 0",
    ),
    "no key at all": (
        lambda opt: opt.step_rows({(): (INDEX, VALUES)}),
        ValueError,
        r"expected keys among \['a'\], got \(\)",
    ),
    "grad_scale": (
        lambda opt: opt.step_rows({"a": (INDEX, VALUES)}, grad_scale=0.0),
        ValueError,
        "^grad_scale: expected",
    ),
    "num_threads": (
        lambda opt: opt.step_rows({"a": (INDEX, VALUES)}, num_threads=0),
        ValueError,
        "^num_threads: expected",
    ),
    "values in the table": (
        lambda opt: opt.step_rows({"a": (INDEX, opt.param_groups[0]["params"][0][4:7])}),
        ValueError,
        r"^grads\['a'\]\[1\]: expected memory of its own, got an overlap with params\['a'\]",
    ),
    "an index in the table": (
        lambda opt: opt.step_rows(
            {"a": (opt.param_groups[0]["params"][0].view(np.int32)[0], VALUES)}
        ),
        ValueError,
        r"^grads\['a'\]\[0\]: expected memory of its own, got an overlap with params\['a'\]",
    ),
    "a key that raises": (
        lambda opt: opt.step_rows({Raising(): (INDEX, VALUES)}),
        ZeroDivisionError,
        "in a comparison",
    ),
}


class Raising:
    def __hash__(self):
        return hash("a")

    def __eq__(self, other):
        raise ZeroDivisionError("in a comparison")


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_calls_that_are_refused(call, error, words):
    opt = op.Adam({"a": TABLE.copy()}, lr=0.1)
    opt.step_rows({"a": (INDEX, VALUES)})
    before = digest(opt)
    with pytest.raises(error, match=words):
        call(opt)
    assert digest(opt) == before


def test_a_locked_table():
    opt = op.Adam({"a": TABLE.copy()})
    locked(opt.param_groups[0]["params"][0])
    with pytest.raises(ValueError, match=r"^params\['a'\]: expected a writable array"):
        opt.step_rows({"a": (INDEX, VALUES)})


@pytest.mark.parametrize(
    ("param", "got"), [(np.asfortranarray(TABLE), "F order"), (np.zeros((), "f4"), r"shape \(\)")]
)
def test_parameters_that_have_no_rows(param, got):
    words = f"expected an array in C order, whose rows lie in one piece, got {got}$"
    before = digest(param)
    opt = op.Adam({"w": param})
    with pytest.raises(ValueError, match=r"^params\['w'\]: " + words):
        opt.step_rows({"w": (INDEX, VALUES)})
    state = [np.zeros_like(param), np.zeros_like(param)]
    with pytest.raises(ValueError, match="^param: " + words):
        op.kernels.adam(param, VALUES, *state, step=1, rows=INDEX)
    assert digest(param, opt.state_dict()["state"]) == digest(param, {})
    assert digest(param) == before


@pytest.mark.parametrize("case", REFUSING, ids=lambda case: f"{case[0].__name__}{len(case[1])}")
def test_rules_that_need_the_whole_array(case):
    """Those that take its norm or see a matrix, and those that keep an average of all weights."""
    cls, settings = case
    table = TABLE.copy()
    opt = cls({"a": table}, **settings)
    before = digest(opt)
    why = "(measures it|takes it as a matrix|keeps numbers of rows .*|averages all weights)"
    words = f"expected a whole gradient for .*, which {why}, got rows$"
    with pytest.raises(ValueError, match=r"^grads\['a'\]: " + words):
        opt.step_rows({"a": (INDEX, VALUES)})
    assert digest(opt) == before
    arrays = fresh_state(cls, settings, table)
    before = digest(arrays, table)
    with pytest.raises(ValueError, match="^grad: " + words):
        getattr(op.kernels, cls.rule)(table, VALUES, *arrays, step=1, rows=INDEX, **settings)
    assert digest(arrays, table) == before


def test_the_reference_refuses_what_the_kernels_refuse():
    for cls, settings in REFUSING:
        arrays = TABLE, VALUES, *fresh_state(cls, settings, TABLE)
        with pytest.raises(ValueError, match="^rows: expected None for"):
            cls.reference_step(*arrays, rows=INDEX, **settings)
    with pytest.raises(
        ValueError, match="^ema_decay: expected None where rows move alone, got 0.9"
    ):
        op.SGD.reference_step(TABLE, VALUES, None, TABLE, rows=INDEX, ema_decay=0.9)


OPTIONS = {
    "ema_decay": ({"ema_decay": 0.9}, "None where rows move alone, got 0.9"),
    "a schedule": ({"ema_decay": lambda _: 0.5}, "None where rows move alone, got 0.5"),
    "swa_start": ({"swa_start": 3}, "None where rows move alone, got 3"),
    "lookahead_every": ({"lookahead_every": 5}, "None where rows move alone, got 5"),
    "bf16": ({"state_format": "bf16"}, "None where rows move alone, got 'bf16'"),
    "q8": ({"state_format": "q8"}, "None where rows move alone, got 'q8'"),
    "clear_grads": ({"clear_grads": True}, "False where rows move alone, got True"),
}


@pytest.mark.parametrize(("options", "words"), OPTIONS.values(), ids=OPTIONS)
def test_settings_that_rows_cannot_have(options, words):
    (name,) = options
    table = TABLE.copy()
    opt = op.Adam([table], lr=0.1, **options)
    before = digest(opt)
    with pytest.raises(ValueError, match=f"^{name}: expected {words}$"):
        opt.step_rows({0: (INDEX, VALUES)})
    assert digest(opt) == before


def test_stochastic_rounding_of_rows():
    """Its bits go by blocks. Of float32 nothing is rounded."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        table = TABLE.astype(dtype)
        opt = op.Adam(table, rounding="stochastic")
        before = digest(opt)
        words = "where rows of 16 bits move alone, got 'stochastic'$"
        with pytest.raises(ValueError, match=f"^rounding: expected 'master' or 'nearest' {words}"):
            opt.step_rows((INDEX, VALUES))
        assert digest(opt) == before
        state = np.zeros_like(TABLE), np.zeros_like(TABLE)
        with pytest.raises(ValueError, match=f"^rounding: expected 'nearest' {words}"):
            op.kernels.adam(table, VALUES, *state, step=1, rows=INDEX)
        op.kernels.adam(table, VALUES, *state, step=1, rows=INDEX, rounding="nearest")
    assert op.Adam(TABLE.copy(), rounding="stochastic").step_rows((INDEX, VALUES)).step == 1


KERNEL_CALLS = {
    "average": (
        {"ema_decay": 0.9, "average": TABLE.astype(float)},
        ValueError,
        "^ema_decay: expected None where rows move alone, got 0.9",
    ),
    "clear_grads": ({"clear_grads": True}, ValueError, "^clear_grads: expected False where rows"),
    "a list for one": ({"rows": [INDEX]}, TypeError, "^rows: expected a NumPy array, got list"),
    "floats": ({"rows": INDEX * 1.0}, TypeError, "^rows: expected an array of integers, got dtype"),
    "too large": (
        {"rows": INDEX + 7},
        ValueError,
        r"^rows: expected rows in \[0, 10\), got 10 at 0",
    ),
    "shape": (
        {"rows": INDEX[1:]},
        ValueError,
        r"^grad: expected shape \(2, 3\), a row for each in the index, got \(3, 3\)",
    ),
}


@pytest.mark.parametrize(("keywords", "error", "words"), KERNEL_CALLS.values(), ids=KERNEL_CALLS)
def test_free_functions(keywords, error, words):
    table, state = TABLE.copy(), [np.zeros_like(TABLE), np.zeros_like(TABLE)]
    keywords = {"rows": INDEX, **keywords}
    with pytest.raises(error, match=words):
        op.kernels.adam(table, VALUES, *state, step=1, **keywords)
    assert digest(table, state) == digest(TABLE, [np.zeros_like(TABLE)] * 2)


def test_free_functions_of_lists():
    tables, grads = [TABLE.copy(), TABLE.copy()], [VALUES, VALUES]
    for rows, error, words in (
        (INDEX, TypeError, "^rows: expected a list of 2, as param has, got numpy.ndarray"),
        ([INDEX], ValueError, "^rows: expected a list of 2, as param has, got one of 1"),
        ([INDEX, -INDEX], ValueError, r"^rows\[1\]: expected rows in \[0, 10\), got -3 at 0"),
        ([INDEX, None], ValueError, r"^grad\[1\]: expected the parameter's shape \(10, 3\)"),
    ):
        with pytest.raises(error, match=words):
            op.kernels.sgd(tables, grads, rows=rows)
    assert digest(tables) == digest([TABLE] * 2)


def test_state_of_a_free_function_in_fewer_bits():
    table, wide = TABLE.copy(), np.zeros_like(TABLE)
    for kept in (wide.astype(ml_dtypes.bfloat16), op.formats.q8_encode(wide, signed=True)):
        with pytest.raises(
            TypeError, match="^exp_avg: expected dtype float32 where rows move alone"
        ):
            op.kernels.adam(table, VALUES, kept, kept.copy(), step=1, rows=INDEX)
    assert digest(table) == digest(TABLE)


def test_gradients_that_were_accumulated():
    opt = op.Adam(TABLE.copy())
    opt.accumulate(np.ones_like(TABLE))
    before = digest(opt)
    with pytest.raises(ValueError, match="^grads: expected none after accumulate, got some"):
        opt.step_rows((INDEX, VALUES))
    assert digest(opt) == before
    opt.discard_accumulated()
    assert opt.step_rows((INDEX, VALUES)).step == 1


def test_inside_a_block_and_inside_a_step():
    table = TABLE.copy()
    opt = op.SGD(table, lr=0.1, momentum=0.9)
    opt.step_rows((INDEX, VALUES))
    with opt.lookahead(), pytest.raises(ValueError, match="^step_rows: expected after the block"):
        opt.step_rows((INDEX, VALUES))
    inner = []

    def schedule(completed):
        with pytest.raises(ValueError, match="^step_rows: expected one thread at a time"):
            opt.step_rows((INDEX, VALUES))
        inner.append(completed)
        return 0.1

    opt.param_groups[0]["lr"] = schedule
    opt.step_rows((INDEX, VALUES))
    assert inner == [1]


def test_bound_gradients_stay_bound_and_are_not_read():
    table, grad = np.zeros((4, 2)), np.ones((4, 2))
    opt = op.SGD(table, lr=1.0, grads=grad)
    opt.step_rows((np.array([2]), np.full((1, 2), 5.0)))
    assert table.sum() == -10
    opt.step()
    assert table.sum() == -18


class Meddling(np.ndarray):
    """An array that runs somebody's code where it is asked what it is."""

    meddle = staticmethod(lambda: None)

    @property
    def __class__(self):
        Meddling.meddle()
        return Meddling


# What code that runs in a call may do to arrays that were checked before.
CHANGES = {
    "resizes the index": lambda index, *_: index.resize(900, refcheck=False),
    "resizes values": lambda _, values, __: values.resize((900, 3), refcheck=False),
    "resizes the table": lambda _, __, table: table.resize((900, 3), refcheck=False),
    "gives the index an axis": lambda index, *_: setattr(index, "shape", (3, 1)),
    "turns the table": lambda _, __, table: setattr(table, "shape", (3, 10)),
    "makes the numbers large": lambda index, *_: index.fill(2**40),
    "locks the table": lambda _, __, table: table.setflags(write=False),
}


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_arrays_that_change_during_the_call(change):
    """The call refuses them, and reads no memory that is not theirs."""
    arrays = index, values, table = INDEX.copy(), VALUES.copy(), np.ones((10, 3), np.float32)
    meddling = np.ones((3, 2), np.float32).view(Meddling)
    opt = op.SGD({"a": table, "b": np.zeros((5, 2), np.float32)}, lr=1.0)
    coming = [change]
    Meddling.meddle = staticmethod(lambda: coming and coming.pop()(*arrays))
    try:
        with pytest.raises(ValueError, match="expected"):
            opt.step_rows({"a": (index, values), "b": (np.array([0, 1, 2]), meddling)})
    finally:
        Meddling.meddle = staticmethod(lambda: None)
    assert not coming
    assert (table.ravel()[:30] == 1).all()
    assert not opt.param_groups[0]["params"][1].any()
    assert opt.state_dict()["state"] == {}


def test_an_interrupt_leaves_all_or_nothing():
    """With a schedule, and an option that asks for another array: both run Python lines."""
    values = np.ones((3, 3), np.float32)

    def make():
        table = TABLE.copy()
        opt = op.Adam({"a": table}, lr=op.schedules.cosine(0.1, steps=9))
        opt.step_rows({"a": (INDEX, values)})
        opt.param_groups[0]["amsgrad"] = True
        return opt

    ends = []
    for steps in (0, 1, 2):
        opt = make()
        for _ in range(steps):
            opt.step_rows({"a": (INDEX, values)})
        ends.append(digest(opt))
    runs = []

    def attempt():
        runs.append(make())
        return lambda: runs[-1].step_rows({"a": (INDEX, values)})

    places = []
    for where, _ in at_each_place(attempt):
        places.append(where)
        opt = runs.pop()
        assert digest(opt) in ends[:2], where
        step = opt.step_rows({"a": (INDEX, values)}).step
        assert digest(opt) == ends[step - 1], where
    assert places
    assert digest(runs.pop()) == ends[1]  # the last attempt, which nothing interrupted
