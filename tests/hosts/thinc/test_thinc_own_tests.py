"""Thinc's own tests pass with our class in the place of Thinc's, and the documentation holds."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

LAYERS = ("linear", "sparse_linear", "lstm", "basic_tagger", "mnist", "shim")
PARTS = (
    *("test_optimizers", "test_config", "test_serialize", "model"),
    *(f"layers.test_{name}" for name in LAYERS),
)
"""The parts of Thinc's tests, in its wheel, that know optimizers and need no other framework."""


def start(report, *plugin):
    """Start these tests; as elsewhere the warnings of Thinc's tests are not ours."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin]
    command += ["--junitxml", report, "--pyargs", *(f"thinc.tests.{part}" for part in PARTS)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(
        command, cwd=report.parent, env=environment, stdout=subprocess.PIPE, text=True
    )


def outcomes(process, report):
    """Return how each test ended."""
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    found = ElementTree.parse(report).iter("testcase")
    return {
        (case.get("classname"), case.get("name"), i): [child.tag for child in case]
        for i, case in enumerate(found)
    }


def test_thincs_tests_pass_with_our_class(tmp_path):
    reports = tmp_path / "theirs.xml", tmp_path / "ours.xml"
    started = [start(reports[0]), start(reports[1], "-p", "onepass_in_thinc")]  # both at once
    theirs, ours = map(outcomes, started, reports)
    assert ours == theirs
    passed = [test for test, children in ours.items() if "skipped" not in children]
    assert len(passed) >= 120
    assert any(name == "test_optimizer_init" for _, name, _ in passed)


def test_documentation(check_documentation):
    check_documentation("thinc")
