"""The examples in the documentation run, and the README keeps its word."""

import doctest
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import yaml

import onepass
import pictures
import sphinx_pages
from examples_in_text import EXAMPLE, run_examples
from names import ADAPTERS, MODULES, PUBLIC
from onepass.lab import cli
from onepass.lab.surface import SURFACES
from onepass.line_search import backtracking, best_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    """An example imports what it uses, as its reader has to."""
    failed, _ = doctest.testmod(importlib.import_module(name), globs={})
    assert failed == 0


def test_doctests_are_found():
    finder = doctest.DocTestFinder()
    for cls in onepass.optim.registry.values():
        assert any(test.examples for test in finder.find(cls)), cls


def test_every_class_is_in_the_picture_of_its_page():
    for cls in onepass.optim.registry.values():
        assert pictures.forms(cls), cls


def test_every_class_says_what_its_state_is_for_when_to_take_it_and_at_which_rates(every_class):
    state, take, rates = sphinx_pages.lesson(every_class)
    assert re.match(r"(The|Its|It)\b", state)
    assert take.startswith("Take it")
    assert re.search(r"\brates?\b|`lr`", rates)


def signature(cls):
    return inspect.signature(cls).parameters


def test_what_help_shows_of_a_class_is_short(every_class):
    """Its arguments and their defaults, without types; also where it is made in `__new__`."""
    shown = signature(every_class)
    assert "self" not in shown
    assert {each.annotation for each in shown.values()} == {inspect.Parameter.empty}
    made = inspect.signature(every_class.__init__).parameters
    assert list(made) == ["self", *shown]
    assert [each.default for each in shown.values()] == [made[name].default for name in shown]


def test_signatures_name_types_and_do_not_spell_them_out():
    """`Array`, and not ``numpy.ndarray[tuple[...], ...]``."""
    for name in PUBLIC:
        thing = resolve_name(name)
        methods = vars(thing).values() if inspect.isclass(thing) else ()
        for called in (thing, *(getattr(each, "__func__", each) for each in methods)):
            if inspect.isroutine(called):
                signature = str(inspect.signature(called))
                assert "numpy.ndarray[" not in signature, called
                assert "collections.abc." not in signature, called


def test_the_map_of_the_package_names_what_there_is():
    names = re.findall(r"`(\w+)`", onepass.__doc__.partition("Each of these")[2])
    assert {"AdamW", "BatchNorm", "schedules", "init"} <= set(names) <= set(onepass.__all__)
    assert all(inspect.getdoc(getattr(onepass, name)) for name in names)


def test_every_setting_of_a_class_has_a_word(every_class):
    section = inspect.getdoc(every_class).partition("Parameters\n----------\n")[2]
    entries = re.split(r"\n(?=\S)", section.partition("\n\n")[0])
    described = set()
    for entry in entries:
        names, _, words = entry.partition("\n")
        assert words.strip().endswith("."), entry
        described.update(re.split(r", ", names.partition(" :")[0]))
    assert described == {name.replace("options", "**options") for name in signature(every_class)}


def test_every_class_stands_beside_those_of_other_libraries():
    rows = (DOCS / "libraries.md").read_text().partition("## Not here")[0]
    for cls in onepass.optim.registry.values():
        assert f"`{cls.__name__}`" in rows, cls


def test_every_class_of_pytorch_is_here_or_has_another_way():
    torch = pytest.importorskip("torch", reason="PyTorch, the second oracle, is not installed")
    page = (DOCS / "libraries.md").read_text()
    for name, cls in vars(torch.optim).items():
        is_optimizer = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
        if is_optimizer and cls is not torch.optim.Optimizer:
            assert f"`{name}`" in page
            assert hasattr(onepass, name) or name in ("SparseAdam", "LBFGS")


def with_code(texts):
    return {name: text for name, text in texts.items() if sphinx_pages.blocks(text, "python")}


README = (ROOT / "README.md").read_text()
TEXTS = {"README.md": README} | {
    str(page.relative_to(ROOT)): sphinx_pages.rendered(page)
    for page in sorted(DOCS.rglob("*.md"))
    if sphinx_pages.GENERATED not in page.parents
}
PAGES = with_code(TEXTS)
SECTIONS = with_code(
    {text.partition("\n")[0]: text for text in re.split(r"^## ", README, flags=re.M)[1:]}
)


RUN = {name: text for name, text in (PAGES | SECTIONS).items() if "docs/hosts/" not in name}
"""The pages of hosts run beside their hosts."""


@pytest.mark.parametrize("text", RUN.values(), ids=RUN)
def test_code_runs_on_its_own_and_prints_what_stands_below_it(text, tmp_path, monkeypatch, capsys):
    """On each page as its reader sees it, with what it includes, and in each section of README."""
    monkeypatch.chdir(tmp_path)  # it may save something
    run_examples(text, capsys)


def test_all_code_is_found():
    """Whatever the fence of a block, and whatever the page includes."""
    assert set(PAGES) >= {"README.md", "docs/first-steps.md", "docs/batchnorm.md"}
    for text in TEXTS.values():
        fences = re.findall(r"^ *(?:```|~~~)+ *(?:py\w*|\{code[^}]*\} *py\w*)$", text, re.M)
        assert len(fences) == len(EXAMPLE.findall(text))
    first = sphinx_pages.blocks(README, "python")[0]
    assert first in PAGES["docs/first-steps.md"]


