"""All tensors of a network, stepped from Python by one call of C, through cffi.

It shows the declarations used as they are shipped, settings by their names, two groups (biases do
not decay), clipping by the norm of all gradients together, and what a refused call says.

    python many_tensors.py
"""

from pathlib import Path

import cffi
import numpy as np
from sklearn.datasets import load_digits

import onepass as op

ffi = cffi.FFI()
ffi.cdef(Path(op.get_include(), "onepass", "capi_functions.h").read_text())
lib = ffi.dlopen(op.get_library())


def pointer(array):
    """Return an array's address, which keeps nothing alive."""
    return ffi.cast("void *", array.ctypes.data)


class AdamW:
    """Moves float32 arrays in place, by gradients that are written into the same arrays anew.

    AdamW is the rule adam with a decay that is decoupled.
    """

    def __init__(self, params, grads, *, max_norm, weight_decay, **settings):
        self.rule = lib.onepass_rule(b"adam")
        decays = (weight_decay, 0.0)
        self.settings = [
            self._settings(decoupled_weight_decay=1, weight_decay=decay, **settings)
            for decay in decays
        ]
        groups = [{"rule": self.rule, "settings": numbers} for numbers in self.settings]
        self.groups = ffi.new("onepass_group[]", groups)
        self.arrays = params, grads, *([np.zeros_like(p) for p in params] for _ in range(2))
        self.tensors = ffi.new("onepass_tensor[]", len(params))
        for tensor, param, grad, *states in zip(self.tensors, *self.arrays, strict=True):
            tensor.size, tensor.group = param.size, int(param.ndim < 2)
            tensor.param, tensor.grad = pointer(param), pointer(grad)
            tensor.state = [*map(pointer, states), ffi.NULL, ffi.NULL]
        sizes = [ffi.sizeof(f"onepass_{name}") for name in ("call", "group", "tensor")]
        self.call = ffi.new("onepass_call *", [*sizes, 1.0, max_norm])
        self.result = ffi.new("onepass_result *", [ffi.sizeof("onepass_result")])

    def _settings(self, **given):
        numbers = ffi.new("double[]", lib.onepass_count(self.rule, lib.ONEPASS_SETTINGS))
        lib.onepass_defaults(self.rule, numbers)
        for name, value in given.items():
            if lib.onepass_set(self.rule, numbers, name.encode(), value) != lib.ONEPASS_OK:
                raise TypeError(f"adam has no setting {name}")
        return numbers

    def step(self):
        """Take a step, and return the norm of all gradients."""
        groups, tensors = self.groups, self.tensors
        code = lib.onepass_step(groups, len(groups), tensors, len(tensors), self.call, self.result)
        if code != lib.ONEPASS_OK:
            message = ffi.string(lib.onepass_message(code)).decode()
            raise ValueError(f"tensor {self.result.tensor}: {message}")
        for tensor in tensors:
            tensor.steps += 1
        return self.result.norm


def write_gradients(grads, params, x, labels):
    """Write the gradients of a batch's cross entropy, and return how many labels are found."""
    (w1, b1, w2, b2), n = params, len(labels)
    hidden = np.maximum(x @ w1 + b1, 0)
    scores = hidden @ w2 + b2
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(n), labels] -= 1
    p /= n
    back = (p @ w2.T) * (hidden > 0)
    for grad, value in zip(grads, (x.T @ back, back.sum(0), hidden.T @ p, p.sum(0)), strict=True):
        grad[...] = value
    return np.count_nonzero(scores.argmax(axis=1) == labels)


def initial_params():
    rng = np.random.default_rng(0)
    params = (
        rng.normal(size=(64, 32)) / 8,
        np.zeros(32),
        rng.normal(size=(32, 10)) / 8,
        np.zeros(10),
    )
    return [param.astype(np.float32) for param in params]


def train(epochs=10, batch=64, after_gradients=None):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    params = initial_params()
    grads = [np.empty_like(param) for param in params]
    optimizer = AdamW(params, grads, max_norm=1.0, weight_decay=0.01, lr=5e-3)
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(images))
        found = 0
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            found += write_gradients(grads, params, images[chosen], labels[chosen])
            if after_gradients:
                after_gradients(grads)
            norm = optimizer.step()
        print(f"epoch {epoch}: {found / len(order):.1%} found, last norm {norm:.3f}")
    return params


if __name__ == "__main__":
    train()
