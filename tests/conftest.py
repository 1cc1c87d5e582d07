import doctest
import gc
import importlib
import inspect
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers take all cores already: NumPy's threads would wait for each other, busily.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

import onepass as op
from batchnorm_cases import FUNCTIONS
from examples_in_text import EXAMPLE, run_examples
from helpers import CASES, FORMATS, KINDS, SHAPES, case_id

settings.register_profile("onepass", deadline=None)  # a busy machine is no fault of an example's
settings.load_profile("onepass")


def pytest_sessionstart(session):
    """A forced instruction set that did not run would make its tests mean nothing."""
    forced = os.environ.get("ONEPASS_ISA")
    if forced and op.runtime.info()["isa"] != forced:
        pytest.exit(f"ONEPASS_ISA={forced}, but {op.runtime.info()['isa']} runs", returncode=3)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is collected lives to the end: the garbage collector need not look at it again.

    It is 23,000 tests, and PyTorch and JAX: a third of a second in each collection.
    """
    gc.disable()
    try:
        result = yield
    finally:
        gc.enable()
    gc.freeze()
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker that has no tests left takes some of another's: a few tests take ten seconds."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(params=SHAPES, ids=case_id)
def case(request):
    """(class, settings) for every shape of state, for tests of the loop."""
    return request.param


@pytest.fixture(params=CASES, ids=case_id)
def every_case(request):
    """(class, settings) for every rule, option and shared hyperparameter."""
    return request.param


@pytest.fixture(
    scope="session",
    params=KINDS,
    ids=lambda cls: cls.__name__,
)
def optimizer(request):
    """A class for every kind of state, for tests of the engine."""
    return request.param


@pytest.fixture(
    scope="session", params=list(op.optim.registry.values()), ids=lambda cls: cls.__name__
)
def every_class(request):
    return request.param


@pytest.fixture(params=FORMATS, ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=FUNCTIONS)
def function(request):
    """One of BatchNorm's four, called with a dictionary of arrays and options."""
    return FUNCTIONS[request.param]


@pytest.fixture
def torch_in_float64(monkeypatch):
    """PyTorch's numbers of a step have the default dtype, whatever the parameters' is.

    And its Muon computes its products in bfloat16: here, in the parameters' dtype.
    """
    import torch

    name = "_zeropower_via_newtonschulz"
    muon = importlib.import_module("torch.optim._muon")
    source = inspect.getsource(getattr(muon, name))
    assert source.count(".bfloat16()") == 1
    patched = dict(vars(muon))
    exec(source.replace(".bfloat16()", ".clone()"), patched)
    monkeypatch.setattr(muon, name, patched[name])
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)


@pytest.fixture(autouse=True)
def default_threads():
    yield
    op.set_num_threads(None)


# Here, and not in hosts/, whose folders Python would then take for the libraries of their names.
@pytest.fixture
def check_documentation(tmp_path, monkeypatch, capsys) -> Callable[[str], None]:
    """Run the examples of a host's page, and those of its adapter's docstrings, if it has one."""

    def check(host: str) -> None:
        if find_spec(f"onepass.{host}"):
            failed, tried = doctest.testmod(importlib.import_module(f"onepass.{host}"), globs={})
            assert tried
            assert failed == 0, capsys.readouterr().out
        page = (Path(__file__).parent.parent / "docs" / "hosts" / f"{host}.md").read_text()
        assert EXAMPLE.search(page)
        monkeypatch.chdir(tmp_path)  # an example may save something
        run_examples(page, capsys)

    return check
