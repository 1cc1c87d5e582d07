"""The main job: one network on real data with every optimizer."""

import hashlib
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from onepass import optim
from onepass.lab.compare.contenders import contenders
from onepass.lab.compare.data import DATA, split
from onepass.lab.compare.losses import CrossEntropy, SquaredError, loss_of
from onepass.lab.compare.network import Network, count_parameters
from onepass.lab.compare.results import Comparison, Entry, Result, Spread, Tried, choose
from onepass.lab.compare.schedules import SCHEDULES
from onepass.lab.compare.training import Measurement, Recipe, Run, Training

SIZES = (5, 7, 6, 4)
BRIEF = Recipe(epochs=2)
both = pytest.mark.parametrize("batch_norm", [True, False], ids=["batch norm", "no batch norm"])
losses = pytest.mark.parametrize("loss", [CrossEntropy(), SquaredError()], ids=lambda x: x.name)


def train(contender, recipe=BRIEF, *, batch_norm=False, seed=0):
    """The result of a whole run."""
    run = Run(contender, batch_norm, seed)
    return Result.of(run, list(Training(run, recipe).epochs()))


def targets(loss, rng, rows=9, outputs=4):
    """Some that the loss can take."""
    if isinstance(loss, CrossEntropy):
        return rng.integers(outputs, size=rows)
    return rng.standard_normal((rows, outputs))


