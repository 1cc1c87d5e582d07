"""What a developer runs: `nox` for everything, `nox -s lint` for one part."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "cpp", "docs"]
nox.options.reuse_existing_virtualenvs = True


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite against an installed package, PyTorch as the second oracle included."""
    session.install("torch==2.13.0")
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    session.install(".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def cpp(session: nox.Session) -> None:
    """Run the driver, plain and sanitized, built by Clang too where it is; keep builds apart."""
    session.install("cmake>=3.25", "pybind11>=3")
    session.env["CMAKE_BUILD_PARALLEL_LEVEL"] = str(os.cpu_count())
    compilers = ["driver", *(["clang"] if shutil.which("clang++") else [])]
    for preset in (*compilers, "sanitize", "tsan", "module"):
        session.run("cmake", "--workflow", "--preset", preset)
    for preset in compilers:
        _check_kernels(session, Path("build", preset))


def _check_kernels(session: nox.Session, build: Path) -> None:
    objects = list(build.glob("CMakeFiles/onepass_kernels_*.dir/**/*.o"))
    weak: dict[str, Path] = {}
    for path in objects:
        for line in _output("nm", str(path)):
            *_, kind, name = line.split()
            # DW.ref.*: where to find the run-time library's own personality routine; no code.
            is_weak = kind in "WVu" and not name.startswith("DW.ref.")
            if is_weak and weak.setdefault(name, path) != path:
                session.error(f"{path} shares the weak symbol {name} with {weak[name]}")
        if re.search(r"\bvf(n)?m(add|sub)", "\n".join(_output("objdump", "-d", str(path)))):
            session.error(f"{path} contracts to FMA, so its bits would differ")
    if not objects:
        session.error(f"found no kernels in {build}")
    session.log(f"{len(objects)} kernels in {build} share no weak symbol and use no FMA")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into build/docs; a warning is an error."""
    session.install(".[docs]")
    session.run("python", "-m", "sphinx", "-q", "-W", "--keep-going", "docs", "build/docs")


@nox.session
def bench(session: nox.Session) -> None:
    """Print the tables of the README."""
    session.install("torch==2.13.0")
    session.install(".[bench]", "bitsandbytes")  # with torch: alone it would bring another one
    session.run("python", "bench/run.py", *session.posargs)


def _output(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
