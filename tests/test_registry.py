"""Rows, classes, references and documentation belong together: none without the others."""

import inspect
import math
import re

import numpy as np
import pytest

import onepass as op
from helpers import SHARED, kept_names, shaped
from onepass import _core, norms
from onepass._hyperparameters import (
    Choice,
    Fixed,
    Flag,
    Maybe,
    Number,
    Several,
    Whole,
    as_numbers,
)
from onepass.optim import Optimizer
from onepass.optim._settings import GROUP_DEFAULTS, StepOptions


def test_every_row_has_a_class_and_every_class_a_row():
    rows = set(_core.rules())
    assert {cls.row.name for cls in op.optim.registry.values()} == rows
    for rule, cls in op.optim.registry.items():
        assert cls.row.name == rule if rule in rows else cls.row is cls.__base__.row
        assert cls.rule == rule
        assert getattr(op, cls.__name__) is cls
        assert cls.__name__ in op.__all__
        assert rule in op.kernels.__all__


def test_every_class_has_a_reference_of_its_own(every_class):
    for name in ("reference", "scalars"):
        assert getattr(every_class, name) is not getattr(Optimizer, name)
        assert name in op.optim.registry[every_class.row.name].__dict__
        assert (name in every_class.__dict__) == (every_class.row.name == every_class.rule)
    with pytest.raises(NotImplementedError):
        Optimizer.reference(None, None)


def test_scalars_are_the_kernels_in_their_order(every_case):
    cls, settings = every_case
    scalars = cls.scalars(3, {**cls.defaults, **settings, **cls.memory_start()})
    assert tuple(scalars) == (*cls.row.scalars, *cls.row.memory)
    assert all(type(value) is float for value in scalars.values())


STAGES = {"weight_decay", "maximize", "decoupled_weight_decay", "no_prox"}
"""Hyperparameters that are no rule's own."""


def test_hyperparameters_are_the_headers_options_or_stages(every_class):
    row, numbers = every_class.row, as_numbers(every_class.checks, every_class.defaults)
    assert set(row.options) <= set(every_class.checks)
    assert set(row.hyper) & STAGES <= {"weight_decay"}  # which a rule may take itself
    assert set(numbers) - (STAGES - set(row.hyper)) == {*row.hyper, *row.options}


def test_defaults_of_the_header_are_the_classs(every_class):
    row, numbers = every_class.row, as_numbers(every_class.checks, every_class.defaults)
    fixed = {name for name, check in every_class.checks.items() if isinstance(check, Fixed)}
    for name, default in zip(row.hyper, row.defaults, strict=True):
        both_none = math.isnan(default) and math.isnan(numbers[name])
        assert name in fixed or default == numbers[name] or both_none


def test_numbers_of_settings():
    checks = {
        "betas": Several((Number(),) * 3),
        "hat": Flag(),
        "form": Choice(("a", "b")),
        "n": Whole(),
        "fn": Maybe(Choice(("a", "b"))),
    }
    values = {"betas": (0.5, 0.25, 0.125), "hat": True, "form": "b", "n": 3, "fn": "b"}
    expected = {"beta1": 0.5, "beta2": 0.25, "beta3": 0.125, "hat": 1.0, "form": 1.0, "n": 3.0}
    assert as_numbers(checks, values) == {**expected, "fn": 1.0}
    assert np.isnan(as_numbers(checks, {**values, "fn": None})["fn"])


def test_at_checks_what_it_is_given(every_class):
    hyper = every_class.row.defaults
    with pytest.raises(ValueError, match=rf"^hyper: expected {len(hyper)} numbers, got 0"):
        _core.at(every_class.row.name, 1, [])
    with pytest.raises(ValueError, match=r"^memory: expected . numbers, got 9"):
        _core.at(every_class.row.name, 1, hyper, [0.0] * 9)
    with pytest.raises(ValueError, match=r"^rule: expected one of rules\(\), got 'none'"):
        _core.at("none", 1, hyper)


def test_cases_reach_every_combination_of_options(every_class):
    """But for those that the class refuses."""
    options = every_class.row.options
    reached = {
        tuple(bool({**every_class.defaults, **case}[name]) for name in options)
        for case in every_class.cases
    }
    for mask in range(1 << len(options)):
        combination = tuple(bool(mask >> bit & 1) for bit in range(len(options)))
        if combination not in reached:
            settings = {
                name: on if isinstance(every_class.defaults[name], bool) else 0.9 * on
                for name, on in zip(options, combination, strict=True)
            }
            with pytest.raises(ValueError, match="expected"):
                every_class.check_together({**every_class.defaults, **settings})


