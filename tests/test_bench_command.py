"""What `onepass bench` promises. What it times is timed, and checked, in `bench/` too."""

import json

import pytest
from PIL import Image

from commands import strict_json
from onepass.lab import cli
from onepass.lab.bench import compiled, figures, picture, plan, timing

ROW = plan.Row("AdamW, 2 arrays", "hot", "back to back", {"onepass": [1e-6, 2e-6], "NumPy": [4e-6]})


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "BLOCK", 1e-4)
    monkeypatch.setattr(timing, "FEWEST_ROUNDS", 2)
    monkeypatch.setattr(compiled, "installed", dict)  # they take seconds to compile


def bench(folder, *options):
    return cli.main(["bench", "--out", str(folder), *map(str, options)])


def test_end_to_end(tmp_path, quick, capsys):
    assert bench(tmp_path, "--quick", "--seconds", 1e-4, "--threads", 1) == 0
    names = ["bench.json", "speed.png", "speed-dark.png"]
    out = capsys.readouterr().out
    assert out.splitlines()[-3:] == [str(tmp_path / name) for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    saved = strict_json(tmp_path / "bench.json")
    assert saved["machine"]["threads"].startswith("1 ")
    assert [row["how"] for row in saved["rows"]] == ["hot", "cold", "forward", "backward"]
    for row in saved["rows"]:
        assert {"onepass", "NumPy, out="} <= set(row["seconds"])
        assert all(min(times) > 0 for times in row["seconds"].values())
    # The same from the numbers, and nothing over what is there.
    with pytest.raises(SystemExit) as ended:
        bench(tmp_path, "--draw", tmp_path / "bench.json")
    assert ended.value.code == 2
    assert "--out: expected a folder without speed.png, got" in capsys.readouterr().err
    again = tmp_path / "again"
    assert bench(again, "--draw", tmp_path / "bench.json") == 0
    assert sorted(path.name for path in again.iterdir()) == ["speed-dark.png", "speed.png"]
    for name in names[1:]:
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()
    table = [line for line in out.splitlines() if "onepass" in line and "1.00" in line]
    assert len(table) == len(saved["rows"])


@pytest.mark.parametrize("text", ["", "[1]", '{"rows": []}', '{"machine": {}, "rows": [1]}'])
def test_numbers_of_something_else(text, tmp_path, capsys):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(SystemExit) as ended:
        bench(tmp_path / "out", "--draw", tmp_path / "other.json")
    assert ended.value.code == 2
    assert "argument --draw: expected numbers of onepass bench, got" in capsys.readouterr().err


def test_the_picture(tmp_path):
    machine = {"machine": "a machine", "threads": "2 (why)"}
    assert picture._note(machine) == "a machine; 2 threads"
    busy = {"machine": "a machine", "threads": "1", "load": "9.50 (what)"}
    assert picture._note(busy) == "a machine; 1 thread\nwhile other programs ran (load 9.50)"
    sizes = set()
    for theme in picture.THEMES.values():
        figure = picture.draw([ROW], machine, theme)
        (axes,) = (axes for part in figure.subfigs for axes in part.axes)
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([1.5e-6, 4e-6])
        assert [text.get_text() for text in axes.texts] == ["1.5 µs", "4 µs"]
        assert figure.get_facecolor() == pytest.approx(axes.get_facecolor())
    for path in picture.save([ROW], machine, tmp_path):
        with Image.open(path) as image:
            sizes.add(image.size)
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("times", "shown"),
    [([1, 2, 4], [1, 2, 4]), ([1, 2, 100], [1, 2, 2.8]), ([3], [3]), ([1, 6], [1, 6])],
)
def test_a_bar_that_would_make_all_others_small_is_cut(times, shown):
    assert picture._cut(times) == pytest.approx(shown)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-8, "12.3 ns"), (9.9996e-7, "1 µs"), (0.0123, "12.3 ms"), (2.5, "2.5 s")],
)
def test_durations(seconds, text):
    assert picture.duration(seconds) == text


def test_ratios():
    assert figures.ratio(ROW.seconds, "NumPy", "onepass") == (4.0, False)
    assert figures.ratio(ROW.seconds, "torch", "onepass") is None
    noisy = {"a": [1.0, 1.0, 9.0, 9.0], "b": [1.0, 1.0, 1.0, 1.0]}
    assert str(figures.ratio(noisy, "a", "b")).endswith("?")
    assert plan.from_dict(json.loads(json.dumps(plan.as_dict([ROW]))))[0] == ROW
