"""Rows of a parameter: the rule on these alone, and every other row as it was.

The oracle is the rule on an array of the rows themselves, with gradients that are summed here.
"""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onepass as op
from helpers import (
    CASES,
    FORMATS,
    KINDS,
    SMALL_FORMATS,
    assert_same_bits,
    case_id,
    digest,
    fresh_state,
    kept_names,
    moves_rows,
    one_of_each,
    shape_of_state,
    shaped,
)

MOVING = [case for case in CASES if moves_rows(*case)]
SHAPES = one_of_each(MOVING, lambda case: shape_of_state(*case))
of_every_case = pytest.mark.parametrize("case", MOVING, ids=case_id)
of_every_shape = pytest.mark.parametrize("case", SHAPES, ids=case_id)
NO_STATE = op.SGD, {"lr": 1.0}


def summed(index, values, dtype):
    """The rows that are named, ascending, and each one's values, added up one after the other."""
    sums = {}
    for row, value in zip(index.tolist(), values.astype(dtype), strict=True):
        sums[row] = sums[row] + value if row in sums else value.copy()
    rows = sorted(sums)
    return np.array(rows, int), np.array([sums[row] for row in rows], dtype).reshape(
        len(rows), *values.shape[1:]
    )


def some_rows(rng, shape, n, dtype):
    """Numbers of rows in no order, some of them twice, and a gradient for each."""
    index = rng.integers(0, shape[0], size=n)
    return index, rng.normal(size=(n, *shape[1:])).astype(dtype)


def rows_of(arrays, rows, cls):
    """Rows of a parameter and of its state; the numbers that a rule remembers as they are."""
    n = len(cls.row.states)
    return [a if a is None or k > n else a[rows] for k, a in enumerate(arrays)]


def with_rows(arrays, rows, parts, cls):
    """The arrays with other rows in the place of these."""
    moved = [None if array is None else array.copy() for array in arrays]
    for k, (array, part) in enumerate(zip(moved, parts, strict=True)):
        if array is not None:
            array[rows if k <= len(cls.row.states) else ...] = part
    return moved


def arrays_of(opt, key=0):
    """A parameter and what its optimizer keeps of it."""
    entry = opt.state_dict()["state"].get(key, {})
    return {"param": opt.param_groups[0]["params"][0], **entry}


@of_every_case
def test_rows_move_as_the_reference_moves_them(case, dtype, rng):
    """And the others stay, in all arrays: those of the reference are copies of them."""
    cls, settings = case
    table = rng.normal(size=(30, 5)).astype(dtype)
    expected = (table.copy(), *fresh_state(cls, settings, table))
    opt = cls(table, **settings)
    for step in (1, 2, 3):
        index, values = some_rows(rng, table.shape, 12, dtype)
        info = opt.step_rows((index, values))
        assert info == op.StepInfo(step, opt.param_groups[0]["lr"])
        keywords = {"step": step, **settings}
        param, *state = expected
        by_rows = cls.reference_step(param, values, *state, rows=index, **keywords)
        rows, sums = summed(index, values, dtype)
        param, *state = rows_of(expected, rows, cls)
        expected = with_rows(
            expected, rows, cls.reference_step(param, sums, *state, **keywords), cls
        )
        for own, other in zip(by_rows, expected, strict=True):
            assert (own is None) == (other is None)
            if own is not None:
                assert_same_bits(own, other)
    found = arrays_of(opt)
    assert found["step"] == 3
    assert_same_bits(found["param"], expected[0])
    kept = dict(zip((*cls.row.states, *cls.row.memory), expected[1:], strict=True))
    for name in kept_names(cls, settings):
        assert_same_bits(found[name], kept[name])


@of_every_case
def test_the_free_functions_move_the_same_rows(case, dtype, rng):
    """In the step that flushes what is subnormal, too: of these rows alone."""
    cls, settings = case
    table = rng.normal(size=(30, 5)).astype(dtype)
    arrays = [table, *fresh_state(cls, settings, table)]
    for array in arrays[1 : 1 + len(cls.row.states)]:
        if array is not None:
            np.add(array, np.finfo(dtype).smallest_subnormal, out=array)
    kernel = getattr(op.kernels, cls.rule)
    for step in (63, 64, 65):
        index, values = some_rows(rng, table.shape, 12, dtype)
        expected = cls.reference_step(
            *arrays[:1], values, *arrays[1:], step=step, rows=index, **settings
        )
        info = kernel(arrays[0], values, *arrays[1:], rows=index, step=step, **settings)
        assert info.step == step
        for array, other in zip(arrays, expected, strict=True):
            if array is not None:
                assert_same_bits(array, other)


