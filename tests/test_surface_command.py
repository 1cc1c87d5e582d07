"""What `onepass surface` promises."""

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import onepass as op
from commands import draw_coarsely, run, start
from onepass import _extras
from onepass.lab import cli
from onepass.lab._arguments import SEED
from onepass.lab._picture import COLOURS
from onepass.lab.surface import SURFACES, Trajectory, animation, panels, report, walkers
from onepass.lab.surface.batches import draw_batches
from onepass.lab.surface.drawing import Picture

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """But for those of another process, which are as users have them."""
    draw_coarsely(monkeypatch)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(animation, "FRAMES", 3)
    monkeypatch.setattr(animation, "DOTS_PER_INCH", 40)


def test_end_to_end(tmp_path):
    out = tmp_path / "deep" / "folder"
    options = ("--surface", "saddle", "NEURON", "saddle", "--optimizer", "nesterov", "SGD")
    done = run("surface", *options, "--steps", 50, "--out", out, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    written = [out / "saddle.png", out / "neuron.png"]
    lines = done.stdout.splitlines()
    assert lines[-2:] == [str(path) for path in written]
    assert all(len(line) <= 80 for line in lines[:-2])
    for path in written:
        assert path.read_bytes()[:8] == PNG
    assert sorted(out.iterdir()) == sorted(written)
    rows = [line.split() for line in lines]
    assert [row[:2] for row in rows if row and row[0] in (*walkers(), *SURFACES)] == [
        ["saddle", "Nesterov"],
        ["SGD", "0.05"],
        ["neuron", "Nesterov"],
        ["SGD", "1"],
    ]


def test_table(capsys):
    """Steps and losses of the table are those of the paths and searches."""
    contest = report.contest(SURFACES["ravine"], ["SGD", "Momentum"], None, 300, None)
    assert contest.goal == pytest.approx(37.5e-3)
    report.print_table([contest])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    by_name = {row[-4]: row[-3:] for row in rows if len(row) >= 4}
    path = walkers()["SGD"].descend(SURFACES["ravine"], steps=300)
    steps = np.flatnonzero(path.losses <= 37.5e-3)[0]
    assert by_name["SGD"] == ["0.025", str(steps), f"{path.losses[-1]:.2g}"]
    (grid,) = (row for row in rows if row[:2] == ["grid", "search"])
    # 17 x 17 points: the middle one is the minimum, the 145th tried
    assert grid[-2:] == ["144", "0"]


def test_table_of_a_run_that_diverged(capsys):
    contest = report.contest(SURFACES["rosenbrock"], ["SGD"], (-1.0, 1.0), 20, 1.0)
    report.print_table([contest])
    assert re.search(r"SGD +1 +- +diverged", capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["gif", "html"])
def test_animation(kind, tmp_path, fast, capsys):
    options = ["--surface", "neuron", "--optimizer", "sgd", "adam", "--steps", "40"]
    assert cli.main(["surface", *options, "--animate", kind, "--out", str(tmp_path)]) == 0
    path = tmp_path / f"neuron.{kind}"
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, tmp_path / "neuron.png"])
    if kind == "gif":
        with Image.open(path) as image:
            assert (image.n_frames, image.width) == (3, 440)
            assert image.info["loop"] == 0
    else:
        page = path.read_text(encoding="utf-8")
        assert len(page) < 100_000
        assert page.startswith("<!DOCTYPE html>")
        assert "<title>onepass surface: neuron</title>" in page
        assert 'name="viewport"' in page
        assert "prefers-reduced-motion" in page
        # it asks for nothing from elsewhere
        assert re.findall(r"(?:https?:)?//\w[\w.]*\.\w+/|<link|@import", page) == []