class TestNetwork:
    @both
    @losses
    def test_gradient_is_that_of_central_differences(self, rng, batch_norm, loss):
        network = Network(SIZES, rng, loss, np.float64, batch_norm)
        network.params += 0.1 * rng.standard_normal(network.params.size)  # biases, too
        images, labels = rng.standard_normal((9, 5)), targets(loss, rng)
        grad = network.loss_and_grad(images, labels)[1].copy()
        h = 1e-6
        for i, value in enumerate(network.params):
            network.params[i] = value + h
            above, _ = network.loss_and_grad(images, labels)
            network.params[i] = value - h
            below, _ = network.loss_and_grad(images, labels)
            network.params[i] = value
            assert grad[i] == pytest.approx((above - below) / (2 * h), abs=1e-8), i

    @both
    @losses
    def test_gradient_with_dropout(self, rng, batch_norm, loss):
        """Central differences of the loss with the same outputs left out."""
        network = Network(SIZES, rng, loss, np.float64, batch_norm, dropout=0.4)
        network.params += 0.1 * rng.standard_normal(network.params.size)
        images, labels = rng.standard_normal((9, 5)), targets(loss, rng)

        def loss_and_grad():
            return network.loss_and_grad(images, labels, np.random.default_rng(3))

        grad, h = loss_and_grad()[1].copy(), 1e-6
        for i, value in enumerate(network.params):
            network.params[i] = value + h
            above, _ = loss_and_grad()
            network.params[i] = value - h
            below, _ = loss_and_grad()
            network.params[i] = value
            assert grad[i] == pytest.approx((above - below) / (2 * h), abs=1e-8), i

    def test_dropout_leaves_out_a_share_and_makes_up_for_it(self, rng):
        """With one hidden layer, the last weights' gradient is what comes out of it, times dy."""
        units, p = 4000, 0.3
        network = Network((3, units, 1), rng, SquaredError(), np.float64, False, dropout=p)
        first, bias, *_ = network.arrays
        image, label = rng.standard_normal((1, 3)), np.array([[1.0]])
        network.loss_and_grad(image, label, rng)
        *_, last_grad, last_bias_grad = network.grad_arrays
        came_out = last_grad[:, 0] / last_bias_grad
        hidden = np.maximum(image @ first + bias, 0)[0]
        positive = hidden > 0
        kept = came_out[positive] != 0
        np.testing.assert_allclose(came_out[positive][kept], hidden[positive][kept] / (1 - p))
        # As many as of a coin: within five standard deviations.
        n = positive.sum()
        assert abs(kept.sum() - (1 - p) * n) < 5 * math.sqrt(n * p * (1 - p))

    def test_evaluation_leaves_nothing_out(self, rng):
        plain, with_dropout = (
            Network(SIZES, np.random.default_rng(7), CrossEntropy(), np.float64, dropout=p)
            for p in (0.0, 0.5)
        )
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        assert with_dropout.evaluate(images, labels) == plain.evaluate(images, labels)

    def test_without_batch_norm_the_loss_is_that_of_training(self, rng):
        network = Network(SIZES, rng, CrossEntropy(), np.float64, batch_norm=False)
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        assert network.loss_and_grad(images, labels)[0] == network.evaluate(images, labels)[0]

    @both
    def test_known_losses(self, rng, batch_norm):
        """Uniform is log(classes); a certain and wrong network loses the logits' difference."""
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        network = Network(SIZES, rng, CrossEntropy(), np.float64, batch_norm)
        network.params[:] = 0
        assert network.evaluate(images, labels)[0] == pytest.approx(math.log(4), rel=1e-15)
        network.params[-4:] = [1e5, 0, 0, 0]  # exp would overflow
        assert network.evaluate(images, np.ones(9, int)) == pytest.approx((1e5, 0), rel=1e-15)
        _, accuracy = network.evaluate(images, np.array([0] * 6 + [1] * 3))
        assert accuracy == pytest.approx(2 / 3)

    @pytest.mark.parametrize(
        ("batch_norm", "count"),
        [
            (True, 5 * 7 + 2 * 7 + 7 * 6 + 2 * 6 + 6 * 4 + 4),  # no bias before BatchNorm's two
            (False, 5 * 7 + 7 + 7 * 6 + 6 + 6 * 4 + 4),
        ],
    )
    def test_parameters_and_gradients_lie_in_flat_aligned_vectors(self, rng, batch_norm, count):
        network = Network(SIZES, rng, CrossEntropy(), batch_norm=batch_norm)
        assert count_parameters(SIZES, batch_norm) == count
        images = rng.standard_normal((3, 5)).astype(np.float32)
        before = images.copy()
        _, grad = network.loss_and_grad(images, np.array([0, 1, 2]))
        assert grad is network.grads
        for vector in (network.params, grad):
            assert vector.shape == (count,)
            assert vector.dtype == np.float32
            assert vector.ctypes.data % 64 == 0
        np.testing.assert_array_equal(images, before)

    def test_batch_norm_against_its_equations(self, rng):
        """All parameters by their place in the vector; training and evaluation by NumPy alone."""
        network = Network((5, 7, 4), rng, CrossEntropy(), np.float64)
        ends = np.cumsum([5 * 7, 7, 7, 7 * 4])
        first, scale, shift, second, bias = np.split(network.params, ends)
        np.testing.assert_array_equal(scale, 1)
        assert not shift.any()
        assert not bias.any()
        network.params += 0.1 * rng.standard_normal(network.params.size)
        images, labels = 3 + rng.standard_normal((9, 5)), rng.integers(4, size=9)

        def loss(images, labels, mean, var):
            hidden = (images @ first.reshape(5, 7) - mean) / np.sqrt(var + 1e-5) * scale + shift
            logits = np.maximum(hidden, 0) @ second.reshape(7, 4) + bias
            return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(9), labels])

        before = images @ first.reshape(5, 7)
        mean, var = before.mean(axis=0), before.var(axis=0)
        trained, _ = network.loss_and_grad(images, labels)
        assert trained == pytest.approx(loss(images, labels, mean, var), rel=1e-12)
        running = 0.1 * mean, 0.9 + 0.1 * var * 9 / 8  # from 0 and 1; the unbiased variance
        others = rng.standard_normal((9, 5))
        for _ in range(2):  # evaluation leaves them as they are
            expected = loss(others, labels, *running)
            assert network.evaluate(others, labels)[0] == pytest.approx(expected, rel=1e-12)

    def test_evaluation_does_not_depend_on_the_batch(self, rng):
        network = Network(SIZES, rng, CrossEntropy(), np.float64)
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        network.loss_and_grad(images, labels)
        alone = [network.evaluate(images[i : i + 1], labels[i : i + 1]) for i in range(9)]
        together = network.evaluate(images, labels)
        assert together == pytest.approx(np.mean(alone, axis=0), rel=1e-12)

    def test_same_weights_with_batch_norm_and_without(self):
        one, other = (
            Network(SIZES, np.random.default_rng(7), CrossEntropy(), batch_norm=batch_norm).params
            for batch_norm in (True, False)
        )
        np.testing.assert_array_equal(one[:35], other[:35])
        np.testing.assert_array_equal(one[49 : 49 + 42], other[42 : 42 + 42])
        np.testing.assert_array_equal(one[-28:], other[-28:])

    def test_he_initialisation(self, rng):
        network = Network((400, 500), rng, CrossEntropy(), np.float64)
        weights, biases = np.split(network.params, [400 * 500])
        assert weights.std() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
        assert abs(weights.mean()) < 1e-3
        assert not biases.any()


