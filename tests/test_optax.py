"""A second implementation for the rules that PyTorch lacks: optax, in float64, over 100 steps."""

import numpy as np
import pytest

import onepass as op

optax = pytest.importorskip("optax", reason="optax is not installed")
import jax  # noqa: E402

LR = 0.01


def warmed_up_alpha(completed):
    """As the paper has it, over 40 steps to 3; optax counts from 0."""
    return 3.0 * jax.numpy.minimum(1.0, (jax.numpy.float64(completed) + 1.0) / 40)


def warmed_up_beta3(completed):
    """The equation of the paper's appendix, over 60 steps from 0.8 to 0.99."""
    mu = jax.numpy.minimum(1.0, (jax.numpy.float64(completed) + 1.0) / 60)
    start, end = np.log(0.8), np.log(0.99)
    return jax.numpy.exp(start * end / ((1 - mu) * end + mu * start))


PAIRS = {
    "AMSGrad": (
        op.Adam,
        {"amsgrad": True, "amsgrad_corrected": True, "betas": (0.8, 0.9)},
        lambda: optax.amsgrad(LR, 0.8, 0.9),
    ),
    "Lion": (op.Lion, {"weight_decay": 0.0}, lambda: optax.lion(LR, weight_decay=0.0)),
    "Lion, decay": (
        op.Lion,
        {"betas": (0.5, 0.8), "weight_decay": 0.3},
        lambda: optax.lion(LR, 0.5, 0.8, weight_decay=0.3),
    ),
    "Signum": (op.Lion, {"betas": (0.9, 0.9)}, lambda: optax.signum(LR, 0.9)),
    "SignSGD": (op.Lion, {"betas": (0.0, 0.0)}, lambda: optax.sign_sgd(LR)),
    "Adadelta": (op.Adadelta, {}, lambda: optax.adadelta(LR, 0.9, 1e-6)),
    "Adadelta, rho": (
        op.Adadelta,
        {"rho": 0.5, "eps": 1e-3},
        lambda: optax.adadelta(LR, 0.5, 1e-3),
    ),
    "Adamax": (op.Adamax, {}, lambda: optax.adamax(LR)),
    "Adamax, eps": (
        op.Adamax,
        {"betas": (0.5, 0.9), "eps": 1e-2},
        lambda: optax.adamax(LR, 0.5, 0.9, 1e-2),
    ),
    "LAMB": (op.LAMB, {"weight_decay": 0.0}, lambda: optax.lamb(LR)),
    "LAMB, decay": (
        op.LAMB,
        {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        lambda: optax.lamb(LR, 0.5, 0.9, 1e-3, weight_decay=0.3),
    ),
    "NovoGrad": (op.NovoGrad, {"betas": (0.9, 0.25)}, lambda: optax.novograd(LR, eps=1e-8)),
    "NovoGrad, decay": (
        op.NovoGrad,
        {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3},
        lambda: optax.novograd(LR, 0.5, 0.9, 1e-3, weight_decay=0.3),
    ),
    "NAdam": (op.NAdam, {"momentum_decay": np.inf}, lambda: optax.nadam(LR)),
    "NAdam, decay": (
        op.NAdam,
        {
            "betas": (0.5, 0.9),
            "eps": 1e-3,
            "momentum_decay": np.inf,
            "weight_decay": 0.3,
            "decoupled_weight_decay": True,
        },
        lambda: optax.nadamw(LR, 0.5, 0.9, 1e-3, weight_decay=0.3),
    ),
    "RAdam without epsilon": (op.RAdam, {"eps": 0.0}, lambda: optax.radam(LR, eps=0.0)),
    "AdaBelief": (op.AdaBelief, {"rectify": False}, lambda: optax.adabelief(LR)),
    "AdaBelief, decay": (
        op.AdaBelief,
        {"rectify": False, "betas": (0.5, 0.9), "eps": 1e-3, "eps_root": 1e-4, "weight_decay": 0.3},
        lambda: optax.chain(
            optax.scale_by_belief(0.5, 0.9, 1e-3, 1e-4),
            optax.add_decayed_weights(0.3),
            optax.scale_by_learning_rate(LR),
        ),
    ),
    "ADOPT": (op.ADOPT, {}, lambda: optax.contrib.adopt(LR)),
    "ADOPT, square root": (
        op.ADOPT,
        {"betas": (0.5, 0.9), "eps": 1e-3, "clip_exponent": 0.5},
        lambda: optax.contrib.adopt(LR, 0.5, 0.9, 1e-3, clip_value_fn=lambda step: step**0.5),
    ),
    "AdEMAMix": (
        op.AdEMAMix,
        {"alpha": 5.0, "weight_decay": 0.3},
        lambda: optax.contrib.ademamix(LR, weight_decay=0.3),
    ),
    "AdEMAMix, warm-up": (
        op.AdEMAMix,
        {
            "betas": (0.8, 0.9, 0.99),
            "alpha": 3.0,
            "eps": 1e-3,
            "alpha_warmup": 40,
            "beta3_warmup": 60,
        },
        lambda: optax.contrib.ademamix(
            LR, 0.8, 0.9, warmed_up_beta3, warmed_up_alpha, eps=1e-3, weight_decay=0.0
        ),
    ),
    "AdEMAMix, the same as schedules": (
        op.AdEMAMix,
        {"betas": (0.8, 0.9, warmed_up_beta3), "alpha": warmed_up_alpha, "eps": 1e-3},
        lambda: optax.contrib.ademamix(
            LR, 0.8, 0.9, warmed_up_beta3, warmed_up_alpha, eps=1e-3, weight_decay=0.0
        ),
    ),
    "SM3": (op.SM3, {}, lambda: optax.sm3(LR)),
    "SM3, momentum": (
        op.SM3,
        {"momentum": 0.5, "eps": 1e-3},
        lambda: optax.chain(optax.scale_by_sm3(0.5, eps=1e-3), optax.scale_by_learning_rate(LR)),
    ),
    "Yogi": (op.Yogi, {}, lambda: optax.yogi(LR)),
    "Yogi, betas": (
        op.Yogi,
        {"betas": (0.5, 0.9), "eps": 1e-2, "initial_accumulator_value": 0.5},
        lambda: optax.chain(
            optax.scale_by_yogi(0.5, 0.9, 1e-2, initial_accumulator_value=0.5),
            optax.scale_by_learning_rate(LR),
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_hundred_steps(name, rng):
    cls, settings, make = PAIRS[name]
    shapes = [(7, 5), (11,), (2, 3, 4), (1, 6), ()]
    if cls is op.SM3:
        shapes.remove(())  # theirs refuses it
    ours = [np.array(rng.normal(size=shape)) for shape in shapes]
    opt = cls(ours, LR, **settings)
    with jax.enable_x64(True):
        theirs = [jax.numpy.asarray(param.copy()) for param in ours]
        transformation = make()
        state = transformation.init(theirs)
        update = jax.jit(transformation.update)
        for _ in range(100):
            grads = [np.asarray(rng.normal(size=param.shape)) for param in ours]
            opt.step(grads)
            updates, state = update(list(map(jax.numpy.asarray, grads)), state, theirs)
            theirs = optax.apply_updates(theirs, updates)
        for ours_, theirs_ in zip(ours, theirs, strict=True):
            assert theirs_.dtype == np.float64
            np.testing.assert_allclose(ours_, theirs_, rtol=1e-12, atol=1e-12)
