"""DeepSpeed's own tests against our operations; the page's examples, and its table.

No package has DeepSpeed's tests, so that they are not there everywhere.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import onepass.deepspeed

ROOT = Path(__file__).parents[3]
TESTS = os.environ.get("DEEPSPEED_TESTS")


@pytest.mark.skipif(
    not TESTS,
    reason="DEEPSPEED_TESTS: expected the folder `tests` of DeepSpeed's repository, got nothing",
)
def test_own_tests():
    """All pass but one, which has no float16 for AdamW of PyTorch, in five sizes."""
    run = Path(__file__).with_name("run_own_tests.py")
    command = [sys.executable, str(run), "ours", str(TESTS)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    skipped = re.findall(r"^SKIPPED \[(\d+)\] (.*)", done.stdout, re.M)
    assert sum(int(count) for count, _ in skipped) <= 5, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 31, done.stdout


@pytest.mark.filterwarnings("ignore")  # DeepSpeed's use of PyTorch
def test_documentation(check_documentation):
    try:
        check_documentation("deepspeed")
    finally:
        onepass.deepspeed.uninstall()


def test_table(monkeypatch, capsys):
    """A line of the benchmark for each of the page's, with ours also in the place of theirs."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import offload

    threads = torch.get_num_threads()
    onepass.deepspeed.install()
    try:
        monkeypatch.setattr("sys.argv", ["", "--elements", "1000", "--seconds", "0.01"])
        offload.main()
    finally:
        torch.set_num_threads(threads)
        onepass.deepspeed.uninstall()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1000")]
    assert len(rows) == len(offload.LINES)
    page = (ROOT / "docs" / "hosts" / "deepspeed.md").read_text()
    (table,) = re.findall(r"^\| step \|.*\n\|[- :|]*\n((?:\|.*\n)*)", page, re.M)
    assert len(table.splitlines()) == len(rows)
