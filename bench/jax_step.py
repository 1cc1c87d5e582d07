"""Times a step of AdamW on JAX's gradients, beside optax's, jitted with its buffers donated.

taskset -c 0 python bench/jax_step.py                  one core: XLA takes all that it finds
taskset -c 0 python bench/jax_step.py --elements 25000000 --arrays 100

It needs jax and optax.
"""

import argparse
import os
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import optax

import onepass as op
from onepass.lab.bench.timing import Step, alternate

SETTINGS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--elements", type=int, nargs="*", default=[10_000, 1_000_000, 25_000_000])
    parser.add_argument("--arrays", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    op.set_num_threads(cores)
    print(f"jax {jax.__version__}, optax {optax.__version__}; {cores} cores; ", end="")
    print(f"load {os.getloadavg()[0]:.2f}; {options.arrays} arrays")
    for elements in options.elements:
        shape = (elements // options.arrays,)
        rng = np.random.default_rng(0)
        normal = [rng.normal(size=shape).astype(np.float32) for _ in range(options.arrays)]
        grads = jax.block_until_ready([jnp.array(each) for each in normal])
        check(onepass_step(normal, grads), optax_step(normal, grads))
        steps: dict[str, Step] = {
            "onepass": onepass_step(normal, grads)[0],
            "optax": optax_step(normal, grads)[0],
        }
        times = alternate(steps, options.seconds)
        ours, theirs = times["onepass"], times["optax"]
        ratio = median(b / a for a, b in zip(ours, theirs, strict=False))
        print(
            f"{elements:>10,} elements: onepass {median(ours) * 1e6:9,.1f} us, "
            f"optax {median(theirs) * 1e6:9,.1f} us, optax / onepass {ratio:.2f}"
        )


Contender = tuple[Step, Callable[[], list[np.ndarray]]]
"""A step, and the parameters as they are."""


def onepass_step(params: list[np.ndarray], grads: list[jax.Array]) -> Contender:
    params = [each.copy() for each in params]
    opt = op.AdamW(params, lr=1e-3, weight_decay=1e-2)
    return lambda: opt.step(grads), lambda: params


def optax_step(given: list[np.ndarray], grads: list[jax.Array]) -> Contender:
    rule = optax.adamw(1e-3, **SETTINGS)

    def update(params, state, grads):
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))
    params = [jnp.array(each) for each in given]
    now = [params, rule.init(params)]

    def step() -> None:
        now[:] = jitted(*now, grads)
        jax.block_until_ready(now)

    return step, lambda: [np.asarray(each) for each in now[0]]


def check(*contenders: Contender) -> None:
    """After three steps both have the same weights, but for rounding and where the decay stands."""
    for step, _ in contenders:
        for _ in range(3):
            step()
    for ours, theirs in zip(*(params() for _, params in contenders), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    main()