class Twin:
    """An optimizer that is given rows of a table, and one of an array of these rows alone."""

    def __init__(self, cls, settings, table, rows, **options):
        self.cls, self.table, self.rows = cls, table, rows
        self.untouched = np.setdiff1d(np.arange(len(table)), rows)
        self.before = table[self.untouched].copy()
        self.part = table[rows].copy()
        self.opt = cls(table, **settings, **options)
        self.other = cls(self.part, **settings, **options)

    def step(self, rng, scale=1.0, dtype=None, **keywords):
        """Each row once, and some a second time."""
        named = rng.permutation(np.concatenate([self.rows, rng.choice(self.rows, 3)]))
        values = (rng.normal(size=(len(named), *self.table.shape[1:])) * scale).astype(
            dtype or self.table.dtype
        )
        wide = np.float32 if self.table.itemsize < 8 else np.float64
        _, sums = summed(named, values, wide)
        found = self.opt.step_rows((named, values), **keywords)
        assert found == self.other.step(sums, **keywords)
        return found

    def check(self):
        own, other = arrays_of(self.opt), arrays_of(self.other)
        assert own.keys() == other.keys()
        for name, array in own.items():
            if np.shape(array) == self.table.shape:
                assert_same_bits(array[self.rows], other[name])
            else:
                assert array == other[name]
        assert_same_bits(self.table[self.untouched], self.before)


STAGES = {
    "norm": {"max_grad_norm": 0.5},
    "norm and value": {"max_grad_norm": 3.0, "max_grad_value": 0.2, "nonfinite": "raise"},
    "maximize": {"maximize": True},
    "a rate that falls": {"lr": lambda step: 0.1 / (1 + step)},
}


@pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
@of_every_shape
def test_stages(case, stages, dtype, rng):
    cls, settings = case
    if "lr" in stages and not cls.checks["lr"].schedulable:
        return
    table = rng.normal(size=(40, 3, 2)).astype(dtype)
    twin = Twin(cls, {**settings, **stages}, table, np.array([3, 4, 5, 17, 39]))
    for grad_scale in (1.0, 2.0, 0.25):
        twin.step(rng, grad_scale=grad_scale)
    twin.check()


