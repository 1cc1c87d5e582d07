"""A plugin for a Python that QEMU runs: `PYTHON=... pytest -p under_qemu`, with what starts it.

All takes twenty times as long there, and the system cannot start the program that Python is.
"""

import os
import sys

from hypothesis import HealthCheck, settings

sys.executable = os.environ["PYTHON"]


def pytest_configure():
    """After conftest.py, whose profile this one takes the place of."""
    only_slow = [HealthCheck.too_slow]
    settings.register_profile("under_qemu", deadline=None, suppress_health_check=only_slow)
    settings.load_profile("under_qemu")
