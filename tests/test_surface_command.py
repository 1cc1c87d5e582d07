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

from commands import run, start
from onepass import _extras, cli
from onepass.surface import SURFACES, report, walkers
from onepass.surface import picture as pictures
from onepass.surface.picture import Picture

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(pictures, "FRAMES", 3)
    monkeypatch.setattr(pictures, "DOTS_PER_INCH", 40)


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
            assert (image.n_frames, image.size) == (3, (440, 256))
            assert image.info["loop"] == 0
    else:
        page = path.read_text(encoding="utf-8")
        assert page.count("data:image/jpeg;base64,") == 3
        # it asks for nothing from elsewhere
        assert re.findall(r"(?:https?:)?//\w[\w.]*\.\w+/|<link|@import", page) == []
        assert set(re.findall(r'class="fa fa-([\w-]+)', page)) <= set(
            re.findall(r"\.fa-([\w-]+)::before", page)
        )


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
    (image,) = re.findall(r"<img[^>]*>", done.stdout)
    assert 'src="data:image/jpeg;base64,' in image  # set by the page's script
    assert 'max="2"' in done.stdout  # the slider of three frames


def test_lines_keep_their_colours_in_a_gif(tmp_path):
    """However few pixels a line has, of the one palette."""
    names = list(walkers())[: len(pictures.COLOURS)]
    contest = report.contest(SURFACES["neuron"], names, None, 50, None)
    picture = Picture(contest.surface, contest.labels, contest.searches)
    picture.figure.set_dpi(pictures.DOTS_PER_INCH)
    path = tmp_path / "one.gif"
    path.write_bytes(pictures._gif(picture.figure, iter([None])))
    with Image.open(path) as image:
        pixels = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    expected = {tuple(bytes.fromhex(colour[1:])) for colour in pictures.COLOURS[: len(names)]}
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
        assert best[label] == tried.losses.min()
    assert curves.get_yscale() == "log"


def test_every_surface_can_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "GRID", 31)
    for surface in SURFACES.values():
        contest = report.contest(surface, list(walkers()), None, 20, None)
        picture = Picture(surface, contest.labels, contest.searches)
        path = tmp_path / f"{surface.name}.png"
        picture.save(path)
        assert path.read_bytes()[:8] == PNG


def test_a_start_outside_the_window_or_in_the_minimum_can_be_drawn(tmp_path, capsys):
    for point in (("0", "0"), ("-9", "50")):
        options = ["--surface", "ravine", "--start", *point, "--steps", "5"]
        assert cli.main(["surface", *options, "--out", str(tmp_path)]) == 0


def test_a_path_that_diverges_can_be_drawn(tmp_path):
    contest = report.contest(SURFACES["beale"], ["SGD", "Nesterov"], None, 100, 1.0)
    Picture(contest.surface, contest.labels, contest.searches).save(tmp_path / "beale.png")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_what_is_finished(tmp_path):
    process = start("surface", "--animate", "gif", "--out", tmp_path)
    while process.poll() is None and not (tmp_path / "neuron.png").exists():
        time.sleep(0.01)
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
        "import sys, onepass.surface; heavy = {'matplotlib', 'rich', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