@pytest.mark.parametrize("shape", [(60_000,), (60_000, 1), (900, 64), (5, 20_000), (3, 40_001)])
def test_any_width_and_any_number_of_threads(shape, dtype, rng):
    """Wide rows are cut, and narrow ones put together; some follow each other, some do not."""
    rows = rng.permutation(np.arange(shape[0]))[: max(2, 2 * shape[0] // 3)]
    ends = []
    for threads in (1, 2, 3, 4):
        own = np.random.default_rng(1)
        table = own.normal(size=shape).astype(dtype)
        twin = Twin(op.Adam, {"weight_decay": 0.1}, table, np.sort(rows), max_grad_norm=0.5)
        for _ in range(2):
            twin.step(own, num_threads=threads)
        twin.check()
        ends.append(digest(table, twin.opt))
    assert len(set(ends)) == 1


@pytest.mark.parametrize("dtype", SMALL_FORMATS)
@pytest.mark.parametrize("rounding", ["master", "nearest"])
@of_every_shape
def test_in_fewer_bits(case, dtype, rounding, rng):
    """Rows need not begin with a block of 256 elements. The master follows what is changed."""
    cls, settings = case
    table = rng.normal(size=(30, 301)).astype(dtype)
    twin = Twin(cls, settings, table, np.array([0, 1, 2, 13, 29]), rounding=rounding)
    for given_dtype in (dtype, np.float32, np.float16):
        twin.step(rng, dtype=given_dtype)
        twin.table[13, 7] = twin.part[3, 7] = 2.5
    twin.step(rng)
    twin.check()


@pytest.mark.parametrize("dtype", SMALL_FORMATS)
def test_copies_of_the_rows(dtype, rng):
    table = rng.normal(size=(30, 301)).astype(np.float32)
    copy_to = np.zeros(table.shape, dtype)
    opt = op.Adam(table, lr=0.1, copy_to=copy_to)
    before = copy_to.copy()
    assert_same_bits(copy_to, table.astype(dtype))
    rows = np.array([7, 3, 29])
    opt.step_rows((rows, rng.normal(size=(3, 301)).astype(np.float32)))
    assert_same_bits(copy_to, table.astype(dtype))
    assert (copy_to != before).any(axis=1).sum() == 3


def test_values_of_16_bits_are_summed_as_the_rule_computes(rng):
    """A bfloat16 has 8 bits: 256 + 1 would stay 256."""
    for dtype in SMALL_FORMATS:
        table = np.zeros((4, 300), np.float32)
        values = np.repeat([[256.0], [1.0], [0.5]], 300, axis=1).astype(dtype)
        NO_STATE[0](table, lr=1.0).step_rows((np.array([2, 2, 2]), values))
        assert (table[2] == -257.5).all()
        assert not table[[0, 1, 3]].any()


def test_values_are_summed_in_the_order_in_which_they_stand():
    big = np.float32(2.0**25)
    for values, expected in (([big, 1, -big], 0), ([big, -big, 1], 1), ([1, big, -big], 0)):
        table = np.zeros((9, 1), np.float32)
        given = np.array([*values, 7.0], np.float32)[:, None]
        op.SGD(table, lr=1.0).step_rows((np.array([8, 8, 8, 0]), given))
        assert table[8, 0] == -expected
        assert table[0, 0] == -7.0


def test_a_gradient_of_negative_zero_stays_one():
    """A sum that began from 0 would be another number: 0 - 0 is 0, and 0 - -0 too."""
    table = np.full((2, 1), -0.0, np.float32)
    index = np.array([1, 0, 1])  # not in order: the gradient is made anew
    op.SGD(table, lr=1.0).step_rows((index, np.full((3, 1), 0.0, np.float32)))
    assert np.signbit(table).all()
    op.SGD(table, lr=1.0).step_rows((index, np.full((3, 1), -0.0, np.float32)))
    assert not np.signbit(table).any()


def test_any_integers_in_any_layout(rng):
    start = rng.normal(size=(100, 4)).astype(np.float32)
    index, values = some_rows(rng, start.shape, 30, np.float32)
    wide = np.repeat(index, 2)
    forms = [index.astype(dtype) for dtype in (*"bBhHiIlLqQ", ">i4", ">u8", "<i2")]
    forms += [wide[::2], index[::-1].copy()[::-1], np.frombuffer(index.tobytes(), index.dtype)]
    packed = np.zeros(30, [("pad", "u1"), ("row", "i8")])
    packed["row"] = index
    forms.append(packed["row"])  # not aligned
    ends = set()
    for form in forms:
        for given_values in (
            values,
            np.asfortranarray(values),
            np.repeat(values, 2, axis=1)[:, ::2],
        ):
            table = start.copy()
            op.Adam(table, lr=0.1).step_rows((form, given_values))
            ends.add(digest(table))
    assert len(ends) == 1


@of_every_shape
def test_no_rows_are_a_step_too(case, rng):
    """As in PyTorch's SparseAdam: the corrections go on."""
    cls, settings = case
    table = rng.normal(size=(6, 4))
    twin = Twin(cls, settings, table, np.array([1, 5]))
    twin.step(rng)
    before = digest(table)
    nothing = np.zeros(0, np.int64), np.zeros((0, 4))
    assert twin.opt.step_rows(nothing).step == 2
    assert digest(table) == before
    assert arrays_of(twin.opt)["step"] == 2
    # The step after it is the third of these rows.
    parts = arrays_of(twin.opt)
    names = cls.state_names(**settings)
    kept = [name and parts[name][[1, 5]] for name in names] + [parts[n] for n in cls.row.memory]
    values = rng.normal(size=(2, 4))
    expected = cls.reference_step(table[[1, 5]], values, *kept, step=3, **settings)
    twin.opt.step_rows((np.array([1, 5]), values))
    assert_same_bits(table[[1, 5]], expected[0])


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,), (2, 0, 5)])
def test_tables_without_elements(shape):
    table = np.zeros(shape)
    opt = op.Adam(table)
    index = np.arange(len(table))[::-1].copy()
    assert opt.step_rows((index, np.zeros((len(index), *shape[1:])))).step == 1
    assert opt.step_rows((np.zeros(0, int), np.zeros((0, *shape[1:])))).step == 2


