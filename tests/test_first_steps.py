"""Rules as their papers state them, in plain Python numbers, over the first steps.

A kernel and its reference that are wrong alike agree with each other. What stands here was written
from the paper, or its authors' code, alone.
"""

from math import copysign, exp, inf, log, sqrt

import numpy as np
import pytest

import onepass as op
from test_lectures import LR, START, STEPS, check, gradient


def sign(x):
    return 0.0 if x == 0 else copysign(1.0, x)


def path(step):
    """Where `step(t, w, g)` leads, which returns the new weight."""
    w = START
    for t in range(1, STEPS + 1):
        w = step(t, w, gradient(w))
        yield w


def test_lion():
    memory = {"m": 0.0}

    def paper(t, w, g):
        m = memory["m"]
        update = sign(0.9 * m + (1 - 0.9) * g)
        memory["m"] = 0.99 * m + (1 - 0.99) * g
        return w - LR * (update + 0.3 * w)

    check(lambda w: op.Lion(w, LR, weight_decay=0.3), path(paper))


CAUTIOUS_GRADS = [(1.0, -2.0, 0.5), (-0.25, -1.0, -3.0), (0.0, 0.5, -2.0), (4.0, 1e-30, -1.0)]


def cautious(update, grad):
    """A step whose elements that disagree with the gradient are left out (Liang et al., 2024)."""
    mask = [float(u * g > 0) for u, g in zip(update, grad, strict=True)]
    return [u * m / max(sum(mask) / len(mask), 1e-3) for u, m in zip(update, mask, strict=True)]


def test_cautious_adamw():
    opt = op.AdamW(w := np.ones(3), LR, (0.8, 0.9), 0.01, weight_decay=0.3, cautious=True)
    weights, m, v = [1.0] * 3, [0.0] * 3, [0.0] * 3
    for t, grad in enumerate(CAUTIOUS_GRADS, 1):
        opt.step(np.array(grad))
        m = [0.8 * old + 0.2 * g for old, g in zip(m, grad, strict=True)]
        v = [0.9 * old + 0.1 * g * g for old, g in zip(v, grad, strict=True)]
        for i, step in enumerate(cautious(m, grad)):
            below = sqrt(v[i] / (1 - 0.9**t)) + 0.01
            weights[i] = (1 - LR * 0.3) * weights[i] - LR * step / (1 - 0.8**t) / below
        np.testing.assert_allclose(w, weights, rtol=1e-13)


def test_cautious_lion():
    opt = op.Lion(w := np.ones(3), LR, (0.5, 0.9), weight_decay=0.3, cautious=True)
    weights, m = [1.0] * 3, [0.0] * 3
    for grad in CAUTIOUS_GRADS:
        opt.step(np.array(grad))
        average = [0.5 * old + 0.5 * g for old, g in zip(m, grad, strict=True)]
        m = [0.9 * old + 0.1 * g for old, g in zip(m, grad, strict=True)]
        for i, step in enumerate(cautious(list(map(sign, average)), grad)):
            weights[i] = (1 - LR * 0.3) * weights[i] - LR * step
        np.testing.assert_allclose(w, weights, rtol=1e-13)


def test_elements_that_agree_nowhere_are_not_enlarged_beyond_bounds():
    """One of ten thousand agrees: 1,000 times its step, and not 10,000 times."""
    grad = np.full(10_000, -1.0)
    opt = op.Lion(w := np.zeros(10_000), 0.5, (0.5, 0.5), cautious=True)
    opt.step(-3 * grad)  # every average is 1.5 now, and 0.25 after the next gradient
    w[:] = 0
    grad[0] = 1.0
    opt.step(grad)
    assert w[0] == -0.5 * 1000
    assert not w[1:].any()


def test_adadelta():
    memory = {"g": 0.0, "d": 0.0}

    def paper(t, w, g):
        memory["g"] = 0.8 * memory["g"] + 0.2 * g * g
        delta = -sqrt(memory["d"] + 0.01) / sqrt(memory["g"] + 0.01) * g
        memory["d"] = 0.8 * memory["d"] + 0.2 * delta * delta
        return w + delta

    check(lambda w: op.Adadelta(w, rho=0.8, eps=0.01), path(paper))


