"""What runs and why: processor, instruction set, threads, build.

Functions
---------
set_num_threads, get_num_threads
    How many threads a step may use.
info
    Version, compiler, processor, instruction sets and threads of this process.
"""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from onepass import _core

__all__ = ["get_num_threads", "info", "set_num_threads"]


def set_num_threads(num_threads: int | None) -> None:
    """Set how many threads a step uses from now on; None goes back to the default.

    The default is `OMP_NUM_THREADS` where it is set, else the number of cores that this process
    may use (its affinity and its cgroup's quota). Results never depend on the number.

    Parameters
    ----------
    num_threads : int >= 1 or None
        More than 256 are taken as 256.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or less than 1.

    Examples
    --------
    >>> import onepass as op
    >>> op.set_num_threads(2)
    >>> op.get_num_threads()
    2
    >>> op.set_num_threads(None)
    """
    if num_threads is None:
        _use(*_DEFAULT)
    else:
        _use(_core.check_num_threads(num_threads), "onepass.set_num_threads")


def get_num_threads() -> int:
    """Return how many threads a large step uses; small ones use fewer."""
    return _num_threads()[0]


def info() -> dict[str, Any]:
    """Return what this process runs: version, build, processor, instruction sets, threads and why.

    Returns
    -------
    dict
        ``version``, ``python``, ``numpy``, ``compiler``, ``flags``, ``cpu`` (its name, vendor,
        family and model, as far as the system tells them), ``isa`` (in use),
        ``isa_reason``, ``isas`` (those built: name -> whether this machine runs it),
        ``num_threads``, ``num_threads_reason``.

    Examples
    --------
    >>> import onepass as op
    >>> op.runtime.info()["isa"] in op.runtime.info()["isas"]
    True
    """
    threads, reason = _num_threads()
    forced = os.environ.get("ONEPASS_ISA")
    return {
        "version": _core.version,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "compiler": _core.compiler,
        "flags": _core.flags,
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "isa": _core.isa,
        "isa_reason": f"ONEPASS_ISA={forced}" if forced else "the best that this machine runs",
        "isas": dict(_core.isas),
        "num_threads": threads,
        "num_threads_reason": reason,
    }


def _cpu(cpuinfo: Path) -> str:
    """Return what processor this is: names are shared by many, families and models by few."""
    try:
        lines = cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    said = [facts["vendor_id"]] if "vendor_id" in facts else []
    for label, fact in {
        "family": "cpu family",
        "model": "model",
        "implementer": "CPU implementer",  # of ARM's, who have no names here
        "part": "CPU part",
    }.items():
        if fact in facts:
            said.append(f"{label} {facts[fact]}")
    return f"{name} ({', '.join(said)})" if said else name


def _use(num_threads: int, reason: str) -> None:
    global _in_use  # noqa: PLW0603
    _in_use = num_threads, reason
    _core.use_threads(num_threads)


def _num_threads() -> tuple[int, str]:
    if _core.in_forked_child():
        return 1, "serial, because this process was forked"
    return _in_use


def _default_num_threads() -> tuple[int, str]:
    # OMP_NUM_THREADS may be a list, one number per nesting level.
    from_environment = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if from_environment.isdecimal() and int(from_environment) > 0:
        return min(int(from_environment), _core.max_threads), "OMP_NUM_THREADS"
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if quota is not None and quota < cores:
        return max(1, int(quota)), f"the cgroup's quota of {quota:g} cores"
    return cores, "the cores this process may use"


def _cgroup_quota(membership: Path, root: Path) -> float | None:
    """Return the cores that the cgroups of this process grant, or None if they set no limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = root / "cpu" if "cpu" in controllers.split(",") else root
        if controllers and base == root:
            continue
        # A limit may sit at any level; inside a container the path may not be visible at all.
        group = base / path.strip("/")
        for directory in (group, *group.parents):
            quotas.append(_read_quota(directory))
            if directory == base:
                break
    return min((quota for quota in quotas if quota is not None), default=None)


def _read_quota(directory: Path) -> float | None:
    try:
        if (directory / "cpu.max").exists():  # version 2
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text()
            period = (directory / "cpu.cfs_period_us").read_text()
        limit = int(quota) / int(period)
    except (OSError, ValueError):  # not there, or "max"
        return None
    return limit if limit > 0 else None


_DEFAULT = _in_use = _default_num_threads()
_use(*_DEFAULT)
