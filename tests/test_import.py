"""`import onepass` loads what the library needs, and the rest when it is first used."""

import importlib
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest

import onepass as op
from names import PUBLIC
from onepass import _core

NEEDED = ("__future__", "atexit", "bisect", "dataclasses", "json", "pathlib", "zlib")
"""What the library uses of the standard library, besides what NumPy loads.

All that saving takes is there: no import may fail in the middle of a training.
"""
FINDER = ("importlib.util",)
"""What the finder of an editable install loads."""
LATE = ("compare", "search", "surface", "tune")


def run(code):
    """Return what a program prints, one line each."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_import_loads_what_the_library_needs_and_no_more():
    loaded = run(f"""
import {", ".join(("sys", *NEEDED, *FINDER))}
import numpy
before = set(sys.modules)
import onepass
print(*sorted(set(sys.modules) - before), sep="\\n")""")
    assert "onepass.optim" in loaded
    roots = {name.partition(".")[0] for name in loaded}
    assert roots <= {"onepass", "numpy"}, loaded  # nothing else, of the standard library neither
    assert [name for name in loaded if name.startswith(("onepass.lab", "numpy.random"))] == []


def test_what_is_needed_is_loaded():
    missing = f"print(*set({NEEDED}) - set(sys.modules), sep='\\n')"
    assert run(f"import sys, onepass; {missing}") == [""]


@pytest.mark.parametrize("name", LATE)
def test_the_lab_is_loaded_when_it_is_used(name):
    printed = run(f"""
import sys
import onepass as op
assert "{name}" in dir(op)
assert not any(module.startswith("onepass.lab") for module in sys.modules)
from onepass import {name}
assert op.{name} is {name} is sys.modules["onepass.lab.{name}"]
print({name}.__name__)""")
    assert printed == [f"onepass.lab.{name}"]


def test_every_name_is_there():
    for name in op.__all__:
        assert name in dir(op)
        assert getattr(op, name) is not None
    public = {name.split(".")[2] for name in PUBLIC if name.startswith("onepass.lab.")}
    assert public <= set(LATE) <= set(op.__all__)
    for name in LATE:
        assert getattr(op, name) is importlib.import_module(f"onepass.lab.{name}")


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="^module 'onepass' has no attribute 'Adamm'$"):
        op.Adamm  # noqa: B018
    with pytest.raises(ImportError):
        from onepass import Adamm  # noqa: F401


@pytest.mark.parametrize("name", ["Momentum", "Nesterov"])
def test_a_name_of_courses_says_what_it_is(name):
    with pytest.raises(AttributeError, match=f"'{name}'; it is SGD") as raised:
        getattr(op, name)
    settings = str(raised.value).partition("it is ")[2].replace("...", "np.ones(1), 0.1")
    optimizer = eval(settings, {"SGD": op.SGD, "np": np})
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_the_version_is_that_of_the_distribution():
    """The build compiles it in, so no metadata is read."""
    assert op.__version__ == _core.version == version("onepass")
    assert op.runtime.info()["version"] == op.__version__