def test_all_rows_are_a_step(case, dtype, rng):
    cls, settings = case
    if not moves_rows(cls, settings):
        return
    start = rng.normal(size=(50, 7)).astype(dtype)
    whole, by_rows = start.copy(), start.copy()
    opt, other = cls(whole, **settings), cls(by_rows, **settings)
    for _ in range(3):
        grad = rng.normal(size=start.shape).astype(dtype)
        order = rng.permutation(50)
        assert opt.step(grad) == other.step_rows((order, grad[order]))
    assert digest(opt) == digest(other)


class TestStructures:
    def make(self, rng, **options):
        params = {
            "embedding": rng.normal(size=(20, 3)),
            "layers": [
                {"w": rng.normal(size=(3, 4))},
                {"w": np.asfortranarray(rng.normal(size=(4, 5)))},
            ],
        }
        return params, op.Adam(params, lr=0.1, **options)

    def test_rows_and_whole_gradients_are_one_step(self, rng):
        """With one norm, which is taken in the parameters' order, and one count."""
        params, opt = self.make(rng, max_grad_norm=0.25)
        twin, other = self.make(np.random.default_rng(20261121), max_grad_norm=0.25)
        index, values = some_rows(rng, (20, 3), 8, float)
        rows, sums = summed(index, values, float)
        grad = rng.normal(size=(4, 5))
        info = opt.step_rows({"layers.1.w": grad, "embedding": (index, values), "layers.0.w": None})
        norm = op.optim._reference.grad_norm([sums, np.asfortranarray(grad)])
        assert info == op.StepInfo(1, 0.1, norm, True)
        whole = np.zeros((20, 3))
        whole[rows] = sums
        other.step({"embedding": whole, "layers": [{"w": None}, {"w": grad}]})
        assert_same_bits(params["layers"][0]["w"], twin["layers"][0]["w"])
        for own, their in (
            (params["embedding"][rows], twin["embedding"][rows]),
            (params["layers"][1]["w"], twin["layers"][1]["w"]),
        ):
            np.testing.assert_allclose(own, their, rtol=1e-14)  # the norms' last bits
        steps = {key: entry["step"] for key, entry in opt.state_dict()["state"].items()}
        assert steps == {"embedding": 1, "layers.1.w": 1}

    def test_whole_gradients_alone(self, every_class, rng):
        """Of any rule, those included that have no rows."""
        own, other = rng.normal(size=(20, 3)), shaped(every_class, {}, rng.normal(size=5))
        copies = own.copy(), other.copy()
        opt, by_rows = every_class([own, other]), every_class(list(copies))
        for _ in range(2):
            grads = rng.normal(size=(20, 3)), rng.normal(size=other.shape)
            assert opt.step(list(grads)) == by_rows.step_rows(dict(enumerate(grads)))
        assert digest(opt) == digest(by_rows)

    def test_rows_beside_a_group_that_is_measured(self, rng):
        """The option is one group's, the rows are the other's."""
        table, w = rng.normal(size=(20, 3)), rng.normal(size=(30, 4))
        twins = table[[4, 9]].copy(), w.copy()
        groups = [{"params": [table], "cautious": False}, {"params": [w], "cautious": True}]
        other = [
            {"params": [twins[0]], "cautious": False},
            {"params": [twins[1]], "cautious": True},
        ]
        opt, dense = op.AdamW(groups, lr=0.1), op.AdamW(other, lr=0.1)
        for _ in range(3):
            values, grad = rng.normal(size=(2, 3)), rng.normal(size=(30, 4))
            opt.step_rows({0: (np.array([9, 4]), values[::-1]), 1: grad})
            dense.step([[values], [grad]])
        assert_same_bits(table[[4, 9]], twins[0])
        assert_same_bits(w, twins[1])

    def test_nothing_at_all(self, rng):
        _, opt = self.make(rng)
        before = digest(opt.param_groups[0]["params"])
        assert opt.step_rows({}).step == 1
        assert opt.step_rows({"embedding": None}).step == 2
        assert digest(opt.param_groups[0]["params"]) == before
        assert opt.state_dict()["state"] == {}

    def test_a_parameter_that_is_added(self, rng):
        _, opt = self.make(rng)
        table = np.zeros((4, 2))
        opt.add_param_group({"params": {"more": table}, "lr": 1.0})
        opt.step_rows({"more": [np.array([2]), np.ones((1, 2))]})
        assert (table != 0).any(axis=1).tolist() == [False, False, True, False]

    def test_mappings_of_another_kind(self, rng):
        from types import MappingProxyType

        params, opt = self.make(rng)
        before = params["embedding"].copy()
        opt.step_rows(MappingProxyType({"embedding": (np.array([2]), np.ones((1, 3)))}))
        assert (params["embedding"] != before).any(axis=1).sum() == 1


