"""What builds of others find in the wheel: a CMake package, and files for pkg-config."""

import importlib.metadata
import importlib.resources
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onepass

PACKAGE = Path(onepass.get_include()).parent
CONSUMER = Path(__file__).parent / "consumer"

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def adam_in_python():
    param, grad = np.ones(4, np.float32), np.full(4, 0.5, np.float32)
    state = np.zeros_like(param), np.zeros_like(param)
    for step in (1, 2, 3):
        onepass.kernels.adam(param, grad, *state, step=step, lr=0.1)
    return param.tolist()


def values(printed):
    return [float.fromhex(line) for line in printed.split()]


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no CMake")
def test_cmake_finds_the_headers_and_their_flags(tmp_path):
    """The consumer gives no flag itself, and takes the headers' warnings for errors."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", *generator, "-S", str(CONSUMER), "-B", str(tmp_path), f"-Donepass_ROOT={PACKAGE}")
    run("cmake", "--build", str(tmp_path))
    assert values(run(str(tmp_path / "headers"))) == adam_in_python()
    assert not (tmp_path / "library").exists()  # there is nothing to link with


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no CMake")
def test_cmake_refuses_another_version(tmp_path):
    consumer = tmp_path / "CMakeLists.txt"
    consumer.write_text(
        "cmake_minimum_required(VERSION 3.20)\n"
        "project(consumer LANGUAGES NONE)\n"
        "find_package(onepass 99 CONFIG REQUIRED)\n"
    )
    command = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build")]
    result = subprocess.run(
        [*command, f"-Donepass_ROOT={PACKAGE}"], check=False, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert f"version: {onepass.__version__}" in result.stderr


def pkg_config(python_aware):
    """Return the command that prints what pkg-config knows, and its environment."""
    if python_aware:
        pytest.importorskip("pkgconf")
        return [sys.executable, "-m", "pkgconf"], os.environ
    if not shutil.which("pkg-config"):
        pytest.skip("there is no pkg-config")
    return ["pkg-config"], os.environ | {"PKG_CONFIG_PATH": str(PACKAGE / "lib" / "pkgconfig")}


@pytest.mark.parametrize("python_aware", [False, True], ids=["pkg-config", "pkgconf of PyPI"])
def test_pkg_config_finds_the_headers_and_their_flags(python_aware, tmp_path):
    command, env = pkg_config(python_aware)
    flags = run(*command, "--cflags", "onepass-headers", env=env).split()
    to_program = str(tmp_path / "headers")
    source = str(CONSUMER / "headers.cpp")
    run("c++", "-std=c++20", "-O2", "-Werror", *flags, source, "-o", to_program)
    assert values(run(to_program)) == adam_in_python()

    (include,) = run(*command, "--cflags", "--libs", "onepass", env=env).split()
    assert Path(include.removeprefix("-I")).resolve() == PACKAGE / "include"
    assert run(*command, "--modversion", "onepass", env=env).strip() == onepass.__version__


def test_the_entry_points_name_the_folders():
    """In the terms of scikit-build-core and of pkgconf, which read them."""
    files = {"cmake.root": "lib/cmake/onepass/onepass-config.cmake", "pkg_config": "onepass.pc"}
    for group, file in files.items():
        (point,) = importlib.metadata.entry_points(group=group, name="onepass")
        found = importlib.resources.files(point.value).joinpath(file)
        assert found.is_file()
        assert Path(str(found)).is_relative_to(PACKAGE)
