"""The main job: one network on real data with every optimizer."""

import hashlib
import math
from itertools import product

import numpy as np
import pytest

from onepass import optim
from onepass.compare.contenders import contenders
from onepass.compare.data import Split, digits, split
from onepass.compare.network import Network, count_parameters
from onepass.compare.training import SCHEDULES, Budget, Measurement, Result, train

SIZES = (5, 7, 6, 4)
BRIEF = Budget(epochs=2)
both = pytest.mark.parametrize("batch_norm", [True, False], ids=["batch norm", "no batch norm"])


def ignore(_):
    """Who trains in a test needs no progress bar."""


@pytest.fixture(scope="module")
def data():
    return digits(np.random.default_rng(0))


class TestNetwork:
    @both
    def test_gradient_is_that_of_central_differences(self, rng, batch_norm):
        network = Network(SIZES, rng, np.float64, batch_norm)
        network.params += 0.1 * rng.standard_normal(network.params.size)  # biases, too
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        grad = network.loss_and_grad(images, labels)[1].copy()
        h = 1e-6
        for i, value in enumerate(network.params):
            network.params[i] = value + h
            above, _ = network.loss_and_grad(images, labels)
            network.params[i] = value - h
            below, _ = network.loss_and_grad(images, labels)
            network.params[i] = value
            assert grad[i] == pytest.approx((above - below) / (2 * h), abs=1e-8), i

    def test_without_batch_norm_the_loss_is_that_of_training(self, rng):
        network = Network(SIZES, rng, np.float64, batch_norm=False)
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        assert network.loss_and_grad(images, labels)[0] == network.loss(images, labels)

    @both
    def test_known_losses(self, rng, batch_norm):
        """Uniform is log(classes); a certain and wrong network loses the logits' difference."""
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        network = Network(SIZES, rng, np.float64, batch_norm)
        network.params[:] = 0
        assert network.loss(images, labels) == pytest.approx(math.log(4), rel=1e-15)
        network.params[-4:] = [1e5, 0, 0, 0]  # exp would overflow
        assert network.loss(images, np.ones(9, int)) == pytest.approx(1e5, rel=1e-15)
        assert network.accuracy(images, np.array([0] * 6 + [1] * 3)) == pytest.approx(2 / 3)

    @pytest.mark.parametrize(
        ("batch_norm", "count"),
        [
            (True, 5 * 7 + 2 * 7 + 7 * 6 + 2 * 6 + 6 * 4 + 4),  # no bias before BatchNorm's two
            (False, 5 * 7 + 7 + 7 * 6 + 6 + 6 * 4 + 4),
        ],
    )
    def test_parameters_and_gradients_lie_in_flat_aligned_vectors(self, rng, batch_norm, count):
        network = Network(SIZES, rng, batch_norm=batch_norm)
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
        network = Network((5, 7, 4), rng, np.float64)
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
            assert network.loss(others, labels) == pytest.approx(expected, rel=1e-12)

    def test_evaluation_does_not_depend_on_the_batch(self, rng):
        network = Network(SIZES, rng, np.float64)
        images, labels = rng.standard_normal((9, 5)), rng.integers(4, size=9)
        network.loss_and_grad(images, labels)
        for measure in (network.loss, network.accuracy):
            alone = [measure(images[i : i + 1], labels[i : i + 1]) for i in range(9)]
            assert measure(images, labels) == pytest.approx(np.mean(alone), rel=1e-12)

    def test_same_weights_with_batch_norm_and_without(self):
        one, other = (
            Network(SIZES, np.random.default_rng(7), batch_norm=batch_norm).params
            for batch_norm in (True, False)
        )
        np.testing.assert_array_equal(one[:35], other[:35])
        np.testing.assert_array_equal(one[49 : 49 + 42], other[42 : 42 + 42])
        np.testing.assert_array_equal(one[-28:], other[-28:])

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
        weights, batches = {True: set(), False: set()}, []
        original = Network.loss_and_grad

        def spy(self, images, labels):
            if not batches[-1]:
                weights[batch_norm].add(hashlib.sha256(self.params.tobytes()).hexdigest())
            batches[-1].append(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())
            return original(self, images, labels)

        monkeypatch.setattr(Network, "loss_and_grad", spy)
        for contender, batch_norm in product(contenders().values(), (True, False)):
            batches.append([])
            train(contender, data, BRIEF, ignore, batch_norm=batch_norm)
        assert len(batches[0]) == 2 * 23
        assert len(set(batches[0])) == len(batches[0])  # no batch comes twice
        assert all(each == batches[0] for each in batches)
        assert [len(each) for each in weights.values()] == [1, 1]

    def test_an_epoch_shows_every_image_once(self, data):
        rows = list(BRIEF.batches(data, np.random.default_rng(0)))
        assert len(rows) == BRIEF.steps(data) == 2 * 23
        for epoch in (rows[:23], rows[23:]):
            assert sorted(np.concatenate(epoch)) == list(range(1438))
            assert {len(batch) for batch in epoch[:-1]} == {64}

    @pytest.mark.parametrize(
        ("size", "steps"),
        [(2, 719), (3, 479), (64, 23), (479, 3), (718, 3), (1437, 1), (1438, 1), (5000, 1)],
    )
    def test_no_batch_of_one_row(self, data, size, steps):
        """3, 479 and 1,437 would leave one of the 1,438 rows alone."""
        budget = Budget(epochs=2, batch_size=size)
        batches = list(budget.batches(data, np.random.default_rng(0)))
        assert len(batches) == budget.steps(data) == 2 * steps
        for epoch in (batches[:steps], batches[steps:]):
            assert sorted(np.concatenate(epoch)) == list(range(1438))
            *whole, last = map(len, epoch)
            assert whole == [size] * (steps - 1)
            assert 2 <= last <= size + 1

    def test_batches_of_one_row_where_they_are_wanted(self, data):
        batches = list(Budget(1, batch_size=1).batches(data, np.random.default_rng(0)))
        assert [len(batch) for batch in batches] == [1] * 1438

    @both
    @pytest.mark.parametrize("name", contenders())
    def test_same_seed_same_bits(self, data, name, batch_norm):
        def curve(seed):
            budget = Budget(epochs=2, seed=seed)
            return train(contenders()[name], data, budget, ignore, batch_norm=batch_norm).curve

        first = curve(0)
        assert first == curve(0)
        assert first[0] != curve(1)[0]

    @both
    @pytest.mark.parametrize("name", contenders())
    def test_each_learns(self, data, name, batch_norm):
        steps = []
        result = train(contenders()[name], data, Budget(), steps.append, batch_norm=batch_norm)
        assert result.batch_norm == batch_norm
        assert result.diverged_at is None
        assert result.final.validation_accuracy > 0.9
        assert result.final.train_loss < 0.1 * result.curve[0].train_loss
        assert result.steps_to(0.9) is not None
        assert steps == [point.step for point in result.curve[1:]]
        assert steps[-1] == 460
        assert 0 < result.optimizer_seconds < result.total_seconds

    @both
    def test_divergence_is_a_result(self, data, batch_norm):
        diverging = contenders()["SGD"].with_lr(1e20)
        result = train(diverging, data, BRIEF, ignore, batch_norm=batch_norm)
        assert result.diverged_at is not None
        assert result.final is None
        assert all(math.isfinite(point.train_loss) for point in result.curve)

    @both
    def test_clipped_steps_by_hand(self, data, batch_norm, monkeypatch):
        """The definitions of the norm, of clipping and of SGD, on the network's gradients."""
        limit, params, norms, expected = 0.7, [], [], []
        original = Network.loss_and_grad

        def spy(self, images, labels):
            params.append(self.params.copy())
            loss, grad = original(self, images, labels)
            norms.append(np.sqrt(np.sum(np.square(grad, dtype=np.float64))))
            expected.append(params[-1] - 0.25 * min(1, limit / (norms[-1] + 1e-6)) * grad)
            return loss, grad

        monkeypatch.setattr(Network, "loss_and_grad", spy)
        budget = Budget(epochs=2, max_grad_norm=limit, schedule="constant")
        result = train(
            contenders()["SGD"].with_lr(0.25), data, budget, ignore, batch_norm=batch_norm
        )
        np.testing.assert_allclose(params[1:], expected[:-1], rtol=1e-5, atol=1e-6)
        groups = [norms[at : at + 5] for at in range(0, 46, 5)]
        assert 0 < sum(point.clipped for point in result.curve) < 46
        for point, group in zip(result.curve[1:], groups, strict=True):
            assert point.grad_norm == pytest.approx(np.median(group), rel=1e-12)
            assert point.lr == 0.25
            assert point.clipped == sum(norm > limit for norm in group)
        assert result.clipped_share == np.mean(np.greater(norms, limit))

    def test_the_recorded_rate_is_the_one_of_the_step(self, data, monkeypatch):
        """Without momentum a step's length is the rate times the gradient's norm, here 1e-3."""
        limit, params = 1e-3, []
        original = Network.loss_and_grad

        def spy(self, images, labels):
            params.append(self.params.astype(np.float64))
            return original(self, images, labels)

        monkeypatch.setattr(Network, "loss_and_grad", spy)
        budget = Budget(epochs=2, max_grad_norm=limit, schedule="cosine")
        result = train(contenders()["SGD"], data, budget, ignore, batch_norm=False)
        assert result.clipped_share == 1
        lengths = np.linalg.norm(np.diff(params, axis=0), axis=1)
        for point in result.curve[1:-1]:
            assert point.lr == pytest.approx(lengths[point.step - 1] / limit, rel=1e-3)

    def test_no_step_no_share(self):
        result = Result(contenders()["SGD"], True, [Measurement(0, 2.0, 0.1)], 5, 0.0, 0.0)
        assert result.clipped_share is None

    @pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 460])
    def test_cosine(self, steps):
        """A straight line up over a twentieth of the steps, half a cosine down to a tenth."""
        schedule = SCHEDULES["cosine"](0.5, steps)
        rates = [schedule(step) for step in range(steps)]
        warmup = -(-steps // 20)
        np.testing.assert_allclose(rates[:warmup], np.linspace(0, 0.5, warmup + 1)[1:])
        wave = np.cos(np.linspace(0, np.pi, steps - warmup + 1))
        np.testing.assert_allclose(rates[warmup:], 0.05 + 0.45 * (wave[1:] + 1) / 2)

    def test_steps_to_an_accuracy(self):
        curve = [Measurement(0, 2.0, 0.1), Measurement(5, 1.0, 0.95), Measurement(10, 0.5, 0.9)]
        result = Result(contenders()["SGD"], True, curve, None, 0.0, 0.0)
        assert result.steps_to(0.95) == 5
        assert result.steps_to(0.96) is None

    def test_budget(self):
        images, labels = np.zeros((100, 1), np.float32), np.zeros(100, int)
        data = Split(images, labels, images, labels)
        assert Budget(epochs=3, batch_size=30).steps(data) == 3 * 4
        assert Budget(epochs=3, batch_size=1000).steps(data) == 3
        assert Budget(batch_size=1000).measure_every(data) == 1
        assert Budget(batch_size=1).measure_every(data) == 25
