"""What `onepass tune` promises: which trials there are, what stays on disk, what it prints."""

import math
import os
import shlex
import signal
import subprocess
import sys
import warnings
from itertools import count

import matplotlib as mpl
import numpy as np
import optuna
import pytest
from matplotlib import pyplot as plt
from optuna.trial import FixedTrial, TrialState

import onepass as op
from commands import run, start, strict_json
from helpers import shaped
from onepass.lab import cli
from onepass.lab.compare.contenders import contenders
from onepass.lab.compare.training import Measurement
from onepass.lab.tune import picture, report, search
from onepass.lab.tune.search import Search, Settings, quiet

WINE = Settings("wine", 2, ("SGD", "Momentum", "Adam"), seed=0)
PICTURES = ["history.png", "importances.png", "slices.png", "parallel.png"]


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


class TestSearchSpace:
    @pytest.mark.parametrize("name", contenders())
    def test_what_is_searched(self, name):
        values = {"optimizer": name, "lr": 0.25, "momentum": 0.75, "batch_size": 16, "width": 32}
        trial = FixedTrial(values)
        run, recipe = Settings("wine", 3, (name,), seed=5).suggest(trial)
        known = contenders()[name]
        has_momentum = bool(known.hyperparameters.get("momentum"))
        expected = {**known.settings, "lr": 0.25, **({"momentum": 0.75} if has_momentum else {})}
        assert run.contender.settings == expected
        assert run.contender.optimizer is contenders()[name].optimizer
        assert ("momentum" in trial.params) == has_momentum
        assert (run.seed, run.batch_norm) == (5, True)
        assert (recipe.data, recipe.epochs, recipe.batch_size) == ("wine", 3, 16)
        assert recipe.hidden == (32, 32)

    def test_ranges(self, tmp_path):
        (trial, *_) = done(tmp_path, 1).trials
        spaces = trial.distributions
        assert spaces["optimizer"].choices == WINE.optimizers
        assert (spaces["lr"].low, spaces["lr"].high, spaces["lr"].log) == (1e-4, 1, True)
        for name in ("batch_size", "width"):
            assert all(math.log2(choice).is_integer() for choice in spaces[name].choices)


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

    def test_weights_beyond_float32(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(search, "LEARNING_RATES", (1e37, 1e38))
        options = ["--data", "wine", "--epochs", "1", "--trials", "2", "--optimizer", "sgd"]
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
        with pytest.raises(ValueError, match=r"--out: expected no study, got one in .*resume"):
            Search(WINE, tmp_path, resume=False)
        for name, settings in (
            ("data", Settings("digits", 2, WINE.optimizers, 0)),
            ("epochs", Settings("wine", 3, WINE.optimizers, 0)),
            ("optimizers", Settings("wine", 2, ("SGD",), 0)),
            ("seed", Settings("wine", 2, WINE.optimizers, 7)),
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
            assert {1e-3, 0.5} < {*axes.collections[0].get_offsets()[:, 1]}
            for line in axes.lines:
                assert (np.array(line.get_ydata()) > low).all()
            assert "0" in [text.get_text() for text in axes.texts]
        (lines,) = parallel.axes[0].collections
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
        monkeypatch.setattr(search, "WIDTHS", (32,))
        study = done(tmp_path, 3, Settings("wine", 1, ("Adam",), seed=0)).study
        figures = []
        monkeypatch.setattr(plt, "close", figures.append)
        picture.draw(study, tmp_path)
        monkeypatch.undo()
        *panels, _colours = figures[2].axes
        assert {"lr"} <= {axes.get_xlabel() for axes in panels} <= {"lr", "batch_size"}
        for figure in figures:
            plt.close(figure)


class TestCommand:
    def test_end_to_end(self, tmp_path):
        out = tmp_path / "deep" / "folder"
        options = ("--data", "wine", "--epochs", 2, "--trials", 6, "--optimizer", "adam", "SGD")
        finished = run("tune", *options, "--out", out, COLUMNS="80")
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""  # neither Optuna's log nor a progress bar
        assert "\x1b" not in finished.stdout
        lines = finished.stdout.splitlines()
        assert lines[-5:] == [str(out / name) for name in (*PICTURES, "results.json")]
        assert sorted(path.name for path in out.iterdir()) == sorted(
            [*PICTURES, "results.json", "study.log"]
        )
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
            number, optimizer, lr, momentum, batch_size, width, loss, score = line.split()
            assert (int(number), optimizer) == (trial["number"], trial["optimizer"])
            assert float(lr) == pytest.approx(trial["lr"], rel=0.05)
            assert momentum == "-"
            assert (int(batch_size), int(width)) == (trial["batch_size"], trial["width"])
            assert float(loss) == pytest.approx(trial["validation_loss"][-1], rel=5e-3)
            assert score == f"{trial['score']:.1%}"
        assert f"  {best['python']}" in lines
        assert f"  {best['compare']}" in lines

    def test_the_best_can_be_had_again(self, tmp_path):
        study = done(tmp_path, 3, Settings("wine", 2, ("Adam", "SGD"), seed=4))
        best = study.ranking[0]
        command = shlex.split(report.compare_command(study, best))
        assert cli.main([*command[1:], "--out", str(tmp_path / "compare")]) == 0
        (entry,) = (
            entry
            for entry in strict_json(tmp_path / "compare" / "results.json")["entries"]
            if entry["batch_norm"]
        )
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
        expected = {**contenders()[name].hyperparameters, "lr": trial.params["lr"]}
        if "momentum" in trial.params:
            expected["momentum"] = trial.params["momentum"]
            assert report.compare_command(study, trial) is None
        assert {key: group[key] for key in expected} == expected
        assert optimizer.max_grad_norm == 1.0

    def test_resume(self, tmp_path, capsys):
        command = ["tune", "--data", "wine", "--epochs", "1", "--out", str(tmp_path)]
        assert cli.main([*command, "--trials", "2"]) == 0
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--trials", "3"])
        assert ended.value.code == 2
        assert "--out: expected no study, got one in" in capsys.readouterr().err
        assert cli.main([*command, "--trials", "3", "--resume"]) == 0
        assert len(strict_json(tmp_path / "results.json")["trials"]) == 3
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--resume", "--seed", "1"])
        assert ended.value.code == 2
        assert "--resume: expected seed as it was, 0, got 1" in capsys.readouterr().err

    def test_optuna_logs_as_before(self, tmp_path, capsys):
        optuna.logging.set_verbosity(optuna.logging.INFO)
        command = ["tune", "--data", "wine", "--epochs", "1", "--trials", "1"]
        assert cli.main([*command, "--out", str(tmp_path)]) == 0
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
        assert not capsys.readouterr().err

    @pytest.mark.skipif(os.name != "posix", reason="needs signals")
    def test_interrupted(self, tmp_path):
        options = ("--data", "wine", "--epochs", 20, "--trials", 100000, "--out", tmp_path)
        with start("tune", *options, FORCE_COLOR="1") as process:
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
        assert rest.endswith(b"repeat the command with --resume to go on\nonepass: interrupted\n")
        trials = strict_json(tmp_path / "results.json")["trials"]
        assert len(trials) >= 3
        with_resume = Search(Settings("wine", 20, tuple(contenders()), 0), tmp_path, resume=True)
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
        ],
    )
    def test_arguments_that_make_no_sense(self, options, complaint, capsys):
        with pytest.raises(SystemExit) as ended:
            cli.main(["tune", *options])
        assert ended.value.code == 2
        assert complaint in capsys.readouterr().err

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