def test_adamax():
    memory = {"m": 0.0, "u": 0.0}

    def paper(t, w, g):
        memory["m"] = 0.8 * memory["m"] + 0.2 * g
        memory["u"] = max(0.9 * memory["u"], abs(g))
        return w - LR / (1 - 0.8**t) * memory["m"] / memory["u"]

    check(lambda w: op.Adamax(w, LR, (0.8, 0.9), eps=0.0), path(paper))


def nadam(psi, correct_ahead=True):
    """Dozat's algorithm 8 with his momentum schedule."""
    memory = {"m": 0.0, "v": 0.0, "product": 1.0}

    def paper(t, w, g):
        mu, following = (0.8 * (1 - 0.5 * 0.96 ** (s * psi)) for s in (t, t + 1))
        memory["product"] *= mu
        memory["m"] = 0.8 * memory["m"] + 0.2 * g
        memory["v"] = 0.9 * memory["v"] + 0.1 * g * g
        ahead = memory["product"] * (following if correct_ahead else 1)
        mean = following * memory["m"] / (1 - ahead)
        mean += (1 - mu) * g / (1 - memory["product"])
        return w - LR * mean / (sqrt(memory["v"] / (1 - 0.9**t)) + 1e-3)

    return paper


@pytest.mark.parametrize("psi", [0.0, 0.004, 1.0])
def test_nadam(psi):
    check(lambda w: op.NAdam(w, LR, (0.8, 0.9), 1e-3, momentum_decay=psi), path(nadam(psi)))


def test_keras_nadam():
    """Its momentum is beta1 (1 - 0.96**t / 2), which is psi = 1."""
    memory = {"m": 0.0, "v": 0.0, "product": 1.0}

    def keras(t, w, g):
        u, next_u = (0.8 * (1 - 0.5 * 0.96**s) for s in (t, t + 1))
        memory["product"] *= u
        memory["m"] += (g - memory["m"]) * (1 - 0.8)
        memory["v"] += (g * g - memory["v"]) * (1 - 0.9)
        m_hat = next_u * memory["m"] / (1 - memory["product"] * next_u)
        m_hat += (1 - u) * g / (1 - memory["product"])
        return w - m_hat * LR / (sqrt(memory["v"] / (1 - 0.9**t)) + 1e-7)

    check(lambda w: op.NAdam(w, LR, (0.8, 0.9), 1e-7, momentum_decay=1.0), path(keras))


def test_algoperf_nadamw():
    """Nesterov's average corrected as Adam's: AlgoPerf's baseline, and timm's NAdamW."""
    memory = {"m": 0.0, "v": 0.0}

    def algoperf(t, w, g):
        w *= 1 - LR * 0.3
        memory["m"] = 0.8 * memory["m"] + 0.2 * g
        memory["v"] = 0.9 * memory["v"] + 0.1 * g * g
        nesterov = 0.8 * memory["m"] + 0.2 * g
        root = sqrt(memory["v"] / (1 - 0.9**t))
        return w - LR / (1 - 0.8**t) * nesterov / (root + 1e-3)

    options = {"weight_decay": 0.3, "decoupled_weight_decay": True}
    options |= {"momentum_decay": inf, "correct_ahead": False}
    check(lambda w: op.NAdam(w, LR, (0.8, 0.9), 1e-3, **options), path(algoperf))


def path_of_arrays(step, start, grads):
    w = np.array(start)
    for t, g in enumerate(grads, start=1):
        w = step(t, w, np.array(g))
    return w


GRADS = ([3.0, 4.0], [-1.0, 2.0], [0.5, -0.25])


