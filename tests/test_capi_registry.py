"""What C knows of the rules is what Python knows; structs and exports stay what they are."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import capi
import onepass as op
from capi import C
from helpers import assert_same_bits, moves_rows
from onepass import _core

HEADERS = Path(op.get_include()) / "onepass"


def test_rules_are_those_of_the_registry():
    names = [C.rule_name(rule).decode() for rule in range(C.rules())]
    assert names == list(_core.rules())
    assert [C.rule(name.encode()) for name in names] == list(range(C.rules()))
    assert {cls.row.name for cls in op.optim.registry.values()} == set(names)


def test_what_is_known_of_a_rule(every_class):
    row, rule = every_class.row, capi.rule_of(every_class)
    for what, names in (
        (capi.STATES, row.states),
        (capi.MEMORY, row.memory),
        (capi.OPTIONS, row.options),
    ):
        assert [C.name(rule, what, i) for i in range(C.count(rule, what))] == [
            name.encode() for name in names
        ]
        assert C.name(rule, what, len(names)) is None
        assert [C.index(rule, what, name.encode()) for name in names] == [*range(len(names))]
    settings = [
        C.name(rule, capi.SETTINGS, i).decode() for i in range(C.count(rule, capi.SETTINGS))
    ]
    assert settings[: len(row.hyper)] == list(row.hyper)
    assert len(set(settings)) == len(settings)
    assert {"weight_decay", "max_grad_value", "ema_decay", "lookahead_every"} <= {*settings}
    memory = np.full(len(row.memory), np.nan)
    assert C.memory_start(rule, capi.address(memory)) == capi.OK
    assert_same_bits(memory, np.array(row.memory_start, dtype=float))


def test_state_is_as_large_as_python_says(every_case):
    for shape in ((), (7,), (4, 6), (2, 3, 5)):
        check_sizes(*every_case, shape)


def check_sizes(cls, settings, shape):
    rule, options = capi.rule_of(cls), capi.options_of(cls, settings)
    sizes = np.array(shape, np.int64)
    expected = cls.row.state_shapes({**cls.defaults, **settings}, shape)
    for k, of_state in enumerate(expected):
        assert C.uses_state(rule, options, len(shape), k) == (of_state is not None)
        size = C.state_size(rule, options, len(shape), capi.address(sizes), k)
        assert size == (0 if of_state is None else np.prod(of_state, dtype=int))
        place = C.state_start(rule, k)
        start = C.name(rule, capi.SETTINGS, place)
        assert start == (cls.row.start[k].encode() if cls.row.start[k] else None)


def test_traits(every_case):
    cls, settings = every_case
    values = {**cls.defaults, **settings}
    traits = C.traits(capi.rule_of(cls), capi.options_of(cls, settings))
    assert bool(traits & capi.MEASURES) == cls.row.measures(values)
    assert bool(traits & capi.DIRECTED) == cls.row.is_directed(values)
    assert bool(traits & capi.SHAPED) == cls.row.factored
    assert bool(traits & capi.TOGETHER) == cls.row.sums_over_all
    assert bool(traits & capi.ROWS) == moves_rows(cls, settings)


def test_numbers_of_a_step_are_those_of_the_classes(every_case):
    for step in (1, 2, 3, 10, 999, 10_000):
        check_numbers(*every_case, step)


def check_numbers(cls, settings, step):
    n_memory, n = len(cls.row.memory), len(cls.row.scalars)
    remembered = np.array(cls.row.memory_start, dtype=float) * 0.75
    values = cls._values_of_step(settings, step)
    expected = cls.scalars(step, {**values, **dict(zip(cls.row.memory, remembered, strict=True))})
    scalars = capi.scalars_of(cls, settings, step, remembered)
    own = scalars[-n - n_memory :]
    assert_same_bits(own, np.array([expected[k] for k in (*cls.row.scalars, *cls.row.memory)]))


def test_threads_are_those_of_python():
    before = op.get_num_threads()
    op.set_num_threads(3)
    assert C.threads() == 3
    C.set_threads(2)
    assert C.threads() == 2
    C.set_threads(0)
    assert C.threads() == 2
    op.set_num_threads(None)
    assert C.threads() == op.get_num_threads() == before


def test_it_says_what_it_is():
    assert C.version().decode() == op.__version__
    assert C.isa().decode() == op.runtime.info()["isa"]
    assert C.abi() == int(re.search(r"ONEPASS_ABI (\d+)", declarations()).group(1))


def declarations():
    return (HEADERS / "capi_functions.h").read_text()


def test_structs_lie_as_they_did():
    """Numbers that are compiled into programs: they may grow at the end, and never change."""
    assert [ctypes.sizeof(s) for s in (capi.Group, capi.Tensor, capi.Call, capi.Result)] == [
        *(16, 184, 80, 56)
    ]
    assert capi.Call.skip_norm.offset == 72  # what the call had grown to before
    assert ctypes.sizeof(capi.BatchNorm) == 208
    offsets = {
        name: getattr(struct, name).offset
        for struct in (capi.Tensor, capi.Call, capi.Result, capi.BatchNorm)
        for name in struct.__dict__
        if hasattr(getattr(struct, name), "offset")
    }
    assert {name: offsets[name] for name in ("memory", "width", "group", "nearest")} == {
        **{"memory": 56, "width": 120, "group": 144, "nearest": 176}
    }


def test_every_function_and_every_code_is_declared_and_known():
    text = declarations()
    declared = re.findall(
        r"^(?:const |u?int32_t |size_t |void |char )[\w *]*(onepass_\w+)\(", text, re.M
    )
    assert set(declared) == set(capi.FUNCTIONS)
    for name, code in capi.CODES.items():
        assert int(re.search(rf"ONEPASS_{name} (\d+)", text).group(1)) == code
    messages = [C.message(code) for code in range(1 + len(capi.CODES))]
    assert len(set(messages)) == len(messages)
    assert C.message(len(messages)) == C.message(-1) == b"no such code"


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_the_module_exports_these_functions_and_its_own_entry_alone():
    command = ["nm", "-D", "--defined-only", op.get_library()]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert {line.split()[-1] for line in lines} == {*capi.FUNCTIONS, "PyInit__core"}
