"""What a developer runs: `nox` for everything, `nox -s lint` for one part."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import nox

nox.options.sessions = ["tests", "cpp", "extras", "examples"]
nox.options.reuse_existing_virtualenvs = True

EXTRAS = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
DISTRIBUTIONS = Path("build", "distributions")
OUT = Path("build", "extras")

MOST_SECONDS = 10.0
"""CPU seconds that a rule may take to compile for one instruction set. Most take two."""

LINT = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))
DOCS = (("python", "-m", "sphinx", "-q", "-W", "--keep-going", "docs", "build/docs"),)

STEP_IN_BFLOAT16 = """
import ml_dtypes, numpy as np, onepass as op
for dtype, option in ((np.float32, {"state_format": "bf16"}), (ml_dtypes.bfloat16, {})):
    w = np.ones(5000, dtype)
    op.AdamW(w, lr=0.1, **option).step(w.copy())
    assert (w < 1).all()
"""
DRAW_AN_AVERAGE = f"""
import onepass as op
op.ema.picture([1.0, 2.0, 3.0], beta=0.9, path="{OUT}/ema.png")
"""

JOBS = {
    "": [("onepass", "info")],
    "formats": [("python", "-W", "error", "-c", STEP_IN_BFLOAT16)],
    "plot": [("python", "-W", "error", "-c", DRAW_AN_AVERAGE)],
    "surface": [
        ("onepass", "surface", "--surface", "ravine", "--steps", "10", "--out", f"{OUT}/surface")
    ],
    "compare": [("onepass", "compare", "--seeds", "1", "--steps", "20", "--out", f"{OUT}/compare")],
    "tune": [("onepass", "tune", "--trials", "3", "--epochs", "1", "--out", f"{OUT}/tune")],
    "docs": DOCS,
    "test": [("python", "-m", "pytest", "-q", "tests/test_docs.py", "tests/test_extras.py")],
    "bench": [
        ("python", "bench/run.py", "--quick", "--rule", "sgd", "--workload", "1e3", "128x1024")
    ],
    "dev": [*LINT, ("nox", "--list"), ("python", "-m", "build", "--version")],
}
"""What each extra is for, in the smallest form; "" is the package alone."""


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite against an installed package, PyTorch as the second oracle included."""
    session.install("torch==2.13.0")
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types."""
    session.install(".[dev]")
    _run_all(session, LINT)


@nox.session
def cpp(session: nox.Session) -> None:
    """Run the drivers, plain and sanitized, built by Clang too where it is; keep builds apart.

    Print what the rules cost: CPU seconds to compile, kernels, bytes of the module.
    """
    session.install("cmake>=3.25", "pybind11>=3")
    session.env["CMAKE_BUILD_PARALLEL_LEVEL"] = str(os.cpu_count())
    compilers = ["module", *(["clang"] if shutil.which("clang++") else [])]
    for preset in (*compilers, "sanitize", "tsan"):
        session.run("cmake", "--workflow", "--preset", preset)
    for preset in compilers:
        _check_kernels(session, Path("build", preset))
        _check_seconds(session, Path("build", preset))
    for module in Path("build", "module").glob("_core*.so"):
        stripped = module.with_suffix(".stripped")
        session.run("strip", "-o", str(stripped), str(module), external=True)
        sizes = [path.stat().st_size / 1e6 for path in (module, stripped)]
        session.log(f"{module}: {sizes[0]:.2f} MB, stripped {sizes[1]:.2f} MB")


def _isa_of(path: Path) -> str:
    """Return the instruction set that an object of the kernels was compiled for."""
    (found,) = re.findall(r"onepass_kernels_(\w+)\.dir", str(path))
    return str(found)


def _check_kernels(session: nox.Session, build: Path) -> None:
    objects = list(build.glob("CMakeFiles/onepass_kernels_*.dir/**/*.o"))
    weak: dict[str, Path] = {}
    kernels: dict[str, int] = {}
    for path in objects:
        for line in _output("nm", str(path)):
            *_, kind, name = line.split()
            # A unit's own functions; a clone of one has a dot in its name.
            if kind == "t" and "run_kernel" in name and "." not in name:
                kernels[_isa_of(path)] = kernels.get(_isa_of(path), 0) + 1
            # DW.ref.*: where to find the run-time library's own personality routine; no code.
            is_weak = kind in "WVu" and not name.startswith("DW.ref.")
            # Units of one instruction set may share: whichever the linker takes is compiled alike.
            if is_weak and _isa_of(weak.setdefault(name, path)) != _isa_of(path):
                session.error(f"{path} shares the weak symbol {name} with {weak[name]}")
        if re.search(r"\bvf(n)?m(add|sub)", "\n".join(_output("objdump", "-d", str(path)))):
            session.error(f"{path} contracts to FMA, so its bits would differ")
    if not objects:
        session.error(f"found no kernels in {build}")
    session.log(f"{len(objects)} objects in {build}: no FMA; instruction sets share no weak symbol")
    session.log("kernels: " + ", ".join(f"{isa} {n}" for isa, n in sorted(kernels.items())))


def _check_seconds(session: nox.Session, build: Path) -> None:
    """Print what each unit of the kernels took to compile (cpp/tests/cpu_seconds.py)."""
    slow = []
    found = sorted(build.glob("CMakeFiles/onepass_kernels_*.dir/**/*.o.seconds"))
    for path in found:
        seconds, unit = float(path.read_text()), path.name.partition(".")[0]
        session.log(f"{seconds:5.1f} s of CPU: {unit}, {_isa_of(path)}")
        if path.parent.name == "rules" and seconds > MOST_SECONDS:
            slow.append(unit)
    if slow or not found:
        got = ", ".join(slow) or "no times"
        session.error(f"{build}: expected at most {MOST_SECONDS} s a rule, got more for {got}")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into build/docs; a warning is an error."""
    session.install(".[docs]")
    _run_all(session, DOCS)


