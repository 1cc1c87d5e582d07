"""JAX's gradients go into a step as they are, and the page on JAX says what is true of JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onepass as op
from helpers import assert_same_bits, digest, peak_of


def test_documentation(check_documentation):
    check_documentation("jax")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# What the page builds on. Where a new version of JAX differs, the page has to change.


def test_numpy_sees_jaxs_memory():
    grad = jax.block_until_ready(jnp.array(normal(100)))
    seen = np.asarray(grad)
    assert seen.ctypes.data == grad.unsafe_buffer_pointer(), "JAX copies: the page says it does not"
    assert not seen.flags.writeable, "JAX's arrays can be written: the page says they cannot"


def test_what_jax_keeps_of_an_array():
    flat, _ = op.pack([normal(1000)])
    alias, copy = jax.device_put(flat), jax.block_until_ready(jnp.array(flat))
    before = flat.copy()
    opt = op.SGD(flat, lr=1.0)
    with pytest.raises(ValueError, match="grads: expected memory of its own, got the same memory"):
        opt.step(alias)
    opt.step(copy)
    assert_same_bits(flat, np.zeros_like(flat))
    assert_same_bits(copy, before)
    assert not np.asarray(alias).any(), "device_put copies (jax #37830): the page says it may not"


def test_one_result_of_a_jitted_function_waits_for_the_others():
    """So a step, which waits for the gradients, waits until the parameters have been read."""

    def slow_and_quick(w, b):
        return jnp.sort(w).sum(), b + 1

    w, b = normal(100_000), np.zeros(1, np.float32)
    jitted = jax.jit(slow_and_quick)
    jax.block_until_ready(jitted(w, b))
    for _ in range(3):
        slow, quick = jitted(w, b)
        np.asarray(quick)
        assert slow.is_ready()


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] - y) ** 2)


def network():
    return {"w1": normal(64, 512), "b1": normal(512, seed=1), "w2": normal(512, 1, seed=2)}


def train(steps, of_grads=lambda grads: grads, pack=False, **settings):
    params = op.pack(network())[1] if pack else network()
    opt = op.AdamW(params, lr=0.01, **settings)
    gradients = jax.jit(jax.grad(loss))
    x, y = normal(256, 64, seed=3), normal(256, 1, seed=4)
    for _ in range(steps):
        opt.step(of_grads(gradients(params, x, y)))
    return digest(opt)


def copied(grads):
    return {name: np.array(grad) for name, grad in jax.block_until_ready(grads).items()}


@pytest.mark.parametrize("pack", [False, True], ids=["copied by JAX", "seen by JAX"])
def test_training_is_that_of_copies_that_were_waited_for(pack):
    stages = {"max_grad_norm": 0.1, "ema_decay": 0.9, "nonfinite": "skip"}
    assert train(20, pack=pack, **stages) == train(20, copied, pack=pack, **stages)


@given(
    st.lists(st.integers(0, 5), max_size=2),
    st.sampled_from([jnp.float32, jnp.float16, jnp.bfloat16]),
)
def test_any_gradient(shape, dtype):
    grad = jax.device_put(normal(*shape).astype(dtype))
    params = [np.ones(grad.shape, np.float32) for _ in range(2)]
    op.AdamW(params[0], lr=0.1).step(grad)
    op.AdamW(params[1], lr=0.1).step(np.array(grad, np.float32))
    assert_same_bits(*params)


class Layer(NamedTuple):
    w: object
    b: object


def test_trees():
    layers = [Layer(normal(2, 3), normal(3)), Layer(normal(3, 1), normal(1))]
    before = jax.tree.map(np.copy, layers)
    grads = jax.grad(lambda p: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(p)))(layers)
    op.SGD(layers, lr=1.0).step(grads)
    for now, then in zip(jax.tree.leaves(layers), jax.tree.leaves(before), strict=True):
        assert_same_bits(now, then - 1)


def test_nothing_is_copied():
    w = np.zeros(1_000_000, np.float32)
    grad = jax.block_until_ready(jnp.ones(w.shape, jnp.float32))
    opt = op.SGD(w, lr=1.0)
    opt.step(grad)
    peak = peak_of(lambda: (opt.step(grad), op.kernels.sgd(w, grad, lr=1.0)))
    assert peak < w.nbytes / 4
    assert (w == -3).all()


def test_rows_and_accumulated_gradients():
    table = np.zeros((5, 2), np.float32)
    opt = op.SGD({"e": table}, lr=1.0)
    opt.step_rows({"e": (jnp.array([3, 1, 3]), jnp.ones((3, 2)))})
    assert table[:, 0].tolist() == [0, -1, 0, -2, 0]
    for _ in range(2):
        opt.accumulate({"e": jnp.ones((5, 2))})
    opt.step(grad_scale=2)
    assert table[:, 0].tolist() == [-1, -2, -1, -3, -1]


def test_a_line_search():
    w = normal(4)
    value_and_grad = jax.jit(jax.value_and_grad(lambda w: jnp.sum(w**2)))
    value, grad = value_and_grad(w)
    found = op.line_search.backtracking()(w, grad, lambda: value_and_grad(w)[0])
    assert found.loss < value


def deleted():
    grad = jnp.ones(3)
    grad.delete()
    return grad


REFUSED = {
    "cleared": (
        lambda: op.SGD(normal(3), lr=1.0, clear_grads=True).step(jnp.ones(3)),
        TypeError,
        "^grads: expected a NumPy array, as clear_grads=True writes it, got .*ArrayImpl",
    ),
    "cleared, as NumPy sees it": (
        lambda: op.SGD(normal(3), lr=1.0, clear_grads=True).step(np.asarray(jnp.ones(3))),
        ValueError,
        "^grads: expected a writable array, got a read-only one",
    ),
    "bound": (
        lambda: op.SGD(normal(3), grads=jnp.ones(3)),
        TypeError,
        "^grads: expected a NumPy array, as later steps read it again, got .*ArrayImpl",
    ),
    "a parameter": (
        lambda: op.SGD(jnp.ones(3)),
        TypeError,
        "^params: expected a NumPy array, got .*ArrayImpl",
    ),
    "deleted": (
        lambda: op.SGD(normal(3), lr=1.0).step(deleted()),
        TypeError,
        "^grads: expected an array that NumPy can read, got .*ArrayImpl, which says: .*deleted",
    ),
    "a random key": (
        lambda: op.SGD(normal(3), lr=1.0).step(jax.random.key(0)),
        TypeError,
        "^grads: expected an array that NumPy can read, got PRNGKeyArray, which says: ",
    ),
    "inside jit": (
        lambda: jax.jit(lambda g: op.SGD(normal(3), lr=1.0).step(g))(jnp.ones(3)),
        TypeError,
        "^grads: expected an array that NumPy can read, got .*Tracer, which says: .*traced",
    ),
}


@pytest.mark.parametrize(("call", "error", "match"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()
