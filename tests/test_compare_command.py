"""What the command line promises: `onepass compare` and `onepass info`."""

import base64
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from onepass import cli, compare
from onepass.compare import journal, page, report
from onepass.compare.contenders import contenders
from onepass.compare.data import DATA
from onepass.compare.results import Comparison, Entry, Result
from onepass.compare.training import Measurement, Recipe, Run, Training


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_times(lines):
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


def compare_in(folder, *options):
    return cli.main(["compare", *map(str, options), "--out", str(folder)])


def run(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    return subprocess.run(
        [sys.executable, "-m", "onepass", *map(str, arguments)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


class TestCommand:
    def test_end_to_end(self, tmp_path):
        out = tmp_path / "deep" / "folder"
        options = ("--epochs", 2, "--seeds", 2, "--optimizer", "adam", "SGD", "Adam")
        done = run("compare", *options, "--out", out, COLUMNS="80")
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert "\x1b" not in done.stdout
        files = ["report.html", "curves.png", "results.json"]
        *table, html, picture, numbers = done.stdout.splitlines()
        assert [html, picture, numbers] == [str(out / name) for name in files]
        assert all(len(line) <= 80 for line in table)
        assert "…" not in done.stdout
        assert sorted(path.name for path in out.iterdir()) == sorted([*files, "log.jsonl"])
        assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        written = strict_json(out / "results.json")
        assert written["budget"] == {
            "epochs": 2,
            "steps": None,
            "seconds": None,
            "batch_size": 64,
            "steps_per_epoch": 23,
            "max_grad_norm": 1,
            "schedule": "cosine",
            "seeds": [0, 1],
        }
        assert written["runtime"]["version"] == cli.__version__
        assert written["made_by"]["numpy"] == np.__version__
        assert written["made_by"]["command"] == (
            f"onepass compare --epochs 2 --seeds 2 --optimizer adam SGD Adam --out {out}"
        )
        assert [(entry["name"], entry["batch_norm"]) for entry in written["entries"]] == [
            ("Adam", True),
            ("Adam", False),
            ("SGD", True),
            ("SGD", False),
        ]
        for entry in written["entries"]:
            finals = []
            for run_ in entry["runs"]:
                curve = run_["curve"]
                assert curve["step"] == [0, 23, 46]
                assert curve["grad_norm"][0] is curve["lr"][0] is None
                assert all(norm > 0 for norm in curve["grad_norm"][1:])
                assert curve["lr"][-1] == pytest.approx(entry["lr"] / 10)
                assert len(set(map(len, curve.values()))) == 1
                assert run_["diverged_at"] is None
                finals.append(curve["score"][-1])
            assert entry["score"]["mean"] == pytest.approx(np.mean(finals))
            assert entry["score"]["deviation"] == pytest.approx(np.std(finals, ddof=1))
            assert entry["parameters"] == (17_418 if entry["batch_norm"] else 17_226)
            assert entry["lr"] == contenders()[entry["name"]].lr == entry["hyperparameters"]["lr"]
        rows = [line.split() for line in table]
        start = next(i for i, row in enumerate(rows) if row[:1] == ["Adam"])
        for row, entry in zip(rows[start:], written["entries"], strict=False):
            norm = "yes" if entry["batch_norm"] else "no"
            assert row[:3] == [entry["name"], norm, f"{entry['lr']:g}"]
            assert row[4] == f"{entry['score']['mean']:.1%}"
            assert row[5] == f"±{100 * entry['score']['deviation']:.1f}"
            assert row[-3] == f"{entry['clipped_share']['mean']:.0%}"

    def test_the_log_has_a_line_an_epoch(self, tmp_path):
        assert compare_in(tmp_path, "--epochs", 3, "--seeds", 2, "--optimizer", "adam") == 0
        lines = log_lines(tmp_path)
        assert [(line["seed"], line["batch_norm"], line["epoch"]) for line in lines] == [
            (seed, batch_norm, epoch)
            for seed in (0, 1)
            for batch_norm in (True, False)
            for epoch in range(4)
        ]
        assert [line["done"] for line in lines] == [False, False, False, True] * 4
        expected = [
            measurement
            for run_ in (Run(contenders()["Adam"], True, 0), Run(contenders()["Adam"], False, 0))
            for measurement in Training(run_, Recipe(epochs=3)).epochs()
        ]
        for line, measurement in zip(lines[:8], expected, strict=True):
            assert {k: line[k] for k in Measurement._fields[:-2]} == dict(
                zip(Measurement._fields[:-2], measurement, strict=False)
            )

    @pytest.mark.parametrize("name", DATA)
    @pytest.mark.parametrize("size", [1, 32, "all"])
    def test_data_and_batch_size(self, name, size, tmp_path):
        options = ("--data", name, "--batch-size", size, "--epochs", 1, "--seeds", 1)
        options = (*options, "--no-batch-norm", "--hidden", 8, "--optimizer", "adam")
        assert compare_in(tmp_path, *options) == 0
        written = strict_json(tmp_path / "results.json")
        rows = written["data"]["train"]
        assert written["network"]["sizes"][1:-1] == [8]
        steps = {1: rows, 32: math.ceil(rows / 32), "all": 1}[size]
        (entry,) = written["entries"]
        assert entry["runs"][0]["curve"]["step"] == [0, steps]

    def test_no_batch_norm(self, tmp_path, capsys):
        options = ("--no-batch-norm", "--epochs", 1, "--seeds", 1, "--optimizer", "adam", "sgd")
        assert compare_in(tmp_path, *options) == 0
        entries = strict_json(tmp_path / "results.json")["entries"]
        assert [(entry["name"], entry["batch_norm"]) for entry in entries] == [
            ("Adam", False),
            ("SGD", False),
        ]
        table = capsys.readouterr().out
        assert "without batch norm: 17,226 parameters" in table
        assert "with batch norm" not in table

    def test_a_budget_of_seconds(self, tmp_path):
        options = ("--seconds", 0.1, "--seeds", 1, "--optimizer", "adam", "--no-batch-norm")
        assert compare_in(tmp_path, *options) == 0
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        curve = entry["runs"][0]["curve"]
        spent = [
            a + b for a, b in zip(curve["gradient_seconds"], curve["update_seconds"], strict=True)
        ]
        assert spent[-2] < 0.1 <= spent[-1]

    def test_tune(self, tmp_path):
        """SGD on the digits: too small a rate learns nothing, and the best one is reported."""
        options = ("--tune", "--epochs", 2, "--seeds", 1, "--optimizer", "sgd", "--no-batch-norm")
        assert compare_in(tmp_path, *options) == 0
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        tried = {trial["lr"]: trial["validation_loss"] for trial in entry["tried"]}
        assert list(tried)[:5] == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
        best = min(list(tried)[:5], key=tried.get)
        assert list(tried)[5:] == pytest.approx([best / 2, best * 2, best * 3])
        assert entry["lr"] == min(tried, key=tried.get) != contenders()["SGD"].lr
        assert entry["runs"][0]["curve"]["lr"][-1] == pytest.approx(entry["lr"] / 10)
        seeds = {line["seed"] for line in log_lines(tmp_path) if line["lr_peak"] in tried}
        assert seeds == {0, 1}  # the search has one of its own

    def test_tune_where_all_rates_diverge(self, tmp_path, monkeypatch):
        monkeypatch.setattr(compare.experiment, "RATES", (1e20, 1e25))
        options = ("--tune", "--epochs", 1, "--seeds", 1, "--optimizer", "sgd", "--no-batch-norm")
        assert compare_in(tmp_path, *options) == 0
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        assert entry["lr"] == contenders()["SGD"].lr
        assert [trial["validation_loss"] for trial in entry["tried"]] == [None, None]

    def test_the_norm_is_measured_where_nothing_is_clipped(self, tmp_path, capsys):
        options = ("--max-grad-norm", "inf", "--epochs", 1, "--seeds", 1, "--optimizer", "sgd")
        assert compare_in(tmp_path, *options) == 0
        assert "not clipped" in capsys.readouterr().out
        written = strict_json(tmp_path / "results.json")
        assert written["budget"]["max_grad_norm"] is None
        for entry in written["entries"]:
            assert entry["clipped_share"]["mean"] == 0
            assert entry["runs"][0]["curve"]["grad_norm"][1] > 0.5

    def test_batch_norm_needs_two_rows_a_step(self, tmp_path, capsys):
        options = ("--batch-size", 1, "--epochs", 1, "--optimizer", "adam")
        with pytest.raises(SystemExit) as ended:
            compare_in(tmp_path / "out", *options)
        assert ended.value.code == 2
        complaint = "argument --batch-size: expected an integer >= 2 with batch norm"
        assert complaint in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_terminal_gets_a_progress_bar(self, tmp_path):
        options = ("--epochs", 2, "--seeds", 1, "--optimizer", "sgd", "--out", tmp_path)
        done = run("compare", *options, FORCE_COLOR="1")
        assert done.returncode == 0
        assert "2/2" in done.stderr
        assert "2/2" not in done.stdout

    @pytest.mark.parametrize("norm", ["1", "inf"])
    def test_divergence(self, norm, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        options = ("--epochs", 1, "--seeds", 1, "--lr", 1e30, "--max-grad-norm", norm)
        assert compare_in(tmp_path, *options) == 0
        table = capsys.readouterr().out
        assert "diverged" in table
        assert "…" not in table  # it fits
        _, diverged, *_ = strict_json(tmp_path / "results.json")["entries"]
        assert not diverged["batch_norm"]
        assert diverged["diverged"] == 1
        assert diverged["runs"][0]["diverged_at"] == 23
        assert diverged["train_loss"] is diverged["score"] is None
        assert diverged["lr"] == 1e30

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--optimizer", "adamm"], f"expected one of {', '.join(contenders())}, got 'adamm'"),
            (["--optimizer"], "--optimizer: expected at least one argument"),
            (["--data", "iris"], f"--data: expected one of {', '.join(DATA)}, got 'iris'"),
            (["--epochs", "0"], "--epochs: expected an integer >= 1, got '0'"),
            (["--epochs", "many"], "--epochs: expected an integer >= 1, got 'many'"),
            (["--epochs", "1", "--seconds", "1"], "--seconds: not allowed with argument --epochs"),
            (["--steps", "1", "--seconds", "1"], "--seconds: not allowed with argument --steps"),
            (["--seconds", "0"], "--seconds: expected a finite number > 0, got '0'"),
            (["--hidden", "0"], "--hidden: expected an integer >= 1, got '0'"),
            (["--batch-size", "-3"], "--batch-size: expected an integer >= 1, got '-3'"),
            (["--seed", "-1"], "--seed: expected an integer >= 0, got '-1'"),
            (["--seeds", "0"], "--seeds: expected an integer >= 1, got '0'"),
            (["--lr", "0"], "--lr: expected a finite number > 0, got '0'"),
            (["--lr", "nan"], "--lr: expected a finite number > 0, got 'nan'"),
            (["--lr", "fast"], "--lr: expected a finite number > 0, got 'fast'"),
            (["--lr", "1", "--tune"], "--tune: not allowed with argument --lr"),
            (["--schedule", "step"], "--schedule: expected one of constant, "),
            (["--max-grad-norm", "0"], "--max-grad-norm: expected a number > 0 or inf, got '0'"),
            (["--max-grad-norm", "-1"], "--max-grad-norm: expected a number > 0 or inf, got '-1'"),
            (
                ["--max-grad-norm", "nan"],
                "--max-grad-norm: expected a number > 0 or inf, got 'nan'",
            ),
            (
                ["--max-grad-norm", "one"],
                "--max-grad-norm: expected a number > 0 or inf, got 'one'",
            ),
        ],
    )
    def test_arguments_that_make_no_sense(self, options, complaint, capsys, tmp_path):
        with pytest.raises(SystemExit) as ended:
            compare_in(tmp_path / "out", *options)
        assert ended.value.code == 2
        assert complaint in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("module", "distribution"),
        [
            ("sklearn", "scikit-learn"),
            ("matplotlib", "matplotlib"),
            ("rich", "rich"),
            ("jinja2", "jinja2"),
        ],
    )
    def test_a_missing_extra(self, module, distribution, monkeypatch, capsys, tmp_path):
        monkeypatch.setitem(sys.modules, module, None)
        assert compare_in(tmp_path / "out") == 1
        written = capsys.readouterr()
        install = "python -m pip install 'onepass[compare]'"
        assert written.err == f"onepass: needs {distribution}: {install}\n"
        assert not written.out
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_cannot_be(self, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert compare_in(tmp_path / "file") == 1
        assert str(tmp_path / "file") in capsys.readouterr().err


SMALL = ("--data", "wine", "--epochs", 4, "--seeds", 2, "--optimizer", "adam", "--hidden", 8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log of a comparison that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert compare_in(folder, *SMALL, "--tune") == 0
    return without_times(log_lines(folder))


class TestResume:
    """An interrupted comparison goes on, and ends as one that was not interrupted."""

    @pytest.mark.parametrize("lines", [1, 3, 4, 21, 98])
    def test_interrupted_after_any_line(self, lines, whole, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(journal, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        original, count = journal.Journal.add, iter(range(10**6))

        def add(self, training):
            original(self, training)
            if next(count) == lines:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(journal.Journal, "add", add)
            assert compare_in(tmp_path, *SMALL, "--tune") == cli.INTERRUPTED
        assert "repeat the command with --resume" in capsys.readouterr().err
        assert len(log_lines(tmp_path)) == lines + 1
        reported = any(line["seed"] == 0 and line["done"] for line in log_lines(tmp_path))
        assert (tmp_path / "report.html").exists() == reported
        trained = []
        original_epoch = Training._epoch
        monkeypatch.setattr(
            Training, "_epoch", lambda s, last: trained.append(1) or original_epoch(s, last)
        )
        assert compare_in(tmp_path, *SMALL, "--tune", "--resume") == 0
        assert without_times(log_lines(tmp_path)) == whole
        first = sum(line["epoch"] == 0 for line in whole[lines + 1 :])
        assert len(trained) == len(whole) - lines - 1 - first  # and not one more
        assert not list(tmp_path.glob("checkpoint*"))

    @pytest.mark.parametrize("cut", [0, 1, 30])
    def test_killed_in_a_line_of_the_log(self, cut, whole, tmp_path, monkeypatch):
        original = journal.Journal.add

        def add(self, training):
            original(self, training)
            if training.last.epoch == 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(journal.Journal, "add", add)
            assert compare_in(tmp_path, *SMALL, "--tune") == cli.INTERRUPTED
        log = tmp_path / "log.jsonl"
        log.write_bytes(log.read_bytes()[: -cut or None])
        assert compare_in(tmp_path, *SMALL, "--tune", "--resume") == 0
        assert without_times(log_lines(tmp_path)) == whole

    @pytest.mark.skipif(os.name != "posix", reason="needs signals")
    def test_ctrl_c(self, tmp_path):
        # A process in the background may inherit that it ignores Ctrl-C.
        code = """
import signal, sys
from onepass.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""
        command = [sys.executable, "-c", code, "compare", "--epochs", "100000", "--out", tmp_path]
        with subprocess.Popen(
            command,
            env={**os.environ, "FORCE_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            written = b""
            while b"SGD" not in written:  # it trains
                chunk = os.read(process.stderr.fileno(), 4096)
                assert chunk, written
                written += chunk
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"Traceback" not in rest
        assert rest.endswith(b"repeat the command with --resume to go on\nonepass: interrupted\n")
        assert log_lines(tmp_path)

    def test_refused(self, tmp_path, capsys, monkeypatch):
        with pytest.raises(SystemExit):
            compare_in(tmp_path, *SMALL, "--resume")
        assert "--resume: expected an unfinished comparison" in capsys.readouterr().err
        with monkeypatch.context() as patch:
            patch.setattr(Training, "_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert compare_in(tmp_path, *SMALL) == cli.INTERRUPTED
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(SystemExit):
            compare_in(tmp_path, *SMALL)
        assert "--out: expected no unfinished comparison" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            compare_in(tmp_path, *SMALL, "--schedule", "constant", "--resume")
        complaint = "--resume: expected schedule as it was, cosine, got constant"
        assert complaint in capsys.readouterr().err
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A comparison's folder, one of its contenders having diverged."""
    folder = tmp_path_factory.mktemp("small")
    assert compare_in(folder, "--epochs", 2, "--seeds", 2, "--optimizer", "adam", "sgd") == 0
    return folder


def comparison(*options):
    """A small comparison, its runs done."""
    args = cli._parser().parse_args(["compare", *map(str, options)])
    experiment = compare._experiment(args)
    for entry in experiment.entries:
        for seed in experiment.seeds:
            run_ = Run(entry.contender, entry.batch_norm, seed)
            epochs = Training(run_, experiment.recipe).epochs()
            entry.results.append(Result.of(run_, list(epochs)))
    return experiment.comparison


class TestPictures:
    @pytest.mark.parametrize("options", [[], ["--no-batch-norm"]], ids=["both", "no batch norm"])
    def test_curves(self, options):
        """A column of panels each; the mean over the seeds, and a band to the extremes."""
        from onepass.compare.picture import draw_curves

        done = comparison(
            *options, "--epochs", 3, "--optimizer", "adam", "sgd", "--max-grad-norm", 0.5
        )
        figure = draw_curves(done)
        titles = ["digits with batch norm", "digits without batch norm"][len(options) :]
        rows = np.reshape(figure.axes, (4, len(titles)))
        quantities = (
            lambda point: point.train_loss,
            lambda point: 1 - point.score,
            lambda point: point.grad_norm,
            lambda point: point.lr,
        )
        for row, quantity in zip(rows, quantities, strict=True):
            for axes, title in zip(row, titles, strict=True):
                assert axes.get_yscale() == "log"
                assert axes.get_ylim() == row[0].get_ylim()
                entries = [e for e in done.entries if e.batch_norm == ("without" not in title)]
                bands = axes.collections
                for entry, line, band in zip(entries, axes.lines, bands, strict=False):
                    runs = [[quantity(point) for point in r.curve] for r in entry.results]
                    values = np.array(runs, float)
                    np.testing.assert_array_equal(line.get_xdata(), [0, 23, 46, 69])
                    np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0))
                    corners = band.get_paths()[0].vertices[:, 1]
                    assert corners.min() == pytest.approx(np.nanmin(values))
                    assert corners.max() == pytest.approx(np.nanmax(values))
        assert [axes.get_title() for axes in rows[0]] == titles
        assert [[line.get_ydata() for line in axes.lines[2:]] for axes in rows[2]] == (
            [[[0.5, 0.5]]] * len(titles)  # where it is clipped
        )
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [
            "Adam, lr 0.005",
            "SGD, lr 0.5",
            "clipped to 0.5",
        ]

    def test_times(self):
        from onepass.compare.picture import draw_times

        done = comparison("--epochs", 1, "--seeds", 2, "--optimizer", "adam", "sgd")
        (axes,) = draw_times(done).axes
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == [
            f"{name} {norm} batch norm" for name in ("Adam", "SGD") for norm in ("with", "without")
        ]
        gradient, update = ([bar.get_width() for bar in bars] for bars in axes.containers)
        for entry, *widths in zip(done.entries, gradient, update, strict=True):
            ends = [result.final for result in entry.results]
            steps = 1e-6 * sum(end.step for end in ends)
            assert widths[0] == pytest.approx(sum(end.gradient_seconds for end in ends) / steps)
            assert widths[1] == pytest.approx(sum(end.update_seconds for end in ends) / steps)


class TestPage:
    def test_it_stands_alone_and_says_everything(self, small):
        html = (small / "report.html").read_text(encoding="utf-8")
        written = strict_json(small / "results.json")
        assert not re.findall(r"(?:src|href)=[\"'](?!data:)", html)
        assert "<script" not in html
        pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
        for picture in pictures:
            svg = ElementTree.fromstring(base64.b64decode(picture))
            assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(pictures) == 2
        for value in written["made_by"].values():
            assert value in html
        for entry in written["entries"]:
            assert f"<td>{entry['score']['mean']:.1%} ±" in html

    def test_a_browser_shows_it(self, small):
        browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
        if browser is None:
            pytest.skip("no browser is installed")
        html = (small / "report.html").read_text(encoding="utf-8")
        page_ = small / "with_script.html"
        # What the page itself forbids, so here without that line: it reports what was rendered.
        html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
        script = (
            "<script>onload = () => document.title = JSON.stringify([...document.images]"
            ".map(i => i.complete && i.naturalWidth > 300 && i.getBoundingClientRect().width > 300)"
            ".concat(document.querySelectorAll('#results tbody tr').length))</script>"
        )
        page_.write_text(html.replace("</body>", f"{script}</body>"), encoding="utf-8")
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page_.as_uri()],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert "<title>[true,true,4]</title>" in done.stdout

    def test_a_name_from_outside_is_text(self):
        done = comparison("--epochs", 1, "--seeds", 1, "--optimizer", "sgd", "--no-batch-norm")
        html = page.render(done, ["<b>"], ["<i>"], [["<u>"]], {"command": "--out '<script>'"})
        assert not re.search("<(b|i|u|script)>", html)


def test_an_infinite_norm_is_not_in_the_numbers():
    curve = [
        Measurement(0, 0, 2.0, 2.0, 0.1, None, None, 0, 0.0, 0.0),
        Measurement(1, 5, 1.0, 1.0, 0.5, math.inf, 0.1, 5, 0.1, 0.1),
    ]
    contender = contenders()["SGD"]
    entry = Entry(contender, True, [Result(Run(contender, True, 0), curve, None)])
    (written,) = report.as_dict(Comparison(Recipe(), [entry]))["entries"]
    assert written["runs"][0]["curve"]["grad_norm"] == [None, None]
    assert written["clipped_share"]["mean"] == 1


class TestInfo:
    def test_info_without_extras(self):
        code = """
import sys
sys.modules.update(dict.fromkeys(("sklearn", "matplotlib", "rich", "jinja2", "optuna")))
from onepass.cli import main
sys.exit(main(["info"]))
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": "3"},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
        rows = {name: value.strip() for name, value in lines.items()}
        assert rows["onepass"] == cli.__version__
        assert "baseline" in rows["isas built"]
        assert rows["isa in use"].split(" (")[0] in rows["isas built"]
        assert rows["threads"] in (
            "3 (OMP_NUM_THREADS)",
            "1 (serial, because this process was forked)",
        )
        assert rows["compiler"]
        assert "-ffp-contract=off" in rows["flags"]

    def test_version_and_help(self, capsys):
        with pytest.raises(SystemExit) as ended:
            cli.main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"onepass {cli.__version__}\n"
        assert cli.main([]) == 0
        assert "compare" in capsys.readouterr().out
