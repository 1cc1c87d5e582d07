"""The C++ headers as programs of others compile them: the programs of the site, and the flags."""

import ctypes
import functools
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import onepass
import sphinx_pages

INCLUDE = Path(onepass.get_include())
PAGE = Path(sphinx_pages.__file__).parent / "embedding.md"
COMPILERS = [name for name in ("c++", "clang++") if shutil.which(name)]

pytestmark = pytest.mark.skipif(not COMPILERS, reason="there is no C++ compiler")


def program(name):
    """Return the program of the page that has `name` in it."""
    (text,) = [code for code in sphinx_pages.code_blocks(PAGE, "cpp") if name in code]
    return text


def commands():
    """Return the page's commands that give all flags, by what they write."""
    found = {}
    for command in sphinx_pages.code_blocks(PAGE, "console"):
        words = shlex.split(
            command.replace("\\\n", " ").replace(
                "\"$(python -c 'import onepass; print(onepass.get_include())')\"", str(INCLUDE)
            )
        )
        if "-ffp-contract=off" in words:
            found[words[-1]] = words
    return found


def run(command, folder):
    return subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True).stdout


def python_of_the_page():
    scope = {}
    exec("".join(sphinx_pages.code_blocks(PAGE, "python")), scope)
    return scope


def test_the_first_program_gives_the_bits_of_the_python_above_it(tmp_path):
    (tmp_path / "adam.cpp").write_text(program("onepass::Adam<float"))
    run(commands()["adam"], tmp_path)
    printed = run(["./adam"], tmp_path)
    expected = python_of_the_page()["param"]
    assert [float.fromhex(line) for line in printed.split()] == expected.tolist()


def test_a_rule_of_ones_own_gives_the_bits_of_scikit_learn(tmp_path):
    """Also where gradients are 0, opposite, tiny, infinite or NaN, over every kind of tile."""
    t_sne = pytest.importorskip("sklearn.manifold._t_sne")
    (tmp_path / "gains.cpp").write_text(program("struct Gains"))
    run(commands()["gains.so"], tmp_path)
    descend = ctypes.CDLL(str(tmp_path / "gains.so")).descend
    pointer = np.ctypeslib.ndpointer(np.float64, flags="C")
    descend.argtypes = [*[pointer] * 4, ctypes.c_size_t, *[ctypes.c_double] * 3]
    descend.restype = None
    rng = np.random.default_rng(0)
    settings = {"learning_rate": 0.3, "momentum": 0.8, "min_gain": 0.01}

    for size in (1, 63, 64, 65, 513, 5000):
        grads = rng.normal(size=(40, size)) * 10.0 ** rng.integers(-200, 3, size=(40, size))
        grads[rng.random(grads.shape) < 0.1] = 0
        grads[25:, 1::97] = np.inf
        grads[30:, 2::97] = np.nan
        grads[:, 3::97] = 0  # the gain becomes the smallest
        start = rng.normal(size=size)

        given = iter(grads.copy())
        with np.errstate(all="ignore"):
            expected, *_ = t_sne._gradient_descent(
                lambda *_, given=given, **__: (0.0, next(given)),
                start,
                0,
                len(grads),
                n_iter_check=len(grads) + 1,
                **settings,
            )
        param, update, gain = start.copy(), np.zeros(size), np.ones(size)
        for grad in grads:
            descend(
                param,
                grad,
                update,
                gain,
                size,
                *[settings[name] for name in ("learning_rate", "momentum", "min_gain")],
            )
        np.testing.assert_array_equal(param, expected, strict=True)
    assert np.isnan(param).any()
    assert gain.min() == settings["min_gain"]


def test_memory_sums_and_stages_give_the_bits_of_the_kernels(tmp_path):
    (tmp_path / "novograd.cpp").write_text(program("onepass::NovoGrad<double"))
    command = [
        word.replace("adam", "novograd") if word.startswith("adam") else word
        for word in commands()["adam"]
    ]
    run(command, tmp_path)
    printed = run(["./novograd"], tmp_path)

    param, exp_avg, memory = np.full(40000, 2.0), np.zeros(40000), np.zeros(1)
    for step in (1, 2, 3):
        grad = np.arange(param.size) % 512.0
        onepass.kernels.novograd(
            param, grad, exp_avg, memory, step=step, lr=0.1, grad_scale=512.0, max_grad_value=0.5
        )
    assert [float.fromhex(line) for line in printed.split()] == param.tolist()


