"""The examples in the documentation run, and the README keeps its word."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import onepass

ROOT = Path(__file__).parent.parent
MODULES = ["onepass"] + [
    module.name
    for module in pkgutil.walk_packages(onepass.__path__, "onepass.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_doctests_are_found():
    finder = doctest.DocTestFinder()
    for cls in onepass.optim.registry.values():
        assert any(test.examples for test in finder.find(cls)), cls


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.S)


@pytest.mark.parametrize("name", ["README.md"])
def test_the_code_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it may save something
    blocks = python_blocks(ROOT / name)
    assert blocks
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), scope)


def test_every_promise_of_the_readme_names_a_test_that_exists():
    readme = (ROOT / "README.md").read_text()
    promises = re.search(r"## Promises\n(.*?)\n## ", readme, re.S).group(1)
    named = re.findall(r"`tests/(test_\w+\.py)(?:::(\w+))?`", promises)
    rows = [line for line in promises.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 8
    for row in rows:
        assert "`tests/test_" in row, row
    for file, test in named:
        text = (ROOT / "tests" / file).read_text()
        assert not test or f"def {test}" in text or f"class {test}" in text, (file, test)