@nox.session
def distributions(session: nox.Session) -> None:
    """Build the source distribution, and the wheel from that: it holds all that it needs."""
    session.install("build")
    shutil.rmtree(DISTRIBUTIONS, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(DISTRIBUTIONS), ".", silent=True)


@nox.session(reuse_venv=False, requires=["distributions"])
@nox.parametrize("extra", ["", *EXTRAS])
def extras(session: nox.Session, extra: str) -> None:
    """Install the wheel with one extra alone, in a fresh environment, and do what that is for."""
    if extra not in JOBS:
        session.error(f"the extra {extra!r} has no job: what is it for?")
    wheel = _wheel()
    session.install(f"{wheel}[{extra}]" if extra else wheel)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    _run_all(session, JOBS[extra])


@nox.session(reuse_venv=False, requires=["distributions"])
def examples(session: nox.Session) -> None:
    """Install the wheel and what the examples are written for, and run these and their tests."""
    session.install(_wheel(), "--requirement", "examples/requirements.txt")
    session.run("python", "-m", "pytest", "-q", "examples")


@nox.session
def bench(session: nox.Session) -> None:
    """Print the tables of the README."""
    session.install("torch==2.13.0")
    session.install(".[bench]", "bitsandbytes")  # with torch: alone it would bring another one
    session.run("python", "bench/run.py", *session.posargs)


@nox.session
def cold(session: nox.Session) -> None:
    """Count the cold cache lines of small calls, and hold them to their budgets; needs valgrind."""
    session.install(".")
    session.run("python", "bench/cold_lines.py", *session.posargs)


def _wheel() -> str:
    (wheel,) = DISTRIBUTIONS.glob("*.whl")
    return str(wheel)


def _run_all(session: nox.Session, commands: Iterable[tuple[str, ...]]) -> None:
    for command in commands:
        session.run(*command)


def _output(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
