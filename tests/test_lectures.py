"""Each equation of the lectures, in plain Python numbers, against the class that stands for it.

The lectures' algebra groups its operations otherwise than the kernels, so these agree to a few
roundings of float64 and not to the bit.
"""

from math import sqrt

import numpy as np
import pytest

import onepass as op
from helpers import accepts, shaped

LR, STEPS, START = 0.1, 12, 1.7


def gradient(w):
    """Of a slope that turns: the error surface of one weight."""
    return 2 * w + 3 * w**2 - 1


def trajectory(opt, w):
    """Where the optimizer goes, gradients taken at w."""
    path = []
    for _ in range(STEPS):
        opt.step(np.array([gradient(w[0])]))
        path.append(w[0])
    return path


def check(make, lecture):
    w = np.array([START])
    np.testing.assert_allclose(trajectory(make(w), w), list(lecture), rtol=1e-12)


def test_gradient_descent():
    def lecture():
        w = START
        for _ in range(STEPS):
            w -= LR * gradient(w)
            yield w

    check(lambda w: op.SGD(w, LR), lecture())


def test_momentum_as_a_moving_average():
    def lecture():
        w, v, b = START, 0.0, 0.9
        for _ in range(STEPS):
            v = b * v + (1 - b) * gradient(w)
            w -= LR * v
            yield w

    check(lambda w: op.SGD(w, LR, momentum=0.9, form="ema"), lecture())


def test_momentum_with_lr_inside():
    def lecture():
        w, u, y = START, 0.0, 0.5
        for _ in range(STEPS):
            u = y * u + LR * gradient(w)
            w -= u
            yield w

    check(lambda w: op.SGD(w, LR, momentum=0.5, form="sutskever"), lecture())


def test_momentum_as_a_velocity():
    def lecture():
        w, v, mu = START, 0.0, 0.5
        for _ in range(STEPS):
            v = mu * v - gradient(w)
            w += LR * v
            yield w

    check(lambda w: op.SGD(w, LR, momentum=0.5), lecture())


def test_dampening_which_the_first_step_is_spared():
    def torch_documents():
        w, v, mu, tau = START, None, 0.5, 0.3
        for _ in range(STEPS):
            v = gradient(w) if v is None else mu * v + (1 - tau) * gradient(w)
            w -= LR * v
            yield w

    check(lambda w: op.SGD(w, LR, momentum=0.5, dampening=0.3), torch_documents())


@pytest.mark.parametrize("form", ["sutskever", "ema", "heavy_ball"])
def test_nesterov_with_the_gradient_at_the_look_ahead_point(form):
    def lecture():
        w, v, mu = START, 0.0, 0.5
        for _ in range(STEPS):
            if form == "sutskever":
                v = mu * v + LR * gradient(w - mu * v)
                w -= v
            elif form == "ema":
                v = mu * v + (1 - mu) * gradient(w - mu * v)
                w -= LR * v
            else:
                v = mu * v + gradient(w - LR * mu * v)
                w -= LR * v
            yield w

    w = np.array([START])
    opt = op.SGD(w, LR, momentum=0.5, form=form)
    path = []
    for _ in range(STEPS):
        before = w.copy()
        with opt.lookahead():
            grads = gradient(w)
        assert w.tobytes() == before.tobytes()
        opt.step(grads)
        path.append(w[0])
    np.testing.assert_allclose(path, list(lecture()), rtol=1e-12)


@pytest.mark.parametrize("form", ["heavy_ball", "sutskever"])
def test_nesterov_rewritten_for_the_gradient_at_w(form):
    """The change of variables: its w is the look-ahead point of the original."""

    def original():
        w, v, mu = START, 0.0, 0.5
        for _ in range(STEPS):
            v = mu * v + LR * gradient(w - mu * v)
            w -= v
            yield w - mu * v

    check(lambda w: op.SGD(w, LR, momentum=0.5, nesterov=True, form=form), original())


@pytest.mark.parametrize(("eps", "eps_root"), [(0.01, 0.0), (0.0, 0.01), (0.01, 0.02)])
def test_adagrad_with_eps_outside_and_inside_the_root(eps, eps_root):
    def lecture():
        w, s = START, 0.0
        for _ in range(STEPS):
            s += gradient(w) ** 2
            w -= LR / (sqrt(s + eps_root) + eps) * gradient(w)
            yield w

    check(lambda w: op.Adagrad(w, LR, eps=eps, eps_root=eps_root), lecture())


def test_adagrad_with_decay_and_an_initial_accumulator():
    def lecture():
        w, s = START, 0.25
        for t in range(STEPS):
            s += gradient(w) ** 2
            w -= LR / (1 + 0.5 * t) / (sqrt(s) + 1e-10) * gradient(w)
            yield w

    check(lambda w: op.Adagrad(w, LR, 0.5, initial_accumulator_value=0.25), lecture())