class TestRuns:
    """Rows and whole steps in turns, and what a run does besides."""

    def steps(self, opt, rng, kinds):
        for kind in kinds:
            index, values = some_rows(rng, (30, 4), 9, np.float32)
            grad = rng.normal(size=(30, 4)).astype(np.float32)
            if kind == "r":
                opt.step_rows((index, values))
            else:
                opt.step(grad)

    @pytest.mark.parametrize("way", ["state_dict", "file", "pickle", "deepcopy"])
    @of_every_shape
    def test_it_goes_on_from_a_checkpoint(self, case, way, tmp_path):
        cls, settings = case
        start = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
        ends = []
        for is_saved in (False, True):
            rng, table = np.random.default_rng(1), start.copy()
            opt = cls(table, **settings)
            self.steps(opt, rng, "rdr")
            if is_saved and way == "pickle":
                opt = pickle.loads(pickle.dumps(opt))
            elif is_saved and way == "deepcopy":
                opt = copy.deepcopy(opt)
            elif is_saved:
                saved, opt_before = opt.state_dict(), opt
                opt = cls(table, **settings)
                if way == "file":
                    opt_before.save(tmp_path / "run.npz")
                    opt.load(tmp_path / "run.npz")
                else:
                    opt.load_state_dict(saved)
            self.steps(opt, rng, "rdrr")
            ends.append(digest(opt))
        assert ends[0] == ends[1]

    def test_a_skipped_step(self, dtype, rng):
        table = rng.normal(size=(30, 4)).astype(dtype)
        twin = Twin(op.Adam, {"lr": 0.1}, table, np.array([3, 8]), nonfinite="skip")
        twin.step(rng)
        before = digest(table, twin.opt.state_dict()["state"])
        values = np.array([[np.inf] * 4, [-np.inf] * 4, [1.0] * 4], dtype)
        for bad in (values[:2], values[1:], values):  # the infinities cancel: NaN
            info = twin.opt.step_rows((np.array([8, 8, 3])[: len(bad)], bad))
            assert (info.step, info.skipped) == (1, True)
            twin.other.step(np.full((2, 4), np.nan, dtype))
        assert digest(table, twin.opt.state_dict()["state"]) == before
        assert twin.opt.skipped_steps == 3
        twin.step(rng)
        twin.check()

    def test_whether_it_is_finite_is_asked_of_the_sum(self):
        """Twice half of the largest number is finite, twice the largest is not."""
        table = np.zeros((3, 2), np.float32)
        opt = op.SGD(table, lr=0.0, nonfinite="raise")
        largest = np.finfo(np.float32).max
        opt.step_rows((np.array([1, 1]), np.full((2, 2), largest / 2, np.float32)))
        with pytest.raises(ValueError, match=r"^grads: expected finite values, got"):
            opt.step_rows((np.array([1, 1]), np.full((2, 2), largest, np.float32)))

    def test_settings_that_are_changed_between_the_steps(self, rng):
        """An option that adds state, and one whose arrays the rows cannot have, taken back."""
        table = rng.normal(size=(30, 4)).astype(np.float32)
        twin = Twin(op.Adam, {"lr": 0.1}, table, np.array([3, 8]))
        twin.step(rng)
        for opt in (twin.opt, twin.other):
            opt.param_groups[0].update(amsgrad=True, weight_decay=0.25)
        twin.step(rng)
        twin.opt.param_groups[0]["ema_decay"] = 0.9
        with pytest.raises(ValueError, match="^ema_decay: expected None where rows move alone"):
            twin.opt.step_rows((np.array([3]), np.ones((1, 4), np.float32)))
        twin.opt.param_groups[0]["ema_decay"] = None
        twin.step(rng)
        twin.check()

    def test_a_table_that_was_replaced_in_place(self):
        """Its memory is another one after `resize`."""
        table = np.ones((4, 2))
        opt = op.SGD(table, lr=1.0)
        opt.step_rows((np.array([0]), np.ones((1, 2))))
        table.resize((400, 2), refcheck=False)
        with pytest.raises(ValueError, match="expected"):
            op.Adam(table).step_rows((np.array([400]), np.ones((1, 2))))
        opt.step_rows((np.array([399]), np.ones((1, 2))))
        assert table[399].tolist() == [-1.0, -1.0]


