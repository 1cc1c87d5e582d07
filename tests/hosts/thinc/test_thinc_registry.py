"""Configs find the classes, and these are what Thinc expects."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from thinc import optimizers as theirs
from thinc.api import registry
from thinc_steps import NAMES, run, weights

import onepass.thinc as ours
from helpers import assert_same_bits

ROOT = Path(__file__).parent.parent.parent.parent


def setting(optimizer, name):
    """The value of a setting in the first step: in Thinc 9 it is a schedule."""
    value = getattr(optimizer, name)
    return value(0, key=(1, "W"), last_score=None) if callable(value) else value


@pytest.mark.parametrize("name", NAMES)
def test_a_config_makes_it(name):
    cls = getattr(ours, name)
    config = {"@optimizers": f"onepass.{name}.v1", "learn_rate": 0.25, "L2": 0.5}
    optimizer = registry.resolve({"config": config})["config"]
    assert type(optimizer) is cls
    assert isinstance(optimizer, theirs.Optimizer)
    assert setting(optimizer, "learn_rate") == 0.25
    assert setting(optimizer, "L2") == 0.5
    with pytest.raises(ValueError, match="no_such_setting"):
        registry.resolve({"config": {**config, "no_such_setting": 1}})


@pytest.mark.parametrize(
    ("make", "default"), [(ours.Adam, theirs.Adam), (ours.SGD, theirs.SGD)], ids=["Adam", "SGD"]
)
def test_signatures_are_thincs(make, default):
    want, got = inspect.signature(default), inspect.signature(make)
    assert got.parameters == want.parameters


def test_the_page_has_the_signatures():
    """Where Thinc is not installed, nobody else can tell them."""
    page = (ROOT / "docs" / "hosts" / "thinc.md").read_text()
    for name in ("Optimizer", "Adam", "AdamW", "SGD"):
        signature = inspect.signature(getattr(ours, name))
        bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
        stated = f"autoclass:: onepass.thinc.{name}{inspect.Signature(bare)}\n"
        assert stated in page, stated


def test_adamw_is_adam_with_a_decay():
    got, want = inspect.signature(ours.AdamW).parameters, inspect.signature(ours.Adam).parameters
    assert {**got, "L2": None} == {**want, "L2": None}
    assert got["L2"].default == 0.01
    for key, array in run(ours.AdamW(0.1), weights()).items():
        assert_same_bits(array, run(ours.Adam(0.1, L2=0.01), weights())[key])


def test_entry_points_are_all_classes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = project["entry-points"]["thinc_optimizers"]
    assert stated == {f"onepass.{name}.v1": f"onepass.thinc:{name}" for name in NAMES}


def test_loading_it_loads_nothing_but_thinc_and_onepass():
    """The registry loads it for everybody who lists what there is."""
    code = """
import sys, numpy, thinc.optimizers, onepass
before = set(sys.modules)
import onepass.thinc
new = {name for name in set(sys.modules) - before if not name.startswith("onepass.")}
sys.exit(", ".join(sorted(new)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "\n"
    code = "import sys, onepass; sys.exit('thinc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ours.__all__)
def test_classes_are_locked_as_thincs_is(name):
    optimizer = getattr(ours, name)(learn_rate=0.1)
    with pytest.raises(AttributeError):
        optimizer.learning_rate = 0.1


def test_thinc_has_what_the_adapter_builds_on():
    used = {"mom1", "mom2", "averages", "nr_update", "use_radam", "L2_is_weight_decay"}
    used |= {"learn_rate", "L2", "grad_clip", "b1", "b2", "eps"}
    other = {"schedules", "last_seen", "_radam_buffer", "_step", "_last_score"}
    slots = set(theirs.Optimizer.__slots__)
    assert used <= slots, f"Thinc's Optimizer has lost {used - slots}, which onepass.thinc reads"
    assert slots <= used | other, f"Thinc's Optimizer has {slots - used - other}: what is it for?"
    call = list(inspect.signature(theirs.Optimizer.__call__).parameters)
    assert call == ["self", "key", "weights", "gradient", "lr_scale"], "Thinc calls otherwise"
    assert "learn_rate" in theirs.Adam.__annotations__
