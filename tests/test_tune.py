"""What `onepass tune` promises: which trials there are, what stays on disk, what it prints."""

import html
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import count

import matplotlib as mpl
import numpy as np
import optuna
import pytest
from matplotlib import pyplot as plt
from optuna.trial import FixedTrial, TrialState

import onepass as op
from commands import draw_nothing, run, start, strict_json
from helpers import shaped
from onepass.lab import cli
from onepass.lab._arguments import SEED
from onepass.lab.compare.contenders import contenders
from onepass.lab.compare.schedules import SCHEDULES
from onepass.lab.compare.training import Measurement
from onepass.lab.tune import each, picture, report, search
from onepass.lab.tune.search import Search, quiet
from onepass.lab.tune.space import Settings

WINE = Settings("wine", 2, ("SGD", "Momentum", "Adam"), seed=0, layers=(1, 2), units=(16, 32))
PICTURES = ["history.png", "importances.png", "slices.png", "parallel.png"]
FILES = ["report.html", *PICTURES, "results.json"]


@pytest.fixture(autouse=True)
def silence():
    with quiet():
        yield


def ignore(_done, _name):
    pass


def done(folder, trials, settings=WINE):
    study = Search(settings, folder, resume=False)
    study.run(ignore, trials=trials)
    return study


def outcome(study):
    return [(t.state, t.params, t.intermediate_values, t.value) for t in study.trials]


def scripted(monkeypatch, *curves):
    """Let the trials' trainings have these losses, epoch by epoch from the untrained network on.

    A pair is the loss in training and in validation.
    """
    waiting = iter(curves)

    class Scripted:
        def __init__(self, _run, _recipe):
            self.curve = next(waiting)

        def epochs(self):
            for epoch, loss in enumerate(self.curve):
                train, validation = loss if isinstance(loss, tuple) else (loss, loss)
                self.done = epoch == len(self.curve) - 1
                yield Measurement(epoch, epoch, train, validation, 0.5, None, None, 0, 0.0, 0.0)

        def spent(self, measurement):
            return measurement.epoch / (len(self.curve) - 1)

    monkeypatch.setattr(search, "Training", Scripted)


CHOICES = {
    "lr": 0.25, "momentum": 0.75, "beta1": 0.625, "beta2": 0.9, "beta3": 0.99, "batch_size": 16,
    "layers": 3, "units_1": 32, "units_2": 16, "units_3": 64, "dropout": 0.125,
    "batch_norm": False, "state_format": "float32", "weight_decay": 0.01, "schedule": "one_cycle",
}  # fmt: skip
"""What a trial may choose."""


class TestSearchSpace:
    @pytest.mark.parametrize("name", contenders())
    def test_what_is_searched(self, name):
        trial = FixedTrial({"optimizer": name, **CHOICES})
        run, recipe = Settings("wine", 3, (name,), seed=5).suggest(trial)
        known = contenders()[name]
        has_momentum = bool(known.hyperparameters.get("momentum"))
        expected = {**known.settings, "lr": 0.25, **({"momentum": 0.75} if has_momentum else {})}
        if betas := known.hyperparameters.get("betas"):
            expected["betas"] = (0.625, 0.9, 0.99)[: len(betas)]
        if name != "Rprop":  # which takes neither
            expected["weight_decay"] = 0.01
            assert recipe.schedule == "one_cycle"
        assert ("weight_decay" in trial.params) == ("schedule" in trial.params) == (name != "Rprop")
        assert run.contender.settings == expected
        assert run.contender.optimizer is contenders()[name].optimizer
        assert ("momentum" in trial.params) == has_momentum
        assert (run.seed, run.batch_norm) == (5, False)
        assert (recipe.data, recipe.epochs, recipe.batch_size) == ("wine", 3, 16)
        assert (recipe.hidden, recipe.dropout) == ((32, 16, 64), 0.125)

    def test_ranges(self, tmp_path, monkeypatch):
        scripted(monkeypatch, *[[1.0, 0.5]] * 6)
        spaces = {}
        for trial in done(tmp_path, 6, Settings("wine", 1, WINE.optimizers, seed=0)).trials:
            spaces |= trial.distributions
            assert {f"units_{i + 1}" for i in range(trial.params["layers"])} == {
                name for name in trial.params if name.startswith("units_")
            }
        assert spaces["optimizer"].choices == WINE.optimizers
        assert (spaces["lr"].low, spaces["lr"].high, spaces["lr"].log) == (1e-4, 1, True)
        assert (spaces["layers"].low, spaces["layers"].high) == (1, 10)
        assert (spaces["dropout"].low, spaces["dropout"].high) == (0, 0.5)
        assert set(spaces["batch_norm"].choices) == {True, False}
        assert set(spaces["schedule"].choices) < set(SCHEDULES)
        assert spaces["weight_decay"].choices == (0, 1e-4, 1e-3, 1e-2, 1e-1)
        for name in ("batch_size", "units_1"):
            assert all(math.log2(choice).is_integer() for choice in spaces[name].choices)

    def test_numbers_are_short_and_within_their_range(self):
        """The command that repeats a trial can be read."""
        settings = Settings("wine", 3, ("Momentum",), seed=5, lr=(0.012345, 0.02))
        for lr, expected in ((0.0123456, 0.012345), (0.0154321, 0.0154)):
            trial = FixedTrial({"optimizer": "Momentum", **CHOICES, "lr": lr, "dropout": 1 / 3})
            run, recipe = settings.suggest(trial)
            assert (run.contender.lr, recipe.dropout) == (expected, 0.333)

    def test_one_value_alone(self, tmp_path):
        one = Settings(
            "wine", 1, ("Adam",), 0, lr=(0.01, 0.01), layers=(2, 2), units=(8,), dropout=(0, 0),
            batch_size=(None,), batch_norm=(False,), state_format=("q8",), schedule=("polynomial",),
            weight_decay=(0.5,),
        )  # fmt: skip
        run, recipe = one.suggest(done(tmp_path, 1, one).trials[0])
        assert run.contender.lr == 0.01
        assert not run.batch_norm
        assert (recipe.hidden, recipe.dropout, recipe.batch_size) == ((8, 8), 0, None)
        assert (recipe.state_format, recipe.schedule) == ("q8", "polynomial")
        assert run.contender.hyperparameters["weight_decay"] == 0.5

    def test_one_row_a_step_has_no_batch_norm(self):
        one = Settings("wine", 1, ("Adam",), 0, batch_size=(1, 2))
        for size in (1, 2):
            values = {**CHOICES, "batch_size": size, "batch_norm": True}
            run, _ = one.suggest(FixedTrial({"optimizer": "Adam", **values}))
            assert run.batch_norm == (size == 2)


