"""The program's weights against the rule in NumPy."""

import re

import cffi
import numpy as np
import pytest

import many_tensors
import onepass as op


def test_the_weights_are_those_of_the_rule_in_numpy(oracle, assert_same_bits, capsys):
    settings = {"lr": 5e-3, "weight_decay": 0.01}
    each = [{**settings, "weight_decay": 0.0} if k % 2 else settings for k in range(4)]
    reference = oracle(op.AdamW, many_tensors.initial_params(), each, max_grad_norm=1.0)
    norms = []

    def follow(grads):
        norms.append(np.linalg.norm(np.concatenate([grad.ravel() for grad in grads])))
        reference.step(grads)

    params = many_tensors.train(epochs=8, after_gradients=follow)
    assert_same_bits(params, reference.params)
    assert min(norms) < 1 < max(norms)  # some were clipped
    *_, found = re.findall(r"([\d.]+)% found", capsys.readouterr().out)
    assert float(found) > 94


def test_what_is_refused_changes_nothing_and_says_why():
    params = many_tensors.initial_params()
    before = [param.copy() for param in params]
    grads = [*map(np.ones_like, params[:3]), params[3]]
    optimizer = many_tensors.AdamW(params, grads, max_norm=1.0, weight_decay=0.0)
    with pytest.raises(ValueError, match=r"^tensor 3: two arrays share memory"):
        optimizer.step()
    assert all(map(np.array_equal, params, before))
    with pytest.raises(TypeError, match="no setting learning_rate"):
        many_tensors.AdamW(params, grads, max_norm=1.0, weight_decay=0.0, learning_rate=1.0)


def test_every_function_that_is_declared_is_there():
    """cffi looks for a function when it is first named."""
    names = [name for name in dir(many_tensors.lib) if name.startswith("onepass_")]
    assert len(names) > 20
    for name in names:
        assert isinstance(getattr(many_tensors.lib, name), cffi.FFI.CData)