@pytest.mark.parametrize(("eps", "eps_root"), [(0.01, 0.0), (0.0, 0.01), (0.01, 0.02)])
def test_rmsprop_with_eps_outside_and_inside_the_root(eps, eps_root):
    def lecture():
        w, s, b = START, 0.0, 0.9
        for _ in range(STEPS):
            s = b * s + (1 - b) * gradient(w) ** 2
            w -= LR / (sqrt(s + eps_root) + eps) * gradient(w)
            yield w

    check(lambda w: op.RMSprop(w, LR, 0.9, eps, eps_root=eps_root), lecture())


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rmsprop_centred_and_with_momentum(momentum):
    def graves():
        w, s, a, buffer = START, 0.0, 0.0, 0.0
        for _ in range(STEPS):
            g = gradient(w)
            s = 0.9 * s + 0.1 * g**2
            a = 0.9 * a + 0.1 * g
            buffer = momentum * buffer + g / sqrt(s - a**2 + 1e-4)
            w -= LR * buffer
            yield w

    check(
        lambda w: op.RMSprop(w, LR, 0.9, 0.0, momentum=momentum, centered=True, eps_root=1e-4),
        graves(),
    )


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize(("eps", "eps_root"), [(1e-3, 0.0), (0.0, 1e-3), (1e-3, 2e-3)])
def test_adam_with_and_without_bias_correction_eps_outside_and_inside(correct, eps, eps_root):
    def lecture():
        w, m, v, b1, b2 = START, 0.0, 0.0, 0.9, 0.99
        for t in range(1, STEPS + 1):
            m = b1 * m + (1 - b1) * gradient(w)
            v = b2 * v + (1 - b2) * gradient(w) ** 2
            m_hat, v_hat = (m / (1 - b1**t), v / (1 - b2**t)) if correct else (m, v)
            w -= LR * m_hat / (sqrt(v_hat + eps_root) + eps)
            yield w

    check(
        lambda w: op.Adam(w, LR, (0.9, 0.99), eps, bias_correction=correct, eps_root=eps_root),
        lecture(),
    )


def test_adam_in_the_papers_second_form():
    def paper():
        w, m, v, b1, b2 = START, 0.0, 0.0, 0.9, 0.99
        for t in range(1, STEPS + 1):
            m = b1 * m + (1 - b1) * gradient(w)
            v = b2 * v + (1 - b2) * gradient(w) ** 2
            w -= LR * sqrt(1 - b2**t) / (1 - b1**t) * m / (sqrt(v) + 1e-3)
            yield w

    check(lambda w: op.Adam(w, LR, (0.9, 0.99), 1e-3, eps_hat=True), paper())


def test_amsgrad_keeps_the_largest_raw_second_moment():
    def rule():
        w, m, v, largest, b1, b2 = START, 0.0, 0.0, 0.0, 0.9, 0.5
        for t in range(1, STEPS + 1):
            m = b1 * m + (1 - b1) * gradient(w)
            v = b2 * v + (1 - b2) * gradient(w) ** 2
            largest = max(largest, v)
            w -= LR * m / (1 - b1**t) / (sqrt(largest / (1 - b2**t)) + 1e-8)
            yield w

    check(lambda w: op.Adam(w, LR, (0.9, 0.5), amsgrad=True), rule())


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_with_l2_and_adamw(decoupled):
    def lecture():
        w, m, v, b1, b2, decay = START, 0.0, 0.0, 0.9, 0.99, 0.3
        for t in range(1, STEPS + 1):
            g = gradient(w) + (0 if decoupled else decay * w)
            if decoupled:
                w -= LR * decay * w
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            w -= LR * m / (1 - b1**t) / (sqrt(v / (1 - b2**t)) + 1e-8)
            yield w

    cls = op.AdamW if decoupled else op.Adam
    check(lambda w: cls(w, LR, (0.9, 0.99), weight_decay=0.3), lecture())


def test_weight_decay_is_coupled_and_maximize_climbs_in_every_class(every_class):
    """Decay adds decay * w to the gradient; maximizing f is minimizing -f."""
    before = {"no_prox": True} if "no_prox" in every_class.checks else {}  # not after the step
    is_a_stage = "weight_decay" not in every_class.row.hyper  # else the rule has its own
    decay = 0.25 * (is_a_stage and accepts(every_class, {"weight_decay": 0.25}))
    w, v = (shaped(every_class, {}, np.array([START])) for _ in range(2))
    plain, both = (
        every_class(w, 0.01, weight_decay=0.0),
        every_class(v, 0.01, weight_decay=decay, maximize=True, **before),
    )
    for _ in range(STEPS):
        if every_class.defaults.get("decoupled_weight_decay"):
            w *= 1 - 0.01 * decay
            plain.step(-gradient(v))
        else:
            plain.step(-gradient(v) + decay * v)
        both.step(gradient(v))
    np.testing.assert_allclose(v, w, rtol=1e-12)


def test_the_three_forms_of_momentum_agree_where_the_theory_says():
    """Constant lr: heavy_ball and sutskever are one; ema is heavy_ball with lr * (1 - momentum)."""
    paths = []
    for form, lr in [("heavy_ball", 0.01), ("sutskever", 0.01), ("ema", 0.1)]:
        w = np.array([START])
        paths.append(trajectory(op.SGD(w, lr, momentum=0.9, form=form), w))
    np.testing.assert_allclose(paths[1], paths[0], rtol=1e-12)
    np.testing.assert_allclose(paths[2], paths[0], rtol=1e-12)