def test_cases_change_every_hyperparameter(every_class):
    """No branch of a rule is untried (lr, decay and sign are tried by every test)."""
    changed = {name for case in every_class.cases for name in case}
    everywhere = {"lr", *(name for shared in SHARED for name in shared)}
    fixed = {name for name, check in every_class.checks.items() if isinstance(check, Fixed)}
    assert set(every_class.checks) - everywhere - fixed <= changed


def test_defaults_are_valid_and_every_hyperparameter_is_documented(every_class):
    opt = every_class([shaped(every_class, {}, np.ones(3))])
    (group,) = opt.param_groups
    assert {k: v for k, v in group.items() if k != "params"} == {
        **every_class.defaults,
        **GROUP_DEFAULTS,
    }
    parameters = section(every_class.__doc__, "Parameters")
    assert_documented(("params", *inspect.signature(every_class).parameters), parameters)
    assert re.search(r"`onepass.Optimizer`|As in `\w+`", parameters)  # where the options stand


def test_every_option_of_a_step_is_documented():
    assert_documented(StepOptions.__annotations__, section(op.Optimizer.__doc__, "Parameters"))


def assert_documented(names, parameters):
    """Each has an entry of its own, or shares one."""
    for name in names:
        assert re.search(rf"^\s*(\*\*|(\w+, )*){name}(, \w+)*( :|$)", parameters, re.M), name


def section(doc, title):
    doc = inspect.cleandoc(doc)
    match = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", doc, re.M | re.S)
    assert match, f"no section {title}"
    return match.group(1)


def test_documentation_is_whole(every_class):
    doc = every_class.__doc__
    assert ".. math::" in doc
    assert "TypeError, ValueError" in section(doc, "Raises")
    assert re.search(r"\b(19|20)\d\d\b", section(doc, "References"))
    assert ">>> " in section(doc, "Examples")
    notes = section(doc, "Notes")
    assert "Differs from" in notes
    assert "PyTorch" in notes
    assert "optax" in doc
    for cls in {every_class, *every_class.__bases__} & set(op.optim.registry.values()):
        shapes = [(1,), (1, 1)]
        names = {n for case in cls.cases for shape in shapes for n in kept_names(cls, case, shape)}
        assert (
            cls is not every_class or cls.__bases__ != (Optimizer,) or all(n in doc for n in names)
        )


@pytest.mark.parametrize(
    "thing",
    [op.runtime.info, op.set_num_threads, op.get_num_threads, op.get_include, op.StepInfo, op.pack]
    + [getattr(op.LossScaler, name) for name in dir(op.LossScaler) if not name.startswith("_")]
    + [getattr(Optimizer, name) for name in dir(Optimizer) if not name.startswith("_")],
    ids=lambda thing: getattr(thing, "__name__", "attribute"),
)
def test_public_things_have_a_docstring(thing):
    if callable(thing):
        assert thing.__doc__


@pytest.mark.parametrize("thing", [Optimizer, op.LossScaler, op.pack], ids=lambda t: t.__name__)
def test_documentation_of_what_all_share_is_whole(thing):
    doc = thing.__doc__
    assert ":math:" in doc or ".. math::" in doc
    assert "PyTorch" in section(doc, "Notes").split("Differs from")[1]
    assert ">>> " in section(doc, "Examples")
    parameters = section(doc, "Parameters")
    assert_documented(inspect.signature(thing).parameters.keys() - {"settings"}, parameters)
    if thing is Optimizer:
        assert all(f"{name} :" in parameters for name in GROUP_DEFAULTS)


BATCH_NORM = [
    op.BatchNorm,
    op.batch_norm_train,
    op.batch_norm_infer,
    op.batch_norm_backward,
    op.batch_norm_infer_backward,
    op.batch_norm_moments,
    op.batch_norm_merge,
    op.batch_norm_normalize,
    op.batch_norm_gradient_sums,
    op.batch_norm_input_gradient,
    *(getattr(op, name) for name in norms.__all__),
    op.update_bn,
]


@pytest.mark.parametrize("thing", BATCH_NORM, ids=lambda thing: thing.__name__)
def test_documentation_of_batch_norm_is_whole(thing):
    doc = thing.__doc__
    assert ".. math::" in doc
    assert "TypeError, ValueError" in section(doc, "Raises")
    assert re.search(r"\b(19|20)\d\d\b", section(doc, "References"))
    assert ">>> " in section(doc, "Examples")
    assert "PyTorch" in section(doc, "Notes").split("Differs from")[1]
    assert_documented(inspect.signature(thing).parameters, section(doc, "Parameters"))


@pytest.mark.parametrize("layer", [op.BatchNorm, op.LayerNorm], ids=lambda layer: layer.__name__)
def test_methods_of_layers_have_a_docstring(layer):
    for name in dir(layer):
        thing = getattr(layer, name)
        assert name.startswith("_") or not callable(thing) or thing.__doc__, name