class TestTrials:
    def test_the_same_seed_makes_the_same_trials(self, tmp_path):
        first, second = (outcome(done(tmp_path / name, 4)) for name in "ab")
        assert first == second
        other = Settings("wine", 2, WINE.optimizers, seed=1)
        third = outcome(done(tmp_path / "c", 4, other))
        assert [params for _, params, *_ in first] != [params for _, params, *_ in third]

    def test_no_two_trials_are_the_same(self, tmp_path):
        rates = [trial.params["lr"] for trial in done(tmp_path, 5).trials]
        assert len(set(rates)) == 5

    def test_the_value_is_the_last_validation_loss(self, tmp_path):
        (trial,) = done(tmp_path, 1).trials
        assert trial.state == TrialState.COMPLETE
        assert list(trial.intermediate_values) == [0, 1, 2]
        assert trial.value == trial.intermediate_values[2]
        assert 0 <= trial.user_attrs["score"] <= 1

    def test_interrupted_and_resumed_is_as_if_never_interrupted(self, tmp_path):
        trials = 13  # more than the sampler draws at random
        expected = outcome(done(tmp_path / "whole", trials))
        folder = tmp_path / "parts"
        study = Search(WINE, folder, resume=False)

        def interrupt(done, _name):
            if done > 11.4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            study.run(interrupt, trials=trials)
        assert outcome(study) == expected[:11]
        resumed = Search(WINE, folder, resume=True)
        resumed.run(ignore, trials=trials)
        assert outcome(resumed) == expected

    def test_a_trial_that_was_killed_is_forgotten(self, tmp_path):
        expected = outcome(done(tmp_path / "whole", 3))
        killed = done(tmp_path / "killed", 2)
        WINE.suggest(killed.study.ask())
        resumed = Search(WINE, tmp_path / "killed", resume=True)
        assert not resumed.study.get_trials(states=(TrialState.RUNNING,))
        resumed.run(ignore, trials=3)
        assert outcome(resumed) == expected

    def test_more_trials_and_no_fewer(self, tmp_path):
        before = outcome(done(tmp_path, 2))
        study = Search(WINE, tmp_path, resume=True)
        study.run(ignore, trials=1)
        assert outcome(study) == before
        study.run(ignore, trials=3)
        assert outcome(study)[:2] == before
        assert len(study.trials) == 3

    def test_seconds(self, tmp_path, monkeypatch):
        scripted(monkeypatch, *[[1.0, 0.5]] * 99)
        clock = count()  # a second a look
        monkeypatch.setattr(search, "perf_counter", lambda: next(clock))
        shown = []
        study = Search(WINE, tmp_path, resume=False)
        study.run(lambda done, _name: shown.append(done), seconds=7)
        # Looks: the start at 0, then one before each trial and two in it: 1 to 3, 4 to 6.
        assert shown == [2, 3, 5, 6]
        assert len(study.trials) == 2

    @pytest.mark.parametrize("loss", [math.nan, math.inf, (math.inf, 0.1), (0.1, math.inf)])
    def test_divergence(self, loss, tmp_path, monkeypatch):
        scripted(monkeypatch, [1.0, loss], [1.0, 0.5, 0.4])
        study = done(tmp_path, 2)
        assert [search.diverged(trial) for trial in study.trials] == [True, False]
        assert [trial.number for trial in study.ranking] == [1]
        report.write(study, tmp_path, ["onepass"])
        first, second = strict_json(tmp_path / "results.json")["trials"]
        assert (first["state"], first["validation_loss"]) == ("diverged", [1.0, None])
        assert (second["state"], second["validation_loss"]) == ("complete", [1.0, 0.5, 0.4])
        assert "0 of them pruned, 1 diverged" in report.describe(study)[0]

    def test_weights_beyond_float32(self, tmp_path, capsys):
        options = ["--data", "wine", "--epochs", "1", "--trials", "2", "--optimizer", "sgd"]
        options += ["--lr", "1e37", "1e38"]
        assert cli.main(["tune", *options, "--out", str(tmp_path)]) == 0
        written = strict_json(tmp_path / "results.json")
        assert [trial["state"] for trial in written["trials"]] == ["diverged"] * 2
        assert written["best"] is None
        assert not list(tmp_path.glob("*.png"))
        assert "2 diverged" in capsys.readouterr().out

    def test_a_trial_worse_than_the_median_is_left(self, tmp_path, monkeypatch):
        good = [[3.0, *[0.1] * 10]] * 5
        slow = [9.0, 9.0, 0.05, *[0.05] * 8]  # not in a fifth of the epochs
        scripted(monkeypatch, *good, [9.0] * 11, slow)
        study = done(tmp_path, 7, Settings("wine", 10, ("SGD",), seed=0))
        *_, hopeless, late = study.trials
        assert hopeless.state == TrialState.PRUNED
        assert max(hopeless.intermediate_values) == 2
        assert late.state == TrialState.COMPLETE
        assert study.ranking[0] == late

    def test_the_last_epoch_is_too_late_to_leave(self, tmp_path, monkeypatch):
        scripted(monkeypatch, *[[3.0, 1.0, 1.0, 0.1]] * 5, [3.0, 1.0, 1.0, 1.0])
        study = done(tmp_path, 6, Settings("wine", 3, ("SGD",), seed=0))
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6


