"""Pages and pictures that the package itself makes, in `generated/`, before Sphinx reads the rest.

The pages' own code runs there too, that of included texts as well: ```` ```python ```` blocks, one
after the other, and the commands in ```` ```bash ```` blocks, whose output goes to `<page>.txt`. So
a picture on a page is what the code above it has drawn.

Lists that come from docstrings stand in the written pages themselves, for those who read them in
the repository: `python docs/sphinx_pages.py` writes them anew, and a test compares.
"""

import argparse
import ast
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, redirect_stdout
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onepass
import pictures
from onepass.lab import cli
from onepass.lab.surface import SURFACES, Surface
from onepass.optim import Optimizer

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
GENERATED = HERE / "generated"
TO_ROOT = "../../.."  # from an optimizer's page
COLUMNS = "88"  # of what commands print

LIST = re.compile(r"(?<=^<!-- list of )(\w+): (.+?) -->\n.*?^(?=<!-- end of list -->)", re.M | re.S)
TO_SOURCE = re.compile(r"\[`(\w+)`\]\((?:\.\./)*python/onepass/optim/\w+\.py\)")
TO_BENCH = re.compile(r"(?<=\]\()\.\./(?=(?:\.\./)*bench/\w+\.md\))")
INCLUDE = re.compile(r"^```\{include\} (\S+)\n(.*?)^```\n?", re.M | re.S)
OPTION = re.compile(r"^:([\w-]+): (.*)$", re.M)

COMMANDS = """\
Each of these is also `python -m onepass ...`. Tab can [complete](../install.md#completion) them.
"""

REGISTRY = onepass.optim.registry
STATED = {
    *("rule", "row", "checks", "defaults", "cases", "group_checks", "step_if_missing"),
    *("check_together", "initial_state", "parts", "reference", "scalars"),
    *("measure", "weigh", "direct", "finish_directions"),
}
"""What a subclass states and nobody calls."""


def setup(app: "Sphinx") -> dict[str, bool]:
    """Generate before anything is read."""
    app.connect("builder-inited", lambda _: generate())
    app.connect("source-read", _lead_to_the_site)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def generate() -> None:
    """Write `generated/`, where it is missing or older than what it is made from."""
    if not _is_stale():
        return
    with TemporaryDirectory(dir=HERE, prefix=".generated") as folder:
        new = Path(folder, "new")
        for folder_of_pictures in ("optimizers", "gallery"):
            (new / folder_of_pictures).mkdir(parents=True)
        os.environ["COLUMNS"] = COLUMNS
        for path, text in pages().items():
            (new / path).write_text(text)
        # Each page and picture by itself, on all cores; pages first, since some of them train.
        with chdir(new), ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(_run, page) for page in sorted(HERE.glob("*.md"))]
            jobs += [pool.submit(_draw_optimizer, name) for name in REGISTRY]
            jobs.append(pool.submit(_draw_others))
            for job in jobs:
                job.result()
        shutil.rmtree(GENERATED, ignore_errors=True)
        new.rename(GENERATED)  # now that all of it is there


def _is_stale() -> bool:
    if not GENERATED.exists():
        return True
    package = Path(onepass.__file__).parent
    written = [*HERE.parent.glob("*.md"), *HERE.glob("*.md"), *HERE.glob("*.py")]
    sources = [*written, *package.rglob("*.py")]
    return max(path.stat().st_mtime for path in sources) > GENERATED.stat().st_mtime


def pages() -> dict[str, str]:
    """Return the pages and the parts of pages, by their paths in `generated/`."""
    classes = REGISTRY.values()
    return {
        **{f"optimizers/{cls.__name__}.rst": optimizer_page(cls) for cls in classes},
        "differs.inc": "\n".join(_differs(cls) for cls in classes),
        "gallery-optimizers.inc": _grid(_optimizer_figure(cls) for cls in classes),
        "gallery-schedules.inc": _grid(map(_schedule_figure, pictures.SCHEDULES)),
        "gallery-surfaces.inc": _grid(map(_surface_figure, SURFACES.values())),
        "commands.md": commands_page(),
    }


def optimizer_page(cls: type[Optimizer]) -> str:
    """Return a class's page: picture, docstring, and its rule in NumPy and in C++."""
    name, owner = cls.__name__, REGISTRY[cls.row.name]  # AdamW's rule is Adam's
    source = f"{TO_ROOT}/python/{owner.__module__.replace('.', '/')}.py"
    rule = f".. literalinclude:: {source}\n   :pyobject: {owner.__name__}"
    return f"""{name}
{"=" * len(name)}

.. autoclass:: onepass.{name}

Every optimizer also has the methods and options of `onepass.Optimizer`. Without a class around it
the rule is `onepass.kernels.{cls.rule}`.

Down two surfaces
-----------------

Plain gradient descent is there to be compared with. Learning rates are in the legend; what else is
drawn and how is on :doc:`/surface`.

.. image:: {name}-neuron.png
   :alt: Paths of {name} on the error surface of one neuron, and loss against steps

.. image:: {name}-rosenbrock.png
   :alt: Paths of {name} in Rosenbrock's valley, and loss against steps

The rule in NumPy
-----------------

The numbers of a step, computed once and in double, and what they do to each element. Their results
equal the kernel's bit for bit.

{rule}.scalars

{rule}.reference

The rule in C++
---------------

.. literalinclude:: {TO_ROOT}/cpp/include/onepass/rules/{cls.row.name}.hpp
   :language: cpp
"""