def follows(make, step):
    """Two arrays, of which one is the other twice as large, each with norms of its own."""
    starts = [3.0, -4.0], [6.0, -8.0]
    arrays = [np.array(start) for start in starts]
    opt = make(arrays)
    for grad in GRADS:
        opt.step([np.array(grad), 2 * np.array(grad)])
    for array, start, factor in zip(arrays, starts, (1, 2), strict=True):
        grads = [factor * np.array(grad) for grad in GRADS]
        np.testing.assert_allclose(array, path_of_arrays(step(), start, grads), rtol=1e-12)


@pytest.mark.parametrize("clip", [False, True])
def test_lamb(clip):
    def make():
        memory = {"m": 0.0, "v": 0.0}

        def paper(t, w, g):
            memory["m"] = 0.8 * memory["m"] + 0.2 * g
            memory["v"] = 0.9 * memory["v"] + 0.1 * g * g
            root = np.sqrt(memory["v"] / (1 - 0.9**t)) + 1e-3
            u = memory["m"] / (1 - 0.8**t) / root + 0.3 * w
            ratio = sqrt((w * w).sum()) / sqrt((u * u).sum())
            return w - LR * (min(ratio, 1.0) if clip else ratio) * u

        return paper

    options = {"weight_decay": 0.3, "trust_clip": clip}
    follows(lambda w: op.LAMB(w, LR, (0.8, 0.9), 1e-3, **options), make)


@pytest.mark.parametrize("average", [False, True])
def test_novograd(average):
    def make():
        memory = {"m": 0.0, "v": 0.0}

        def paper(t, w, g):
            norm = (g * g).sum()
            memory["v"] = norm if t == 1 else 0.9 * memory["v"] + 0.1 * norm
            gain = 0.2 if average else 1.0
            memory["m"] = 0.8 * memory["m"] + gain * (g / (sqrt(memory["v"]) + 1e-3) + 0.3 * w)
            return w - LR * memory["m"]

        return paper

    options = {"weight_decay": 0.3, "grad_averaging": average}
    follows(lambda w: op.NovoGrad(w, LR, (0.8, 0.9), 1e-3, **options), make)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_lars(nesterov, clip):
    def make():
        memory = {"v": 0.0}

        def paper(t, w, g):
            w_norm, g_norm = sqrt((w * w).sum()), sqrt((g * g).sum())
            ratio = 0.5 * w_norm / (g_norm + 0.3 * w_norm + 1e-3)
            ratio = min(ratio / LR, 1.0) if clip else ratio
            scaled = ratio * (g + 0.3 * w)
            memory["v"] = 0.8 * memory["v"] + scaled
            return w - LR * (scaled + 0.8 * memory["v"] if nesterov else memory["v"])

        return paper

    options = {"nesterov": nesterov, "trust_clip": clip, "trust_coeff": 0.5, "eps": 1e-3}
    follows(lambda w: op.LARS(w, LR, 0.8, weight_decay=0.3, **options), make)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("grad", [np.inf, 1e38, 0.0])
def test_lars_with_a_rate_of_zero(dtype, grad):
    """At the first step of a warm-up: 0 / 0 where the ratio is divided by the rate."""
    w, grads = np.array([1.0, 2.0], dtype), np.array([grad, 1.0], dtype)
    settings = {"lr": 0.0, "trust_clip": True, "always_adapt": True, "trust_coeff": 0.0}
    with np.errstate(all="ignore"):
        expected = op.LARS.reference_step(w.copy(), grads, None, **settings)[0]
    op.LARS(w, **settings).step(grads)
    np.testing.assert_array_equal(w, expected)
    assert w[1] == 2.0


def test_a_group_that_lars_leaves_to_sgd():
    """Biases, as the authors have it: neither decay nor ratio."""
    w, bias, twin, grad = np.ones(4), np.ones(3), np.ones(3), np.full(3, 0.5)
    groups = [{"params": w}, {"params": bias, "trust_coeff": None, "weight_decay": 0.0}]
    opt = op.LARS(groups, 0.1, 0.9, weight_decay=0.3)
    sgd = op.SGD(twin, 0.1, 0.9)
    for _ in range(3):
        opt.step([np.full(4, 0.5), grad])
        sgd.step(grad)
    np.testing.assert_array_equal(bias, twin)
    assert (w != bias[0]).all()


