"""The modules of the package and its public names, with the extras of the tests installed."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import onepass

ADAPTERS = tuple(
    folder.parent.name for folder in Path(__file__).parent.glob("hosts/*/requirements.txt")
)
"""Modules that are for another library, and named after it: `hosts/` has their tests."""

MODULES = ["onepass"] + [
    module
    for module in (name for _, name, _ in pkgutil.iter_modules(onepass.__path__, "onepass."))
    if module.rpartition(".")[2] not in (*ADAPTERS, "__main__")
]
MODULES += [
    module.name
    for package in MODULES[1:]
    if (path := getattr(importlib.import_module(package), "__path__", None))
    for module in pkgutil.walk_packages(path, f"{package}.")
]
PUBLIC = [
    f"{module}.{name}"
    for module in MODULES
    if "._" not in module
    for name in getattr(importlib.import_module(module), "__all__", ())
    if not inspect.ismodule(getattr(importlib.import_module(module), name))  # its names are there
]
