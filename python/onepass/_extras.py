"""Packages that the core does without: an extra installs them, and they are imported late."""

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
            import_module(module)
        except ImportError:
            missing.append(distribution)
    if missing:
        install = f"python -m pip install 'onepass[{extra}]'"
        raise MissingExtraError(f"needs {', '.join(missing)}: {install}")
