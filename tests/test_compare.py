"""The main job: one network on real data with every optimizer, and what the command promises."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from onepass import cli, optim
from onepass.compare.contenders import contenders
from onepass.compare.data import Split, digits, split
from onepass.compare.network import Network, count_parameters
from onepass.compare.training import Budget, Measurement, Result, train

SIZES = (5, 7, 6, 4)
BRIEF = Budget(epochs=2)


def ignore(_):
    """Who trains in a test needs no progress bar."""


@pytest.fixture(scope="module")
def data():
    return digits(np.random.default_rng(0))


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


class TestNetwork:
    def test_gradient_is_that_of_central_differences(self, rng):
        network = Network(SIZES, rng, np.float64)
        network.params += 0.1 * rng.standard_normal(network.params.size)  # biases, too
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        loss, grad = network.loss_and_grad(images, labels)
        assert loss == network.loss(images, labels)
        h = 1e-6
        for i, value in enumerate(network.params):
            network.params[i] = value + h
            above = network.loss(images, labels)
            network.params[i] = value - h
            below = network.loss(images, labels)
            network.params[i] = value
            assert grad[i] == pytest.approx((above - below) / (2 * h), abs=1e-8), i

    def test_known_losses(self, rng):
        """Uniform is log(classes); a certain and wrong network loses the logits' difference."""
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        network = Network(SIZES, rng, np.float64)
        network.params[:] = 0
        assert network.loss(images, labels) == pytest.approx(math.log(4), rel=1e-15)
        network.params[-4:] = [1e5, 0, 0, 0]  # exp would overflow
        assert network.loss(images, np.ones(9, int)) == pytest.approx(1e5, rel=1e-15)
        assert network.accuracy(images, np.array([0] * 6 + [1] * 3)) == pytest.approx(2 / 3)

    def test_parameters_and_gradients_lie_in_flat_aligned_vectors(self, rng):
        network = Network(SIZES, rng)
        assert count_parameters(SIZES) == 5 * 7 + 7 + 7 * 6 + 6 + 6 * 4 + 4
        images = rng.standard_normal((3, 5)).astype(np.float32)
        before = images.copy()
        _, grad = network.loss_and_grad(images, np.array([0, 1, 2]))
        for vector in (network.params, grad):
            assert vector.shape == (count_parameters(SIZES),)
            assert vector.dtype == np.float32
            assert vector.ctypes.data % 64 == 0
        np.testing.assert_array_equal(images, before)

    def test_he_initialisation(self, rng):
        network = Network((400, 500), rng, np.float64)
        weights, biases = np.split(network.params, [400 * 500])
        assert weights.std() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
        assert abs(weights.mean()) < 1e-3
        assert not biases.any()


class TestData:
    def test_digits(self, data):
        assert data.train_images.shape == (1438, 64)
        assert data.validation_images.shape == (359, 64)
        assert data.train_images.dtype == np.float32
        assert set(data.train_labels) == set(data.validation_labels) == set(range(10))

    def test_standardised_with_the_training_split_only(self, rng):
        images = 3 + 2 * rng.standard_normal((50, 6))
        images[:, 2] = 7  # a constant pixel
        rows = np.arange(50)  # labels that tell which image it is
        first = split(images, rows, np.random.default_rng(1))
        assert sorted([*first.train_labels, *first.validation_labels]) == rows.tolist()
        train_images = images[first.train_labels]
        deviation = train_images.std(axis=0)
        deviation[2] = 1
        for part, of in (
            (first.train_images, first.train_labels),
            (first.validation_images, first.validation_labels),
        ):
            expected = (images[of] - train_images.mean(axis=0)) / deviation
            np.testing.assert_allclose(part, expected, rtol=1e-6, atol=1e-6)
            assert not part[:, 2].any()
        images[first.validation_labels] *= 100
        second = split(images, rows, np.random.default_rng(1))
        np.testing.assert_array_equal(second.train_images, first.train_images)
        assert not np.array_equal(second.validation_images, first.validation_images)


class TestContenders:
    def test_every_class_takes_part(self):
        taking_part = {contender.optimizer for contender in contenders().values()}
        assert taking_part == set(optim.registry.values())
        for cls in optim.registry.values():
            assert contenders()[cls.__name__].optimizer is cls

    def test_a_new_class_takes_part_with_its_default_learning_rate(self, monkeypatch):
        new = type("New", (), {"defaults": {"lr": 0.25}})
        monkeypatch.setitem(optim.registry, "new", new)
        assert contenders()["New"].optimizer is new
        assert contenders()["New"].lr == 0.25

    def test_the_lectures_forms(self):
        assert contenders()["Momentum"].hyperparameters["momentum"] == 0.9
        assert not contenders()["Momentum"].hyperparameters["nesterov"]
        assert contenders()["Nesterov"].hyperparameters["nesterov"]

    def test_with_lr_changes_nothing_else(self):
        for contender in contenders().values():
            other = contender.with_lr(0.125)
            assert other.lr == 0.125
            assert other.hyperparameters == {**contender.hyperparameters, "lr": 0.125}