def _lead_to_the_site(_app: "Sphinx", _page: str, source: list[str]) -> None:
    """Lead to pages of the site where a page leads to files of the repository."""
    source[0] = TO_BENCH.sub("", source[0])
    source[0] = TO_SOURCE.sub(r"{doc}`\1 </generated/optimizers/\1>`", source[0])


def with_lists(text: str) -> str:
    """Return a page's text with its lists as the docstrings have them."""

    def written(found: re.Match[str]) -> str:
        kind, names = found.groups()
        things = [(name, resolve_name(f"onepass.{name}")) for name in names.split()]
        lines = [line for name, thing in things for line in LISTS[kind](name, thing)]
        return f"{kind}: {names} -->\n\n{''.join(lines)}\n"

    return LIST.sub(written, text)


def _signatures(name: str, thing: Any) -> Iterable[str]:
    """List a function or class, or all those of a module."""
    if inspect.ismodule(thing):
        for each in thing.__all__:
            yield from _signatures(f"{name}.{each}", getattr(thing, each))
        return
    yield f"* `op.{name}{_arguments(thing)}`: {_first_sentence(thing)}\n"


def _methods(_name: str, cls: type) -> Iterable[str]:
    for each, thing in inspect.getmembers(cls, inspect.isroutine):
        if not each.startswith("_") and each not in STATED:
            yield f"* `{each}{_arguments(thing)}`: {_first_sentence(thing)}\n"


def _arguments(thing: Any) -> str:
    """Return what stands in the brackets of a call, with short defaults."""
    shown = []
    for argument in inspect.signature(thing).parameters.values():
        default = argument.default
        if isinstance(default, type) and default is not argument.empty:
            default = _Name(default.__name__)
        elif isinstance(default, float):
            default = _Name(f"{default:g}")
        shown.append(argument.replace(annotation=argument.empty, default=default))
    if shown and shown[0].name == "self":
        del shown[0]
    return str(inspect.Signature(shown))


class _Name(str):
    """A text that a signature shows without quotation marks."""

    __slots__ = ()
    __repr__ = str.__str__


def _first_sentence(thing: Any) -> str:
    return _markdown(_doc(thing).partition("\n\n")[0])


def _attributes(_name: str, cls: type) -> Iterable[str]:
    section = _doc(cls).partition("Attributes\n----------\n")[2].partition("\n\n")[0]
    for entry in re.split(r"\n(?=\S)", section):
        head, _, words = entry.partition("\n")
        names = head.partition(" :")[0].replace(", ", "`, `")
        yield f"* `{names}`: {_markdown(words)}\n"


def _markdown(text: str) -> str:
    text = re.sub(r":math:`([^`]*)`", r"$\1$", " ".join(text.split()))
    return text.replace("``", "`")


def _summaries(_name: str, registry: dict[str, type[Optimizer]]) -> Iterable[str]:
    return map(_summary, registry.values())


def _link(cls: type[Optimizer]) -> str:
    return f"[`{cls.__name__}`](../python/{cls.__module__.replace('.', '/')}.py)"


def _summary(cls: type[Optimizer]) -> str:
    first = _doc(cls).partition("\n")[0]
    says = (first.partition(": ")[2] or first).rstrip(".")
    names = [name for name in cls.state_names() if name]
    keeps = f"keeps `{'`, `'.join(names)}`" if names else "keeps nothing"
    if cls.row.memory:
        count = ("one number", "two numbers", "three numbers")[len(cls.row.memory) - 1]
        whose = "for all parameters together" if cls.row.sums_over_all else "for each parameter"
        keeps += f" and {count} {whose}, `{'`, `'.join(cls.row.memory)}`"
    # In float32: parameter and state are read and written, the gradient is read; for a direction
    # gradient and state once more, and the direction is written and read.
    directed = cls.row.is_directed(cls.defaults)
    size = 12 + 8 * len(names) + directed * (12 + 4 * len(names))
    moves = f"moves {size} bytes an element" + ", beside matrix products" * directed
    moves += ", and measures before" * cls.row.measures(cls.defaults)
    return f"* {_link(cls)}: {says}; {keeps}, {moves}\n"


