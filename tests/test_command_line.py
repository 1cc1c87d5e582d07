"""What all commands promise, wherever they run: in a notebook, on an old terminal, in a pipe."""

import os
import shlex
import subprocess
import sys
from argparse import ArgumentTypeError

import numpy as np
import pytest

from commands import draw_coarsely, draw_nothing, run, strict_json
from onepass import optim
from onepass.lab import cli
from onepass.lab._arguments import chosen
from onepass.lab._spelling import optimizer, spelt
from onepass.lab._tables import print_table
from onepass.lab.compare.contenders import contenders
from onepass.lab.surface import FEW, SURFACES, walkers

SMALL = {
    "compare": ("--data", "diabetes", "--steps", 2, "--seeds", 2, "--hidden", 4),
    "surface": ("--surface", "saddle", "--steps", 3),
    "tune": ("--data", "diabetes", "--epochs", 1, "--trials", 2),
}
"""A quick run of each command that writes to a folder."""


@pytest.fixture(autouse=True)
def little_to_draw(monkeypatch):
    draw_coarsely(monkeypatch)
    draw_nothing(monkeypatch)


def options(command, folder, optimizer="sgd"):
    return [command, *map(str, SMALL[command]), "--optimizer", optimizer, "--out", str(folder)]


def test_all_commands_are_here():
    (commands,) = (a.choices for a in cli._parser()._actions if hasattr(a.choices, "items"))
    assert set(commands) == {*SMALL, "bench", "info"}


@pytest.mark.parametrize("command", [*SMALL, "info"])
def test_in_a_notebook_and_on_a_terminal_that_knows_ascii_only(command, tmp_path):
    """Jupyter exports its backend to what it starts, be it installed there or not."""
    environment = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONIOENCODING": "ascii",
        "COLUMNS": "40",
    }
    arguments = options(command, tmp_path) if command in SMALL else [command]
    done = run(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "..." not in done.stdout  # a narrow terminal does not lose anything
    if command == "compare":
        assert "R2" in done.stdout
        rows = [line for line in done.stdout.splitlines() if line.startswith("SGD ")]
        assert any("+-" in row for row in rows)
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        assert len(pairs) > 1  # tables below each other, as not all columns have room
        assert all(len(row) == len(other) for row, other in pairs)  # and they are aligned
        assert strict_json(tmp_path / "results.json")["entries"]


def test_a_folder_whose_name_is_no_text(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"\xff")
    assert cli.main(options("surface", folder)) == 0
    assert r"\udcff" in capsys.readouterr().out
    assert (folder / "saddle.png").exists()


def test_the_streams_are_as_before(capsys):
    """A program may call the command line, and goes on."""
    before = sys.stdout.errors, sys.stderr.errors
    assert cli.main(["info"]) == 0
    assert (sys.stdout.errors, sys.stderr.errors) == before


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/full")
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "onepass", "info"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("onepass: [Errno 28]")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_a_reader_that_has_read_enough():
    """As in `onepass info | true`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "onepass", "info"],
        stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", SMALL)
@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--out", ""], "argument -o/--out: expected a folder, got ''"),
        (["--lr", "-1e-3"], "argument --lr: expected a finite number > 0, got '-1e-3'"),
        (["--steps", "9" * 30], "argument --steps: expected an integer <= 1000000000, got "),
        (["--epochs", "9" * 30], "argument --epochs: expected an integer <= 1000000000, got "),
        (["--seeds", "9" * 30], "argument --seeds: expected an integer <= 1000000, got "),
        (["--hidden", "9" * 30], "argument --hidden: expected an integer <= 1000000, got "),
        (["--optim", "sgd"], "unrecognized arguments: --optim sgd"),  # what to repeat is in full
    ],
)
def test_odd_values(command, given, complaint, capsys):
    (commands,) = (a.choices for a in cli._parser()._actions if hasattr(a.choices, "items"))
    if given[0] not in commands[command]._option_string_actions and given[0] != "--optim":
        return
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *given])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_examples_of_the_help(tmp_path, monkeypatch):
    """Each is a command, but for `--help`'s own reader."""
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", x=np.ones((10, 2)), y=np.arange(10) % 2)
    for command, examples in cli.EXAMPLES.items():
        for words in examples:
            assert cli._parser().parse_args([command, *shlex.split(words)]).run


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("onepass su", ["surface "]),
        ("onepass surface --surface ro", ["rosenbrock "]),
        ("onepass compare --optimizer AdamW", ["AdamW", "AdamWScheduleFree"]),
        ("onepass tune --schedule co", ["constant", "cosine", "cosine_restarts"]),
        ("onepass tune -d w", ["wine "]),
    ],
)
def test_completion(typed, offered, tmp_path):
    """As a shell asks: nothing is run, and what may follow stands in a file."""
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    done = run(**asked, _ARGCOMPLETE_STDOUT_FILENAME=str(answer))
    assert (done.stdout, done.stderr) == ("", "")
    assert sorted(answer.read_text().split("\v")) == offered