class TestLosses:
    def test_squared_error_by_hand(self):
        outputs, targets = np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [4.0], [1.0]])
        value, grad = SquaredError().value_and_grad(outputs, targets)
        assert value == SquaredError().value(outputs, targets) == (0 + 4 + 9) / 3 / 2
        np.testing.assert_allclose(grad, [[0], [-2 / 3], [1]])
        # mean of the targets 2: their squares about it are 1 + 4 + 1
        assert SquaredError().score(outputs, targets) == pytest.approx(1 - 13 / 6)
        assert SquaredError().score(np.full((3, 1), 2.0), targets) == 0
        assert SquaredError().score(targets, targets) == 1

    def test_each_data_set_has_its_own(self):
        assert {data.name for data in DATA.values() if isinstance(loss_of(data), SquaredError)} == {
            "diabetes"
        }

    def test_a_perfect_network_loses_nothing(self):
        """0, not -0, which a table would show as such."""
        outputs, targets = np.float32([[200, 0], [0, 200]]), np.array([0, 1])
        for loss in (
            CrossEntropy().value(outputs, targets),
            SquaredError().value(outputs, outputs),
        ):
            assert (loss, math.copysign(1, loss)) == (0, 1)


class TestData:
    @pytest.mark.parametrize(
        ("name", "train", "validation", "inputs"),
        [
            ("digits", 1438, 359, 64),
            ("breast_cancer", 455, 114, 30),
            ("wine", 142, 36, 13),
            ("diabetes", 354, 88, 10),
        ],
    )
    def test_tables(self, name, train, validation, inputs):
        data, split = DATA[name], DATA[name].load(seed=0)
        assert split.train_inputs.shape == (train, inputs)
        assert split.validation_inputs.shape == (validation, inputs)
        assert split.train_inputs.dtype == np.float32
        if data.classes is None:
            assert split.train_targets.shape == (train, 1)
            assert split.train_targets.dtype == np.float32
            assert split.train_targets.mean() == pytest.approx(0, abs=1e-6)
            assert split.train_targets.std() == pytest.approx(1, rel=1e-6)
        else:
            labels = set(range(data.classes))
            assert set(split.train_targets) == set(split.validation_targets) == labels

    def test_all_are_tested(self):
        (marker,) = self.test_tables.pytestmark
        assert {case[0] for case in marker.args[1]} == set(DATA)

    def test_standardised_with_the_training_split_only(self, rng):
        images = 3 + 2 * rng.standard_normal((50, 6))
        images[:, 2] = 7  # a constant pixel
        rows = np.arange(50)  # labels that tell which image it is
        first = split(images, rows, np.random.default_rng(1))
        assert sorted([*first.train_targets, *first.validation_targets]) == rows.tolist()
        train_images = images[first.train_targets]
        deviation = train_images.std(axis=0)
        deviation[2] = 1
        for part, of in (
            (first.train_inputs, first.train_targets),
            (first.validation_inputs, first.validation_targets),
        ):
            expected = (images[of] - train_images.mean(axis=0)) / deviation
            np.testing.assert_allclose(part, expected, rtol=1e-6, atol=1e-6)
            assert not part[:, 2].any()
        images[first.validation_targets] *= 100
        second = split(images, rows, np.random.default_rng(1))
        np.testing.assert_array_equal(second.train_inputs, first.train_inputs)
        assert not np.array_equal(second.validation_inputs, first.validation_inputs)


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

    def test_a_state_in_other_formats(self, every_class):
        """It is tried, on arrays of any rule's shape, so that no table has to say so."""
        contender = next(c for c in contenders().values() if c.optimizer is every_class)
        assert contender.takes(state_format=None)
        for state_format in ("bf16", "q8"):
            try:
                every_class(np.ones((70, 70), np.float32), state_format=state_format)
            except ValueError:
                assert not contender.takes(state_format=state_format)
            else:
                assert contender.takes(state_format=state_format)

    def test_momentum_and_betas(self):
        assert contenders()["Nesterov"].momentum == 0.9
        assert contenders()["SGD"].momentum is contenders()["Adagrad"].momentum is None
        assert contenders()["Adam"].betas == (0.9, 0.999)
        assert contenders()["SGD"].betas == ()