def test_a_column_for_each_batch_size(tmp_path, capsys):
    options = ["--surface", "sparse", "--batch-size", "1", "10", "all", "500", "--steps", "20"]
    assert cli.main(["surface", *options, "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["sparse-batches.png"]
    assert (tmp_path / "sparse-batches.png").read_bytes()[:8] == PNG
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(tmp_path / "sparse-batches.png")
    assert "search" not in out
    rows = re.findall(r"(sparse, [\w ]+?)? +(SGD|Momentum|Nesterov) +0.02 +\S+ +(\S+)\n", out)
    titles = [title for title, *_ in rows if title]
    assert titles == ["sparse, batch size 1", "sparse, batch size 10", "sparse, all 100 rows"]
    assert [name for _, name, _ in rows] == ["SGD", "Momentum", "Nesterov"] * 3
    sizes = [1] * 3 + [10] * 3 + [None] * 3
    for (_, name, last), size in zip(rows, sizes, strict=True):
        path = walkers()[name].descend(SURFACES["sparse"], steps=20, batch_size=size, seed=SEED)
        assert last == f"{path.losses[-1]:.2g}"


def test_the_columns_of_batches():
    """The same colours, window and scale in each; its own paths."""
    surface, names = SURFACES["sparse"], ["SGD", "Momentum"]
    columns = {
        contest.title: contest.labels
        for size in (1, None)
        for contest in [report.contest_of_batches(surface, names, None, 5, 0.01, batch_size=size)]
    }
    assert list(columns) == ["batch size 1", "all 100 rows"]
    figure = draw_batches(surface, columns)
    maps, curves = figure.axes[:2], figure.axes[2:]
    for (title, paths), above, below in zip(columns.items(), maps, curves, strict=True):
        assert above.get_title() == title
        assert (above.get_xlim(), above.get_ylim()) == surface.window
        assert below.get_ylim() == curves[0].get_ylim()
        for (label, path), colour in zip(paths.items(), COLOURS, strict=False):
            (line,) = (line for line in above.lines if line.get_label() == label)
            np.testing.assert_array_equal(line.get_xydata(), path.points)
            assert line.get_color() == colour
            (line,) = (line for line in below.lines if line.get_label() == label)
            np.testing.assert_array_equal(line.get_ydata(), path.losses)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["SGD, lr 0.01", "Momentum, lr 0.01"]


def test_without_a_name_the_surfaces_that_have_data(tmp_path):
    options = ["--batch-size", "1", "--steps", "3", "--optimizer", "adam"]
    assert cli.main(["surface", *options, "--out", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"neuron-batches.png", "sparse-batches.png"}


def test_several_rates_and_line_searches(tmp_path, capsys):
    options = ["--surface", "ravine", "--optimizer", "sgd", "--lr", "0.01", "0.02", "--line-search"]
    assert cli.main(["surface", *options, "--steps", "5", "--out", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = [row[-4:-2] for row in rows if len(row) > 3 and row[-3] in ("0.01", "0.02")]
    names = ("SGD", "best_of", "backtracking")
    assert found == [[name, rate] for name in names for rate in ("0.01", "0.02")]


def test_paths_of_ones_own(tmp_path):
    ravine = SURFACES["ravine"]
    paths = {"mine": walkers()["SGD"].descend(ravine, steps=3)}
    op.surface.draw(ravine, paths, str(tmp_path / "mine.png"))
    assert (tmp_path / "mine.png").read_bytes()[:8] == PNG


def test_a_picture_of_ones_own_surface(tmp_path):
    bowl = op.surface.Surface(
        name="bowl",
        function=lambda x, y: x**2 + 3 * y**2,
        slope=lambda x, y: (2 * x, 6 * y),
        start=(-2.0, 1.0),
        window=((-3.0, 3.0), (-2.0, 2.0)),
    )
    path = tmp_path / "bowl.png"
    for walkers_ in (["sgd", "SGD(lr=0.3)"], {"mine": lambda w: op.SGD(w, lr=0.1)}, "Adam"):
        op.surface.picture(bowl, walkers_, path, steps=5)
        assert path.read_bytes()[:8] == PNG
        path.unlink()
    for wrong in (["newton"], ["SGD(lr=-1)"], ["SGD(lr"], ["SGD(speed=1)"], []):
        with pytest.raises(ValueError, match=r"expected .*, got "):
            op.surface.picture(bowl, wrong, path)
    assert not path.exists()


def test_several_of_one_class(tmp_path, capsys):
    """Each with settings of its own; a rate that stands behind a name is not another's."""
    names = ["SGD(lr=0.01)", "sgd( momentum = 0.5 )", "Adam"]
    options = ["--surface", "ravine", "--steps", "5", "--lr", "0.1", "--out", str(tmp_path)]
    assert cli.main(["surface", *options, "--optimizer", *names]) == 0
    out = capsys.readouterr().out
    rows = re.findall(r"(SGD\(lr=0.01\)|SGD\(momentum=0.5\)|Adam) +(\S+)", out)
    assert rows == [("SGD(lr=0.01)", "0.01"), ("SGD(momentum=0.5)", "0.1"), ("Adam", "0.1")]
    found = report.contest(SURFACES["ravine"], ["SGD(lr=0.01)", "SGD"], None, 5, None)
    assert list(found.labels) == ["SGD(lr=0.01)", "SGD, lr 0.025"]
    path = op.surface.descend(SURFACES["ravine"], lambda w: op.SGD(w, lr=0.01), steps=5)
    np.testing.assert_array_equal(found.entrants[0].path.points, path.points)


def test_what_is_there_is_not_replaced(tmp_path, capsys):
    options = ["surface", "--surface", "saddle", "--steps", "2", "--out", str(tmp_path)]
    (tmp_path / "saddle.png").write_bytes(b"mine")
    with pytest.raises(SystemExit) as ended:
        cli.main(options)
    assert ended.value.code == 2
    assert "--out: expected a folder without saddle.png, got" in capsys.readouterr().err
    assert (tmp_path / "saddle.png").read_bytes() == b"mine"
    assert cli.main([*options, "--force"]) == 0
    assert (tmp_path / "saddle.png").read_bytes()[:8] == PNG


def test_a_picture_says_what_is_to_be_seen():
    contest = report.contest(SURFACES["neuron"], ["RMSprop", "AdamW", "SGD"], None, 300, None)
    assert contest.remarks == [
        "At the end these still step to and fro, as their rates are constant: RMSprop, lr 0.2.",
        "Weight decay draws these towards (0, 0): AdamW, lr 0.2.",
    ]
    the_map, *_ = Picture(contest.surface, contest.labels, {}, contest.remarks).figure.axes
    said = the_map.get_title(loc="left").replace("\n", " ")
    assert said.startswith(contest.surface.note)
    assert said.endswith("A dot on the map: 5 steps.")
    (line,) = (line for line in the_map.lines if line.get_label() == "SGD, lr 1")
    assert line.get_markevery() == 5
    assert not report.contest(SURFACES["ravine"], ["AdamW"], None, 300, None).remarks  # at (0, 0)


@pytest.mark.parametrize(
    ("steps", "every"), [(1, 1), (100, 1), (101, 2), (500, 5), (1000, 10), (10**6, 10**4)]
)
def test_dots(steps, every):
    assert panels.steps_between_dots(steps) == every


def browser():
    return shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(browser() is None, reason="no browser")
def test_the_page_plays_in_a_browser(tmp_path, fast):
    options = ["--surface", "saddle", "--optimizer", "adam", "--steps", "20"]
    assert cli.main(["surface", *options, "--animate", "html", "--out", str(tmp_path)]) == 0
    done = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
         "--virtual-time-budget=3000", (tmp_path / "saddle.html").as_uri()],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert 'max="20"' in done.stdout  # set by the page's script
    (step,) = re.findall(r"step (\d+) of 20", done.stdout)
    assert int(step) > 0  # it has begun by itself
    assert re.search(r"Adam, lr 0.1</span><span[^>]*>\d\.\d</span>", done.stdout)


def test_lines_keep_their_colours_in_a_gif(tmp_path):
    """However few pixels a line has, of the one palette."""
    names = list(walkers())[: len(COLOURS)]
    contest = report.contest(SURFACES["neuron"], names, None, 50, None)
    picture = Picture(contest.surface, contest.labels, contest.searches)
    path = tmp_path / "one.gif"
    path.write_bytes(animation.gif(picture, iter([50]), lambda _: None))
    with Image.open(path) as image:
        pixels = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    expected = {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[: len(names)]}
    assert expected <= pixels


def test_the_picture_shows_the_paths():
    contest = report.contest(SURFACES["sparse"], ["SGD", "Momentum"], (-3.0, 1.0), 60, 0.1)
    picture = Picture(contest.surface, contest.labels, contest.searches)
    the_map, relief, curves = picture.figure.axes
    for step in (0, 7, 60):
        picture.show(step)
        for label, path in contest.labels.items():
            (line,) = (line for line in the_map.lines if line.get_label() == label)
            np.testing.assert_array_equal(line.get_xydata(), path.points[: step + 1])
            (line,) = (line for line in curves.lines if line.get_label() == label)
            np.testing.assert_array_equal(line.get_xdata(), np.arange(step + 1))
            np.testing.assert_array_equal(line.get_ydata(), path.losses[: step + 1])
            (line,) = (line for line in relief.lines if line.get_label() == label)
            x, _, z = line.get_data_3d()
            shown = np.isfinite(x)
            np.testing.assert_array_equal(z[shown], np.log1p(path.losses[: step + 1][shown]))
            (_, (y_low, y_high)) = contest.surface.window
            inside = (path.points[: step + 1, 1] <= y_high) & (path.points[: step + 1, 1] >= y_low)
            assert not shown[~inside].any()
    best = {line.get_label(): line.get_ydata()[0] for line in curves.lines}
    for label, tried in contest.searches.items():
        assert best[label] == tried.losses.min()  # none is 0 here
    assert curves.get_yscale() == "log"


def test_every_surface_can_be_drawn(tmp_path):
    for surface in SURFACES.values():
        names = list(walkers())[: None if surface.name == "neuron" else 3]  # all of them once
        contest = report.contest(surface, names, None, 20, None)
        picture = Picture(surface, contest.labels, contest.searches)
        path = tmp_path / f"{surface.name}.png"
        picture.save(path)
        assert path.read_bytes()[:8] == PNG


def drawn(surface, names, start=None, steps=20, lr=None):
    contest = report.contest(SURFACES[surface], names, start, steps, lr)
    return contest, Picture(contest.surface, contest.labels, contest.searches)


def marks(axes):
    """Where paths leave a panel, by their colours."""
    shown = [line for line in axes.lines if line.get_marker() == "X" and line.get_visible()]
    return {line.get_color(): line.get_xydata()[0] for line in shown if len(line.get_xdata())}


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("start", [(0.0, 0.0), (-9.0, 50.0), (30.0, 1.0), (1e4, -1e4)])
def test_the_window_grows_for_the_start(name, start):
    """And shows the minima as before, and nothing beyond either."""
    _, picture = drawn(name, ["SGD", "Adam"], start, 2)
    the_map, *_ = picture.figure.axes
    limits = np.array([the_map.get_xlim(), the_map.get_ylim()])
    for point in (start, *SURFACES[name].minima):
        assert (limits[:, 0] < point).all()
        assert (point < limits[:, 1]).all()
    for (low, high), old, at in zip(limits, SURFACES[name].window, start, strict=True):
        assert (low == old[0]) == (old[0] <= at)
        assert (high == old[1]) == (at <= old[1])
        size = max(old[1], at) - min(old[0], at)
        assert high - low <= 1.1 * size


def test_a_start_outside_the_window_or_in_the_minimum_can_be_drawn(tmp_path, capsys):
    for point in (("0", "0"), ("-9", "50")):
        options = ["--surface", "ravine", "--start", *point, "--steps", "5", "--force"]
        assert cli.main(["surface", *options, "--out", str(tmp_path)]) == 0


def test_a_path_that_diverges_leaves_the_others_as_they_are():
    """Down the ravine at rate 1 plain descent goes from (-5, 1) to (0, -49), and on."""
    _, alone = drawn("ravine", ["Adam"], lr=1.0)
    _, picture = drawn("ravine", ["SGD", "Adam"], lr=1.0)
    the_map, _, curves = picture.figure.axes
    assert curves.get_ylim()[0] == pytest.approx(alone.figure.axes[2].get_ylim()[0])
    top = curves.get_ylim()[1]
    assert top == pytest.approx(alone.figure.axes[2].get_ylim()[1])
    assert [text.get_text() for text in curves.texts] == [f"cut above {top:.1g}"]
    (legend,) = picture.figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[2:] == ["SGD, lr 1: diverges", "Adam, lr 1", "leaves the picture"]
    assert marks(the_map) == {COLOURS[0]: pytest.approx((-4.5, -4))}
    first, second = (np.log((x**2 + 50 * y**2) / 2) for x, y in ((-5, 1), (0, -49)))
    when = (np.log(top) - first) / (second - first)
    assert marks(curves) == {COLOURS[0]: pytest.approx((when, top))}
    picture.show(0)  # as the animation does: it has not left yet
    assert marks(the_map) == marks(curves) == {}


def test_a_path_that_only_passes_is_whole():
    """It is far out for a while, and comes back."""
    there_and_back = Trajectory(
        np.array([(-5.0, 1.0), (0.0, 1e3), (0.0, 0.1)]), np.array([37.5, 2.5e7, 0.25])
    )
    searches = report.contest(SURFACES["ravine"], ["SGD"], None, 2, None).searches
    picture = Picture(SURFACES["ravine"], {"it": there_and_back}, searches)
    the_map, _, curves = picture.figure.axes
    assert marks(the_map) == marks(curves) == {}
    (line,) = (line for line in the_map.lines if line.get_label() == "it")
    np.testing.assert_array_equal(line.get_xydata(), there_and_back.points)
    (legend,) = picture.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*searches, "it"]


def test_a_path_that_ends_outside_says_so_but_does_not_diverge():
    """The neuron's loss has a bound: on a plateau far away it is no larger."""
    _, picture = drawn("neuron", ["SGD"], steps=3, lr=1e4)
    the_map, _, curves = picture.figure.axes
    assert list(marks(the_map)) == [COLOURS[0]]
    assert marks(curves) == {}


def test_losses_that_are_cut_or_zero_are_shown_and_said():
    _, picture = drawn("ravine", ["SGD", "Momentum"], steps=600)
    *_, curves = picture.figure.axes
    assert [text.get_text() for text in curves.texts] == ["< 1e-12"]
    low, _ = curves.get_ylim()
    assert 1e-14 < low < 1e-12
    for line in curves.lines:
        assert (np.array(line.get_ydata()) > low).all()
    _, picture = drawn("ravine", ["SGD"], (0.0, 0.0), 5)
    *_, curves = picture.figure.axes
    (line,) = (line for line in curves.lines if line.get_label() == "SGD, lr 0.025")
    assert [text.get_text() for text in curves.texts] == ["0"]
    assert (line.get_ydata() > curves.get_ylim()[0]).all()


@pytest.mark.parametrize(
    ("name", "start", "lr"),
    [("sparse", None, 1e307), ("ravine", (1e150, -1e150), None), ("beale", (1e38, 1e38), None)],
)
def test_numbers_near_the_end_of_the_range(name, start, lr, tmp_path):
    """Dashes along a line of 1e300 would take for ever."""
    _, picture = drawn(name, list(walkers()), start, 20, lr)
    picture.save(tmp_path / "picture.png")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_what_is_finished(tmp_path):
    process = start("surface", "--animate", "gif", "--out", tmp_path)
    while process.poll() is None and not (tmp_path / "neuron.png").exists():
        time.sleep(0.01)
    time.sleep(0.5)  # the command notes what it has written; the animation takes some seconds
    process.send_signal(signal.SIGINT)  # while its animation is made
    out, err = (each.decode() for each in process.communicate(timeout=60))
    assert process.returncode == cli.INTERRUPTED, err
    assert err == "onepass: interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["neuron.png"]
    assert out.splitlines()[-1] == str(tmp_path / "neuron.png")
    assert re.search(r"neuron +SGD +1 ", out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--surface", "hill"], "argument --surface: expected one of neuron, sparse, "),
        (["--optimizer", "newton"], "argument --optimizer: expected one of SGD, Momentum, "),
        (["--steps", "0"], "argument --steps: expected an integer >= 1, got '0'"),
        (["--start", "1", "inf"], "argument --start: expected a finite number, got 'inf'"),
        (["--start", "1", "x"], "argument --start: expected a finite number, got 'x'"),
        (["--start", "1e200", "0"], "argument --start: expected a point with a finite loss, got "),
        (["--lr", "-1"], "argument --lr: expected a finite number > 0, got '-1'"),
        (["--lr", "1", "0"], "argument --lr: expected a finite number > 0, got '0'"),
        (["--batch-size", "0"], "argument --batch-size: expected an integer >= 1 or all, got '0'"),
        (["--seed", "-1"], "argument --seed: expected an integer >= 0, got '-1'"),
        (
            ["--batch-size", "1", "--surface", "neuron", "beale"],
            "argument --surface: expected one of neuron, sparse with --batch-size, got beale",
        ),
        (["--batch-size", "1", "--animate", "gif"], "--animate: not allowed with argument --batch"),
        (
            ["--batch-size", "1", "--line-search"],
            "--line-search: not allowed with argument --batch",
        ),
        (["--animate", "mp4"], "argument --animate: expected one of gif, html, got 'mp4'"),
    ],
)
def test_bad_arguments(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["surface", *options, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_says_what_is_missing(tmp_path, monkeypatch, capsys):
    def without_matplotlib(name):
        if name == "matplotlib":
            raise ImportError
        return importlib.import_module(name)

    monkeypatch.setattr(_extras, "import_module", without_matplotlib)
    assert cli.main(["surface", "--out", str(tmp_path / "new")]) == 1
    assert "matplotlib: python -m pip install 'onepass[surface]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_importing_it_loads_no_picture_library():
    code = (
        "import sys, onepass.lab.surface; heavy = {'matplotlib', 'rich', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
