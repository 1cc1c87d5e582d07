"""What the command line promises: `onepass compare` and `onepass info`."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from commands import draw_nothing, run, start, strict_json
from onepass.lab import cli, compare
from onepass.lab._picture import new_figure
from onepass.lab.compare import journal, page, report
from onepass.lab.compare.contenders import contenders
from onepass.lab.compare.data import DATA
from onepass.lab.compare.picture import draw_curves, draw_rates, draw_times
from onepass.lab.compare.results import Comparison, Entry, Result, Tried
from onepass.lab.compare.training import Measurement, Recipe, Run, Training


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_times(lines):
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


def tips():
    """Return the options that the page tells to try, each with its values."""
    page = Path(__file__).parent.parent / "docs" / "compare.md"
    section = page.read_text(encoding="utf-8").partition("\n## ")[0]
    codes = re.findall(r"`(--[^`]+)`((?: \([^)]*`[^)]*\))?)", section.replace("\n", " "))
    for code, others in codes:
        option, *values = code.split()
        yield [option, *values]
        yield from ([option, other] for other in re.findall("`([^`]+)`", others))


TIPS = [tip for tip in tips() if tip != ["--resume"]]  # which has tests of its own


@pytest.fixture
def empty_pictures(monkeypatch):
    draw_nothing(monkeypatch)


def compare_in(folder, *options):
    return cli.main(["compare", *map(str, options), "--out", str(folder)])


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
            "seeds": [5, 6],
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

    @pytest.mark.usefixtures("empty_pictures")
    def test_the_log_has_a_line_an_epoch(self, tmp_path):
        assert compare_in(tmp_path, "--epochs", 3, "--seeds", 2, "--optimizer", "adam") == 0
        lines = log_lines(tmp_path)
        assert [(line["seed"], line["batch_norm"], line["epoch"]) for line in lines] == [
            (seed, batch_norm, epoch)
            for seed in (5, 6)
            for batch_norm in (True, False)
            for epoch in range(4)
        ]
        assert [line["done"] for line in lines] == [False, False, False, True] * 4
        expected = [
            measurement
            for run_ in (Run(contenders()["Adam"], True, 5), Run(contenders()["Adam"], False, 5))
            for measurement in Training(run_, Recipe(epochs=3)).epochs()
        ]
        for line, measurement in zip(lines[:8], expected, strict=True):
            assert {k: line[k] for k in Measurement._fields[:-2]} == dict(
                zip(Measurement._fields[:-2], measurement, strict=False)
            )

    @pytest.mark.usefixtures("empty_pictures")
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

    @pytest.mark.usefixtures("empty_pictures")
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

    @pytest.mark.usefixtures("empty_pictures")
    def test_batch_norm_alone(self, tmp_path):
        options = ("--batch-norm", "--epochs", 1, "--seeds", 1, "--optimizer", "sgd")
        assert compare_in(tmp_path, *options) == 0
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        assert entry["batch_norm"]

    @pytest.mark.usefixtures("empty_pictures")
    def test_the_network(self, tmp_path, capsys):
        options = ("--layers", 3, "--hidden", 6, "--dropout", 0.25, "--data", "wine")
        options = (*options, "--epochs", 1, "--seeds", 1, "--optimizer", "sgd", "--no-batch-norm")
        assert compare_in(tmp_path, *options) == 0
        written = strict_json(tmp_path / "results.json")
        assert written["network"]["sizes"] == [13, 6, 6, 6, 3]
        assert written["network"]["dropout"] == 0.25
        table = capsys.readouterr().out
        assert "network 13-6-6-6-3 without batch norm, dropout 0.25: 189 parameters" in table

    @pytest.mark.usefixtures("empty_pictures")
    def test_several_of_one_class(self, tmp_path):
        names = ("SGD(lr=0.25)", "sgd(momentum=0.5, nesterov=True)", "adam")
        options = ("--data", "wine", "--steps", 1, "--seeds", 1, "--no-batch-norm", "--lr", 0.125)
        assert compare_in(tmp_path, *options, "--optimizer", *names) == 0
        entries = strict_json(tmp_path / "results.json")["entries"]
        assert [(entry["name"], entry["lr"]) for entry in entries] == [
            ("SGD(lr=0.25)", 0.25),
            ("SGD(momentum=0.5, nesterov=True)", 0.125),
            ("Adam", 0.125),
        ]
        assert entries[1]["hyperparameters"]["nesterov"] is True

    @pytest.mark.parametrize(
        ("given", "complaint"),
        [
            (["SGD(lr=-1)"], "argument --optimizer: SGD(lr=-1): lr: expected a finite number"),
            (["SGD(speed=1)"], "argument --optimizer: SGD(speed=1): speed: expected one of the "),
            (["SGD(lr=1)", "--tune"], "argument --optimizer: expected no lr with argument --tune"),
        ],
    )
    def test_settings_that_make_no_sense(self, given, complaint, tmp_path, capsys):
        with pytest.raises(SystemExit) as ended:
            compare_in(tmp_path, "--optimizer", *given)
        assert ended.value.code == 2
        assert complaint in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    @pytest.mark.usefixtures("empty_pictures")
    @pytest.mark.parametrize("kind", ["words", "numbers"])
    def test_data_from_a_file(self, kind, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        x = np.random.default_rng(0).normal(size=(50, 2, 3))
        y = np.where(x[:, 0, 0] > 0, "up", "down") if kind == "words" else x[:, 0].sum(axis=-1)
        np.savez("mine.npz", x=x, y=y, goal=0.25)
        options = ("--data", "mine.npz", "--epochs", 1, "--seeds", 1, "--optimizer", "sgd")
        assert compare_in("out", *options) == 0
        out = capsys.readouterr().out
        assert out.startswith("mine: 40 rows to train on, 10 to validate\n")
        outputs = 2 if kind == "words" else 1
        assert f"network 6-128-64-{outputs} with batch norm" in out
        written = strict_json(Path("out", "results.json"))
        assert written["data"] == {"name": "mine", "train": 40, "validation": 10}

    @pytest.mark.parametrize(
        ("arrays", "complaint"),
        [
            ({"x": np.ones((20, 2))}, "expected arrays x and y, got x"),
            ({"x": np.ones(20), "y": np.arange(20)}, "x: expected rows of finite numbers, got"),
            ({"x": np.full((20, 2), np.nan), "y": np.arange(20)}, "x: expected rows of finite"),
            ({"x": np.ones((20, 2)), "y": np.arange(19)}, "y: expected a number or a word for"),
            ({"x": np.ones((9, 2)), "y": np.arange(9)}, "x: expected 10 rows at least, got 9"),
            ({"x": np.ones((20, 2)), "y": np.ones(20, int)}, "y: expected two classes at least"),
            ({"x": np.ones((20, 2)), "y": np.full(20, np.inf)}, "y: expected finite numbers"),
        ],
    )
    def test_a_file_that_holds_no_data(self, arrays, complaint, tmp_path, capsys):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(SystemExit) as ended:
            compare_in(tmp_path / "out", "--data", tmp_path / "bad.npz")
        assert ended.value.code == 2
        assert complaint in capsys.readouterr().err

    def test_a_file_that_has_changed_is_not_resumed(self, tmp_path, capsys, monkeypatch):
        path = tmp_path / "mine.npz"
        np.savez(path, x=np.eye(20), y=np.arange(20) % 2)
        with monkeypatch.context() as patch:
            patch.setattr(Training, "_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert compare_in(tmp_path, "--data", path) == cli.INTERRUPTED
        np.savez(path, x=np.eye(20), y=np.arange(20) % 3)
        with pytest.raises(SystemExit):
            compare_in(tmp_path, "--resume")
        assert "expected content of the data as it was" in capsys.readouterr().err

    @pytest.mark.usefixtures("empty_pictures")
    def test_momentum_and_betas_of_those_that_have_them(self, tmp_path, capsys):
        options = ("--momentum", 0.5, "--betas", 0.75, 0.875, "--steps", 2, "--seeds", 1)
        names = ("SGD", "Momentum", "Adam", "Adan")
        assert compare_in(tmp_path, *options, "--no-batch-norm", "--optimizer", *names) == 0
        assert "momentum 0.5, betas 0.75 0.875 where an optimizer has it" in capsys.readouterr().out
        found = {
            entry["name"]: entry["hyperparameters"]
            for entry in strict_json(tmp_path / "results.json")["entries"]
        }
        assert found["SGD"]["momentum"] == 0
        assert found["Momentum"]["momentum"] == 0.5
        assert found["Adam"]["betas"] == [0.75, 0.875]
        assert found["Adan"]["betas"] == [0.98, 0.92, 0.99]

    @pytest.mark.usefixtures("empty_pictures")
    def test_who_cannot_keep_its_state_so_is_left_out(self, tmp_path, capsys):
        options = ("--state-format", "q8", "--steps", 2, "--seeds", 1, "--no-batch-norm")
        assert compare_in(tmp_path, *options, "--optimizer", "rprop", "adam") == 0
        table = capsys.readouterr().out
        assert "without Rprop: the state has to be float32" in table
        assert "state in q8 where an array has 4,096 numbers or more" in " ".join(table.split())
        written = strict_json(tmp_path / "results.json")
        assert written["state_format"] == "q8"
        assert [entry["name"] for entry in written["entries"]] == ["Adam"]

    @pytest.mark.usefixtures("empty_pictures")
    def test_a_budget_of_seconds(self, tmp_path):
        options = ("--seconds", 0.1, "--seeds", 1, "--optimizer", "adam", "--no-batch-norm")
        assert compare_in(tmp_path, *options) == 0
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        curve = entry["runs"][0]["curve"]
        spent = [
            a + b for a, b in zip(curve["gradient_seconds"], curve["update_seconds"], strict=True)
        ]
        assert spent[-2] < 0.1 <= spent[-1]

    def test_tune(self, tmp_path, capsys):
        """Of the rates that are as good as the best within noise, the smallest."""
        options = ("--tune", "--epochs", 2, "--seeds", 1, "--optimizer", "sgd", "--no-batch-norm")
        assert compare_in(tmp_path, *options) == 0
        assert "its peak chosen on 3 other seeds" in capsys.readouterr().out
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        ends = {}
        for line in log_lines(tmp_path):
            if line["done"] and line["seed"] != 5:
                ends.setdefault(line["lr_peak"], {})[line["seed"]] = line["validation_loss"]
        assert list(ends)[:5] == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
        assert all(list(losses) == [6, 7, 8] for losses in ends.values())
        losses = {lr: np.array(list(each.values())) for lr, each in ends.items()}
        coarse = min(list(losses)[:5], key=lambda lr: losses[lr].mean())
        assert list(losses)[5:] == pytest.approx([coarse / 2, coarse * 2, coarse * 3])
        best = min(losses.values(), key=np.mean)

        def error(values):
            return values.std(ddof=1) / math.sqrt(3)

        excess = {lr: each - best for lr, each in losses.items()}
        chosen = min(lr for lr, e in excess.items() if e.mean() <= min(error(best), error(e)))
        assert entry["lr"] == chosen != contenders()["SGD"].lr
        assert entry["runs"][0]["curve"]["lr"][-1] == pytest.approx(chosen / 10)
        for tried in entry["tried"]:
            expected = losses[tried["lr"]]
            assert tried["validation_loss"] == pytest.approx(expected.mean())
            assert tried["standard_error"] == pytest.approx(expected.std(ddof=1) / math.sqrt(3))
            assert tried["seeds"] == [6, 7, 8]

    @pytest.mark.usefixtures("empty_pictures")
    @pytest.mark.parametrize("rates", [(1e-6, 1e-5), (1e-2, 1.0)], ids=["lowest", "inside"])
    def test_tune_warns_at_the_edge_of_the_rates(self, rates, tmp_path, capsys, monkeypatch):
        """Of tiny rates the highest is best; of others, 3 is too much."""
        monkeypatch.setattr(compare.experiment, "RATES", rates)
        options = ("--tune", "--epochs", 2, "--seeds", 1, "--optimizer", "sgd", "--no-batch-norm")
        assert compare_in(tmp_path, *options) == 0
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        is_there = "warning: at the edge of the learning rates" in capsys.readouterr().out
        assert is_there == entry["lr_at_the_edge"] == (rates[0] == 1e-6)
        html = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert ("warning: at the edge" in html) == is_there

    def test_tune_where_all_rates_diverge(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(compare.experiment, "RATES", (1e20, 1e25))
        options = ("--tune", "--epochs", 1, "--seeds", 1, "--optimizer", "sgd", "--no-batch-norm")
        assert compare_in(tmp_path, *options) == 0
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        assert entry["lr"] == contenders()["SGD"].lr
        assert [trial["validation_loss"] for trial in entry["tried"]] == [None, None]
        assert [trial["seeds"] for trial in entry["tried"]] == [[6], [6]]  # no need of another
        assert "warning: diverged at every learning rate tried" in capsys.readouterr().out

    @pytest.mark.usefixtures("empty_pictures")
    def test_the_norm_is_measured_where_nothing_is_clipped(self, tmp_path, capsys):
        options = ("--max-grad-norm", "inf", "--epochs", 1, "--seeds", 1, "--optimizer", "sgd")
        assert compare_in(tmp_path, *options) == 0
        assert "not clipped" in capsys.readouterr().out
        written = strict_json(tmp_path / "results.json")
        assert written["budget"]["max_grad_norm"] is None
        for entry in written["entries"]:
            assert entry["clipped_share"]["mean"] == 0
            assert entry["runs"][0]["curve"]["grad_norm"][1] > 0.5

    def test_one_row_a_step_leaves_out_batch_norm(self, tmp_path, capsys):
        """It has no variance; the page says that this runs."""
        options = ("--batch-size", 1, "--steps", 3, "--seeds", 1, "--optimizer", "adam")
        assert compare_in(tmp_path, *options) == 0
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        assert entry["batch_norm"] is False
        said = "no runs with batch norm: a batch of one row has no variance"
        assert said in capsys.readouterr().out
        assert said in (tmp_path / "report.html").read_text(encoding="utf-8")

    @pytest.mark.usefixtures("empty_pictures")
    @pytest.mark.parametrize("tip", TIPS, ids=" ".join)
    def test_the_tips_of_the_readme(self, tip, tmp_path):
        """Each option as it is written there, in a comparison that is small otherwise."""
        small = {"--optimizer": "sgd", "--seeds": 1, "--hidden": 4}
        small |= {} if {"--steps", "--seconds"} & {*tip} else {"--epochs": 1}
        words = [pair for pair in small.items() if pair[0] not in tip]
        assert compare_in(tmp_path, *(word for pair in words for word in pair), *tip) == 0

    def test_the_readme_has_tips(self):
        assert {"--lr", "--tune", "--data", "--batch-size", "--steps", "--seconds"} <= {
            tip[0] for tip in TIPS
        }

    def test_a_terminal_gets_a_progress_bar(self, tmp_path):
        options = ("--epochs", 2, "--seeds", 1, "--optimizer", "sgd", "--out", tmp_path)
        done = run("compare", *options, FORCE_COLOR="1")
        assert done.returncode == 0
        assert "2/2" in done.stderr
        assert "2/2" not in done.stdout

    def test_nobody_is_left(self, tmp_path):
        options = ("--data", "wine", "--epochs", 2, "--seeds", 2, "--optimizer", "sgd")
        assert compare_in(tmp_path, *options, "--lr", 1e30, "--no-batch-norm") == 0

    @pytest.mark.usefixtures("empty_pictures")
    def test_two_rows_a_step_are_enough_for_batch_norm(self, tmp_path):
        options = ("--batch-size", 2, "--steps", 3, "--seeds", 1, "--optimizer", "sgd")
        assert compare_in(tmp_path, *options) == 0

    @pytest.mark.parametrize("norm", ["1", "inf"])
    def test_divergence(self, norm, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        options = ("--epochs", 1, "--seeds", 2, "--lr", 1e30, "--max-grad-norm", norm)
        assert compare_in(tmp_path, *options, "--optimizer", "sgd", "adamw") == 0
        table = capsys.readouterr().out
        assert "diverged" in table
        assert "…" not in table  # it fits
        _, diverged, *_ = strict_json(tmp_path / "results.json")["entries"]
        assert not diverged["batch_norm"]
        assert diverged["diverged"] == 2
        assert diverged["runs"][0]["diverged_at"] == 23
        assert diverged["train_loss"] is diverged["score"] is diverged["all_ms"] is None
        assert diverged["lr"] == 1e30

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (
                ["--optimizer", "adamm"],
                f"expected one of {', '.join(contenders())}, all, got 'adamm'",
            ),
            (["--optimizer"], "--optimizer: expected at least one argument"),
            (
                ["--data", "iris"],
                f"--data: expected one of {', '.join(DATA)} or FILE.npz, got 'iris'",
            ),
            (["--epochs", "0"], "--epochs: expected an integer >= 1, got '0'"),
            (["--epochs", "many"], "--epochs: expected an integer >= 1, got 'many'"),
            (["--epochs", "1", "--seconds", "1"], "--seconds: not allowed with argument --epochs"),
            (["--steps", "1", "--seconds", "1"], "--seconds: not allowed with argument --steps"),
            (["--seconds", "0"], "--seconds: expected a finite number > 0, got '0'"),
            (["--hidden", "0"], "--hidden: expected an integer >= 1, got '0'"),
            (["--batch-size", "-3"], "--batch-size: expected an integer >= 1 or all, got '-3'"),
            (["--seed", "-1"], "--seed: expected an integer >= 0, got '-1'"),
            (["--seeds", "0"], "--seeds: expected an integer >= 1, got '0'"),
            (
                ["--hidden", "4", "5", "--layers", "3"],
                "--layers: expected one number of --hidden be",
            ),
            (["--layers", "0"], "--layers: expected an integer >= 1, got '0'"),
            (["--dropout", "1"], "--dropout: expected a number in [0, 1), got '1'"),
            (["--betas", "1"], "--betas: expected a number in [0, 1), got '1'"),
            (["--betas", "0.9"], "--betas: expected an optimizer that has 1, got none"),
            (
                ["--momentum", "0.9", "--optimizer", "sgd"],
                "--momentum: expected an optimizer that has it, got none",
            ),
            (
                ["--momentum", "0", "--optimizer", "nesterov"],
                "Nesterov: momentum: expected more than 0 ",
            ),
            (
                ["--batch-norm", "--batch-size", "1"],
                "--batch-norm: expected a --batch-size of 2 or more, got 1",
            ),
            (
                ["--state-format", "f8"],
                "--state-format: expected one of float32, bf16, q8, got 'f8'",
            ),
            (
                ["--state-format", "q8", "--optimizer", "rprop"],
                "--state-format: expected float32 for Rprop, got q8",
            ),
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


def few_rates(patch):
    """Let `--tune` try three rates, with two seeds each: six runs."""
    patch.setattr(compare.experiment, "RATES", (1e-3, 1e-1))
    patch.setattr(compare.experiment, "FACTORS", (2.0,))
    patch.setattr(compare.experiment, "SEEDS_A_RATE", 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The log of a comparison that was not interrupted: 2 (6 + 2) runs of 5 lines."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        few_rates(patch)
        assert compare_in(folder, *SMALL, "--tune") == 0
    return without_times(log_lines(folder))


def interrupt_where(monkeypatch, holds, folder, *options):
    """Run a comparison until Ctrl-C after the first line of the log where this holds."""
    original = journal.Journal.add

    def add(self, training):
        original(self, training)
        if holds(self, training):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "add", add)
        assert compare_in(folder, *options) == cli.INTERRUPTED


def count_lines(written):
    """Lines of a journal."""
    return sum(map(len, written._lines.values()))


class TestResume:
    """An interrupted comparison goes on, and ends as one that was not interrupted."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch, empty_pictures):  # noqa: ARG002
        few_rates(monkeypatch)

    @pytest.mark.parametrize("lines", [1, 3, 4, 33, 78])
    def test_interrupted_after_any_line(self, lines, whole, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(journal, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)

        def holds(written, _training):
            return count_lines(written) == lines + 1

        interrupt_where(monkeypatch, holds, tmp_path, *SMALL, "--tune")
        assert f"onepass compare --out {tmp_path} --resume\n" in capsys.readouterr().err
        assert len(log_lines(tmp_path)) == lines + 1
        reported = any(line["seed"] == 5 and line["done"] for line in log_lines(tmp_path))
        assert (tmp_path / "report.html").exists() == reported
        trained = []
        original_epoch = Training._epoch
        monkeypatch.setattr(
            Training, "_epoch", lambda s, last: trained.append(1) or original_epoch(s, last)
        )
        assert compare_in(tmp_path, "--resume") == 0  # by the options that stand there
        assert without_times(log_lines(tmp_path)) == whole
        first = sum(line["epoch"] == 0 for line in whole[lines + 1 :])
        assert len(trained) == len(whole) - lines - 1 - first  # and not one more
        assert not list(tmp_path.glob("checkpoint*"))

    @pytest.mark.parametrize("cut", [0, 1, 30])
    def test_killed_in_a_line_of_the_log(self, cut, whole, tmp_path, monkeypatch):
        interrupt_where(
            monkeypatch, lambda _, training: training.last.epoch == 3, tmp_path, *SMALL, "--tune"
        )
        log = tmp_path / "log.jsonl"
        log.write_bytes(log.read_bytes()[: -cut or None])
        assert compare_in(tmp_path, *SMALL, "--tune", "--resume") == 0
        assert without_times(log_lines(tmp_path)) == whole

    @pytest.mark.skipif(os.name != "posix", reason="needs signals")
    def test_ctrl_c(self, tmp_path):
        options = ("--epochs", 100000, "--out", tmp_path)
        with start("compare", *options, FORCE_COLOR="1") as process:
            written = b""
            while b"SGD" not in written:  # it trains
                chunk = os.read(process.stderr.fileno(), 4096)
                assert chunk, written
                written += chunk
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"Traceback" not in rest
        again = f"to go on: onepass compare --out {tmp_path} --resume\nonepass: interrupted\n"
        assert rest.endswith(again.encode())
        assert log_lines(tmp_path)

    @pytest.mark.parametrize("cut", [False, True])
    def test_from_a_state_some_epochs_ago(self, cut, tmp_path, monkeypatch):
        """Saved after epoch 2 of the second run, interrupted after its epoch 5; or in the third."""
        options = ("--data", "wine", "--epochs", 8, "--seeds", 2, "--optimizer", "adam")
        assert compare_in(tmp_path / "whole", *options) == 0
        expected = without_times(log_lines(tmp_path / "whole"))
        monkeypatch.setattr(journal, "SECONDS_BETWEEN_CHECKPOINTS", math.inf)
        lines = 9 + 6 if not cut else 18 + 2

        def holds(written, training):
            if count_lines(written) == 9 + 3:
                written.save(training)
            return count_lines(written) == lines

        out = tmp_path / "out"
        interrupt_where(monkeypatch, holds, out, *options)
        trained = []
        epoch = Training._epoch
        monkeypatch.setattr(
            Training, "_epoch", lambda s, last: trained.append(s.run) or epoch(s, last)
        )
        assert compare_in(out, *options, "--resume") == 0
        assert without_times(log_lines(out)) == expected
        assert len(trained) == (6 if not cut else 8) + (16 if not cut else 8)
        seconds = [line["gradient_seconds"] for line in log_lines(out)]
        for begin in range(0, 36, 9):
            assert seconds[begin : begin + 9] == sorted(seconds[begin : begin + 9])

    @pytest.mark.parametrize(
        "harm",
        [
            lambda folder: (folder / "checkpoint.npz").write_bytes(b"x"),
            lambda folder: next(folder.glob("checkpoint-*.npz")).unlink(),
            lambda folder: next(folder.glob("checkpoint-*.npz")).write_bytes(b""),
        ],
    )
    def test_a_damaged_checkpoint_costs_one_run(self, harm, tmp_path, monkeypatch):
        options = ("--data", "wine", "--epochs", 4, "--seeds", 1, "--optimizer", "adam")
        assert compare_in(tmp_path / "whole", *options) == 0
        monkeypatch.setattr(journal, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        out = tmp_path / "out"
        interrupt_where(monkeypatch, lambda _, training: training.last.epoch == 3, out, *options)
        harm(out)
        assert compare_in(out, *options, "--resume") == 0
        logs = [log_lines(tmp_path / name) for name in ("out", "whole")]
        assert without_times(logs[0]) == without_times(logs[1])

    def test_with_dropout_and_a_state_of_few_bits(self, tmp_path, monkeypatch):
        """What is left out after the interruption is what would have been."""
        options = ("--data", "wine", "--epochs", 4, "--seeds", 1, "--optimizer", "adam")
        options = (*options, "--hidden", 80, "--layers", 2, "--dropout", 0.3)
        options = (*options, "--state-format", "q8")
        assert compare_in(tmp_path / "whole", *options) == 0
        monkeypatch.setattr(journal, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        out = tmp_path / "out"
        interrupt_where(monkeypatch, lambda _, training: training.last.epoch == 2, out, *options)
        assert compare_in(out, *options, "--resume") == 0
        logs = [log_lines(tmp_path / name) for name in ("out", "whole")]
        assert without_times(logs[0]) == without_times(logs[1])

    def test_a_run_that_diverged_before(self, tmp_path, monkeypatch):
        options = ("--data", "wine", "--epochs", 3, "--seeds", 2, "--lr", 1e20)
        options = (*options, "--optimizer", "sgd", "--no-batch-norm")
        interrupt_where(monkeypatch, lambda _, training: training.run.seed == 6, tmp_path, *options)
        page_ = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "interrupted: 1 of 2 runs" in page_
        assert compare_in(tmp_path, *options, "--resume") == 0
        (entry,) = strict_json(tmp_path / "results.json")["entries"]
        assert entry["diverged"] == 2

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")])
    def test_a_report_that_fails_can_be_written_later(self, error, tmp_path, monkeypatch):
        def fail(*_):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(report, "draw_curves", fail)
            assert compare_in(tmp_path, *SMALL) != 0
        monkeypatch.setattr(Training, "_epoch", fail)
        assert compare_in(tmp_path, *SMALL, "--resume") == 0
        made_by = strict_json(tmp_path / "results.json")["made_by"]
        again = ["onepass", "compare", *map(str, SMALL), "--out", str(tmp_path)]
        assert sorted(shlex.split(made_by["command"])) == sorted(again)  # without --resume

    def test_nothing_old_is_taken_up(self, tmp_path):
        """A state left behind, here by hand, is none of a new comparison."""
        for name in ("checkpoint.npz", "checkpoint-46.npz", ".checkpoint.npz.0123"):
            (tmp_path / name).write_bytes(b"old")
        assert compare_in(tmp_path, *SMALL) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "curves.png",
            "log.jsonl",
            "report.html",
            "results.json",
        ]
        lines = len(log_lines(tmp_path))
        with pytest.raises(SystemExit):
            compare_in(tmp_path, *SMALL)
        assert compare_in(tmp_path, *SMALL, "--force") == 0  # once more, from the start
        assert len(log_lines(tmp_path)) == lines

    def test_at_most_two_files_of_state(self, tmp_path, monkeypatch):
        monkeypatch.setattr(journal, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        original, counts = journal.Journal.save, []

        def save(self, training):
            original(self, training)
            counts.append(len(list(tmp_path.glob("*checkpoint*"))))

        monkeypatch.setattr(journal.Journal, "save", save)
        assert compare_in(tmp_path, *SMALL) == 0
        assert set(counts) == {2}

    @pytest.mark.parametrize(
        "other",
        [
            ("--data", "digits"),
            ("--hidden", 9),
            ("--epochs", 5),
            ("--batch-size", 16),
            ("--max-grad-norm", "inf"),
            ("--seed", 1),
            ("--seeds", 1),
            ("--optimizer", "sgd"),
            ("--lr", 0.1),
            ("--tune",),
            ("--no-batch-norm",),
            ("--dropout", 0.1),
            ("--layers", 2),
            ("--betas", 0.5, 0.5),
            ("--state-format", "bf16"),
        ],
    )
    def test_other_settings(self, other, tmp_path, capsys, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(Training, "_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert compare_in(tmp_path, *SMALL) == cli.INTERRUPTED
        strict_json(tmp_path / "settings.json")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(SystemExit) as ended:
            compare_in(tmp_path, *SMALL, *other, "--resume")
        assert ended.value.code == 2
        assert "as it was" in capsys.readouterr().err
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}

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
        assert (
            "--out: expected a folder without an unfinished comparison" in capsys.readouterr().err
        )
        with pytest.raises(SystemExit):
            compare_in(tmp_path, *SMALL, "--schedule", "constant", "--resume")
        complaint = "--resume: expected schedule as it was, cosine, got constant"
        assert complaint in capsys.readouterr().err
        assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A comparison's folder, tuned, with two seeds."""
    folder = tmp_path_factory.mktemp("small")
    options = (
        "--data",
        "wine",
        "--tune",
        "--epochs",
        2,
        "--seeds",
        2,
        "--optimizer",
        "adam",
        "sgd",
    )
    with pytest.MonkeyPatch.context() as patch:
        few_rates(patch)
        assert compare_in(folder, *options) == 0
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
                    known = np.isfinite(values[0])  # a norm and a rate from the first step on
                    at = np.array([0, 23, 46, 69])[known]
                    np.testing.assert_array_equal(line.get_xdata(), at)
                    np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0)[known])
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

    def test_curves_over_time(self):
        """Two seeds of three and of five epochs, on one axis; and one that diverged."""
        contender = contenders()["SGD"]

        def result(seed, seconds, diverged_at=None):
            curve = [
                Measurement(i, 7 * i, 2.0 - t, 1.0, t, 1.0, 0.1, 0, t, 0.0)
                for i, t in enumerate(seconds)
            ]
            return Result(Run(contender, False, seed), curve, diverged_at)

        results = [result(5, [0, 0.5, 1]), result(6, [0, 0.25, 0.5, 0.75, 1])]
        entry = Entry(contender, False, [*results, result(7, [0, 0.5], 14)])
        figure = draw_curves(Comparison(Recipe(seconds=1.0), [entry], planned=3))
        cross, line, *_ = figure.axes[0].lines
        assert cross.get_xydata().tolist() == [[0.5, 1.5]]
        x, y = line.get_data()
        assert (np.diff(x) > 0).all()
        assert (x[0], x[-1]) == (0, 1)
        np.testing.assert_allclose(y, 2.0 - x)  # on which all of them lie
        assert figure.axes[-1].get_xlabel() == "seconds of training"
        assert "diverged" in [text.get_text() for text in figure.legends[0].get_texts()]

    def test_the_legend_has_a_rate_only_where_all_columns_have_it(self):
        done = comparison("--epochs", 1, "--seeds", 1, "--optimizer", "adam", "sgd")
        done.entries[0].contender = done.entries[0].contender.with_lr(0.01)
        (legend,) = draw_curves(done).legends
        names = [text.get_text() for text in legend.get_texts()]
        assert names[:2] == ["Adam", "SGD, lr 0.5"]

    def test_rates(self):
        """Means over the seeds, what diverged left out, zeros shown, a ring about the choice."""
        contender = contenders()["SGD"]

        def result(lr, loss, diverged_at=None):
            end = Measurement(0, 0, loss, loss, 0.5, None, None, 0, 0.0, 0.0)
            return Result(Run(contender.with_lr(lr), False, 8), [end], diverged_at)

        tried = [
            Tried(0.1, [result(0.1, 2.5), result(0.1, 3.5)]),
            Tried(0.01, [result(0.01, 0.0), result(0.01, 0.0)]),
            Tried(1.0, [result(1.0, 9.0, 4)]),
            Tried(0.001, [result(0.001, 1e9), result(0.001, 1e9)]),
        ]
        entry = Entry(contender.with_lr(0.01), False, [result(0.01, 3.0)], tried)
        (axes,) = draw_rates(Comparison(Recipe(), [entry], planned=0)).axes
        line, chosen, *_ = axes.lines
        np.testing.assert_array_equal(line.get_xdata(), [0.001, 0.01, 0.1])
        low, high = axes.get_ylim()
        assert line.get_ydata()[2] == 3.0
        assert low < line.get_ydata()[1] < 3.0 < high < 1e9 == line.get_ydata()[0]
        np.testing.assert_array_equal(chosen.get_xydata(), line.get_xydata()[1:2])
        assert {text.get_text() for text in axes.texts} == {"0", f"cut above {high:.1g}"}
        (bars,) = axes.collections
        ends = [path.vertices[:, 1] for path in bars.get_paths()]
        np.testing.assert_allclose(ends[2], [2.5, 3.5])  # deviation sqrt(1/2), over sqrt(2)

    def test_a_perfect_score_and_a_run_that_explodes(self):
        """Neither vanishes, and neither makes the others small."""
        contender = contenders()["SGD"]

        def entry(losses, scores):
            curve = [
                Measurement(i, 7 * i, loss, loss, score, 1.0, 0.1, 0, 0.1 * i, 0.0)
                for i, (loss, score) in enumerate(zip(losses, scores, strict=True))
            ]
            return Entry(contender, False, [Result(Run(contender, False, 5), curve, None)])

        entries = [
            entry([2.0, 0.5, 0.25], [0.1, 0.9, 1.0]),
            entry([2.0, 1e20, 1e200], [0.1, 0.1, 0.1]),
        ]
        losses, errors, *_ = draw_curves(Comparison(Recipe(), entries, planned=2)).axes
        low, high = losses.get_ylim()
        assert 0.1 < low < 0.25
        assert 2 < high < 10
        assert [text.get_text() for text in losses.texts] == [f"cut above {high:.1g}"]
        low, _ = errors.get_ylim()
        assert low < errors.lines[0].get_ydata()[2] < 0.1
        assert [text.get_text() for text in errors.texts] == ["0"]

    def test_times(self):
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
        assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", html)
        assert "<script" not in html
        pictures = re.findall(r"<svg.*?</svg>", html, re.S)
        for picture in pictures:
            assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
        assert len(pictures) == 3
        assert "its peak chosen on 3 other seeds" in html
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
            "<script>onload = () => document.title = JSON.stringify("
            "[...document.querySelectorAll('.picture svg')]"
            ".map(svg => svg.getBoundingClientRect().width > 300)"
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
        assert "<title>[true,true,true,4]</title>" in done.stdout

    def test_each_curve_has_a_name_to_point_at(self):
        """Lines, bands, and the line and the text of the legend."""
        names = ["SGD(lr=0.1)", "Adam, lr 0.005"]
        done = comparison("--epochs", 1, "--optimizer", "SGD(lr=0.1)", "adam")
        html = page.drawn(draw_curves(done))
        found = re.findall(r'<g class="curve c(\d)"><title>(.*?)</title>', html)
        assert {*found} == set(zip("01", names, strict=True))
        # Four panels a column, two columns, a line and a band in each.
        assert [found.count(each) for each in zip("01", names, strict=True)] == [18, 18]
        for number in "01":
            assert f"svg:has(.c{number}:hover) .curve:not(.c{number})" in html
        assert ":hover" not in page.drawn(new_figure(1, 1))

    def test_a_slow_run_does_not_move_the_times(self):
        """Of three seeds, one ran while something else did."""
        contender = contenders()["SGD"]
        results = [
            Result(
                Run(contender, True, seed),
                [Measurement(1, 4, 1.0, 1.0, 0.5, 1.0, 0.1, 0, 2 * update, update)],
                None,
            )
            for seed, update in enumerate((0.002, 9.0, 0.004))
        ]
        done = Comparison(Recipe(steps=4), [Entry(contender, True, results)], planned=3)
        assert report.rows(done)[0][-2:] == ["4.0", "12"]
        (axes,) = draw_times(done).axes
        widths = [bar.get_width() for bars in axes.containers for bar in bars]
        assert widths == pytest.approx([2000, 1000])  # microseconds of a step, of four

    def test_a_name_from_outside_is_text(self):
        done = comparison("--epochs", 1, "--seeds", 1, "--optimizer", "sgd", "--no-batch-norm")
        html = page.render(
            done, new_figure(1, 1), ["<b>"], ["<i>"], [["<u>"]], {"command": "--out '<script>'"}
        )
        assert not re.search("<(b|i|u|script)>", html)


class TestReport:
    """By hand: two seeds of three get through, one of them to the goal."""

    @pytest.fixture
    def done(self):
        contender = contenders()["SGD"]
        start = Measurement(0, 0, 2.0, 2.0, 0.1, None, None, 0, 0.0, 0.0)

        def result(seed, train_loss, score, clipped, gradient, update):
            end = Measurement(1, 4, train_loss, 1.0, score, 1.0, 0.1, clipped, gradient, update)
            return Result.of(Run(contender, True, seed), [start, end])

        results = [
            result(5, 0.25, 0.96, 4, 0.010, 0.002),
            result(6, 0.75, 0.90, 2, 0.030, 0.004),
            result(7, math.nan, 0.99, 1, 9.0, 9.0),
        ]
        return Comparison(Recipe(steps=4), [Entry(contender, True, results)], planned=6)

    def test_the_cells(self, done):
        (row,) = report.rows(done)
        # The deviation: sqrt(0.03**2 + 0.03**2), of two.
        assert row == [
            "SGD", "yes", "0.5", "0.5 (1 div.)", "93.0% ±4.2", "4 (1/3)", "75%", "3.0", "23",
        ]  # fmt: skip

    def test_the_numbers(self, done):
        (entry,) = report.as_dict(done)["entries"]
        assert entry["diverged"] == entry["goal_reached"] == 1
        assert entry["steps_to_goal"] == {"mean": 4, "deviation": None, "median": 4}
        assert entry["clipped_share"]["mean"] == 0.75
        assert entry["update_ms"]["mean"] == pytest.approx(3)
        assert entry["all_ms"]["mean"] == pytest.approx(23)
        assert [len(run_["curve"]["step"]) for run_ in entry["runs"]] == [2, 2, 1]

    @pytest.mark.parametrize(
        ("recipe", "line"),
        [
            (Recipe(), "20 epochs each, batch size 64: 23 steps an epoch, seeds 5 to 7"),
            (Recipe(steps=1000), "1,000 steps each, batch size 64: 23 steps an epoch, seeds"),
            (Recipe(seconds=0.5), "0.5 seconds each, batch size 64: 23 steps"),
            (Recipe(batch_size=None), "20 epochs each, batch size 1,438: 1 steps an epoch"),
            (Recipe(batch_size=5000), "20 epochs each, batch size 1,438: 1 steps an epoch"),
        ],
    )
    def test_the_description(self, done, recipe, line):
        found = report.describe(replace(done, recipe=recipe))
        assert found[0] == "digits: 1,438 images to train on, 359 to validate"
        assert found[2].startswith(line)
        assert found[3] == "learning rate cosine, gradient norm clipped to 1"
        assert found[4:] == ["interrupted: 3 of 6 runs"]
        one = Entry(done.entries[0].contender, True, done.entries[0].results[:1])
        assert report.describe(replace(done, entries=[one], planned=1))[2].endswith(", seed 5")

    def test_an_r2_far_below_zero_fits_the_table(self):
        contender = contenders()["SGD"]
        end = Measurement(0, 0, 2.0, 2.0, -3e9, None, None, 0, 0.0, 0.0)
        entry = Entry(contender, True, [Result(Run(contender, True, 5), [end], None)])
        (row,) = report.rows(Comparison(Recipe(data="diabetes"), [entry], planned=1))
        assert row[4] == "< -1000%"


def test_an_infinite_norm_is_not_in_the_numbers():
    curve = [
        Measurement(0, 0, 2.0, 2.0, 0.1, None, None, 0, 0.0, 0.0),
        Measurement(1, 5, 1.0, 1.0, 0.5, math.inf, 0.1, 5, 0.1, 0.1),
    ]
    contender = contenders()["SGD"]
    entry = Entry(contender, True, [Result(Run(contender, True, 0), curve, None)])
    (written,) = report.as_dict(Comparison(Recipe(), [entry], planned=1))["entries"]
    assert written["runs"][0]["curve"]["grad_norm"] == [None, None]
    assert written["clipped_share"]["mean"] == 1


class TestInfo:
    def test_info_without_extras(self):
        code = """
import sys
sys.modules.update(dict.fromkeys(("sklearn", "matplotlib", "rich", "jinja2", "optuna")))
from onepass.lab.cli import main
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
        assert rows["cpu"] == cli.runtime.info()["cpu"]
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