def steps_by_hand():
    """Return the rows of steps by hand: the code, the optimizer for it, and what differs."""
    section = (DOCS / "coming-from.md").read_text().partition("## From a loop")[2]
    rows = section.partition("\n## ")[0].partition("| --- | --- | --- |\n")[2]
    found = re.findall(r"^\| `(.+?)`.*? \| `(.+?)` \| (.+?) \|$", rows, re.M)
    assert len(found) == rows.count("\n|") + 1
    return found


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("code", "made", "differs"), steps_by_hand())
def test_a_step_by_hand_and_the_optimizer_for_it(code, made, differs, dtype):
    """They have the same bits, where the page says that nothing differs."""
    rng = np.random.default_rng(0)
    params, *grads = rng.normal(size=(51, 1000)).astype(dtype)
    numbers = {"lr": 0.1, "mu": 0.9, "rho": 0.9, "b1": 0.9, "b2": 0.99, "eps": 1e-8}
    numbers |= {"decay": 0.01, "c": 1.0}
    p = params.copy()
    scope = {"np": np, "p": p, "v": 0 * p, "m": 0 * p, "s": 0 * p, **numbers}
    opt = eval(made, {"op": onepass, "params": params, **numbers})
    for t, g in enumerate(grads, start=1):
        scope |= {"g": g, "t": t}
        exec(code, scope)
        opt.step(g)
    if differs.startswith("nothing"):
        assert np.array_equal(params, p)
    else:
        np.testing.assert_allclose(params, p, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_lists_of_a_page_are_those_of_the_docstrings(page):
    """`python docs/sphinx_pages.py` writes them."""
    text = page.read_text()
    assert text == sphinx_pages.with_lists(text)
    assert text.count("<!-- list of ") == text.count("<!-- end of list -->")


@pytest.mark.parametrize("name", TEXTS)
def test_a_link_leads_to_a_file_of_the_repository(name):
    """So it can be followed there, and not only on the site."""
    page = ROOT / name
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        path = (page.parent / target).resolve()
        assert path.exists(), target
        assert sphinx_pages.GENERATED not in path.parents, target


def test_info_prints_what_the_page_of_installing_shows(capsys):
    """For another machine: the words on the left are the same."""
    cli.main(["info"])
    printed = capsys.readouterr().out
    shown = sphinx_pages.blocks((DOCS / "install.md").read_text(), "text")[0]
    words = re.compile(r"^\S+(?: \S+)*(?=  )", re.M)
    assert words.findall(shown) == words.findall(printed)


def test_names_in_the_text_exist():
    spans = "\n".join(re.findall(r"`[^`\n]+`", f"{README}\n{site()}"))
    named = set(re.findall(r"\b(?:op|onepass)\.([a-zA-Z_][\w.]*\w)", spans))
    assert "schedules.cosine" in named
    for name in named:
        if name.partition(".")[0] not in ADAPTERS:
            resolve_name(f"onepass.{name.removesuffix('.v1')}")  # spaCy's name for a class


@pytest.mark.parametrize("name", PAGES)
def test_code_is_no_wider_than_the_page_shows(name):
    for code, _ in EXAMPLE.findall(PAGES[name]):
        assert max(map(len, code.splitlines())) <= 90


def test_every_promise_names_a_test_that_exists():
    text = (DOCS / "promises.md").read_text().partition("\n## ")[0]
    _, *promises = re.split(r"^\* ", text, flags=re.M)
    assert len(promises) >= 8
    for promise in promises:
        assert re.search(r"\.\n\n  `tests/test_", promise), promise
    named = re.findall(r"`tests/(test_\w+\.py)(?:::(\w+))?`", text)
    for file, test in named:
        text = (ROOT / "tests" / file).read_text()
        assert not test or f"def {test}" in text or f"class {test}" in text, (file, test)


def site():
    """Return the text of the site's pages, before Sphinx has read it."""
    pages = [page.read_text() for page in DOCS.rglob("*.md")]
    return "\n".join([*pages, *sphinx_pages.pages().values()])


def documented():
    """Return all that a directive of some page documents, by its dotted name."""
    directives = re.findall(r"^\.\. (automodule|auto\w+|py:data):: (\S+)$", site(), re.M)
    directives = [(kind, name) for kind, name in directives if name.split(".")[1] not in ADAPTERS]
    found = {name: resolve_name(name) for kind, name in directives if kind != "automodule"}
    for module in (name for kind, name in directives if kind == "automodule"):
        found |= {
            f"{module}.{name}": thing
            for name in getattr(resolve_name(module), "__all__", ())
            if callable(
                thing := getattr(resolve_name(module), name)
            )  # data has no docstring to show
        }
    return found


def test_every_public_name_is_on_the_site():
    """Under this name or another one."""
    shown = {id(thing) for thing in documented().values()}
    assert [name for name in PUBLIC if id(resolve_name(name)) not in shown] == []


def test_every_optimizer_has_a_page_with_its_picture():
    pages = sphinx_pages.pages()
    for cls in onepass.optim.registry.values():
        page = pages[f"optimizers/{cls.__name__}.rst"]
        assert f"autoclass:: onepass.{cls.__name__}\n" in page
        assert f"image:: {cls.__name__}-" in page
        assert f"**{cls.__name__}**" in pages["differs.inc"]


def test_every_optimizer_is_said_to_be_for_something(every_class):
    text = (DOCS / "optimizers.md").read_text(encoding="utf-8")
    rows = text.partition("## What each is for")[2].partition("\n## ")[0]
    assert f"`{every_class.__name__}`" in rows.partition("| --- |")[2]


def test_every_command_is_on_the_site():
    page = sphinx_pages.pages()["commands.md"]
    for name, parser in sphinx_pages.commands().items():
        assert f"## onepass {name}\n" in page
        run = [
            block for path in DOCS.glob("*.md") for block in sphinx_pages.code_blocks(path, "bash")
        ]
        assert any(block.startswith(f"onepass {name}") for block in run), f"{name} is never shown"
        for action in parser._actions:
            assert all(option in page for option in action.option_strings)


def test_an_optimizers_page_includes_what_is_there(every_class):
    page = sphinx_pages.optimizer_page(every_class)
    included = re.findall(r"literalinclude:: (\S+)\n   :(?:language|pyobject): (\S+)", page)
    assert len(included) == 3
    for path, name in included:
        source = (DOCS / path.replace(sphinx_pages.TO_ROOT, "..")).read_text()
        owner, _, function = name.partition(".")
        assert not function or f"class {owner}(" in source
        assert not function or f"    def {function}(" in source


def test_every_page_is_in_the_menu():
    index = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", index, re.M), page


def test_every_picture_has_words_for_those_who_do_not_see_it():
    for name, text in TEXTS.items():
        for directive in re.findall(r"^```\{(?:image|figure)\} .*?\n\n?```", text, re.M | re.S):
            assert re.search(r"^:alt: \S+ \S+", directive, re.M), (name, directive)
        assert not re.search(r"!\[\]\(", text), name


def test_the_gallery_has_every_optimizer_schedule_and_surface():
    page = TEXTS["docs/gallery.md"]
    names = [cls.__name__ for cls in onepass.optim.registry.values()]
    for name in (*names, *onepass.schedules.__all__, *SURFACES):
        assert f"{{figure}} generated/gallery/{name}.png\n" in page
        target = re.search(rf"gallery/{name}.png\n:alt: .*\n:target: ([\w./]+)\.html", page)[1]
        assert (DOCS / f"{target}.md").exists() or target.removeprefix("generated/") in {
            path.removesuffix(".rst") for path in sphinx_pages.pages()
        }


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"]
    assert cited["license"] == project["license"]
    page = (DOCS / "support.md").read_text()
    assert f"version = {{{cited['version']}}}" in page
    assert f"title = {{{cited['title']}}}" in page
    assert f"## {cited['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("form", ["fault", "question"])
def test_forms_of_issues_are_forms(form):
    """By GitHub's schema for them."""
    found = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())
    assert {"name", "description", "body"} <= set(found)
    ids = [field["id"] for field in found["body"]]
    assert len(ids) == len(set(ids))
    assert all(field["type"] in ("textarea", "dropdown") for field in found["body"])
    assert all("label" in field["attributes"] for field in found["body"])