@functools.cache
def version(compiler):
    """Return whether the compiler is Clang, and its major version."""
    is_clang = "clang" in run([compiler, "--version"], None)
    return is_clang, int(run([compiler, "-dumpversion"], None).partition(".")[0])


def complaints(compiler, flags):
    """Return the exit code and the headers' own errors and warnings of a program with a rule."""
    is_clang, major = version(compiler)
    if major < (14 if is_clang else 12):
        pytest.skip("the compiler is too old to be asked")
    result = subprocess.run(
        [compiler, "-std=c++20", *flags, f"-I{INCLUDE}", "-E", "-x", "c++", "-"],
        check=False,
        input="#include <onepass/rules/sgd.hpp>\n",
        capture_output=True,
        text=True,
    )
    return result.returncode, re.findall(
        r"(error|warning): .*onepass: expected (.*?)[,\"]", result.stderr
    )


FLAGS = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_flags_of_the_page_are_all_that_is_wanted(compiler, tmp_path):
    assert set(FLAGS) <= set(commands()["adam"])
    assert complaints(compiler, FLAGS) == (0, [])
    (tmp_path / "adam.cpp").write_text(program("onepass::Adam<float"))
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
    command = [compiler, "-std=c++20", *FLAGS, *warnings, f"-I{INCLUDE}", "-c", "adam.cpp"]
    run(command, tmp_path)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("flag", FLAGS[1:])
def test_a_forgotten_flag_is_a_warning(compiler, flag):
    is_clang, _ = version(compiler)
    wanted = [] if is_clang and flag == "-fno-trapping-math" else [("warning", flag)]
    flags = [other for other in FLAGS if other != flag]
    assert complaints(compiler, flags) == (0, wanted)
    assert (complaints(compiler, [*flags, "-Werror"])[0] != 0) == bool(wanted)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-ffinite-math-only"])
def test_fast_math_is_an_error(compiler, flag):
    code, found = complaints(compiler, [flag, *FLAGS])
    assert code != 0
    assert found == [("error", "no -ffast-math")]
    assert complaints(compiler, [flag, "-fno-fast-math", *FLAGS]) == (0, [])


@pytest.mark.parametrize("compiler", COMPILERS)
def test_an_older_standard_is_an_error(compiler):
    code, found = complaints(compiler, [*FLAGS, "-std=c++17"])
    assert code != 0
    assert ("error", "C++20") in found


def test_every_header_with_a_loop_or_a_rule_asks_for_the_flags():
    def reached(header):
        found = re.findall(r'#include "(onepass/.*)"', (INCLUDE / header).read_text())
        return {header}.union(*map(reached, found))

    headers = [path.relative_to(INCLUDE).as_posix() for path in INCLUDE.rglob("*.hpp")]
    asked = [
        name
        for name in headers
        if "/rules/" in name or re.search(r"\bfor \(|pragma omp", (INCLUDE / name).read_text())
    ]
    assert len(asked) > len(onepass._core.rules())
    assert all("onepass/flags.hpp" in reached(name) for name in asked)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_nothing_is_fused(compiler, tmp_path):
    """Under Clang, without the flag too, though it fuses what is written before the headers."""
    own = "double before(double a, double b, double c) { return a * b + c; }\n"
    (tmp_path / "adam.cpp").write_text(own + program("onepass::Adam<float"))
    is_clang, _ = version(compiler)
    flags = FLAGS[1:] if is_clang else FLAGS
    command = [compiler, "-std=c++20", "-O3", "-mfma", *flags, f"-I{INCLUDE}", "-S", "adam.cpp"]
    assembly = run([*command, "-o", "-"], tmp_path)
    assert "sqrtps" in assembly
    assert len(re.findall(r"\bvfn?m(?:add|sub)", assembly)) == is_clang


@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_two_names_of_an_instruction_set_share_nothing(compiler, tmp_path):
    (tmp_path / "gains.cpp").write_text(program("struct Gains"))
    weak = {}
    for name in ("", "wide", "narrow"):
        define = [f"-DONEPASS_ISA={name}"] if name else []
        # Unoptimised, so that the compiler inlines nothing of its own accord.
        command = [compiler, "-std=c++20", "-O0", *FLAGS, *define, f"-I{INCLUDE}", "-c"]
        run([*command, "gains.cpp", "-o", "gains.o"], tmp_path)
        found = re.findall(r" [VWu] (\S*onepass\S*)", run(["nm", "gains.o"], tmp_path))
        weak[name] = set(found)
        assert found
    assert not weak["wide"] & weak["narrow"]
    assert not weak[""] & weak["wide"]