def schedule_free(momentum, r, power, update, warmup=0):
    """Defazio et al., equations 3 to 5, with the weights of their section 3: the path of y."""
    memory = {"x": START, "z": START, "weights": 0.0, "largest": 0.0}

    def paper(t, _, g):
        lr = LR * min(1.0, t / warmup) if warmup else LR
        y = (1 - momentum) * memory["z"] + momentum * memory["x"]
        memory["z"] -= lr * update(t, y, g)
        memory["largest"] = max(memory["largest"], lr)
        weight = t**r * memory["largest"] ** power
        memory["weights"] += weight
        c = weight / memory["weights"]
        memory["x"] = (1 - c) * memory["x"] + c * memory["z"]
        return (1 - momentum) * memory["z"] + momentum * memory["x"]

    return paper


@pytest.mark.parametrize(("r", "power", "warmup"), [(0.0, 2.0, 0), (1.5, 0.5, 5)])
def test_schedule_free_sgd(r, power, warmup):
    options = {"weight_decay": 0.3, "warmup_steps": warmup, "r": r, "weight_lr_power": power}
    paper = schedule_free(0.8, r, power, lambda _, y, g: g + 0.3 * y, warmup)
    check(lambda w: op.SGDScheduleFree(w, LR, 0.8, **options), path(paper))


@pytest.mark.parametrize(("r", "power", "warmup"), [(0.0, 2.0, 0), (1.5, 0.5, 5)])
def test_schedule_free_adamw(r, power, warmup):
    memory = {"v": 0.0}

    def update(t, y, g):
        memory["v"] = 0.9 * memory["v"] + 0.1 * g * g
        return g / (sqrt(memory["v"] / (1 - 0.9**t)) + 1e-3) + 0.3 * y

    options = {"weight_decay": 0.3, "warmup_steps": warmup, "r": r, "weight_lr_power": power}
    paper = schedule_free(0.8, r, power, update, warmup)
    check(lambda w: op.AdamWScheduleFree(w, LR, (0.8, 0.9), 1e-3, **options), path(paper))


def rectified(t, beta2):
    """The length of the paper's moving average, and its rectification."""
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    if length <= 4:
        return length, None
    top = (length - 4) * (length - 2) * longest
    return length, sqrt(top / ((longest - 4) * (longest - 2) * length))


@pytest.mark.parametrize("beta2", [0.6, 0.9, 0.99])
def test_radam(beta2):
    memory = {"m": 0.0, "v": 0.0}

    def paper(t, w, g):
        memory["m"] = 0.8 * memory["m"] + 0.2 * g
        memory["v"] = beta2 * memory["v"] + (1 - beta2) * g * g
        mean = memory["m"] / (1 - 0.8**t)
        length, factor = rectified(t, beta2)
        if length > 5:
            return w - LR * factor * mean / (sqrt(memory["v"] / (1 - beta2**t)))
        return w - LR * mean

    check(lambda w: op.RAdam(w, LR, (0.8, beta2), eps=0.0), path(paper))


@pytest.mark.parametrize(
    ("beta2", "first"), [(0.9, 6), (0.99, 6), (0.999, 6), (0.8, 7), (0.7, 10), (0.6, None)]
)
def test_the_first_rectified_step(beta2, first):
    """Liu et al., section 3: before it the steps are momentum's."""
    w, step = np.array([0.0, 0.0]), 0
    opt = op.RAdam(w, 1.0, (0.0, beta2), eps=0.0)
    while step < 50:
        before = w.copy()
        opt.step(np.array([1.0, 8.0]))
        step += 1
        moved = before - w
        if moved[0] == pytest.approx(moved[1]):  # adaptive: whatever the gradient
            break
        assert moved == pytest.approx([1.0, 8.0])
    assert step == (first or 50)


