"""Without an extra, all that needs it says which one that is; all else does without."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest

import onepass as op
import sphinx_pages
from names import PUBLIC

ROOT = Path(__file__).parent.parent
PACKAGE = Path(op.__file__).parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

PICTURES = {
    "onepass.lab.surface.picture": (
        "op.surface.picture(op.surface.SURFACES['ravine'], ['SGD'], 'out')"
    ),
    "onepass.ema.picture": "op.ema.picture([1, 2], beta=0.9, path='out')",
    "onepass.lab.search.LearningRates": "op.search.learning_rate(float).picture('out')",
    "onepass.lab.search.RangeTest": """
opt = op.SGD(np.ones(2), lr=0.1)
op.search.range_test(opt, lambda: (1.0, np.ones(2)), steps=3).picture('out')""",
}
COMMANDS = {
    name: f"sys.exit(cli.main(['{name}', '--out', 'out']))"
    for name in sphinx_pages.commands()
    if name != "info"
}
FEATURES = {
    "formats": [
        "op.AdamW(np.ones(8, np.float32), state_format='bf16')",
        "op.AdamW(np.ones(5000, np.float32)).load('bf16.npz')",
    ],
    "plot": list(PICTURES.values()),
    "torch": ["import onepass.torch"],
    "thinc": ["import onepass.thinc"],
    "progress": ["op.minimize(lambda x: (x @ x, 2 * x), np.ones(2), progress=True)"],
    **{name: [code] for name, code in COMMANDS.items()},
    "completion": ["import os; os.environ['_ARGCOMPLETE'] = '1'; sys.exit(cli.main([]))"],
    "sklearn": ["import onepass.sklearn"],
    "deepspeed": ["import onepass.deepspeed"],
}

# As where nothing is installed but NumPy and the package.
BARE = """
import sys

class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {"onepass", "numpy", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Bare())
import numpy as np
import onepass as op
from onepass.lab import cli
"""


def run_bare(code, folder):
    command = [sys.executable, "-W", "error", "-c", f"{BARE}\n{code}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def brings(extra):
    """Return the distributions that an extra brings, by itself and through other extras."""
    inner = [re.fullmatch(r"onepass\[(\w+)\]", requirement) for requirement in EXTRAS[extra]]
    own = {re.match(r"[\w-]+", requirement)[0] for requirement in EXTRAS[extra]} - {"onepass"}
    return own.union(*(brings(match[1]) for match in inner if match))


def required():
    """Yield the extra of each call of `require` in the package."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require":
                yield node.args[0].value


@pytest.mark.parametrize(
    ("extra", "code"), [(extra, code) for extra, codes in FEATURES.items() for code in codes]
)
def test_what_needs_an_extra_names_it(extra, code, tmp_path):
    w = np.ones(5000, np.float32)  # enough for state in bfloat16
    opt = op.AdamW(w, state_format="bf16")
    opt.step(w.copy())
    opt.save(tmp_path / "bf16.npz")
    done = run_bare(code, tmp_path)
    message = rf"needs ([\w, -]+): python -m pip install 'onepass\[{extra}\]'"
    assert (found := re.fullmatch(rf".*: {message}", done.stderr.splitlines()[-1])), done.stderr
    assert set(found[1].split(", ")) <= brings(extra)
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bf16.npz"]


def test_every_feature_that_needs_an_extra_is_tried():
    drawn = {
        name
        for name in PUBLIC
        if name.endswith("picture") or hasattr(resolve_name(name), "picture")
    }
    assert drawn == set(PICTURES)
    assert {*required()} == {*FEATURES}


def test_all_else_does_without_extras(tmp_path):
    modules = sorted({name.rpartition(".")[0] for name in PUBLIC})
    code = f"import {', '.join(modules)}\nsys.exit(cli.main(['info']))"
    done = run_bare(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_extra_is_on_the_page_that_tells_how_to_install():
    page = (ROOT / "docs" / "install.md").read_text()
    rows = "\n".join(re.findall(r"^\| (`.*?) \|", page, re.M))
    assert sorted(re.findall(r"`(\w+)`", rows)) == sorted(EXTRAS)