class TestFolder:
    def test_another_study_is_left_alone(self, tmp_path):
        done(tmp_path, 1)
        before = (tmp_path / "study.log").read_bytes()
        with pytest.raises(
            ValueError, match=r"--out: expected a folder without a study, got .*resume"
        ):
            Search(WINE, tmp_path, resume=False)
        for name, settings in (
            ("data", replace(WINE, data="digits")),
            ("epochs", replace(WINE, epochs=3)),
            ("optimizers", replace(WINE, optimizers=("SGD",))),
            ("seed", replace(WINE, seed=7)),
            ("layers", replace(WINE, layers=(1, 3))),
            ("state_format", replace(WINE, state_format=("q8",))),
        ):
            with pytest.raises(ValueError, match=f"--resume: expected {name} as it was, .*, got "):
                Search(settings, tmp_path, resume=True)
        assert (tmp_path / "study.log").read_bytes() == before

    def test_half_a_line_at_the_end(self, tmp_path):
        """What a process that was killed leaves, or a full disk."""
        done(tmp_path, 2)
        log = tmp_path / "study.log"
        log.write_bytes(log.read_bytes()[:-20])
        search = Search(WINE, tmp_path, resume=True)
        assert len(search.trials) == 1  # the second one's end is gone
        search.run(lambda *_: None, trials=2)
        assert [trial.params for trial in search.trials] == [
            trial.params for trial in done(tmp_path / "other", 2).trials
        ]

    def test_nothing_to_resume(self, tmp_path):
        with pytest.raises(ValueError, match="--resume: expected a study, got none in"):
            Search(WINE, tmp_path / "new", resume=True)
        assert not (tmp_path / "new").exists()

    def test_an_empty_log_is_no_study(self, tmp_path):
        (tmp_path / "study.log").touch()  # what is left if it is killed as it begins
        with pytest.raises(ValueError, match="--resume: expected a study"):
            Search(WINE, tmp_path, resume=True)
        assert not Search(WINE, tmp_path, resume=False).trials