def test_every_schedule_is_in_the_picture():
    named = [code.partition("(")[0] for code in pictures.SCHEDULES]
    assert sorted(named) == sorted(onepass.schedules.__all__)


def test_what_the_line_searches_on_their_page_cost():
    ravine = SURFACES["ravine"]
    for search, cost in ((best_of((0.01, 0.1, 1)), {4}), (backtracking(), {6, 7})):
        w = np.array(ravine.start)
        taken = [
            search(w, ravine.gradient(w), lambda w=w: float(ravine.loss(w))) for _ in range(40)
        ]
        assert {info.evaluations for info in taken} == cost


RUN_MAIN = """
import ctypes, sys, onepass
ctypes.CDLL(onepass.get_library(), ctypes.RTLD_GLOBAL)
program = ctypes.CDLL(sys.argv[1])
program.main()
ctypes.CDLL(None).fflush(None)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_c_program_of_the_site(tmp_path):
    """It gives the bits of the Python above it; here the module stands for libonepass."""
    page = DOCS / "embedding.md"
    program, function = sphinx_pages.code_blocks(page, "c")
    (tmp_path / "adam.c").write_text(program)
    (tmp_path / "step.c").write_text(function)
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{onepass.get_include()}"]
    command = ["cc", *flags, "-shared", "-fPIC", "adam.c", "step.c", "-o", "adam.so"]
    subprocess.run(command, check=True, cwd=tmp_path)
    command = [sys.executable, "-c", RUN_MAIN, str(tmp_path / "adam.so")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    scope: dict[str, object] = {}
    exec("".join(sphinx_pages.code_blocks(page, "python")), scope)
    assert float.fromhex(printed) == scope["param"][0]