def _differs(cls: type[Optimizer]) -> str:
    found = re.search(r"^Differs from\n+(.*?)(?=^\w[^\n]*\n---|\Z)", _doc(cls), re.M | re.S)
    assert found, f"{cls.__name__}: expected a paragraph 'Differs from'"
    return f"**{cls.__name__}** (:doc:`page </generated/optimizers/{cls.__name__}>`)\n\n{found[1]}"


def lesson(cls: type[Optimizer]) -> list[str]:
    """Return a class's sentences on its state, on when to take it, and on its learning rates."""
    paragraph = " ".join(_doc(cls).split("\n\n")[1].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)


def _rates(_name: str, registry: dict[str, type[Optimizer]]) -> Iterable[str]:
    for cls in registry.values():
        *_, rates = lesson(cls)
        yield f"* {_link(cls)} ({cls.defaults['lr']:g}): {_markdown(rates)}\n"


LISTS = {
    "signatures": _signatures,
    "methods": _methods,
    "attributes": _attributes,
    "summaries": _summaries,
    "rates": _rates,
}


def _grid(figures: Iterable[str]) -> str:
    return f"````{{container}} gallery\n{''.join(figures)}````\n"


def _optimizer_figure(cls: type[Optimizer]) -> str:
    name = cls.__name__
    alt = f"Contour map of the error surface of one neuron with the path of {name}"
    page = f"generated/optimizers/{name}"
    return _figure(f"{page}.html", f"gallery/{name}.png", alt, f"{{doc}}`{name} <{page}>`")


def _schedule_figure(code: str) -> str:
    name = code.partition("(")[0]
    target = f"schedules.html#onepass.schedules.{name}"
    alt = f"The value of {name} against the step"
    caption = f"{{py:class}}`{name} <onepass.schedules.{name}>`"
    return _figure(target, f"gallery/{name}.png", alt, caption)


def _surface_figure(surface: Surface) -> str:
    alt = f"Contour map of the surface {surface.name}, with its minima and the usual start"
    caption = f"{{doc}}`{surface.title} <surface>`"
    return _figure("surface.html", f"gallery/{surface.name}.png", alt, caption)


def _figure(target: str, path: str, alt: str, caption: str) -> str:
    options = f":alt: {alt}\n:target: {target}\n"
    return f"```{{figure}} generated/{path}\n{options}\n{caption}\n```\n"


def _doc(thing: Any) -> str:
    doc = inspect.getdoc(thing)
    assert doc
    return doc


def commands_page() -> str:
    """Return the page of what `--help` says."""
    text = f"# Command line\n\n{COMMANDS}"
    for name, parser in commands().items():
        text += f"\n## onepass {name}\n\n```text\n{parser.format_help()}```\n"
    return text


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the commands' parsers by name."""
    actions = cli._parser()._actions
    (found,) = (a.choices for a in actions if isinstance(a, argparse._SubParsersAction))
    return dict(found)


def rendered(page: Path) -> str:
    """Return a page's text as its reader sees it: with what it includes."""

    def included(directive: re.Match[str]) -> str:
        path, options = directive.groups()
        source = page.parent / path
        if GENERATED in source.parents:
            return pages()[str(source.relative_to(GENERATED))]
        text = rendered(source)
        marks = {name: ast.literal_eval(mark) for name, mark in OPTION.findall(options)}
        if after := marks.get("start-after"):
            _, found, text = text.partition(after)
            assert found, f"{page}: {path} has no {after!r}"
        if before := marks.get("end-before"):
            text, found, _ = text.partition(before)
            assert found, f"{page}: {path} has no {before!r}"
        return text

    return INCLUDE.sub(included, page.read_text())


def code_blocks(page: Path, language: str) -> list[str]:
    """Return what stands in a page's blocks of this language, in those that it includes too."""
    return blocks(rendered(page), language)


def blocks(text: str, language: str) -> list[str]:
    """Return what stands in the blocks of this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def _run(page: Path) -> None:
    scope: dict[str, object] = {}
    with redirect_stdout(StringIO()):  # a test compares what is printed with what the page shows
        for block in code_blocks(page, "python"):
            exec(compile(block, page.name, "exec"), scope)
    for line in "".join(code_blocks(page, "bash")).splitlines():
        command = [sys.executable, "-m", *shlex.split(line)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        with Path(f"{page.stem}.txt").open("a") as file:
            file.write(printed)


def _draw_optimizer(rule: str) -> None:
    cls = REGISTRY[rule]
    for surface in ("neuron", "rosenbrock"):
        pictures.optimizer(cls, surface, Path("optimizers", f"{cls.__name__}-{surface}.png"))


def _draw_others() -> None:
    pictures.gallery(Path("gallery"))
    pictures.schedules(Path("schedules.png"))
    pictures.initialisers(Path("init.png"))
    pictures.line_searches(Path("line_search.png"))


if __name__ == "__main__":
    for path in HERE.glob("*.md"):
        path.write_text(with_lists(path.read_text()))