class TestPictures:
    @pytest.mark.parametrize("trials", [0, 1, 2, 4])
    def test_few_trials(self, trials, tmp_path):
        study = done(tmp_path, trials)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            paths = picture.draw(study.study, tmp_path)
        assert [path.name for path in paths] == (PICTURES if trials > 1 else [])
        for path in paths:
            assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    def test_a_loss_of_zero_is_in_the_pictures(self, tmp_path, monkeypatch):
        """-0 too; and the best so far with it."""
        losses = [0.5, 0.0, 1e-3, -0.0]
        scripted(monkeypatch, *[[1.0, loss] for loss in losses])
        study = done(tmp_path, 4, Settings("wine", 1, ("SGD", "Adam"), seed=0)).study
        figures = []
        monkeypatch.setattr(plt, "close", figures.append)
        picture.draw(study, tmp_path)
        monkeypatch.undo()
        history, _, slices, parallel = figures
        for axes in (*history.axes, *slices.axes[:-1]):
            low, _ = axes.get_ylim()
            for points in axes.collections:
                at = {*points.get_offsets()[:, 1]}
                assert not at or low < min(at) < 1e-3
                assert at <= {min(at, default=0), 1e-3, 0.5}
            if axes.get_xlabel() in ("optimizer", "lr", "trial"):  # which all trials have
                assert {1e-3, 0.5} < {*axes.collections[0].get_offsets()[:, 1]}
            for line in axes.lines:
                assert (np.array(line.get_ydata()) > low).all()
            assert "0" in [text.get_text() for text in axes.texts]
        lines, best = parallel.axes[0].collections
        (marked,) = best.get_segments()
        assert any(np.array_equal(marked, each) for each in lines.get_segments())
        assert all(np.isfinite(segment).all() for segment in lines.get_segments())
        for figure in figures:
            plt.close(figure)

    def test_pyplot_is_as_it_was(self, tmp_path):
        study = done(tmp_path, 2).study
        backend = mpl.get_backend()
        try:
            with mpl.rc_context():
                mpl.rcdefaults()
                mpl.use("svg")
                styles = dict(mpl.rcParams)
                mine = plt.figure()
                picture.draw(study, tmp_path)
                assert plt.get_fignums() == [mine.number]
                assert mpl.get_backend() == "svg"
                assert dict(mpl.rcParams) == styles
        finally:
            plt.close("all")
            mpl.use(backend)

    def test_only_what_varied_is_drawn(self, tmp_path, monkeypatch):
        scripted(monkeypatch, *[[1.0, 0.5]] * 3)
        settings = Settings(
            "wine", 1, ("RMSprop",), 0, layers=(2, 2), units=(32,), dropout=(0, 0),
            batch_norm=(True,), schedule=("cosine",), weight_decay=(0.0,),
        )  # fmt: skip
        figures = self.drawn(done(tmp_path, 3, settings).study, tmp_path, monkeypatch)
        *panels, _colours = figures[2].axes
        assert {"lr"} <= {axes.get_xlabel() for axes in panels} <= {"lr", "batch_size"}

    def drawn(self, study, folder, monkeypatch):
        figures = []
        with monkeypatch.context() as patch:
            patch.setattr(plt, "close", figures.append)
            picture.draw(study, folder)
        for figure in figures:
            plt.close(figure)
        return figures

    def test_choices_that_not_all_trials_have(self, tmp_path, monkeypatch):
        """Momentum, betas, and the units of a third layer: Optuna cannot weigh these."""
        scripted(monkeypatch, *[[1.0, loss] for loss in (0.5, 0.3, 0.4, 0.1, 0.2, 0.6)])
        settings = Settings("wine", 1, ("Momentum", "Adam", "Adan"), seed=3, layers=(1, 5))
        study = done(tmp_path, 6, settings)
        assert {trial.params["optimizer"] for trial in study.trials} == {*settings.optimizers}
        _, importances, slices, parallel = self.drawn(study.study, tmp_path, monkeypatch)
        shared = {"optimizer", "lr", "layers", "units_1", "dropout", "batch_size", "batch_norm"}
        shared |= {"schedule", "weight_decay"}
        names = {text.get_text() for text in importances.axes[0].get_yticklabels()}
        assert names <= shared
        names = {text.get_text() for text in parallel.axes[0].get_xticklabels()}
        assert names <= {*shared, "log10 validation loss"}
        *panels, _colours = slices.axes
        names = {axes.get_xlabel() for axes in panels}
        assert {"beta1", "units_1"} <= names
        assert not {name for name in names if name.startswith("units_")} - {"units_1"}
        assert slices.axes[-1].get_ylabel() == "trial"
        order = [text.get_text() for text in parallel.axes[0].get_xticklabels()]
        numbers = (slices.axes[-1], parallel.axes[order.index("layers") - len(order)])
        for axes in numbers:  # there are no half trials, nor half layers
            assert all(float(tick).is_integer() for tick in axes.get_yticks())
        boxes = [axes.get_window_extent() for axes in slices.axes]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])


