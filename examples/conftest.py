"""What the tests of the examples share: the rules in NumPy, and equality to the bit."""

import os
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from onepass.optim._reference import clip_coefficient, grad_norm

ROOT = Path(__file__).parents[1]


class Oracle:
    """An optimizer class in NumPy, over some arrays: `reference_step` for each of them."""

    def __init__(self, cls, params, settings, max_grad_norm=None):
        """Take a mapping of settings for all arrays, or one for each of them."""
        self.cls, self.max_grad_norm, self.steps = cls, max_grad_norm, 0
        self.settings = [settings] * len(params) if isinstance(settings, dict) else settings
        self.arrays = [
            self._begin(param, values) for param, values in zip(params, self.settings, strict=True)
        ]

    def _begin(self, param, settings):
        row, values = self.cls.row, {**self.cls.defaults, **settings}
        shapes = row.state_shapes(values, param.shape)
        starts = row.start_values(values)
        states = [
            None if shape is None else np.full(shape, start, param.dtype)
            for shape, start in zip(shapes, starts, strict=True)
        ]
        averages = [np.zeros(param.shape)] if "ema_decay" in settings else []
        return (param.copy(), *states, *averages)

    def step(self, grads, **options):
        self.steps += 1
        factor = 1.0
        if self.max_grad_norm is not None:
            factor = clip_coefficient(grad_norm(grads), self.max_grad_norm)
        for i, (grad, settings) in enumerate(zip(grads, self.settings, strict=True)):
            param, *rest = self.arrays[i]
            self.arrays[i] = self.cls.reference_step(
                param, grad, *rest, step=self.steps, grad_factor=factor, **options, **settings
            )

    @property
    def params(self):
        return [arrays[0] for arrays in self.arrays]

    @property
    def averages(self):
        return [arrays[-1] for arrays in self.arrays]


@pytest.fixture(scope="session", autouse=True)
def tools_of_this_environment():
    """Let programs that are installed beside this Python be found, even where it is not active."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def run():
    """Run a command, with some variables of the environment changed; return what it prints."""

    def run_command(*command, **changed):
        environment = {**os.environ, **{name: str(value) for name, value in changed.items()}}
        return subprocess.run(
            [*map(str, command)], env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    return run_command


@pytest.fixture(scope="session")
def libraries(run, tmp_path_factory):
    """The folder that has libonepass, built without Python for the machine's lowest level.

    It is built in the repository, as deep in it as any other build: so a compiler cache knows it,
    and what has not changed since the last time is not built again.
    """
    prefix, build = tmp_path_factory.mktemp("onepass"), ROOT / "build" / "libonepass"
    options = ("LIBRARY=ON", "WERROR=ON", "HAS_X86_64_LEVELS=OFF")
    given = ("-DCMAKE_INSTALL_LIBDIR=lib", *(f"-DONEPASS_{option}" for option in options))
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, *given)
    run("cmake", "--build", build)
    run("cmake", "--install", build, "--prefix", prefix)
    return prefix / "lib"


@pytest.fixture
def oracle():
    return Oracle


@pytest.fixture
def assert_same_bits():
    def check(actual, expected):
        for ours, theirs in zip(actual, expected, strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert ours.tobytes() == theirs.tobytes()

    return check