@pytest.mark.parametrize("rectify", [True, False])
def test_adabelief(rectify):
    memory = {"m": 0.0, "s": 0.0}

    def paper(t, w, g):
        memory["m"] = 0.8 * memory["m"] + 0.2 * g
        memory["s"] = 0.9 * memory["s"] + 0.1 * (g - memory["m"]) ** 2 + 1e-4
        mean = memory["m"] / (1 - 0.8**t)
        shrunk = w - LR * 0.3 * w
        if not rectify:
            return shrunk - LR * mean / (sqrt(memory["s"] / (1 - 0.9**t)) + 1e-3)
        length, factor = rectified(t, 0.9)
        if length < 5:
            return shrunk - LR * mean
        return shrunk - LR * factor * mean * sqrt(1 - 0.9**t) / (sqrt(memory["s"]) + 1e-3)

    options = {"eps": 1e-3, "eps_root": 1e-4, "weight_decay": 0.3, "rectify": rectify}
    check(lambda w: op.AdaBelief(w, LR, (0.8, 0.9), **options), path(paper))


def test_adopt():
    memory = {"m": 0.0, "v": 0.0}

    def authors(t, w, g):
        if t == 1:
            memory["v"] = g * g
            return w
        limit = (t - 1) ** 0.25
        normed = min(max(g / max(sqrt(memory["v"]), 1e-6), -limit), limit)
        memory["m"] = 0.8 * memory["m"] + 0.2 * normed
        memory["v"] = 0.9 * memory["v"] + 0.1 * g * g
        return w - LR * memory["m"]

    check(lambda w: op.ADOPT(w, LR, (0.8, 0.9)), path(authors))


def test_yogi():
    memory = {"m": 1e-6, "v": 1e-6}

    def paper(t, w, g):
        memory["m"] = 0.8 * memory["m"] + 0.2 * g
        memory["v"] -= 0.1 * sign(memory["v"] - g * g) * g * g
        return w - LR * memory["m"] / (1 - 0.8**t) / (sqrt(memory["v"] / (1 - 0.9**t)) + 1e-3)

    check(lambda w: op.Yogi(w, LR, (0.8, 0.9)), path(paper))


def test_ademamix():
    memory = {"fast": 0.0, "slow": 0.0, "v": 0.0}

    def paper(t, w, g):
        progress = min(1.0, t / 8)
        alpha, start, end = 3.0 * progress, log(0.8), log(0.95)
        beta3 = exp(start * end / ((1 - progress) * end + progress * start))
        memory["fast"] = 0.8 * memory["fast"] + 0.2 * g
        memory["slow"] = beta3 * memory["slow"] + (1 - beta3) * g
        memory["v"] = 0.9 * memory["v"] + 0.1 * g * g
        top = memory["fast"] / (1 - 0.8**t) + alpha * memory["slow"]
        return w - LR * (top / (sqrt(memory["v"] / (1 - 0.9**t)) + 1e-3) + 0.3 * w)

    options = {"alpha": 3.0, "eps": 1e-3, "weight_decay": 0.3, "alpha_warmup": 8, "beta3_warmup": 8}
    check(lambda w: op.AdEMAMix(w, LR, (0.8, 0.9, 0.95), **options), path(paper))


def test_rprop():
    """Igel and Hüsken's iRprop-."""
    memory = {"g": 0.0, "size": LR}

    def paper(t, w, g):
        if g * memory["g"] > 0:
            memory["size"] = min(memory["size"] * 1.2, 0.3)
        elif g * memory["g"] < 0:
            memory["size"] = max(memory["size"] * 0.5, 1e-6)
            g = 0.0
        memory["g"] = g
        return w - sign(g) * memory["size"]

    check(lambda w: op.Rprop(w, LR, step_sizes=(1e-6, 0.3)), path(paper))


