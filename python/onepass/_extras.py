"""Packages that the core does without: an extra installs them, and they are imported late."""

import os
import sys
from contextlib import suppress
from importlib import import_module


class MissingExtraError(ImportError):
    """What an extra would install is not there."""


def require(extra: str, **distributions: str) -> None:
    """Raise MissingExtraError, which names the `pip install`, where a module cannot be imported.

    `distributions` are the names that PyPI knows the modules by: ``sklearn="scikit-learn"``.
    """
    missing = []
    for module, distribution in distributions.items():
        try:
            _import(module)
        except ImportError:
            missing.append(distribution)
    if missing:
        install = f"python -m pip install 'onepass[{extra}]'"
        raise MissingExtraError(f"needs {', '.join(missing)}: {install}")


def _import(module: str) -> None:
    """Import a module; matplotlib also where ``MPLBACKEND`` names a backend that is not there.

    Jupyter exports its own to every process that it starts, and matplotlib refuses to be imported
    where that is not installed. Pictures that go into files need none.
    """
    backend = os.environ.get("MPLBACKEND")
    if module != "matplotlib" or module in sys.modules or not backend:
        import_module(module)
        return
    del os.environ["MPLBACKEND"]
    try:
        matplotlib = import_module(module)
    finally:
        os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):  # the one that stopped the import
        matplotlib.rcParams["backend"] = backend  # as matplotlib does it
