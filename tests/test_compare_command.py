"""What the command line promises: `onepass compare` and `onepass info`."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from onepass import cli
from onepass.compare import report
from onepass.compare.contenders import contenders
from onepass.compare.data import digits
from onepass.compare.training import Budget, Comparison, Measurement, Result


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


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
        options = ("--epochs", 2, "--optimizer", "adam", "SGD", "Adam", "--out", out)
        done = run("compare", *options, COLUMNS="80")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert all(len(line) <= 80 for line in done.stdout.splitlines()[:-2])
        assert done.stdout.splitlines()[-2:] == [str(out / "loss.png"), str(out / "results.json")]
        assert (out / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        written = strict_json(out / "results.json")
        assert written["budget"]["epochs"] == 2
        assert written["budget"]["batch_size"] == 64
        assert written["budget"]["steps"] == 46
        assert written["runtime"]["version"] == cli.__version__
        assert [(result["name"], result["batch_norm"]) for result in written["results"]] == [
            ("Adam", True),
            ("Adam", False),
            ("SGD", True),
            ("SGD", False),
        ]
        for result in written["results"]:
            curve = result["curve"]
            assert curve["step"] == [*range(0, 46, 5), 46]
            assert curve["train_loss"][-1] == result["train_loss"]
            assert curve["validation_accuracy"][-1] == result["validation_accuracy"]
            assert curve["grad_norm"][0] is curve["lr"][0] is None
            assert all(norm > 0 for norm in curve["grad_norm"][1:])
            assert curve["lr"][-1] == pytest.approx(result["lr"] / 10)
            assert len(set(map(len, curve.values()))) == 1
            assert 0 < result["clipped_share"] == sum(curve["clipped"]) / 46 < 1
            assert result["diverged_at"] is None
            assert result["parameters"] == (17_418 if result["batch_norm"] else 17_226)
            assert (
                result["lr"] == contenders()[result["name"]].lr == result["hyperparameters"]["lr"]
            )
        rows = [line.split() for line in done.stdout.splitlines()]
        start = next(i for i, row in enumerate(rows) if row[:1] == ["Adam"])
        for row, result in zip(rows[start:], written["results"], strict=False):
            if result["batch_norm"]:  # the first of two: with what they share
                assert row[:3] == [result["name"], "yes", f"{result['lr']:g}"]
            else:
                assert row[0] == "no"
            assert row[-5] == f"{result['validation_accuracy']:.1%}"
            assert row[-3] == f"{result['clipped_share']:.1%}"

    def test_no_batch_norm(self, tmp_path, capsys):
        options = ["--no-batch-norm", "--epochs", "1", "--optimizer", "adam", "sgd"]
        assert cli.main(["compare", *options, "--out", str(tmp_path)]) == 0
        results = strict_json(tmp_path / "results.json")["results"]
        assert [(result["name"], result["batch_norm"]) for result in results] == [
            ("Adam", False),
            ("SGD", False),
        ]
        table = capsys.readouterr().out
        assert "without batch norm: 17,226 parameters" in table
        assert "with batch norm" not in table

    @pytest.mark.parametrize("options", [[], ["--no-batch-norm"]], ids=["both", "no batch norm"])
    def test_the_picture_has_a_column_of_panels_each(self, options, tmp_path, monkeypatch):
        figures = []
        original = Figure.savefig
        monkeypatch.setattr(
            Figure, "savefig", lambda f, path: figures.append(f) or original(f, path)
        )
        options = [*options, "--epochs", "1", "--optimizer", "adam", "sgd"]
        options += ["--max-grad-norm", "0.5"]
        assert cli.main(["compare", *options, "--out", str(tmp_path)]) == 0
        (figure,) = figures
        titles = ["with batch norm", "without batch norm"][
            1 if "--no-batch-norm" in options else 0 :
        ]
        rows = np.reshape(figure.axes, (3, len(titles)))
        results = strict_json(tmp_path / "results.json")["results"]
        for row, quantity in zip(rows, ("train_loss", "grad_norm", "lr"), strict=True):
            for axes, title in zip(row, titles, strict=True):
                assert axes.get_yscale() == "log"
                assert axes.get_ylim() == row[0].get_ylim()
                drawn = [line.get_ydata() for line in axes.lines[:2]]
                expected = [
                    result["curve"][quantity]
                    for result in results
                    if result["batch_norm"] == (title == "with batch norm")
                ]
                np.testing.assert_array_equal(drawn, np.array(expected, float))
        for axes, title in zip(rows[0], titles, strict=True):
            assert axes.get_title().endswith(f"64-128-64-10 {title}")
        assert [[line.get_ydata() for line in axes.lines[2:]] for axes in rows[1]] == (
            [[[0.5, 0.5]]] * len(titles)  # where it is clipped
        )
        assert not any(axes.lines[2:] for axes in (*rows[0], *rows[2]))
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [
            "Adam, lr 0.005",
            "SGD, lr 0.5",
            "clipped to 0.5",
        ]

    def test_the_norm_is_measured_where_nothing_is_clipped(self, tmp_path, capsys):
        options = ["--max-grad-norm", "inf", "--epochs", "1", "--optimizer", "sgd"]
        assert cli.main(["compare", *options, "--out", str(tmp_path)]) == 0
        assert "not clipped" in capsys.readouterr().out
        written = strict_json(tmp_path / "results.json")
        assert written["budget"]["max_grad_norm"] is None
        for result in written["results"]:
            assert result["clipped_share"] == 0
            assert max(result["curve"]["grad_norm"][1:]) > 1

    @pytest.mark.parametrize(("schedule", "last"), [("constant", 0.5), ("cosine", 0.05)])
    def test_schedule(self, schedule, last, tmp_path):
        options = ["--schedule", schedule, "--epochs", "2", "--optimizer", "sgd"]
        assert cli.main(["compare", *options, "--out", str(tmp_path)]) == 0
        written = strict_json(tmp_path / "results.json")
        assert written["budget"]["schedule"] == schedule
        for result in written["results"]:
            rates = result["curve"]["lr"][1:]
            assert max(rates) == pytest.approx(0.5, rel=1e-2)  # a measurement misses the peak
            assert rates[-1] == pytest.approx(last)

    def test_batch_norm_needs_two_images_a_step(self, tmp_path, capsys):
        options = ["--batch-size", "1", "--epochs", "1", "--optimizer", "adam"]
        with pytest.raises(SystemExit) as ended:
            cli.main(["compare", *options, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        complaint = "argument --batch-size: expected an integer >= 2 with batch norm"
        assert complaint in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert cli.main(["compare", *options, "--no-batch-norm", "--out", str(tmp_path)]) == 0
        assert strict_json(tmp_path / "results.json")["budget"]["steps"] == 1438

    def test_a_last_batch_of_one_row(self, tmp_path):
        options = ["--batch-size", "479", "--epochs", "2", "--optimizer", "adam"]
        assert cli.main(["compare", *options, "--out", str(tmp_path)]) == 0
        assert strict_json(tmp_path / "results.json")["budget"]["steps"] == 2 * 3

    def test_a_terminal_gets_a_progress_bar(self, tmp_path):
        options = ("--epochs", 2, "--optimizer", "sgd", "--out", tmp_path)
        done = run("compare", *options, FORCE_COLOR="1")
        assert done.returncode == 0
        assert "92/92" in done.stderr
        assert "92/92" not in done.stdout

    @pytest.mark.parametrize("norm", ["1", "inf"])
    def test_divergence(self, norm, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        options = ["--epochs", "1", "--lr", "1e30", "--max-grad-norm", norm]
        assert cli.main(["compare", *options, "--out", str(tmp_path)]) == 0
        table = capsys.readouterr().out
        assert "diverged" in table
        assert "…" not in table  # it fits
        written = strict_json(tmp_path / "results.json")
        _, diverged, *_ = written["results"]
        assert not diverged["batch_norm"]
        assert diverged["diverged_at"] > 0
        assert diverged["train_loss"] is diverged["validation_accuracy"] is None
        assert diverged["lr"] == 1e30

    def test_an_infinite_norm_is_not_in_the_numbers(self, tmp_path):
        curve = [Measurement(0, 2.0, 0.1), Measurement(5, 1.0, 0.5, math.inf, 0.1, 5)]
        result = Result(contenders()["SGD"], True, curve, None, 0.0, 0.0)
        report.write(Comparison(Budget(), digits(np.random.default_rng(0)), [result]), tmp_path)
        (written,) = strict_json(tmp_path / "results.json")["results"]
        assert written["curve"]["grad_norm"] == [None, None]
        assert written["clipped_share"] == 1

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--optimizer", "adamm"], f"expected one of {', '.join(contenders())}, got 'adamm'"),
            (["--optimizer"], "--optimizer: expected at least one argument"),
            (["--epochs", "0"], "--epochs: expected an integer >= 1, got '0'"),
            (["--epochs", "many"], "--epochs: expected an integer >= 1, got 'many'"),
            (["--batch-size", "-3"], "--batch-size: expected an integer >= 1, got '-3'"),
            (["--seed", "-1"], "--seed: expected an integer >= 0, got '-1'"),
            (["--lr", "0"], "--lr: expected a finite number > 0, got '0'"),
            (["--lr", "nan"], "--lr: expected a finite number > 0, got 'nan'"),
            (["--lr", "fast"], "--lr: expected a finite number > 0, got 'fast'"),
            (["--schedule", "step"], "--schedule: expected one of constant, cosine, got 'step'"),
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
    def test_arguments_that_make_no_sense(self, options, complaint, capsys):
        with pytest.raises(SystemExit) as ended:
            cli.main(["compare", *options])
        assert ended.value.code == 2
        assert complaint in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("module", "distribution"),
        [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("rich", "rich")],
    )
    def test_a_missing_extra(self, module, distribution, monkeypatch, capsys, tmp_path):
        monkeypatch.setitem(sys.modules, module, None)
        out = tmp_path / "out"
        assert cli.main(["compare", "--out", str(out)]) == 1
        written = capsys.readouterr()
        install = "python -m pip install 'onepass[compare]'"
        assert written.err == f"onepass: needs {distribution}: {install}\n"
        assert not written.out
        assert not out.exists()

    def test_a_folder_that_cannot_be(self, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert cli.main(["compare", "--out", str(tmp_path / "file")]) == 1
        assert str(tmp_path / "file") in capsys.readouterr().err

    @pytest.mark.skipif(os.name != "posix", reason="needs signals")
    def test_interrupted(self, tmp_path):
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
        assert rest.endswith(b"onepass: interrupted\n")


class TestInfo:
    def test_info_without_extras(self):
        code = """
import sys
sys.modules.update(dict.fromkeys(("sklearn", "matplotlib", "rich", "threadpoolctl")))
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