@pytest.mark.parametrize("no_prox", [False, True])
def test_adan(no_prox):
    memory = {"m": 0.0, "n": 0.0, "v": 0.0, "last": None}

    def paper(t, w, g):
        """The paper's Algorithm 1, whose betas are 1 minus these."""
        change = 0.0 if memory["last"] is None else g - memory["last"]
        memory["last"] = g
        memory["m"] = 0.9 * memory["m"] + 0.1 * g
        memory["n"] = 0.8 * memory["n"] + 0.2 * change
        memory["v"] = 0.7 * memory["v"] + 0.3 * (g + 0.8 * change) ** 2
        size = LR / (sqrt(memory["v"] / (1 - 0.7**t)) + 1e-3)
        update = size * (memory["m"] / (1 - 0.9**t) + 0.8 * memory["n"] / (1 - 0.8**t))
        return w * (1 - LR * 0.3) - update if no_prox else (w - update) / (1 + LR * 0.3)

    options = {"eps": 1e-3, "weight_decay": 0.3, "no_prox": no_prox}
    check(lambda w: op.Adan(w, LR, (0.9, 0.8, 0.7), **options), path(paper))


def test_two_steps_of_adan():
    """optax#1715: 1 - beta2 where beta2 belongs, which "the loss falls" did not show."""
    w = np.zeros(1)
    opt = op.Adan(w, lr=1.0, betas=(0.5, 0.75, 0.0), eps=0.0)
    opt.step(np.array([1.0]))  # m = 0.5, v = 1: 0.5 / 0.5
    assert w == -1
    opt.step(np.array([3.0]))  # change 2, m = 1.75, n = 0.5, the square of 3 + 0.75 * 2 = 4.5
    expected = -1 - (1.75 / 0.75 + 0.75 * 0.5 / (1 - 0.75**2)) / 4.5
    np.testing.assert_allclose(w, expected, rtol=1e-15)


def test_asgd():
    memory = {"mean": 0.0, "n": 0}
    means = []

    def bottou(t, w, g):
        eta = LR / (1 + 0.5 * LR * (t - 1)) ** 0.75
        w = w - eta * (g + 0.5 * w)
        if t <= 4:  # one step later than t0 = 3, as in PyTorch
            memory.update(mean=w, n=1)
        elif t > 5:
            memory["n"] += 1
            memory["mean"] += (w - memory["mean"]) / memory["n"]
        else:
            memory.update(mean=w, n=1)
        means.append(memory["mean"])
        return w

    shown = []

    def make(w):
        opt = op.ASGD(w, LR, lambd=0.5, t0=3.0)
        step = opt.step

        class Shows:
            def step(self, grad):
                step(grad)
                with opt.averaged():
                    shown.append(w[0])

        return Shows()

    check(make, path(bottou))
    np.testing.assert_allclose(shown, means, rtol=1e-12)


def test_a_new_rate_of_asgd_acts_at_once():
    """pytorch#74884: there it does a step later."""
    w = np.zeros(1)
    opt = op.ASGD(w, lr=1.0, lambd=0.0)
    opt.step(np.ones(1))
    opt.param_groups[0]["lr"] = 0.25
    opt.step(np.ones(1))
    assert w == -1.25


