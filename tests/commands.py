"""What the tests of the commands share."""

import json
import os
import subprocess
import sys


def run(*arguments, **environment):
    """Run a command in a process of its own, where a warning is an error."""
    return _run("-m", "onepass", *map(str, arguments), **environment)


def run_code(code, **environment):
    """Run a program likewise."""
    return _run("-c", code, **environment)


def _run(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def start(*arguments, **environment):
    """Begin a command that Ctrl-C reaches: what runs in the background may inherit to ignore it."""
    code = """
import signal, sys
from onepass.lab.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def strict_json(path):
    """Return what a file holds, without the constants that JSON does not have."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def draw_nothing(monkeypatch):
    """Let `compare` and `tune` leave out what takes most of the time of a small run."""
    from onepass.lab._picture import new_figure
    from onepass.lab.compare import page, report
    from onepass.lab.tune import report as tune

    for module, name in ((report, "draw_curves"), (page, "draw_times"), (page, "draw_rates")):
        monkeypatch.setattr(module, name, lambda _: new_figure(1, 1))
    monkeypatch.setattr(tune, "draw", lambda *_: [])


def draw_coarsely(monkeypatch):
    """Let `surface` draw its maps of fewer points, which is most of what a picture takes."""
    from onepass.lab.surface import panels

    monkeypatch.setattr(panels, "GRID", 31)