class TestTraining:
    def test_same_weights_and_batches_for_each(self, data, monkeypatch):
        seen = []
        original = Network.loss_and_grad

        def spy(self, images, labels):
            if not seen[-1]:
                seen[-1].append(hashlib.sha256(self.params.tobytes()).hexdigest())
            seen[-1].append(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())
            return original(self, images, labels)

        monkeypatch.setattr(Network, "loss_and_grad", spy)
        for contender in contenders().values():
            seen.append([])
            train(contender, data, BRIEF, ignore)
        assert len(seen[0]) == 1 + 2 * 23
        assert len(set(seen[0])) == len(seen[0])  # no batch comes twice
        assert all(each == seen[0] for each in seen)

    def test_an_epoch_shows_every_image_once(self, data):
        rows = list(BRIEF.batches(data, np.random.default_rng(0)))
        assert len(rows) == BRIEF.steps(data) == 2 * 23
        for epoch in (rows[:23], rows[23:]):
            assert sorted(np.concatenate(epoch)) == list(range(1438))
            assert {len(batch) for batch in epoch[:-1]} == {64}

    @pytest.mark.parametrize("name", contenders())
    def test_same_seed_same_bits(self, data, name):
        first, second = (train(contenders()[name], data, BRIEF, ignore) for _ in range(2))
        assert first.curve == second.curve
        other = train(contenders()[name], data, Budget(epochs=2, seed=1), ignore)
        assert first.curve[0] != other.curve[0]

    @pytest.mark.parametrize("name", contenders())
    def test_each_learns(self, data, name):
        steps = []
        result = train(contenders()[name], data, Budget(), steps.append)
        assert result.diverged_at is None
        assert result.final.validation_accuracy > 0.9
        assert result.final.train_loss < 0.1 * result.curve[0].train_loss
        assert result.steps_to(0.9) is not None
        assert steps == [point.step for point in result.curve[1:]]
        assert steps[-1] == 460
        assert 0 < result.optimizer_seconds < result.total_seconds

    def test_divergence_is_a_result(self, data):
        result = train(contenders()["SGD"].with_lr(1e6), data, BRIEF, ignore)
        assert result.diverged_at is not None
        assert result.final is None
        assert all(math.isfinite(point.train_loss) for point in result.curve)

    def test_steps_to_an_accuracy(self):
        curve = [Measurement(0, 2.0, 0.1), Measurement(5, 1.0, 0.95), Measurement(10, 0.5, 0.9)]
        result = Result(contenders()["SGD"], curve, None, 0.0, 0.0)
        assert result.steps_to(0.95) == 5
        assert result.steps_to(0.96) is None

    def test_budget(self):
        images, labels = np.zeros((100, 1), np.float32), np.zeros(100, int)
        data = Split(images, labels, images, labels)
        assert Budget(epochs=3, batch_size=30).steps(data) == 3 * 4
        assert Budget(epochs=3, batch_size=1000).steps(data) == 3
        assert Budget(batch_size=1000).measure_every(data) == 1
        assert Budget(batch_size=1).measure_every(data) == 25


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
        report = strict_json(out / "results.json")
        assert report["budget"]["epochs"] == 2
        assert report["budget"]["batch_size"] == 64
        assert report["budget"]["steps"] == 46
        assert report["runtime"]["version"] == cli.__version__
        assert [result["name"] for result in report["results"]] == ["Adam", "SGD"]
        for result in report["results"]:
            curve = result["curve"]
            assert curve["step"] == [*range(0, 46, 5), 46]
            assert curve["train_loss"][-1] == result["train_loss"]
            assert curve["validation_accuracy"][-1] == result["validation_accuracy"]
            assert result["diverged_at"] is None
            assert (
                result["lr"] == contenders()[result["name"]].lr == result["hyperparameters"]["lr"]
            )
            assert f"{result['validation_accuracy']:.1%}" in done.stdout

    def test_a_terminal_gets_a_progress_bar(self, tmp_path):
        options = ("--epochs", 2, "--optimizer", "sgd", "--out", tmp_path)
        done = run("compare", *options, FORCE_COLOR="1")
        assert done.returncode == 0
        assert "46/46" in done.stderr
        assert "46/46" not in done.stdout

    def test_divergence(self, tmp_path, capsys):
        options = ["--epochs", "1", "--optimizer", "sgd", "adam", "--lr", "1e6"]
        assert cli.main(["compare", *options, "--out", str(tmp_path)]) == 0
        assert "diverged" in capsys.readouterr().out
        diverged, _ = strict_json(tmp_path / "results.json")["results"]
        assert diverged["diverged_at"] > 0
        assert diverged["train_loss"] is diverged["validation_accuracy"] is None
        assert diverged["lr"] == 1e6

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
        assert written.err == f"onepass compare needs {distribution}: {install}\n"
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
