"""What only very many steps do: averages of the weights stay exact, and no step gets slow."""

import math

import ml_dtypes
import numpy as np
import pytest

import onepass as op
from helpers import FORMATS, state_names
from onepass.optim import _reference

# Half a unit in the last place of numbers in [1, 2): what showing an average in float32 may cost.
HALF_UNIT = 2.0**-24
DECAYS = (0.9999, 0.99999)


class TestAveragesOfTheWeights:
    """The mean from some step on, and two exponential averages, of the same weights."""

    START = 100

    def run(self, dtype, steps, move):
        """Return what is shown after steps in which the weight becomes `move(t, weight)`.

        And what it should be: the mean of sums without rounding, the recursion in float64.
        """
        settings = [{"swa_start": self.START}, *({"ema_decay": decay} for decay in DECAYS)]
        params = [np.zeros(1, dtype) for _ in settings]
        groups = [{"params": [p], **each} for p, each in zip(params, settings, strict=True)]
        zeros = [[np.zeros(1, np.float32)] for _ in params]
        opt = op.SGD(groups, lr=0.0, grads=zeros)  # what moves the weights is written by hand
        history, weight = [], 0.0
        averages = [math.nan] * len(DECAYS)
        for t in range(steps):
            weight = move(t, weight)
            for param in params:
                param[0] = weight
            opt.step()
            weight = float(params[0][0])  # as it was rounded
            history.append(weight)
            for k, decay in enumerate(DECAYS):
                before = averages[k] if t else weight
                averages[k] = before + (1 - decay) * (weight - before)
        mean = math.fsum(history[self.START - 1 :]) / (steps - self.START + 1)
        with opt.averaged():
            return [float(param[0]) for param in params], [mean, *averages]

    def test_a_slow_drift_is_followed(self):
        """From 1 to 1.01 in 200,000 steps."""
        steps = 200_000
        shown, expected = self.run(np.float32, steps, lambda t, _: 1 + 0.01 * t / steps)
        np.testing.assert_allclose(shown, expected, rtol=0, atol=HALF_UNIT + 1e-10)

    def test_noise_about_an_optimum_averages_out(self):
        """Gradient descent on noisy gradients of (w - 1.5)^2 / 2, from 1."""
        steps = 100_000
        noise = np.random.default_rng(0).normal(size=steps).tolist()

        def move(t, weight):
            weight = weight or 1.0
            return weight - 0.01 * (weight - 1.5 + noise[t])

        shown, expected = self.run(np.float32, steps, move)
        np.testing.assert_allclose(shown, expected, rtol=0, atol=HALF_UNIT + 1e-10)

    @pytest.mark.parametrize("small", [np.float16, ml_dtypes.bfloat16])
    def test_weights_in_16_bits(self, small):
        """Each is 1 or the next number above it: the mean lies between, the nearer is shown."""
        unit = float(np.finfo(np.float16).eps if small == np.float16 else 2.0**-7)
        shown, expected = self.run(small, 3000, lambda t, _: 1 + unit * (t % 4 == 0))
        for value, exact in zip(shown, expected, strict=True):
            assert value == 1 + unit * (exact > 1 + unit / 2)


def smallest_normal(dtype):
    return np.finfo(dtype).smallest_normal


def near_the_smallest(rng, shape, dtype, has_sign):
    """Normal numbers of which a factor of 2 to 8 makes subnormal ones."""
    values = rng.uniform(1, 4, shape).astype(dtype) * smallest_normal(dtype)
    return values * np.where(has_sign & (rng.random(shape) < 0.5), dtype(-1), dtype(1))


def count_subnormal(array, size, has_sign):
    if array.dtype == np.uint8:
        array = op.formats.q8_decode(array, size, signed=has_sign)
    if array.dtype.itemsize == 2:
        array = array.astype(np.float32)
    return int(((array != 0) & (abs(array) < smallest_normal(array.dtype))).sum())


KINDS = [(dtype, None) for dtype in FORMATS] + [(np.float32, "bf16"), (np.float32, "q8")]


@pytest.mark.parametrize(("dtype", "state_format"), KINDS, ids=str)
def test_no_state_stays_subnormal_without_gradients(case, dtype, state_format, rng):
    """Nor does the average. The slowest decay, 0.999, halves what is kept within 700 steps.

    The 8-bit codes of what has a sign stand for no subnormal number.
    """
    cls, options = case
    shape = 4500 if state_format else 50  # fewer than 4,096 would be kept in float32
    param, zeros = np.zeros(shape, dtype), np.zeros(shape, dtype)
    opt = cls(param, **{"lr": 0.0, **options}, state_format=state_format, ema_decay=0.5)
    opt.bind(zeros)
    opt.step()
    saved = opt.state_dict()
    entry = saved["state"][0]
    row = cls.row
    signs = dict(zip(row.states, row.has_sign, strict=True))
    signs = {name: signs[name] for name in state_names(cls, options)}
    for name, has_sign in signs.items():
        entry[name] = near_the_smallest(rng, shape, dtype, has_sign)
    entry["average"] = near_the_smallest(rng, shape, np.float64, has_sign=True)
    opt.load_state_dict(saved)
    for last in (5, 24 * _reference.FLUSH_EVERY):
        while opt.step().step < last:
            pass
        entry = opt.state_dict()["state"][0]
        left = {name: count_subnormal(entry[name], shape, sign) for name, sign in signs.items()}
        left["average"] = count_subnormal(entry["average"], shape, has_sign=True)
        if last == 5:
            assert any(left.values()) or state_format == "q8", "else the test would show nothing"
    assert not any(left.values()), left