class TestTraining:
    def test_the_state_is_in_the_format_of_the_recipe(self):
        """In q8 it takes a byte for each of its numbers, and some for each block of them."""
        run = Run(contenders()["Adam"], True, 0)
        sizes = {}
        for name in ("float32", "bf16", "q8"):
            training = Training(run, Recipe(epochs=1, state_format=name))
            list(training.epochs())
            state = training.optimizer.state_dict()["state"][0]
            kept = state["exp_avg"]
            parts = kept.values() if isinstance(kept, dict) else [kept]
            sizes[name] = sum(np.asarray(part).nbytes for part in parts)
        count = training.network.params.size
        assert sizes["float32"] == 4 * count
        assert sizes["bf16"] == 2 * count
        assert count <= sizes["q8"] < 1.1 * count

    def test_same_weights_and_batches_for_each(self, monkeypatch):
        weights, batches = {True: set(), False: set()}, []
        original = Network.loss_and_grad

        def spy(self, images, labels, rng):
            if not batches[-1]:
                weights[batch_norm].add(hashlib.sha256(self.params.tobytes()).hexdigest())
            batches[-1].append(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())
            return original(self, images, labels, rng)

        monkeypatch.setattr(Network, "loss_and_grad", spy)
        for contender in contenders().values():
            for batch_norm in (True, False):
                batches.append([])
                train(contender, batch_norm=batch_norm)
        assert len(batches[0]) == 2 * 23
        assert len(set(batches[0])) == len(batches[0])  # no batch comes twice
        assert all(each == batches[0] for each in batches)
        assert [len(each) for each in weights.values()] == [1, 1]

    def test_a_contenders_own_setting_counts(self):
        contender = contenders()["Adam"].with_settings(state_format="q8", max_grad_norm=0.5)
        training = Training(Run(contender, True, 0), Recipe(steps=1))
        assert training.optimizer.param_groups[0]["state_format"] == "q8"
        assert training.optimizer.max_grad_norm == 0.5

    def test_dropout_is_the_same_for_each_and_leaves_the_batches_alone(self, monkeypatch):
        losses, batches = {}, {}
        original = Network.loss_and_grad

        def spy(self, images, labels, rng):
            loss, grad = original(self, images, labels, rng)
            losses.setdefault(dropout, []).append(loss)
            batches.setdefault(dropout, []).append(labels.tolist())
            return loss, grad

        monkeypatch.setattr(Network, "loss_and_grad", spy)
        for dropout in (0.0, 0.5):
            for name in ("SGD", "Adam"):
                train(contenders()[name], Recipe(steps=2, dropout=dropout))
        assert batches[0.0] == batches[0.5]
        for sgd, _, adam, _ in losses.values():  # before a step has been taken
            assert sgd == adam
        assert losses[0.0][0] != losses[0.5][0]

    @pytest.mark.parametrize(
        ("size", "steps"),
        [(1, 1438), (2, 719), (3, 479), (64, 23), (479, 3), (1437, 1), (5000, 1), (None, 1)],
    )
    def test_an_epoch_shows_every_row_once(self, size, steps):
        """N, N / B and 1 steps: but no batch of one row, as 3, 479 and 1,437 would leave it."""
        recipe = Recipe(batch_size=size)
        assert recipe.steps_per_epoch(1438) == steps
        batches = recipe.batches(1438, np.random.default_rng(0))
        assert len(batches) == steps
        assert sorted(np.concatenate(batches)) == list(range(1438))
        *whole, last = map(len, batches)
        assert whole == [size] * (steps - 1)
        if size != 1:
            assert 2 <= last <= (size or 1438) + 1

    def test_every_seed_has_batches_of_its_own(self, monkeypatch):
        batches = {}
        original = Recipe.batches

        def spy(self, rows, rng):
            batches.setdefault(seed, []).append(original(self, rows, rng)[0].tolist())
            return original(self, rows, rng)

        monkeypatch.setattr(Recipe, "batches", spy)
        for seed in (5, 6):
            train(contenders()["SGD"], seed=seed)
        (first, second), (other, _) = batches.values()
        assert first != second
        assert first != other

    @both
    @pytest.mark.parametrize("name", contenders())
    def test_same_seed_same_bits(self, name, batch_norm):
        recipe = Recipe(data="wine", batch_size=32, epochs=2)

        def curve(seed):
            result = train(contenders()[name], recipe, batch_norm=batch_norm, seed=seed)
            return [point[:-2] for point in result.curve]  # without the times

        first = curve(0)
        assert first == curve(0)
        assert first[0] != curve(1)[0]

    @both
    @pytest.mark.parametrize("name", contenders())
    def test_each_learns(self, name, batch_norm):
        is_chosen = "lr" in contenders()[name].settings  # for this, not its class's default
        recipe = Recipe() if is_chosen else Recipe(epochs=3)
        result = train(contenders()[name], recipe, batch_norm=batch_norm)
        assert result.diverged_at is None
        assert result.final.validation_loss < result.curve[0].validation_loss
        if is_chosen:
            assert result.final.score > 0.9
            assert result.final.train_loss < 0.1 * result.curve[0].train_loss
            assert result.steps_to(0.9) is not None
        assert [point.epoch for point in result.curve] == list(range(recipe.epochs + 1))
        assert [point.step for point in result.curve] == [23 * p.epoch for p in result.curve]
        assert 0 < result.final.update_seconds < result.final.seconds

    @pytest.mark.parametrize("name", DATA)
    def test_each_data_set_is_learnt(self, name):
        recipe = Recipe(data=name, batch_size=32, hidden=(16,))
        result = train(contenders()["AdamW"].with_lr(0.01), recipe, batch_norm=True)
        assert result.steps_to(DATA[name].goal) is not None

    @both
    def test_divergence_is_a_result(self, batch_norm):
        result = train(contenders()["SGD"].with_lr(1e20), batch_norm=batch_norm)
        assert result.diverged_at in (23, 46)
        assert result.final is None
        assert all(math.isfinite(point.train_loss) for point in result.curve)

    @both
    def test_clipped_steps_by_hand(self, batch_norm, monkeypatch):
        """The definitions of the norm, of clipping and of SGD, on the network's gradients."""
        limit, params, norms, expected = 0.7, [], [], []
        original = Network.loss_and_grad

        def spy(self, images, labels, rng):
            params.append(self.params.copy())
            loss, grad = original(self, images, labels, rng)
            norms.append(np.sqrt(np.sum(np.square(grad, dtype=np.float64))))
            expected.append(params[-1] - 0.25 * min(1, limit / (norms[-1] + 1e-6)) * grad)
            return loss, grad

        monkeypatch.setattr(Network, "loss_and_grad", spy)
        recipe = Recipe(epochs=2, max_grad_norm=limit, schedule="constant")
        result = train(contenders()["SGD"].with_lr(0.25), recipe, batch_norm=batch_norm)
        np.testing.assert_allclose(params[1:], expected[:-1], rtol=1e-5, atol=1e-6)
        assert 0 < sum(point.clipped for point in result.curve) < 46
        for point, group in zip(result.curve[1:], (norms[:23], norms[23:]), strict=True):
            assert point.grad_norm == pytest.approx(np.median(group), rel=1e-12)
            assert point.lr == 0.25
            assert point.clipped == sum(norm > limit for norm in group)
        assert result.clipped_share == np.mean(np.greater(norms, limit))

    def test_the_recorded_rate_is_the_one_of_the_step(self, monkeypatch):
        """Without momentum a step's length is the rate times the gradient's norm, here 1e-3."""
        limit, params = 1e-3, []
        original = Network.loss_and_grad

        def spy(self, images, labels, rng):
            params.append(self.params.astype(np.float64))
            return original(self, images, labels, rng)

        monkeypatch.setattr(Network, "loss_and_grad", spy)
        recipe = Recipe(epochs=3, max_grad_norm=limit, schedule="cosine")
        result = train(contenders()["SGD"], recipe)
        assert result.clipped_share == 1
        lengths = np.linalg.norm(np.diff(params, axis=0), axis=1)
        for point in result.curve[1:-1]:
            assert point.lr == pytest.approx(lengths[point.step - 1] / limit, rel=1e-3)

    @pytest.mark.parametrize("steps", [1, 23, 50])
    def test_a_budget_of_steps(self, steps):
        result = train(contenders()["SGD"], Recipe(steps=steps))
        assert [point.step for point in result.curve] == [*range(0, steps, 23), steps]
        assert result.final.lr == SCHEDULES["cosine"](0.5, steps)(steps - 1)

    def test_a_budget_of_seconds(self, monkeypatch):
        """With a clock that ticks a second at every look, three looks a step."""
        ticks = iter(range(10**6))
        monkeypatch.setattr("onepass.lab.compare.training.perf_counter", lambda: next(ticks))
        recipe = Recipe(seconds=100.0)
        result = train(contenders()["SGD"], recipe)
        assert result.final.gradient_seconds == result.final.update_seconds == 50
        assert [point.step for point in result.curve] == [0, 23, 46, 50]
        # 2 of 100 seconds a step; the warm-up takes five, then it falls to a tenth.
        rates = [point.lr for point in result.curve[1:]]
        expected = [0.5 * (0.55 + 0.45 * math.cos(math.pi * (t - 5) / 95)) for t in (44, 90, 98)]
        np.testing.assert_allclose(rates, expected, rtol=1e-3)

    def test_a_budget_of_seconds_with_a_plateau(self, monkeypatch):
        ticks = iter(range(10**6))
        monkeypatch.setattr("onepass.lab.compare.training.perf_counter", lambda: next(ticks))
        recipe = Recipe(seconds=2 * 23 * 30, schedule="reduce_on_plateau")
        assert train(contenders()["SGD"], recipe).final.lr < 0.5

    @both
    @pytest.mark.parametrize("name", contenders())
    @pytest.mark.parametrize("schedule", ["cosine", "reduce_on_plateau"])
    def test_it_goes_on_to_the_bit(self, name, batch_norm, schedule, tmp_path):
        run = Run(contenders()[name], batch_norm, 0)
        recipe = Recipe(data="wine", batch_size=32, epochs=6, schedule=schedule)
        whole = Training(run, recipe)
        expected = [point[:-2] for point in whole.epochs()]
        first = Training(run, recipe)
        epochs = first.epochs()
        seen = [next(epochs)[:-2] for _ in range(4)]
        first.optimizer.save(tmp_path / "optimizer.npz")
        second = Training(run, recipe)
        second.network.load_state_dict(first.network.state_dict())
        second.optimizer.load(tmp_path / "optimizer.npz")
        second.go_on_from(first.last)
        assert [*seen, *(point[:-2] for point in second.epochs())] == expected
        for key, array in second.network.state_dict().items():
            np.testing.assert_array_equal(array, whole.network.state_dict()[key])

    def test_reduce_on_plateau_hears_of_each_epoch(self):
        """The lectures': halve it after an epoch whose validation error is worse than the last."""
        recipe = Recipe(epochs=30, schedule="reduce_on_plateau")
        curve = train(contenders()["SGD"], recipe).curve
        rate, rates = 0.5, []
        for before, point in pairwise(curve):
            rates.append(rate)
            # Its first report is that of the first epoch.
            rate /= 2 if before.epoch and point.validation_loss > before.validation_loss else 1
        assert [point.lr for point in curve[1:]] == rates
        assert rates[-1] < 0.5

    @pytest.mark.parametrize("steps", [21, 40, 460])
    def test_cosine(self, steps):
        """A straight line up over a twentieth of the steps, half a cosine down to a tenth."""
        schedule = SCHEDULES["cosine"](0.5, steps)
        rates = [schedule(step) for step in range(steps)]
        warmup = -(-steps // 20)
        rise = np.linspace(0.5 / warmup, 0.5, warmup, endpoint=False)
        np.testing.assert_allclose(rates[:warmup], rise)
        wave = np.cos(np.linspace(0, np.pi, steps - warmup))
        np.testing.assert_allclose(rates[warmup:], 0.05 + 0.45 * (wave + 1) / 2)

    def test_warmup_stable_decay_and_restarts(self):
        rates = [SCHEDULES["warmup_stable_decay"](0.5, 100)(step) for step in range(100)]
        assert [step for step, rate in enumerate(rates) if rate == 0.5] == list(range(5, 81))
        rates = [SCHEDULES["cosine_restarts"](0.5, 70)(step) for step in range(70)]
        jumps = [step for step in range(1, 70) if rates[step] > rates[step - 1]]
        assert jumps == [10, 30]  # waves of 10, 20 and 40 steps

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_schedules_for_any_number_of_steps(self, name):
        for steps in (*range(1, 50), 460):
            schedule = SCHEDULES[name](0.5, steps)
            rates = [schedule(step) for step in range(steps)]
            assert all(0 <= rate <= 0.5 for rate in rates)
        assert max(rates) == pytest.approx(0.5, rel=1e-3)
        assert rates[-1] == 0.5 if name in ("constant", "reduce_on_plateau") else rates[-1] < 0.07


class TestTuning:
    """Which rate is chosen; the losses by hand."""

    def tried(self, **losses):
        """The rates 1, 2, ... by their letters, with the losses of their seeds."""

        def result(loss):
            end = START._replace(validation_loss=loss)
            run = Run(contenders()["SGD"], False, 0)
            return Result.of(run, [START, end])

        rates = enumerate(losses.values(), 1)
        return [Tried(float(lr), [result(loss) for loss in each]) for lr, each in rates]

    def test_the_mean_decides_not_one_seed(self):
        chosen = choose(self.tried(a=[0.1, 2.0, 2.1], b=[0.9, 1.0, 1.1]))
        assert chosen.lr == 2
        assert chosen.loss == pytest.approx(1)
        assert chosen.standard_error == pytest.approx(0.1 / math.sqrt(3))

    def test_within_one_standard_error_the_smaller_rate(self):
        """The best mean is 1, its standard error 0.0577; seed by seed the others differ by more."""
        for mean, expected in ((1.057, 1), (1.058, 3)):
            other = [mean + 0.3, mean, mean - 0.3]
            tried = self.tried(a=other, b=[2.0] * 3, c=[0.9, 1.0, 1.1])
            assert choose(tried).lr == expected

    def test_what_all_seeds_agree_on_is_no_noise(self):
        """Splits differ by much, with a standard error of 0.58, and the rates by 0.1 on each."""
        best = [1.0, 2.0, 3.0]
        for worse, expected in (([1.1, 2.1, 3.1], 2), ([0.9, 2.3, 3.1], 1)):
            # the second is worse by 0.1 on average, give or take 0.12
            assert choose(self.tried(a=worse, b=best, c=[9.0] * 3)).lr == expected

    def test_a_rate_that_diverges_on_one_seed_is_none(self):
        tried = self.tried(a=[0.1, math.nan], b=[3.0, 3.0, 3.0])
        assert tried[0].loss is None
        assert choose(tried).lr == 2
        assert choose(tried[:1]) is choose([]) is None

    @pytest.mark.parametrize(
        ("losses", "edge"),
        [((3, 2, 1), True), ((1, 2, 3), True), ((3, 1, 2), False), ((math.nan,) * 3, False)],
    )
    def test_the_edge(self, losses, edge):
        tried = self.tried(**{name: [loss] * 3 for name, loss in zip("abc", losses, strict=True)})
        chosen = choose(tried)
        contender = contenders()["SGD"].with_lr(chosen.lr if chosen else 0.5)
        assert Entry(contender, False, [], tried).is_at_the_edge == edge

    def test_the_edge_of_who_ties_with_it(self):
        """A smaller rate was chosen, but the best may lie beyond the highest."""
        tried = self.tried(a=[9.0] * 3, b=[1.11, 1.01, 0.91], c=[0.9, 1.0, 1.1])
        assert choose(tried).lr == 2
        assert Entry(contenders()["SGD"].with_lr(2.0), False, [], tried).is_at_the_edge


START = Measurement(0, 0, 2.0, 2.0, 0.1, None, None, 0, 0.0, 0.0)
"""As a curve begins."""


class TestResults:
    def test_no_step_no_share(self):
        result = Result(Run(contenders()["SGD"], True, 0), [START], 5)
        assert result.clipped_share is None

    def test_steps_to_a_score(self):
        curve = [START, START._replace(step=5, score=0.95), START._replace(step=10, score=0.9)]
        result = Result(Run(contenders()["SGD"], True, 0), curve, None)
        assert result.steps_to(0.95) == 5
        assert result.steps_to(0.96) is None

    def test_mean_and_spread_over_the_seeds(self):
        contender = contenders()["SGD"]

        def result(seed, score, diverged_at=None):
            curve = [START, START._replace(epoch=1, step=5, score=score)]
            return Result(Run(contender, True, seed), curve, diverged_at)

        entry = Entry(contender, True, [result(0, 0.7), result(1, 0.9), result(2, 0.3, 10)])
        assert entry.diverged == 1
        # The sample's standard deviation: sqrt((0.1**2 + 0.1**2) / (2 - 1)).
        spread = entry.final(lambda point: point.score)
        assert spread.mean == pytest.approx(0.8)
        assert spread.deviation == pytest.approx(0.02**0.5)
        assert entry.spread(lambda result: result.steps_to(0.7)) == Spread(5, 0, 5)
        assert entry.spread(lambda result: result.steps_to(0.8)) == Spread(5, None, 5)
        assert entry.spread(lambda result: result.steps_to(1)) is None
        comparison = Comparison(Recipe(), [entry, replace(entry, batch_norm=False)], planned=9)
        assert comparison.seeds == [0, 1, 2]
        assert comparison.variants == [True, False]
        assert comparison.done == 6
