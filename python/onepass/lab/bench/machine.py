"""What times depend on: the machine, and the versions of all who are timed."""

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from onepass import runtime


def machine(others: Iterable[str]) -> dict[str, str]:
    """Return what a table of times has above it; `others` are the distributions timed beside us."""
    info = runtime.info()
    return {
        "machine": f"{info['cpu']}, {os.cpu_count()} cores",
        "isa": f"{info['isa']} ({info['isa_reason']})",
        "threads": f"{info['num_threads']} ({info['num_threads_reason']})",
        "load": f"{os.getloadavg()[0]:.2f} (what else runs; more than a little spoils the figures)",
        "compiler": info["compiler"],
        "versions": f"onepass {info['version']}, Python {info['python']}, NumPy {info['numpy']}, "
        + ", ".join(map(_installed, others)),
    }


def _installed(distribution: str) -> str:
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return f"no {distribution} (not installed: left out)"