class TestCommand:
    def test_end_to_end(self, tmp_path):
        out = tmp_path / "deep" / "folder"
        options = ("-d", "wine", "--epochs", 2, "--trials", 6, "--optimizer", "adam", "SGD")
        finished = run("tune", *options, "-o", out, COLUMNS="120")
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""  # neither Optuna's log nor a progress bar
        assert "\x1b" not in finished.stdout
        lines = finished.stdout.splitlines()
        assert lines[-6:] == [str(out / name) for name in FILES]
        assert sorted(path.name for path in out.iterdir()) == sorted(
            [*FILES, "settings.json", "study.log"]
        )
        page = (out / "report.html").read_text(encoding="utf-8")
        assert page.count('src="data:image/png;base64,') == len(PICTURES)
        assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
        written = strict_json(out / "results.json")
        assert written["settings"]["optimizers"] == ["Adam", "SGD"]
        assert written["made_by"]["optuna"] == optuna.__version__
        assert shlex.split(written["made_by"]["command"])[:2] == ["onepass", "tune"]
        assert [trial["number"] for trial in written["trials"]] == list(range(6))
        complete = [trial for trial in written["trials"] if trial["state"] == "complete"]
        ranking = sorted(complete, key=lambda trial: trial["validation_loss"][-1])
        best = written["best"]
        assert best["number"] == ranking[0]["number"]
        start = next(i for i, line in enumerate(lines) if set(line) == {"─"}) + 1
        for line, trial in zip(lines[start:], ranking[:5], strict=False):
            number, optimizer, lr, *rest = line.split()
            *betas, decay, schedule, size, layers, _of, units = rest[:-4]
            dropout, batch_norm, loss, score = rest[-4:]
            assert (int(number), optimizer) == (trial["number"], trial["optimizer"])
            assert (float(lr), int(size)) == (trial["lr"], trial["batch_size"])
            assert (float(decay), schedule) == (trial["weight_decay"], trial["schedule"])
            assert betas == ([f"{beta:g}" for beta in trial["betas"] or ()] or ["-"])
            hidden = trial["hidden"]
            low, _, high = units.partition("-")
            assert (int(layers), int(low)) == (len(hidden), min(hidden))
            assert int(high or low) == max(hidden)
            assert float(dropout) == trial["dropout"]
            assert batch_norm == ("yes" if trial["batch_norm"] else "no")
            assert float(loss) == pytest.approx(trial["validation_loss"][-1], rel=5e-3)
            assert score == f"{trial['score']:.1%}"
        assert f"  {best['python']}" in lines
        assert f"  {best['compare']}" in lines
        for words in (best["python"], best["compare"], written["made_by"]["command"]):
            assert f"<pre>{words}</pre>" in html.unescape(page)

    @pytest.mark.parametrize(
        ("name", "batch_norm"),
        [("SGD", True), ("Momentum", False), ("Adam", True), ("Adan", False)],
    )
    def test_the_printed_command_gives_the_same_trial(
        self, name, batch_norm, tmp_path, capsys, monkeypatch
    ):
        """Whatever the trial has chosen; the whole command stands on one line."""
        draw_nothing(monkeypatch)
        settings = Settings(
            "wine", 2, (name,), seed=4, layers=(2, 3), units=(32, 64, 128), dropout=(0.1, 0.5),
            batch_norm=(batch_norm,), state_format=("q8",), batch_size=(32, None),
            schedule=("one_cycle",), weight_decay=(0.01,),
        )  # fmt: skip
        study = done(tmp_path, 1, settings)
        (best,) = study.ranking
        monkeypatch.setenv("COLUMNS", "40")
        report.print_best(study)
        (line,) = (x for x in capsys.readouterr().out.splitlines() if "onepass compare" in x)
        assert line.strip() == report.compare_command(study, best)
        command = shlex.split(line)
        assert cli.main([*command[1:], "--out", str(tmp_path / "compare")]) == 0
        (entry,) = strict_json(tmp_path / "compare" / "results.json")["entries"]
        curve = entry["runs"][0]["curve"]
        assert curve["validation_loss"] == list(best.intermediate_values.values())
        assert curve["score"][-1] == best.user_attrs["score"]

    @pytest.mark.parametrize("name", contenders())
    def test_the_line_of_python(self, name, tmp_path):
        study = done(tmp_path, 1, Settings("wine", 1, (name,), seed=0))
        (trial,) = study.trials
        line = report.python_line(study, trial)
        params = shaped(contenders()[name].optimizer, {}, np.zeros(3))
        optimizer = eval(line, {"op": op, "params": params})
        assert type(optimizer) is contenders()[name].optimizer
        (group,) = optimizer.param_groups
        run_, _ = study.settings.suggest(trial)
        expected = run_.contender.hyperparameters
        assert expected["lr"] == pytest.approx(trial.params["lr"], rel=5e-3)
        assert {key: group[key] for key in expected} == expected
        assert optimizer.max_grad_norm == 1.0

    def test_resume(self, tmp_path, capsys, monkeypatch):
        draw_nothing(monkeypatch)
        command = ["tune", "--data", "wine", "--epochs", "1", "--out", str(tmp_path)]
        assert cli.main([*command, "--trials", "2"]) == 0
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--trials", "3"])
        assert ended.value.code == 2
        assert "--out: expected a folder without a study, got" in capsys.readouterr().err
        here = ["tune", "--out", str(tmp_path)]  # the other options stand in the folder
        assert cli.main([*here, "--trials", "3", "--resume"]) == 0
        written = strict_json(tmp_path / "results.json")
        assert len(written["trials"]) == 3
        again = f"onepass tune --data wine --epochs 1 --out {tmp_path} --trials 3"
        assert sorted(shlex.split(written["made_by"]["command"])) == sorted(shlex.split(again))
        assert cli.main([*here, "--seconds", "0.001", "--resume"]) == 0  # instead of the trials
        assert cli.main([*here, "--resume"]) == 0
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--resume", "--seed", "1"])
        assert ended.value.code == 2
        assert f"--resume: expected seed as it was, {SEED}, got 1" in capsys.readouterr().err
        assert cli.main([*command, "--trials", "1", "--force"]) == 0
        assert len(strict_json(tmp_path / "results.json")["trials"]) == 1

    def test_resume_with_short_options(self, tmp_path, monkeypatch):
        """They and the long ones take each other's place, with the value in one word or two."""
        draw_nothing(monkeypatch)
        first = ["tune", "-dwine", "--epochs", "1", "--trials", "1", "-o", str(tmp_path)]
        assert cli.main(first) == 0
        for more in (["--out", str(tmp_path), "--data", "wine"], [f"-o{tmp_path}", "-d", "wine"]):
            assert cli.main(["tune", *more, "--resume"]) == 0
            command = shlex.split(strict_json(tmp_path / "results.json")["made_by"]["command"])
            assert command == ["onepass", "tune", "--epochs", "1", "--trials", "1", *more]

    def test_optuna_logs_as_before(self, tmp_path, capsys):
        optuna.logging.set_verbosity(optuna.logging.INFO)
        command = ["tune", "--data", "wine", "--epochs", "1", "--trials", "1"]
        assert cli.main([*command, "--out", str(tmp_path)]) == 0
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        assert not capsys.readouterr().err

    @pytest.mark.skipif(os.name != "posix", reason="needs signals")
    def test_interrupted(self, tmp_path):
        options = ("--data", "wine", "--epochs", 20, "--trials", 100000, "--out", tmp_path)
        small = ("--layers", 2, "--units", 32, "--dropout", 0, "--batch-norm")
        with start("tune", *options, *small, FORCE_COLOR="1") as process:
            written = b""
            # The progress bar says so at the end of a trial's last epoch, so three are over.
            while b"4/100000" not in written:
                chunk = os.read(process.stderr.fileno(), 4096)
                assert chunk, written
                written += chunk
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"Traceback" not in rest
        again = f"to go on: onepass tune --out {tmp_path} --resume\nonepass: interrupted\n"
        assert rest.endswith(again.encode())
        trials = strict_json(tmp_path / "results.json")["trials"]
        assert len(trials) >= 3
        settings = Settings(
            "wine", 20, tuple(contenders()), SEED, layers=(2, 2), units=(32,), dropout=(0, 0),
            batch_norm=(True,),
        )  # fmt: skip
        with_resume = Search(settings, tmp_path, resume=True)
        assert len(with_resume.trials) == len(trials)
        assert all((tmp_path / name).exists() for name in PICTURES)

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (
                ["--optimizer", "adamm"],
                f"expected one of {', '.join(contenders())}, all, got 'adamm'",
            ),
            (["--data", "iris"], "--data: expected one of digits, "),
            (["--trials", "0"], "--trials: expected an integer >= 1, got '0'"),
            (["--epochs", "0"], "--epochs: expected an integer >= 1, got '0'"),
            (["--seconds", "0"], "--seconds: expected a finite number > 0, got '0'"),
            (["--seconds", "inf"], "--seconds: expected a finite number > 0, got 'inf'"),
            (["--seconds", "1", "--trials", "9"], "--trials: not allowed with argument --seconds"),
            (["--seed", "-1"], "--seed: expected an integer >= 0, got '-1'"),
            (["--data", "wine", "digits"], "--data: expected one name without --each, got wine d"),
            (["--layers", "3", "2"], "--layers: expected one number, or two in order, got 3 2"),
            (["--layers", "1", "2", "3"], "--layers: expected one number, or two in order, got 1"),
            (["--layers", "0"], "--layers: expected an integer >= 1, got '0'"),
            (["--units", "0"], "--units: expected an integer >= 1, got '0'"),
            (["--lr", "0"], "--lr: expected a finite number > 0, got '0'"),
            (["--dropout", "0", "1"], "--dropout: expected a number in [0, 1), got '1'"),
            (["--dropout", "nan"], "--dropout: expected a number in [0, 1), got 'nan'"),
            (["--batch-size", "0"], "--batch-size: expected an integer >= 1 or all, got '0'"),
            (["--weight-decay", "-1"], "--weight-decay: expected a finite number >= 0, got '-1'"),
            (["--weight-decay", "inf"], "--weight-decay: expected a finite number >= 0, got 'inf'"),
            (["--schedule", "linear"], "--schedule: expected one of constant, step_decay, "),
            (["--state-format", "q4"], "--state-format: expected one of float32, bf16, q8, got "),
            (
                ["--state-format", "q8", "--optimizer", "rprop"],
                "--state-format: expected float32 for Rprop, got q8",
            ),
            (
                ["--batch-norm", "--batch-size", "1", "2"],
                "--batch-norm: expected a --batch-size of 2 or more, got 1",
            ),
        ],
    )
    def test_arguments_that_make_no_sense(self, options, complaint, capsys, tmp_path):
        with pytest.raises(SystemExit) as ended:
            cli.main(["tune", *options, "--out", str(tmp_path / "out")])
        assert ended.value.code == 2
        assert complaint in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_the_options_of_the_space(self, tmp_path, capsys, monkeypatch):
        draw_nothing(monkeypatch)
        options = "--layers 2 --units 8 16 --lr 0.01 0.1 --dropout 0.2 --batch-size all 32"
        options += " --no-batch-norm --state-format q8 --optimizer rprop adam lion"
        options += " --schedule polynomial --weight-decay 0 0.02"
        command = ["tune", "--data", "wine", "--epochs", "1", "--trials", "4", *options.split()]
        assert cli.main([*command, "--out", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert "without Rprop: the state has to be float32" in said
        assert "learning rate polynomial, a trial's lr is the peak" in said
        assert re.search(r"state\s+in\s+q8", said)
        assert "# lr: the peak of polynomial" in said
        for trial in strict_json(tmp_path / "results.json")["trials"]:
            assert trial["optimizer"] in ("Adam", "Lion")
            assert len(trial["hidden"]) == 2
            assert set(trial["hidden"]) <= {8, 16}
            assert 0.01 <= trial["lr"] <= 0.1
            assert trial["dropout"] == 0.2
            assert trial["batch_size"] in (None, 32)
            assert not trial["batch_norm"]
            assert trial["state_format"] == "q8"
            assert trial["schedule"] == "polynomial"
            assert trial["weight_decay"] in (0, 0.02)

    def test_help(self, capsys):
        with pytest.raises(SystemExit) as ended:
            cli.main(["tune", "--help"])
        assert ended.value.code == 0
        written = capsys.readouterr().out
        for option in ("--data", "--trials", "--seconds", "--optimizer", "--seed", "--resume"):
            assert option in written

    @pytest.mark.parametrize(
        ("module", "distribution"),
        [
            ("optuna", "optuna"),
            ("sklearn", "scikit-learn"),
            ("matplotlib", "matplotlib"),
            ("rich", "rich"),
        ],
    )
    def test_a_missing_extra(self, module, distribution, monkeypatch, capsys, tmp_path):
        monkeypatch.setitem(sys.modules, module, None)
        out = tmp_path / "out"
        assert cli.main(["tune", "--out", str(out)]) == 1
        written = capsys.readouterr()
        install = "python -m pip install 'onepass[tune]'"
        assert written.err == f"onepass: needs {distribution}: {install}\n"
        assert not written.out
        assert not out.exists()

    def test_the_command_line_does_without_optuna(self):
        code = "import sys, onepass.lab.cli; sys.exit('optuna' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_a_folder_that_cannot_be(self, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert cli.main(["tune", "--out", str(tmp_path / "file")]) == 1
        assert str(tmp_path / "file") in capsys.readouterr().err


def without_numbers(studies):
    """What is the same in a study in which no trial was interrupted and forgotten."""
    return [
        (
            each["again"],
            [{**trial, "number": None} for trial in (each["best"], *each["trials"])],
        )
        for each in studies
    ]


class TestEach:
    OPTIONS = ("--data", "wine", "diabetes", "--epochs", "2", "--optimizer", "sgd", "adam")

    def tuned(self, folder, *options):
        return cli.main(["tune", "--each", *self.OPTIONS, *options, "--out", str(folder)])

    def test_the_table(self, tmp_path, capsys):
        """Each has as many trials; other seeds than the search's judge the best of them."""
        assert self.tuned(tmp_path, "--trials", "3") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == str(tmp_path / "results.json")
        told = f"3 trials of up to 2 epochs for each optimizer and data set, seed {SEED}"
        assert told in lines[0]
        written = strict_json(tmp_path / "results.json")["studies"]
        found = [(each["settings"]["data"], *each["settings"]["optimizers"]) for each in written]
        assert found == [(d, o) for d in ("wine", "diabetes") for o in ("SGD", "Adam")]
        rows = {row[0]: row[1:] for line in lines if (row := line.split())}
        for study, (data, name) in zip(written, found, strict=True):
            assert len(study["trials"]) == 3
            assert [again["seed"] for again in study["again"]] == [SEED + 1, SEED + 2, SEED + 3]
            loss, score, deviation = rows[name][:3] if data == "wine" else rows[name][3:]
            scores = [again["score"] for again in study["again"]]
            losses = [again["validation_loss"] for again in study["again"]]
            assert loss == f"{np.mean(losses):.2g}"
            assert score == f"{np.mean(scores):.1%}"
            assert deviation == f"±{100 * np.std(scores, ddof=1):.1f}"

    def test_the_best_is_trained_as_its_command_trains(self, tmp_path, monkeypatch):
        draw_nothing(monkeypatch)
        options = ("--no-batch-norm", "--layers", "1", "2", "--trials", "2")
        assert self.tuned(tmp_path, *options) == 0
        study = strict_json(tmp_path / "results.json")["studies"][1]
        command = shlex.split(study["compare"])
        assert command[-4:] == ["--seed", str(SEED), "--seeds", "1"]
        command[-4:] = ["--seed", str(SEED + 1), "--seeds", "3", "--out", str(tmp_path / "compare")]
        assert cli.main(command[1:]) == 0
        (entry,) = strict_json(tmp_path / "compare" / "results.json")["entries"]
        scores = [run_["curve"]["score"][-1] for run_ in entry["runs"]]
        assert scores == [again["score"] for again in study["again"]]

    def test_interrupted_and_resumed_is_as_if_never_interrupted(
        self, tmp_path, capsys, monkeypatch
    ):
        assert self.tuned(tmp_path / "whole", "--trials", "2") == 0
        count = 0
        original = search._report

        def interrupt(*arguments):
            nonlocal count
            count += 1
            if count == 10:  # in the second study
                raise KeyboardInterrupt
            original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(search, "_report", interrupt)
            assert self.tuned(tmp_path / "parts", "--trials", "2") == cli.INTERRUPTED
        assert f"--out {tmp_path / 'parts'} --resume" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            self.tuned(tmp_path / "parts", "--trials", "2")
        assert "--out: expected a folder without a study, got" in capsys.readouterr().err
        assert self.tuned(tmp_path / "parts", "--trials", "2", "--resume") == 0
        whole, parts = (
            strict_json(tmp_path / name / "results.json")["studies"] for name in ("whole", "parts")
        )
        assert without_numbers(parts) == without_numbers(whole)

    def test_nothing_to_resume(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            self.tuned(tmp_path / "new", "--resume")
        assert "--resume: expected a study, got none in" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    def test_who_diverges(self, tmp_path, capsys):
        assert self.tuned(tmp_path, "--trials", "1", "--lr", "1e37", "--no-batch-norm") == 0
        written = strict_json(tmp_path / "results.json")["studies"]
        assert [each["again"] for each in written] == [[]] * 4
        assert re.search(r"SGD +diverged +- +diverged +-", capsys.readouterr().out)

    def test_seconds_are_for_each(self, tmp_path, monkeypatch):
        clock = count()  # a second a look
        monkeypatch.setattr(search, "perf_counter", lambda: next(clock))
        shown = []
        settings = Settings("wine", 1, ("SGD", "Adam"), seed=0, layers=(1, 1))
        searches = list(each.studies(settings, ["wine"], tmp_path, resume=False))
        show = lambda done, name: shown.append((done, name))  # noqa: E731
        outcomes = list(each.run(searches, show, budget={"seconds": 5}))
        assert [len(outcome.search.trials) for outcome in outcomes] == [2, 2]
        assert all(done <= 5 for done, name in shown if name == "SGD")
        assert all(5 < done <= 10 for done, name in shown if name == "Adam")