def test_adam_of_rows():
    """Lazily: a row moves where it is named, by the corrections of its table's step."""
    table = np.ones((3, 1))
    opt = op.Adam({"table": table}, LR, (0.8, 0.9), 0.01)
    w, m, v = [1.0] * 3, [0.0] * 3, [0.0] * 3
    calls = {0: (0.5,)}, {2: (0.25, -1.0)}, {}, {2: (3.0,), 0: (0.5, 0.125, 1.0)}
    for t, named in enumerate(calls, 1):
        pairs = [(row, g) for row, values in named.items() for g in values]
        index = np.array([row for row, _ in pairs], int)
        opt.step_rows({"table": (index, np.array([g for _, g in pairs]).reshape(-1, 1))})
        for row, values in named.items():
            g = sum(values)
            m[row] = 0.8 * m[row] + 0.2 * g
            v[row] = 0.9 * v[row] + 0.1 * g * g
            w[row] -= LR * m[row] / (1 - 0.8**t) / (sqrt(v[row] / (1 - 0.9**t)) + 0.01)
        np.testing.assert_allclose(table.ravel(), w, rtol=1e-13)
    assert w[1] == 1.0


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("shape", "ratio"), [((3, 2), sqrt(3 / 2)), ((2, 3), 1.0), ((2, 2), 1.0)])
def test_muon(shape, ratio, nesterov):
    """A diagonal stays one, and each of its numbers goes through the polynomial."""
    a, b, c = 3.4445, -4.7750, 2.0315
    w, momentum, weights = np.zeros(shape), [0.0, 0.0], [0.0, 0.0]
    opt = op.Muon(w, LR, 0.3, 0.8, nesterov, ns_steps=4)
    for diagonal in ((3.0, -4.0), (0.5, 1.0), (-2.0, 0.25)):
        grad = np.zeros(shape)
        grad[0, 0], grad[1, 1] = diagonal
        opt.step(grad)
        momentum = [0.8 * m + (1 - 0.8) * g for m, g in zip(momentum, diagonal, strict=True)]
        x = momentum
        if nesterov:
            x = [0.8 * m + (1 - 0.8) * g for m, g in zip(momentum, diagonal, strict=True)]
        norm = sqrt(sum(number**2 for number in x))
        x = [number / norm for number in x]
        for _ in range(4):
            x = [a * number + b * number**3 + c * number**5 for number in x]
        weights = [
            (1 - LR * 0.3) * weight - LR * ratio * number
            for weight, number in zip(weights, x, strict=True)
        ]
        np.testing.assert_allclose([w[0, 0], w[1, 1]], weights, rtol=1e-12)
        assert np.count_nonzero(w) == 2


def adafactor(t, w, g, rows, columns, *, decay=0.0, eps1=2**-52, eps2=1e-3, d=1.0, gamma=-0.8):
    """Shazeer and Stern's algorithm 4 with PyTorch's bounds, of a matrix as lists of rows."""
    n, m = len(w), len(w[0])
    share = t**gamma
    length = sqrt(sum(x * x for row in w for x in row) / (n * m))
    alpha = max(eps2, length) * min(LR, 1 / sqrt(t))
    for i in range(n):
        rows[i] += share * (sum(g[i][j] ** 2 for j in range(m)) / m - rows[i])
    for j in range(m):
        columns[j] += share * (sum(g[i][j] ** 2 for i in range(n)) / n - columns[j])
    mean = max(sum(rows) / n, eps1)
    update = [
        [g[i][j] / sqrt(max(rows[i] * columns[j] / mean, eps1**2)) for j in range(m)]
        for i in range(n)
    ]
    too_long = max(1, sqrt(sum(u * u for row in update for u in row) / (n * m)) / d)
    return [
        [w[i][j] * (1 - LR * decay) - alpha / too_long * update[i][j] for j in range(m)]
        for i in range(n)
    ]


MATRIX_GRADS = [
    [[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]],
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    [[4.0, 1e-9, -3.0], [0.5, -0.5, 2.0]],
    [[1e-9, 0.0, 0.0], [0.0, -1e-9, 0.0]],
]