def test_one_seed_for_all_commands(capsys):
    """1 to 4 chose the rates of `compare`, so it begins with none of them."""
    for command in SMALL:
        assert cli._parser().parse_args([command]).seed == 5


def test_the_help_names_what_is_drawn_without_names(capsys):
    for command, default in (("surface", FEW), ("compare", ["all"]), ("tune", ["all"])):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        names = said.partition("--optimizer NAME [NAME ...] ")[2].partition("(default: ")[2]
        assert names.startswith(f"{' '.join(default)})")


def test_an_unknown_option_is_answered_with_the_commands_own_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["surface", "--foo"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: onepass surface ")
    assert said.endswith("onepass surface: error: unrecognized arguments: --foo\n")


def test_a_table_of_several(monkeypatch, capsys):
    """Where a row has no room, its columns stand below each other, and no cell is cut."""
    columns = [("name", "left"), ("first\nheading", "right"), ("second", "right")]
    monkeypatch.setenv("COLUMNS", "20")
    print_table([], columns, [[("Adam", "123456789", "0.5")]], "caption")
    assert capsys.readouterr().out.splitlines() == [
        "", "          first", "name    heading", "───────────────", "Adam  123456789",
        "", "name  second", "────────────", "Adam     0.5", "", "caption",
    ]  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    print_table([], columns, [[("Adam", "123456789", "0.5")]], "caption")
    assert "Adam  123456789     0.5" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("sgd", "SGD"),
        ("ADAM (lr = .1, betas=(0.5,0.9))", "Adam(lr=0.1, betas=(0.5, 0.9))"),
        ("SGD()", "SGD"),
    ],
)
def test_an_optimizer_with_settings(text, read):
    assert optimizer(["SGD", "Adam"])(text) == read
    assert str(spelt(read)) == read


@pytest.mark.parametrize(
    "text",
    [
        "SGD(0.1)",
        "SGD(lr=0.1",
        "SGD(lr=f(1))",
        "SGD(**x)",
        "SGD(lr=0.1)(2)",
        "a.SGD(lr=1)",
        "(",
        "",
    ],
)
def test_what_is_no_optimizer(text):
    with pytest.raises(ArgumentTypeError, match=r"expected .*, got "):
        optimizer(["SGD"])(text)


def test_numbers_with_exponents_are_no_options(tmp_path):
    start = ["--start", "-1e-1", "-.5e0"]
    assert cli.main([*options("surface", tmp_path), *start]) == 0


def test_too_little_memory(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr("onepass.lab.compare.training.Network", fail)
    assert cli.main(options("compare", tmp_path)) == 1
    assert capsys.readouterr().err == "onepass: out of memory: Unable to allocate\n"


@pytest.fixture(params=optim.registry.values(), ids=lambda cls: cls.__name__)
def base(request, monkeypatch):
    """A class, beside which there is a new one that computes the same."""
    monkeypatch.setitem(optim.registry, "newest", type("Newest", (request.param,), {}))
    return request.param


def test_a_new_rule_needs_no_entry_in_a_table(base):
    """It comes with its class's own rate, or with the surface's for its kind of step."""
    newest, known = contenders()["Newest"], walkers()[base.__name__]
    assert newest.lr == base.defaults["lr"]
    for surface in SURFACES.values():
        walker = walkers()["Newest"]
        assert walker.lr(surface) == known.lr(surface)
        path = walker.descend(surface, steps=20)
        assert path.losses.min() < path.losses[0]


@pytest.mark.parametrize("command", SMALL)
def test_each_command_takes_a_new_rule(command, tmp_path, monkeypatch, capsys):
    (base, *_) = optim.registry.values()
    monkeypatch.setitem(optim.registry, "newest", type("Newest", (base,), {}))
    assert cli.main(options(command, tmp_path, "newest")) == 0
    assert "Newest" in capsys.readouterr().out


def test_all_are_all_names():
    names = {"SGD": 1, "Adam": 2}
    assert chosen(None, names) == chosen(["all"], names) == ["SGD", "Adam"]
    assert chosen(["Adam", "all"], names) == ["SGD", "Adam"]
    assert chosen(["Adam", "SGD", "Adam"], names) == ["Adam", "SGD"]