@given(
    st.integers(1, 12),
    st.integers(1, 300),
    st.lists(st.integers(0, 2**32), max_size=30),
    st.sampled_from(FORMATS),
    st.sampled_from(KINDS),
    st.integers(1, 4),
)
def test_any_index(n_rows, width, numbers, dtype, cls, threads):
    if not moves_rows(cls, {}):
        return
    rng = np.random.default_rng(0)
    table = rng.normal(size=(n_rows, width)).astype(dtype)
    index = np.array([number % n_rows for number in numbers], int)
    values = rng.normal(size=(len(index), width)).astype(dtype)
    rows, sums = summed(index, values, dtype)
    part, before = table[rows].copy(), table.copy()
    info = cls(table, max_grad_norm=1.0).step_rows((index, values), num_threads=threads)
    if len(rows):
        assert info == cls(part, max_grad_norm=1.0).step(sums)
        before[rows] = part
    assert_same_bits(table, before)


class TestFreeFunctions:
    def test_lists(self, rng):
        """Rows of some parameters, others whole, and one left alone."""
        params = [rng.normal(size=shape) for shape in [(9, 2), (4, 3), (5,), (8,)]]
        expected = [param.copy() for param in params]
        grads = [rng.normal(size=(3, 2)), rng.normal(size=(4, 3)), None, rng.normal(size=4)]
        rows = [np.array([8, 0, 8]), None, np.array([0]), np.array([1, 2, 3, 7], np.uint8)]
        buffers = [np.zeros_like(param) for param in params]
        state = [buffers, None][: len(op.SGD.row.states)]
        info = op.kernels.sgd(
            params, grads, *state, rows=rows, momentum=0.9, lr=1.0, max_grad_norm=1e9
        )
        named, sums = summed(rows[0], grads[0], float)
        norm = op.optim._reference.grad_norm([sums, grads[1], grads[3]])
        assert info.grad_norm == norm
        expected[0][named] -= sums
        expected[1] -= grads[1]
        expected[3][[1, 2, 3, 7]] -= grads[3]
        for param, other in zip(params, expected, strict=True):
            np.testing.assert_array_equal(param, other)

    def test_a_tuple_of_one(self):
        table = np.zeros((5, 2))
        op.kernels.sgd((table,), (np.ones((1, 2)),), None, rows=(np.array([3]),), lr=1.0)
        assert table.sum(axis=1).tolist() == [0, 0, 0, -2, 0]


def test_ml_dtypes_values_beside_a_float32_table(rng):
    table = rng.normal(size=(9, 300)).astype(np.float32)
    twin = Twin(op.Adam, {}, table, np.array([2, 3, 8]), max_grad_norm=1.0)
    twin.step(rng, dtype=ml_dtypes.bfloat16)
    twin.check()