@pytest.mark.parametrize(
    "options",
    [{}, {"decay": 0.3}, {"eps1": 0.1, "eps2": 2.0, "d": 2.0, "gamma": -0.5}],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_adafactor(options, order):
    start = [[1.0, -2.0, 3.0], [0.5, 0.0, 4.0]]
    ours = np.array(start, order=order)
    names = {"decay": "weight_decay", "d": "d", "gamma": "beta2_decay"}
    settings = {names[name]: value for name, value in options.items() if name in names}
    opt = op.Adafactor(ours, LR, eps=(options.get("eps1"), options.get("eps2", 1e-3)), **settings)
    theirs, rows, columns = start, [0.0, 0.0], [0.0, 0.0, 0.0]
    for t, grad in enumerate(MATRIX_GRADS, start=1):
        opt.step(np.array(grad))
        theirs = adafactor(t, theirs, grad, rows, columns, **options)
        np.testing.assert_allclose(ours, theirs, rtol=1e-14, atol=1e-15)


def test_adafactor_of_a_vector():
    memory = {"v": [0.0, 0.0]}

    def paper(t, w, g):
        share = t**-0.8
        length = sqrt(sum(x * x for x in w) / 2)
        v = memory["v"] = [o + share * (x * x - o) for o, x in zip(memory["v"], g, strict=True)]
        update = [x / max(sqrt(o), 2**-52) for o, x in zip(v, g, strict=True)]
        too_long = max(1, sqrt(sum(u * u for u in update) / 2))
        alpha = max(1e-3, length) * min(0.7, 1 / sqrt(t)) / too_long
        return [x - alpha * u for x, u in zip(w, update, strict=True)]

    ours, theirs = np.array([3.0, -1.0]), [3.0, -1.0]
    opt = op.Adafactor(ours, lr=0.7)
    for t, grad in enumerate([(1.0, -2.0), (0.0, 0.0), (0.25, 8.0), (1e-20, -1.0)], start=1):
        opt.step(np.array(grad))
        theirs = paper(t, theirs, grad)
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_adafactor_of_transformers():
    """Its code over a matrix: epsilon is added, the rate falls, a momentum of finished updates."""
    ours = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, 4.0]])
    w, rows, columns, average = ours.copy(), np.zeros(2), np.zeros(3), np.zeros((2, 3))
    opt = op.Adafactor(ours, eps=(1e-3, 1e-2), beta1=0.8, d=1.5, add_eps=True)
    for t, given in enumerate(MATRIX_GRADS, start=1):
        g = np.array(given)
        opt.step(g)
        beta2 = 1 - t**-0.8
        lr = max(1e-2, np.sqrt(np.mean(w**2))) * min(1e-2, 1 / sqrt(t))
        square = g**2 + 1e-3
        rows = beta2 * rows + (1 - beta2) * square.mean(axis=1)
        columns = beta2 * columns + (1 - beta2) * square.mean(axis=0)
        update = g / np.sqrt(np.outer(rows / rows.mean(), columns))
        update /= max(1.0, np.sqrt(np.mean(update**2)) / 1.5)
        average = 0.8 * average + (1 - 0.8) * lr * update
        w = w - average
        np.testing.assert_allclose(ours, w, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_the_rates_of_adafactor(relative, scale):
    """A gradient of ones is an update of ones."""
    w = np.full((2, 2), 4.0)
    opt = op.Adafactor(w, lr=0.8, relative_step=relative, scale_parameter=scale)
    expected = 4.0
    for t in range(1, 6):
        opt.step(np.ones((2, 2)))
        rate = min(0.8, 1 / sqrt(t)) if relative else 0.8
        expected -= rate * (max(1e-3, abs(expected)) if scale else 1)
        np.testing.assert_allclose(w, expected, rtol=1e-13)


def test_sm3():
    """Anil et al.'s algorithm SM3-I over the rows and columns of a matrix, with momentum."""
    w = [[1.0, -2.0, 3.0], [0.5, 0.0, 4.0]]
    ours = np.array(w)
    opt = op.SM3(ours, LR, momentum=0.8, eps=1e-3)
    rows, columns = [0.0] * 2, [0.0] * 3
    average = [[0.0] * 3 for _ in range(2)]
    for g in MATRIX_GRADS:
        opt.step(np.array(g))
        bound = [[min(rows[i], columns[j]) + g[i][j] ** 2 for j in range(3)] for i in range(2)]
        rows = [max(row) for row in bound]
        columns = [max(row[j] for row in bound) for j in range(3)]
        for i in range(2):
            for j in range(3):
                update = g[i][j] / sqrt(bound[i][j] + 1e-3) if bound[i][j] else 0.0
                average[i][j] = 0.8 * average[i][j] + (1 - 0.8) * update
                w[i][j] -= LR * average[i][j]
        np.testing.assert_allclose(ours, w, rtol=1e-14, atol=1e-15)
        accumulators = opt.state_dict()["state"][0]["accumulators"]
        np.testing.assert_allclose(accumulators, [*rows, *columns], rtol=1e-14)
