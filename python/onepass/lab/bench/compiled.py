"""AdamW as others compile it: optax through JAX, and a loop through Numba.

Both have the interface of the other contenders, and exist where the packages are installed.
"""

import math
from functools import cache
from importlib.util import find_spec
from typing import Any

from onepass import runtime
from onepass.lab.bench.timing import Step
from onepass.lab.bench.workloads import Case, Workload

SERIAL = 100_000
"""Elements below which Numba's loop runs on one thread: to share it would cost more."""


class Optax:
    """`optax.adamw`, jitted with its buffers donated. XLA has as many threads as it likes."""

    def __init__(self, case: Case, workload: Workload) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        settings = {**case.cls.defaults, **case.settings}
        (beta1, beta2), eps = settings["betas"], settings["eps"]
        rule = optax.adamw(settings["lr"], beta1, beta2, eps, weight_decay=settings["weight_decay"])

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(update, donate_argnums=(0, 1))
        grads = [jnp.array(each) for each in workload.grads()]
        params = [jnp.array(each) for each in workload.weights()]
        self._now = [params, rule.init(params)]

        def step() -> None:
            self._now[:] = jitted(*self._now, grads)
            jax.block_until_ready(self._now)

        self.step: Step = step

    @property
    def params(self) -> list[Any]:
        """The parameters as they are; the arrays of the start are gone."""
        return list(self._now[0])


class Numba:
    """One loop over each array, compiled by Numba, on threads where the arrays are large."""

    def __init__(self, case: Case, workload: Workload) -> None:
        import numpy as np

        settings = {**case.cls.defaults, **case.settings}
        lr, eps, decay = (settings[name] for name in ("lr", "eps", "weight_decay"))
        beta1, beta2 = settings["betas"]
        loop = _numba_loop(shared=workload.elements >= SERIAL and runtime.get_num_threads() > 1)
        self.params = workload.weights()
        states = [[np.zeros_like(param) for param in self.params] for _ in range(2)]
        flat = [
            [array.reshape(-1) for array in arrays]
            for arrays in (self.params, workload.grads(), *states)
        ]
        numbers = [np.float32(each) for each in (1 - lr * decay, beta1, 1 - beta1)]
        numbers += [np.float32(each) for each in (beta2, 1 - beta2, eps)]
        self.steps = 0

        def step() -> None:
            self.steps += 1
            step_size = np.float32(lr / (1 - beta1**self.steps))
            root = np.float32(1 / math.sqrt(1 - beta2**self.steps))
            for arrays in zip(*flat, strict=True):
                loop(*arrays, *numbers, step_size, root)

        self.step: Step = step


@cache  # it takes seconds to compile
def _numba_loop(*, shared: bool) -> Any:
    import numba

    if shared:
        numba.set_num_threads(min(runtime.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    over = numba.prange if shared else range

    @numba.njit(parallel=shared)  # type: ignore[untyped-decorator]
    def loop(
        param: Any,
        grad: Any,
        average: Any,
        square: Any,
        keep: Any,
        beta1: Any,
        rest1: Any,
        beta2: Any,
        rest2: Any,
        eps: Any,
        step_size: Any,
        root: Any,
    ) -> None:
        for i in over(param.size):
            average[i] = beta1 * average[i] + rest1 * grad[i]
            square[i] = beta2 * square[i] + rest2 * grad[i] * grad[i]
            denominator = math.sqrt(square[i]) * root + eps
            param[i] = keep * param[i] - step_size * average[i] / denominator

    return loop


def installed() -> dict[str, type[Optax] | type[Numba]]:
    """Return those that can be timed here, by the names that the table gives them."""
    needed: dict[str, tuple[type[Optax] | type[Numba], tuple[str, ...]]] = {
        "optax": (Optax, ("jax", "optax")),
        "Numba": (Numba, ("numba",)),
    }
    return {
        name: contender
        for name, (contender, modules) in needed.items()
        if all(map(find_spec, modules))
    }
