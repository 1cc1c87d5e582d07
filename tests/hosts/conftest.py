"""What the tests beside other libraries share."""

import doctest
import importlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from examples_in_text import EXAMPLE, run_examples

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def check_documentation(tmp_path, monkeypatch, capsys) -> Callable[[str], None]:
    """Run the examples of a host's page, and those of its adapter's docstrings, if it has one."""

    def check(host: str) -> None:
        if find_spec(f"onepass.{host}"):
            failed, tried = doctest.testmod(importlib.import_module(f"onepass.{host}"), globs={})
            assert tried
            assert failed == 0, capsys.readouterr().out
        page = (ROOT / "docs" / "hosts" / f"{host}.md").read_text()
        assert EXAMPLE.search(page)
        monkeypatch.chdir(tmp_path)  # an example may save something
        run_examples(page, capsys)

    return check
